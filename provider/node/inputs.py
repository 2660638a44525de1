"""Secrets and ConfigMaps that a pod's environment is made of, one by one, as a node identity may read them."""

from collections.abc import Iterable
from typing import Any

import anyio

from bus.cluster.connection import Cluster
from bus.cluster.errors import Forbidden, NotFound
from bus.cluster.resources import CONFIG_MAPS, SECRETS
from provider.core.environment import Source

GRAPH_LAG_FIRST_S = 0.002
GRAPH_LAG_MAX_S = 2.0
"""The Node authoriser learns of a binding by a watch of its own, and refuses until then: milliseconds, usually."""

_RESOURCES = {"Secret": SECRETS, "ConfigMap": CONFIG_MAPS}


async def fetch(cluster: Cluster, namespace: str, sources: Iterable[Source]) -> dict[Source, dict[str, Any] | None]:
    """Return each object, or None for one that does not exist.

    Raises `Forbidden` where the node may not read one, longer than any lag explains.
    """
    return {source: await _fetch(cluster, namespace, source) for source in sources}


async def _fetch(cluster: Cluster, namespace: str, source: Source) -> dict[str, Any] | None:
    delay_s = GRAPH_LAG_FIRST_S
    deadline = anyio.current_time() + GRAPH_LAG_MAX_S
    while True:
        try:
            return await cluster.get(_RESOURCES[source.kind], source.name, namespace)
        except NotFound:
            return None
        except Forbidden:
            if anyio.current_time() + delay_s > deadline:
                raise
        await anyio.sleep(delay_s)
        delay_s *= 2
