"""What could lose an event at the dispatcher: a race with going to sleep, a signal that never comes, a cursor that is gone,
a death between any two steps.
"""

import random
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from bus.cluster.connection import Cluster
from bus.cluster.errors import NotFound
from bus.cluster.resources import FUNCTIONS
from bus.core.assignment import consumer_name
from bus.jetstream.topology import delete_consumer
from nodeless.embedded.controlplane.launch import ControlPlane
from tests.dispatching import ECHO, SLOW, Dispatching, running_dispatcher
from tests.standin import StandInNode, running_node

pytestmark = pytest.mark.integration

CROSS_CHECK_S = 20.0
"""What is found by the dispatcher's cross-check alone is found within this."""


@pytest.fixture
async def system(
    installed: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path
) -> AsyncIterator[Dispatching]:
    async with running_dispatcher(installed, cluster, namespace, tmp_path) as running:
        yield running


@pytest.fixture
async def node(system: Dispatching) -> AsyncIterator[StandInNode]:
    async with running_node(system.cluster, system.node_name, system.directory / "node") as running:
        yield running


async def test_an_event_stored_in_the_moment_of_going_to_sleep_is_handled_at_once(
    system: Dispatching, node: StandInNode
) -> None:
    await system.deploy("drowsy", ECHO, scaling={"idle": "200ms"})
    draw = random.Random(7)

    for number in range(1, 21):
        await system.publish("drowsy")
        # Well within the cross-check, which would find it too.
        await system.wait_results("drowsy", number, 6)
        await anyio.sleep(0.15 + 0.2 * draw.random())

    assert len(node.started) > 3  # it slept in between
    await system.wait_settled("drowsy")


async def test_a_broker_killed_while_a_function_goes_to_sleep_costs_no_event(
    system: Dispatching, node: StandInNode
) -> None:
    """The connection breaks between any two of: listen, confirm, read, fence."""
    await system.deploy("shaken", ECHO, scaling={"idle": "200ms"})
    draw = random.Random(11)

    for number in range(1, 6):
        await system.publish("shaken")
        # A worker that was fenced and not heard for that is a matter of seconds.
        await system.wait_results("shaken", number, 10)
        await anyio.sleep(0.15 + 0.2 * draw.random())
        await system.broker.restart()
        await system.connection.wait_connected(10)
    await system.wait_settled("shaken")


async def test_an_event_whose_signal_never_comes_is_found_by_the_cross_check(
    system: Dispatching, node: StandInNode
) -> None:
    await system.deploy("deaf", ECHO)
    config = (await system.connection.api("STREAM.INFO.EVENTS"))["config"]
    await system.connection.api("STREAM.UPDATE.EVENTS", {**config, "republish": None})

    await system.publish("deaf")
    await system.wait_results("deaf", 1, CROSS_CHECK_S + 5)


async def test_a_consumer_deleted_by_hand_costs_no_event(system: Dispatching, node: StandInNode) -> None:
    await system.deploy("robbed", SLOW, scaling={"concurrency": 2, "max": 1})
    await system.publish("robbed", b"0.1", count=4)
    await system.wait_results("robbed", 4)
    await system.publish("robbed", b"0.3", count=10)
    await system.wait_in_flight("robbed", 2)

    await delete_consumer(system.connection, "EVENTS", consumer_name(system.namespace, "robbed"))
    await system.wait_results("robbed", 14, CROSS_CHECK_S + 15)
    await system.wait_settled("robbed")


async def test_a_consumer_lost_while_the_dispatcher_is_dead_costs_no_event_and_repeats_none_that_was_settled(
    system: Dispatching, node: StandInNode
) -> None:
    await system.deploy("amnesia", ECHO)
    await system.publish("amnesia", count=5)
    await system.wait_results("amnesia", 5)
    await system.wait_pods("amnesia", 0)
    floor = (await system.state("amnesia")).ack_floor_sequence

    async def is_told() -> bool:
        return bool((await system.function("amnesia"))["status"].get("settledTo") == floor)

    await system.wait(is_told, "the place in the stream to be told")
    system.kill()
    await delete_consumer(system.connection, "EVENTS", consumer_name(system.namespace, "amnesia"))
    await system.publish("amnesia", count=3)
    await system.start()

    await system.wait_results("amnesia", 8)
    await system.wait_settled("amnesia")
    assert await _acknowledged(system, "amnesia") == 3


async def _acknowledged(system: Dispatching, name: str) -> int:
    """Return how many deliveries the present consumer has made in all."""
    info = await system.connection.api(f"CONSUMER.INFO.EVENTS.{consumer_name(system.namespace, name)}")
    return int(info["ack_floor"]["consumer_seq"])


async def test_a_dispatcher_killed_between_any_two_steps_leaves_nothing_half_done(
    system: Dispatching, node: StandInNode
) -> None:
    for number, after_s in enumerate((0.0, 0.01, 0.03, 0.06)):
        name = f"step-{number}"
        await system.deploy(name, ECHO, is_awaited=False)
        await anyio.sleep(after_s)  # finalizer, consumer, Secret: it has come as far as it has come
        system.kill()
        await system.start()
        await system.condition(name, "Subscribed", "True")

        await system.publish(name)
        await anyio.sleep(after_s / 3)  # no pod, or one that nobody remembers
        system.kill()
        await system.start()
        await system.wait_results(name, 1)

    # One pod for each, and no second one under another name.
    assert len(node.started) == len(set(node.started)) == 4
    for number in range(4):
        await system.wait_pods(f"step-{number}", 0)


async def test_a_function_deleted_and_made_again_at_once_is_another_one(system: Dispatching, node: StandInNode) -> None:
    """The name is the same, and so are the consumer's, the subjects' and the Secret's."""
    await system.deploy("phoenix", SLOW)
    await system.publish("phoenix", b"1.5")
    await system.wait_in_flight("phoenix", 1)

    await system.cluster.delete(FUNCTIONS, "phoenix", system.namespace)

    async def is_gone() -> bool:
        with suppress(NotFound):
            await system.function("phoenix")
            return False
        return True

    await system.wait(is_gone, "the old one to be gone")
    after = await system.deploy("phoenix", ECHO)
    await system.publish("phoenix", b"again")

    await system.wait_results("phoenix", 2)
    await system.wait_settled("phoenix")
    (pod,) = await system.pods("phoenix")
    assert pod["metadata"]["ownerReferences"][0]["uid"] == after["metadata"]["uid"]
    assert len(node.started) == 2
