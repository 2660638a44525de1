"""The Node object and its lease: made, kept alive, and made again when somebody deletes them.

registered ─► lease renewed every 10 s, in a lane of its own: a burst of pods does not make the node look dead
           ─► status written again every 5 minutes, and whenever it is not what we wrote
           ─► Node deleted: created again at once
"""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anyio

from bus.cluster.connection import Cluster
from bus.cluster.errors import AlreadyExists, ClusterError, ClusterUnavailable, NotFound
from bus.cluster.informer import Change, open_informer
from bus.cluster.resources import LEASES, NODES
from provider import events
from provider.core.node import NodeDescription, labels_of, lease_object, node_object, node_status
from provider.core.status import whole_seconds
from provider.events import Recorder

log = logging.getLogger(__name__)

RENEW_S = 10.0
RENEW_RETRY_S = 1.0
REPORT_S = 300.0
REPORT_RETRY_S = 2.0
REPORT_APART_S = 0.5
"""Between two reports at least, should somebody undo each of them at once."""
LEASE_NAMESPACE = "kube-node-lease"


class Registration:
    """Use `open_registration`."""

    def __init__(self, cluster: Cluster, node: NodeDescription, recorder: Recorder) -> None:
        self._cluster, self._node, self._recorder = cluster, node, recorder
        self._uid = ""
        self._look = anyio.Event()
        self._registered = anyio.Event()

    @property
    def is_ready(self) -> bool:
        """True while a Node of ours is there that says Ready."""
        return bool(self._uid)

    async def wait_ready(self) -> None:
        """Return when the Node has been registered for the first time."""
        await self._registered.wait()

    async def _report(self) -> None:
        while True:
            self._look = anyio.Event()
            try:
                await self._register()
                delay_s = REPORT_S
            except ClusterError as error:
                log.log(
                    logging.INFO if error.retryable else logging.ERROR, "node not registered: %s", error,
                    extra={"node": self._node.name},
                )  # fmt: skip
                delay_s = REPORT_RETRY_S
            await anyio.sleep(REPORT_APART_S)
            with anyio.move_on_after(delay_s):
                await self._look.wait()

    async def _register(self) -> None:
        """Make sure that the Node is there, with our labels and a fresh status."""
        name = self._node.name
        try:
            node = await self._cluster.create(NODES, node_object(self._node, now=_now_s()))
        except AlreadyExists:
            node = await self._cluster.get(NODES, name)
            labels = labels_of(self._node)
            if not labels.items() <= (node["metadata"].get("labels") or {}).items():
                node = await self._cluster.patch(NODES, name, {"metadata": {"labels": labels}})
            status = node_status(node.get("status") or {}, self._node, now=_now_s())
            body = {"metadata": {"uid": node["metadata"]["uid"]}, "status": status}
            node = await self._cluster.patch(NODES, name, body, subresource="status", strategy="strategic")
        if self._uid != node["metadata"]["uid"]:
            self._uid = node["metadata"]["uid"]
            self._recorder.tell(events.node_registered(name))
            log.info("node registered", extra={"node": name, "node_uid": self._uid})
            await self._renew()
        self._registered.set()

    def _on_change(self, change: Change) -> None:
        if change.kind == "deleted" and change.object["metadata"]["uid"] == self._uid:
            log.warning("the Node was deleted, and is made again", extra={"node": self._node.name})
            self._uid = ""
            self._look.set()
        elif change.kind == "modified" and not self._is_told(change.object):
            self._look.set()

    def _is_told(self, node: Mapping[str, Any]) -> bool:
        """Say whether the Node still says of itself what we wrote; a lost node is told Unknown by the control plane."""
        status = node.get("status") or {}
        ready = [each["status"] for each in status.get("conditions") or () if each["type"] == "Ready"]
        wanted = node_status({}, self._node, now="")
        return ready == ["True"] and all(status.get(key) == wanted[key] for key in ("addresses", "daemonEndpoints"))

    async def _keep_lease(self) -> None:
        await self._registered.wait()
        delay_s = RENEW_S
        while True:
            await anyio.sleep(delay_s)
            try:
                await self._renew()
                delay_s = RENEW_S
            except ClusterError as error:
                log.warning("lease not renewed: %s", error, extra={"node": self._node.name})
                delay_s = RENEW_RETRY_S

    async def _renew(self) -> None:
        if not self._uid:
            return  # It goes with its Node, and comes again with it.
        lease = lease_object(self._node.name, self._uid, now=_now())
        with anyio.move_on_after(RENEW_S):
            try:
                await self._cluster.patch(LEASES, self._node.name, lease, LEASE_NAMESPACE)
            except NotFound:
                await self._cluster.create(LEASES, lease, LEASE_NAMESPACE)
            return
        raise ClusterUnavailable("renew the lease", f"no answer within {RENEW_S:g} s")


@asynccontextmanager
async def open_registration(cluster: Cluster, node: NodeDescription, recorder: Recorder) -> AsyncIterator[Registration]:
    """Keep a Node and its lease in the API until the block is left. They stay: pods may run on."""
    registration = Registration(cluster, node, recorder)
    selector = f"metadata.name={node.name}"
    async with anyio.create_task_group() as group:
        group.start_soon(registration._report)
        group.start_soon(registration._keep_lease)
        async with open_informer(cluster, NODES, field_selector=selector, on_change=registration._on_change):
            try:
                yield registration
            finally:
                group.cancel_scope.cancel()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _now_s() -> str:
    return whole_seconds(_now())
