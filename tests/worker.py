"""Real workers for tests: a function on a real broker, and `python -m workers` as a process of its own."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec

from bus.core.assignment import (
    ENVIRONMENT_ASSIGNMENT,
    ENVIRONMENT_BUNDLES,
    ENVIRONMENT_GRACE_S,
    ENVIRONMENT_NATS_CREDENTIALS,
    ENVIRONMENT_NATS_URL,
    ENVIRONMENT_NODE_NAME,
    ENVIRONMENT_POD_NAME,
    ENVIRONMENT_POD_UID,
    ENVIRONMENT_TERMINATION_LOG,
    Assignment,
    DeliveryPolicy,
    consumer_name,
    encode_assignment,
)
from bus.core.attempts import DeadLetter
from bus.core.event import Event
from bus.core.reports import WorkerReport
from bus.core.topology import ConsumerSpec
from bus.jetstream.connection import Connection, Message, open_connection
from bus.jetstream.objects import put_bundle
from bus.jetstream.reading import read
from bus.jetstream.topology import ConsumerState, consumer_state, ensure_consumer
from nodeless.packaging.archive import File, archive_of
from tests.broker import Broker

ROOT = Path(__file__).resolve().parent.parent
SUBJECT = "events.orders.created"


class DeadEvent(msgspec.Struct, frozen=True):
    letter: DeadLetter
    headers: dict[str, str]
    data: bytes


class Worker:
    """One `python -m workers`."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path, uid: str, name: str) -> None:
        self.process, self.directory, self.uid, self.name = process, directory, uid, name

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    @property
    def termination(self) -> str:
        return (self.directory / "termination").read_text()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def wait(self, timeout_s: float = 20.0) -> int:
        async with asyncio.timeout(timeout_s):
            while (status := self.process.poll()) is None:
                await asyncio.sleep(0.02)
        return status

    async def wait_log(self, text: str, count: int = 1, timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s):
            while self.log.count(text) < count:
                await asyncio.sleep(0.02)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=10)


class FunctionOnBus:
    """One function: its code in the object store, its consumer, and whatever it leaves behind."""

    def __init__(self, broker: Broker, admin: Connection, assignment: Assignment, directory: Path) -> None:
        self.broker, self.admin, self.assignment, self.directory = broker, admin, assignment, directory
        self.workers: list[Worker] = []

    def start_worker(self, *, grace_s: float = 10.0, name: str = "") -> Worker:
        uid = str(uuid.uuid4())
        name = name or f"worker-{len(self.workers)}"
        directory = self.directory / name
        directory.mkdir()
        environment = {
            "PATH": os.environ["PATH"],
            ENVIRONMENT_ASSIGNMENT: encode_assignment(self.assignment),
            ENVIRONMENT_NATS_URL: self.broker.url,
            ENVIRONMENT_NATS_CREDENTIALS: self.broker.worker_credentials(self.assignment),
            ENVIRONMENT_POD_NAME: name,
            ENVIRONMENT_POD_UID: uid,
            ENVIRONMENT_NODE_NAME: "tests",
            ENVIRONMENT_BUNDLES: str(self.directory / "bundles"),
            ENVIRONMENT_TERMINATION_LOG: str(directory / "termination"),
            ENVIRONMENT_GRACE_S: str(grace_s),
            "PYTHONUNBUFFERED": "1",
        }
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "workers"], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )  # fmt: skip
        worker = Worker(process, directory, uid, name)
        self.workers.append(worker)
        return worker

    async def publish(self, count: int = 1, *, first: int = 1) -> list[Event]:
        events = [
            Event(
                subject=SUBJECT, id=f"e{number}", source="tests", type="orders.created",
                datacontenttype="application/json", data=b'{"n":%d}' % number,
            )
            for number in range(first, first + count)
        ]  # fmt: skip
        for event in events:
            await self.admin.publish(event)
        return events

    async def state(self) -> ConsumerState:
        return await consumer_state(self.admin, "EVENTS", self.assignment.consumer)

    async def wait_settled(self, timeout_s: float = 30.0) -> None:
        """Return when every event that is stored is settled. (The consumer's own count may lag behind the stream.)"""
        async with asyncio.timeout(timeout_s):
            while True:
                last = (await self.admin.api("STREAM.INFO.EVENTS"))["state"]["last_seq"]
                state = await self.state()
                if state.ack_floor_sequence >= last and not state.ack_pending:
                    return
                await asyncio.sleep(0.05)

    async def wait_recorded(self, sequence: int, timeout_s: float = 20.0) -> None:
        """Return when there is a record of an attempt with that event."""
        subject = self.assignment.attempts_subject(sequence)
        async with asyncio.timeout(timeout_s):
            while await self.admin.last_message("ATTEMPTS", subject) is None:
                await asyncio.sleep(0.02)

    async def results(self) -> dict[str, tuple[bytes, dict[str, str]]]:
        """Return value and headers of each stored result, by event id."""
        found = {}
        async with aclosing(read(self.admin, "RESULTS", f"{self.assignment.results_prefix}.*")) as messages:
            async for message in messages:
                found[message.headers["Nodeless-Event-Id"]] = (message.data, message.headers)
        return found

    async def dead(self) -> list[DeadEvent]:
        found = []
        async with aclosing(read(self.admin, "DEAD", self.assignment.dead_subject)) as messages:
            async for message in messages:
                letter = msgspec.json.decode(message.headers["Nodeless-Dead"], type=DeadLetter)
                found.append(DeadEvent(letter, message.headers, message.data))
        return found

    async def report_where(self, worker: Worker, state: str, timeout_s: float = 20.0) -> WorkerReport:
        """Wait for a report of that worker in that state."""
        came: asyncio.Future[WorkerReport] = asyncio.get_running_loop().create_future()

        def on_report(message: Message) -> None:
            report = msgspec.json.decode(message.data, type=WorkerReport)
            if report.state == state and not came.done():
                came.set_result(report)

        subscription = await self.admin.subscribe(self.assignment.report_subject(worker.uid), on_report)
        try:
            async with asyncio.timeout(timeout_s):
                return await came
        finally:
            await subscription.unsubscribe()


@asynccontextmanager
async def function_on(
    broker: Broker,
    directory: Path,
    source: str,
    *,
    name: str = "billing",
    handler: str = "app:handle",
    concurrency: int = 10,
    lease_s: float = 2.0,
    delivery: DeliveryPolicy | None = None,
) -> AsyncIterator[FunctionOnBus]:
    """Put a function on the bus; its workers end with the block."""
    async with open_connection(broker.config("admin")) as admin:
        digest = await put_bundle(admin, archive_of({"app.py": File(source.encode())}))
        assignment = Assignment(
            namespace="default", function=name, uid="00000000-0000-0000-0000-000000000001", version="v1", handler=handler,
            bundle=digest, consumer=consumer_name("default", name), concurrency=concurrency, lease_s=lease_s,
            delivery=delivery or DeliveryPolicy(attempts=3, backoff_initial_s=0.05, backoff_factor=1.0),
        )  # fmt: skip
        await ensure_consumer(
            admin,
            ConsumerSpec(
                name=assignment.consumer, stream="EVENTS", patterns=("events.orders.>",), owner=f"default/{name}",
                owner_uid=assignment.uid, lease_s=lease_s,
            ),
        )  # fmt: skip
        function = FunctionOnBus(broker, admin, assignment, directory)
        try:
            yield function
        finally:
            for worker in function.workers:
                worker.end()
