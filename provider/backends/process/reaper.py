"""`python -S -P -m provider.backends.process.reaper`: what stands above the workers of one node, and outlives the node.

- It starts the pre-forked parent, again with back-off when that dies, and holds the parent's listening socket, so that
  requests wait in its queue meanwhile. The parent's standard input is a pipe from here: it ends with the reaper.
- It is the sub-reaper of all of them: an orphan comes here, and its exit status goes into its container's directory.
- It starts cold processes on request, over a socket with the pre-forked parent's protocol (`workers.core.forking`).
- It holds the lifeline, the read end of a pipe whose write end the supervisor has. At its end nothing may remain.

Standard library only, small, without threads. Why there is such a thing: docs/decisions/0005.
"""

import argparse
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from provider.backends.process.cold import run_cold
from provider.backends.process.records import (
    PREFORK_SOCKET,
    PROCESSES,
    REAPER_LOCK,
    REAPER_SOCKET,
    boot_id,
    container_directories,
    exit_of,
    is_alive,
    kill_group,
    note_exit,
    read_process,
    start_ticks,
    take_lock,
    was_started,
    write_whole,
)

PR_SET_CHILD_SUBREAPER = 36
OURS = (signal.SIGTERM, signal.SIGCHLD)
BACKLOG = 1024
"""Requests that may wait while there is no parent. [connections]"""
PACKET_BYTES_MAX = 16 * 1024
LOCK_S = 10.0
"""How long the predecessor, which is ending, is waited for. [seconds]"""
GRACE_S = 2.0
"""Between SIGTERM and SIGKILL when the lifeline ends. [seconds]"""
KILL_S = 5.0
"""How long those that were killed are collected. A process in the kernel's hands may take longer. [seconds]"""
RESTART_S = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Waits before the parent is started again, as often as it has died young. [seconds]"""
YOUNG_S = 1.0
LISTENING = 3
"""Number under which the parent finds its listening socket."""


def say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} reaper: {text}\n")


class Reaper:
    def __init__(self, state: Path, python: str, lifeline: int | None) -> None:
        self._state, self._python, self._lifeline = state, python, lifeline
        self._boot = boot_id()
        self._poll = select.poll()
        self._actions: dict[int, Callable[[], None]] = {}
        self._connections: dict[int, socket.socket] = {}
        self._cold: dict[int, Path] = {}
        self._parent = 0
        self._parent_started_s = 0.0
        self._parent_due_s: float | None = 0.0
        self._deaths = 0
        self._breath = -1
        """Write end of the parent's standard input."""
        self._grace_s: float | None = None
        """Set when everything has to end."""

    # -- serving

    def run(self) -> None:
        """Serve until the lifeline ends, SIGTERM comes or it is asked to end; then end all there is."""
        self._woken, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._end_soon(GRACE_S))
        self._prefork = self._listen(PREFORK_SOCKET)
        # The last to appear: who can connect here may rely on the rest.
        self._listener = self._listen(REAPER_SOCKET)
        self._on(self._woken, self._collect)
        self._on(self._listener.fileno(), self._accept)
        if self._lifeline is not None:
            self._hold(self._lifeline)
        while self._grace_s is None:
            self._keep_parent()
            wait_s = None if self._parent_due_s is None else max(0.0, self._parent_due_s - time.monotonic())
            for descriptor, _ in self._poll.poll(None if wait_s is None else int(wait_s * 1000) + 1):
                action = self._actions.get(descriptor)
                if action is not None:
                    self._do(action)
        self._end(self._grace_s)

    def _do(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            # Whatever it is, it is worse to leave: orphans would die unseen, and the parent with us.
            say(f"going on after an error\n{traceback.format_exc()}")
            time.sleep(0.1)  # in case it comes again at once

    def _on(self, descriptor: int, action: Callable[[], None]) -> None:
        self._actions[descriptor] = action
        self._poll.register(descriptor, select.POLLIN)

    def _off(self, descriptor: int) -> None:
        del self._actions[descriptor]
        self._poll.unregister(descriptor)

    def _listen(self, name: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        (self._state / name).unlink(missing_ok=True)
        os.chdir(self._state)  # a path relative to it cannot be longer than a socket's name may be
        listener.bind(name)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        return listener

    def _end_soon(self, grace_s: float) -> None:
        self._grace_s = grace_s if self._grace_s is None else min(grace_s, self._grace_s)

    def _hold(self, lifeline: int) -> None:
        """Take this lifeline in place of the one before: a supervisor may hand the node on."""
        if self._lifeline is not None and self._lifeline != lifeline:
            self._off(self._lifeline)
            os.close(self._lifeline)
        self._lifeline = lifeline
        os.set_inheritable(lifeline, False)

        def look() -> None:
            if not os.read(lifeline, 4096):
                say("the lifeline has ended")
                self._end_soon(GRACE_S)

        self._on(lifeline, look)

    # -- requests

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        connection.setblocking(False)
        self._connections[connection.fileno()] = connection
        self._on(connection.fileno(), lambda: self._receive(connection))

    def _receive(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            packet, descriptors, _, _ = socket.recv_fds(connection, PACKET_BYTES_MAX, 4)
            if packet:
                request = json.loads(packet)
                reply = self._answer(request, descriptors)
                connection.send(json.dumps({"id": request["id"], **reply}).encode())
                return
        except (OSError, ValueError, KeyError) as error:
            say(f"connection dropped: {error!r}")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._off(connection.fileno())
        del self._connections[connection.fileno()]
        connection.close()

    def _answer(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        if "end_grace_s" in request:
            self._end_soon(float(request["end_grace_s"]))
            return {"outcome": "ending"}
        if len(descriptors) != 1:
            return {"outcome": "refused", "reason": f"{len(descriptors)} descriptors, expected 1"}
        if request.get("is_lifeline"):
            self._hold(fcntl.fcntl(descriptors[0], fcntl.F_DUPFD_CLOEXEC, 3))
            return {"outcome": "held"}
        return self._start(Path(request["directory"]), descriptors[0])

    def _start(self, directory: Path, launch_fd: int) -> dict[str, Any]:
        try:
            lock_fd = take_lock(directory)
        except OSError as error:
            return {"outcome": "refused", "reason": f"its directory cannot be used: {error}"}
        if lock_fd is None:
            return {"outcome": "already"}
        try:
            if was_started(directory):
                return {"outcome": "already"}
            started_ns = time.time_ns()
            # A signal for the child that comes before it has let go of our handlers waits until then.
            signal.pthread_sigmask(signal.SIG_BLOCK, OURS)
            pid = os.fork()
            if pid == 0:
                # Objects that own descriptors are let go before others get these numbers.
                for one in (self._listener, self._prefork, *self._connections.values()):
                    one.close()
                run_cold(directory, launch_fd, lock_fd, self._boot, started_ns)
            self._cold[pid] = directory
            return {"outcome": "started", "pid": pid, "start_ticks": start_ticks(pid), "started_ns": started_ns}
        except OSError as error:
            return {"outcome": "refused", "reason": f"fork: {error}"}
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)
            os.close(lock_fd)  # the child's copy holds the lock

    # -- the pre-forked parent

    def _keep_parent(self) -> None:
        now_s = time.monotonic()
        if self._parent_due_s is None or now_s < self._parent_due_s:
            return
        self._parent_due_s = None
        self._parent_started_s = now_s
        if self._breath >= 0:
            os.close(self._breath)
        standard_input, self._breath = os.pipe2(os.O_CLOEXEC)
        log = os.open(self._state / "prefork.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._parent = os.posix_spawn(
                self._python,
                [self._python, "-P", "-m", "workers.prefork", "--listen", str(LISTENING)],
                os.environ,
                # The sources lie above the targets (see `main`), so none is overwritten before it is used.
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, standard_input, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                    (os.POSIX_SPAWN_DUP2, self._prefork.fileno(), LISTENING),
                ],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except OSError as error:
            self._parent_died(f"{self._python} cannot be started: {error}")
            return
        finally:
            os.close(standard_input)
            os.close(log)
        write_whole(self._state / PROCESSES, json.dumps({"reaper": os.getpid(), "prefork": self._parent}).encode())

    def _parent_died(self, how: str) -> None:
        self._parent = 0
        lived_s = time.monotonic() - self._parent_started_s
        self._deaths = self._deaths + 1 if lived_s < YOUNG_S else 0
        wait_s = RESTART_S[min(self._deaths, len(RESTART_S) - 1)]
        self._parent_due_s = time.monotonic() + wait_s
        say(f"the pre-forked parent has ended after {lived_s:.1f} s ({how}); again in {wait_s:g} s")

    # -- collecting

    def _collect(self) -> None:
        """Write the status of each child that has ended, then let go of it: whoever kills us in between leaves it to
        the next above us.
        """
        with suppress(BlockingIOError):
            while os.read(self._woken, 4096):
                pass
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid, record = ended.si_pid, exit_of(ended.si_code, ended.si_status)
            if pid == self._parent:
                self._parent_died(f"signal {record.signal}" if record.signal else f"status {record.exit_code}")
            else:
                directory = self._cold.pop(pid, None) or self._directory_of(pid)
                if directory is not None:
                    try:
                        note_exit(directory, record)
                    except OSError as error:
                        say(f"status of {directory} not written: {error}")
                    # What it started dies with it, as in a container. The zombie still holds the group's number.
                    kill_group(pid)
            os.waitpid(pid, 0)

    def _directory_of(self, pid: int) -> Path | None:
        """Return whose process this zombie was, by what the containers' records say."""
        ticks = start_ticks(pid)
        for directory in container_directories(self._state):
            record = read_process(directory)
            if record is not None and record[:3] == (pid, ticks, self._boot):
                return directory
        return None

    # -- the end

    def _end(self, grace_s: float) -> None:
        """End workers, parent and whatever they left behind; orderly within `grace_s`, then by force."""
        say(f"ending everything within {grace_s:g} s")
        for name in (REAPER_SOCKET, PREFORK_SOCKET):
            (self._state / name).unlink(missing_ok=True)
        for one in (self._listener, self._prefork, *self._connections.values()):
            one.close()
        if self._parent:
            os.kill(self._parent, signal.SIGKILL)  # it forks no more, and its children become ours
            os.waitpid(self._parent, 0)
            self._parent = 0
        for pid in self._remaining():
            _signal(pid, signal.SIGTERM)
        self._await_end(grace_s)
        deadline_s = time.monotonic() + KILL_S
        while (remaining := self._remaining()) and time.monotonic() < deadline_s:
            for pid in remaining:
                kill_group(pid)
                _signal(pid, signal.SIGKILL)
            self._await_end(0.1)
        for pid in remaining:
            say(f"process {pid} does not end")
        (self._state / PROCESSES).unlink(missing_ok=True)

    def _await_end(self, wait_s: float) -> None:
        deadline_s = time.monotonic() + wait_s
        while self._remaining() and (left_s := deadline_s - time.monotonic()) > 0:
            # Those that are not our children (a reaper before us was killed) send no signal: looked at ten times a second.
            select.select([self._woken], [], [], min(left_s, 0.1))
            self._collect()

    def _remaining(self) -> set[int]:
        """Return our children, and the containers' processes that a reaper before us has lost."""
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _parent_of(entry) == os.getpid():
                found.add(int(entry.name))
        for directory in container_directories(self._state):
            record = read_process(directory)
            if record is not None and is_alive(record, self._boot):
                found.add(record.pid)
        return found


def _parent_of(entry: Path) -> int:
    try:
        stat = (entry / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(stat[stat.rindex(")") + 2 :].split()[1])


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _lock(state: Path) -> bool:
    """Become the only reaper of this directory; False where there is one at work."""
    descriptor = os.open(state / REAPER_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline_s = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            # Held by one that serves, or by one that is ending and has taken its socket away.
            if (state / REAPER_SOCKET).exists() or time.monotonic() > deadline_s:
                return False
            time.sleep(0.02)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m provider.backends.process.reaper")
    parser.add_argument("--state", type=Path, required=True, help="the node's state directory")
    parser.add_argument("--python", required=True, help="interpreter of the workers")
    parser.add_argument("--lifeline-fd", type=int, help="read end of the supervisor's pipe")
    options = parser.parse_args(argv)
    # Nothing may get the low numbers, which a child's descriptors are put on.
    while (spare := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= LISTENING:
        pass
    os.close(spare)
    if not _lock(options.state):
        say("another reaper is at work here")
        return 0
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        say(f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(ctypes.get_errno())}")
        return 1
    say(f"serving as process {os.getpid()}")
    Reaper(options.state, options.python, options.lifeline_fd).run()
    say("ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
