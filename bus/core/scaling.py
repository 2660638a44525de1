"""How many workers a function should have, which ones come and go, and why: one pure function.

What a decision obeys:

- No event waits for nothing: a wake signal, a pending event or an orphaned one asks for a worker, and events in excess of what the workers
  handle at once ask for more, up to `max`. Workers that start count as if they served.
- Scale-in names only workers that have had nothing in hand for `idle_s`; those above a lowered `max` go even if busy, idle ones first. A
  worker is fenced, and deleted when it says that it holds nothing. Without a fence only what runs no event is deleted: a pod that never
  reached a node, that has finished, or that has been silent for long.
- The last one goes only on a fresh look at the broker (`checks`), taken when wake signals were already being listened to.
- A retry due within `idle_s` keeps a worker; a later one is a time to look again.
- Another version replaces the old one by one: an old worker is fenced when a new one is live in its place. Together they
  are never more than `max`; where that leaves no room, an old one goes first.
- While starts fail, one start at a time is tried, with back-off. The newest failed pod stays meanwhile, for its logs.
- Deciding again without a change in the world asks for nothing more.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct

from bus.core.demand import SERVING, START_S_MAX, Demand, Stage, Worker
from bus.core.reports import REPORT_EXPIRY_S
from bus.core.starts import Starts

FENCE_AGAIN_S = 5.0
"""A request to fence is not acknowledged; it is sent again after this."""
SILENT_S_MAX = 60.0
"""A worker that was heard and has been silent for so long is deleted. It may be cut off and alive: it gets its SIGTERM."""
SOON_S = 0.001

Cause = Literal[
    "Woken", "Backlog", "Orphaned", "Floor", "Replaced", "Idle", "Ceiling", "BackingOff", "Serving", "Asleep"
]


class ScalingPolicy(Struct, frozen=True, kw_only=True):
    min: int = 0
    max: int = 20
    concurrency: int = 10
    """Events that one worker handles at once."""
    idle_s: float = 30.0
    """How long a worker without work stays. [seconds]"""

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.max or self.max < 1 or self.concurrency < 1 or self.idle_s < 0:
            raise ValueError(f"{self}: expected 0 <= min <= max, max >= 1, concurrency >= 1, idle_s >= 0")


class Decision(Struct, frozen=True, kw_only=True):
    desired: int
    """Workers that should serve."""
    cause: Cause
    reason: str
    """The same for people."""
    create: tuple[int, ...] = ()
    """Ordinals of the pods to make."""
    fence: tuple[str, ...] = ()
    """UIDs of the workers to ask for no more pulls."""
    delete: tuple[str, ...] = ()
    """UIDs of the pods to delete."""
    listens: bool = False
    """Nobody serves, or soon nobody will: a stored event has to be signalled."""
    checks: bool = False
    """Listen, read the consumer, and decide again: the last worker waits for that."""
    look_again_s: float | None = None
    """Time alone changes the decision after so many seconds."""

    @property
    def changes_something(self) -> bool:
        return bool(self.create or self.fence or self.delete)


class _Crew(Struct, frozen=True, kw_only=True):
    """The workers of a function by what they are good for."""

    serving: list[Worker]
    current: list[Worker]
    """Of those that serve: of the version that is wanted."""
    live: list[Worker]
    """Of the current ones."""
    old: list[Worker]
    """Of those that serve: of another version."""
    fencing: list[Worker]
    stages: dict[str, Stage]
    """By UID, of all."""

    def at(self, stage: Stage, workers: Sequence[Worker]) -> list[Worker]:
        return [worker for worker in workers if self.stages[worker.uid] == stage]


def _crew_of(version: str, workers: Sequence[Worker], now_s: float) -> _Crew:
    stages = {worker.uid: worker.stage_at(now_s) for worker in workers}
    serving = [worker for worker in workers if stages[worker.uid] in SERVING]
    current = [worker for worker in serving if worker.version == version]
    return _Crew(
        serving=serving,
        current=current,
        live=[worker for worker in current if stages[worker.uid] == "live"],
        old=[worker for worker in serving if worker.version != version],
        fencing=[worker for worker in workers if stages[worker.uid] == "fencing"],
        stages=stages,
    )


def decide(
    policy: ScalingPolicy, version: str, demand: Demand, workers: Sequence[Worker], starts: Starts, now_s: float
) -> Decision:
    """Return what to do now for a function whose workers should be of `version`."""
    crew = _crew_of(version, workers, now_s)
    lag = demand.pending + demand.orphaned + sum(worker.held for worker in crew.serving)
    need = max(-(-lag // policy.concurrency), int(demand.is_woken))
    wanted = min(max(need, policy.min), policy.max)
    is_retry_near = demand.due_in_s is not None and demand.due_in_s <= policy.idle_s

    startable = _startable(wanted, crew, starts, version, now_s)
    unused = crew.at("unbound", crew.old)
    room = policy.max - (len(crew.serving) - len(unused)) - len(crew.fencing)
    created = max(0, min(startable, room))
    floor = max(wanted, int(is_retry_near))
    lacking_room = max(0, startable - max(0, room) - len(crew.fencing))
    going = [*unused, *_replaced(crew, floor, lacking_room, now_s), *_not_needed(policy, crew, floor, now_s)]
    checks = bool(going) and len(going) == len(crew.serving) and wanted == 0 and not demand.is_checked
    if checks:
        going.pop()
    stays = len(crew.serving) - len(going) + created
    cause, reason = _cause(policy, version, demand, starts, lag, wanted, created, crew, going)
    return Decision(
        desired=min(policy.max, max(wanted, stays)),
        cause=cause,
        reason=reason,
        create=_lowest_free({worker.ordinal for worker in workers}, created),
        fence=_uids(crew.at("live", going))
        + _uids(each for each in crew.fencing if now_s - (each.fence_asked_s or 0.0) >= FENCE_AGAIN_S),
        delete=_uids(crew.at("unbound", going)) + _uids(_useless(version, crew, workers, starts, created, now_s)),
        listens=wanted == 0 and (checks or stays == 0),
        checks=checks,
        look_again_s=_look_again_s(
            policy, version, demand, workers, starts, wanted > len(crew.current) + created, now_s
        ),
    )


def _startable(wanted: int, crew: _Crew, starts: Starts, version: str, now_s: float) -> int:
    """Return how many more are wanted and may be tried; below 0 where there are too many."""
    missing = wanted - len(crew.current)
    if not starts.is_failing(version):
        return missing
    trying = len(crew.current) - len(crew.live)
    return min(missing, 1 - trying) if now_s >= starts.due_s(version) else 0


def _replaced(crew: _Crew, floor: int, lacking_room: int, now_s: float) -> list[Worker]:
    """Return the live old workers to fence: those in whose place a new one is live, and those in a new one's way."""
    replaceable = sorted(crew.at("live", crew.old), key=lambda worker: (worker.held, -worker.idle_for_s(now_s)))
    kept = max(0, min(floor - len(crew.live), len(replaceable) - lacking_room))
    return replaceable[: max(0, len(replaceable) - kept)]


def _not_needed(policy: ScalingPolicy, crew: _Crew, floor: int, now_s: float) -> list[Worker]:
    """Return the current workers to let go: idle ones above the floor, then any above the ceiling; none that starts."""
    started = [worker for worker in crew.current if crew.stages[worker.uid] != "starting"]
    idle = [worker for worker in started if worker.held == 0 and _idle_s(worker, now_s) >= policy.idle_s]
    idle.sort(key=lambda worker: (-_idle_s(worker, now_s), -worker.ordinal))
    surplus = idle[: max(0, len(crew.current) - floor)]
    rest = [worker for worker in started if worker not in surplus]
    rest.sort(key=lambda worker: (worker.held, -worker.idle_for_s(now_s)))
    return surplus + rest[: max(0, len(crew.current) - len(surplus) - policy.max)]


def _useless(
    version: str, crew: _Crew, workers: Sequence[Worker], starts: Starts, created: int, now_s: float
) -> list[Worker]:
    """Return those whose pods may go at once: fenced, silent for long, finished; but for one to look at."""
    silent = [worker for worker in crew.at("silent", workers) if _deleted_when_s(worker) <= now_s]
    finished = crew.at("finished", workers)
    if starts.is_failing(version) and not created and not crew.live:
        exhibits = [worker for worker in finished if worker.version == version and worker.phase == "Failed"]
        newest = max(exhibits, key=lambda worker: worker.seen_s, default=None)
        finished = [worker for worker in finished if worker is not newest]
    return crew.at("fenced", workers) + silent + finished


def _uids(workers: Iterable[Worker]) -> tuple[str, ...]:
    return tuple(worker.uid for worker in workers)


def _idle_s(worker: Worker, now_s: float) -> float:
    """Return how long a worker has been of no use; one that never reached a node has been since it was made."""
    return worker.idle_for_s(now_s) if worker.is_bound else now_s - worker.seen_s


def _deleted_when_s(worker: Worker) -> float:
    if worker.report is None:
        return (worker.running_s or 0.0) + START_S_MAX
    return worker.heard_s + REPORT_EXPIRY_S + SILENT_S_MAX


def _lowest_free(taken: set[int], count: int) -> tuple[int, ...]:
    free: list[int] = []
    ordinal = 0
    while len(free) < count:
        if ordinal not in taken:
            free.append(ordinal)
        ordinal += 1
    return tuple(free)


def _cause(
    policy: ScalingPolicy,
    version: str,
    demand: Demand,
    starts: Starts,
    lag: int,
    wanted: int,
    created: int,
    crew: _Crew,
    going: list[Worker],
) -> tuple[Cause, str]:
    if created:
        if wanted == policy.min and lag <= policy.concurrency * (wanted - 1):
            return "Floor", f"at least {policy.min} wanted"
        if crew.old and len(crew.current) + created <= len(crew.old):
            return "Replaced", f"version {version} replaces what was deployed before"
        if lag == 0:
            return "Woken", "an event was stored"
        ceiling = f", at most {policy.max} workers" if lag > policy.concurrency * policy.max else ""
        if demand.orphaned and demand.orphaned == lag:
            return "Orphaned", f"{_events(lag)} in flight that no live worker holds{ceiling}"
        return "Backlog", f"{_events(lag)}, {policy.concurrency} at once in each worker{ceiling}"
    if going:
        if any(worker.version != version for worker in going):
            return "Replaced", f"version {version} replaces what was deployed before"
        if len(crew.serving) > policy.max:
            return "Ceiling", f"at most {policy.max} wanted"
        return "Idle", f"nothing to do for {policy.idle_s:g} s"
    if starts.is_failing(version) and wanted > len(crew.current):
        return (
            "BackingOff",
            f"{starts.failures} failed starts; the next try comes {starts.backoff_s:g} s after the last",
        )
    if crew.serving:
        return "Serving", "there is work" if lag else "there was work a moment ago"
    waiting = f"; {_events(demand.not_due)} will be tried again when due" if demand.not_due else ""
    return "Asleep", f"nothing to do{waiting}"


def _events(count: int) -> str:
    return "1 event" if count == 1 else f"{count} events"


def _look_again_s(
    policy: ScalingPolicy,
    version: str,
    demand: Demand,
    workers: Sequence[Worker],
    starts: Starts,
    is_short: bool,
    now_s: float,
) -> float | None:
    """Return the shortest time after which the passing of time alone may change the decision."""
    times: list[float] = []
    if demand.due_in_s is not None:
        times += [demand.due_in_s, demand.due_in_s - policy.idle_s]
    if starts.is_failing(version) and is_short:
        times.append(starts.due_s(version) - now_s)
    for worker in workers:
        stage = worker.stage_at(now_s)
        if stage in {"live", "fencing", "leaving"} and worker.report is not None:
            times.append(worker.heard_s + REPORT_EXPIRY_S - now_s)
        if stage in {"live", "unbound"} and worker.held == 0:
            times.append(policy.idle_s - _idle_s(worker, now_s))
        if stage == "fencing" and worker.fence_asked_s is not None:
            times.append(worker.fence_asked_s + FENCE_AGAIN_S - now_s)
        if stage == "silent" or (stage == "starting" and worker.running_s is not None):
            times.append(_deleted_when_s(worker) - now_s)
    ahead = [seconds for seconds in times if seconds > 0]
    return max(SOON_S, min(ahead)) if ahead else None
