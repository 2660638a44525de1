"""What the rest of the project relies on of the broker, through our door to it, on a real nats-server."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from bus.core.assignment import Assignment, bundle_digest, consumer_name
from bus.core.errors import (
    BrokerUnavailable,
    HeadersTooLarge,
    NotAllowed,
    NotFound,
    PayloadTooLarge,
    PublishUnconfirmed,
    SequenceConflict,
    StreamMismatch,
)
from bus.core.event import Event, event_of
from bus.core.topology import ConsumerSpec
from bus.jetstream.connection import HEADER_BYTES_MAX, BusConfig, Connection, Message, open_connection
from bus.jetstream.consumer import PULL_EXPIRES_S, open_pull
from bus.jetstream.delivery import Delivery
from bus.jetstream.objects import get_bundle, put_bundle
from bus.jetstream.reading import read
from bus.jetstream.topology import consumer_state, delete_consumer, ensure_consumer, ensure_streams
from tests.broker import Broker, free_port, running_broker

pytestmark = pytest.mark.integration


def event(number: int, subject: str = "events.orders.created") -> Event:
    return Event(subject=subject, id=f"e{number}", source="tests", type="orders.created", data=b'{"n":%d}' % number)


def spec(name: str = "billing-1", *patterns: str, lease_s: float = 6.0) -> ConsumerSpec:
    return ConsumerSpec(
        name=name,
        stream="EVENTS",
        patterns=patterns or ("events.orders.>",),
        owner="default/billing",
        owner_uid="u",
        lease_s=lease_s,
    )


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with running_broker(tmp_path / "nats") as running:
        yield running


@pytest.fixture
async def connection(broker: Broker) -> AsyncIterator[Connection]:
    async with open_connection(broker.config("admin")) as opened:
        yield opened


class Deliveries:
    """Collects what a pull brings, and waits for it."""

    def __init__(self) -> None:
        self.all: list[Delivery] = []
        self._came = asyncio.Event()

    def __call__(self, delivery: Delivery) -> None:
        self.all.append(delivery)
        self._came.set()

    async def wait_for(self, count: int, timeout_s: float = 10.0) -> list[Delivery]:
        async with asyncio.timeout(timeout_s):
            while len(self.all) < count:
                self._came.clear()
                await self._came.wait()
        return self.all


def fail(error: Exception) -> None:
    raise AssertionError(error)


async def test_an_event_comes_back_as_it_was_published(connection: Connection) -> None:
    sent = Event(
        subject="events.orders.created",
        id='a "quoted" id',
        source="https://shop.example/ü",
        type="orders.created",
        time="2026-01-31T12:00:00Z",
        datacontenttype="application/json",
        ce_subject="order 1%",
        extensions={"traceparent": "00-1-2-03"},
        data=b"{}",
    )

    stored = await connection.publish(sent)
    message = await connection.message_at("EVENTS", stored.sequence)

    assert message is not None
    assert event_of(message.subject, message.headers, message.data, stream="EVENTS", sequence=1, stored_at="") == sent


async def test_the_same_source_and_id_are_stored_once(connection: Connection) -> None:
    first, second = await connection.publish(event(1)), await connection.publish(event(1))

    assert (first.duplicate, second.duplicate) == (False, True)
    assert first.sequence == second.sequence


async def test_a_second_result_is_refused_by_the_broker(connection: Connection) -> None:
    await connection.store("results.default.billing.x", b"1", expected_last_subject_sequence=0)

    with pytest.raises(SequenceConflict):
        await connection.store("results.default.billing.x", b"2", expected_last_subject_sequence=0)


async def test_what_is_too_large_is_refused_before_it_is_sent(connection: Connection) -> None:
    with pytest.raises(PayloadTooLarge):
        await connection.store("events.big", b"x" * 3_000_000)
    with pytest.raises(PayloadTooLarge):
        await connection.store("events.big", b"x" * 1_500_000)


async def test_headers_are_taken_up_to_what_the_broker_stores(connection: Connection) -> None:
    fitting = HEADER_BYTES_MAX - 12 - len("long") - 4
    assert (await connection.store("events.long", b"", {"long": "x" * fitting})).sequence == 1
    with pytest.raises(HeadersTooLarge):
        await connection.store("events.long", b"", {"long": "x" * (fitting + 1)})


async def test_a_stored_event_is_signalled_headers_only(connection: Connection) -> None:
    signals: asyncio.Queue[Message] = asyncio.Queue()
    await connection.subscribe("wake.orders.>", signals.put_nowait)
    await connection.flush()

    stored = await connection.publish(event(1))
    signal_ = await asyncio.wait_for(signals.get(), 5)

    assert (signal_.subject, signal_.data) == ("wake.orders.created", b"")
    assert signal_.headers["Nats-Sequence"] == str(stored.sequence)
    assert signal_.headers["ce-id"] == "e1"


async def test_ensuring_twice_changes_nothing_and_filters_change_in_place(connection: Connection) -> None:
    assert await ensure_streams(connection) == []
    assert await ensure_consumer(connection, spec()) == ["consumer billing-1: it set to 'created'"]
    assert await ensure_consumer(connection, spec()) == []
    await ensure_consumer(connection, spec("billing-1", "events.a", "events.b.*", "events.b.c"))

    assert (await consumer_state(connection, "EVENTS", "billing-1")).patterns == ("events.a", "events.b.*")
    assert await ensure_consumer(connection, spec("billing-1", "events.b.*", "events.a")) == []


async def test_a_stream_that_cannot_be_changed_in_place_is_refused_by_name(connection: Connection) -> None:
    await connection.api("STREAM.DELETE.DEAD")
    await connection.api(
        "STREAM.CREATE.DEAD", {"name": "DEAD", "subjects": ["dead.>"], "storage": "memory", "retention": "limits"}
    )

    with pytest.raises(StreamMismatch, match=r"DEAD.*storage='memory'.*'file'"):
        await ensure_streams(connection)


async def test_deliveries_are_settled_once_and_counted(connection: Connection) -> None:
    await ensure_consumer(connection, spec())
    for number in range(3):
        await connection.publish(event(number))
    came = Deliveries()
    async with open_pull(connection, "EVENTS", "billing-1", came, fail) as pull:
        pull.want(10)
        first, second, third = await came.wait_for(3)
        assert [each.count for each in came.all] == [1, 1, 1]
        # What the broker tells of those that wait may be one too low for a moment, never too high.
        pending = [each.pending for each in came.all]
        assert all(told <= left for told, left in zip(pending, (2, 1, 0), strict=True)), pending
        assert pending[0] > 0
        await pull.ack(first)
        await pull.terminate(second, "never\nagain")
        await pull.retry_after(third, 0.2)
        again = (await came.wait_for(4))[3]
        await pull.ack(again)
        state = await consumer_state(connection, "EVENTS", "billing-1")

    assert (again.sequence, again.count) == (third.sequence, 2)
    assert (state.ack_pending, state.pending, state.ack_floor_sequence) == (0, 0, third.sequence)


async def test_a_renewed_lease_is_kept_and_a_forgotten_one_ends(connection: Connection) -> None:
    await ensure_consumer(connection, spec(lease_s=1.0))
    await connection.publish(event(1))
    came = Deliveries()
    async with open_pull(connection, "EVENTS", "billing-1", came, fail) as pull:
        pull.want(5)
        (delivery,) = await came.wait_for(1)
        for _ in range(8):
            await asyncio.sleep(0.3)
            await pull.extend([delivery])
        assert len(came.all) == 1
        await came.wait_for(2, timeout_s=5)

    assert came.all[1].count == 2


async def test_a_parked_pull_survives_kill_and_restart_of_the_broker(broker: Broker, connection: Connection) -> None:
    await ensure_consumer(connection, spec())
    came = Deliveries()
    async with open_pull(connection, "EVENTS", "billing-1", came, fail) as pull:
        pull.want(5)
        await connection.flush()
        await broker.restart()
        await connection.wait_connected(10)
        await connection.publish(event(1))
        published_s = time.monotonic()
        (delivery,) = await came.wait_for(1, timeout_s=10)
        waited_s = time.monotonic() - published_s
        await pull.ack(delivery)

    assert waited_s < 5, "the pull was not made again until some timeout"


async def test_no_more_is_asked_for_than_wanted(connection: Connection) -> None:
    await ensure_consumer(connection, spec())
    for number in range(20):
        await connection.publish(event(number))
    came = Deliveries()
    async with open_pull(connection, "EVENTS", "billing-1", came, fail) as pull:
        pull.want(4)
        await came.wait_for(4)
        pull.want(0)
        await asyncio.sleep(0.3)
        assert pull.asked + len(came.all) <= 8
        state = await consumer_state(connection, "EVENTS", "billing-1")

    assert state.ack_pending == len(came.all)


async def wait_parked(connection: Connection) -> None:
    """Return when the server has the pull request."""
    async with asyncio.timeout(5):
        while not (await consumer_state(connection, "EVENTS", "billing-1")).waiting:
            await asyncio.sleep(0.01)


async def test_a_parked_request_is_renewed_for_as_long_as_nothing_comes(connection: Connection) -> None:
    await ensure_consumer(connection, spec())
    came = Deliveries()
    async with open_pull(connection, "EVENTS", "billing-1", came, fail) as pull:
        pull.want(1)
        await asyncio.sleep(PULL_EXPIRES_S * 2)
        await wait_parked(connection)
        await connection.publish(event(1))
        await came.wait_for(1)


async def test_a_fence_of_an_idle_pull_ends_and_nothing_is_delivered_into_the_void(connection: Connection) -> None:
    """The event is published in every moment of a fence: it comes to us, or stays for others."""
    await ensure_consumer(connection, spec())
    for number in range(8):
        came = Deliveries()
        async with open_pull(connection, "EVENTS", "billing-1", came, fail) as pull:
            pull.want(1)
            await wait_parked(connection)
            fencing = asyncio.ensure_future(pull.fence())
            await asyncio.sleep(number * PULL_EXPIRES_S / 7)
            await connection.publish(event(number))
            await fencing
            await asyncio.sleep(0.1)
            state = await consumer_state(connection, "EVENTS", "billing-1")
            assert state.ack_pending == len(came.all)
            for delivery in came.all:
                await pull.ack(delivery)
        if state.pending:  # for others: for the next round's worker
            async with open_pull(connection, "EVENTS", "billing-1", rest := Deliveries(), fail) as other:
                other.want(1)
                (left,) = await rest.wait_for(1)
                await other.ack(left)
                await other.fence()


async def test_a_fence_hands_over_what_crossed_and_asks_for_no_more(broker: Broker, connection: Connection) -> None:
    await ensure_consumer(connection, spec())
    came = Deliveries()
    async with open_pull(connection, "EVENTS", "billing-1", came, fail) as pull:
        pull.want(100)
        await connection.flush()
        publishing = asyncio.gather(*(connection.publish(event(number)) for number in range(200)))
        await came.wait_for(1)
        await pull.fence()
        handed_over = len(came.all)
        await publishing
        await asyncio.sleep(0.3)
        state = await consumer_state(connection, "EVENTS", "billing-1")

    assert len(came.all) == handed_over == state.ack_pending
    assert state.pending == 200 - handed_over
    assert state.waiting == 0


async def test_a_deleted_consumer_is_told(connection: Connection) -> None:
    await ensure_consumer(connection, spec())
    gone: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
    async with open_pull(connection, "EVENTS", "billing-1", Deliveries(), gone.set_result) as pull:
        pull.want(1)
        await wait_parked(connection)
        await delete_consumer(connection, "EVENTS", "billing-1")
        assert isinstance(await asyncio.wait_for(gone, 5), NotFound)
    await delete_consumer(connection, "EVENTS", "billing-1")


async def test_a_consumer_that_is_made_anew_goes_on_where_its_function_was(connection: Connection) -> None:
    await ensure_consumer(connection, spec())
    for number in range(4):
        await connection.publish(event(number))
    came = Deliveries()
    async with open_pull(connection, "EVENTS", "billing-1", came, fail) as pull:
        pull.want(2)
        for delivery in (await came.wait_for(2))[:2]:
            await pull.ack(delivery)
    settled_to = (await consumer_state(connection, "EVENTS", "billing-1")).ack_floor_sequence
    await delete_consumer(connection, "EVENTS", "billing-1")

    assert await ensure_consumer(connection, spec(), settled_to=settled_to)
    assert (await consumer_state(connection, "EVENTS", "billing-1")).pending == 2
    assert await ensure_consumer(connection, spec(), settled_to=settled_to) == []
    assert await ensure_consumer(connection, spec("billing-1", "events.orders.*"), settled_to=settled_to)

    # The stream itself was lost too: what it has now came later than all that was settled.
    await delete_consumer(connection, "EVENTS", "billing-1")
    assert await ensure_consumer(connection, spec(), settled_to=1000)
    assert (await consumer_state(connection, "EVENTS", "billing-1")).pending == 4


async def test_a_flush_that_was_given_up_does_not_end_the_connection(broker: Broker, connection: Connection) -> None:
    broker.signal(signal.SIGSTOP)
    await asyncio.sleep(0.1)  # not all of its threads stop at once
    with pytest.raises(BrokerUnavailable):
        await connection.flush(1)
    flushing = asyncio.ensure_future(connection.flush())
    await asyncio.sleep(0.1)
    flushing.cancel()
    broker.signal(signal.SIGCONT)

    await connection.flush(1)
    assert (await connection.store("events.a", b"", timeout_s=1)).sequence == 1


async def test_storing_while_the_broker_is_away_fails_in_bounded_time(broker: Broker, connection: Connection) -> None:
    broker.signal(signal.SIGSTOP)
    with pytest.raises(PublishUnconfirmed):
        await connection.store("events.a", b"", timeout_s=0.5)
    broker.kill()
    with pytest.raises((BrokerUnavailable, PublishUnconfirmed)):
        await asyncio.wait_for(connection.store("events.a", b"", timeout_s=2), 4)


async def test_the_first_contact_has_a_deadline(broker: Broker) -> None:
    started_s = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        async with open_connection(BusConfig(url=f"nats://127.0.0.1:{free_port()}", connect_s=1.0)):
            pass
    assert time.monotonic() - started_s < 5
    with pytest.raises(BrokerUnavailable, match=r"not let in|Authorization"):
        async with open_connection(BusConfig(url=broker.url, connect_s=5.0)):
            pass


async def test_reading_goes_to_the_end_or_follows(connection: Connection) -> None:
    for number in range(600):
        await connection.publish(event(number, f"events.read.{number % 2}"))
    async with aclosing(read(connection, "EVENTS", "events.read.0")) as messages:
        sequences = [message.sequence async for message in messages]
    assert sequences == list(range(1, 601, 2))
    async with aclosing(read(connection, "EVENTS", "events.absent")) as messages:
        assert [message async for message in messages] == []
    async with aclosing(read(connection, "EVENTS", "events.read.>", start=599, follow=True)) as messages:
        assert (await anext(messages)).sequence == 599
        assert (await anext(messages)).sequence == 600
        await connection.publish(event(1000, "events.read.9"))
        assert (await asyncio.wait_for(anext(messages), 5)).subject == "events.read.9"


async def test_a_follower_goes_on_over_a_restart(broker: Broker, connection: Connection) -> None:
    async with aclosing(read(connection, "EVENTS", "events.>", start="new", follow=True)) as messages:
        coming = asyncio.ensure_future(anext(messages))
        await asyncio.sleep(0.2)
        await broker.restart()
        await connection.wait_connected(10)
        await connection.publish(event(1))
        assert (await asyncio.wait_for(coming, 15)).sequence == 1


ASSIGNMENT = Assignment(
    namespace="default",
    function="billing",
    uid="u",
    version="v1",
    handler="app:f",
    bundle=bundle_digest(b"x" * 300_000),
    consumer=consumer_name("default", "billing"),
)


async def test_bundles_are_stored_once_and_read_with_a_workers_rights(broker: Broker, connection: Connection) -> None:
    digest = await put_bundle(connection, b"x" * 300_000)
    assert await put_bundle(connection, b"x" * 300_000) == digest
    other = await put_bundle(connection, b"other")
    info = await connection.api("STREAM.INFO.OBJ_BUNDLES")

    async with open_connection(broker.worker_config(ASSIGNMENT)) as worker:
        assert await get_bundle(worker, digest) == b"x" * 300_000
        with pytest.raises(NotAllowed):
            await get_bundle(worker, other)
    assert info["state"]["messages"] == 3 + 1 + 1 + 1
    with pytest.raises(NotFound):
        await get_bundle(connection, "sha256:" + "0" * 64)


async def test_a_worker_may_do_its_own_things_and_nothing_else(broker: Broker, connection: Connection) -> None:
    own, foreign = ASSIGNMENT.consumer, "other-1"
    await ensure_consumer(connection, spec(own))
    await ensure_consumer(connection, spec(foreign))
    await connection.publish(event(1))
    came, stolen = Deliveries(), Deliveries()
    async with open_connection(broker.worker_config(ASSIGNMENT)) as worker:
        async with open_pull(worker, "EVENTS", own, came, fail) as pull:
            pull.want(1)
            await pull.ack((await came.wait_for(1))[0])
        await worker.store("results.default.billing.x", b"")
        await worker.store(ASSIGNMENT.attempts_subject(1), b"")
        await worker.store(ASSIGNMENT.dead_subject, b"")
        for subject in (
            "events.a",
            "results.default.other.x",
            "dead.default.other",
            "attempts.default.other.EVENTS.1",
            "$JS.API.INFO",
        ):
            with pytest.raises(NotAllowed):
                await worker.store(subject, b"", timeout_s=2)
        async with open_pull(worker, "EVENTS", foreign, stolen, fail) as pull:
            pull.want(1)
            await asyncio.sleep(0.5)
        with pytest.raises(NotAllowed):
            await worker.api(f"CONSUMER.INFO.EVENTS.{own}")
        overheard: list[Message] = []
        await worker.subscribe(">", overheard.append)
        await connection.publish(event(2))
        await connection.flush()
    assert stolen.all == []
    assert overheard == []


async def test_only_bridges_publish_what_is_bridged(broker: Broker) -> None:
    async with open_connection(broker.config("gateway")) as gateway:
        await gateway.publish(event(1))
        with pytest.raises(NotAllowed):
            await gateway.publish(event(2, "events.git.push.local.shop.heads.main"))
    async with open_connection(broker.config("git")) as git:
        await git.publish(event(3, "events.git.push.local.shop.heads.main"))
        found = await git.last_message("EVENTS", "events.git.push.local.shop.heads.main")
        assert found is not None
        with pytest.raises(NotAllowed):
            await git.publish(event(4))
