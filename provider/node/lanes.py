"""Serial work for each key, different keys at once, and requests to look again merged into one.

A lane is a task that lives while there is something to do for its key: it works, waits until it is asked to look again
or until the time that the work named, and ends when neither is to come. A failure is logged, counted and tried again
with a back-off of the lane's own; other lanes do not notice.
"""

import logging
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup

from bus.cluster.errors import ClusterError
from provider.errors import ProviderError

log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 10.0

Work = Callable[[str], Awaitable[float | None]]
"""Called with the key; returns in how many seconds to look again by itself, or None."""


class Lanes:
    """Owned by the task group that runs its lanes."""

    def __init__(self, group: TaskGroup, work: Work) -> None:
        self._group, self._work = group, work
        self._asked: dict[str, anyio.Event] = {}
        self.failures = 0
        """How often work has failed since the start."""

    def look(self, key: str) -> None:
        """Have `key` looked at, after what its lane does at the moment. Does not wait."""
        asked = self._asked.get(key)
        if asked is not None:
            asked.set()
            return
        self._asked[key] = anyio.Event()
        self._group.start_soon(self._run, key)

    async def _run(self, key: str) -> None:
        failures = 0
        while True:
            self._asked[key] = anyio.Event()
            try:
                delay_s = await self._work(key)
                failures = 0
            except Exception as error:
                failures += 1
                self.failures += 1
                delay_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(failures - 1, 16))
                fields = {"pod_uid": key, "failures": failures, "retry_s": delay_s}
                if isinstance(error, ClusterError | ProviderError) and error.retryable:
                    log.info("pod not settled: %s", error, extra=fields)
                else:
                    log.exception("pod not settled", extra=fields)
            if self._asked[key].is_set():
                continue
            if delay_s is None:
                # No await between this check and the removal: a request in between cannot be lost.
                del self._asked[key]
                return
            with anyio.move_on_after(delay_s):
                await self._asked[key].wait()
