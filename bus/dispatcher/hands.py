"""Do to the workers of one function what was decided, and let the tracker know at once."""

import anyio
from msgspec import Struct

from bus.cluster.errors import ClusterError
from bus.core.reports import FENCE
from bus.dispatcher.shared import Shared
from bus.dispatcher.tracking import WorkerTracker
from bus.functions.model import Function


class Made(Struct, frozen=True):
    """What came of making pods."""

    count: int
    refusal: str
    """Why the API server will not have one; empty where it has all."""


class Hands:
    def __init__(self, shared: Shared, tracker: WorkerTracker) -> None:
        self._shared, self._tracker = shared, tracker

    async def create(self, function: Function, ordinals: tuple[int, ...], woken_at: str) -> Made:
        """Make these pods, all at once. Raises `ClusterUnavailable` where it is not known what came of one: to ask again
        for the same name cannot double it.
        """
        errors: list[ClusterError] = []

        async def create(ordinal: int) -> None:
            try:
                pod = await self._shared.scaler.create(function, ordinal, woken_at)
                self._tracker.on_pod(pod, anyio.current_time(), is_watched=False)
            except ClusterError as error:
                errors.append(error)

        if len(ordinals) == 1:  # the cold start: nothing between the decision and the request
            await create(ordinals[0])
        else:
            async with anyio.create_task_group() as group:
                for ordinal in ordinals:
                    group.start_soon(create, ordinal)
        for error in errors:
            if error.retryable:
                raise error
        return Made(len(ordinals) - len(errors), errors[0].message if errors else "")

    async def fence(self, function: Function, uids: tuple[str, ...]) -> None:
        """Ask these workers to pull no more. Nobody confirms it: they report when they are fenced."""
        assignment = function.assignment()
        for uid in uids:
            await self._shared.connection.send(assignment.control_subject(uid), FENCE)
            self._tracker.on_fence_asked(uid, anyio.current_time())

    async def delete(self, uids: tuple[str, ...]) -> None:
        """Ask for the deletion of these pods; raise the first error when all have been tried."""
        errors: list[ClusterError] = []

        async def delete(uid: str) -> None:
            pod = self._tracker.pod(uid)
            if pod is None:
                return
            try:
                await self._shared.scaler.delete(pod)
                self._tracker.on_deleted(uid)
            except ClusterError as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            for uid in uids:
                group.start_soon(delete, uid)
        if errors:
            raise errors[0]
