"""`python -m nodeless.embedded HOME`: the process that stays. Runs the plan of a home until it is told to stop.

It imports no certificate library and no client of Kubernetes or NATS: whoever prepared the plan did. SIGTERM, SIGINT and
SIGHUP stop all programs in their order. Exit status: 0 after that, 1 if the system never got ready, 130 if Ctrl-C came
before that.
"""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec

from bus.logs import set_up_logging
from nodeless.embedded import processes
from nodeless.embedded.errors import NotReady
from nodeless.embedded.files import write_private
from nodeless.embedded.home import Home, Plan, SystemState
from nodeless.embedded.report import Failed, Progress, Report, Up, encoded, progress_line, summary
from nodeless.embedded.supervisor import ProgramState, Supervisor, restart_delay_s, supervised

log = logging.getLogger("nodeless.supervisor")

INTERRUPTED = 130
Tell = Callable[[Report], None]


class Keeper:
    """Keeps what is written down of a system equal to what its supervisor sees."""

    def __init__(self, home: Home, plan: Plan, tell: Tell) -> None:
        identity = processes.identity(os.getpid())
        assert identity is not None
        self._home, self._plan, self._tell = home, plan, tell
        self._identity = identity
        self._started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._supervisor: Supervisor | None = None
        self._failure: NotReady | None = None
        self._is_announced = False
        self._stopped_by: signal.Signals | None = None
        self._stop = anyio.Event()

    async def run(self) -> int:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD) as signals:
            try:
                async with supervised(
                    self._plan.programs, self._home.log, on_change=self._on_change, has_orphans=True
                ) as supervisor:
                    self._supervisor = supervisor
                    self._write()
                    await self._until_stopped(supervisor, signals)
            finally:
                self._home.state.unlink(missing_ok=True)
        if self._failure is not None:
            self._tell(Failed(str(self._failure)))
            return 1
        if not self._is_announced:
            self._tell(Failed("stopped before the system was ready"))
            return INTERRUPTED if self._stopped_by == signal.SIGINT else 1
        return 0

    async def _until_stopped(self, supervisor: Supervisor, signals: AsyncIterator[signal.Signals]) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._announce, supervisor)
            group.start_soon(self._take_signals, supervisor, signals)
            await self._stop.wait()
            group.cancel_scope.cancel()

    async def _announce(self, supervisor: Supervisor) -> None:
        try:
            await supervisor.wait_ready()
        except NotReady as failure:
            self._failure = failure
            self._stop.set()
            return
        self._is_announced = True
        self._write()
        self._tell(Up(self.state))

    async def _take_signals(self, supervisor: Supervisor, signals: AsyncIterator[signal.Signals]) -> None:
        async for number in signals:
            if number == signal.SIGCHLD:
                supervisor.collect_orphans()
            else:
                self._stopped_by = number
                self._stop.set()

    @property
    def state(self) -> SystemState:
        assert self._supervisor is not None
        return SystemState(
            supervisor=self._identity,
            started_at=self._started_at,
            is_ready=self._supervisor.is_ready,
            endpoints=self._plan.endpoints,
            programs=tuple(self._supervisor.states),
        )

    def _on_change(self, program: ProgramState) -> None:
        if program.state == "backing off" and self._is_announced:
            fields = {"program": program.name, "pause_s": restart_delay_s(program.failures)}
            log.warning("program %s; it is started again", program.last_end, extra=fields)
        self._write()
        self._tell(Progress(program))

    def _write(self) -> None:
        if self._supervisor is None:
            return
        try:
            write_private(self._home.state, msgspec.json.encode(self.state))
        except OSError as error:  # a full disk is no reason to stop what runs
            log.warning("the state cannot be written down", extra={"reason": str(error)})


def _tell_pipe(descriptor: int) -> Tell:
    """Return a teller that writes to whoever started us, until that one has heard enough."""
    pipe = os.fdopen(descriptor, "wb", buffering=0)

    def tell(report: Report) -> None:
        if pipe.closed:
            return
        with suppress(BrokenPipeError):
            pipe.write(encoded(report))
            if isinstance(report, Progress):
                return
        pipe.close()

    return tell


def _tell_person(started_s: float, is_json: bool) -> Tell:
    """Return a teller for a terminal: progress to standard error, the outcome to standard output."""

    def tell(report: Report) -> None:
        # The terminal may be gone; that is no reason not to stop in order.
        with suppress(OSError):
            match report:
                case Progress(program):
                    if line := progress_line(program):
                        print(line, file=sys.stderr, flush=True)  # noqa: T201
                case Up(state):
                    print(outcome(state), flush=True)  # noqa: T201
                case Failed(message):
                    print(f"error: {message}", file=sys.stderr, flush=True)  # noqa: T201

    def outcome(state: SystemState) -> str:
        if is_json:
            return msgspec.json.format(msgspec.json.encode(state), indent=2).decode()
        return summary(state.endpoints, time.time() - started_s) + "\nCtrl-C stops it."

    return tell


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m nodeless.embedded", description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--report-fd", type=int, help="where to tell how the start goes; else to a person")
    parser.add_argument("--held-fds", default="", help="descriptors of the lock and the ports, held until the end")
    parser.add_argument("--started", type=float, default=time.time(), help="when the person's command began")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    options = parser.parse_args(arguments)
    for descriptor in filter(None, options.held_fds.split(",")):
        os.set_inheritable(int(descriptor), False)
    set_up_logging()
    processes.become_subreaper()
    home = Home.at(options.home)
    tell = _tell_person(options.started, options.json) if options.report_fd is None else _tell_pipe(options.report_fd)
    return anyio.run(Keeper(home, home.read_plan(), tell).run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
