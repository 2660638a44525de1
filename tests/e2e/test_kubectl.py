"""What a Kubernetes user expects of functions, pods and nodes, with the real kubectl."""

import json
import subprocess

import pytest

from tests.system import System, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.integration]

GREET = """
from nodeless import Event, function

@function(subject="events.greet.>", name="{name}", idle="{idle}")
def greet(event: Event):
    print("hello", event.text())
    return event.text().upper()
"""


def ready(system: System, function: str) -> dict[str, object]:
    return system.condition(function, "Ready")


def wait_result(system: System, function: str, text: str) -> None:
    eventually(lambda: system.nodeless("results", function), lambda printed: text in printed)


def test_functions_pods_and_nodes_are_listed_wide(system: System) -> None:
    system.deploy(GREET.format(name="listed", idle="60s"))
    system.nodeless("publish", "greet.a", "world")
    pod = eventually(
        lambda: system.pods_of("listed"), lambda pods: any(p["status"]["phase"] == "Running" for p in pods)
    )[0]
    functions = system.kubectl("get", "functions", "-o", "wide").splitlines()
    pods = system.kubectl("get", "pods", "-o", "wide")
    nodes = system.kubectl("get", "nodes", "-o", "wide")

    assert functions[0].split()[:4] == ["NAME", "READY", "SUBJECTS", "WORKERS"]
    assert "events.greet.>" in "".join(functions)
    assert pod["metadata"]["name"] in pods
    assert pod["spec"]["nodeName"] in nodes
    assert " Ready " in nodes
    assert pod["metadata"]["ownerReferences"][0]["kind"] == "Function"
    system.nodeless("delete", "listed")


def test_logs_are_followed_while_the_worker_prints(system: System) -> None:
    system.deploy(GREET.format(name="followed", idle="60s"))
    system.nodeless("publish", "greet.b", "one")
    (pod,) = eventually(
        lambda: system.pods_of("followed"), lambda pods: len(pods) == 1 and pods[0]["status"]["phase"] == "Running"
    )
    name = pod["metadata"]["name"]
    eventually(lambda: system.kubectl("logs", name), lambda text: "hello one" in text)
    following = subprocess.Popen(
        ["kubectl", "logs", "-f", name], env=system.environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert following.stdout is not None
        system.nodeless("publish", "greet.b", "two")
        lines: list[str] = []
        while not any("hello two" in line for line in lines):
            line = following.stdout.readline()
            assert line, f"the log ended: {lines}"
            lines.append(line)
    finally:
        following.terminate()
        following.communicate(timeout=10)
    assert any("hello one" in line for line in lines)
    system.nodeless("delete", "followed")


def test_describe_tells_conditions_and_decisions(system: System) -> None:
    system.deploy(GREET.format(name="described", idle="60s"))
    system.nodeless("publish", "greet.c", "x")
    eventually(lambda: system.pods_of("described"), bool)
    text = eventually(
        lambda: system.kubectl("describe", "function", "described"),
        lambda text: "ScaledUp" in text.split("Events:")[-1],
    )

    assert "Subscribed" in text
    pod = system.pods_of("described")[0]["metadata"]["name"]
    assert "Scheduled" in system.kubectl("describe", "pod", pod)
    system.nodeless("delete", "described")


def test_deleting_a_function_takes_its_pods_and_its_consumer(system: System) -> None:
    system.deploy(GREET.format(name="deleted", idle="60s"))
    system.nodeless("publish", "greet.d", "x")
    eventually(lambda: system.pods_of("deleted"), bool)
    system.kubectl("delete", "function", "deleted", "--timeout=60s")

    eventually(lambda: system.pods_of("deleted"), lambda pods: not pods)
    assert "deleted" not in system.kubectl("get", "secrets", "-o", "name")
    assert "deleted" not in system.nodeless("functions")


def test_deleting_a_function_works_right_after_the_system_came_up(own_system: System) -> None:
    """Kubernetes' garbage collector learns of a new kind only after tens of seconds."""
    own_system.deploy(GREET.format(name="early", idle="60s"))
    own_system.nodeless("publish", "greet.e", "x")
    eventually(lambda: own_system.pods_of("early"), bool)
    own_system.kubectl("delete", "function", "early", "--timeout=20s")

    eventually(lambda: own_system.pods_of("early"), lambda pods: not pods, timeout_s=20)


def test_applying_a_function_twice_changes_nothing(system: System) -> None:
    system.deploy(GREET.format(name="applied", idle="60s"))
    bundle = system.object("function", "applied")["spec"]["code"]["bundle"]
    manifest = json.dumps(
        {
            "apiVersion": "nodeless.dev/v1alpha1", "kind": "Function", "metadata": {"name": "by-hand"},
            "spec": {"handler": "app:greet", "code": {"bundle": bundle}, "triggers": [{"subject": "events.hand.*"}]},
        }
    )  # fmt: skip
    system.kubectl("apply", "--server-side", "-f", "-", stdin=manifest)
    eventually(lambda: ready(system, "by-hand"), lambda condition: condition["status"] == "True")
    before = eventually(
        lambda: system.object("function", "by-hand"), lambda item: bool(item["metadata"].get("finalizers"))
    )
    system.kubectl("apply", "--server-side", "-f", "-", stdin=manifest)
    after = system.object("function", "by-hand")

    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    system.nodeless("delete", "by-hand", "applied")


def test_kubectl_scale_sets_the_floor(system: System) -> None:
    system.deploy(GREET.format(name="scaled", idle="1s"))
    system.kubectl("scale", "function", "scaled", "--replicas=2")
    eventually(
        lambda: system.pods_of("scaled"), lambda pods: [p["status"].get("phase") for p in pods] == ["Running"] * 2
    )
    system.kubectl("scale", "function", "scaled", "--replicas=0")

    eventually(lambda: system.pods_of("scaled"), lambda pods: not pods, timeout_s=45)
    system.nodeless("delete", "scaled")


def test_a_worker_goes_when_it_is_idle_and_comes_back_for_the_next_event(system: System) -> None:
    system.deploy(GREET.format(name="sleepy", idle="1s"))
    for number in range(3):
        system.nodeless("publish", "greet.sleepy", f"n{number}")
        wait_result(system, "sleepy", f"N{number}")
        eventually(lambda: system.pods_of("sleepy"), lambda pods: not pods, timeout_s=45)

    assert system.nodeless("dead", "list", "sleepy").strip() == ""
    system.nodeless("delete", "sleepy")


def test_jobs_and_deployments_run_on_the_virtual_node(system: System) -> None:
    system.kubectl("create", "job", "hello", "--image=nodeless/host", "--", "sh", "-c", "echo from a job")
    system.kubectl("wait", "--for=condition=complete", "job/hello", "--timeout=60s")

    assert system.kubectl("logs", "job/hello").strip() == "from a job"
    system.kubectl("create", "deployment", "web", "--image=nodeless/host", "--replicas=2", "--", "sleep", "300")
    system.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    system.kubectl("delete", "deployment/web", "job/hello", "--timeout=60s")


def test_a_pod_that_cannot_run_here_says_why(system: System) -> None:
    system.kubectl("run", "nginx", "--image=nginx", "--restart=Never")
    text = eventually(lambda: system.kubectl("describe", "pod", "nginx"), lambda text: "Failed" in text)

    assert "nodeless/worker" in text
    assert "nginx" in text
    system.kubectl("delete", "pod", "nginx", "--timeout=30s")
