"""The life of a pod: what the API asks for, what is there, and so what to do next.

Level-based: the answer depends on what is the case now, never on how it came about, so missed and repeated
notifications do no harm, and neither does a restart of the node program between any two steps.

    in the API          backend    step
    run                 nothing    start      every container
    run                 running    start      those that are missing, or ended and due again; usually none
    run                 ended      start      those that the restart policy starts again, once their back-off is over
    rest (ended there)  nothing    nothing    its logs, if any are left, stay until the pod is deleted
    rest                running    stop       somebody else wrote the phase: evicted, say
    rest                ended      nothing
    stop (deleted)      nothing    remove     never started, or stopped long ago: the object goes at once
    stop                running    stop
    stop                ended      remove     the last status is written before
    nothing             nothing    forget     a start that the backend has given up may have left something
    nothing             running    stop       an orphan: removed from the API by force
    nothing             ended      forget

A UID lives once, so a pod made again under the same name is another pod here.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from msgspec import Struct

from provider.core.history import Containers
from provider.core.launch import ContainerObservation

BACK_OFF_FIRST_S = 10.0
BACK_OFF_MAX_S = 300.0
CALM_AFTER_S = 600.0
"""A run of this length ends a series of failures. Source: pkg/kubelet (MaxContainerBackOff, twice of it)."""

ENDED_PHASES = frozenset({"Succeeded", "Failed"})


class Desired(Enum):
    """What the API asks for."""

    RUN = "run"
    REST = "rest"
    """It has its final phase: nothing of it may run, and it stays to be looked at."""
    STOP = "stop"
    NOTHING = "nothing"


class Observed(Enum):
    NOTHING = "nothing"
    RUNNING = "running"
    """At least one container runs or is being started."""
    ENDED = "ended"
    """Something was started, and none of it runs."""


class Step(Enum):
    START = "start"
    STOP = "stop"
    REMOVE = "remove"
    """Remove the pod from the API."""
    FORGET = "forget"
    """Remove the pod from the backend."""
    NOTHING = "nothing"


STEPS: dict[tuple[Desired, Observed], Step] = {
    (Desired.RUN, Observed.NOTHING): Step.START,
    (Desired.RUN, Observed.RUNNING): Step.START,
    (Desired.RUN, Observed.ENDED): Step.START,
    (Desired.REST, Observed.NOTHING): Step.NOTHING,
    (Desired.REST, Observed.RUNNING): Step.STOP,
    (Desired.REST, Observed.ENDED): Step.NOTHING,
    (Desired.STOP, Observed.NOTHING): Step.REMOVE,
    (Desired.STOP, Observed.RUNNING): Step.STOP,
    (Desired.STOP, Observed.ENDED): Step.REMOVE,
    (Desired.NOTHING, Observed.NOTHING): Step.FORGET,
    (Desired.NOTHING, Observed.RUNNING): Step.STOP,
    (Desired.NOTHING, Observed.ENDED): Step.FORGET,
}


class Plan(Struct, frozen=True, kw_only=True):
    """What to do next for one pod."""

    step: Step
    starts: dict[str, int] = {}
    """With START: containers to start, each with the number of this run."""
    back_offs: dict[str, float] = {}
    """Containers that wait before they are started again, each with its whole delay. [seconds]"""
    look_again_s: float | None = None
    """When something is due that nobody will notify us of."""


def desired_of(pod: Mapping[str, Any] | None, *, is_refused: bool = False) -> Desired:
    """Return what the API asks for. `is_refused`: this node has decided that the pod can never run here."""
    if pod is None:
        return Desired.NOTHING
    if pod["metadata"].get("deletionTimestamp"):
        return Desired.STOP
    if is_refused or (pod.get("status") or {}).get("phase") in ENDED_PHASES:
        return Desired.REST
    return Desired.RUN


def observed_of(runs: Containers) -> Observed:
    if not runs:
        return Observed.NOTHING
    if any(run.state != "terminated" for run in runs.values()):
        return Observed.RUNNING
    return Observed.ENDED


def plan(
    desired: Desired,
    policy: str,
    containers: Sequence[str],
    runs: Containers,
    *,
    now_s: float,
    calm_restarts: Mapping[str, int] | None = None,
) -> Plan:
    """Return the next step of a pod with these containers and that restart policy.

    `now_s` is the time in seconds since the epoch. `calm_restarts` holds for each container the number of its last run
    that was long enough to end a series of failures (see `calm_restart`).
    """
    step = STEPS[desired, observed_of(runs)]
    if step is not Step.START:
        return Plan(step=step)
    starts: dict[str, int] = {}
    back_offs: dict[str, float] = {}
    look_again_s: float | None = None
    for name in containers:
        run = runs.get(name)
        if run is None:
            starts[name] = 0
        elif run.state == "terminated" and is_restarted(policy, run.exit_code):
            delay_s = restart_delay_s(run.restart - calm_restart((calm_restarts or {}).get(name, 0), run))
            left_s = _left_s(delay_s, run.finished_at, now_s)
            if left_s <= 0:
                starts[name] = run.restart + 1
            else:
                back_offs[name] = delay_s
                look_again_s = left_s if look_again_s is None else min(left_s, look_again_s)
    return Plan(
        step=Step.START if starts else Step.NOTHING, starts=starts, back_offs=back_offs, look_again_s=look_again_s
    )


def is_restarted(policy: str, exit_code: int) -> bool:
    """Say whether a container that ended is started again under this restart policy."""
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def restart_delay_s(failures: int) -> float:
    """Return the seconds between the end of a run and the next, after `failures` short runs before the one that ended.

    The first restart is immediate, as a kubelet's is.
    """
    if failures <= 0:
        return 0.0
    return min(BACK_OFF_MAX_S, BACK_OFF_FIRST_S * 2.0 ** min(failures - 1, 16))


def calm_restart(before: int, run: ContainerObservation) -> int:
    """Return the number of the container's last run that ended a series of failures, `run` included."""
    if run.state != "terminated" or not run.started_at or not run.finished_at:
        return before
    ran_s = epoch_s(run.finished_at) - epoch_s(run.started_at)
    return run.restart if ran_s >= CALM_AFTER_S else before


def _left_s(delay_s: float, finished_at: str, now_s: float) -> float:
    if not finished_at:
        return 0.0
    elapsed_s = now_s - epoch_s(finished_at)
    # An end in the future means that the clock was set back: waiting for it to come again could take for ever.
    return 0.0 if elapsed_s < 0 else delay_s - elapsed_s


def epoch_s(time: str) -> float:
    """Return an RFC 3339 time in seconds since the epoch."""
    parsed = datetime.fromisoformat(time)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
