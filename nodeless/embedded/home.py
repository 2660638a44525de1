"""The directory of one embedded system: what lies where, who holds it, what is written down while it runs.

    .nodeless         says that the directory is ours; without it nothing is ever removed
    lock              held by whoever starts, runs or removes the system; the kernel frees it
    plan.json         what is run: written by `up`, read by the supervisor
    system.json       what is running: replaced by the supervisor at every change, gone when it ends in order
    kubeconfig        the administrator's
    pki/ etcd/ controlplane/ nats/ node/ programs/ logs/

Readable by its owner only.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from nodeless.embedded.errors import HomeBusy, HomeUnusable, NotRunning
from nodeless.embedded.processes import Identity
from nodeless.embedded.program import ProgramSpec
from nodeless.embedded.supervisor import ProgramState

HOME_VARIABLE = "NODELESS_HOME"
LAYOUT = "1\n"
CONTENTS = (
    "kubeconfig", "pki", "etcd", "controlplane", "nats", "node", "programs", "logs", "plan.json", "system.json",
)  # fmt: skip
"""All that a system keeps, beside the mark and the lock."""
REMOVALS_MAX = 20
REMOVAL_AGAIN_S = 0.1


class Endpoints(Struct, frozen=True, kw_only=True):
    """How to reach what runs."""

    nats_url: str
    nats_credentials: str | None
    """Path of the command line's credentials; None where the broker asks for none."""
    git_credentials: str | None
    """The same for the bridges of git repositories."""
    gateway_url: str
    gateway_token_file: str
    kubeconfig: str
    context: str | None = None
    node: str


class Plan(Struct, frozen=True, kw_only=True):
    """What a supervisor needs to know."""

    programs: tuple[ProgramSpec, ...]
    endpoints: Endpoints


class SystemState(Struct, frozen=True, kw_only=True):
    """What a supervisor says of itself."""

    supervisor: Identity
    started_at: str
    is_ready: bool
    """Every program is ready now."""
    endpoints: Endpoints
    programs: tuple[ProgramState, ...]


@dataclass(frozen=True)
class Home:
    directory: Path

    @classmethod
    def at(cls, directory: Path) -> "Home":
        return cls(directory.expanduser().absolute())

    @property
    def plan(self) -> Path:
        return self.directory / "plan.json"

    @property
    def state(self) -> Path:
        return self.directory / "system.json"

    @property
    def pki(self) -> Path:
        return self.directory / "pki"

    @property
    def nats(self) -> Path:
        return self.directory / "nats"

    @property
    def node(self) -> Path:
        return self.directory / "node"

    def program(self, name: str) -> Path:
        return self.directory / "programs" / name

    def log(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    @property
    def _mark(self) -> Path:
        return self.directory / ".nodeless"

    @property
    def _lock(self) -> Path:
        return self.directory / "lock"

    @property
    def is_ours(self) -> bool:
        return self._mark.exists()

    def claim(self) -> None:
        """Make the directory, or make sure that it is ours. Raises `HomeUnusable`."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.is_ours:
                if any(self.directory.iterdir()):
                    raise HomeUnusable(self.directory, "it holds files, and none of them is a system's")
                self._mark.write_text(LAYOUT)
            layout = self._mark.read_text()
        except OSError as error:
            raise HomeUnusable(self.directory, str(error)) from error
        if layout != LAYOUT:
            raise HomeUnusable(
                self.directory, f"its layout is {layout.strip()!r}, and this version knows {LAYOUT.strip()!r}"
            )

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the lock and yield its descriptor: whoever inherits that holds it too. Raises `HomeBusy`."""
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_same = os.path.samestat(os.fstat(descriptor), self._lock.stat())
            except (BlockingIOError, FileNotFoundError) as error:
                raise HomeBusy(self.directory) from error
            if not is_same:  # the system was removed, and another one begun, between the two lines
                raise HomeBusy(self.directory)
            yield descriptor
        finally:
            os.close(descriptor)

    def running(self) -> SystemState | None:
        """Return what the supervisor says; None if there is no live one."""
        try:
            state = msgspec.json.decode(self.state.read_bytes(), type=SystemState)
        except (OSError, msgspec.DecodeError):
            return None
        return state if state.supervisor.is_alive() else None

    def running_or_raise(self) -> SystemState:
        state = self.running()
        if state is None:
            raise NotRunning(self.directory)
        return state

    def read_plan(self) -> Plan:
        return msgspec.json.decode(self.plan.read_bytes(), type=Plan)

    def purge(self) -> bool:
        """Remove all that a system kept here, and the directory if nothing else is in it; False if nothing was ours.

        The lock has to be held.
        """
        if not self.is_ours:
            return False
        for name in CONTENTS:
            path = self.directory / name
            if path.is_dir() and not path.is_symlink():
                _remove_tree(path)
            else:
                path.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)
        self._lock.unlink(missing_ok=True)
        with suppress(OSError):  # somebody's files are in it, or it is a mount point
            self.directory.rmdir()
        return True


def _remove_tree(path: Path) -> None:
    """Remove a tree in which a process that is just ending may still make files."""
    for _ in range(REMOVALS_MAX):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(REMOVAL_AGAIN_S)
    shutil.rmtree(path)
