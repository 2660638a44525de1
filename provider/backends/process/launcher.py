"""Have a container's process started once, by the pre-forked parent or the reaper, and keep the reaper there.

What makes "once" true is on disk (`records`): whoever starts a container takes its lock, and a directory with a record
starts nothing. So a request whose reply was lost is looked after there, and then asked again.
"""

import asyncio
import fcntl
import logging
import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

import anyio
from msgspec import Struct

from provider.backends.process.channel import Channel, ChannelLost
from provider.backends.process.records import (
    PREFORK_SOCKET,
    REAPER_LOCK,
    REAPER_SOCKET,
    ProcessRecord,
    boot_id,
    read_exit,
    read_process,
    take_lock,
)
from provider.errors import BackendUnavailable

log = logging.getLogger(__name__)

START_S = 10.0
"""How long a start is tried. A parent that was killed is back after half a second. [seconds]"""
REAPER_S = 15.0
"""How long a reaper is waited for: its predecessor may be ending everything first. [seconds]"""
STARTS_MAX = 32
"""Requests that are under way at once. [requests]"""
LOOK_S = 0.005
REPLY_LOST_S = 2.0
"""How long a child that holds the lock may take to write its record. [seconds]"""
RETRY_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
"""Waits before a reaper is started again. [seconds]"""

Starter = Literal["parent", "reaper"]


class Outcome(Struct, frozen=True):
    """A container that has been started, by this request or before."""

    record: ProcessRecord | None
    """None where it never ran and never will: something ended it beforehand."""


class Launcher:
    """`open` it, have `keep_reaper` run, and `close` it; closing leaves reaper and parent as they are."""

    def __init__(self, state: Path, root: Path, python: str, lifeline_fd: int | None) -> None:
        self._state, self._root, self._python, self._lifeline_fd = state, root, python, lifeline_fd
        self._boot = boot_id()
        self._channels: dict[Starter, Channel] = {}
        self._reaper_lost = asyncio.Event()
        self._reaper_lock = anyio.Lock()
        # More at once would only fill the socket, and hold a descriptor each: they are served one after the other.
        self._places: dict[Starter, anyio.Semaphore] = {
            "parent": anyio.Semaphore(STARTS_MAX),
            "reaper": anyio.Semaphore(STARTS_MAX),
        }
        self._spawned = 0
        self.is_ending = False
        self._is_closed = False

    async def start(self, directory: Path, launch: bytes, starter: Starter) -> Outcome:
        """Have the container of `directory` started unless it was; raise `BackendUnavailable` where nobody does it."""
        async with self._places[starter]:
            return await self._start(directory, launch, starter)

    async def _start(self, directory: Path, launch: bytes, starter: Starter) -> Outcome:
        descriptor = os.memfd_create("launch", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, launch)
            deadline_s = time.monotonic() + START_S
            while True:
                try:
                    return await self._ask(directory, descriptor, starter, deadline_s - time.monotonic())
                except (ChannelLost, OSError) as error:
                    reason = str(error)
                # It was carried out or was not: the directory knows. Where it was not, ask the next one.
                outcome = await self._looked_up(directory)
                if outcome is not None:
                    return outcome
                if time.monotonic() >= deadline_s:
                    raise BackendUnavailable("process", f"no {starter} has started it within {START_S:g} s: {reason}")
                await asyncio.sleep(LOOK_S)
        finally:
            os.close(descriptor)

    async def end(self, grace_s: float) -> None:
        """End all workers, the parent and the reaper: for a node that goes for good."""
        self.is_ending = True
        with suppress(ChannelLost, OSError, BackendUnavailable):
            channel = await self._channel("reaper")
            await channel.request({"end_grace_s": grace_s}, None, 5.0)
        deadline_s = time.monotonic() + grace_s + REAPER_S
        while self._is_reaper_there() and time.monotonic() < deadline_s:  # noqa: ASYNC110 - another process' doing
            await asyncio.sleep(LOOK_S)

    async def _ask(self, directory: Path, descriptor: int, starter: Starter, left_s: float) -> Outcome:
        channel = await self._channel(starter)
        try:
            reply = await channel.request({"directory": str(directory)}, descriptor, max(0.1, left_s))
        except TimeoutError as error:
            raise BackendUnavailable("process", f"no reply from the {starter} within {START_S:g} s") from error
        match reply["outcome"]:
            case "started":
                return Outcome(ProcessRecord(reply["pid"], reply["start_ticks"], self._boot, reply["started_ns"]))
            case "already":
                outcome = await self._looked_up(directory)
                if outcome is not None:
                    return outcome
                raise ChannelLost("another start was given up")
        raise BackendUnavailable("process", reply["reason"])

    async def _looked_up(self, directory: Path) -> Outcome | None:
        """Return who was started there; None where nobody was and nobody is about to be."""
        deadline_s = time.monotonic() + REPLY_LOST_S
        while True:
            # The lock first: it is free before a child or after it, and what it left is there by then.
            try:
                lock = take_lock(directory)
            except OSError as error:
                raise BackendUnavailable("process", f"{directory} is gone: {error}") from error
            if lock is not None:
                os.close(lock)
            record = read_process(directory)
            if record is not None:
                return Outcome(record)
            if read_exit(directory) is not None:
                return Outcome(None)
            if lock is not None:
                return None
            if time.monotonic() > deadline_s:
                raise BackendUnavailable("process", f"{directory} is locked, and nobody says who runs there")
            await asyncio.sleep(LOOK_S)

    # -- connections

    async def _channel(self, starter: Starter) -> Channel:
        if self._is_closed:
            raise BackendUnavailable("process", "this node has left")
        channel = self._channels.get(starter)
        if channel is not None and channel.is_open:
            return channel
        if starter == "reaper":
            return await self._open_reaper()
        try:
            channel = Channel.open(self._state / PREFORK_SOCKET, lambda: None)
        except OSError:
            # Its socket is the reaper's, and waits there even when no parent is: so there is no reaper.
            await self._open_reaper()
            channel = Channel.open(self._state / PREFORK_SOCKET, lambda: None)
        self._channels["parent"] = channel
        return channel

    async def open(self) -> None:
        """Connect to a reaper, started if need be, and to the parent's socket."""
        await self._open_reaper()
        await self._channel("parent")

    async def _open_reaper(self) -> Channel:
        async with self._reaper_lock:
            channel = self._channels.get("reaper")
            if channel is not None and channel.is_open:
                return channel
            deadline_s = time.monotonic() + REAPER_S
            is_spawned = False
            while True:
                try:
                    channel = Channel.open(self._state / REAPER_SOCKET, self._reaper_lost.set)
                    break
                except OSError as error:
                    self._collect_spawned()
                    if self.is_ending or self._has_lifeline_ended():
                        raise BackendUnavailable("process", "everything is ending") from error
                    if time.monotonic() > deadline_s:
                        raise BackendUnavailable(
                            "process", f"no reaper within {REAPER_S:g} s; see {self._state / 'reaper.log'}"
                        ) from error
                if not is_spawned or not self._spawned:
                    self._spawn()
                    is_spawned = True
                await asyncio.sleep(LOOK_S)
            self._channels["reaper"] = channel
            if self._lifeline_fd is not None and not is_spawned:
                # One from before: it shall live as long as our supervisor, not as the one of then.
                await channel.request({"is_lifeline": True}, self._lifeline_fd, 5.0)
            return channel

    def _spawn(self) -> None:
        reaper_log = os.open(self._state / "reaper.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # -S: no site packages, so that it stays small. The packages are found where this one is.
        argv = [self._python, "-S", "-P", "-m", "provider.backends.process.reaper"]
        argv += ["--state", str(self._state), "--python", self._python]
        actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, reaper_log, 1),
            (os.POSIX_SPAWN_DUP2, reaper_log, 2),
        ]
        if self._lifeline_fd is not None:
            actions.append((os.POSIX_SPAWN_DUP2, self._lifeline_fd, 3))
            argv += ["--lifeline-fd", "3"]
        try:
            self._spawned = os.posix_spawn(
                self._python,
                argv,
                {**minimal_environment(), "PYTHONPATH": str(self._root)},
                file_actions=actions,
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD],
            )
        finally:
            os.close(reaper_log)

    def _collect_spawned(self) -> None:
        """Let go of a reaper of ours that has ended."""
        if self._spawned:
            try:
                pid, _ = os.waitpid(self._spawned, os.WNOHANG)
            except ChildProcessError:
                pid = self._spawned
            if pid:
                self._spawned = 0

    def _is_reaper_there(self) -> bool:
        """Say whether some reaper holds the lock of this directory, if only to end everything."""
        self._collect_spawned()
        with (self._state / REAPER_LOCK).open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def _has_lifeline_ended(self) -> bool:
        if self._lifeline_fd is None:
            return False
        poll = select.poll()
        poll.register(self._lifeline_fd, 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    async def keep_reaper(self) -> None:
        """Whenever the reaper has gone, have another one; runs until cancelled."""
        failures = 0
        while True:
            await self._reaper_lost.wait()
            self._reaper_lost.clear()
            if self.is_ending:
                continue
            await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
            try:
                await self._open_reaper()
                failures = 0
                log.warning("reaper replaced: how workers end by a signal was not noted meanwhile")
            except (BackendUnavailable, ChannelLost, TimeoutError) as error:
                failures += 1
                self._reaper_lost.set()
                log.error("no reaper: %s", error)

    def close(self) -> None:
        self._is_closed = True
        for channel in self._channels.values():
            channel.close()
        self._collect_spawned()


def minimal_environment() -> dict[str, str]:
    """Return what every process is given: where programs, home and temporary files are, and UTF-8."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(Path.home()),
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),  # noqa: S108 - the convention's own default
        "LANG": "C.UTF-8",
    }
