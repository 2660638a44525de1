"""Run programs: start each when what it needs is ready, start it again when it ends, stop all in the opposite order.

One task keeps one program, through these states:

    waiting ──► starting ──► ready ──► (it ends) ──► backing off ──► waiting
                    │           └──► a step that ended with 0 is done for good
                    └──► (it ends, or is not ready in time) ──► backing off
    any ──► stopping ──► stopped

A program is started while all that it comes after are ready, and outlives all that come after it. The programs are
tethered: when this process ends, however it ends, the kernel ends them. What those programs started themselves and left
behind ends at its lifeline.

Start it from the main thread: the kernel's tether belongs to the thread that forked.
"""

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import anyio
from anyio.abc import Process
from msgspec import Struct

from nodeless.embedded import processes
from nodeless.embedded.errors import NotReady
from nodeless.embedded.program import ProgramSpec
from nodeless.embedded.readiness import wait_ready
from nodeless.embedded.tether import tethered

RESTART_INITIAL_S = 0.1
RESTART_FACTOR = 2.0
RESTART_MAX_S = 10.0
HEALTHY_S = 30.0
"""A program that was ready for so long has recovered: its next failure counts as the first."""
FAILURES_BEFORE_UP_MAX = 3
"""A program that fails so often before all were ready once will not get better by itself: a person is waiting."""

LEFT_BEHIND_S = 15.0
"""How long a program's own descendants may take to end by themselves once its lifeline is cut."""
KILLED_WITHIN_S = 5.0
LOG_BYTES_MAX = 8 * 1024 * 1024
"""A log that is larger at a start is set aside as `<name>.log.1`; the one set aside before is gone."""
LOG_LINES_SHOWN = 10
LOG_TAIL_BYTES = 16_384

State = Literal["waiting", "starting", "ready", "done", "backing off", "stopping", "stopped"]


class ProgramState(Struct, kw_only=True):
    """What is observable of one program."""

    name: str
    state: State = "waiting"
    since: str = ""
    """When it came into this state: RFC 3339, UTC."""
    pid: int | None = None
    failures: int = 0
    """Ends in a row that nobody asked for, since it was last well for `HEALTHY_S`."""
    restarts: int = 0
    """Starts after the first."""
    start_s: float | None = None
    """How long the last start took until it was ready. [seconds]"""
    last_end: str = ""
    """How it ended the last time, where nobody had asked it to."""


OnChange = Callable[[ProgramState], None]


def restart_delay_s(failures: int) -> float:
    """Return the seconds to wait after that many failures in a row.

    No jitter: these programs share nothing that they could storm together, and a person may be watching.
    """
    return float(min(RESTART_INITIAL_S * RESTART_FACTOR ** min(failures - 1, 32), RESTART_MAX_S))


def how_it_ended(status: int) -> str:
    """Return a return code in words."""
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def last_lines(log: Path) -> str:
    """Return the end of a log, for a message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-LOG_LINES_SHOWN:])


class _Program:
    """One program, and what its task and those of its neighbours tell each other."""

    def __init__(self, spec: ProgramSpec, log: Path) -> None:
        self.spec, self.log = spec, log
        self.state = ProgramState(name=spec.name, since=_now())
        self.ready = anyio.Event()
        """Set while it is ready; another event takes its place when it no longer is."""
        self.ended = anyio.Event()
        """It is stopped, and with it everything that it started."""
        self.life = anyio.CancelScope(shield=True)
        """Cancelled to stop it; nothing else does, so that programs end in their order whatever happens around."""
        self.failure: NotReady | None = None
        """The last one, for whoever waits."""
        self.process: Process | None = None
        self.lifeline: tuple[int, int] | None = None
        """Read end and write end."""


class Supervisor:
    """Use `supervised`."""

    def __init__(
        self, specs: Sequence[ProgramSpec], log: Callable[[str], Path], on_change: OnChange, *, has_orphans: bool
    ) -> None:
        self._programs = {spec.name: _Program(spec, log(spec.name)) for spec in specs}
        if len(self._programs) < len(specs):
            raise ValueError(f"two programs have one name: {sorted(spec.name for spec in specs)}")
        if unknown := {name for spec in specs for name in spec.after} - self._programs.keys():
            raise ValueError(f"programs come after {sorted(unknown)}, which are not there")
        self._on_change = on_change
        self._has_orphans = has_orphans
        self._is_up = False
        self._hopeless: NotReady | None = None
        self._given_up = anyio.Event()
        self._forks = 0
        """Starts in progress, whose process ids are not known yet."""

    @property
    def states(self) -> list[ProgramState]:
        return [program.state for program in self._programs.values()]

    @property
    def is_ready(self) -> bool:
        return all(program.ready.is_set() for program in self._programs.values())

    async def wait_ready(self) -> None:
        """Return when every program is ready; raise `NotReady` when one of them has failed too often to go on."""
        async with anyio.create_task_group() as racing:

            async def give_up() -> None:
                await self._given_up.wait()
                racing.cancel_scope.cancel()

            racing.start_soon(give_up)
            while not self.is_ready:
                for program in self._programs.values():
                    await program.ready.wait()
            self._is_up = True
            racing.cancel_scope.cancel()
        if self._hopeless is not None and not self._is_up:
            raise self._hopeless

    # -- one program

    async def keep(self, name: str) -> None:
        """Keep one program running until its life is cancelled; then end it."""
        program = self._programs[name]
        try:
            with program.life:
                while True:
                    await self._dependencies_ready(program)
                    await self._run_once(program)
                    await self._back_off(program)
        finally:
            with anyio.CancelScope(shield=True):
                await self._end(program)

    async def _dependencies_ready(self, program: _Program) -> None:
        self._change(program, "waiting")
        needed = [self._programs[name] for name in program.spec.after]
        while not all(each.ready.is_set() for each in needed):
            for each in needed:
                await each.ready.wait()

    async def _run_once(self, program: _Program) -> None:
        """Start it and return when it has ended; a step that succeeds does not return."""
        started_s = anyio.current_time()
        try:
            process = await self._start(program)
        except OSError as error:  # no room for another process, or for its log
            self._failed(program, f"could not be started: {error}")
            return
        if program.spec.ready is None:
            await self._step(program, process, started_s)
            return
        if not await self._becomes_ready(program, process, started_s):
            return
        ready_s = anyio.current_time()
        await process.wait()
        program.ready = anyio.Event()
        if anyio.current_time() - ready_s >= HEALTHY_S:
            program.state.failures = 0
        self._failed(program, f"ended with {how_it_ended(process.returncode or 0)}")

    async def _step(self, program: _Program, process: Process, started_s: float) -> None:
        with anyio.move_on_after(program.spec.ready_within_s):
            await process.wait()
        if process.returncode is None:
            await self._stop_process(program)
            self._failed(program, f"was not done within {program.spec.ready_within_s:g} s")
        elif process.returncode:
            self._failed(program, f"ended with {how_it_ended(process.returncode)}")
        else:
            program.process = None
            self._ready(program, "done", started_s)
            await anyio.sleep_forever()

    async def _becomes_ready(self, program: _Program, process: Process, started_s: float) -> bool:
        assert program.spec.ready is not None
        is_ready = False
        with anyio.move_on_after(program.spec.ready_within_s):
            async with anyio.create_task_group() as racing:

                async def become_ready() -> None:
                    nonlocal is_ready
                    assert program.spec.ready is not None
                    await wait_ready(program.spec.ready)
                    is_ready = True
                    racing.cancel_scope.cancel()

                racing.start_soon(become_ready)
                await process.wait()
                racing.cancel_scope.cancel()
        if process.returncode is not None:
            self._failed(program, f"ended with {how_it_ended(process.returncode)} before it was ready")
        elif is_ready:
            self._ready(program, "ready", started_s)
            return True
        else:
            await self._stop_process(program)
            self._failed(program, f"was not ready within {program.spec.ready_within_s:g} s")
        return False

    async def _start(self, program: _Program) -> Process:
        spec = program.spec
        argv: tuple[str, ...] = spec.argv
        descriptors: tuple[int, ...] = ()
        if spec.lifeline_flag is not None:
            if program.lifeline is None:
                program.lifeline = os.pipe()
            descriptors = (program.lifeline[0],)
            argv += (spec.lifeline_flag, str(program.lifeline[0]))
        program.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _set_aside(program.log)
        self._forks += 1
        try:
            with program.log.open("ab") as output, anyio.CancelScope(shield=True):
                process = program.process = await anyio.open_process(
                    tethered(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=spec.env,
                    cwd=spec.cwd,
                    pass_fds=descriptors,
                    start_new_session=True,  # a Ctrl-C at a terminal is for us, who stop them in order
                )
        finally:
            self._forks -= 1
        program.state.pid = process.pid
        self._change(program, "starting")
        return process

    async def _back_off(self, program: _Program) -> None:
        if not self._is_up and program.state.failures >= FAILURES_BEFORE_UP_MAX:
            self._hopeless = program.failure
            self._given_up.set()
            await anyio.sleep_forever()  # until whoever waits has stopped everything
        self._change(program, "backing off")
        await anyio.sleep(restart_delay_s(program.state.failures))
        program.state.restarts += 1

    def _ready(self, program: _Program, state: State, started_s: float) -> None:
        program.state.start_s = round(anyio.current_time() - started_s, 3)
        program.ready.set()
        self._change(program, state)

    def _failed(self, program: _Program, how: str) -> None:
        program.state.failures += 1
        program.state.last_end = how
        program.failure = NotReady(program.spec.name, how, program.log, last_lines(program.log))

    def _change(self, program: _Program, state: State) -> None:
        if program.process is None or program.process.returncode is not None:
            program.state.pid = None
        program.state.state, program.state.since = state, _now()
        self._on_change(program.state)

    # -- stopping

    async def stop(self) -> None:
        """Stop every program, each after those that need it. Bounded by their own deadlines."""
        async with anyio.create_task_group() as stopping:
            for name in self._programs:
                stopping.start_soon(self._stop, name)

    async def _stop(self, name: str) -> None:
        for each in self._programs.values():
            if name in each.spec.after:
                await each.ended.wait()
        self._programs[name].life.cancel()
        await self._programs[name].ended.wait()

    async def _end(self, program: _Program) -> None:
        if program.process is not None and program.process.returncode is None:
            self._change(program, "stopping")
            await self._stop_process(program)
        if program.lifeline is not None:
            read_end, write_end = program.lifeline
            program.lifeline = None
            os.close(write_end)
            os.close(read_end)
            await self._orphans_gone()
        self._change(program, "stopped")
        program.ended.set()

    async def _stop_process(self, program: _Program) -> None:
        process = program.process
        assert process is not None
        with suppress(ProcessLookupError):
            process.terminate()
        with anyio.move_on_after(program.spec.stop_within_s):
            await process.wait()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    # -- what programs leave behind, where this process is the sub-reaper

    def orphans(self) -> list[int]:
        """Return this process's children that no spec of ours names."""
        if not self._has_orphans:
            return []
        known = {program.process.pid for program in self._programs.values() if program.process is not None}
        return [child.pid for child in processes.children(os.getpid()) if child.pid not in known]

    def collect_orphans(self) -> None:
        """Take the exit statuses of ended orphans, which would stay zombies otherwise."""
        if self._forks:
            return  # a child whose number is not known yet would look like one; its end calls here again
        for pid in self.orphans():
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    async def _orphans_gone(self) -> None:
        """Wait for what was left behind to end at its lifeline; kill what does not."""
        with anyio.move_on_after(LEFT_BEHIND_S):
            while self.orphans():
                self.collect_orphans()
                await anyio.sleep(0.02)
        with anyio.move_on_after(KILLED_WITHIN_S):
            while orphans := self.orphans():  # a killed one's children come to us
                for pid in orphans:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await anyio.sleep(0.02)
                self.collect_orphans()


def _set_aside(log: Path) -> None:
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_BYTES_MAX:
            log.replace(log.with_name(log.name + ".1"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _say_nothing(_: ProgramState) -> None:
    pass


@asynccontextmanager
async def supervised(
    specs: Sequence[ProgramSpec],
    log: Callable[[str], Path],
    *,
    on_change: OnChange = _say_nothing,
    has_orphans: bool = False,
) -> AsyncIterator[Supervisor]:
    """Run `specs` for the length of the block, which begins at once; `wait_ready` waits. On exit all are stopped.

    `log` names each program's log. `on_change` is called on the loop at every change of a state. With `has_orphans`
    this process is the sub-reaper of what the programs leave behind, and all its other children are taken for that.
    """
    supervisor = Supervisor(specs, log, on_change, has_orphans=has_orphans)
    failure: Exception | None = None
    async with anyio.create_task_group() as keeping:
        for spec in specs:
            keeping.start_soon(supervisor.keep, spec.name)
        try:
            yield supervisor
        except Exception as error:  # raised again below: the task group would wrap it
            failure = error
        finally:
            with anyio.CancelScope(shield=True):
                await supervisor.stop()
    if failure is not None:
        raise failure
