"""The dispatcher with real workers, on a node that is the test: it wakes, scales, replaces, mends, tells and takes down."""

import json
import os
import signal
import statistics
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import anyio
import pytest

from bus.cluster.connection import Cluster
from bus.cluster.errors import NotFound
from bus.cluster.resources import EVENTS, FUNCTIONS, PODS, SECRETS
from bus.core.assignment import WOKEN_ANNOTATION
from bus.core.errors import NotFound as NotOnBroker
from bus.jetstream.topology import message_count
from nodeless.embedded.controlplane.launch import ControlPlane
from tests.dispatching import BROKEN, ECHO, FAILS_ONCE, SLOW, Dispatching, running_dispatcher
from tests.standin import StandInNode, running_node

pytestmark = pytest.mark.integration


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


async def test_the_first_event_makes_a_pod_that_a_kubelet_can_run(system: Dispatching) -> None:
    await system.deploy("hello", ECHO, delivery={"timeout": "40s"})
    assert await system.pods("hello") == []

    await system.publish("hello")
    (pod,) = await system.wait_pods("hello", 1)

    function = await system.function("hello")
    assert pod["metadata"]["name"] == f"hello-{function['metadata']['uid'][:8]}-0"
    assert pod["metadata"]["labels"]["nodeless.dev/version"] == function["status"]["version"]
    assert pod["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "nodeless"
    (owner,) = pod["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("Function", function["metadata"]["uid"], True)
    woken = datetime.fromisoformat(pod["metadata"]["annotations"][WOKEN_ANNOTATION])
    assert woken.tzinfo is not None
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["spec"]["terminationGracePeriodSeconds"] == 45
    assert pod["spec"]["automountServiceAccountToken"] is False
    environment = {each["name"]: each for each in pod["spec"]["containers"][0]["env"]}
    assert json.loads(environment["NODELESS_ASSIGNMENT"]["value"])["handler"] == "app:handle"
    reference = environment["NODELESS_NATS_CREDENTIALS"]["valueFrom"]["secretKeyRef"]
    secret = await system.cluster.get(SECRETS, reference["name"], system.namespace)
    assert reference["key"] in secret["data"]


async def test_a_function_wakes_handles_its_event_and_sleeps_again(system: Dispatching, node: StandInNode) -> None:
    await system.deploy("echo", ECHO)

    await system.publish("echo", b"1")
    await system.wait_results("echo", 1)
    await system.wait_pods("echo", 0)
    await system.publish("echo", b"2")
    await system.wait_results("echo", 2)
    await system.wait_pods("echo", 0)

    await system.wait_settled("echo")
    await system.condition("echo", "Ready", "True", "Asleep")
    assert len(node.started) == 2
    logs = [path.read_text() for path in (system.directory / "node").glob("*/log")]
    assert all("SIGTERM received" in log for log in logs)
    events = (await system.cluster.list(EVENTS, system.namespace))["items"]
    assert {"Subscribed", "ScaledUp", "ScaledDown"} <= {event["reason"] for event in events}


async def test_a_backlog_makes_more_workers_up_to_the_ceiling_and_none_beyond(
    system: Dispatching, node: StandInNode
) -> None:
    await system.deploy("slow", SLOW, scaling={"max": 3, "concurrency": 2})

    await system.publish("slow", b"0.3", count=24)
    await system.wait_pods("slow", 3)
    seen = 0
    with anyio.fail_after(30):
        while await system.results("slow") < 24:
            seen = max(seen, len(await system.pods("slow")))
            await anyio.sleep(0.05)
    await system.wait_pods("slow", 0)

    assert seen == 3
    assert (await system.state("slow")).redelivered == 0
    await system.wait_settled("slow")


async def test_a_deleted_function_leaves_nothing_behind(system: Dispatching, node: StandInNode) -> None:
    await system.deploy("gone", SLOW, scaling={"min": 2})
    await system.wait_pods("gone", 2)
    await system.publish("gone", b"0.5")
    await system.wait_in_flight("gone", 1)

    await system.cluster.delete(FUNCTIONS, "gone", system.namespace)

    async def is_gone() -> bool:
        with suppress(NotFound):
            await system.function("gone")
            return False
        return True

    await system.wait(is_gone, "the function to be gone", 20)
    assert await system.pods("gone") == []
    with pytest.raises(NotOnBroker):
        await system.state("gone")
    assert await system.results("gone") == 1

    async def is_secret_gone() -> bool:
        with suppress(NotFound):
            await system.cluster.get(SECRETS, "gone-bus", system.namespace)
            return False
        return True

    # The garbage collector learns of a new kind within half a minute.
    await system.wait(is_secret_gone, "the Secret to be collected", 60)


async def test_a_redeployment_replaces_workers_one_by_one(system: Dispatching, node: StandInNode) -> None:
    await system.deploy("twice", ECHO, scaling={"min": 2})
    before = {pod["metadata"]["uid"] for pod in await system.wait_pods("twice", 2)}
    await system.condition("twice", "Ready", "True", "Serving")

    await system.deploy("twice", SLOW, scaling={"min": 2})

    async def are_replaced() -> bool:
        pods = await system.pods("twice")
        return len(pods) == 2 and not before & {pod["metadata"]["uid"] for pod in pods}

    await system.wait(are_replaced, "other workers")
    await system.publish("twice", b"0")
    await system.wait_results("twice", 1)


async def test_an_unusable_handler_is_told_its_events_wait_and_a_redeployment_mends_it(
    system: Dispatching, node: StandInNode
) -> None:
    await system.deploy("broken", BROKEN)

    await system.publish("broken", b"0")
    condition = await system.condition("broken", "Ready", "False", "HandlerUnusable")
    await anyio.sleep(4.5)

    assert "No module named 'a_module_that_is_not_there'" in condition["message"]
    # The first start, and one after 1 s and after 2 s more: no loop.
    assert 2 <= len(node.started) <= 3
    assert (await system.state("broken")).pending == 1
    (exhibit,) = await system.pods("broken")
    assert exhibit["status"]["phase"] == "Failed"
    await system.condition("broken", "Scaling", "False", "BackingOff")

    await system.deploy("broken", ECHO)
    await system.wait_results("broken", 1)
    await system.condition("broken", "Ready", "True")


async def test_events_stored_while_the_dispatcher_is_dead_are_found_when_it_is_back(
    system: Dispatching, node: StandInNode
) -> None:
    await system.deploy("late", ECHO)
    system.kill()

    await system.publish("late", b"x", count=5)
    await anyio.sleep(0.5)
    assert await system.pods("late") == []
    await system.start()

    await system.wait_results("late", 5, 10)


async def test_workers_go_on_while_the_dispatcher_is_dead_and_are_known_again(
    system: Dispatching, node: StandInNode
) -> None:
    await system.deploy("steady", SLOW, scaling={"idle": "8s"})
    await system.publish("steady", b"0")
    await system.wait_results("steady", 1)
    system.kill()

    await system.publish("steady", b"0.1", count=20)
    await system.wait_results("steady", 21)
    await system.start()
    await system.condition("steady", "Ready", "True", "Serving")
    await system.wait_pods("steady", 0, 20)

    assert len(node.started) == 1


async def test_an_event_in_flight_at_a_dead_worker_starts_another(system: Dispatching, node: StandInNode) -> None:
    await system.deploy("dies", SLOW, scaling={"concurrency": 1})
    await system.publish("dies", b"3")
    (pod,) = await system.wait_pods("dies", 1)

    await system.wait_in_flight("dies", 1)
    node.kill(pod["metadata"]["name"])

    await system.wait_results("dies", 1, 25)
    await system.wait_settled("dies")
    assert len(node.started) == 2


async def test_an_orphaned_event_is_found_after_a_restart(system: Dispatching, node: StandInNode) -> None:
    await system.deploy("orphan", SLOW, scaling={"concurrency": 1})
    await system.publish("orphan", b"2")
    (pod,) = await system.wait_pods("orphan", 1)

    await system.wait_in_flight("orphan", 1)
    system.kill()
    node.kill(pod["metadata"]["name"])
    await anyio.sleep(0.2)
    await system.cluster.delete(PODS, pod["metadata"]["name"], system.namespace, grace_s=0)
    await system.start()

    await system.wait_results("orphan", 1, 25)


async def test_a_retry_that_is_due_later_keeps_no_worker_and_wakes_the_function_when_due(
    system: Dispatching, node: StandInNode
) -> None:
    await system.deploy("retry", FAILS_ONCE)
    marker = system.directory / "marker"

    await system.publish("retry", str(marker).encode())
    await system.wait_pods("retry", 1)
    await system.wait_pods("retry", 0, 5)
    assert marker.exists()
    assert (await system.state("retry")).ack_pending == 1
    function = await system.function("retry")
    await system.wait_results("retry", 1, 12)

    assert function["status"]["inFlight"] == 1
    assert len(node.started) == 2


async def test_a_broker_that_restarts_loses_no_function_and_no_signal(system: Dispatching, node: StandInNode) -> None:
    await system.deploy("again", ECHO)
    await system.publish("again", b"1")
    await system.wait_results("again", 1)
    await system.wait_pods("again", 0)

    await system.broker.restart()
    await system.connection.wait_connected(10)
    await system.publish("again", b"2")
    await system.wait_results("again", 2)
    assert await system.is_ready()


async def test_dead_letters_are_counted(system: Dispatching, node: StandInNode) -> None:
    await system.deploy("fails", "def handle(event):\n    raise ValueError('no')\n", delivery={"attempts": 1})

    await system.publish("fails", count=2)

    async def are_counted() -> bool:
        return bool((await system.function("fails"))["status"]["dead"] == 2)

    await system.wait(are_counted, "two dead letters in the status")
    assert await message_count(system.connection, "DEAD", f"dead.{system.namespace}.fails") == 2


async def test_a_pod_that_the_api_server_refuses_is_told(system: Dispatching) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    await system.cluster.call("POST", f"/api/v1/namespaces/{system.namespace}/resourcequotas", body=quota)
    await anyio.sleep(0.5)
    await system.deploy("refused", ECHO)

    await system.publish("refused")

    condition = await system.condition("refused", "Ready", "False", "PodsRefused")
    assert "quota" in condition["message"]


async def test_a_pod_without_a_node_is_told(system: Dispatching) -> None:
    await system.deploy("nowhere", ECHO)

    await system.publish("nowhere")

    condition = await system.condition("nowhere", "Scaling", "False", "Unschedulable")
    assert "available" in condition["message"]


async def test_an_object_that_cannot_work_is_told_mended_and_deleted(system: Dispatching, node: StandInNode) -> None:
    # 600 characters are within the schema's bound, and their 1,200 bytes are not within the broker's.
    await system.deploy("odd", ECHO, subject="events." + "ü" * 600, is_awaited=False)
    condition = await system.condition("odd", "Subscribed", "False", "InvalidSpec")
    assert "longer than 1024 bytes" in condition["message"]

    await system.deploy("odd", ECHO)
    await system.publish("odd")
    await system.wait_results("odd", 1)
    await system.deploy("odd", ECHO, subject="events." + "ü" * 600, is_awaited=False)
    await system.condition("odd", "Ready", "False", "InvalidSpec")
    await system.cluster.delete(FUNCTIONS, "odd", system.namespace)

    async def is_gone() -> bool:
        return not (await system.cluster.list(FUNCTIONS, system.namespace))["items"]

    await system.wait(is_gone, "the function to be gone")


async def test_kubectl_describes_what_was_decided_and_why(
    system: Dispatching, node: StandInNode, installed: ControlPlane
) -> None:
    await system.deploy("told", BROKEN)
    await system.publish("told")
    await system.condition("told", "Ready", "False", "HandlerUnusable")
    await anyio.sleep(0.3)

    described = subprocess.run(
        ["kubectl", "--kubeconfig", installed.kubeconfig, "-n", system.namespace, "describe", "function", "told"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip

    assert "Subscribed" in described
    assert "0 -> 1 workers: an event was stored" in described
    assert "app cannot be imported: ModuleNotFoundError" in described


async def test_a_changed_subject_moves_the_subscription_of_a_sleeping_function(
    system: Dispatching, node: StandInNode
) -> None:
    await system.deploy("moves", ECHO)
    await system.deploy("moves", ECHO, subject=f"events.{system.namespace}.elsewhere")

    await system.publish("moves", b"to nobody")
    await system.publish("elsewhere", b"to it")
    await system.wait_results("moves", 1, 5)
    await system.wait_settled("moves")
    assert await system.results("moves") == 1


async def test_the_api_server_may_be_away_for_a_while(
    system: Dispatching, node: StandInNode, plane: ControlPlane
) -> None:
    """The watch breaks, requests fail, and what came meanwhile is done afterwards."""
    await system.deploy("patient", ECHO)
    # A child of this very process, on a port that is ours.
    pattern = f"apiserver.*--secure-port={plane.ports.api_server}"
    (pid,) = map(int, subprocess.check_output(["pgrep", "-P", str(os.getpid()), "-f", pattern]).split())
    os.kill(pid, signal.SIGSTOP)
    try:
        await system.publish("patient")
        await anyio.sleep(2)
    finally:
        os.kill(pid, signal.SIGCONT)

    await system.wait_results("patient", 1)


async def test_the_dispatcher_stops_when_asked(system: Dispatching) -> None:
    assert system.stop() == 0


async def test_from_the_signal_to_the_stored_pod_takes_milliseconds(
    system: Dispatching, record_property: Callable[[str, object], None]
) -> None:
    names = [f"fast-{number}" for number in range(20)]
    for name in names:
        await system.deploy(name, ECHO)
    await anyio.sleep(1)
    for name in names:
        await system.publish(name)
        await system.wait_pods(name, 1)
        await anyio.sleep(0.1)

    made = [line for line in system.log.read_text().splitlines() if "took_ms=" in line]
    took_ms = [float(line.split("took_ms=")[1].split()[0]) for line in made]
    assert len(took_ms) == 20
    record_property("signal_to_pod_ms", statistics.median(took_ms))
    memory = (Path("/proc") / str(system.pid) / "smaps_rollup").read_text().splitlines()
    record_property("memory", "; ".join(line for line in memory if line.startswith(("Rss", "Pss:"))))
    left_ms = [float(line.split("left_ms=")[1].split()[0]) for line in made]
    record_property("signal_to_request_ms", statistics.median(left_ms))
    assert statistics.median(left_ms) < 2
    assert statistics.median(took_ms) < 100
