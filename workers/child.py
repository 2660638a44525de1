"""From the fork to `workers.runtime.main`: what makes a copy of the parent a worker of its own.

A child is forked for a container, or ahead of time as a *spare*: one that has rehearsed and waits to be told which
container it is (`workers.rehearsal`). Blank until then, it knows nobody's secrets.

The order matters. The record is written before anything of the pod runs, and a record that cannot be written means
that nothing runs. The launch, with the pod's secrets, is read here for the first time.
"""

import gc
import os
import resource
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import msgspec

from workers.core.forking import (
    EXIT_RECORD,
    LOG_SUFFIX,
    PROCESS_RECORD,
    ExitRecord,
    Launch,
    ProcessRecord,
    decode_launch,
    decode_part,
    memory_limit,
    start_ticks_of,
)
from workers.output import flush_output
from workers.rehearsal import rehearse
from workers.runtime import main

PART_BYTES_MAX = 16 * 1024


def run_child(directory: Path, launch_fd: int, lock_fd: int, boot_id: str, started_ns: int) -> NoReturn:
    """Run one worker and end the process; never returns and never raises.

    `lock_fd` stays open for the process' life; `started_ns` is the time that the parent has told as its start.
    """
    status = 1
    try:
        if os.getsid(0) != os.getpid():
            os.setsid()
        _use_log(directory)
        _close_others(launch_fd, lock_fd)
        record = ProcessRecord(
            pid=os.getpid(),
            start_ticks=start_ticks_of(Path("/proc/self/stat").read_text()),
            boot_id=boot_id,
            started_ns=started_ns,
        )
        write_record(directory / PROCESS_RECORD, record)
        _reset_signals()
        launch = _read_launch(launch_fd)
        _settle_in(launch)
        gc.enable()
        status = main(launch.environment)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()  # standard error is the pod's log by now
    finally:
        _end(directory, status & 0xFF)


def run_spare(channel: socket.socket, boot_id: str) -> NoReturn:
    """Rehearse, wait to be told which container this is, and be it; end when the parent does."""
    try:
        os.setsid()
        _close_others(channel.fileno())
        _reset_signals()
        rehearse()
        packet, descriptors, _, _ = socket.recv_fds(channel, PART_BYTES_MAX, 2)
        if not packet or len(descriptors) != 2:
            os._exit(0)
        part = decode_part(packet)
        launch_fd, lock_fd = descriptors
        channel.close()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    run_child(Path(part.directory), launch_fd, lock_fd, boot_id, part.started_ns)


def write_record(path: Path, record: ProcessRecord | ExitRecord) -> None:
    """Write a record whole or not at all. Without fsync: it has to survive processes, not the machine."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(msgspec.json.encode(record))
    temporary.replace(path)


def _use_log(directory: Path) -> None:
    log = os.open(f"{directory}{LOG_SUFFIX}", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _close_others(*kept: int) -> None:
    low = 3
    for descriptor in sorted(kept):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _reset_signals() -> None:
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _read_launch(descriptor: int) -> Launch:
    # From its beginning, wherever the sender's offset is, which this descriptor shares.
    data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    os.close(descriptor)
    return decode_launch(data)


def _settle_in(launch: Launch) -> None:
    """Take over what a fresh process would have been given."""
    os.environ.clear()
    os.environ.update(launch.environment)
    time.tzset()
    os.umask(0o022)
    sys.argv = ["nodeless-worker"]
    Path("/proc/self/comm").write_text("nodeless-worker")
    # RLIMIT_DATA rather than RLIMIT_AS: an allocator reserves far more address space (64 MiB a thread) than it uses.
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    limit, remark = memory_limit(launch.memory_bytes_max, pages * resource.getpagesize())
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    elif remark:
        os.write(2, f"{remark}\n".encode())
    if launch.working_directory:
        os.chdir(launch.working_directory)


def _end(directory: Path, status: int) -> NoReturn:
    """Leave, with what was printed in the log and the status on disk, where it outlives whoever collects us."""
    try:
        flush_output()
        # Before the end and not only by the parent: it may be dead, and nobody else be told.
        write_record(directory / EXIT_RECORD, ExitRecord(exit_code=status, signal=0, finished_ns=time.time_ns()))
    except BaseException:
        traceback.print_exc()
    finally:
        # A handler's thread that overran its timeout may still run; nobody waits for it.
        os._exit(status)
