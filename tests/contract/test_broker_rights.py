"""What each user of the broker may do and, above all, may not: tried as that user, on a real nats-server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from bus.core.assignment import Assignment, bundle_digest, consumer_name
from bus.core.errors import NotAllowed
from bus.core.event import Event
from bus.core.topology import ConsumerSpec
from bus.jetstream.connection import Connection, Message, open_connection
from bus.jetstream.reading import read
from bus.jetstream.topology import consumer_state, delete_consumer, ensure_consumer, ensure_streams, message_count
from tests.broker import Broker, running_broker

pytestmark = pytest.mark.integration


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with running_broker(tmp_path / "nats") as running:
        yield running


@pytest.fixture
async def admin(broker: Broker) -> AsyncIterator[Connection]:
    async with open_connection(broker.config("admin")) as opened:
        yield opened


def assignment(function: str) -> Assignment:
    return Assignment(
        namespace="default", function=function, uid="u", version="v1", handler="app:f",
        bundle=bundle_digest(function.encode()), consumer=consumer_name("default", function),
    )  # fmt: skip


OWN, FOREIGN = assignment("own"), assignment("foreign")


async def test_a_worker_cannot_reach_another_functions_events_over_any_form_of_acknowledgement(
    broker: Broker, admin: Connection
) -> None:
    """`+NXT` on a consumer's acknowledgement subject is a pull, and a foreign `+TERM` would be a loss."""
    for each in (OWN, FOREIGN):
        spec = ConsumerSpec(
            name=each.consumer, stream="EVENTS", patterns=(f"events.{each.function}",), owner=each.function, owner_uid="u"
        )  # fmt: skip
        await ensure_consumer(admin, spec)
    await admin.publish(Event(subject="events.foreign", id="1", source="tests", type="t", data=b"secret"))
    places = [f"$JS.ACK.EVENTS.{FOREIGN.consumer}", f"$JS.ACK._.account.EVENTS.{FOREIGN.consumer}"]
    crossed = [
        f"$JS.ACK.EVENTS.{FOREIGN.consumer}.EVENTS.{OWN.consumer}",
        f"$JS.ACK.EVENTS.{OWN.consumer}.EVENTS.{FOREIGN.consumer}",
    ]
    stolen: list[bytes] = []

    async with open_connection(broker.worker_config(OWN)) as worker:
        await worker.subscribe(f"{OWN.inbox_prefix}.stolen", lambda message: stolen.append(message.data))
        await worker.send(
            f"$JS.API.CONSUMER.MSG.NEXT.EVENTS.{FOREIGN.consumer}", b"1", reply=f"{OWN.inbox_prefix}.stolen"
        )
        for place in (*places, *crossed):
            for tokens in range(1, 8):
                subject = f"{place}{'.1' * tokens}"
                for body in (b"+NXT", b"+TERM", b"+ACK"):
                    await worker.send(subject, body, reply=f"{OWN.inbox_prefix}.stolen")
        await worker.flush()
        await asyncio.sleep(0.3)
    state = await consumer_state(admin, "EVENTS", FOREIGN.consumer)

    assert b"secret" not in stolen
    assert (state.pending, state.ack_pending, state.ack_floor_sequence) == (1, 0, 0)


ADMINISTRATION = (
    "$JS.API.STREAM.DELETE.EVENTS",
    "$JS.API.STREAM.PURGE.DEAD",
    "$JS.API.STREAM.UPDATE.EVENTS",
    "$JS.API.STREAM.MSG.DELETE.EVENTS",
    "$JS.API.CONSUMER.DELETE.EVENTS.foreign-1",
    "$JS.API.CONSUMER.DURABLE.CREATE.EVENTS.foreign-1",
    "$JS.API.CONSUMER.UNPIN.EVENTS.foreign-1",
    "control.default.foreign.uid",
    "reports.default.foreign.uid",
    "wake.orders",
    "attempts.default.foreign.EVENTS.1",
    "dead.default.foreign",
    "results.default.foreign.digest",
)


@pytest.mark.parametrize("program", ["gateway", "git", "cli", "worker"])
async def test_no_user_but_the_dispatcher_administers_or_speaks_for_others(broker: Broker, program: str) -> None:
    config = broker.worker_config(OWN) if program == "worker" else broker.config(program)
    async with open_connection(config) as connection:
        for subject in ADMINISTRATION:
            with pytest.raises(NotAllowed):
                await connection.store(subject, b"", timeout_s=2)


async def test_the_dispatcher_makes_what_functions_need_and_can_neither_forge_nor_destroy_events(
    broker: Broker, admin: Connection
) -> None:
    spec = ConsumerSpec(name=OWN.consumer, stream="EVENTS", patterns=("events.a",), owner="default/own", owner_uid="u")
    await admin.store(OWN.attempts_subject(1), b"record")
    async with open_connection(broker.config("dispatcher")) as dispatcher:
        assert await ensure_streams(dispatcher) == []
        for patterns in (("events.a",), ("events.a", "events.b.*"), ("events.c.>",)):
            assert await ensure_consumer(dispatcher, msgspec.structs.replace(spec, patterns=patterns))
        assert (await consumer_state(dispatcher, "EVENTS", OWN.consumer)).pending == 0
        assert await message_count(dispatcher, "DEAD", OWN.dead_subject) == 0
        async with aclosing(read(dispatcher, "ATTEMPTS", "attempts.default.own.EVENTS.*")) as records:
            assert [record.data async for record in records] == [b"record"]
        await delete_consumer(dispatcher, "EVENTS", OWN.consumer)
        for subject in (
            "events.a",
            "dead.default.own",
            "reports.default.own.uid",
            "$JS.API.STREAM.DELETE.EVENTS",
            "$JS.API.STREAM.PURGE.EVENTS",
            "$JS.API.STREAM.MSG.DELETE.EVENTS",
            "$JS.API.DIRECT.GET.EVENTS",
            f"$JS.API.CONSUMER.MSG.NEXT.EVENTS.{FOREIGN.consumer}",
        ):
            with pytest.raises(NotAllowed):
                await dispatcher.store(subject, b"", timeout_s=2)


@pytest.mark.parametrize("program", ["gateway", "git", "dispatcher", "worker"])
async def test_nobody_overhears_what_is_not_theirs(broker: Broker, admin: Connection, program: str) -> None:
    config = broker.worker_config(OWN) if program == "worker" else broker.config(program)
    overheard: list[Message] = []
    subjects = [
        "_INBOX_admin.x",
        f"{FOREIGN.inbox_prefix}.x",
        "control.default.foreign.uid",
        "$JS.ACK.EVENTS.foreign-1.1",
    ]
    async with open_connection(config) as connection:
        for pattern in (">", "_INBOX_admin.>", f"{FOREIGN.inbox_prefix}.>", "control.>", "$JS.ACK.>", "events.>"):
            await connection.subscribe(pattern, overheard.append)
        await connection.flush()
        for subject in (*subjects, "events.orders"):
            await admin.send(subject, b"x")
        await admin.flush()
        await connection.flush()

    assert overheard == []
