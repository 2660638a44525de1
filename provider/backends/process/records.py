"""What is on disk about containers, and how a process is recognised again.

    <state>/pods/<uid>/pod.json                      names, images, restart numbers; never an environment
    <state>/pods/<uid>/<container>/<restart>.log     in CRI's format
    <state>/pods/<uid>/<container>/<restart>/        lock, process.json, exit.json, termination

The format of the last line's files is shared with `workers.core.forking`, by agreement and not by import. Standard
library only: the reaper lives on this module.
"""

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

PODS = "pods"
BUNDLES = "bundles"
LOCK = "lock"
PROCESS_RECORD = "process.json"
EXIT_RECORD = "exit.json"
TERMINATION_LOG = "termination"
LOG_SUFFIX = ".log"

REAPER_SOCKET = "reaper.sock"
PREFORK_SOCKET = "prefork.sock"
REAPER_LOCK = "reaper.lock"
PROCESSES = "processes.json"
"""Process ids of the reaper and the pre-forked parent, for whoever wants to measure them."""


class ProcessRecord(NamedTuple):
    """Which process runs a container: process ids come round again, these three together do not."""

    pid: int
    start_ticks: int
    boot_id: str
    started_ns: int


class ExitRecord(NamedTuple):
    exit_code: int
    """128 and the signal where a signal ended it."""
    signal: int
    finished_ns: int
    reason: str = ""
    message: str = ""


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name in the second field may hold blanks and brackets.
    return int(stat[stat.rindex(")") + 2 :].split()[19])


def write_record(path: Path, record: ProcessRecord | ExitRecord) -> None:
    """Write a record whole or not at all. Without fsync: it has to survive processes, not the machine."""
    write_whole(path, json.dumps(record._asdict()).encode())


def write_whole(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


def read_process(directory: Path) -> ProcessRecord | None:
    """Return which process runs the container, or ran it; None where none was started yet."""
    found = _read(directory / PROCESS_RECORD)
    if found is None:
        return None
    return ProcessRecord(*(found[field] for field in ProcessRecord._fields))


def read_exit(directory: Path) -> ExitRecord | None:
    found = _read(directory / EXIT_RECORD)
    if found is None:
        return None
    return ExitRecord(**{field: found[field] for field in ExitRecord._fields if field in found})


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        # Only a machine that went down in the middle leaves half a record. What it said is lost with its processes.
        return {"pid": 0, "start_ticks": 0, "boot_id": "", "started_ns": 0} if path.name == PROCESS_RECORD else None
    return found if isinstance(found, dict) else None


def exit_of(code: int, status: int) -> ExitRecord:
    """Return the record for what `waitid` told, as of now."""
    if code == os.CLD_EXITED:
        return ExitRecord(status, 0, time.time_ns())
    return ExitRecord(128 + status, status, time.time_ns())


def note_exit(directory: Path, record: ExitRecord) -> None:
    """Write how a container ended, unless it has said so itself; a signal it cannot have told."""
    if record.signal or not (directory / EXIT_RECORD).exists():
        write_record(directory / EXIT_RECORD, record)


def take_lock(directory: Path) -> int | None:
    """Return a descriptor that holds the container's lock, or None where it is held: it runs, or is being started.

    Raises `OSError` where the directory is gone.
    """
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def was_started(directory: Path) -> bool:
    return (directory / PROCESS_RECORD).exists() or (directory / EXIT_RECORD).exists()


def container_directories(state: Path) -> Iterator[Path]:
    """Yield the directory of each container and restart that left one; pods may be forgotten meanwhile."""
    for pod in _directories(state / PODS):
        for container in _directories(pod):
            yield from _directories(container)


def _directories(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        return []


def is_alive(record: ProcessRecord, this_boot: str) -> bool:
    """Say whether that very process is there (if only as a zombie)."""
    return record.boot_id == this_boot and record.pid > 0 and start_ticks(record.pid) == record.start_ticks


def kill_group(pid: int) -> None:
    """End whatever is left of the process group; `pid` must be known to be its leader still."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
