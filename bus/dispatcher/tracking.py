"""The workers of one function, from three sources: pods as watched, pods as just made or deleted, and workers' reports.

What the API server answered to our own request counts at once, so that nothing is made twice before the watch tells of
it; the watch has the last word.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from bus.core.assignment import VERSION_LABEL
from bus.core.demand import Phase, Worker
from bus.core.reports import REPORT_EXPIRY_S, WorkerReport
from bus.core.starts import PROVEN_S, Failure, failure_of
from bus.scaler.manifest import ordinal_of

UNWATCHED_S_MAX = 30.0
"""A pod that the watch has not told of for so long after we made it was deleted in between."""


class Ended(Struct, frozen=True, kw_only=True):
    """One worker's end."""

    uid: str
    name: str
    version: str
    begun_s: float
    is_failed_start: bool
    """It ended before it had proved itself, and nobody had asked it to go."""
    had_work: bool
    """It may have left something unsettled behind."""
    reason: Failure
    message: str


class _Tracked(Struct):
    seen_s: float
    pod: dict[str, Any] | None = None
    is_watched: bool = False
    is_adopted: bool = False
    """It was beyond its start when we first saw it: it is not ours to judge how it began."""
    running_s: float | None = None
    is_deleted: bool = False
    has_ended: bool = False
    report: WorkerReport | None = None
    heard_s: float = 0.0
    first_heard_s: float = 0.0
    fence_asked_s: float | None = None

    def is_proven(self, now_s: float) -> bool:
        report = self.report
        return report is not None and (report.handled + report.failed > 0 or now_s - self.first_heard_s >= PROVEN_S)


class WorkerTracker:
    def __init__(self) -> None:
        self._tracked: dict[str, _Tracked] = {}

    # -- what is learnt

    def on_pod(self, pod: dict[str, Any], now_s: float, *, is_watched: bool) -> Ended | None:
        """Take a pod's state; return its end when this is the first sight of it."""
        uid = pod["metadata"]["uid"]
        tracked = self._tracked.get(uid)
        if tracked is None:
            tracked = self._tracked[uid] = _Tracked(now_s)
        if tracked.is_watched and not is_watched:
            return None
        phase = _phase(pod)
        if tracked.pod is None:
            tracked.is_adopted = phase != "Pending"
        tracked.pod = pod
        tracked.is_watched = is_watched
        if phase == "Running" and tracked.running_s is None:
            tracked.running_s = now_s
        if "deletionTimestamp" in pod["metadata"]:
            tracked.is_deleted = True
        if phase in {"Succeeded", "Failed"} and not tracked.has_ended:
            tracked.has_ended = True
            return self._ended(uid, tracked, now_s)
        return None

    def on_pod_gone(self, uid: str, now_s: float) -> Ended | None:
        """Forget a pod; return its end unless that was told before."""
        tracked = self._tracked.pop(uid, None)
        if tracked is None or tracked.pod is None or tracked.has_ended:
            return None
        tracked.is_deleted = True
        return self._ended(uid, tracked, now_s)

    def on_report(self, report: WorkerReport, now_s: float) -> WorkerReport | None:
        """Take a report, and return the one before it."""
        tracked = self._tracked.get(report.worker)
        if tracked is None:
            # It may be heard before the watch tells of its pod.
            tracked = self._tracked[report.worker] = _Tracked(now_s)
        before = tracked.report
        tracked.report, tracked.heard_s = report, now_s
        if before is None:
            tracked.first_heard_s = now_s
        return before

    def on_reconnect(self, now_s: float) -> None:
        """Reports could not reach us while the connection was away: nobody is silent for that."""
        for tracked in self._tracked.values():
            if tracked.report is not None:
                tracked.heard_s = now_s
            elif tracked.running_s is not None:
                tracked.running_s = now_s

    def on_fence_asked(self, uid: str, now_s: float) -> None:
        self._tracked[uid].fence_asked_s = now_s

    def on_deleted(self, uid: str) -> None:
        """We asked for its deletion."""
        if uid in self._tracked:
            self._tracked[uid].is_deleted = True

    # -- what is known

    def workers(self, now_s: float) -> tuple[Worker, ...]:
        for uid, tracked in list(self._tracked.items()):
            is_unknown = tracked.pod is None and now_s - tracked.heard_s >= REPORT_EXPIRY_S
            was_missed = tracked.pod is not None and not tracked.is_watched and now_s - tracked.seen_s > UNWATCHED_S_MAX
            if is_unknown or was_missed:
                del self._tracked[uid]
        return tuple(
            Worker(
                uid=uid,
                name=tracked.pod["metadata"]["name"],
                ordinal=ordinal_of(tracked.pod["metadata"]["name"]),
                version=tracked.pod["metadata"].get("labels", {}).get(VERSION_LABEL, ""),
                phase=_phase(tracked.pod),
                is_bound=bool(tracked.pod["spec"].get("nodeName")),
                is_deleted=tracked.is_deleted,
                seen_s=tracked.seen_s,
                running_s=tracked.running_s,
                report=tracked.report,
                heard_s=tracked.heard_s,
                fence_asked_s=tracked.fence_asked_s,
            )
            for uid, tracked in self._tracked.items()
            if tracked.pod is not None
        )

    def pod(self, uid: str) -> dict[str, Any] | None:
        tracked = self._tracked.get(uid)
        return tracked.pod if tracked is not None else None

    def is_proven(self, version: str, now_s: float) -> bool:
        """Say whether a worker of that version has handled something, or runs for long enough."""
        return any(
            tracked.report is not None and tracked.report.version == version and tracked.is_proven(now_s)
            for tracked in self._tracked.values()
            if not tracked.has_ended
        )

    def unschedulable(self) -> str:
        """Return what the scheduler says about a pod that it found no node for; empty when there is none."""
        for tracked in self._tracked.values():
            if tracked.pod is None or tracked.is_deleted or tracked.pod["spec"].get("nodeName"):
                continue
            for condition in tracked.pod.get("status", {}).get("conditions", ()):
                if condition["type"] == "PodScheduled" and condition["status"] == "False":
                    return str(condition.get("message") or condition.get("reason") or "")
        return ""

    def _ended(self, uid: str, tracked: _Tracked, now_s: float) -> Ended:
        assert tracked.pod is not None
        pod, report = tracked.pod, tracked.report
        was_asked = tracked.is_deleted or tracked.fence_asked_s is not None
        # A whole system that went down in order looks so when it is up again.
        has_left_in_order = tracked.is_adopted and _phase(pod) == "Succeeded"
        reason, message = _story(pod)
        return Ended(
            uid=uid,
            name=pod["metadata"]["name"],
            version=pod["metadata"].get("labels", {}).get(VERSION_LABEL, ""),
            begun_s=tracked.seen_s,
            is_failed_start=not (was_asked or has_left_in_order or tracked.is_proven(now_s)),
            had_work=tracked.running_s is not None and (report is None or report.state != "fenced" or report.held > 0),
            reason=reason,
            message=message,
        )


def _phase(pod: Mapping[str, Any]) -> Phase:
    phase: Phase = pod.get("status", {}).get("phase", "Pending")
    return phase


def _story(pod: Mapping[str, Any]) -> tuple[Failure, str]:
    """Return why a pod ended: its worker's own last words, the node's, or what little there is."""
    status = pod.get("status", {})
    for container in status.get("containerStatuses", ()):
        terminated = container.get("state", {}).get("terminated")
        if terminated is None:
            continue
        code = int(terminated.get("exitCode", 0))
        words = terminated.get("message", "").strip() or terminated.get("reason", "")
        if failure_of(code) == "HandlerUnusable":
            return "HandlerUnusable", words or "the handler cannot be used; see the worker's log"
        return "WorkersFailing", f"worker {pod['metadata']['name']} ended with status {code}" + (
            f": {words}" if words else ""
        )
    words = ": ".join(text for text in (status.get("reason", ""), status.get("message", "")) if text)
    return "WorkersFailing", f"worker {pod['metadata']['name']} did not run" + (f": {words}" if words else "")
