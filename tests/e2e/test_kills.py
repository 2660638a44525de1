"""SIGKILL to each program in the middle of 500 events: every event is handled, none is lost, none is dead."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from contextlib import aclosing

import httpx
import pytest

from bus.core.assignment import consumer_name
from bus.jetstream.connection import Connection, open_connection
from bus.jetstream.reading import read
from bus.jetstream.topology import consumer_state
from tests.system import System, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(240)]

EVENTS = 500
KILL_AFTER = 120
"""Results, before the kill."""
HANDLED_WITHIN_S = 120.0

SOURCE = """
import asyncio
from nodeless import Event, function

@function(subject="events.kills.{name}", concurrency=10, max=3, idle="5s")
async def {function}(event: Event):
    await asyncio.sleep(0.05)
    return event.json()
"""


def program(name: str) -> Callable[[System, str], list[int]]:
    def pids(system: System, function: str) -> list[int]:
        return [each["pid"] for each in system.status()["components"] if each["component"] == name]

    return pids


def process(module: str) -> Callable[[System, str], list[int]]:
    """One that the node started: known by its command line only."""

    def pids(system: System, function: str) -> list[int]:
        return [pid for pid, command in system.processes().items() if module in command]

    return pids


def worker(system: System, function: str) -> list[int]:
    uids = [pod["metadata"]["uid"] for pod in system.pods_of(function)]
    records = [system.home / "node" / "pods" / uid / "worker" / "0" / "process.json" for uid in uids]
    return [json.loads(path.read_text())["pid"] for path in records if path.exists()][:1]


def node_and_parent(system: System, function: str) -> list[int]:
    return program("node")(system, function) + process("workers.prefork")(system, function)


VICTIMS: dict[str, Callable[[System, str], list[int]]] = {
    "worker": worker,
    "node": program("node"),
    "prefork": process("workers.prefork"),
    "node-and-prefork": node_and_parent,
    "dispatcher": program("dispatcher"),
    "gateway": program("gateway"),
    "nats-server": program("nats-server"),
    "kube-apiserver": program("kube-apiserver"),
    "etcd": program("etcd"),
    "kube-scheduler": program("kube-scheduler"),
    "kube-controller-manager": program("kube-controller-manager"),
}


async def publish_all(system: System, name: str) -> None:
    """Publish over HTTP as another system would: again with the same id until it is stored."""
    status = system.status()
    headers = {"Authorization": f"Bearer {(system.home / 'programs' / 'gateway' / 'token').read_text().strip()}"}
    limit = asyncio.Semaphore(8)
    async with httpx.AsyncClient(base_url=status["gateway_url"], headers=headers, timeout=5.0) as client:

        async def publish(number: int) -> None:
            event = {
                "ce-specversion": "1.0", "ce-id": f"{name}-{number}", "ce-source": "tests/kills", "ce-type": f"kills.{name}",
                "content-type": "application/json",
            }  # fmt: skip
            async with limit:
                while True:
                    try:
                        answer = await client.post("/", headers=event, content=str(number).encode())
                    except httpx.TransportError:
                        await asyncio.sleep(0.1)
                        continue
                    if answer.status_code == 202:
                        return
                    assert answer.status_code in {429, 503}, answer.text
                    await asyncio.sleep(0.1)

        await asyncio.gather(*(publish(number) for number in range(EVENTS)))


class Results:
    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.workers: set[str] = set()
        self._came = asyncio.Event()

    async def collect(self, connection: Connection, function: str) -> None:
        async with aclosing(read(connection, "RESULTS", f"results.default.{function}.*", follow=True)) as messages:
            async for message in messages:
                self.numbers.append(int(message.data))
                self.workers.add(message.headers["Nodeless-Worker-Uid"])
                self._came.set()

    async def wait_for(self, count: int, timeout_s: float) -> None:
        async with asyncio.timeout(timeout_s):
            while len(self.numbers) < count:
                self._came.clear()
                await self._came.wait()


@pytest.mark.parametrize("victim", VICTIMS)
async def test_every_event_is_handled_although_a_program_is_killed(system: System, victim: str) -> None:
    function = f"kill-{victim}"
    system.deploy(SOURCE.format(name=victim, function=function.replace("-", "_")))
    async with open_connection(system.target.bus) as connection:
        results = Results()
        collecting = asyncio.ensure_future(results.collect(connection, function))
        publishing = asyncio.ensure_future(publish_all(system, victim))
        try:
            await results.wait_for(KILL_AFTER, 60)
            pids = VICTIMS[victim](system, function)
            assert pids, f"no process of {victim}"
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            await publishing
            try:
                await results.wait_for(EVENTS, HANDLED_WITHIN_S)
            except TimeoutError:
                missing = sorted(set(range(EVENTS)) - set(results.numbers))
                state = await consumer_state(connection, "EVENTS", consumer_name("default", function))
                pytest.fail(f"{len(missing)} events not handled: {missing[:10]}; consumer {state}")
            async with asyncio.timeout(30):
                while (
                    state := await consumer_state(connection, "EVENTS", consumer_name("default", function))
                ).pending or state.ack_pending:
                    await asyncio.sleep(0.1)
            async with aclosing(read(connection, "DEAD", f"dead.default.{function}")) as letters:
                dead = [letter.headers["Nodeless-Dead"] async for letter in letters]
        finally:
            for task in (collecting, publishing):
                task.cancel()
            await asyncio.wait({collecting, publishing})

    assert sorted(results.numbers) == list(range(EVENTS))
    assert not dead
    # Whoever was killed is back.
    eventually(system.status, lambda status: bool(status["ready"]))
    system.nodeless("delete", function)
