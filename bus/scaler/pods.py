"""Make and delete worker pods and the Secret with their credentials. What to make is decided elsewhere."""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import anyio

from bus.cluster.connection import Cluster
from bus.cluster.errors import AlreadyExists, Conflict, NotFound
from bus.cluster.resources import PODS, SECRETS
from bus.core.assignment import Assignment
from bus.core.credentials import Permissions, worker_permissions
from bus.functions.model import Function
from bus.scaler.manifest import WorkerSettings, credentials_secret, owner_uid, pod_name, worker_pod

log = logging.getLogger(__name__)

FIELD_MANAGER = "nodeless-dispatcher"
CALLS_MAX = 64
"""Requests for pods under way at once, of all functions together."""


class Scaler:
    def __init__(
        self, cluster: Cluster, settings: WorkerSettings, credentials_of: Callable[[Assignment], str] | None
    ) -> None:
        """`credentials_of` returns the text of a credentials file for a function's workers; None where the broker asks
        for none.
        """
        self._cluster, self._settings, self._credentials_of = cluster, settings, credentials_of
        self._applied: dict[str, Permissions] = {}  # by Function UID: the rights that its Secret holds
        self._calls = anyio.CapacityLimiter(CALLS_MAX)

    async def create(self, function: Function, ordinal: int, woken_at: str) -> dict[str, Any]:
        """Return the pod of that ordinal, made now or found to be there already.

        Raises `AlreadyExists` where a pod that is not this function's has the name, and any other `ClusterError`.
        """
        body = worker_pod(function, ordinal, self._settings, woken_at)
        namespace = function.metadata.namespace
        async with self._calls:
            try:
                return await self._cluster.create(PODS, body, namespace)
            except AlreadyExists:
                try:
                    there = await self._cluster.get(PODS, pod_name(function, ordinal), namespace)
                except NotFound:  # it was about to go
                    return await self._cluster.create(PODS, body, namespace)
                if owner_uid(there) != function.metadata.uid:
                    raise
                return there

    async def delete(self, pod: Mapping[str, Any]) -> None:
        """Delete this very pod, with its own grace period; that it is gone is success."""
        metadata = pod["metadata"]
        async with self._calls:
            # Conflict: another pod has the name by now.
            with suppress(NotFound, Conflict):
                await self._cluster.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])

    async def ensure_credentials(self, function: Function) -> bool:
        """Make the Secret hold credentials with the rights that the function's workers need now; say whether that
        took anything.

        What a Secret holds is never read: after a restart the credentials are minted anew, with the same rights.
        """
        if self._credentials_of is None:
            return False
        assignment = function.assignment()
        permissions = worker_permissions(assignment)
        if self._applied.get(function.metadata.uid) == permissions:
            return False
        secret = credentials_secret(function, self._credentials_of(assignment))
        await self._cluster.apply(SECRETS, secret, field_manager=FIELD_MANAGER, namespace=function.metadata.namespace)
        self._applied[function.metadata.uid] = permissions
        return True

    def forget(self, uid: str) -> None:
        """The function goes. Its Secret is the garbage collector's to delete: to do it here would take the right to delete
        every Secret of the cluster.
        """
        self._applied.pop(uid, None)
