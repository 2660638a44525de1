"""`nodeless up`: prepare the home, then become or start the process that stays."""

import os
import sys
import time
from pathlib import Path

from nodeless.cli.errors import CommandError
from nodeless.cli.output import print_json, short_time
from nodeless.embedded import control
from nodeless.embedded.errors import HomeBusy
from nodeless.embedded.home import Home, SystemState
from nodeless.embedded.report import progress_line, summary
from nodeless.embedded.supervisor import ProgramState
from nodeless.embedded.system import SystemOptions

OTHER_STARTS_WITHIN_S = 120.0
PREPARES_WITHIN_S = 3.0
CHECK_S = 0.05


def options_of(**given: str | None) -> SystemOptions:
    """Return the options with every path made absolute: the programs run elsewhere."""
    paths = ("nats_credentials", "nats_account_seed", "kubeconfig")
    return SystemOptions(
        **{
            name: str(Path(value).expanduser().absolute()) if value is not None and name in paths else value
            for name, value in given.items()
        }
    )


def up(directory: Path, options: SystemOptions, *, assets: Path | None, is_detached: bool, is_json: bool) -> None:
    started_s = time.time()
    home = Home.at(directory)
    try:
        with control.prepared(home, options, assets) as descriptors:
            if not is_detached:
                control.become_supervisor(home, descriptors, started_s=started_s, is_json=is_json)
            state = control.start_detached(home, descriptors, _show)
    except HomeBusy:
        state = _of_another(home)
        print(
            f"running already in {home.directory}, since {short_time(state.started_at)}, with the options of that start",
            file=sys.stderr,
        )
        _print(state, None, is_json)
    else:
        _print(state, time.time() - started_s, is_json)


def _show(program: ProgramState) -> None:
    if line := progress_line(program):
        print(line, file=sys.stderr, flush=True)


def _print(state: SystemState, took_s: float | None, is_json: bool) -> None:
    if is_json:
        print_json(state)
    else:
        print(summary(state.endpoints, took_s))


def _of_another(home: Home) -> SystemState:
    """Return the state of the system that somebody else has started or is just starting. Raises `HomeBusy`."""
    begun_s = time.monotonic()
    while True:
        state = home.running()
        waited_s = time.monotonic() - begun_s
        if state is not None and state.is_ready:
            return state
        if state is None and waited_s > PREPARES_WITHIN_S:
            raise HomeBusy(home.directory)
        if waited_s > OTHER_STARTS_WITHIN_S:
            raise CommandError(
                f"a system is running in {home.directory} and is not ready after {waited_s:.0f} s; see `nodeless "
                f"status --home {home.directory}`, and its logs in {os.fspath(home.directory / 'logs')}"
            )
        time.sleep(CHECK_S)
