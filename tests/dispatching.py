"""The dispatcher as a program of its own, with its own identities, on a real control plane and a real broker, for tests to
drive and to kill.
"""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx

from bus.cluster.connection import Cluster
from bus.cluster.errors import NotFound
from bus.cluster.resources import FUNCTIONS, PODS
from bus.core.assignment import consumer_name
from bus.core.event import Event
from bus.jetstream.connection import Connection, open_connection
from bus.jetstream.objects import put_bundle
from bus.jetstream.topology import ConsumerState, consumer_state
from nodeless.embedded.controlplane.launch import ControlPlane
from nodeless.packaging.archive import File, archive_of
from tests.broker import Broker, free_port, running_broker

DISPATCHER_USER = "system:serviceaccount:nodeless-system:dispatcher"

ECHO = "async def handle(event):\n    return event.data\n"
SLOW = "import asyncio\n\nasync def handle(event):\n    await asyncio.sleep(float(event.data))\n    return event.data\n"
BROKEN = "import a_module_that_is_not_there\n"
FAILS_ONCE = """
import pathlib

from nodeless import RetryLater

def handle(event):
    marker = pathlib.Path(event.data.decode())
    if not marker.exists():
        marker.write_text("failed once")
        raise RetryLater(after_s=6)
    return b"second time"
"""


class Dispatching:
    """One broker, one dispatcher, one node, one namespace."""

    def __init__(
        self,
        plane: ControlPlane,
        cluster: Cluster,
        connection: Connection,
        broker: Broker,
        namespace: str,
        directory: Path,
    ) -> None:
        self.cluster, self.connection, self.broker = cluster, connection, broker
        self.namespace, self.directory = namespace, directory
        self.node_name = f"node-{namespace}"
        self.health_port = free_port()
        self.log = directory / "dispatcher.log"
        self._process: subprocess.Popen[bytes] | None = None
        kubeconfig = directory / "kubeconfig"
        plane.issue_kubeconfig(kubeconfig, DISPATCHER_USER)
        credentials = broker.credential_files()["dispatcher"]
        seed = directory / "account.seed"
        seed.write_text(broker.account_seed)
        self._environment = {
            "PATH": os.environ["PATH"],
            "NODELESS_DISPATCHER_NATS_URL": broker.url,
            "NODELESS_DISPATCHER_NATS_CREDENTIALS": str(credentials),
            "NODELESS_DISPATCHER_NATS_ACCOUNT_SEED": str(seed),
            "NODELESS_DISPATCHER_KUBECONFIG": str(kubeconfig),
            "NODELESS_DISPATCHER_HEALTH_PORT": str(self.health_port),
        }

    # -- the dispatcher

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bus.dispatcher"], env=self._environment, stdout=output, stderr=output
            )

    async def start(self) -> None:
        self.launch()
        await self.wait(self.is_ready, "the dispatcher to be ready", 20)

    async def is_ready(self) -> bool:
        async with httpx.AsyncClient(trust_env=False) as client:
            try:
                return (await client.get(f"http://127.0.0.1:{self.health_port}/readyz")).status_code == 200
            except httpx.HTTPError:
                return False

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> int:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(10)

    # -- functions

    async def deploy(
        self,
        name: str,
        code: str,
        *,
        subject: str | None = None,
        scaling: dict[str, Any] | None = None,
        delivery: dict[str, Any] | None = None,
        is_awaited: bool = True,
    ) -> dict[str, Any]:
        digest = await put_bundle(self.connection, archive_of({"app.py": File(code.encode())}))
        spec = {
            "handler": "app:handle",
            "code": {"bundle": digest},
            "triggers": [{"subject": subject or f"events.{self.namespace}.{name}"}],
            "scaling": {"idle": "1s", **(scaling or {})},
            "delivery": delivery or {},
            "pod": {"nodeSelector": {"kubernetes.io/hostname": self.node_name}},
        }
        body = {
            "apiVersion": "nodeless.dev/v1alpha1",
            "kind": "Function",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": spec,
        }
        applied = await self.cluster.apply(FUNCTIONS, body, field_manager="test", namespace=self.namespace)
        if is_awaited:
            await self.condition(name, "Subscribed", "True")
        return applied

    async def function(self, name: str) -> dict[str, Any]:
        return await self.cluster.get(FUNCTIONS, name, self.namespace)

    async def condition(
        self, name: str, type_: str, status: str, reason: str = "", seconds: float = 15
    ) -> dict[str, Any]:
        """Wait for a condition about the current generation."""
        found: dict[str, Any] = {}

        async def is_there() -> bool:
            function = await self.function(name)
            for condition in function.get("status", {}).get("conditions", ()):
                if condition["type"] == type_ and condition["observedGeneration"] == function["metadata"]["generation"]:
                    found.clear()
                    found.update(condition)
                    return condition["status"] == status and reason in ("", condition["reason"])
            return False

        await self.wait(is_there, f"{name}: {type_}={status} {reason}, seen {found}", seconds)
        return found

    async def pods(self, name: str) -> list[dict[str, Any]]:
        listed = await self.cluster.list(PODS, self.namespace, label_selector=f"nodeless.dev/function={name}")
        return list(listed["items"])

    async def wait_pods(self, name: str, count: int, seconds: float = 15) -> list[dict[str, Any]]:
        async def are_there() -> bool:
            return len(await self.pods(name)) == count

        await self.wait(are_there, f"{count} pods of {name}", seconds)
        return await self.pods(name)

    # -- events

    async def publish(self, name: str, data: bytes = b"", *, count: int = 1) -> None:
        for _ in range(count):
            id_ = uuid.uuid4().hex
            event = Event(subject=f"events.{self.namespace}.{name}", id=id_, source="tests", type="t", data=data)
            await self.connection.publish(event)

    async def state(self, name: str) -> ConsumerState:
        return await consumer_state(self.connection, "EVENTS", consumer_name(self.namespace, name))

    async def results(self, name: str) -> int:
        subject = f"results.{self.namespace}.{name}.>"
        info = await self.connection.api("STREAM.INFO.RESULTS", {"subjects_filter": subject})
        return len(info["state"].get("subjects") or {})

    async def wait_results(self, name: str, count: int, seconds: float = 20) -> None:
        async def are_there() -> bool:
            return await self.results(name) == count

        await self.wait(are_there, f"{count} results of {name}", seconds)

    async def wait_settled(self, name: str, seconds: float = 20) -> None:
        async def is_settled() -> bool:
            state = await self.state(name)
            return state.pending == 0 and state.ack_pending == 0

        await self.wait(is_settled, f"all events of {name} settled", seconds)

    async def wait_in_flight(self, name: str, count: int) -> None:
        async def are_in_flight() -> bool:
            return (await self.state(name)).ack_pending == count

        await self.wait(are_in_flight, f"{count} events of {name} in flight")

    async def wait(self, condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 15) -> None:
        with anyio.move_on_after(seconds):
            while not await condition():
                await anyio.sleep(0.03)
            return
        raise AssertionError(f"waited {seconds:g} s for {what}; the dispatcher's log:\n{self.log.read_text()[-6000:]}")


@asynccontextmanager
async def running_dispatcher(
    plane: ControlPlane, cluster: Cluster, namespace: str, directory: Path
) -> AsyncIterator[Dispatching]:
    async with (
        running_broker(directory / "nats", has_streams=False) as broker,
        open_connection(broker.config("admin")) as connection,
    ):
        system = Dispatching(plane, cluster, connection, broker, namespace, directory)
        try:
            await system.start()
            yield system
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(30):
                await _remove_functions(system)
            assert system._process is not None
            if system._process.poll() is None:
                system.stop()


async def _remove_functions(system: Dispatching) -> None:
    names = [item["metadata"]["name"] for item in (await system.cluster.list(FUNCTIONS, system.namespace))["items"]]
    if names and system._process is not None and system._process.poll() is not None:
        system.launch()
    for name in names:
        with suppress(NotFound):
            await system.cluster.delete(FUNCTIONS, name, system.namespace)
    while (await system.cluster.list(FUNCTIONS, system.namespace))["items"]:
        await anyio.sleep(0.05)
