"""`python -m workers.prefork`: the parent that has done a worker's imports, and forks a worker on request.

It is single-threaded, opens no connection and never sees a pod's secrets: a request names a directory and hands over
a descriptor that only the child reads (`workers.core.forking`). It lives on standard input, a pipe: at its end the
parent leaves, and its workers go on as orphans. What it tells about itself goes to standard error.

While nothing is asked of it, one spare child is kept: forked ahead of time, rehearsed, and blank. The next request
goes to it.
"""

import argparse
import errno
import fcntl
import gc
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from workers.child import run_child, run_spare, write_record
from workers.core.forking import (
    EXIT_RECORD,
    LOCK,
    PROCESS_RECORD,
    ForkReply,
    ForkRequest,
    Part,
    decode_request,
    exit_of,
    start_ticks_of,
)

log = logging.getLogger("nodeless.prefork")

OURS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
PACKET_BYTES_MAX = 16 * 1024
SPARE_AFTER_S = 0.1
SPARE_AFTER_MAX_S = 30.0
"""A spare is made after so much quiet: many starts at once shall not wait for rehearsals. Longer each time that the one
before was of no use."""

# What a worker imports only when it gets there: connecting, looking a host up, reading credentials, unpacking, failing.
IMPORTED_LATER = (
    "concurrent.futures.thread", "encodings.idna", "encodings.ascii", "gzip", "nkeys", "nacl.signing", "stringprep",
    "asyncio.staggered",
)  # fmt: skip


class Spare(NamedTuple):
    pid: int
    channel: socket.socket


class Parent:
    """One listening socket, its connections, and the children that were forked for them."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, Path] = {}
        self._connections: set[socket.socket] = set()
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._woken, self._waker = socket.socketpair()
        self._spare: Spare | None = None
        self._spare_after_s = SPARE_AFTER_S
        self._is_leaving = False

    def serve(self) -> None:
        """Answer requests and collect children until standard input ends or SIGTERM comes."""
        for one in (self._listener, self._woken, self._waker):
            one.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._leave)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._woken, selectors.EVENT_READ, self._collect)
        self._selector.register(0, selectors.EVENT_READ, self._leave)
        while not self._is_leaving:
            ready = self._selector.select(self._spare_after_s if self._spare is None else None)
            if not ready and self._spare is None:
                self._fork_spare()
            for key, _ in ready:
                key.data()

    def _leave(self, *_: object) -> None:
        self._is_leaving = True

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return  # whoever called has gone again
        connection.setblocking(False)
        self._connections.add(connection)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._receive(connection))

    def _receive(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            packet, descriptors, _, _ = socket.recv_fds(connection, PACKET_BYTES_MAX, 4)
            if not packet:
                self._drop(connection)
                return
            request = decode_request(packet)
            if len(descriptors) != 1:
                reply = ForkReply(
                    id=request.id, outcome="refused", reason=f"{len(descriptors)} descriptors, expected 1"
                )
            else:
                reply = self._start(request, descriptors[0])
            connection.send(msgspec.json.encode(reply))
        except (OSError, msgspec.DecodeError) as error:
            # Whoever asked looks into the directory before it asks again.
            log.warning("connection dropped: %s", error)
            self._drop(connection)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        self._connections.discard(connection)
        connection.close()

    def _start(self, request: ForkRequest, launch_fd: int) -> ForkReply:
        directory = Path(request.directory)
        try:
            lock_fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            return ForkReply(id=request.id, outcome="refused", reason=f"its directory cannot be used: {error}")
        try:
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return ForkReply(id=request.id, outcome="already")
            if (directory / PROCESS_RECORD).exists() or (directory / EXIT_RECORD).exists():
                return ForkReply(id=request.id, outcome="already")
            spared = self._give_part(request, directory, launch_fd, lock_fd)
            return spared or self._fork(request, directory, launch_fd, lock_fd)
        finally:
            os.close(lock_fd)  # the child's copy holds the lock

    def _give_part(self, request: ForkRequest, directory: Path, launch_fd: int, lock_fd: int) -> ForkReply | None:
        """Have the spare be this container; None where there is no spare."""
        spare, self._spare = self._spare, None
        if spare is None:
            return None
        started_ns = time.time_ns()
        part = Part(directory=request.directory, started_ns=started_ns)
        with spare.channel:
            try:
                socket.send_fds(spare.channel, [msgspec.json.encode(part)], [launch_fd, lock_fd])
            except OSError as error:
                log.warning("the spare is gone: %s", error)
                return None
        self._spare_after_s = SPARE_AFTER_S
        return self._started(request, directory, spare.pid, started_ns)

    def _fork_spare(self) -> None:
        self._spare_after_s = min(SPARE_AFTER_MAX_S, 2 * self._spare_after_s)
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            signal.pthread_sigmask(signal.SIG_BLOCK, OURS)
            try:
                pid = os.fork()
                if pid == 0:
                    ours.close()
                    self._close()
                    run_spare(its, self._boot_id)
            except OSError as error:
                log.warning("no spare: %s", error)
                ours.close()
                return
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)
        self._spare = Spare(pid, ours)

    def _fork(self, request: ForkRequest, directory: Path, launch_fd: int, lock_fd: int) -> ForkReply:
        started_ns = time.time_ns()
        # A signal for the child that comes before it has let go of our handlers waits until then.
        signal.pthread_sigmask(signal.SIG_BLOCK, OURS)
        try:
            pid = os.fork()
            if pid == 0:
                self._close()
                run_child(directory, launch_fd, lock_fd, self._boot_id, started_ns)
        except OSError as error:
            reason = f"fork: {errno.errorcode.get(error.errno or 0, '')} {error.strerror}"
            return ForkReply(id=request.id, outcome="refused", reason=reason)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)
        return self._started(request, directory, pid, started_ns)

    def _started(self, request: ForkRequest, directory: Path, pid: int, started_ns: int) -> ForkReply:
        self._children[pid] = directory
        # It is there, if only as a zombie: nobody else collects it.
        start_ticks = start_ticks_of(Path(f"/proc/{pid}/stat").read_text())
        return ForkReply(id=request.id, outcome="started", pid=pid, start_ticks=start_ticks, started_ns=started_ns)

    def _close(self) -> None:
        """Let go, in a child, of everything that is the parent's, without a word to the kernel's shared tables."""
        signal.set_wakeup_fd(-1)
        self._selector.close()
        for one in (self._listener, self._woken, self._waker, *self._connections):
            one.close()
        if self._spare is not None:
            self._spare.channel.close()

    def _collect(self) -> None:
        """Write the status of each child that has ended, then let go of it: in this order, so that a parent that is
        killed in between leaves it to whoever inherits the child.
        """
        with suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
        while self._children or self._spare:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            pid = ended.si_pid
            directory = self._children.pop(pid, None)
            if self._spare is not None and self._spare.pid == pid:
                self._spare.channel.close()
                self._spare = None
            if directory is not None:
                record = exit_of(ended.si_code, ended.si_status, time.time_ns())
                try:
                    # A child that left by itself has written it, a moment earlier.
                    if record.signal or not (directory / EXIT_RECORD).exists():
                        write_record(directory / EXIT_RECORD, record)
                except OSError as error:
                    log.error("status of %s not written: %s", directory, error)
                # What it started dies with it, as in a container. The zombie still holds the group's number.
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workers.prefork", description=__doc__)
    parser.add_argument("--listen", type=int, required=True, metavar="FD", help="descriptor of a listening socket")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in IMPORTED_LATER:
        __import__(name)
    parent = Parent(socket.socket(fileno=options.listen))
    # What is here now is shared with all workers for good: a collection in a child must not touch, and so copy, it.
    gc.collect()
    gc.disable()
    gc.freeze()
    parent.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
