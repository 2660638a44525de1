"""`nodeless logs FUNCTION`: what its workers print, from the API server, as `kubectl logs` reads it."""

import sys
from collections.abc import Callable

import anyio
from anyio.abc import TaskGroup

from bus.cluster.connection import Cluster, open_cluster
from bus.cluster.errors import ClusterError, NotFound
from bus.cluster.informer import Change, open_informer
from bus.cluster.resources import FUNCTIONS, PODS
from bus.core.assignment import FUNCTION_LABEL
from nodeless.cli.output import print_line
from nodeless.cli.target import Target

Write = Callable[[str, str], None]
"""Called with the pod's name and one line, without its end."""


def write_line(pod: str, line: str) -> None:
    sys.stdout.write(f"{pod}  {line}\n")
    sys.stdout.flush()


def write_json(pod: str, line: str) -> None:
    print_line({"pod": pod, "line": line})


async def logs(
    target: Target, function: str, *, follow: bool, tail_lines: int | None, write: Write = write_line
) -> int:
    """Write the lines of the function's pods; with `follow`, of those that come later too, until interrupted.

    Returns the number of pods that were read. Raises `NotFound` where there is no such function.
    """
    async with open_cluster(target.cluster) as cluster:
        namespace = target.namespace or cluster.namespace
        await cluster.get(FUNCTIONS, function, namespace)
        selector = f"{FUNCTION_LABEL}={function}"
        if not follow:
            listed = await cluster.list(PODS, namespace, label_selector=selector)
            for pod in sorted(listed["items"], key=lambda item: item["metadata"]["creationTimestamp"]):
                await _copy(cluster, namespace, pod["metadata"]["name"], False, tail_lines, write)
            return len(listed["items"])
        return await _follow(cluster, namespace, selector, tail_lines, write)


async def _follow(cluster: Cluster, namespace: str, selector: str, tail_lines: int | None, write: Write) -> int:
    seen: set[str] = set()

    async with anyio.create_task_group() as readers:

        def on_change(change: Change) -> None:
            _read_started(readers, change)

        def _read_started(group: TaskGroup, change: Change) -> None:
            metadata = change.object["metadata"]
            has_started = change.object.get("status", {}).get("phase") not in {None, "Pending"}
            if change.kind != "deleted" and has_started and metadata["uid"] not in seen:
                seen.add(metadata["uid"])
                group.start_soon(_copy, cluster, namespace, metadata["name"], True, tail_lines, write)

        async with open_informer(cluster, PODS, namespace=namespace, label_selector=selector, on_change=on_change):
            await anyio.sleep_forever()
    return len(seen)


async def _copy(cluster: Cluster, namespace: str, pod: str, follow: bool, tail_lines: int | None, write: Write) -> None:
    query = {"follow": "true"} if follow else {}
    if tail_lines is not None:
        query["tailLines"] = str(tail_lines)
    try:
        async for line in cluster.lines(f"/api/v1/namespaces/{namespace}/pods/{pod}/log", query):
            write(pod, line)
    except NotFound:
        return  # It went away between the list and the read.
    except ClusterError as error:
        sys.stderr.write(f"nodeless: no log of {pod}: {error}\n")
