"""One worker between its first pull and its leave.

Tasks, all owned by `Worker.serve`: resident coroutines, one for each slot, which take deliveries from a deque; one
housekeeping tick that renews the leases of everything in hand; one reporter. nats-py's own tasks feed the deque. For
each message a slot makes one task, which is what an interruption ends.

    starting -> running -> (fenced: asks for no more, runs what it has, stays) -> stopping: SIGTERM, or replaced -> gone

An event that may have killed a worker before runs alone. Whatever else is in hand by then, or comes while it runs, is
handed back on record first: if the worker dies, only the call that was running has died with it.
"""

import asyncio
import logging
import random
import time
from collections import deque
from typing import Any

from bus.core.assignment import Assignment
from bus.core.errors import BrokerUnavailable, BusError, InvalidEvent, PayloadTooLarge
from bus.core.event import event_of
from bus.core.reports import FENCE
from bus.core.settlement import HAND_BACK_DELAY_S, settlement_of, start_of
from bus.jetstream.connection import Connection, Message
from bus.jetstream.consumer import open_pull
from bus.jetstream.delivery import Delivery
from workers.core.leases import RENEW_SHARE, Lease, is_held, renew
from workers.gate import Gate
from workers.invoke import Call, Invoker
from workers.report import Reporter
from workers.settle import Held, Identity, Lost, Settler

log = logging.getLogger("nodeless.worker")

NEIGHBOUR_DELAY_S = 1.0
"""When a delivery comes again that was handed back because another one has to run alone. Another worker may have it
sooner than this one is free, and this one shall not have it back at once."""


class Worker:
    """Use `serve`, once; `stop` it from anywhere on the loop."""

    def __init__(self, assignment: Assignment, identity: Identity, invoker: Invoker) -> None:
        self.assignment, self.identity = assignment, identity
        self.held: dict[int, Held] = {}  # by consumer sequence: each delivery is one entry
        self.busy = 0
        self.stop_reason = ""
        self._invoker = invoker
        invoker.on_unheeded = lambda: self.stop("a call goes on after its timeout; this worker has to be replaced")
        self._queue: deque[Held] = deque()
        self._work = asyncio.Event()
        self._stopping = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._gate = Gate()
        self._running: dict[int, asyncio.Task[Any]] = {}

    async def serve(self, connection: Connection, grace_s: float) -> None:
        """Pull and run until told to stop; then finish what is in hand within `grace_s`, hand back the rest, and
        return.
        """
        assignment = self.assignment
        async with open_pull(connection, assignment.stream, assignment.consumer, self._take, self._gone) as pull:
            self.pull = pull
            self.settler = Settler(connection, pull, assignment, self.identity)
            self.reporter = Reporter(connection, assignment, self.identity, self)
            pull.want(assignment.concurrency)
            await connection.subscribe(assignment.control_subject(self.identity.uid), self._on_control)
            slots = [asyncio.ensure_future(self._slot()) for _ in range(assignment.concurrency)]
            others = [asyncio.ensure_future(self._renew_leases()), asyncio.ensure_future(self.reporter.run())]
            self.reporter.state = "running"
            try:
                await self._wait_stop([*slots, *others])
                await self._leave(grace_s)
            finally:
                self._invoker.is_interrupted = True
                for task in (*slots, *others):
                    task.cancel()
                await asyncio.wait([*slots, *others])
                await self.reporter.send("stopping")

    def stop(self, reason: str) -> None:
        if not self._stopping.is_set():
            self.stop_reason = reason
            self._stopping.set()

    async def _wait_stop(self, tasks: list[asyncio.Task[None]]) -> None:
        """Return when told to stop; raise what ended one of our own tasks, which never end by themselves."""
        waiting = asyncio.ensure_future(self._stopping.wait())
        try:
            done, _ = await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {waiting}:
                task.result()
                raise AssertionError("a worker's own task ended by itself")
        finally:
            waiting.cancel()

    # -- taking

    def _take(self, delivery: Delivery) -> None:
        held = Held(delivery=delivery, lease=Lease(asyncio.get_running_loop().time()), pulled_ns=time.time_ns())
        self.held[delivery.consumer_sequence] = held
        self._empty.clear()
        self._queue.append(held)
        self._work.set()
        self.reporter.pending = delivery.pending
        self.reporter.changed()

    def _gone(self, error: BusError) -> None:
        self.stop(f"the consumer is gone: {error}")

    def _on_control(self, message: Message) -> None:
        if message.data == FENCE and self.reporter.state == "running":
            self.reporter.state = "fencing"
            self._fencing = asyncio.ensure_future(self._fence())

    async def _fence(self) -> None:
        """Ask for no more, run what crossed, and say so when nothing is left."""
        await self.pull.fence()
        await self._empty.wait()
        await self.reporter.send("fenced")

    def _release(self, held: Held) -> None:
        self.held.pop(held.delivery.consumer_sequence, None)
        if not self.held:
            self._empty.set()
        self._ask()
        self.reporter.changed()

    def _ask(self) -> None:
        """Have as many deliveries asked for as could start at once."""
        if self.reporter.state == "running" and not self._stopping.is_set():
            is_free = self._gate.is_free
            self.pull.want(self.assignment.concurrency - len(self.held) if is_free else 0)

    # -- running

    async def _slot(self) -> None:
        while True:
            while not self._queue:
                self._work.clear()
                await self._work.wait()
            held = self._queue.popleft()
            self.busy += 1
            self._running[held.delivery.consumer_sequence] = task = asyncio.ensure_future(self._handle(held))
            try:
                # A task of its own, so that an interruption ends the call and not the slot.
                await asyncio.wait({task})
                if not task.cancelled() and task.exception() is not None:
                    log.error("delivery left to its lease", exc_info=task.exception(), extra=_fields(held))
            finally:
                task.cancel()
                self.busy -= 1
                self._running.pop(held.delivery.consumer_sequence, None)
                self._release(held)

    async def _handle(self, held: Held) -> None:
        try:
            await self._run_and_settle(held)
        except Lost as error:
            log.warning("delivery lost: %s", error, extra=_fields(held))
        except asyncio.CancelledError:
            if held.finished_ns:  # its call had ended: what is on record by now is true, and its lease does the rest
                log.warning("delivery left to its lease: leaving before it was settled", extra=_fields(held))
                raise
            held.finished_ns = time.time_ns()
            await asyncio.shield(self._given_back(held, was_running=held.started_ns > 0))
            raise
        except BusError as error:
            # It stays unsettled: its lease ends, and it comes again.
            log.error("delivery not settled: %s", error, extra=_fields(held))

    async def _run_and_settle(self, held: Held) -> None:
        delivery = held.delivery
        try:
            held.event = event_of(
                delivery.subject, delivery.headers, delivery.data,
                stream=delivery.stream, sequence=delivery.sequence, stored_at=delivery.stored_at,
            )  # fmt: skip
        except InvalidEvent as error:
            await self.settler.dead(held, "undecodable", str(error), ())
            return
        await self.settler.read_history(held)
        start = start_of(self.assignment.delivery, held.history)
        held.attempt = start.attempt
        if start.action == "dead":
            kind = "worker-died" if start.is_death else "attempts-exhausted"
            await self.settler.dead(held, kind, start.reason, held.history)  # type: ignore[arg-type]
            self.reporter.failed += 1
            return
        async with self._gate.enter(alone=start.action == "run-alone", on_alone=self._ask) as is_inside:
            if not is_inside:
                await self._given_back(held, was_running=False, delay_s=NEIGHBOUR_DELAY_S)
                return
            if delivery.count > 1:
                await self.settler.record_began(held)
            held.started_ns = time.time_ns()
            call = await self._invoker.call(held.event)
            held.finished_ns = time.time_ns()
        self.reporter.took((held.finished_ns - held.started_ns) / 1e9)
        await self._settle(held, call)
        if call.is_abandoned:
            self.stop("a call that overran its timeout cannot be stopped; this worker has to be replaced")

    async def _settle(self, held: Held, call: Call) -> None:
        if call.ended == "succeeded":
            try:
                await self.settler.succeed(held, call.result, call.content_type)
                self.reporter.handled += 1
                return
            except PayloadTooLarge as error:
                call = Call(ended="rejected", error=f"the result cannot be stored: {error}")
        self.reporter.failed += 1
        log.warning("call %s: %s", call.ended, call.error, extra=_fields(held))
        if call.traceback:
            log.warning("%s", call.traceback.rstrip())
        attempt = self.settler.attempt_of(
            held, "failed" if call.ended in {"retry-later", "succeeded"} else call.ended, call.error, call.traceback  # type: ignore[arg-type]
        )  # fmt: skip
        settlement = settlement_of(
            self.assignment.delivery, held.attempt, call.ended, random.random(), error=call.error, after_s=call.after_s  # noqa: S311 - jitter
        )  # fmt: skip
        if settlement.action == "retry":
            await self.settler.retry(held, attempt, settlement.delay_s)
        else:
            kind = "rejected" if call.ended == "rejected" else "attempts-exhausted"
            await self.settler.dead(held, kind, settlement.reason, (*held.history, attempt))  # type: ignore[arg-type]

    # -- holding

    async def _renew_leases(self) -> None:
        loop = asyncio.get_running_loop()
        lease_s = self.assignment.lease_s
        while True:
            await asyncio.sleep(lease_s * RENEW_SHARE)
            now_s = loop.time()
            due = [held for held in self.held.values() if is_held(held.lease, now_s, lease_s)]
            if not due:
                continue
            try:
                await self.pull.extend(held.delivery for held in due)
            except BrokerUnavailable as error:
                log.info("leases not renewed: %s", error)
                continue
            for held in due:
                renew(held.lease, now_s, lease_s)

    # -- leaving

    async def _leave(self, grace_s: float) -> None:
        log.info("leaving: %s", self.stop_reason, extra={"held": len(self.held)})
        self.reporter.state = "stopping"
        deadline_s = asyncio.get_running_loop().time() + grace_s
        await self.pull.fence()
        while self._queue:
            held = self._queue.popleft()
            await self._given_back(held, was_running=False)
            self._release(held)
        try:
            async with asyncio.timeout_at(deadline_s):
                await self._empty.wait()
        except TimeoutError:
            log.warning("calls interrupted after the grace period", extra={"calls": len(self._running)})
            self._invoker.is_interrupted = True
            for task in list(self._running.values()):
                task.cancel()
            if self._running:
                await asyncio.wait(list(self._running.values()), timeout=2)

    async def _given_back(self, held: Held, *, was_running: bool, delay_s: float = HAND_BACK_DELAY_S) -> None:
        try:
            await self.settler.hand_back(held, "interrupted" if was_running else "handed-back", delay_s)
        except (Lost, BusError) as error:
            log.warning("delivery left to its lease: %s", error, extra=_fields(held))


def _fields(held: Held) -> dict[str, object]:
    event_id = held.event.id if held.event is not None else f"{held.delivery.stream}:{held.delivery.sequence}"
    return {"event_id": event_id, "attempt": held.attempt}
