"""`nodeless functions` and `nodeless delete`: what is deployed, and how to end it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import anyio

from bus.cluster.connection import Cluster, open_cluster
from bus.cluster.errors import NotFound
from bus.cluster.resources import FUNCTIONS
from nodeless.cli.errors import CommandError
from nodeless.cli.output import age
from nodeless.cli.target import Target

DELETE_WAIT_S = 60.0

COLUMNS = ("namespace", "name", "ready", "subjects", "workers", "pending", "inFlight", "dead", "age", "message")


def function_row(function: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return what a list shows of one Function object; the message is there only where something is wrong."""
    metadata, spec, status = function["metadata"], function["spec"], function.get("status", {})
    conditions = {condition["type"]: condition for condition in status.get("conditions", ())}
    ready = conditions.get("Ready", {"status": "Unknown", "message": "the dispatcher has not seen it yet"})
    return {
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "ready": ready["status"],
        "subjects": [trigger["subject"] for trigger in spec["triggers"]],
        "workers": status.get("workers", 0),
        "pending": status.get("pending", 0),
        "inFlight": status.get("inFlight", 0),
        "dead": status.get("dead", 0),
        "version": status.get("version", ""),
        "handler": spec["handler"],
        "bundle": spec["code"]["bundle"],
        "age": age(metadata["creationTimestamp"], now),
        "message": "" if ready["status"] == "True" else ready.get("message", ""),
    }


async def function_rows(target: Target, *, all_namespaces: bool) -> list[dict[str, Any]]:
    async with open_cluster(target.cluster) as cluster:
        namespace = None if all_namespaces else target.namespace or cluster.namespace
        listed = await cluster.list(FUNCTIONS, namespace)
    return [function_row(item, datetime.now(UTC)) for item in listed["items"]]


async def delete_functions(target: Target, names: list[str]) -> list[str]:
    """Delete functions and wait until they are gone, pods and consumers with them; return the names that did not
    exist.
    """
    missing: list[str] = []
    async with open_cluster(target.cluster) as cluster:
        namespace = target.namespace or cluster.namespace
        for name in names:
            try:
                await cluster.delete(FUNCTIONS, name, namespace)
            except NotFound:
                missing.append(name)
        with anyio.move_on_after(DELETE_WAIT_S) as waiting:
            for name in (each for each in names if each not in missing):
                await _wait_gone(cluster, name, namespace)
        if waiting.cancelled_caught:
            raise CommandError(
                f"{name}: not gone within {DELETE_WAIT_S:g} s; the dispatcher takes the finalizer off when "
                "workers and consumer are gone: is it running? (`nodeless status`)"
            )
    return missing


async def _wait_gone(cluster: Cluster, name: str, namespace: str) -> None:
    while True:
        try:
            await cluster.get(FUNCTIONS, name, namespace)
        except NotFound:
            return
        await anyio.sleep(0.1)
