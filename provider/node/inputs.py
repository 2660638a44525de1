"""Secrets and ConfigMaps that a pod's environment is made of, one by one, as a node identity may read them.

What was read once is watched, so that the next pod that needs it starts without asking: a read is a third of a cold
start. An object is taken from memory only while its watch stands, and the watch is as narrow as the read: this one
object. When the watch ends, for whatever reason, the object is forgotten, and the next pod reads it again.
"""

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup

from bus.cluster.connection import Cluster, lines_of
from bus.cluster.errors import ClusterError, Forbidden, NotFound
from bus.cluster.resources import CONFIG_MAPS, SECRETS
from provider.core.environment import Source

log = logging.getLogger(__name__)

GRAPH_LAG_FIRST_S = 0.002
GRAPH_LAG_MAX_S = 2.0
"""The Node authoriser learns of a binding by a watch of its own, and refuses until then: milliseconds, usually."""
WATCHED_MAX = 128
"""Objects in memory, each with a connection of its own; the one that was not used for longest makes room."""
WATCH_S = 3600
"""A watch ends after this; it can be begun again only while a pod of this node refers to the object."""
WATCH_AFTER_S = 1.0
"""A watch begins this long after the read: connecting it must not slow down the start that the read was for."""
SILENT_AFTER_S = 30.0

_RESOURCES = {"Secret": SECRETS, "ConfigMap": CONFIG_MAPS}

Key = tuple[str, Source]
Object = dict[str, Any]


class _Watched:
    """One object and its watch. `is_current` is true while the watch stands."""

    def __init__(self, item: Object) -> None:
        self.item: Object | None = item
        self.is_current = False
        self.scope = anyio.CancelScope()


class Inputs:
    """Use `open_inputs`."""

    def __init__(self, cluster: Cluster, group: TaskGroup) -> None:
        self._cluster, self._group = cluster, group
        self._watched: OrderedDict[Key, _Watched] = OrderedDict()

    async def fetch(self, namespace: str, sources: Iterable[Source]) -> Mapping[Source, Object | None]:
        """Return each object, or None for one that does not exist.

        Raises `Forbidden` where the node may not read one, longer than any lag explains.
        """
        return {source: await self._one(namespace, source) for source in sources}

    async def _one(self, namespace: str, source: Source) -> Object | None:
        key = (namespace, source)
        watched = self._watched.get(key)
        if watched is not None:
            self._watched.move_to_end(key)
            if watched.is_current:
                return watched.item
        item = await self._read(namespace, source)
        if item is not None and key not in self._watched:
            self._watch(key, item)
        return item

    async def _read(self, namespace: str, source: Source) -> Object | None:
        delay_s = GRAPH_LAG_FIRST_S
        deadline = anyio.current_time() + GRAPH_LAG_MAX_S
        while True:
            try:
                return await self._cluster.get(_RESOURCES[source.kind], source.name, namespace)
            except NotFound:
                return None
            except Forbidden:
                if anyio.current_time() + delay_s > deadline:
                    raise
            await anyio.sleep(delay_s)
            delay_s *= 2

    def _watch(self, key: Key, item: Object) -> None:
        while len(self._watched) >= WATCHED_MAX:
            self._watched.popitem(last=False)[1].scope.cancel()
        self._watched[key] = watched = _Watched(item)
        self._group.start_soon(self._follow, key, watched)

    async def _follow(self, key: Key, watched: _Watched) -> None:
        assert watched.item is not None
        namespace, source = key
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={source.name}",
            "resourceVersion": watched.item["metadata"]["resourceVersion"],
            "timeoutSeconds": str(WATCH_S),
        }
        path = _RESOURCES[source.kind].path(namespace)
        with watched.scope:
            try:
                await anyio.sleep(WATCH_AFTER_S)
                async with self._cluster.stream(path, query, silent_s=WATCH_S + SILENT_AFTER_S) as chunks:
                    # What changed since the read comes first.
                    watched.is_current = True
                    async for line in lines_of(chunks):
                        change = msgspec.json.decode(line)
                        if change["type"] == "ERROR":
                            break
                        watched.item = None if change["type"] == "DELETED" else change["object"]
            except (ClusterError, msgspec.DecodeError) as error:  # cut off, in the middle of a line perhaps
                log.debug("no longer watched: %s", error, extra={"kind": source.kind, "object": source.name})
        watched.is_current = False
        if self._watched.get(key) is watched:
            del self._watched[key]


@asynccontextmanager
async def open_inputs(cluster: Cluster) -> AsyncIterator[Inputs]:
    """Own what is watched, until the block is left."""
    async with anyio.create_task_group() as group:
        try:
            yield Inputs(cluster, group)
        finally:
            group.cancel_scope.cancel()
