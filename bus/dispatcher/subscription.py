"""What a function needs before its first event: the finalizer, the consumer, the credentials of its workers.

In this order: a consumer without a finalizer could outlive its function, and a pod without its Secret does not start.
"""

import logging
from typing import Any

from bus.cluster.errors import ClusterError, Invalid, NotFound
from bus.cluster.resources import FUNCTIONS
from bus.core.errors import BusError, Refused, StreamMismatch
from bus.core.topology import EVENTS, ConsumerSpec
from bus.dispatcher.shared import Shared
from bus.functions.model import FINALIZER, Function, Metadata
from bus.jetstream.topology import delete_consumer, ensure_consumer
from bus.scaler import events

log = logging.getLogger(__name__)

FINALIZER_ATTEMPTS = 5
"""An object that is written all the time is read again so often."""


class Subscription:
    def __init__(self, shared: Shared, metadata: Metadata, consumer: str) -> None:
        self._shared, self._metadata, self.consumer = shared, metadata, consumer
        self.fault: tuple[str, str] | None = ("Pending", "the consumer is being made")
        """(reason, message) of what is in the way; None when all is in place."""
        self.generation = 0
        """The newest one for which it is settled whether it can be subscribed."""
        self._is_sure = False

    def is_due(self, generation: int) -> bool:
        return self.generation != generation or not self._is_sure or self.fault is not None

    def doubt(self) -> None:
        """The broker may have lost the consumer."""
        self._is_sure = False

    async def ensure(self, function: Function, item: dict[str, Any], settled_to: int | None) -> bool:
        """Make it all be there; say whether that changed the consumer. Raises `BusError` and `ClusterError`.

        `settled_to`: how far the function had come, where a consumer of it was seen before.
        """
        generation = function.metadata.generation
        try:
            await self._ensure_finalizer(item)
            spec = ConsumerSpec(
                name=self.consumer,
                stream=EVENTS,
                patterns=function.patterns,
                owner=function.key,
                owner_uid=function.metadata.uid,
            )
            changes = await ensure_consumer(self._shared.connection, spec, settled_to=settled_to)
            await self._shared.scaler.ensure_credentials(function)
        except (StreamMismatch, Refused) as error:
            fault = ("ConsumerRefused", str(error))
            if fault != self.fault:
                self._shared.recorder.tell(self._metadata, events.not_subscribed(*fault))
            self.fault, self.generation = fault, generation
            raise
        except (BusError, ClusterError) as error:
            if self.fault is not None:  # what works already goes on working
                self.fault = ("NotReachable", str(error))
            raise
        self.fault, self.generation, self._is_sure = None, generation, True
        if changes:
            log.info("subscribed", extra={"function": function.key, "changes": "; ".join(changes)})
            self._shared.recorder.tell(self._metadata, events.subscribed(self.consumer, function.patterns))
        return bool(changes)

    async def remove(self) -> None:
        """Delete the consumer and give the object free."""
        await delete_consumer(self._shared.connection, EVENTS, self.consumer)
        self._shared.scaler.forget(self._metadata.uid)
        await self._remove_finalizer()

    async def _ensure_finalizer(self, item: dict[str, Any]) -> None:
        metadata = item["metadata"]
        name, namespace = self._metadata.name, self._metadata.namespace
        for attempt in range(FINALIZER_ATTEMPTS):
            finalizers = metadata.get("finalizers") or []
            if FINALIZER in finalizers:
                return
            # JSON patches know no sets: the test keeps us from undoing what somebody else adds in the same moment.
            patch = [
                {"op": "test", "path": "/metadata/uid", "value": self._metadata.uid},
                {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
                {"op": "add", "path": "/metadata/finalizers", "value": [*finalizers, FINALIZER]},
            ]
            try:
                await self._shared.cluster.patch(FUNCTIONS, name, patch, namespace, strategy="json")
                return
            except Invalid:
                if attempt + 1 == FINALIZER_ATTEMPTS:
                    raise
            metadata = (await self._shared.cluster.get(FUNCTIONS, name, namespace))["metadata"]

    async def _remove_finalizer(self) -> None:
        name, namespace, uid = self._metadata.name, self._metadata.namespace, self._metadata.uid
        try:
            metadata = (await self._shared.cluster.get(FUNCTIONS, name, namespace))["metadata"]
            finalizers = metadata.get("finalizers") or []
            if metadata["uid"] != uid or FINALIZER not in finalizers:
                return
            path = f"/metadata/finalizers/{finalizers.index(FINALIZER)}"
            patch = [
                {"op": "test", "path": "/metadata/uid", "value": uid},
                {"op": "test", "path": path, "value": FINALIZER},
                {"op": "remove", "path": path},
            ]
            await self._shared.cluster.patch(FUNCTIONS, name, patch, namespace, strategy="json")
        except NotFound:
            return
