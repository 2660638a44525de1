"""All functions: who gets which news, and that each is looked at from time to time whatever the news.

Tasks, all in one group: the informers of functions and pods, a unit and its status writer for each function, the
cross-check, and one that puts things right after a reconnect.
"""

import logging
import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup

from bus.cluster.informer import Change, Informer, open_informer
from bus.cluster.resources import FUNCTIONS, PODS
from bus.core.assignment import FUNCTION_LABEL
from bus.core.errors import BusError
from bus.core.reports import WorkerReport
from bus.dispatcher.shared import Shared
from bus.dispatcher.signal import Signal
from bus.dispatcher.unit import FunctionUnit
from bus.jetstream.connection import Message
from bus.jetstream.topology import ensure_streams
from bus.scaler.manifest import owner_uid

log = logging.getLogger(__name__)

CROSS_CHECK_S = 15.0
"""How often each function's consumer is read whatever the signals say."""
CROSS_CHECKS_PER_S_MAX = 50.0
JITTER = (0.8, 1.2)
RETRY_S = 1.0

_reports = msgspec.json.Decoder(WorkerReport)


class Dispatcher:
    """Use `open_dispatcher`."""

    def __init__(self, shared: Shared, replicas: int, group: TaskGroup) -> None:
        self._shared, self._replicas, self._group = shared, replicas, group
        self._units: dict[str, FunctionUnit] = {}  # by UID
        self._check_due_s: dict[str, float] = {}  # the same
        self._by_key: dict[str, FunctionUnit] = {}  # the newest of that name
        self._pods: Informer | None = None
        self._functions: Informer | None = None
        self._has_streams = False
        self._stream_fault = ""
        self._reconnected = Signal()

    def reason_not_ready(self) -> str:
        """Return what is missing, or an empty text."""
        if not self._shared.connection.is_connected:
            return f"no connection to NATS at {self._shared.connection.url}"
        if not self._has_streams:
            return f"the streams are not there yet {self._stream_fault}".rstrip()
        if self._pods is None or not self._pods.is_synced:
            return "the list of pods is not complete"
        if self._functions is None or not self._functions.is_synced:
            return "the list of functions is not complete"
        return ""

    async def run(self) -> None:
        """Work until cancelled."""
        connection = self._shared.connection
        connection.on_reconnect(self._reconnected.set)
        await self._ensure_streams()
        await connection.subscribe("reports.>", self._on_report)
        async with open_informer(
            self._shared.cluster, PODS, label_selector=FUNCTION_LABEL, on_change=self._on_pod
        ) as pods:
            self._pods = pods
            await pods.wait_synced(math.inf)  # no decision without knowing which workers there are
            async with open_informer(self._shared.cluster, FUNCTIONS, on_change=self._on_function) as functions:
                self._functions = functions
                self._group.start_soon(self._cross_check)
                while True:
                    await self._reconnected.wait()
                    self._has_streams = False
                    await self._ensure_streams()
                    for unit in list(self._units.values()):
                        unit.on_reconnect()

    async def _ensure_streams(self) -> None:
        while True:
            try:
                for line in await ensure_streams(self._shared.connection, self._replicas):
                    log.info("broker changed", extra={"change": line})
                self._has_streams, self._stream_fault = True, ""
                return
            except BusError as error:
                if str(error) != self._stream_fault:
                    log.log(
                        logging.INFO if error.retryable else logging.ERROR,
                        "the streams cannot be made yet: %s",
                        error,
                    )
                self._stream_fault = str(error)
                await anyio.sleep(RETRY_S)

    # -- news

    def _on_function(self, change: Change) -> None:
        metadata = change.object["metadata"]
        unit = self._units.get(metadata["uid"])
        if change.kind == "deleted":
            if unit is not None:
                unit.on_gone()
        elif unit is not None:
            unit.on_object(change.object)
        else:
            self._begin(change.object)

    def _begin(self, item: dict[str, Any]) -> None:
        unit = FunctionUnit(self._shared, item)
        predecessor = self._by_key.get(unit.key)
        self._units[unit.uid] = self._by_key[unit.key] = unit
        self._check_due_s[unit.uid] = _next_check_s()
        assert self._pods is not None
        for pod in self._pods.objects.values():
            if owner_uid(pod) == unit.uid:
                unit.on_pod(Change("added", pod, None))
        self._group.start_soon(self._run, unit, predecessor.gone if predecessor is not None else None)

    async def _run(self, unit: FunctionUnit, predecessor: anyio.Event | None) -> None:
        try:
            await unit.run(predecessor)
        finally:
            self._units.pop(unit.uid, None)
            self._check_due_s.pop(unit.uid, None)
            if self._by_key.get(unit.key) is unit:
                del self._by_key[unit.key]

    def _on_pod(self, change: Change) -> None:
        unit = self._units.get(owner_uid(change.object) or "")
        if unit is not None:
            unit.on_pod(change)

    def _on_report(self, message: Message) -> None:
        parts = message.subject.split(".")
        # The subject is what a worker's user may publish on; what it says of itself is not asked.
        unit = self._by_key.get(f"{parts[1]}/{parts[2]}") if len(parts) == 4 else None
        if unit is None:
            return
        try:
            report = _reports.decode(message.data)
        except msgspec.DecodeError as error:
            log.warning("unreadable report: %s", error, extra={"subject": message.subject})
            return
        if report.worker == parts[3]:
            unit.on_report(report)

    # -- from time to time

    async def _cross_check(self) -> None:
        """Have each function's consumer read every `CROSS_CHECK_S`; a new function's too, and not all at once."""
        while True:
            uid = min(self._check_due_s, key=self._check_due_s.__getitem__, default=None)
            left_s = self._check_due_s[uid] - anyio.current_time() if uid is not None else CROSS_CHECK_S
            if uid is None or left_s > 0:
                # Whoever comes meanwhile is due no sooner than this.
                await anyio.sleep(min(left_s, CROSS_CHECK_S * JITTER[0]))
                continue
            self._check_due_s[uid] = _next_check_s()
            self._units[uid].request_check()
            await anyio.sleep(1 / CROSS_CHECKS_PER_S_MAX)


def _next_check_s() -> float:
    return anyio.current_time() + CROSS_CHECK_S * random.uniform(*JITTER)  # noqa: S311 - jitter


@asynccontextmanager
async def open_dispatcher(shared: Shared, replicas: int) -> AsyncIterator[Dispatcher]:
    """Own the dispatcher's tasks; they end with the block."""
    async with anyio.create_task_group() as group:
        dispatcher = Dispatcher(shared, replicas, group)
        group.start_soon(dispatcher.run)
        try:
            yield dispatcher
        finally:
            group.cancel_scope.cancel()
