"""One function: a serial unit that makes the world be as its object says, and its workers as many as its events need.

Inputs (a changed object, a pod, a report, a wake signal, a request to look at the broker) are noted where they come and
coalesced into "look again"; one task looks, decides and acts. So nothing here happens twice at once, and a failed act
is simply done again.

    set up        finalizer -> consumer -> credentials, once for each generation; then the condition Subscribed
    go to sleep   listen to wake signals -> confirmed -> read the consumer -> only then fence the last worker
    wake          signal -> decision -> pod, with nothing in between; then the subscription is given up
    take down     fence -> pods by UID -> consumer -> Secret -> finalizer
"""

import logging
import random
import time
from datetime import UTC, datetime
from typing import Any

import anyio
import msgspec
from msgspec import Struct

from bus.cluster.connection import Cluster
from bus.cluster.errors import ClusterError, NotFound
from bus.cluster.informer import Change
from bus.cluster.resources import FUNCTIONS
from bus.core.assignment import consumer_name
from bus.core.demand import SERVING, Demand, demand_of, held_by, is_doubtful
from bus.core.errors import BusError, InvalidPattern, Refused, StreamMismatch
from bus.core.errors import NotFound as NotOnBroker
from bus.core.reports import FENCE, WorkerReport
from bus.core.scaling import Decision, ScalingPolicy, decide
from bus.core.starts import Starts, after_failure
from bus.core.topology import DEAD, EVENTS, ConsumerSpec
from bus.dispatcher.retries import Retries
from bus.dispatcher.signal import Signal
from bus.dispatcher.status import StatusWriter
from bus.dispatcher.tracking import Ended, WorkerTracker
from bus.dispatcher.wakes import WakeSignals
from bus.functions.model import FINALIZER, Function, Metadata, check_function, function_of
from bus.functions.status import Observed
from bus.jetstream.connection import Connection
from bus.jetstream.topology import consumer_state, delete_consumer, ensure_consumer, message_count
from bus.scaler import events
from bus.scaler.events import EventRecorder
from bus.scaler.manifest import grace_s
from bus.scaler.pods import Scaler

log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 5.0
REPORTS_TOGETHER_S = 0.05
"""Reports that come within this are looked at once."""
DOUBT_S = 1.0
"""How often the broker is asked while only it knows how many events wait."""
ORPHANS_S = 2.0
"""How often it is asked while there are orphaned events and workers that may get them."""
DEAD_COUNT_S = 1.0
"""A worker tells of a failed call a moment before the dead letter is stored."""
FENCE_WAIT_S = 3.0
"""How long the workers of a deleted function may take to fence; their grace period comes on top. [seconds]"""
PODS_GONE_S = 10.0
"""How long their pods may take to go, beyond the grace period."""


class Shared(Struct, frozen=True, kw_only=True):
    """What all units use."""

    cluster: Cluster
    connection: Connection
    scaler: Scaler
    wakes: WakeSignals
    recorder: EventRecorder


class FunctionUnit:
    def __init__(self, shared: Shared, item: dict[str, Any]) -> None:
        self._shared = shared
        self.metadata = msgspec.convert(item["metadata"], Metadata)
        self.uid, self.name, self.namespace = self.metadata.uid, self.metadata.name, self.metadata.namespace
        self.gone = anyio.Event()
        """Nothing of the function is left, and its name is free."""
        self._consumer = consumer_name(self.namespace, self.name)
        self._signal = Signal()
        self._tracker = WorkerTracker()
        self._retries = Retries(self.namespace, self.name, EVENTS)
        self._function: Function | None = None
        self._policy = ScalingPolicy()
        self._fault = ""
        self._generation_set_up = 0
        self._is_consumer_sure = False
        self._subscription_fault: tuple[str, str] | None = ("Pending", "the consumer is being made")
        self._is_gone = False
        self._is_listening = False
        self._is_check_asked = True
        self._read_s = 0.0
        self._demand = Demand()
        self._orphans_at_read = (0, 0, 0)  # unsettled, held, settled to
        self._woken_at = ""
        self._starts = Starts()
        self._dead = 0
        self._dead_due_s: float | None = 0.0
        self._decision: Decision | None = None
        self._status = StatusWriter(shared.cluster, self.metadata, item, self._observed, self._count_dead)
        self.on_object(item)

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    # -- inputs: called on the loop, note and return

    def on_object(self, item: dict[str, Any]) -> None:
        before = self.metadata if self._function is not None or self._fault else None
        self._item = item
        self.metadata = metadata = msgspec.convert(item["metadata"], Metadata)
        if before is not None and (before.generation, before.is_deleted, before.finalizers) == (
            metadata.generation, metadata.is_deleted, metadata.finalizers
        ):  # fmt: skip
            return  # our own status
        try:
            function = function_of(item)
            check_function(function)
            scaling = function.spec.scaling
            self._policy = ScalingPolicy(
                min=scaling.min, max=scaling.max, concurrency=scaling.concurrency, idle_s=function.idle_s
            )
            self._function, self._fault = function, ""
        except (msgspec.ValidationError, InvalidPattern, ValueError) as error:
            # What worked goes on as it was; a redeploy mends it.
            self._fault = str(error)
            self._shared.recorder.tell(metadata, events.invalid(self._fault))
        self._status.changed()
        self._signal.set()

    def on_gone(self) -> None:
        self._is_gone = True
        self._signal.set()

    def on_pod(self, change: Change) -> None:
        now_s = anyio.current_time()
        uid = change.object["metadata"]["uid"]
        if change.kind == "deleted":
            ended = self._tracker.on_pod_gone(uid, now_s)
        else:
            ended = self._tracker.on_pod(change.object, now_s, is_watched=True)
        if ended is not None:
            self._on_ended(ended, now_s)
        self._status.changed()
        self._signal.set()

    def on_report(self, report: WorkerReport) -> None:
        now_s = anyio.current_time()
        before = self._tracker.on_report(report, now_s)
        if before is None or (before.handled, before.failed, before.held) != (
            report.handled,
            report.failed,
            report.held,
        ):
            # It rode on a delivery that came since the last report, so it is news.
            self._demand = msgspec.structs.replace(self._demand, pending=report.pending)
        if before is not None and report.failed > before.failed and self._dead_due_s is None:
            self._dead_due_s = now_s + DEAD_COUNT_S
        if self._starts.failures and self._tracker.is_proven(self._starts.version, now_s):
            self._starts = Starts()
        self._status.changed()
        self._signal.set_within(REPORTS_TOGETHER_S)

    def on_wake(self) -> None:
        if not self._woken_at:
            self._woken_at = datetime.now(UTC).isoformat(timespec="microseconds")
        self._demand = msgspec.structs.replace(self._demand, is_woken=True)
        self._signal.set()

    def on_reconnect(self) -> None:
        """The broker was away: it may have lost its memory, and we what it said."""
        self._tracker.on_reconnect(anyio.current_time())
        self._is_consumer_sure = False
        self.request_check()

    def request_check(self) -> None:
        """Have the consumer read soon."""
        self._is_check_asked = True
        self._dead_due_s = 0.0
        self._status.changed()
        self._signal.set()

    def _on_ended(self, ended: Ended, now_s: float) -> None:
        fields = {"function": self.key, "worker": ended.name, "reason": ended.message}
        if ended.had_work:
            self._is_check_asked = True
        if self._function is None or ended.version != self._function.version or not ended.is_failed_start:
            log.debug("worker ended", extra=fields)
            return
        self._on_failed_start(ended.begun_s, now_s, ended.reason, ended.message)

    def _on_failed_start(self, begun_s: float, now_s: float, reason: Any, message: str) -> None:
        assert self._function is not None
        version = self._function.version
        before = self._starts
        self._starts = after_failure(before, version, begun_s=begun_s, now_s=now_s, reason=reason, message=message)
        self._is_check_asked = True
        log.warning(
            "start failed",
            extra={"function": self.key, "failures": self._starts.failures, "kind": reason, "reason": message},
        )
        self._shared.recorder.tell(self.metadata, events.start_failed(self._starts))
        self._status.changed()

    # -- the loop

    async def run(self, predecessor: anyio.Event | None) -> None:
        """Work until the function is gone. `predecessor`: the end of another function that had the same name."""
        try:
            if predecessor is not None:
                await predecessor.wait()
            async with anyio.create_task_group() as group:
                group.start_soon(self._status.run)
                await self._converge_until_gone()
                group.cancel_scope.cancel()
        finally:
            self._shared.wakes.forget(self.uid)
            self.gone.set()

    async def _converge_until_gone(self) -> None:
        look_again_s: float | None = 0.0
        retry_s = RETRY_FIRST_S
        while True:
            await self._signal.wait(look_again_s)
            try:
                if self._is_gone or self.metadata.is_deleted:
                    await self._take_down()
                    return
                look_again_s = await self._converge()
                retry_s = RETRY_FIRST_S
                continue
            except (ClusterError, BusError) as error:
                level = logging.INFO if error.retryable else logging.WARNING
                log.log(level, "will be tried again: %s", error, extra={"function": self.key})
            except Exception:
                log.exception("unexpected; will be tried again", extra={"function": self.key})
            look_again_s = retry_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            retry_s = min(RETRY_MAX_S, retry_s * 2)

    async def _converge(self) -> float | None:
        """Do what there is to do now; return after how many seconds to look again at the latest."""
        if self._function is None or not self._shared.connection.is_connected:
            return None  # a mended object or a reconnect brings us back
        if self._generation_set_up != self.metadata.generation or not self._is_consumer_sure:
            await self._set_up(self._function)
        now_s = anyio.current_time()
        if self._is_check_asked:
            await self._read()
        decision = self._decide(now_s)
        if not decision.create and (decision.checks or (decision.listens and not self._is_listening)):
            await self._listen(self._function)
            await self._read()
            now_s = anyio.current_time()
            decision = self._decide(now_s, is_checked=True)
        await self._act(self._function, decision, now_s)
        return self._look_again_s(decision, now_s)

    def _decide(self, now_s: float, *, is_checked: bool = False) -> Decision:
        assert self._function is not None
        workers = self._tracker.workers(now_s)
        if self._demand.is_woken and any(worker.stage_at(now_s) in SERVING for worker in workers):
            # Somebody serves already, and the next check will see what was stored.
            self._demand = msgspec.structs.replace(self._demand, is_woken=False)
            self._woken_at = ""
        demand = msgspec.structs.replace(self._demand_now(now_s), is_checked=is_checked and not self._demand.is_woken)
        return decide(self._policy, self._function.version, demand, workers, self._starts, now_s)

    def _demand_now(self, now_s: float) -> Demand:
        """Return the demand with what has become due since the consumer was read."""
        unsettled, held, settled_to = self._orphans_at_read
        due_s = self._retries.due_s(time.time(), now_s)
        sorted_out = demand_of(
            pending=self._demand.pending,
            unsettled=unsettled,
            held=held,
            due_s=due_s,
            settled_to=settled_to,
            now_s=now_s,
        )
        return msgspec.structs.replace(sorted_out, is_woken=self._demand.is_woken)

    def _look_again_s(self, decision: Decision, now_s: float) -> float | None:
        times = [] if decision.look_again_s is None else [decision.look_again_s]
        workers = self._tracker.workers(now_s)
        demand = self._demand_now(now_s)
        are_serving = any(worker.stage_at(now_s) in SERVING for worker in workers)
        wait_s = None
        if is_doubtful(demand.pending, workers, now_s):
            wait_s = DOUBT_S
        elif demand.orphaned and are_serving:
            wait_s = ORPHANS_S
        if wait_s is not None:
            left_s = self._read_s + wait_s - now_s
            if left_s <= 0:
                self._is_check_asked = True
                self._signal.set()
            times.append(max(0.0, left_s))
        return min(times) if times else None

    # -- set up

    async def _set_up(self, function: Function) -> None:
        generation = self.metadata.generation
        if self._fault:
            self._generation_set_up = generation
        try:
            await self._ensure_finalizer()
            spec = ConsumerSpec(
                name=self._consumer, stream=EVENTS, patterns=function.patterns, owner=self.key, owner_uid=self.uid
            )
            changes = await ensure_consumer(self._shared.connection, spec)
            self._is_consumer_sure = True
            await self._shared.scaler.ensure_credentials(function)
        except (StreamMismatch, Refused) as error:
            self._subscription_fault = ("ConsumerRefused", str(error))
            self._shared.recorder.tell(self.metadata, events.not_subscribed(*self._subscription_fault))
            self._status.changed()
            raise
        except (BusError, ClusterError) as error:
            if self._subscription_fault is not None:
                self._subscription_fault = ("NotReachable", str(error))
                self._status.changed()
            raise
        if changes:
            log.info("subscribed", extra={"function": self.key, "changes": "; ".join(changes)})
            self._shared.recorder.tell(self.metadata, events.subscribed(self._consumer, function.patterns))
            self._is_listening = False  # to the old patterns, perhaps
        self._generation_set_up = generation
        self._subscription_fault = None
        self._status.changed()

    async def _ensure_finalizer(self) -> None:
        metadata = self._item["metadata"]
        finalizers = metadata.get("finalizers") or []
        if FINALIZER in finalizers:
            return
        patch: list[dict[str, Any]] = [{"op": "test", "path": "/metadata/uid", "value": self.uid}]
        if finalizers:
            patch.append({"op": "add", "path": "/metadata/finalizers/-", "value": FINALIZER})
        else:
            patch.append({"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]})
            patch.append({"op": "add", "path": "/metadata/finalizers", "value": [FINALIZER]})
        self._item = await self._shared.cluster.json_patch(FUNCTIONS, self.name, patch, self.namespace)

    # -- look

    async def _listen(self, function: Function) -> None:
        await self._shared.wakes.listen(self.uid, function.patterns, self.on_wake)
        self._is_listening = True

    async def _read(self) -> None:
        """Read the consumer once, and the records of retries if somebody waits for one."""
        connection = self._shared.connection
        self._is_check_asked = False
        try:
            state = await consumer_state(connection, EVENTS, self._consumer)
        except NotOnBroker:
            log.error("the consumer is gone; it is made again", extra={"function": self.key})
            self._is_consumer_sure = False
            raise
        now_s = anyio.current_time()
        held = held_by(self._tracker.workers(now_s), now_s)
        if state.ack_pending > held:
            await self._retries.read(connection, time.time())
        self._read_s = now_s
        self._orphans_at_read = (state.ack_pending, held, state.ack_floor_sequence)
        self._demand = msgspec.structs.replace(self._demand, pending=state.pending)
        self._status.changed()

    # -- act

    async def _act(self, function: Function, decision: Decision, now_s: float) -> None:
        before = self._decision
        self._decision = decision
        serving = self._serving(now_s)
        if decision.create:
            await self._create(function, decision, now_s)
        if self._is_listening and not decision.listens:
            self._shared.wakes.forget(self.uid)
            self._is_listening = False
            await self._shared.wakes.settle()
        if decision.changes_something:
            await self._fence(decision.fence, now_s)
            await self._delete(decision.delete, now_s)
            self._tell(decision, serving)
        if decision.changes_something or before is None or before.reason != decision.reason:
            self._status.changed()

    async def _create(self, function: Function, decision: Decision, now_s: float) -> None:
        woken_at = self._woken_at or datetime.now(UTC).isoformat(timespec="microseconds")
        errors: list[ClusterError] = []

        async def create(ordinal: int) -> None:
            try:
                pod = await self._shared.scaler.create(function, ordinal, woken_at)
                self._tracker.on_pod(pod, anyio.current_time(), is_watched=False)
            except ClusterError as error:
                errors.append(error)

        if len(decision.create) == 1:
            await create(decision.create[0])
        else:
            async with anyio.create_task_group() as group:
                for ordinal in decision.create:
                    group.start_soon(create, ordinal)
        if len(errors) < len(decision.create):
            self._demand = msgspec.structs.replace(self._demand, is_woken=False)
            self._woken_at = ""
        for error in errors:
            if error.retryable:
                raise error
        if errors:
            self._on_failed_start(now_s, anyio.current_time(), "PodsRefused", str(errors[0].message))

    async def _fence(self, uids: tuple[str, ...], now_s: float) -> None:
        if not uids or self._function is None:
            return
        assignment = self._function.assignment()
        for uid in uids:
            await self._shared.connection.send(assignment.control_subject(uid), FENCE)
            self._tracker.on_fence_asked(uid, now_s)

    async def _delete(self, uids: tuple[str, ...], now_s: float) -> None:
        by_uid = {worker.uid: worker for worker in self._tracker.workers(now_s)}

        async def delete(uid: str) -> None:
            pod = self._tracker.pod(uid)
            if pod is None:
                return
            worker = by_uid[uid]
            is_mute = worker.stage_at(now_s) == "silent" and worker.report is None
            try:
                await self._shared.scaler.delete(pod)
            except ClusterError as error:
                errors.append(error)
                return
            self._tracker.on_deleted(uid)
            if is_mute and self._function is not None and worker.version == self._function.version:
                message = f"worker {worker.name} runs and has said nothing; see its log"
                self._on_failed_start(worker.seen_s, now_s, "WorkersFailing", message)

        errors: list[ClusterError] = []
        async with anyio.create_task_group() as group:
            for uid in uids:
                group.start_soon(delete, uid)
        if errors:
            raise errors[0]

    def _serving(self, now_s: float) -> int:
        return sum(worker.stage_at(now_s) in SERVING for worker in self._tracker.workers(now_s))

    def _tell(self, decision: Decision, before: int) -> None:
        log.info(
            "workers changed",
            extra={
                "function": self.key,
                "observed": before,
                "desired": decision.desired,
                "made": len(decision.create),
                "fenced": len(decision.fence),
                "deleted": len(decision.delete),
                "cause": decision.cause,
                "reason": decision.reason,
            },
        )
        after = self._serving(anyio.current_time())
        if decision.create:
            self._shared.recorder.tell(self.metadata, events.scaled_up(before, decision))
        elif after < before:
            self._shared.recorder.tell(self.metadata, events.scaled_down(before, after, decision))

    # -- take down

    async def _take_down(self) -> None:
        """Leave nothing of the function behind. Every step may have been done before, and is bounded."""
        self._shared.wakes.forget(self.uid)
        await self._shared.wakes.settle()
        now_s = anyio.current_time()
        live = tuple(worker.uid for worker in self._tracker.workers(now_s) if worker.stage_at(now_s) == "live")
        await self._fence(live, now_s)
        await self._wait_for(lambda worker, now: worker.stage_at(now) not in {"live", "fencing"}, FENCE_WAIT_S)
        now_s = anyio.current_time()
        await self._delete(tuple(worker.uid for worker in self._tracker.workers(now_s) if not worker.is_deleted), now_s)
        grace = grace_s(self._function) if self._function is not None else 0.0
        if not await self._wait_for(lambda worker, now: False, grace + PODS_GONE_S):
            log.warning("pods outlive their function", extra={"function": self.key})
        await delete_consumer(self._shared.connection, EVENTS, self._consumer)
        await self._shared.scaler.delete_credentials(self.name, self.namespace, self.uid)
        await self._remove_finalizer()
        log.info("taken down", extra={"function": self.key})

    async def _wait_for(self, is_done: "Any", seconds: float) -> bool:
        """Wait until that holds for all workers there are; say whether it does."""
        deadline_s = anyio.current_time() + seconds
        while True:
            now_s = anyio.current_time()
            if all(is_done(worker, now_s) for worker in self._tracker.workers(now_s)):
                return True
            if now_s >= deadline_s:
                return False
            await self._signal.wait(min(1.0, deadline_s - now_s))

    async def _remove_finalizer(self) -> None:
        try:
            item = await self._shared.cluster.get(FUNCTIONS, self.name, self.namespace)
            finalizers = item["metadata"].get("finalizers") or []
            if item["metadata"]["uid"] != self.uid or FINALIZER not in finalizers:
                return
            path = f"/metadata/finalizers/{finalizers.index(FINALIZER)}"
            await self._shared.cluster.json_patch(
                FUNCTIONS,
                self.name,
                [
                    {"op": "test", "path": "/metadata/uid", "value": self.uid},
                    {"op": "test", "path": path, "value": FINALIZER},
                    {"op": "remove", "path": path},
                ],
                self.namespace,
            )
        except NotFound:
            return

    # -- tell

    def _observed(self) -> Observed:
        now_s = anyio.current_time()
        workers = self._tracker.workers(now_s)
        stages = [worker.stage_at(now_s) for worker in workers]
        demand = self._demand_now(now_s)
        function = self._function
        is_behind = self._generation_set_up != self.metadata.generation and not self._fault
        return Observed(
            name=self.name,
            generation=self._generation_set_up if is_behind else self.metadata.generation,
            version=function.version if function is not None else "",
            patterns=function.patterns if function is not None else (),
            consumer=self._consumer,
            fault=self._fault,
            subscription_fault=self._subscription_fault,
            starts=self._starts,
            unschedulable=self._tracker.unschedulable(),
            workers=sum(stage in SERVING or stage == "fencing" for stage in stages),
            ready=stages.count("live"),
            pending=demand.pending,
            in_flight=held_by(workers, now_s) + demand.orphaned + demand.not_due,
            dead=self._dead,
            decision=self._decision.reason if self._decision is not None else "",
        )

    async def _count_dead(self) -> float | None:
        """Count the dead letters if it is time; return after how many seconds it will be."""
        now_s = anyio.current_time()
        if self._dead_due_s is None:
            return None
        if now_s < self._dead_due_s:
            return self._dead_due_s - now_s
        self._dead_due_s = None
        if self._shared.connection.is_connected:
            self._dead = await message_count(self._shared.connection, DEAD, f"dead.{self.namespace}.{self.name}")
        return None
