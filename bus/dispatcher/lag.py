"""The events of one function that wait or are in flight: what the broker said last, corrected by what was heard since."""

import time
from datetime import UTC, datetime
from typing import NamedTuple

import anyio

from bus.core.demand import SERVING, Demand, Worker, demand_of, held_by, is_doubtful
from bus.core.reports import WorkerReport
from bus.core.topology import EVENTS
from bus.dispatcher.retries import Retries
from bus.jetstream.connection import Connection
from bus.jetstream.topology import consumer_state

DOUBT_S = 1.0
"""How often the broker is asked while only it knows how many events wait."""
SLEPT_S = 1.0
"""When it is asked once more after the last worker has gone. The broker counts a stored event for a consumer a moment after
it has acknowledged it: one stored before we listened may have been missing in the count."""
ORPHANS_S = 2.0
"""How often it is asked while there are orphaned events and workers that may get them."""


class Woken(NamedTuple):
    """When a wake signal came, on both clocks."""

    at: str
    """RFC 3339, UTC."""
    at_s: float


class Lag:
    def __init__(self, namespace: str, function: str, consumer: str, settled_to: int | None) -> None:
        self._consumer = consumer
        self.settled_to = settled_to
        """All events up to this sequence were settled when the broker was asked last; None before a first time ever."""
        self._retries = Retries(namespace, function, EVENTS)
        self._pending = 0
        self._unsettled, self._held_then = 0, 0
        self._read_s = 0.0
        self._slept_s: float | None = None
        self.woken: Woken | None = None
        """The first signal for which no worker has been made yet."""

    def on_wake(self) -> None:
        if self.woken is None:
            self.woken = Woken(datetime.now(UTC).isoformat(timespec="microseconds"), anyio.current_time())

    def on_report(self, before: WorkerReport | None, report: WorkerReport) -> None:
        known = (before.handled, before.failed, before.held) if before is not None else (0, 0, 0)
        if known != (report.handled, report.failed, report.held):
            # It rode on a delivery that came since the last report: it is news.
            self._pending = report.pending

    def on_slept(self) -> None:
        """The last worker has gone."""
        self._slept_s = anyio.current_time()

    def on_reconnect(self) -> None:
        self._retries.forget()

    async def read(self, connection: Connection, workers: tuple[Worker, ...]) -> None:
        """Ask the broker, and for the records of retries if somebody waits for one. Raises `NotFound` where the consumer
        is gone.
        """
        now_s = anyio.current_time()
        state = await consumer_state(connection, EVENTS, self._consumer)
        held = held_by(workers, now_s)
        if state.ack_pending > held:
            await self._retries.read(connection, time.time())
        self._pending = state.pending
        self._unsettled, self._held_then, self.settled_to = state.ack_pending, held, state.ack_floor_sequence
        self._read_s = now_s
        if self._slept_s is not None and now_s - self._slept_s >= SLEPT_S:
            self._slept_s = None

    def demand_at(self, now_s: float, workers: tuple[Worker, ...], *, is_checked: bool = False) -> Demand:
        return demand_of(
            pending=self._pending,
            unsettled=self._unsettled,
            # Who holds more by now may hold what was orphaned: to count that twice would make one worker too many.
            held=max(self._held_then, held_by(workers, now_s)),
            due_s=self._retries.due_s(time.time(), now_s),
            settled_to=self.settled_to or 0,
            now_s=now_s,
            is_woken=self.woken is not None,
            is_checked=is_checked,
        )

    def read_again_s(self, now_s: float, workers: tuple[Worker, ...]) -> float | None:
        """Return after how many seconds the broker should be asked again because what is known grows doubtful."""
        if is_doubtful(self._pending, workers, now_s):
            return max(0.0, self._read_s + DOUBT_S - now_s)
        is_anybody_serving = any(worker.stage_at(now_s) in SERVING for worker in workers)
        if is_anybody_serving and self.demand_at(now_s, workers).orphaned:
            return max(0.0, self._read_s + ORPHANS_S - now_s)
        if self._slept_s is not None:
            return max(0.0, self._slept_s + SLEPT_S - now_s)
        return None
