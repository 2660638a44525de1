"""What the API is told of a pod: its status, as far as it differs from what the API has, and its Events."""

import logging
from datetime import UTC, datetime
from typing import Any

import anyio

from bus.cluster.connection import Cluster
from bus.cluster.errors import Conflict, Forbidden, Invalid, NotFound
from bus.cluster.resources import PODS
from provider import events
from provider.core.plan import Desired, Observed, Step, observed_of
from provider.core.status import Knowledge, Place, Waiting, changes, status_of, whole_seconds
from provider.events import Recorder
from provider.node.record import Record, View

log = logging.getLogger(__name__)

SILENCE_S = 1.0
"""How long after a start its status waits for the backend's first word: told earlier, the API would hear of the pod twice
within a millisecond, and of its running second."""


class Teller:
    """Writes at most as much at once as `writing` allows."""

    def __init__(self, cluster: Cluster, recorder: Recorder, place: Place, writing: anyio.CapacityLimiter) -> None:
        self._cluster, self._recorder, self._place, self._writing = cluster, recorder, place, writing

    async def tell(self, view: View, record: Record) -> float | None:
        """Write what differs from the status that the API has; return in how many seconds there will be more to tell."""
        assert view.pod is not None
        self._tell_events(view, record)
        if _is_silent(view, record):
            return SILENCE_S
        known = Knowledge(
            runs=view.runs,
            previous=record.previous(view.runs),
            waiting=_waiting(view, record),
            refusal=record.refusal,
        )
        wanted = status_of(view.pod, known, self._place, now=whole_seconds(datetime.now(UTC).isoformat()))
        status = changes(view.pod.get("status") or {}, wanted)
        # That the deletion was seen goes without saying: the end is told in a moment, and two writes become one.
        unsaid = {"observedGeneration", "conditions"} if view.plan.step is Step.STOP else set()
        if not status.keys() - unsaid:
            return None
        metadata = view.pod["metadata"]
        uid = metadata["uid"]
        try:
            async with self._writing:
                # The UID is a precondition: a pod made again under this name is another one.
                record.answer = await self._cluster.patch(
                    PODS,
                    metadata["name"],
                    {"metadata": {"uid": uid}, "status": status},
                    metadata["namespace"],
                    subresource="status",
                    strategy="strategic",
                )
        except (NotFound, Conflict, Forbidden) as error:
            # The pod is gone, or another has its name; the informer is about to say so.
            log.debug("status not wanted: %s", error, extra={"pod_uid": uid})
        except Invalid:
            log.exception("the API server refuses the status", extra={"pod_uid": uid, "status": status})
        return None

    def _tell_events(self, view: View, record: Record) -> None:
        assert view.pod is not None
        for name, run in view.runs.items():
            if run.state == "running" and record.first_time("started", name, run.restart):
                self._recorder.tell(events.started(view.pod, name))
        for each in view.pod["spec"].get("ephemeralContainers") or ():
            if record.first_time("ephemeral", each["name"]):
                self._recorder.tell(events.ephemeral_container(view.pod, each["name"]))
        for name in view.plan.back_offs:
            if record.first_time("back-off", name, view.runs[name].restart):
                self._recorder.tell(events.back_off(view.pod, name))

    def tell_lost(self, pod: dict[str, Any] | None, record: Record) -> None:
        """Say which containers ran before this process, and are gone; those that run on are not told as started."""
        if pod is None:
            return
        for each in (pod.get("status") or {}).get("containerStatuses") or ():
            if "running" not in (each.get("state") or {}):
                continue
            record.first_time("started", each["name"], each["restartCount"])
            if record.observation is None and observed_of(record.history) is Observed.ENDED:
                self._recorder.tell(events.lost(pod, each["name"]))


def _is_silent(view: View, record: Record) -> bool:
    return (
        view.desired is Desired.RUN
        and anyio.current_time() - record.launched_at < SILENCE_S
        and any(run.state == "waiting" and not run.reason for run in view.runs.values())
    )


def _waiting(view: View, record: Record) -> dict[str, Waiting]:
    assert view.pod is not None
    metadata = view.pod["metadata"]
    waiting: dict[str, Waiting] = {}
    if record.waiting is not None:
        waiting = dict.fromkeys(view.plan.starts, record.waiting)
    for name, delay_s in view.plan.back_offs.items():
        who = f"{metadata['name']}_{metadata['namespace']}({metadata['uid']})"
        message = f"back-off {delay_s:g}s restarting failed container={name} pod={who}"
        waiting[name] = Waiting("CrashLoopBackOff", message)
    return waiting
