"""Start and stop the system of a home, from another process than the one that stays."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from nodeless.embedded.controlplane.binaries import Binaries
from nodeless.embedded.errors import EmbeddedError, HomeBusy, NotReady, NotStopped
from nodeless.embedded.home import Home, SystemState
from nodeless.embedded.ports import PortReservations
from nodeless.embedded.report import Failed, Progress, Up, decoded
from nodeless.embedded.supervisor import ProgramState, last_lines
from nodeless.embedded.system import SystemOptions, prepare

SUPERVISOR = "supervisor"
STOP_WITHIN_S = 90.0
"""More than the deadlines of any chain of programs that stop one after the other."""
CHECK_S = 0.05


@contextmanager
def prepared(home: Home, options: SystemOptions, assets: Path | None) -> Iterator[list[int]]:
    """Hold the home, prepare its plan, and yield the descriptors that hold lock and ports.

    Whoever inherits these holds the home. Builds the control plane first if that is nowhere, which takes minutes. Raises
    `HomeBusy` if the system runs already.
    """
    home.claim()
    with home.locked() as lock:
        binaries = _binaries(options, assets)
        with PortReservations() as reservations:
            prepare(home, options, binaries, reservations)
            yield [lock, *reservations.descriptors]


def _binaries(options: SystemOptions, assets: Path | None) -> Binaries | None:
    if options.kubeconfig or options.context:
        return None
    from nodeless.embedded.controlplane.build import find_or_build

    return find_or_build(assets=assets)


def become_supervisor(home: Home, descriptors: Sequence[int], *, started_s: float, is_json: bool) -> None:
    """Replace this process by the one that stays. Does not return."""
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    command = [*_command(home, descriptors), "--started", str(started_s), *(["--json"] if is_json else [])]
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606 - a list of arguments


def start_detached(home: Home, descriptors: Sequence[int], on_progress: Callable[[ProgramState], None]) -> SystemState:
    """Start the process that stays, in a session of its own, and return when the system is ready. Raises `NotReady`.

    If this process is interrupted meanwhile, so is the start.
    """
    log = home.log(SUPERVISOR)
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    read_end, write_end = os.pipe()
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_command(home, descriptors), "--report-fd", str(write_end)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[*descriptors, write_end],
                start_new_session=True,
            )
    finally:
        os.close(write_end)
    try:
        with os.fdopen(read_end, "rb") as reports:
            for line in reports:
                match decoded(line):
                    case Progress(program):
                        on_progress(program)
                    case Up(state):
                        return state
                    case Failed(message):
                        raise EmbeddedError(message)
        raise NotReady(SUPERVISOR, f"ended with status {process.wait()}", log, last_lines(log))
    except BaseException:
        with suppress(ProcessLookupError):
            process.terminate()
        process.wait(STOP_WITHIN_S)
        raise


def _command(home: Home, descriptors: Sequence[int]) -> list[str]:
    held = ",".join(str(descriptor) for descriptor in descriptors)
    return [sys.executable, "-P", "-m", "nodeless.embedded", str(home.directory), "--held-fds", held]


def stop(home: Home, within_s: float = STOP_WITHIN_S) -> bool:
    """Stop the system and return when its supervisor has ended; False if none runs. Raises `NotStopped`."""
    state = home.running()
    if state is None:
        return False
    supervisor = state.supervisor
    try:
        descriptor = os.pidfd_open(supervisor.pid)
    except ProcessLookupError:
        return False
    try:
        if not supervisor.is_alive():  # the number may have been given again; the descriptor cannot be
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        if not select.select([descriptor], [], [], within_s)[0]:
            raise NotStopped(supervisor.pid, within_s)
    finally:
        os.close(descriptor)
    return True


def purge(home: Home, within_s: float = 5.0) -> bool:
    """Remove everything that the stopped system kept; False if there was nothing. Raises `HomeBusy`."""
    if not home.is_ours:
        return False
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            # A supervisor that was killed takes a moment until the kernel has ended its programs too.
            with home.locked():
                return home.purge()
        except HomeBusy:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(CHECK_S)
