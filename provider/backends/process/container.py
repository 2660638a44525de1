"""One container with one restart number: its directory, its process, and how it ended."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio

from provider.backends.process.records import (
    EXIT_RECORD,
    LOG_SUFFIX,
    TERMINATION_LOG,
    ExitRecord,
    ProcessRecord,
    is_alive,
    kill_group,
    read_exit,
    read_process,
    start_ticks,
    take_lock,
    write_record,
)
from provider.core.launch import ContainerObservation
from provider.core.logs import time_of
from provider.core.processes import MESSAGE_BYTES_MAX, Ending, never_started, terminated, unknown_ending

STATUS_S = 2.0
"""How long after a process is gone its status is waited for: whoever collects it writes it at once. [seconds]"""


class Container:
    """`waiting` until it is given a process, `terminated` when it is given an end; never back."""

    def __init__(self, pod_directory: Path, name: str, restart: int) -> None:
        self.name, self.restart = name, restart
        self.directory = pod_directory / name / str(restart)
        self.process: ProcessRecord | None = None
        self.ending: Ending | None = None
        self._message = ""
        self._pidfd = -1

    @property
    def log(self) -> Path:
        return Path(f"{self.directory}{LOG_SUFFIX}")

    @property
    def termination_log(self) -> Path:
        return self.directory / TERMINATION_LOG

    @property
    def earlier(self) -> Path:
        """Log of the run before this one."""
        return self.directory.with_name(f"{self.restart - 1}{LOG_SUFFIX}")

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.ending is None

    @property
    def has_ended(self) -> bool:
        return self.ending is not None

    # -- its process

    def watch(self, process: ProcessRecord, boot: str, gone: Callable[[], None]) -> None:
        """Take `process` for its own, and have `gone` called when that has ended; at once where it has already."""
        self.process = process
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(process.pid) if process.boot_id == boot and process.pid > 0 else -1
            # Looked at after it was opened: from here on the descriptor means that very process, or no container's.
            if pidfd >= 0 and start_ticks(process.pid) == process.start_ticks:
                self._pidfd = pidfd
                asyncio.get_running_loop().add_reader(pidfd, self._on_gone, gone)
                return
            if pidfd >= 0:
                os.close(pidfd)
        gone()

    def _on_gone(self, gone: Callable[[], None]) -> None:
        self.let_go()
        gone()

    def let_go(self) -> None:
        """Watch no longer; the process runs on."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def terminate(self) -> None:
        """SIGTERM to the process itself: what it has started is its own concern for now."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        if self._pidfd >= 0 and self.process is not None and start_ticks(self.process.pid) == self.process.start_ticks:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            kill_group(self.process.pid)

    # -- its end

    def adopt(self, boot: str) -> bool:
        """Take over what is on disk; True where its process has to be watched.

        A container whose end is known, or whose process was of another boot, has ended. One without a record
        stays `waiting`: it was not started.
        """
        self.process = read_process(self.directory)
        known = read_exit(self.directory)
        if known is not None and (self.process is None or not is_alive(self.process, boot)):
            self._end(known)
            return False
        if self.process is None:
            return False
        if self.process.boot_id != boot:
            self._end_unknown()
            return False
        return True

    async def wait_status(self) -> None:
        """Learn how it ended, now that its process is gone: from who collected it, or not at all."""
        deadline_s = time.monotonic() + STATUS_S
        pause_s = 0.001
        while (known := read_exit(self.directory)) is None:
            if time.monotonic() > deadline_s:
                self._end_unknown()
                return
            await anyio.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.05)
        self._end(known)

    def bar(self) -> bool:
        """Have it never started, and ended without; False where somebody is starting it at this moment."""
        lock = take_lock(self.directory) if self.directory.is_dir() else -1
        if lock is None:
            return False
        try:
            if lock >= 0 and read_process(self.directory) is not None:
                return False
            ending = never_started(time.time_ns())
            if lock >= 0:
                self._write(ending)
            self.ending = ending
            return True
        finally:
            if lock >= 0:
                os.close(lock)

    def _end(self, known: ExitRecord) -> None:
        self._read_message()
        self.ending = Ending(
            exit_code=known.exit_code,
            signal=known.signal,
            finished_ns=known.finished_ns,
            reason=known.reason,
            message=known.message,
        )

    def _end_unknown(self) -> None:
        self._read_message()
        self.ending = unknown_ending(time.time_ns())
        self._write(self.ending)

    def _write(self, ending: Ending) -> None:
        """Keep it, so that whoever looks later is told the same."""
        record = ExitRecord(ending.exit_code, ending.signal, ending.finished_ns, ending.reason, ending.message)
        with suppress(FileNotFoundError):
            write_record(self.directory / EXIT_RECORD, record)

    def _read_message(self) -> None:
        with suppress(OSError), self.termination_log.open("rb") as file:
            self._message = file.read(MESSAGE_BYTES_MAX).decode(errors="replace")

    def observation(self) -> ContainerObservation:
        process = self.process
        started_ns = process.started_ns if process is not None else 0
        container_id = f"process://{process.pid}-{process.start_ticks}" if process is not None else ""
        if self.ending is not None:
            return terminated(
                self.name,
                self.restart,
                self.ending,
                started_ns=started_ns,
                message=self._message,
                container_id=container_id,
            )
        return ContainerObservation(
            name=self.name,
            restart=self.restart,
            state="waiting" if process is None else "running",
            started_at=time_of(started_ns),
            reason="ContainerCreating" if process is None else "",
            container_id=container_id,
        )
