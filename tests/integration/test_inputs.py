"""What a node remembers of Secrets: read once, watched, and never older than the API server's word."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from bus.cluster.connection import Cluster
from bus.cluster.resources import SECRETS
from provider.core.environment import Source
from provider.node.inputs import Inputs, open_inputs

pytestmark = pytest.mark.integration

KEYS = Source("Secret", "keys")


@pytest.fixture
async def inputs(cluster: Cluster) -> AsyncIterator[Inputs]:
    async with open_inputs(cluster) as opened:
        yield opened


async def create(cluster: Cluster, namespace: str, token: str) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"token": token}}
    await cluster.create(SECRETS, secret, namespace)


async def read(inputs: Inputs, namespace: str) -> dict[str, Any] | None:
    return (await inputs.fetch(namespace, [KEYS]))[KEYS]


async def wait_watched(inputs: Inputs) -> None:
    with anyio.fail_after(15):
        while not all(watched.is_current for watched in inputs._watched.values()):
            await anyio.sleep(0.01)


async def test_a_remembered_secret_is_the_one_the_api_server_has(
    cluster: Cluster, inputs: Inputs, namespace: str
) -> None:
    await create(cluster, namespace, "one")
    first = await read(inputs, namespace)
    # Changed before the watch begins: it begins at what was read.
    await cluster.patch(SECRETS, "keys", {"data": {"token": "Mg=="}}, namespace)
    await wait_watched(inputs)
    with anyio.fail_after(15):
        while (await read(inputs, namespace) or {}).get("data") != {"token": "Mg=="}:
            await anyio.sleep(0.01)

    assert first is not None
    assert await read(inputs, namespace) is await read(inputs, namespace)


async def test_a_deleted_secret_is_absent_and_one_made_again_is_the_new_one(
    cluster: Cluster, inputs: Inputs, namespace: str
) -> None:
    await create(cluster, namespace, "one")
    await read(inputs, namespace)
    await wait_watched(inputs)
    await cluster.delete(SECRETS, "keys", namespace)
    with anyio.fail_after(15):
        while await read(inputs, namespace) is not None:
            await anyio.sleep(0.01)
    await create(cluster, namespace, "two")
    with anyio.fail_after(15):
        while (again := await read(inputs, namespace)) is None:
            await anyio.sleep(0.01)

    assert again["data"] == {"token": "dHdv"}


async def test_what_is_absent_is_asked_for_each_time(cluster: Cluster, inputs: Inputs, namespace: str) -> None:
    assert await read(inputs, namespace) is None
    await create(cluster, namespace, "one")

    assert await read(inputs, namespace) is not None
