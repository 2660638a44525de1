"""What `kubectl describe function` tells: one Kubernetes Event for each decision that changed something.

Each kind of event has a function here, with a stable reason. The same sentence about the same object is one Event with
a count. Events are for people: if they cannot be written they are dropped, and nothing waits for them.
"""

import hashlib
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import anyio
from msgspec import Struct

from bus.cluster.connection import Cluster
from bus.cluster.errors import AlreadyExists, ClusterError, NotFound
from bus.cluster.resources import EVENTS
from bus.core.scaling import Decision
from bus.core.starts import Starts
from bus.functions.model import API_VERSION, Metadata

log = logging.getLogger(__name__)

COMPONENT = "nodeless-dispatcher"
WAITING_MAX = 512
"""Events that may wait to be written; the oldest goes first. [events]"""
KNOWN_MAX = 4096
MESSAGE_CHARACTERS_MAX = 1024


class Told(Struct, frozen=True):
    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def subscribed(consumer: str, patterns: tuple[str, ...]) -> Told:
    return Told("Normal", "Subscribed", f"Consumer {consumer} selects {', '.join(patterns)}")


def scaled_up(before: int, after: int, decision: Decision) -> Told:
    return Told("Normal", "ScaledUp", f"{before} -> {after} workers: {decision.reason}")


def scaled_down(before: int, after: int, decision: Decision) -> Told:
    return Told("Normal", "ScaledDown", f"{before} -> {after} workers: {decision.reason}")


def start_failed(starts: Starts) -> Told:
    return Told("Warning", starts.reason, starts.message)


def invalid(fault: str) -> Told:
    return Told("Warning", "InvalidSpec", fault)


def not_subscribed(reason: str, message: str) -> Told:
    return Told("Warning", reason, message)


CALM_S = 0.25
"""An Event is written this long after it happened: the pod that it tells of has the machine first."""


class EventRecorder:
    """Use `open_recorder`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._waiting: deque[tuple[Metadata, Told, str]] = deque(maxlen=WAITING_MAX)
        self._counts: dict[str, int] = {}
        self._changed = anyio.Event()

    def tell(self, about: Metadata, told: Told) -> None:
        """Have the event written soon; never waits."""
        self._waiting.append((about, told, datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")))
        self._changed.set()

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed = anyio.Event()
            await anyio.sleep(CALM_S)
            while self._waiting:
                about, told, moment = self._waiting.popleft()
                try:
                    await self._write(about, told, moment)
                except ClusterError as error:
                    log.info("event not written: %s", error, extra={"function": about.name})

    async def _write(self, about: Metadata, told: Told, moment: str) -> None:
        message = told.message[:MESSAGE_CHARACTERS_MAX]
        digest = hashlib.sha256(f"{about.uid}/{told.reason}/{message}".encode()).hexdigest()[:16]
        name = f"{about.name}.{digest}"
        count = self._counts.get(name, 0) + 1
        if count > 1:
            try:
                patch = {"count": count, "lastTimestamp": moment}
                await self._cluster.patch(EVENTS, name, patch, about.namespace)
                self._counts[name] = count
                return
            except NotFound:
                count = 1  # the API server keeps events for an hour
        try:
            await self._cluster.create(
                EVENTS, _event(name, about, told.type, told.reason, message, moment), about.namespace
            )
        except AlreadyExists:
            log.debug("event written before a restart of ours", extra={"event": name})
        while len(self._counts) >= KNOWN_MAX:
            self._counts.pop(next(iter(self._counts)))
        self._counts[name] = count


def _event(name: str, about: Metadata, type_: str, reason: str, message: str, moment: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": about.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": "Function",
            "name": about.name,
            "namespace": about.namespace,
            "uid": about.uid,
        },
        "type": type_,
        "reason": reason,
        "message": message,
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
    }


@asynccontextmanager
async def open_recorder(cluster: Cluster) -> AsyncIterator[EventRecorder]:
    recorder = EventRecorder(cluster)
    async with anyio.create_task_group() as group:
        group.start_soon(recorder._run)
        try:
            yield recorder
        finally:
            group.cancel_scope.cancel()
