"""The pods of this node: for each, one serial worker that reads the world, asks the core, and does what it says.

    informer (spec.nodeName = us) ─┐
    backend.observations() ────────┼──► "look again at this UID" ──► lane of the UID: plan, act, write the status
    time (back-off) ───────────────┘

What is remembered beside API and backend is small, and can be lost at any time: a restarted node program reads both
again and goes on. Nothing is cleaned up before both have been read in full.
"""

import logging
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anyio

from bus.cluster.connection import Cluster
from bus.cluster.errors import Conflict, Forbidden, NotFound
from bus.cluster.informer import Change, Informer, open_informer
from bus.cluster.resources import PODS
from provider import events
from provider.backends.seam import Backend
from provider.core.composition import grace_s_of, launch_of
from provider.core.environment import Facts, Shortage, absent_optional, environment_of, sources_of
from provider.core.history import Containers, remembered
from provider.core.images import Refusal
from provider.core.launch import ContainerObservation, PodObservation
from provider.core.plan import Desired, Step, desired_of, plan
from provider.core.status import Place, Waiting
from provider.core.support import notices_of, refusal_of
from provider.errors import BackendUnavailable, CapacityExceeded, PodNotFound, PodRejected
from provider.events import Recorder
from provider.node.inputs import Inputs, open_inputs
from provider.node.lanes import Lanes
from provider.node.record import Record, View
from provider.node.telling import Teller

log = logging.getLogger(__name__)

STARTS_AT_ONCE = 32
"""Pods that are between their inputs and the backend's word at the same time."""
WRITES_AT_ONCE = 64
"""Requests that change pods in the API at the same time."""
INPUTS_AGAIN_S = 5.0
"""How long a pod waits for a Secret or ConfigMap before it looks again."""
BACKEND_AGAIN_FIRST_S = 0.5
BACKEND_AGAIN_MAX_S = 30.0
ORPHAN_GRACE_S = 1.0
"""What a pod gets that was removed from the API by force. Source: the kubelet's shortest grace period."""


class Pods:
    """Use `open_pods`."""

    def __init__(
        self,
        cluster: Cluster,
        backend: Backend,
        recorder: Recorder,
        *,
        place: Place,
        allocatable: Mapping[str, str],
    ) -> None:
        self._cluster, self._backend, self._recorder = cluster, backend, recorder
        self._place, self._allocatable = place, allocatable
        self._records: dict[str, Record] = {}
        self._orphans: dict[str, PodObservation] = {}
        self._starting = anyio.CapacityLimiter(STARTS_AT_ONCE)
        self._writing = anyio.CapacityLimiter(WRITES_AT_ONCE)
        self._teller = Teller(cluster, recorder, place, self._writing)
        self._inputs: Inputs
        self._lanes: Lanes
        self._informer: Informer

    @property
    def is_synced(self) -> bool:
        return self._informer.is_synced

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The pods that the API binds to this node."""
        return list(self._informer.objects.values())

    def find(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Return the pod of that name, as the API has it."""
        for pod in self._informer.objects.values():
            metadata = pod["metadata"]
            if metadata["name"] == name and metadata["namespace"] == namespace:
                return pod
        return None

    def runs_in_backend(self, uid: str) -> Containers:
        """Return the newest run of each container that the backend has, and so has a log of."""
        record = self._records.get(uid)
        return {} if record is None else record.in_backend

    # -- what wakes a lane

    def _on_change(self, change: Change) -> None:
        self._lanes.look(change.object["metadata"]["uid"])

    async def _observe(self) -> None:
        async for observation in self._backend.observations():
            record = self._records.get(observation.uid)
            if record is not None:
                record.observe(observation)
            else:
                self._orphans[observation.uid] = observation
            self._lanes.look(observation.uid)

    async def _adopt(self) -> None:
        """Look at every pod that the backend has once the API's list is complete: some may not be in it any more."""
        await self._informer.wait_synced(math.inf)
        for uid in list(self._orphans):
            self._lanes.look(uid)

    # -- one pod

    async def _reconcile(self, uid: str) -> float | None:
        view = self._view(uid)
        if view is None:
            return None
        record = self._records[uid]
        again_s = view.plan.look_again_s
        if view.plan.step is Step.START and view.pod is not None:
            again_s = _sooner(again_s, await self._start(record, view.pod, view.plan.starts))
        elif view.plan.step is Step.STOP:
            await self._stop(uid, record, view)
        elif view.plan.step is Step.FORGET:
            await self._backend.forget(uid)
        if view.pod is None:
            if view.plan.step is not Step.STOP:
                del self._records[uid]
            return None
        again_s = _sooner(again_s, await self._write_status(uid, record))
        if view.plan.step is Step.REMOVE and not record.is_removed:
            await self._remove(view.pod)
            record.is_removed = True
        return again_s

    def _view(self, uid: str) -> View | None:
        """Return the pod at this moment; None while the API has not told whether there is such a pod."""
        pod = self._informer.objects.get(uid)
        if pod is None and not self._informer.is_synced:
            return None
        record = self._records.get(uid)
        if record is None:
            record = self._records[uid] = Record(remembered((pod or {}).get("status") or {}, _now()))
            observation = self._orphans.pop(uid, None)
            if observation is not None:
                record.observe(observation)
            self._teller.tell_lost(pod, record)
        if pod is not None and record.answer is not None:
            pod = max(pod, record.answer, key=_version)
        desired = desired_of(pod, is_refused=record.refusal is not None)
        if pod is None:
            # Nobody asks for it: what counts is what the backend has.
            left = record.in_backend
            return View(None, desired, left, plan(desired, "Never", (), left, now_s=time.time()))
        runs = record.runs
        next_ = plan(
            desired,
            pod["spec"].get("restartPolicy", "Always"),
            [each["name"] for each in pod["spec"]["containers"]],
            runs,
            now_s=time.time(),
            calm_restarts=record.calm_restarts,
        )
        return View(pod, desired, runs, next_)

    async def _start(self, record: Record, pod: dict[str, Any], starts: Mapping[str, int]) -> float | None:
        """Have the containers started; return when to try again, where they could not be."""
        uid, namespace = pod["metadata"]["uid"], pod["metadata"]["namespace"]
        spec = pod["spec"]
        refusal = refusal_of(spec)
        if refusal is not None:
            self._refuse(record, pod, refusal)
            return None
        restarts = {name: run.restart for name, run in record.in_backend.items()} | dict(starts)
        try:
            # Before the inputs: that it can never run here is to be said even while a Secret is missing.
            self._backend.check(launch_of(pod, {}, restarts))
            facts = Facts(pod=pod, address=self._place.address, allocatable=self._allocatable)
            async with self._starting:
                objects = await self._inputs.fetch(namespace, sources_of(spec["containers"]))
                environments = {each["name"]: environment_of(each, objects, facts) for each in spec["containers"]}
                current = self._view(uid)
                if current is None or current.pod is None or current.desired is not Desired.RUN:
                    self._lanes.look(uid)  # It was deleted meanwhile: it is not started any more.
                    return None
                await self._backend.start(launch_of(pod, environments, restarts))
        except PodRejected as rejected:
            self._refuse(record, pod, Refusal(rejected.reason, rejected.message))
            return None
        except Shortage as shortage:
            record.waiting = Waiting("CreateContainerConfigError", shortage.message)
            if record.first_time(f"{shortage.event} {shortage.message}"):
                self._recorder.tell(events.input_missing(pod, shortage.event, shortage.message))
            return INPUTS_AGAIN_S
        except Forbidden as error:
            record.waiting = Waiting("CreateContainerConfigError", error.message)
            if record.first_time(f"forbidden {error.message}"):
                self._recorder.tell(events.input_missing(pod, "FailedToReadInputs", error.message))
            return INPUTS_AGAIN_S
        except (CapacityExceeded, BackendUnavailable) as error:
            record.waiting = Waiting(type(error).__name__, str(error))
            record.attempts += 1
            self._recorder.tell(events.not_now(pod, str(error)))
            return min(BACKEND_AGAIN_MAX_S, BACKEND_AGAIN_FIRST_S * 2.0 ** min(record.attempts - 1, 16))
        record.waiting, record.attempts = None, 0
        record.launched_at = anyio.current_time()
        for name, restart in starts.items():
            record.launched[name] = ContainerObservation(name=name, restart=restart, state="waiting")
        log.info(
            "pod started",
            extra={"pod": pod["metadata"]["name"], "namespace": namespace, "pod_uid": uid, "starts": dict(starts)},
        )
        if record.first_time("notices"):
            for notice in notices_of(spec):
                self._recorder.tell(events.noticed(pod, notice))
            for container in spec["containers"]:
                for source in absent_optional(container, objects):
                    self._recorder.tell(events.optional_absent(pod, source.kind, source.name))
        return None

    def _refuse(self, record: Record, pod: dict[str, Any], refusal: Refusal) -> None:
        record.refusal = refusal
        self._recorder.tell(events.refused(pod, refusal.reason, refusal.message))
        log.info(
            "pod refused",
            extra={"pod": pod["metadata"]["name"], "pod_uid": pod["metadata"]["uid"], "reason": refusal.reason},
        )

    async def _stop(self, uid: str, record: Record, view: View) -> None:
        grace_s = ORPHAN_GRACE_S if view.pod is None else max(ORPHAN_GRACE_S, grace_s_of(view.pod))
        if record.stop_grace_s is not None and record.stop_grace_s <= grace_s:
            return  # It was asked already, and has no more time than that.
        if record.stop_grace_s is None and view.pod is not None:
            self._recorder.tell(events.killing(view.pod, grace_s))
        try:
            await self._backend.stop(uid, grace_s)
        except PodNotFound:
            # Accepted once and gone since: nothing runs, and nothing will be observed any more.
            record.launched.clear()
            record.observation = None
            self._lanes.look(uid)
        record.stop_grace_s = grace_s
        log.info("pod stopping", extra={"pod_uid": uid, "grace_s": grace_s, "desired": view.desired.value})

    async def _remove(self, pod: dict[str, Any]) -> None:
        """Remove the pod from the API, now that nothing of it runs; one made again under its name is not touched."""
        metadata = pod["metadata"]
        try:
            async with self._writing:
                await self._cluster.delete(
                    PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"], grace_s=0
                )
        except (NotFound, Conflict, Forbidden) as error:
            # Gone already: of a pod that is gone, a node is told that it may not.
            log.info("pod was removed by somebody else: %s", error, extra={"pod_uid": metadata["uid"]})

    async def _write_status(self, uid: str, record: Record) -> float | None:
        view = self._view(uid)
        if view is None or view.pod is None:
            return None
        return await self._teller.tell(view, record)


@asynccontextmanager
async def open_pods(
    cluster: Cluster,
    backend: Backend,
    recorder: Recorder,
    *,
    node: str,
    place: Place,
    allocatable: Mapping[str, str],
) -> AsyncIterator[Pods]:
    """Keep this node's pods as the API wants them, until the block is left; then they run on without us."""
    pods = Pods(cluster, backend, recorder, place=place, allocatable=allocatable)
    pods._orphans = {observation.uid: observation for observation in backend.pods()}
    async with open_inputs(cluster) as pods._inputs, anyio.create_task_group() as group:
        pods._lanes = Lanes(group, pods._reconcile)
        selector = f"spec.nodeName={node}"
        async with open_informer(cluster, PODS, field_selector=selector, on_change=pods._on_change) as informer:
            pods._informer = informer
            group.start_soon(pods._observe)
            group.start_soon(pods._adopt)
            try:
                yield pods
            finally:
                group.cancel_scope.cancel()


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _version(pod: Mapping[str, Any]) -> int:
    """Resource versions are compared as numbers (Kubernetes 1.35 says that they may be)."""
    try:
        return int(pod["metadata"]["resourceVersion"])
    except ValueError:
        return 0


def _sooner(one: float | None, other: float | None) -> float | None:
    both = [each for each in (one, other) if each is not None]
    return min(both) if both else None
