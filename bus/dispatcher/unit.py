"""One function: a serial unit that makes the world be as its object says, and its workers as many as its events need.

Inputs (a changed object, a pod, a report, a wake signal, a request to look at the broker) are noted where they come and
coalesced into "look again"; one task looks, decides and acts. So nothing here happens twice at once, and a failed act
is simply done again.

    set up        finalizer -> consumer -> credentials, once for each generation; then the condition Subscribed
    go to sleep   listen to wake signals -> confirmed -> read the consumer -> only then fence the last worker
    wake          signal -> decision -> pod, with nothing in between; then the subscription is given up
    take down     fence -> pods by UID -> consumer -> finalizer
"""

import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import msgspec

from bus.cluster.errors import ClusterError
from bus.cluster.informer import Change
from bus.core.assignment import consumer_name
from bus.core.demand import HEARD, SERVING, Worker, held_by
from bus.core.errors import BusError, InvalidPattern, NotFound
from bus.core.reports import WorkerReport
from bus.core.scaling import Decision, ScalingPolicy, decide
from bus.core.starts import Failure, Starts, after_failure
from bus.core.topology import DEAD
from bus.dispatcher.hands import Hands
from bus.dispatcher.lag import Lag
from bus.dispatcher.shared import Shared
from bus.dispatcher.signal import Signal
from bus.dispatcher.status import StatusWriter
from bus.dispatcher.subscription import Subscription
from bus.dispatcher.tracking import Ended, WorkerTracker
from bus.functions.model import Function, Metadata, check_function, function_of
from bus.functions.status import Observed
from bus.jetstream.topology import message_count
from bus.scaler import events
from bus.scaler.manifest import grace_s

log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 5.0
REPORTS_TOGETHER_S = 0.05
"""Reports that come within this are looked at once."""
DEAD_COUNT_S = 1.0
"""A worker tells of a failed call a moment before the dead letter is stored."""
FENCE_WAIT_S = 5.0
"""How long the workers of a deleted function may take to fence; their grace period comes on top. [seconds]"""
PODS_GONE_S = 10.0
"""How long their pods may take to go, beyond the grace period."""


class FunctionUnit:
    def __init__(self, shared: Shared, item: dict[str, Any]) -> None:
        self._shared = shared
        self.metadata = metadata = msgspec.convert(item["metadata"], Metadata)
        self.uid = metadata.uid
        self._item = item
        self.key = f"{metadata.namespace}/{metadata.name}"
        self.gone = anyio.Event()
        """Nothing of the function is left, and its name is free."""
        consumer = consumer_name(metadata.namespace, metadata.name)
        self._signal = Signal()
        self._tracker = WorkerTracker()
        self._hands = Hands(shared, self._tracker)
        self._subscription = Subscription(shared, metadata, consumer)
        # What a dispatcher before us has written: the only memory of it where the consumer is gone.
        self._lag = Lag(metadata.namespace, metadata.name, consumer, item.get("status", {}).get("settledTo"))
        self._function: Function | None = None
        self._policy = ScalingPolicy()
        self._version = ""
        self._fault = ""
        self._starts = Starts()
        self._decision: Decision | None = None
        self._is_gone = False
        self._is_listening = False
        self._is_check_asked = True
        self._dead = 0
        self._dead_due_s: float | None = 0.0
        self._status = StatusWriter(shared.cluster, metadata, item, self._observed, self._count_dead)
        self._take_object(item)

    # -- inputs: called on the loop, note and return

    def on_object(self, item: dict[str, Any]) -> None:
        self._item = item
        before, self.metadata = self.metadata, msgspec.convert(item["metadata"], Metadata)
        after = self.metadata
        if (before.generation, before.is_deleted, before.finalizers) == (
            after.generation,
            after.is_deleted,
            after.finalizers,
        ):
            return  # our own status
        self._take_object(item)

    def _take_object(self, item: dict[str, Any]) -> None:
        try:
            function = function_of(item)
            check_function(function)
            scaling = function.spec.scaling
            self._policy = ScalingPolicy(
                min=scaling.min, max=scaling.max, concurrency=scaling.concurrency, idle_s=function.idle_s
            )
            self._function, self._version, self._fault = function, function.version, ""
        except (ValueError, InvalidPattern) as error:  # a decoding error is a ValueError
            # What worked goes on as it was; a redeployment mends it.
            self._fault = str(error)
            self._shared.recorder.tell(self.metadata, events.invalid(self._fault))
        self._status.changed()
        self._signal.set()

    def on_gone(self) -> None:
        self._is_gone = True
        self._signal.set()

    def on_pod(self, change: Change) -> None:
        now_s = anyio.current_time()
        if change.kind == "deleted":
            ended = self._tracker.on_pod_gone(change.object["metadata"]["uid"], now_s)
        else:
            ended = self._tracker.on_pod(change.object, now_s, is_watched=True)
        if ended is not None:
            self._on_ended(ended, now_s)
        self._status.changed_somewhat()
        self._signal.set()

    def on_report(self, report: WorkerReport) -> None:
        now_s = anyio.current_time()
        before = self._tracker.on_report(report, now_s)
        if self._tracker.pod(report.worker) is not None:  # else it may be of a predecessor of that name
            self._lag.on_report(before, report)
        if before is not None and report.failed > before.failed and self._dead_due_s is None:
            self._dead_due_s = now_s + DEAD_COUNT_S
        if self._starts.failures and self._tracker.is_proven(self._starts.version, now_s):
            self._starts = Starts()
        self._status.changed_somewhat()
        self._signal.set_within(REPORTS_TOGETHER_S)

    def on_wake(self) -> None:
        self._lag.on_wake()
        self._signal.set()

    def on_reconnect(self) -> None:
        """The broker was away: it may have lost its memory, and we what it said."""
        self._tracker.on_reconnect(anyio.current_time())
        self._subscription.doubt()
        self._lag.on_reconnect()
        self.request_check()

    def request_check(self) -> None:
        """Have the consumer read soon."""
        self._is_check_asked = True
        self._dead_due_s = 0.0
        self._status.changed_somewhat()
        self._signal.set()

    def _on_ended(self, ended: Ended, now_s: float) -> None:
        if ended.had_work:
            self._is_check_asked = True
        if ended.version == self._version and ended.is_failed_start:
            self._on_failed_start(ended.begun_s, now_s, ended.reason, ended.message)
        else:
            log.debug("worker ended", extra={"function": self.key, "worker": ended.name, "reason": ended.message})

    def _on_failed_start(self, begun_s: float, now_s: float, kind: Failure, message: str) -> None:
        self._starts = after_failure(
            self._starts, self._version, begun_s=begun_s, now_s=now_s, reason=kind, message=message
        )
        self._is_check_asked = True
        fields = {"function": self.key, "failures": self._starts.failures, "kind": kind, "reason": message}
        log.warning("start failed", extra=fields)
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
        function = self._function
        if function is None or not self._shared.connection.is_connected:
            return None  # a mended object or a reconnect brings us back
        if self._subscription.is_due(function.metadata.generation):
            await self._set_up(function)
        if self._is_check_asked:
            await self._read()
        decision = self._decide()
        if decision.checks or (decision.listens and not self._is_listening):
            await self._listen(function)
            await self._read()
            decision = self._decide(is_checked=True)
        await self._act(function, decision)
        return self._look_again_s(decision)

    def _decide(self, *, is_checked: bool = False) -> Decision:
        now_s = anyio.current_time()
        workers = self._tracker.workers(now_s)
        was_woken = self._lag.woken is not None
        if was_woken and any(worker.stage_at(now_s) in SERVING for worker in workers):
            # Somebody serves already and gets what was stored; but then this look at the broker is no fresh one.
            self._lag.woken = None
        demand = self._lag.demand_at(now_s, workers, is_checked=is_checked and not was_woken)
        return decide(self._policy, self._version, demand, workers, self._starts, now_s)

    def _look_again_s(self, decision: Decision) -> float | None:
        now_s = anyio.current_time()
        read_again_s = self._lag.read_again_s(now_s, self._tracker.workers(now_s))
        if read_again_s is not None and read_again_s <= 0:
            self._is_check_asked = True
        times = [seconds for seconds in (read_again_s, decision.look_again_s) if seconds is not None]
        return min(times) if times else None

    # -- look

    async def _set_up(self, function: Function) -> None:
        try:
            has_changed = await self._subscription.ensure(function, self._item, self._lag.settled_to)
        finally:
            self._status.changed()
        if has_changed:
            self._is_check_asked = True
            if self._is_listening:  # to what its patterns were
                await self._listen(function)

    async def _listen(self, function: Function) -> None:
        await self._shared.wakes.listen(self.uid, function.patterns, self.on_wake)
        self._is_listening = True

    async def _read(self) -> None:
        self._is_check_asked = False
        try:
            await self._lag.read(self._shared.connection, self._tracker.workers(anyio.current_time()))
        except NotFound:
            log.error("the consumer is gone; it is made again", extra={"function": self.key})
            self._subscription.doubt()
            raise
        except BusError:
            self._is_check_asked = True
            raise
        self._status.changed_somewhat()

    # -- act

    async def _act(self, function: Function, decision: Decision) -> None:
        before, self._decision = self._decision, decision
        serving = self._serving()
        if decision.create:
            await self._create(function, decision, serving)
        if self._is_listening and not decision.listens:
            self._shared.wakes.forget(self.uid)
            self._is_listening = False
            await self._shared.wakes.settle()
        if decision.fence:
            await self._hands.fence(function, decision.fence)
        if decision.delete:
            self._note_mute(decision.delete)
            await self._hands.delete(decision.delete)
            if not self._serving():
                self._lag.on_slept()
        if decision.fence or decision.delete:
            self._log("workers go", decision, fenced=len(decision.fence), deleted=len(decision.delete))
            if self._serving() < serving:
                self._shared.recorder.tell(self.metadata, events.scaled_down(serving, self._serving(), decision))
        if decision.changes_something or before is None or before.reason != decision.reason:
            self._status.changed_somewhat()

    async def _create(self, function: Function, decision: Decision, serving: int) -> None:
        began_s = anyio.current_time()
        woken = self._lag.woken
        made = await self._hands.create(function, decision.create, woken.at if woken is not None else _now())
        if made.count:
            since_s = woken.at_s if woken is not None else began_s
            left_ms, took_ms = (round((each - since_s) * 1000, 2) for each in (began_s, anyio.current_time()))
            # From the wake signal: until the request left, and until it was answered.
            self._log("workers come", decision, made=made.count, left_ms=left_ms, took_ms=took_ms)
            self._shared.recorder.tell(self.metadata, events.scaled_up(serving, serving + made.count, decision))
            if woken is not None:
                # More may have come than the one event. Soon, not now: the pod has the way first.
                self._lag.woken = None
                self._is_check_asked = True
                self._signal.set_within(REPORTS_TOGETHER_S)
        if made.refusal:
            self._on_failed_start(began_s, anyio.current_time(), "PodsRefused", made.refusal)

    def _note_mute(self, deleted: tuple[str, ...]) -> None:
        """A worker that runs, never said anything and is given up for that is a failed start."""
        now_s = anyio.current_time()
        for worker in self._tracker.workers(now_s):
            is_mute = worker.stage_at(now_s) == "silent" and worker.report is None
            if worker.uid in deleted and is_mute and worker.version == self._version:
                message = f"worker {worker.name} runs and has said nothing; see its log"
                self._on_failed_start(worker.seen_s, now_s, "WorkersFailing", message)

    def _serving(self) -> int:
        now_s = anyio.current_time()
        return sum(worker.stage_at(now_s) in SERVING for worker in self._tracker.workers(now_s))

    def _log(self, message: str, decision: Decision, **numbers: float) -> None:
        fields = {"function": self.key, "desired": decision.desired, **numbers, "cause": decision.cause}
        log.info(message, extra=fields | {"reason": decision.reason})

    # -- take down

    async def _take_down(self) -> None:
        """Leave nothing of the function behind. Every step may have been done before, and is bounded."""
        self._shared.wakes.forget(self.uid)
        await self._shared.wakes.settle()
        now_s = anyio.current_time()
        grace = 0.0
        if self._function is not None:
            grace = grace_s(self._function)
            live = [each.uid for each in self._tracker.workers(now_s) if each.stage_at(now_s) == "live"]
            await self._hands.fence(self._function, tuple(live))
            await self._wait_for(lambda worker, now: worker.stage_at(now) not in HEARD, FENCE_WAIT_S)
        there = [each.uid for each in self._tracker.workers(anyio.current_time()) if not each.is_deleted]
        await self._hands.delete(tuple(there))
        if not await self._wait_for(lambda worker, now: False, grace + PODS_GONE_S):
            log.warning("pods outlive their function", extra={"function": self.key})
        await self._subscription.remove()
        log.info("taken down", extra={"function": self.key})

    async def _wait_for(self, is_done: Callable[[Worker, float], bool], seconds: float) -> bool:
        """Wait until that holds for each worker there is; say whether it does."""
        deadline_s = anyio.current_time() + seconds
        while True:
            now_s = anyio.current_time()
            if all(is_done(worker, now_s) for worker in self._tracker.workers(now_s)):
                return True
            if now_s >= deadline_s:
                return False
            await self._signal.wait(min(1.0, deadline_s - now_s))

    # -- tell

    def _observed(self) -> Observed:
        now_s = anyio.current_time()
        workers = self._tracker.workers(now_s)
        stages = [worker.stage_at(now_s) for worker in workers]
        demand = self._lag.demand_at(now_s, workers)
        return Observed(
            name=self.metadata.name,
            generation=self.metadata.generation if self._fault else self._subscription.generation,
            version=self._version,
            patterns=self._function.patterns if self._function is not None else (),
            consumer=self._subscription.consumer,
            fault=self._fault,
            subscription_fault=self._subscription.fault,
            starts=self._starts,
            unschedulable=self._tracker.unschedulable(),
            workers=sum(stage in SERVING or stage == "fencing" for stage in stages),
            ready=stages.count("live"),
            pending=demand.pending,
            in_flight=held_by(workers, now_s) + demand.orphaned + demand.not_due,
            dead=self._dead,
            settled_to=self._lag.settled_to,
            decision=self._decision.reason if self._decision is not None else "",
        )

    async def _count_dead(self) -> float | None:
        """Count the dead letters if it is time; return after how many seconds it will be."""
        now_s = anyio.current_time()
        if self._dead_due_s is None or not self._shared.connection.is_connected:
            return None
        if now_s < self._dead_due_s:
            return self._dead_due_s - now_s
        self._dead_due_s = None
        subject = f"dead.{self.metadata.namespace}.{self.metadata.name}"
        self._dead = await message_count(self._shared.connection, DEAD, subject)
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
