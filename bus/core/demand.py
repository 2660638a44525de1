"""What the scaler sees of one function: its events by how far they are, and its workers by what they are good for.

Where a worker stands (`Worker.stage_at`), the first line that fits:

    pod is being deleted, or the worker says that it stops    leaving     takes nothing more, ends by itself
    pod phase Succeeded or Failed                             finished    may be deleted
    reports, but not for REPORT_EXPIRY_S                      silent      what it holds is taken for orphaned
    reports to be fenced, and holds nothing                   fenced      may be deleted at no cost
    was asked to fence, or says that it fences                fencing     runs what it has
    reports                                                   live
    runs for START_S_MAX without a first report               silent
    is on a node                                              starting    will pull in a moment
    otherwise                                                 unbound     nothing of it runs anywhere

Unbound, starting and live workers *serve*: a new event needs no other one. An event that was delivered and not settled is held by a worker
that is heard of, or waits for a retry that is due later (`attempts`), or is *orphaned*: its worker died.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from msgspec import Struct

from bus.core.reports import REPORT_EXPIRY_S, WorkerReport

START_S_MAX = 60.0
"""A worker has its code and its first pull within a second; this is for a machine in trouble."""

Stage = Literal["unbound", "starting", "live", "fencing", "fenced", "silent", "finished", "leaving"]
Phase = Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]

SERVING: frozenset[Stage] = frozenset({"unbound", "starting", "live"})
HEARD: frozenset[Stage] = frozenset({"live", "fencing"})
"""Stages in which a worker is known to hold what it said it holds."""


class Worker(Struct, frozen=True, kw_only=True):
    """One worker pod, as it was last seen and heard. Times are the observer's monotonic seconds."""

    uid: str
    name: str
    ordinal: int
    version: str
    phase: Phase = "Pending"
    is_bound: bool = False
    is_deleted: bool = False
    seen_s: float
    """When the pod was first seen."""
    running_s: float | None = None
    """When it was first seen Running."""
    report: WorkerReport | None = None
    heard_s: float = 0.0
    """When the report came."""
    fence_asked_s: float | None = None
    """When it was last asked to fence."""

    def stage_at(self, now_s: float) -> Stage:
        if self.phase in {"Succeeded", "Failed"}:
            return "leaving" if self.is_deleted else "finished"
        if self.is_deleted:
            return "leaving"
        if self.report is None:
            if self.running_s is not None and now_s - self.running_s >= START_S_MAX:
                return "silent"
            return "starting" if self.is_bound else "unbound"
        if now_s - self.heard_s >= REPORT_EXPIRY_S:
            return "silent"
        if self.report.state == "fenced" and self.report.held == 0:
            return "fenced"
        if self.report.state == "stopping":
            return "leaving"
        is_fencing = self.fence_asked_s is not None or self.report.state == "fencing"
        return "fencing" if is_fencing else "live"

    @property
    def held(self) -> int:
        return self.report.held if self.report is not None else 0

    def idle_for_s(self, now_s: float) -> float:
        """Return how long it has had nothing in hand; 0 while it has, and before its first report."""
        if self.report is None or self.report.held:
            return 0.0
        return self.report.idle_s + max(0.0, now_s - self.heard_s)


class Demand(Struct, frozen=True, kw_only=True):
    """The events of one function, apart from those that live workers say they hold."""

    pending: int = 0
    """Not yet delivered once."""
    orphaned: int = 0
    """Delivered, not settled, and in nobody's hand."""
    not_due: int = 0
    """Wait for a retry that is due later."""
    due_in_s: float | None = None
    """When the earliest of those is due."""
    is_woken: bool = False
    """An event was stored while nobody served, and no worker has been made for it yet."""
    is_checked: bool = False
    """Read from the broker just now, with the wake subscription in place: what comes later will be signalled."""


def held_by(workers: Iterable[Worker], now_s: float) -> int:
    """Return how many deliveries are in the hands of workers that are heard of; one that leaves settles what it has."""
    return sum(
        worker.held
        for worker in workers
        if worker.stage_at(now_s) in HEARD
        or (worker.stage_at(now_s) == "leaving" and now_s - worker.heard_s < REPORT_EXPIRY_S)
    )


def demand_of(
    *,
    pending: int,
    unsettled: int,
    held: int,
    due_s: Mapping[int, float],
    settled_to: int,
    now_s: float,
    is_woken: bool = False,
    is_checked: bool = False,
) -> Demand:
    """Sort what the broker counts as delivered and unsettled into held, waiting for its retry, and orphaned.

    `due_s` tells for event sequences when their retry is due; a record of an event at or below `settled_to` (the
    acknowledgement floor) is history.
    """
    waiting = sorted(due for sequence, due in due_s.items() if sequence > settled_to and due > now_s)
    not_due = min(len(waiting), max(0, unsettled - held))
    return Demand(
        pending=pending,
        orphaned=max(0, unsettled - held - not_due),
        not_due=not_due,
        due_in_s=waiting[0] - now_s if not_due else None,
        is_woken=is_woken,
        is_checked=is_checked,
    )


def is_doubtful(pending: int, workers: Iterable[Worker], now_s: float) -> bool:
    """Say whether only the broker knows how many events wait.

    Workers tell what they were told with their newest delivery. When all are full none of them hears of new events;
    and what one told before another took the last event is out of date.
    """
    serving = [worker for worker in workers if worker.stage_at(now_s) in SERVING]
    heard = [worker.report for worker in serving if worker.report is not None]
    if not serving or len(heard) < len(serving):
        return False
    return pending > 0 or all(report.held >= report.concurrency for report in heard)
