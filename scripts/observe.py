"""Watch one event's way through the whole chain, from outside: the broker's stamps, the API server's watch, the
result's headers.

All clocks are this machine's, so the steps can be subtracted from one another.
"""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import datetime

import anyio
from msgspec import Struct, field

from bus.cluster.connection import Cluster, open_cluster
from bus.cluster.informer import Change, open_informer
from bus.cluster.resources import PODS
from bus.core.assignment import FUNCTION_LABEL, WOKEN_ANNOTATION
from bus.jetstream.connection import Connection, StoredMessage, open_connection
from bus.jetstream.reading import read
from nodeless.cli.events import lower_headers
from nodeless.cli.target import Target

STEPS = ("stored", "woken", "created", "bound", "forked", "pulled", "handler")
"""In the order in which they happen; `handler` is the handler's first instruction."""


class PodSeen(Struct):
    """When this observer saw what of one pod. [seconds since the epoch]"""

    uid: str
    name: str
    woken_s: float | None = None
    created_s: float | None = None
    bound_s: float | None = None
    running_s: float | None = None
    node: str = ""


class Observer(Struct, kw_only=True):
    cluster: Cluster
    connection: Connection
    namespace: str
    function: str
    pods: dict[str, PodSeen] = field(default_factory=dict)
    """By name: the newest pod of that name."""
    live_pods: set[str] = field(default_factory=set)
    """UIDs of the pods that the API server has now."""

    def on_change(self, change: Change) -> None:
        now_s = time.time()
        metadata = change.object["metadata"]
        if change.kind == "deleted":
            self.live_pods.discard(metadata["uid"])
            return
        self.live_pods.add(metadata["uid"])
        seen = self.pods.setdefault(metadata["name"], PodSeen(metadata["uid"], metadata["name"]))
        if seen.uid != metadata["uid"]:
            seen = self.pods[metadata["name"]] = PodSeen(metadata["uid"], metadata["name"])
        if seen.created_s is None:
            seen.created_s = now_s
            woken = metadata.get("annotations", {}).get(WOKEN_ANNOTATION)
            seen.woken_s = epoch_s(woken) if woken else None
        node = change.object["spec"].get("nodeName", "")
        if node and seen.bound_s is None:
            seen.bound_s, seen.node = now_s, node
        if change.object.get("status", {}).get("phase") == "Running" and seen.running_s is None:
            seen.running_s = now_s

    async def result_of(self, digest: str, timeout_s: float) -> StoredMessage:
        """Wait for the result of the event with that digest; raise `TimeoutError`."""
        subject = f"results.{self.namespace}.{self.function}.{digest}"
        with anyio.fail_after(timeout_s):
            async with aclosing(read(self.connection, "RESULTS", subject, start="all", follow=True)) as messages:
                async for message in messages:
                    return message
        raise TimeoutError(f"the stream of results ended before {subject} came")

    def steps(self, stored_s: float, result: StoredMessage) -> dict[str, float]:
        """Return when each of `STEPS` happened for the event with that result. [seconds since the epoch]"""
        headers = lower_headers(result.headers)
        pod = self.pods[headers["nodeless-worker"]]
        assert pod.created_s is not None
        assert pod.bound_s is not None
        return {
            "stored": stored_s,
            "woken": pod.woken_s or pod.created_s,
            "created": pod.created_s,
            "bound": pod.bound_s,
            "forked": epoch_s(headers["nodeless-worker-started-at"]),
            "pulled": epoch_s(headers["nodeless-pulled-at"]),
            "handler": epoch_s(headers["nodeless-started-at"]),
        }


def epoch_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@asynccontextmanager
async def observe(target: Target, function: str) -> AsyncIterator[Observer]:
    async with open_cluster(target.cluster) as cluster, open_connection(target.bus) as connection:
        namespace = target.namespace or cluster.namespace
        observer = Observer(cluster=cluster, connection=connection, namespace=namespace, function=function)
        async with open_informer(
            cluster,
            PODS,
            namespace=namespace,
            label_selector=f"{FUNCTION_LABEL}={function}",
            on_change=observer.on_change,
        ) as pods:
            await pods.wait_synced(10.0)
            yield observer
