"""Write one function's status: on change only, faults and subscriptions at once, numbers a few times a second at most."""

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import anyio

from bus.cluster.connection import Cluster
from bus.cluster.errors import ClusterError, Conflict, Invalid, NotFound
from bus.cluster.resources import FUNCTIONS
from bus.core.errors import BusError
from bus.dispatcher.signal import Signal
from bus.functions.model import Metadata
from bus.functions.status import Observed, status_of

log = logging.getLogger(__name__)

NUMBERS_S = 0.5
"""Shortest time between two writes that change no condition."""
NUMBERS_TOGETHER_S = 0.2
"""What changed is told this long after it did. The start of a worker has the machine first: at the API server, a status
costs as much as a pod."""
RETRY_S = 1.0


class StatusWriter:
    def __init__(
        self,
        cluster: Cluster,
        metadata: Metadata,
        item: dict[str, Any],
        observed: Callable[[], Observed],
        count_dead: Callable[[], Awaitable[float | None]],
    ) -> None:
        self._cluster, self._metadata = cluster, metadata
        self._observed, self._count_dead = observed, count_dead
        self._written: dict[str, Any] = item.get("status") or {}
        self._written_s = float("-inf")
        self._signal = Signal()

    def changed(self) -> None:
        self._signal.set()

    def changed_somewhat(self) -> None:
        """Workers or numbers have changed: that may wait a moment for more of its kind."""
        self._signal.set_within(NUMBERS_TOGETHER_S)

    async def run(self) -> None:
        wait_s: float | None = 0.0
        while True:
            await self._signal.wait(wait_s)
            try:
                wait_s = await self._count_dead()
                left_s = await self._write()
                if left_s is not None:
                    wait_s = left_s if wait_s is None else min(wait_s, left_s)
            except NotFound:
                wait_s = None  # the function is gone
            except (ClusterError, BusError) as error:
                log.info("status not written: %s", error, extra={"function": self._metadata.name})
                wait_s = RETRY_S
            except Exception:
                log.exception("unexpected; the status is not written", extra={"function": self._metadata.name})
                wait_s = RETRY_S

    async def _write(self) -> float | None:
        """Write what differs; return the seconds after which what was held back may be written."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        before = self._written.get("conditions", ())
        status = status_of(self._observed(), before, now)
        if status == self._written:
            return None
        left_s = self._written_s + NUMBERS_S - anyio.current_time()
        if left_s > 0 and status["conditions"] == before:
            return left_s
        self._written_s = anyio.current_time()
        patch = {"metadata": {"uid": self._metadata.uid}, "status": status}
        try:
            await self._cluster.patch(
                FUNCTIONS, self._metadata.name, patch, self._metadata.namespace, subresource="status"
            )
        except (Conflict, Invalid) as error:
            # Another function has the name by now, or somebody wrote in the same moment.
            log.info("status refused: %s", error, extra={"function": self._metadata.name})
            return RETRY_S
        self._written = status
        return None
