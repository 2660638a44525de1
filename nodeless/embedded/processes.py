"""What the kernel says of processes: who a process is, whose child, and what memory it holds.

A process id is given again after a while, so it names a process only together with the moment of its start and the boot
in which it was given.
"""

import os
from pathlib import Path

from msgspec import Struct

PROC = Path("/proc")
PR_SET_CHILD_SUBREAPER = 36
KIB_PER_MB = 1000 * 1000 / 1024


class Identity(Struct, frozen=True):
    """One process, and never another one."""

    pid: int
    start_ticks: int
    """Since boot, in the kernel's clock ticks."""
    boot_id: str

    def is_alive(self) -> bool:
        return identity(self.pid) == self


class Process(Struct, frozen=True):
    pid: int
    parent: int
    start_ticks: int
    is_zombie: bool


class Memory(Struct, frozen=True):
    """Megabytes (10⁶ bytes). A page that several processes share is a fraction of each one's `pss_mb`, so these add up."""

    pss_mb: float
    rss_mb: float


def boot_id() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def identity(pid: int) -> Identity | None:
    """Return who has that process id now; None if nobody has, or only a zombie."""
    process = _process(pid)
    if process is None or process.is_zombie:
        return None
    return Identity(pid, process.start_ticks, boot_id())


def become_subreaper() -> None:
    """From now on orphaned descendants become children of this process instead of init's."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(error)}")


def processes() -> list[Process]:
    found = (_process(int(entry.name)) for entry in PROC.iterdir() if entry.name.isdigit())
    return [process for process in found if process is not None]


def children(pid: int) -> list[Process]:
    return [process for process in processes() if process.parent == pid]


def descendants(pid: int) -> list[Process]:
    """Return all processes below `pid`, parents before their children."""
    by_parent: dict[int, list[Process]] = {}
    for process in processes():
        by_parent.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    level = by_parent.get(pid, [])
    while level:
        found += level
        level = [child for process in level for child in by_parent.get(process.pid, ())]
    return found


def command_line(pid: int) -> list[str]:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def memory(pid: int) -> Memory | None:
    """Return what the process holds; None if it is gone or another user's."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("Pss:", "Rss:"))}
    if len(kib) < 2:  # a zombie
        return None
    return Memory(round(kib["Pss"] / KIB_PER_MB, 1), round(kib["Rss"] / KIB_PER_MB, 1))


def _process(pid: int) -> Process | None:
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (OSError, ValueError):
        return None
    # The second field is the command in brackets, with whatever characters it likes.
    fields = text[text.rindex(")") + 2 :].split()
    return Process(pid, int(fields[1]), int(fields[19]), fields[0] in "ZX")
