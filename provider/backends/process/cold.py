"""The child of the reaper that becomes a container: a worker that starts cold, or a command of the machine.

A worker writes its own log; the command of a host container has it written by this process, which stays: it copies
what the command prints line by line in CRI's format, hands signals on, and ends as the command ended. Standard library
only.
"""

import json
import os
import resource
import select
import signal
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from provider.backends.process.records import (
    EXIT_RECORD,
    LOG_SUFFIX,
    PROCESS_RECORD,
    ExitRecord,
    ProcessRecord,
    exit_of,
    start_ticks,
    write_record,
)

LINE_BYTES_MAX = 16 * 1024
"""A longer line is written in parts, as container engines do."""
EXIT_NOT_STARTED = 128
"""As container engines tell a command that cannot be run."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def run_cold(directory: Path, launch_fd: int, lock_fd: int, boot: str, started_ns: int) -> NoReturn:
    """Become the container: record first, then the launch, which only this process reads. Never returns."""
    try:
        os.setsid()
        log_fd = _use_log(directory)
        _close_others(launch_fd, lock_fd, log_fd)
        _reset_signals()
        pid = os.getpid()
        write_record(directory / PROCESS_RECORD, ProcessRecord(pid, start_ticks(pid) or 0, boot, started_ns))
        launch = json.loads(os.pread(launch_fd, os.fstat(launch_fd).st_size, 0))
        os.close(launch_fd)
        os.umask(0o022)
        if launch["copies_output"]:
            _run_beside(directory, launch, log_fd)
        _become(directory, launch, lock_fd)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _use_log(directory: Path) -> int:
    """Standard error is the pod's log from here on, so that whatever goes wrong is told there."""
    log_fd = os.open(f"{directory}{LOG_SUFFIX}", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    return log_fd


def _close_others(*kept: int) -> None:
    low = 3
    for descriptor in sorted(kept):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _execute(launch: dict[str, Any]) -> NoReturn:
    """Become the command; raises `OSError` where that is impossible."""
    if launch["working_directory"]:
        os.chdir(launch["working_directory"])
    if launch["memory_bytes_max"]:
        # RLIMIT_DATA rather than RLIMIT_AS: allocators reserve far more address space than they use.
        resource.setrlimit(resource.RLIMIT_DATA, (launch["memory_bytes_max"],) * 2)
    argv, environment = launch["argv"], launch["environment"]
    os.execvpe(argv[0], argv, environment)  # noqa: S606 - a list of arguments, and no shell on purpose


def _become(directory: Path, launch: dict[str, Any], lock_fd: int) -> NoReturn:
    os.set_inheritable(lock_fd, True)
    try:
        _execute(launch)
    except OSError as error:
        _not_started(directory, launch["argv"], error)


def _not_started(directory: Path, argv: list[str], error: OSError) -> NoReturn:
    message = f"{argv[0]!r} cannot be started: {error.strerror}" + (f": {error.filename}" if error.filename else "")
    write_record(directory / EXIT_RECORD, ExitRecord(EXIT_NOT_STARTED, 0, time.time_ns(), "StartError", message))
    os.write(2, f"{message}\n".encode())
    os._exit(EXIT_NOT_STARTED)


class _Copier:
    """One stream of the command: what comes in through the pipe, line by line into the log."""

    def __init__(self, pipe: int, name: str, log_fd: int) -> None:
        self.pipe, self._name, self._log_fd = pipe, name.encode(), log_fd
        self._rest = b""
        self.is_open = True

    def copy(self) -> None:
        """Copy what is there; at the end of the stream the last line is complete whatever it is."""
        try:
            data = os.read(self.pipe, 65536)
        except BlockingIOError:
            return
        self.is_open = bool(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        written = b"".join(self._parts(line) for line in lines)
        while len(self._rest) >= LINE_BYTES_MAX:
            written += self._line(b"P", self._rest[:LINE_BYTES_MAX])
            self._rest = self._rest[LINE_BYTES_MAX:]
        self._write(written)
        if not data:
            self.finish()

    def finish(self) -> None:
        if self._rest:
            self._write(self._line(b"F", self._rest))
            self._rest = b""

    def _parts(self, line: bytes) -> bytes:
        parts = b""
        while len(line) > LINE_BYTES_MAX:
            parts += self._line(b"P", line[:LINE_BYTES_MAX])
            line = line[LINE_BYTES_MAX:]
        return parts + self._line(b"F", line)

    def _line(self, tag: bytes, text: bytes) -> bytes:
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09d}Z".encode()
        return b"%s %s %s %s\n" % (stamp, self._name, tag, text)

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._log_fd, data) :]


def _run_beside(directory: Path, launch: dict[str, Any], log_fd: int) -> NoReturn:
    out, out_end = os.pipe2(os.O_CLOEXEC)
    err, err_end = os.pipe2(os.O_CLOEXEC)
    told, tell = os.pipe2(os.O_CLOEXEC)
    woken, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # From here on no signal is lost: those that come before the command is there are handed on afterwards.
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for number in (*FORWARDED, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # what is handed on meanwhile waits until it is the command's
    command = os.fork()
    if command == 0:
        _run_command(launch, out_end, err_end, tell)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    for descriptor in (out_end, err_end, tell):
        os.close(descriptor)
    failure = os.read(told, 4096)
    if failure:
        os.waitpid(command, 0)
        code, _, name = failure.decode().partition(" ")
        _not_started(directory, launch["argv"], OSError(int(code), os.strerror(int(code)), name or None))
    copiers = [_Copier(out, "stdout", log_fd), _Copier(err, "stderr", log_fd)]
    ended = _copy_until_end(command, copiers, woken)
    # What is in the pipes was printed before the end; what others still hold open is not waited for.
    for copier in copiers:
        os.set_blocking(copier.pipe, False)
        while copier.is_open and select.select([copier.pipe], [], [], 0)[0]:
            copier.copy()
        copier.finish()
    _end_like(directory, ended)


def _run_command(launch: dict[str, Any], out: int, err: int, tell: int) -> NoReturn:
    """In the second child: become the command, or say through `tell` why not."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (*FORWARDED, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.dup2(out, 1)
        os.dup2(err, 2)
        _execute(launch)
    except OSError as error:
        os.write(tell, f"{error.errno} {error.filename or ''}".encode())
    except BaseException:
        traceback.print_exc()
    os._exit(EXIT_NOT_STARTED)


def _copy_until_end(command: int, copiers: list[_Copier], woken: int) -> os.waitid_result:
    poll = select.poll()
    poll.register(woken, select.POLLIN)
    for copier in copiers:
        poll.register(copier.pipe, select.POLLIN)
    by_pipe = {copier.pipe: copier for copier in copiers}
    while True:
        for descriptor, _ in poll.poll():
            if descriptor != woken:
                by_pipe[descriptor].copy()
                if not by_pipe[descriptor].is_open:
                    poll.unregister(descriptor)
                continue
            for number in os.read(woken, 4096):
                if number != signal.SIGCHLD:
                    os.kill(command, number)  # not collected yet: the number is still its own
            # Left uncollected: the number is its own until we end, too.
            ended = os.waitid(os.P_PID, command, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                return ended


def _end_like(directory: Path, ended: os.waitid_result) -> NoReturn:
    record = exit_of(ended.si_code, ended.si_status)
    write_record(directory / EXIT_RECORD, record)
    if record.signal:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command has left its own core, if any
        if record.signal not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(record.signal, signal.SIG_DFL)
        os.kill(os.getpid(), record.signal)
        time.sleep(1)  # a signal to ourselves is delivered at once
    os._exit(record.exit_code)
