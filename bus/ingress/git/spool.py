"""The bridge's directory inside a repository: settings, and the pushes that wait or were refused.

nodeless/settings.json   how to reach the bus, who this repository is
nodeless/post-receive    what the hook runs
nodeless/number          counter of pushes; its lock is held while one is put into place
nodeless/deliver.lock    held by the deliverer, with its process id
nodeless/delivered.json  the last push that was delivered
nodeless/log             of the deliverers
nodeless/spool/          pushes that wait, oldest first by name (`bus.core.git`)
nodeless/spool/raw/      what git said when the hook's program could not run
nodeless/spool/failed/   pushes that the broker will never take, each with its reason beside it
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from bus.core.git import Push, RefUpdate, is_entry, parse_push, push_text
from bus.ingress.git.errors import GitBridgeError
from bus.ingress.git.hook import is_being_delivered, sync_directory, take_in_raw

DIRECTORY = "nodeless"
"""Name of the bridge's directory inside the git directory."""


class BridgeSettings(Struct, frozen=True, kw_only=True):
    """How one repository announces its pushes; `settings.json`."""

    nats_url: str
    nats_credentials: str | None = None
    """Path of the credentials file of the `git` user; None where the broker asks for none."""
    owner: str = "local"
    """Token of the subject that groups repositories."""
    repository: str = ""
    """Name in subjects and events; empty: the directory's, without `.git`."""
    source: str = ""
    """CloudEvents source; empty: `git://<host>/<path>`. Kept here, so that a retry has it even if the host is renamed."""


class LastDelivered(Struct, frozen=True, kw_only=True):
    push: int
    delivered_at: str
    """RFC 3339, UTC."""
    latency_s: float
    """From the start of the hook to the acknowledgement of the push's last event. [seconds]"""


class FailedPush(Struct, frozen=True, kw_only=True):
    name: str
    reason: str


class SpoolStatus(Struct, frozen=True, kw_only=True):
    waiting: int
    """Pushes not yet delivered. [pushes]"""
    oldest_at: str | None
    """When the oldest of them was pushed; RFC 3339, UTC."""
    failed: tuple[FailedPush, ...]
    last_delivered: LastDelivered | None
    deliverer: int | None
    """Process id of the deliverer at work."""


class Spool:
    """Use `Spool.of_repository` or give the bridge's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.git_directory = directory.parent
        self._waiting = directory / "spool"
        self._failed = self._waiting / "failed"

    def create(self) -> None:
        """Make the directories that are missing, with the repository's own mode: a shared one stays shared."""
        mode = self.git_directory.stat().st_mode & 0o7777
        for directory in (self.directory, self._waiting, self._failed, self._waiting / "raw"):
            if not directory.is_dir():
                directory.mkdir()
                directory.chmod(mode)

    def settings(self) -> BridgeSettings:
        path = self.directory / "settings.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=BridgeSettings)
        except FileNotFoundError as error:
            raise GitBridgeError(
                f"{self.git_directory} has no bridge to the bus (no {path}); run `nodeless git install` on it"
            ) from error
        except (OSError, msgspec.DecodeError) as error:
            raise GitBridgeError(f"{path} cannot be read ({error}); run `nodeless git install` again") from error

    def save_settings(self, settings: BridgeSettings) -> None:
        content = msgspec.json.format(msgspec.json.encode(settings), indent=2)
        self._replace(self.directory / "settings.json", content + b"\n")

    def take_in_raw(self) -> None:
        """Give numbers to what the shell kept when the hook's program could not run."""
        take_in_raw(str(self.directory))

    def waiting(self) -> list[str]:
        """Return the names of the pushes that wait, oldest first."""
        return sorted(path.name for path in self._waiting.iterdir() if is_entry(path.name))

    def push(self, name: str) -> Push:
        """Return one push that waits; raise `UnreadablePush`."""
        return parse_push(name, (self._waiting / name).read_bytes())

    def remove(self, name: str, last: LastDelivered | None = None) -> None:
        """Forget a push; all its events are stored."""
        if last is not None:
            self._replace(self.directory / "delivered.json", msgspec.json.encode(last))
        (self._waiting / name).unlink()
        # Without this, a crash of the machine brings the push back, and it would be published again.
        sync_directory(str(self._waiting))

    def set_aside(self, name: str, reason: str, push: Push | None, refused: tuple[RefUpdate, ...]) -> None:
        """Put a push among the failed ones, with those of its refs that were refused; as it is where it could not be
        read.
        """
        self._replace(self._failed / f"{name}.reason", reason.encode() + b"\n")
        if push is not None and refused != push.updates:
            text = push_text(msgspec.structs.replace(push, updates=refused))
            self._replace(self._waiting / name, text.encode())
        (self._waiting / name).rename(self._failed / name)
        for directory in (self._failed, self._waiting):
            sync_directory(str(directory))

    def failed(self) -> list[FailedPush]:
        return [
            FailedPush(name=path.name, reason=self._reason(path.name))
            for path in sorted(self._failed.iterdir())
            if is_entry(path.name)
        ]

    def _reason(self, name: str) -> str:
        path = self._failed / f"{name}.reason"
        return path.read_text(errors="replace").strip() if path.exists() else ""

    def take_back_failed(self) -> int:
        """Make the failed pushes wait again, before all newer ones; return how many."""
        names = [push.name for push in self.failed()]
        for name in names:
            (self._failed / name).rename(self._waiting / name)
            (self._failed / f"{name}.reason").unlink(missing_ok=True)
        return len(names)

    @contextmanager
    def delivering(self) -> Iterator[bool]:
        """Hold the deliverer's lock; yields False where another has it."""
        lock = os.open(self.directory / "deliver.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                os.ftruncate(lock, 0)
                os.pwrite(lock, str(os.getpid()).encode(), 0)
                yield True
        finally:
            os.close(lock)

    def status(self) -> SpoolStatus:
        self.settings()
        waiting = self.waiting()
        try:
            oldest = self.push(waiting[0]).pushed_at if waiting else None
        except (ValueError, FileNotFoundError):  # unreadable, or delivered just now
            oldest = None
        delivered = self.directory / "delivered.json"
        return SpoolStatus(
            waiting=len(waiting),
            oldest_at=oldest,
            failed=tuple(self.failed()),
            last_delivered=msgspec.json.decode(delivered.read_bytes(), type=LastDelivered)
            if delivered.exists()
            else None,
            deliverer=self._deliverer(),
        )

    def _deliverer(self) -> int | None:
        if not is_being_delivered(str(self.directory)):
            return None
        text = (self.directory / "deliver.lock").read_text().strip()
        return int(text) if text.isdigit() else None

    @staticmethod
    def _replace(path: Path, content: bytes) -> None:
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_bytes(content)
        draft.replace(path)
