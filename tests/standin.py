"""A node that is this test: it keeps its Node object alive and runs each pod that is bound to it as a real worker process.

What a kubelet would do, as far as worker pods need it: environment with its references, phases and exit statuses, SIGTERM
and the grace period at deletion.
"""

import base64
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process, TaskGroup

from bus.cluster.connection import Cluster
from bus.cluster.errors import ClusterError, Conflict, NotFound
from bus.cluster.informer import Change, open_informer
from bus.cluster.resources import LEASES, NODES, PODS, SECRETS

LEASE_S = 10.0


class StandInNode:
    def __init__(self, cluster: Cluster, name: str, directory: Path, group: TaskGroup) -> None:
        self.name = name
        self.processes: dict[str, Process] = {}
        """By pod UID."""
        self.started: list[str] = []
        """Names of the pods that ran here, in order."""
        self.unreported = 0
        """Workers whose end has not been told to the API server."""
        self._cluster, self._directory, self._group = cluster, directory, group
        self._seen: set[str] = set()
        self._deleted: set[str] = set()

    async def register(self) -> None:
        labels = {"type": "virtual-kubelet", "kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux"}
        await self._cluster.create(
            NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": labels}}
        )
        await self._beat()
        capacity = {"cpu": "100", "memory": "100Gi", "pods": "200"}
        ready = {"type": "Ready", "status": "True", "reason": "Test", "message": "", "lastHeartbeatTime": _now()}
        status = {"status": {"capacity": capacity, "allocatable": capacity, "conditions": [ready]}}
        await self._cluster.patch(NODES, self.name, status, subresource="status")

    async def keep_alive(self) -> None:
        while True:
            await anyio.sleep(LEASE_S / 2)
            with suppress(ClusterError):
                await self._beat()

    async def _beat(self) -> None:
        moment = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec = {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": moment}
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self.name}, "spec": spec}
        await self._cluster.apply(LEASES, lease, field_manager="test-node", namespace="kube-node-lease")

    def on_pod(self, change: Change) -> None:
        pod = change.object
        uid = pod["metadata"]["uid"]
        if change.kind == "deleted":
            return
        if uid not in self._seen and "deletionTimestamp" not in pod["metadata"]:
            self._seen.add(uid)
            self._group.start_soon(self._run, pod)
        if "deletionTimestamp" in pod["metadata"] and uid not in self._deleted:
            self._deleted.add(uid)
            self._group.start_soon(self._end, pod)

    def kill(self, pod: str) -> None:
        """kill -9 the worker of the pod with that name."""
        for uid, process in self.processes.items():
            if self._names[uid] == pod:
                process.kill()
                return
        raise AssertionError(f"no process of {pod}: {self.processes}")

    @property
    def _names(self) -> dict[str, str]:
        return {uid: (self._directory / uid / "name").read_text() for uid in self.processes}

    async def _run(self, pod: dict[str, Any]) -> None:
        metadata = pod["metadata"]
        directory = self._directory / metadata["uid"]
        directory.mkdir(parents=True)
        (directory / "name").write_text(metadata["name"])
        environment = await self._environment(pod) | {
            "NODELESS_TERMINATION_LOG": str(directory / "termination"),
            "NODELESS_BUNDLES": str(self._directory / "bundles"),
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "PYTHONPATH": str(Path.cwd()),
        }
        with (directory / "log").open("wb") as output:
            process = await anyio.open_process(
                [sys.executable, "-m", "workers"], env=environment, stdout=output, stderr=output
            )
        self.processes[metadata["uid"]] = process
        self.unreported += 1
        self.started.append(metadata["name"])
        started = _now()
        state: dict[str, Any] = {"running": {"startedAt": started}}
        await self._report(pod, "Running", state, is_ready=True)
        code = await process.wait()
        self.processes.pop(metadata["uid"])
        termination = directory / "termination"
        code = 128 - code if code < 0 else code
        terminated = {
            "exitCode": code,
            "startedAt": started,
            "finishedAt": _now(),
            "reason": "Completed" if code == 0 else "Error",
            "message": termination.read_text() if termination.exists() else "",
        }
        await self._report(pod, "Succeeded" if code == 0 else "Failed", {"terminated": terminated}, is_ready=False)
        self.unreported -= 1

    async def _end(self, pod: dict[str, Any]) -> None:
        metadata = pod["metadata"]
        process = self.processes.get(metadata["uid"])
        if process is not None:
            process.send_signal(signal.SIGTERM)
            with anyio.move_on_after(metadata.get("deletionGracePeriodSeconds", 30)):
                await process.wait()
            if process.returncode is None:
                process.kill()
        with suppress(NotFound, Conflict):
            await self._cluster.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"], grace_s=0)

    async def _report(self, pod: dict[str, Any], phase: str, state: dict[str, Any], *, is_ready: bool) -> None:
        container = {
            "name": "worker", "image": "nodeless/worker", "imageID": "", "ready": is_ready, "restartCount": 0, "state": state
        }  # fmt: skip
        status = {"status": {"phase": phase, "containerStatuses": [container]}}
        with suppress(NotFound):
            await self._cluster.patch(
                PODS, pod["metadata"]["name"], status, pod["metadata"]["namespace"], subresource="status"
            )

    async def _environment(self, pod: dict[str, Any]) -> dict[str, str]:
        fields = {
            "metadata.name": pod["metadata"]["name"],
            "metadata.uid": pod["metadata"]["uid"],
            "spec.nodeName": pod["spec"]["nodeName"],
        }
        environment = {}
        for variable in pod["spec"]["containers"][0]["env"]:
            source = variable.get("valueFrom")
            if source is None:
                value = variable.get("value", "")
            elif "fieldRef" in source:
                value = fields[source["fieldRef"]["fieldPath"]]
            else:
                reference = source["secretKeyRef"]
                secret = await self._cluster.get(SECRETS, reference["name"], pod["metadata"]["namespace"])
                value = base64.b64decode(secret["data"][reference["key"]]).decode()
            environment[variable["name"]] = value
        return environment


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@asynccontextmanager
async def running_node(cluster: Cluster, name: str, directory: Path) -> AsyncIterator[StandInNode]:
    """Own one such node; when the block is left its processes and its Node object are gone."""
    async with anyio.create_task_group() as group:
        node = StandInNode(cluster, name, directory, group)
        await node.register()
        group.start_soon(node.keep_alive)
        async with open_informer(cluster, PODS, field_selector=f"spec.nodeName={name}", on_change=node.on_pod) as pods:
            await pods.wait_synced(10)
            try:
                yield node
            finally:
                for process in node.processes.values():
                    process.kill()
                with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                    while node.unreported:  # a pod that is thought to run is not gone before its grace period is over
                        await anyio.sleep(0.02)
                    await cluster.delete(NODES, name)
                group.cancel_scope.cancel()
