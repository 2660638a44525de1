"""What the machine says of itself: for the Node object, and for its default capacity."""

import os
from pathlib import Path

from provider.core.node import ARCHITECTURES, Capacity, Machine


def read_machine() -> Machine:
    system = os.uname()
    return Machine(
        operating_system=system.sysname.lower(),
        architecture=ARCHITECTURES.get(system.machine, system.machine),
        kernel=system.release,
        os_image=_os_image(),
        machine_id=_first_line("/etc/machine-id"),
        boot_id=_first_line("/proc/sys/kernel/random/boot_id"),
    )


def capacity_of(cpu: str | None, memory: str | None, pods: int) -> Capacity:
    """Return what is stated, and of the rest what the machine has."""
    if memory is None:
        memory = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 1024}Ki"
    return Capacity(cpu=cpu or str(os.cpu_count() or 1), memory=memory, pods=pods)


def _os_image() -> str:
    try:
        lines = Path("/etc/os-release").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    return found.get("PRETTY_NAME", "").strip("\"'")


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
