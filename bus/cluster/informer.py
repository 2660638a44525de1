"""A local copy of one kind of objects, kept true: list, then watch, over everything that ends a watch.

The life of an informer:

    list in pages -> every object that is new, changed or gone since the last list is told -> watch from the list's version
    watch ended by the server (it does, every few minutes)      -> watch again from the newest version seen, bookmarks included
    410, in the answer or in the stream                         -> list again
    the connection broke, or was silent past its time           -> wait (back-off with jitter), watch again from the same version

`on_change` is called on the event loop, in the server's order for each object, with no queue between: the time from the API server to the
observer is part of a cold start. What it is told is the difference to what it was told before, so an observer that only looks
at changes has the same picture as one that looks at `objects`.
"""

import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import msgspec
from msgspec import Struct

from bus.cluster.connection import Cluster, lines_of
from bus.cluster.errors import ClusterError, ClusterUnavailable, Expired, error_of
from bus.cluster.resources import Resource

log = logging.getLogger(__name__)

WATCH_S = (240.0, 360.0)
"""A watch is asked to end after a draw from this, so that not all end at once. [seconds]"""
SILENT_AFTER_S = 30.0
"""How much longer than its time a watch may be silent before it is taken for broken."""
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 5.0

Object = dict[str, Any]


class Change(Struct, frozen=True):
    kind: Literal["added", "modified", "deleted"]
    object: Object
    """The last state seen, for what was deleted too."""
    previous: Object | None


class _Line(Struct, frozen=True):
    type: str
    object: Object


_lines = msgspec.json.Decoder(_Line)


class Informer:
    """Use `open_informer`."""

    def __init__(
        self,
        cluster: Cluster,
        resource: Resource,
        namespace: str | None,
        label_selector: str,
        field_selector: str,
        on_change: Callable[[Change], None],
    ) -> None:
        self._cluster, self._resource, self._namespace = cluster, resource, namespace
        self._label_selector, self._field_selector = label_selector, field_selector
        self._on_change = on_change
        self._objects: dict[str, Object] = {}
        self._version = ""
        self._synced = anyio.Event()
        self._retry_s = RETRY_FIRST_S

    @property
    def objects(self) -> Mapping[str, Object]:
        """What is there, by UID. Not to be changed."""
        return self._objects

    @property
    def is_synced(self) -> bool:
        return self._synced.is_set()

    async def wait_synced(self, timeout_s: float) -> None:
        """Return when the first list is in; raise `ClusterUnavailable` after `timeout_s`."""
        with anyio.move_on_after(timeout_s):
            await self._synced.wait()
            return
        raise ClusterUnavailable(f"list {self._resource.plural}", f"not complete after {timeout_s:g} s")

    async def _run(self) -> None:
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
                self._retry_s = RETRY_FIRST_S
            except Expired:
                log.info("watch expired, listing again", extra={"resource": self._resource.plural})
                self._version = ""
            except ClusterError as error:
                level = logging.INFO if error.retryable else logging.WARNING
                log.log(level, "watch interrupted: %s", error, extra={"resource": self._resource.plural})
                await anyio.sleep(self._retry_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                self._retry_s = min(RETRY_MAX_S, self._retry_s * 2)

    async def _list(self) -> None:
        listed = await self._cluster.list(
            self._resource, self._namespace, label_selector=self._label_selector, field_selector=self._field_selector
        )
        present = {item["metadata"]["uid"]: item for item in listed["items"]}
        for uid in [uid for uid in self._objects if uid not in present]:
            self._forget(self._objects[uid])
        for item in present.values():
            self._take(item)
        self._version = listed["metadata"]["resourceVersion"]
        self._synced.set()

    async def _watch(self) -> None:
        timeout_s = random.uniform(*WATCH_S)  # noqa: S311 - jitter
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(int(timeout_s)),
        }
        if self._label_selector:
            query["labelSelector"] = self._label_selector
        if self._field_selector:
            query["fieldSelector"] = self._field_selector
        path = self._resource.path(self._namespace)
        async with self._cluster.stream(path, query, silent_s=timeout_s + SILENT_AFTER_S) as chunks:
            async for line in lines_of(chunks):
                self._retry_s = RETRY_FIRST_S
                if line:
                    self._on_line(_lines.decode(line))

    def _on_line(self, line: _Line) -> None:
        if line.type == "ERROR":
            status = line.object
            raise error_of(
                f"watch {self._resource.plural}",
                int(status.get("code", 500)),
                str(status.get("reason", "")),
                str(status.get("message", "")),
            )
        self._version = line.object["metadata"]["resourceVersion"]
        if line.type == "BOOKMARK":
            return
        if line.type == "DELETED":
            self._forget(line.object)
        else:
            self._take(line.object)

    def _take(self, item: Object) -> None:
        uid = item["metadata"]["uid"]
        previous = self._objects.get(uid)
        if previous is not None and previous["metadata"]["resourceVersion"] == item["metadata"]["resourceVersion"]:
            return
        self._objects[uid] = item
        self._on_change(Change("added" if previous is None else "modified", item, previous))

    def _forget(self, item: Object) -> None:
        previous = self._objects.pop(item["metadata"]["uid"], None)
        if previous is not None:
            self._on_change(Change("deleted", item, previous))


@asynccontextmanager
async def open_informer(
    cluster: Cluster,
    resource: Resource,
    *,
    on_change: Callable[[Change], None],
    namespace: str | None = None,
    label_selector: str = "",
    field_selector: str = "",
) -> AsyncIterator[Informer]:
    """Own one informer; it lists and watches until the block is left."""
    informer = Informer(cluster, resource, namespace, label_selector, field_selector, on_change)
    async with anyio.create_task_group() as group:
        group.start_soon(informer._run)
        try:
            yield informer
        finally:
            group.cancel_scope.cancel()
