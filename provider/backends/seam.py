"""The seam between the node and what really runs pods.

Every call is idempotent and keyed by pod UID, never by name. What happens later is told by `observations()`; a call
never calls back.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from msgspec import Struct

from provider.core.launch import PodLaunch, PodObservation


class LogQuery(Struct, frozen=True, kw_only=True):
    """Options of `kubectl logs`, checked."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    since_time: str = ""
    """RFC 3339; only lines from then on. Empty: all."""
    limit_bytes: int | None = None


class Backend(Protocol):
    """Use as `async with`: entering adopts what already runs, leaving lets it run on."""

    @property
    def name(self) -> str:
        """In container ids, Events and metrics: `process`, `memory`."""

    def check(self, pod: PodLaunch) -> None:
        """Raise `PodRejected` where this pod can never run here, with what was asked and what is possible."""

    async def start(self, pod: PodLaunch) -> None:
        """Have each container of `pod` with that restart number started, unless it was: running or ended, it is not
        started twice, not even after a crash of this process in the middle.

        Raises `PodRejected`, `CapacityExceeded`, `BackendUnavailable` (nothing was started; ask again later).
        """

    async def stop(self, uid: str, grace_s: float) -> None:
        """Ask every container to end (SIGTERM), and end them after `grace_s` (SIGKILL); returns at once.

        Called again with a shorter grace it shortens the time that is left. Raises `PodNotFound`.
        """

    async def forget(self, uid: str) -> None:
        """Remove what is left of an ended pod: its files and records. A pod that still runs is left alone."""

    def pods(self) -> Sequence[PodObservation]:
        """Return everything that is there, complete: after entering, what was adopted is in it."""

    def observations(self) -> AsyncIterator[PodObservation]:
        """Yield the state of a pod whenever it has changed. One reader; what is in `pods()` at entry is not repeated."""

    def logs(self, uid: str, container: str, query: LogQuery) -> AsyncIterator[bytes]:
        """Yield parts of a container's log, as `query` wants it; ends at its end, or with the container when followed.

        Raises `PodNotFound` before the first part.
        """
