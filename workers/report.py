"""What this worker tells about itself: on change, a few times a second at most, and at least every few seconds."""

import asyncio
import logging
from typing import Any, Protocol

import msgspec

from bus.core.assignment import Assignment
from bus.core.errors import BusError
from bus.core.reports import REPORT_INTERVAL_S, WorkerReport, WorkerState
from bus.jetstream.connection import Connection
from workers.settle import Identity

log = logging.getLogger(__name__)

CHANGE_INTERVAL_S = 0.05
"""Shortest time between two reports."""
SMOOTHING = 0.2
"""Weight of the newest call in the smoothed duration."""


class Hands(Protocol):
    """What a reporter looks at: deliveries in hand and calls that run."""

    held: dict[int, Any]
    busy: int


class Reporter:
    def __init__(self, connection: Connection, assignment: Assignment, identity: Identity, hands: Hands) -> None:
        self._connection, self._assignment, self._identity, self._hands = connection, assignment, identity, hands
        self._subject = assignment.report_subject(identity.uid)
        self._changed = asyncio.Event()
        self._idle_since_s = asyncio.get_running_loop().time()
        self._service_s = 0.0
        self.state: WorkerState = "starting"
        self.pending = 0
        self.handled = 0
        self.failed = 0

    def changed(self) -> None:
        """Something a report tells has changed."""
        if self._hands.held:
            self._idle_since_s = 0.0
        elif not self._idle_since_s:
            self._idle_since_s = asyncio.get_running_loop().time()
        self._changed.set()

    def took(self, seconds: float) -> None:
        self._service_s = seconds if not self._service_s else self._service_s + SMOOTHING * (seconds - self._service_s)

    async def run(self) -> None:
        while True:
            await self.send()
            await asyncio.sleep(CHANGE_INTERVAL_S)
            try:
                async with asyncio.timeout(REPORT_INTERVAL_S - CHANGE_INTERVAL_S):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def send(self, state: WorkerState | None = None) -> None:
        """Report now; a report that cannot be sent is dropped, the next one says more."""
        if state is not None:
            self.state = state
        self._changed.clear()
        idle_s = asyncio.get_running_loop().time() - self._idle_since_s if self._idle_since_s else 0.0
        report = WorkerReport(
            worker=self._identity.uid,
            pod=self._identity.pod,
            version=self._assignment.version,
            state=self.state,
            concurrency=self._assignment.concurrency,
            busy=self._hands.busy,
            held=len(self._hands.held),
            pending=self.pending,
            service_s=self._service_s,
            handled=self.handled,
            failed=self.failed,
            idle_s=0.0 if self._hands.held else idle_s,
        )
        try:
            await self._connection.send(self._subject, msgspec.json.encode(report))
        except BusError as error:
            log.debug("report dropped: %s", error)
