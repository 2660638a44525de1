"""The virtual node as a Kubernetes user meets it: real control plane, real processes, real kubectl."""

import os
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from bus.cluster.connection import Cluster, ClusterConfig, open_cluster
from bus.cluster.errors import ClusterError, Forbidden, NotFound
from bus.cluster.manifests import apply_documents, documents_of
from bus.cluster.resources import (
    CLUSTER_ROLE_BINDINGS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    EVENTS,
    LEASES,
    NODES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    Resource,
)
from nodeless.embedded.controlplane.launch import ControlPlane, running_control_plane
from tests.integration.conftest import MANIFESTS
from tests.node import RunningNode, running_node

pytestmark = pytest.mark.integration

JOBS = Resource("batch", "v1", "jobs", "Job", True)
SOON_S = 20.0
SHELL = ["sh", "-c"]
# In a pod's command `$$` stands for one `$`: `echo $$$$` prints the shell's process id.


@pytest.fixture(scope="session")
async def node(installed: ControlPlane) -> AsyncIterator[RunningNode]:
    async with running_node(installed, "vn-test") as running:
        yield running


def pod_of(name: str, script: str, **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "image": "nodeless/host", "command": [*SHELL, script], **spec.pop("container", {})}
    defaults = {"restartPolicy": "Never", "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 5}
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeSelector": {"kubernetes.io/hostname": "vn-test"}, "containers": [container], **defaults, **spec},
    }  # fmt: skip


async def wait_pod(
    cluster: Cluster, namespace: str, name: str, holds: Callable[[dict[str, Any]], bool], within_s: float = SOON_S
) -> dict[str, Any]:
    pod: dict[str, Any] = {}
    with anyio.move_on_after(within_s):
        while True:
            pod = await cluster.get(PODS, name, namespace)
            if holds(pod):
                return pod
            await anyio.sleep(0.02)
    raise AssertionError(f"pod {name} did not get there within {within_s:g} s: {pod.get('status')}")


async def wait_gone(cluster: Cluster, namespace: str, name: str, within_s: float = SOON_S) -> None:
    with anyio.fail_after(within_s):
        while True:
            try:
                await cluster.get(PODS, name, namespace)
            except NotFound:
                return
            await anyio.sleep(0.02)


def is_in(*phases: str) -> Callable[[dict[str, Any]], bool]:
    return lambda pod: pod["status"].get("phase") in phases


def state_of(pod: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = pod["status"]["containerStatuses"][0]["state"]
    return state


def seconds_of(time_: str) -> float:
    return datetime.fromisoformat(time_).timestamp()


async def kubectl(plane: ControlPlane, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = ["kubectl", "--kubeconfig", str(plane.kubeconfig), *arguments]
    return await anyio.to_thread.run_sync(lambda: subprocess.run(argv, capture_output=True, text=True, timeout=60))


async def events_of(cluster: Cluster, namespace: str, name: str, reason: str) -> list[dict[str, Any]]:
    with anyio.move_on_after(SOON_S):
        while True:
            selector = f"involvedObject.name={name},reason={reason}"
            found: list[dict[str, Any]] = (await cluster.list(EVENTS, namespace, field_selector=selector))["items"]
            if found:
                return found
            await anyio.sleep(0.05)
    return []


async def log_of(cluster: Cluster, namespace: str, name: str) -> list[str]:
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/log"
    return [line async for line in cluster.lines(path)]


# -- the node


async def test_the_node_is_ready_with_its_labels_addresses_capacity_and_lease(
    cluster: Cluster, node: RunningNode
) -> None:
    found = await cluster.get(NODES, node.name)
    lease = await cluster.get(LEASES, node.name, "kube-node-lease")

    labels, status = found["metadata"]["labels"], found["status"]
    assert labels["type"] == "virtual-kubelet"
    assert labels["kubernetes.io/hostname"] == node.name
    assert status["addresses"] == [{"type": "InternalIP", "address": "127.0.0.1"}]
    assert status["daemonEndpoints"]["kubeletEndpoint"]["Port"] == node.port
    assert status["allocatable"]["pods"] == "500"
    assert int(status["capacity"]["cpu"]) == os.cpu_count()
    assert {each["type"]: each["status"] for each in status["conditions"]} == {
        "Ready": "True", "MemoryPressure": "False", "DiskPressure": "False", "PIDPressure": "False",
        "NetworkUnavailable": "False",
    }  # fmt: skip
    assert status["nodeInfo"]["kubeletVersion"].startswith((await cluster.version())["gitVersion"])
    assert lease["spec"]["leaseDurationSeconds"] == 40
    assert lease["metadata"]["ownerReferences"][0]["uid"] == found["metadata"]["uid"]


async def test_a_node_that_somebody_deletes_comes_back_at_once(cluster: Cluster, installed: ControlPlane) -> None:
    async with running_node(installed, "vn-deleted", "--taint", "--backend", "memory"):
        before = await cluster.get(NODES, "vn-deleted")
        assert {"key": "virtual-kubelet.io/provider", "value": "nodeless", "effect": "NoSchedule"} in before["spec"][
            "taints"
        ]

        await cluster.delete(NODES, "vn-deleted")

        with anyio.fail_after(SOON_S):
            while True:
                try:
                    after = await cluster.get(NODES, "vn-deleted")
                    if after["metadata"]["uid"] != before["metadata"]["uid"]:
                        break
                except NotFound:
                    pass
                await anyio.sleep(0.02)


# -- the life of a pod


async def test_a_pod_runs_and_its_end_is_told_with_times_code_and_reason(
    cluster: Cluster, node: RunningNode, namespace: str
) -> None:
    began_s = time.time()
    await cluster.create(PODS, pod_of("ends", "echo working; sleep 1; exit 3"), namespace)
    running = await wait_pod(cluster, namespace, "ends", is_in("Running"))
    pod = await wait_pod(cluster, namespace, "ends", is_in("Failed", "Succeeded"))

    conditions = {each["type"]: each["status"] for each in running["status"]["conditions"]}
    end = state_of(pod)["terminated"]
    assert conditions["Ready"] == conditions["PodScheduled"] == conditions["ContainersReady"] == "True"
    assert running["status"]["podIP"] == "127.0.0.1"
    assert pod["status"]["phase"] == "Failed"
    assert (end["exitCode"], end["reason"]) == (3, "Error")
    assert began_s - 1 <= seconds_of(end["startedAt"]) < seconds_of(end["finishedAt"]) <= time.time()
    assert pod["status"]["qosClass"] == "BestEffort"
    assert await events_of(cluster, namespace, "ends", "Started")


async def test_kubectl_logs_follows_a_pod_to_its_end(
    cluster: Cluster, node: RunningNode, namespace: str, installed: ControlPlane
) -> None:
    script = "for i in 1 2 3; do echo line $i; sleep 0.5; done"
    await cluster.create(PODS, pod_of("talks", script), namespace)
    await wait_pod(cluster, namespace, "talks", is_in("Running"))
    argv = ["kubectl", "--kubeconfig", str(installed.kubeconfig), "-n", namespace, "logs", "-f", "talks"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        first = await anyio.to_thread.run_sync(following.stdout.readline)
        at_first_line = await cluster.get(PODS, "talks", namespace)
        rest = await anyio.to_thread.run_sync(following.stdout.read)
        assert await anyio.to_thread.run_sync(following.wait) == 0

    assert at_first_line["status"]["phase"] == "Running"  # it streams: the first line came before the last was written
    assert first + rest == "line 1\nline 2\nline 3\n"


async def test_kubectl_logs_takes_its_options(
    cluster: Cluster, node: RunningNode, namespace: str, installed: ControlPlane
) -> None:
    await cluster.create(PODS, pod_of("options", "echo one; echo two; echo three"), namespace)
    await wait_pod(cluster, namespace, "options", is_in("Succeeded"))

    tail = await kubectl(installed, "-n", namespace, "logs", "options", "--tail=1")
    stamped = await kubectl(installed, "-n", namespace, "logs", "options", "--timestamps", "--tail=1")
    limited = await kubectl(installed, "-n", namespace, "logs", "options", "--limit-bytes=5")
    previous = await kubectl(installed, "-n", namespace, "logs", "options", "--previous")

    assert tail.stdout == "three\n"
    stamp, _, text = stamped.stdout.partition(" ")
    assert (text, abs(seconds_of(stamp) - time.time()) < 60) == ("three\n", True)
    assert limited.stdout == "one\nt"
    assert previous.returncode != 0
    assert "not found" in previous.stderr


async def test_a_job_completes(cluster: Cluster, node: RunningNode, namespace: str) -> None:
    pod = pod_of("", "echo done")["spec"]
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, "spec": {"template": {"spec": pod}}}
    await cluster.create(JOBS, body, namespace)

    with anyio.fail_after(SOON_S):
        while not (await cluster.get(JOBS, "job", namespace)).get("status", {}).get("completionTime"):
            await anyio.sleep(0.05)

    assert (await cluster.get(JOBS, "job", namespace))["status"]["succeeded"] == 1


async def test_a_deployment_runs_and_a_failing_container_is_started_again(
    cluster: Cluster, node: RunningNode, namespace: str, installed: ControlPlane
) -> None:
    pod = pod_of("", "echo run; sleep 1; exit 4", restartPolicy="Always")["spec"]
    labels = {"app": "crashing"}
    spec = {
        "replicas": 2,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "crashing"}, "spec": spec}
    await cluster.create(DEPLOYMENTS, body, namespace)

    names: list[str] = []
    with anyio.fail_after(SOON_S):
        while len(names) < 2:
            names = [each["metadata"]["name"] for each in (await cluster.list(PODS, namespace))["items"]]
            await anyio.sleep(0.05)
    # The first restart is immediate, the second waits for ten seconds.
    waiting = await wait_pod(
        cluster, namespace, names[0],
        lambda pod: (pod["status"].get("containerStatuses") or [{}])[0].get("state", {}).get("waiting", {}).get("reason")
        == "CrashLoopBackOff",
    )  # fmt: skip
    container = waiting["status"]["containerStatuses"][0]
    previous = await kubectl(installed, "-n", namespace, "logs", names[0], "--previous")

    assert waiting["status"]["phase"] == "Running"
    assert container["restartCount"] == 1
    assert container["lastState"]["terminated"]["exitCode"] == 4
    assert previous.stdout == "run\n"
    assert await events_of(cluster, namespace, names[0], "BackOff")
    await cluster.delete(DEPLOYMENTS, "crashing", namespace, propagation="Foreground")
    for name in names:
        await wait_gone(cluster, namespace, name)


async def test_a_deleted_pod_has_its_grace_period_to_leave(cluster: Cluster, node: RunningNode, namespace: str) -> None:
    marks = node.directory / "graceful"
    script = f"trap 'echo asked > {marks}; sleep 0.3; echo left >> {marks}; exit 0' TERM; while :; do sleep 0.05; done"
    await cluster.create(PODS, pod_of("leaves", script), namespace)
    await wait_pod(cluster, namespace, "leaves", is_in("Running"))
    await anyio.sleep(0.3)  # the shell sets its trap after it has started

    await cluster.delete(PODS, "leaves", namespace)
    await wait_gone(cluster, namespace, "leaves")

    assert marks.read_text().split() == ["asked", "left"]


async def test_a_pod_that_does_not_heed_sigterm_is_ended_after_its_grace_period(
    cluster: Cluster, node: RunningNode, namespace: str
) -> None:
    await cluster.create(PODS, pod_of("stubborn", "trap '' TERM; echo $$$$; while :; do sleep 0.05; done"), namespace)
    await wait_pod(cluster, namespace, "stubborn", is_in("Running"))
    await anyio.sleep(0.3)
    (pid,) = await log_of(cluster, namespace, "stubborn")
    assert Path(f"/proc/{pid}").exists()

    began_s = time.monotonic()
    await cluster.delete(PODS, "stubborn", namespace, grace_s=1)
    await wait_gone(cluster, namespace, "stubborn")

    assert 0.8 <= time.monotonic() - began_s < 5
    assert not Path(f"/proc/{pid}").exists()


async def test_a_pod_removed_by_force_is_stopped_and_forgotten(
    cluster: Cluster, node: RunningNode, namespace: str
) -> None:
    await cluster.create(PODS, pod_of("forced", "echo $$$$; sleep 1000"), namespace)
    pod = await wait_pod(cluster, namespace, "forced", is_in("Running"))
    await anyio.sleep(0.3)
    (pid,) = await log_of(cluster, namespace, "forced")
    assert Path(f"/proc/{pid}").exists()

    await cluster.delete(PODS, "forced", namespace, grace_s=0)

    remains = node.directory / "state" / "pods" / pod["metadata"]["uid"]
    with anyio.fail_after(SOON_S):
        while Path(f"/proc/{pid}").exists() or remains.exists():
            await anyio.sleep(0.05)


async def test_a_pod_made_again_under_the_same_name_is_another_pod(
    cluster: Cluster, node: RunningNode, namespace: str
) -> None:
    first = await cluster.create(PODS, pod_of("twin", "sleep 1000"), namespace)
    await wait_pod(cluster, namespace, "twin", is_in("Running"))
    await cluster.delete(PODS, "twin", namespace, grace_s=0)
    second = await cluster.create(PODS, pod_of("twin", "sleep 1000"), namespace)

    pod = await wait_pod(cluster, namespace, "twin", is_in("Running"))
    await anyio.sleep(1.5)  # the first one's end is observed meanwhile
    later = await cluster.get(PODS, "twin", namespace)

    assert first["metadata"]["uid"] != second["metadata"]["uid"] == pod["metadata"]["uid"] == later["metadata"]["uid"]
    assert later["status"]["phase"] == "Running"
    assert "deletionTimestamp" not in later["metadata"]


async def test_an_evicted_pod_leaves(cluster: Cluster, node: RunningNode, namespace: str) -> None:
    await cluster.create(PODS, pod_of("evicted", "sleep 1000"), namespace)
    await wait_pod(cluster, namespace, "evicted", is_in("Running"))

    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "evicted", "namespace": namespace}}
    await cluster.create(PODS, eviction, namespace, name="evicted", subresource="eviction")

    await wait_gone(cluster, namespace, "evicted")


# -- what a pod is given


async def test_the_environment_is_resolved_from_secrets_config_maps_and_fields(
    cluster: Cluster, node: RunningNode, namespace: str
) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"token": "s3cret"}}
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"COLOUR": "blue"}}
    await cluster.create(SECRETS, secret, namespace)
    await cluster.create(CONFIG_MAPS, settings, namespace)
    env = [
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}},
        {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "WHERE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "BOTH", "value": "$(WHO)@$(WHERE)"},
    ]
    container = {"env": env, "envFrom": [{"configMapRef": {"name": "settings"}}], "args": ["x", "$(BOTH)"]}
    await cluster.create(PODS, pod_of("told", 'echo "$TOKEN $COLOUR $BOTH $1"', container=container), namespace)

    await wait_pod(cluster, namespace, "told", is_in("Succeeded"))

    assert await log_of(cluster, namespace, "told") == ["s3cret blue told@vn-test told@vn-test"]


async def test_a_pod_waits_for_a_missing_secret_and_runs_when_it_is_there(
    cluster: Cluster, node: RunningNode, namespace: str
) -> None:
    env = [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "later", "key": "token"}}}]
    await cluster.create(PODS, pod_of("waits", "echo $TOKEN", container={"env": env}), namespace)

    waiting = await wait_pod(
        cluster,
        namespace,
        "waits",
        lambda pod: bool(pod["status"].get("containerStatuses")) and "waiting" in state_of(pod),
    )
    events = await events_of(cluster, namespace, "waits", "MandatorySecretNotFound")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "later"}, "stringData": {"token": "t"}}
    await cluster.create(SECRETS, secret, namespace)
    await wait_pod(cluster, namespace, "waits", is_in("Succeeded"))

    assert state_of(waiting)["waiting"] == {
        "reason": "CreateContainerConfigError", "message": "Secret 'later' not found",
    }  # fmt: skip
    assert [event["count"] for event in events] == [1]


# -- what is refused


async def test_an_unknown_image_is_refused_and_kubectl_describe_says_why(
    cluster: Cluster, node: RunningNode, namespace: str, installed: ControlPlane
) -> None:
    await cluster.create(PODS, pod_of("unknown", "", container={"image": "nginx:1.29", "command": []}), namespace)
    pod = await wait_pod(cluster, namespace, "unknown", is_in("Failed"))
    assert await events_of(cluster, namespace, "unknown", pod["status"]["reason"])

    described = await kubectl(installed, "-n", namespace, "describe", "pod", "unknown")

    assert "nginx:1.29" in pod["status"]["message"]
    events = described.stdout.partition("Events:")[2]
    assert "nginx:1.29" in events
    assert "Warning" in events


async def test_a_pod_that_asks_for_what_this_node_cannot_do_is_refused_by_name(
    cluster: Cluster, node: RunningNode, namespace: str
) -> None:
    init = [{"name": "init", "image": "nodeless/host", "command": ["true"]}]
    volumes = [{"name": "data", "emptyDir": {}}]
    await cluster.create(PODS, pod_of("asks", "true", initContainers=init, volumes=volumes), namespace)

    pod = await wait_pod(cluster, namespace, "asks", is_in("Failed"))

    assert pod["status"]["reason"] == "Unsupported"
    assert "spec.initContainers" in pod["status"]["message"]
    assert "spec.volumes[data] (emptyDir)" in pod["status"]["message"]


async def test_a_refused_pod_of_a_deployment_waits_and_is_not_replaced_without_end(
    cluster: Cluster, node: RunningNode, namespace: str
) -> None:
    pod = pod_of("", "", restartPolicy="Always", container={"image": "nginx", "command": []})["spec"]
    labels = {"app": "refused"}
    spec = {
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "refused"}, "spec": spec}
    await cluster.create(DEPLOYMENTS, body, namespace)
    await anyio.sleep(3)

    (only,) = (await cluster.list(PODS, namespace))["items"]

    assert only["status"]["phase"] == "Pending"
    assert "nginx" in state_of(only)["waiting"]["message"]


async def test_a_pod_that_gets_no_token_is_told_so_and_runs(
    cluster: Cluster, node: RunningNode, namespace: str
) -> None:
    await cluster.create(PODS, pod_of("plain", "true", automountServiceAccountToken=True), namespace)

    await wait_pod(cluster, namespace, "plain", is_in("Succeeded"))

    assert await events_of(cluster, namespace, "plain", "TokenNotMounted")


# -- the node program dies


async def test_a_killed_node_program_adopts_its_pods_and_knows_how_they_ended(
    cluster: Cluster, namespace: str, installed: ControlPlane
) -> None:
    on = {"nodeSelector": {"kubernetes.io/hostname": "vn-killed"}}
    async with running_node(installed, "vn-killed") as node:
        go = node.directory / "go"
        wait = f"while [ ! -e {go} ]; do sleep 0.05; done"
        await cluster.create(PODS, pod_of("lives", f"echo $$$$; {wait}; exit 5", **on), namespace)
        await cluster.create(PODS, pod_of("ends", "echo $$$$; sleep 2; exit 6", **on), namespace)
        await cluster.create(PODS, pod_of("removed", "echo $$$$; sleep 1000", **on), namespace)
        for name in ("lives", "ends", "removed"):
            await wait_pod(cluster, namespace, name, is_in("Running"))
        await anyio.sleep(0.3)
        pids = {name: (await log_of(cluster, namespace, name))[0] for name in ("lives", "ends", "removed")}

        node.kill()
        await cluster.delete(PODS, "removed", namespace, grace_s=0)
        await anyio.sleep(2.5)  # one ends by itself while nobody looks
        assert Path(f"/proc/{pids['lives']}").exists()
        node.start()
        ended = await wait_pod(cluster, namespace, "ends", is_in("Failed"))
        with anyio.fail_after(SOON_S):  # the orphan
            while Path(f"/proc/{pids['removed']}").exists():
                await anyio.sleep(0.05)
        adopted = await cluster.get(PODS, "lives", namespace)
        lines = await log_of(cluster, namespace, "lives")
        go.touch()
        lived = await wait_pod(cluster, namespace, "lives", is_in("Failed"))

        assert state_of(ended)["terminated"]["exitCode"] == 6
        assert adopted["status"]["phase"] == "Running"
        assert lines == [pids["lives"]], "started once, and the log goes on"
        assert state_of(lived)["terminated"]["exitCode"] == 5
        assert lived["status"]["containerStatuses"][0]["restartCount"] == 0
        assert node.stop() == 0


def program_of(plane: ControlPlane, name: str) -> int:
    """Return the process id of one of the control plane's programs."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if int(entry.name) and name in argv[:2] and any(str(plane.directory) in each for each in argv):
                return int(entry.name)
    raise AssertionError(f"{name} does not run")


async def test_pods_run_on_while_api_server_and_etcd_are_killed(tmp_path: Path) -> None:
    on = {"nodeSelector": {"kubernetes.io/hostname": "vn-alone"}}
    async with AsyncExitStack() as stack:
        plane = await stack.enter_async_context(running_control_plane(tmp_path / "home"))
        cluster = await stack.enter_async_context(open_cluster(ClusterConfig(kubeconfig=str(plane.kubeconfig))))
        await apply_documents(cluster, documents_of(MANIFESTS), field_manager="nodeless-up")
        node = await stack.enter_async_context(running_node(plane, "vn-alone"))
        before = {}
        for name, code in (("lives", 5), ("ends", 6)):
            script = f"echo $$$$; while [ ! -e {node.directory / name} ]; do sleep 0.05; done; exit {code}"
            await cluster.create(PODS, pod_of(name, script, **on), "default")
            before[name] = await wait_pod(cluster, "default", name, is_in("Running"))

        for name in ("etcd", "kube-apiserver"):
            os.kill(program_of(plane, name), signal.SIGKILL)
        (node.directory / "ends").touch()  # while nobody can be told
        ended: dict[str, Any] = {"status": {}}
        with anyio.fail_after(60):
            while ended["status"].get("phase") != "Failed":
                await anyio.sleep(0.1)
                with suppress(ClusterError):
                    ended = await cluster.get(PODS, "ends", "default")
        lives = await cluster.get(PODS, "lives", "default")
        lines = await log_of(cluster, "default", "lives")
        (node.directory / "lives").touch()
        lived = await wait_pod(cluster, "default", "lives", is_in("Failed"))

        assert node.process.poll() is None
    assert state_of(ended)["terminated"]["exitCode"] == 6
    assert lives["status"]["containerStatuses"] == before["lives"]["status"]["containerStatuses"]
    assert len(lines) == 1, "started once"
    assert state_of(lived)["terminated"]["exitCode"] == 5


async def test_pods_that_a_restart_of_the_machine_took_away_are_told_lost_and_never_run_twice(
    cluster: Cluster, namespace: str, installed: ControlPlane
) -> None:
    on: dict[str, Any] = {"nodeSelector": {"kubernetes.io/hostname": "vn-lost"}}
    # With the memory backend a killed program is a machine that was switched off: nothing of its pods is left.
    async with running_node(installed, "vn-lost", "--backend", "memory") as node:
        await cluster.create(PODS, pod_of("once", "true", **on), namespace)
        await cluster.create(PODS, pod_of("always", "true", restartPolicy="Always", **on), namespace)
        for name in ("once", "always"):
            await wait_pod(cluster, namespace, name, is_in("Running"))

        node.kill()
        node.start()
        once = await wait_pod(cluster, namespace, "once", is_in("Failed"))
        always = await wait_pod(
            cluster,
            namespace,
            "always",
            lambda pod: pod["status"]["containerStatuses"][0]["restartCount"] == 1 and "running" in state_of(pod),
        )

        lost = state_of(once)["terminated"]
        last = always["status"]["containerStatuses"][0]["lastState"]["terminated"]
        assert (lost["exitCode"], lost["reason"]) == (137, "ContainerStatusUnknown")
        assert (last["exitCode"], last["reason"]) == (137, "ContainerStatusUnknown")
        assert await events_of(cluster, namespace, "once", "ContainerLost")


async def test_a_wrong_setting_ends_the_program_with_what_is_wrong(tmp_path: Path) -> None:
    import sys

    argv = [sys.executable, "-m", "provider", "--name", "Not A Name", "--state-directory", str(tmp_path)]
    files = ["--certificate", "x", "--key", "y", "--client-ca", "z"]
    wrong_name = await anyio.run_process([*argv, *files], check=False)
    missing = await anyio.run_process(argv, check=False)
    no_files = await anyio.run_process([*argv[:3], "--name", "vn", *argv[5:], *files], check=False)

    assert (wrong_name.returncode, missing.returncode, no_files.returncode) == (2, 2, 2)
    assert b"name='Not A Name'" in wrong_name.stderr
    assert b"NODELESS_NODE_CERTIFICATE" in missing.stderr
    assert b"certificate='x'" in no_files.stderr


# -- the HTTPS API


ADMIN: dict[str, Any] = {"user": "admin", "groups": ["system:masters"]}


async def ask(node: RunningNode, path: str, method: str = "GET", **how: Any) -> httpx.Response:
    """Send one request to the node itself, as somebody with these credentials."""
    context = ssl.create_default_context(cafile=str(node.plane.ca_certificate))
    if user := how.pop("user", None):
        pair = node.plane.issue_client(user, how.pop("groups", ()))
        chain = node.directory / f"{user}.pem"
        chain.write_bytes(pair.certificate + pair.key)
        context.load_cert_chain(chain)
    async with httpx.AsyncClient(verify=context, trust_env=False, timeout=20.0) as client:
        return await client.request(method, f"{node.url}{path}", **how)


async def test_who_is_nobody_and_who_may_not_is_refused(cluster: Cluster, node: RunningNode, namespace: str) -> None:
    for path in ("/healthz", "/pods", f"/containerLogs/{namespace}/any/main", "/nothing"):
        nobody = await ask(node, path)
        forged = await ask(node, path, headers={"authorization": "Bearer forged"})
        stranger = await ask(node, path, user="stranger")

        assert [nobody.status_code, forged.status_code, stranger.status_code] == [401, 401, 403], path
    assert "user=stranger, verb=get, resource=nodes/proxy" in stranger.text


async def test_a_certificate_of_another_authority_gets_no_connection(node: RunningNode, tmp_path: Path) -> None:
    from nodeless.embedded.controlplane.pki import Authority

    pair = Authority(tmp_path, "foreign").issue_client("admin", ["system:masters"])
    (tmp_path / "foreign.pem").write_bytes(pair.certificate + pair.key)
    context = ssl.create_default_context(cafile=str(node.plane.ca_certificate))
    context.load_cert_chain(tmp_path / "foreign.pem")

    async with httpx.AsyncClient(verify=context, trust_env=False) as client:
        with pytest.raises(httpx.TransportError):
            await client.get(f"{node.url}/healthz")


async def test_a_bearer_token_is_reviewed_and_its_rights_are_asked(
    cluster: Cluster, node: RunningNode, namespace: str
) -> None:
    token = (
        await cluster.create(
            SERVICE_ACCOUNTS,
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
            namespace,
            name="default",
            subresource="token",
        )
    )["status"]["token"]
    headers = {"authorization": f"Bearer {token}"}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:kubelet-api-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
    }  # fmt: skip

    before = await ask(node, "/metrics", headers=headers)
    await cluster.create(CLUSTER_ROLE_BINDINGS, binding)
    try:
        after = await ask(node, "/healthz", headers=headers)
    finally:
        await cluster.delete(CLUSTER_ROLE_BINDINGS, namespace)

    assert before.status_code == 403
    assert (after.status_code, after.text) == (200, "ok\n")


async def test_the_api_says_clearly_what_it_does_not_serve(node: RunningNode, namespace: str) -> None:
    assert (await ask(node, "/stats/summary", **ADMIN)).status_code == 404
    assert (await ask(node, f"/containerLogs/{namespace}/absent/main", **ADMIN)).status_code == 404
    exec_ = await ask(node, f"/exec/{namespace}/pod/main?command=ls", "POST", **ADMIN)
    assert (exec_.status_code, exec_.text) == (501, "exec is not implemented by this node\n")
    posted = await ask(node, "/pods", "POST", content=b"{}", **ADMIN)
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET")


async def test_pods_and_what_really_runs_are_listed(cluster: Cluster, node: RunningNode, namespace: str) -> None:
    await cluster.create(PODS, pod_of("here", "sleep 1000"), namespace)
    pod = await wait_pod(cluster, namespace, "here", is_in("Running"))

    listed = (await ask(node, "/pods", **ADMIN)).json()
    running = (await ask(node, "/runningpods/", **ADMIN)).json()

    uid = pod["metadata"]["uid"]
    assert listed["kind"] == running["kind"] == "PodList"
    assert uid in {each["metadata"]["uid"] for each in listed["items"]}
    assert uid in {each["metadata"]["uid"] for each in running["items"]}


async def test_log_options_that_cannot_be_followed_are_refused(
    cluster: Cluster, node: RunningNode, namespace: str
) -> None:
    await cluster.create(PODS, pod_of("asked", "sleep 1000"), namespace)
    await wait_pod(cluster, namespace, "asked", is_in("Running"))
    path = f"/containerLogs/{namespace}/asked/main"

    statuses = [
        (await ask(node, f"{path}{query}", **ADMIN)).status_code
        for query in ("?tailLines=many", "?tailLines=-1", "?limitBytes=0", "?previous=true", "", "?tailLines=1")
    ]

    assert statuses == [400, 422, 422, 400, 200, 200]
    assert (await ask(node, f"/containerLogs/{namespace}/asked/other", **ADMIN)).status_code == 404


async def test_the_nodes_identity_may_do_its_work_and_no_more(
    cluster: Cluster, node: RunningNode, namespace: str
) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "private"}, "stringData": {"a": "b"}}
    await cluster.create(SECRETS, secret, namespace)

    async with open_cluster(ClusterConfig(kubeconfig=str(node.directory / "kubeconfig"))) as as_node:
        with pytest.raises(Forbidden):
            await as_node.get(SECRETS, "private", namespace)
        with pytest.raises(Forbidden):
            await as_node.list(PODS)
        with pytest.raises(Forbidden):
            await as_node.delete(NODES, node.name)


async def test_a_burst_of_pods_runs_and_leaves(cluster: Cluster, node: RunningNode, namespace: str) -> None:
    names = [f"burst-{index}" for index in range(60)]
    async with anyio.create_task_group() as creating:
        for name in names:
            creating.start_soon(cluster.create, PODS, pod_of(name, "exec sleep 1000"), namespace)

    with anyio.fail_after(60):
        while True:
            pods = (await cluster.list(PODS, namespace))["items"]
            if len(pods) == len(names) and all(is_in("Running")(pod) for pod in pods):
                break
            await anyio.sleep(0.1)
    await cluster.call("DELETE", PODS.path(namespace), body={"gracePeriodSeconds": 1})
    with anyio.fail_after(60):
        while (await cluster.list(PODS, namespace))["items"]:
            await anyio.sleep(0.1)
