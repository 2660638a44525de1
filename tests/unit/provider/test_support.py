"""What this node can do for a pod, and what it refuses by name."""

from typing import Any

import pytest

from provider.core.composition import grace_s_of, launch_of
from provider.core.quantity import parse_quantity
from provider.core.support import notices_of, refusal_of

TOKEN = {"name": "kube-api-access-x2v", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}

DEFAULTED: dict[str, Any] = {
    "containers": [
        {
            "name": "main", "image": "nodeless/host", "command": ["true"], "resources": {}, "imagePullPolicy": "Always",
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "volumeMounts": [{"name": "kube-api-access-x2v", "mountPath": "/var/run/secrets"}],
        }
    ],
    "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst", "securityContext": {},
    "serviceAccountName": "default", "serviceAccount": "default", "nodeName": "vn", "schedulerName": "default-scheduler",
    "enableServiceLinks": True, "priority": 0, "preemptionPolicy": "PreemptLowerPriority", "volumes": [TOKEN],
    "tolerations": [{"key": "x", "operator": "Exists"}], "hostNetwork": False,
}  # fmt: skip


def with_pod(**fields: Any) -> dict[str, Any]:
    return DEFAULTED | fields


def with_container(**fields: Any) -> dict[str, Any]:
    (container,) = DEFAULTED["containers"]
    return DEFAULTED | {"containers": [container | fields]}


def test_a_pod_as_the_api_server_defaults_it_is_accepted() -> None:
    assert refusal_of(DEFAULTED) is None


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (with_pod(initContainers=[{"name": "init"}]), "spec.initContainers"),
        (with_pod(hostNetwork=True), "spec.hostNetwork"),
        (with_pod(activeDeadlineSeconds=5), "spec.activeDeadlineSeconds"),
        (with_pod(securityContext={"runAsUser": 1000}), "spec.securityContext"),
        (with_pod(runtimeClassName="kata"), "spec.runtimeClassName"),
        (with_pod(os={"name": "windows"}), "spec.os"),
        (with_pod(dnsPolicy="None"), "spec.dnsPolicy"),
        (with_pod(aFieldOfTheFuture={"x": 1}), "spec.aFieldOfTheFuture"),
        (with_pod(volumes=[{"name": "data", "emptyDir": {}}]), "spec.volumes[data] (emptyDir)"),
        (with_pod(volumes=[{"name": "kube-api-access-x", "secret": {}}]), "spec.volumes[kube-api-access-x] (secret)"),
        (with_container(livenessProbe={"exec": {}}), "spec.containers[0].livenessProbe"),
        (with_container(lifecycle={"preStop": {}}), "spec.containers[0].lifecycle"),
        (with_container(stdin=True), "spec.containers[0].stdin"),
        (with_container(terminationMessagePath="/other"), "spec.containers[0].terminationMessagePath"),
        (with_container(volumeMounts=[{"name": "data"}]), "spec.containers[0].volumeMounts[data]"),
        (with_container(ports=[{"containerPort": 80, "hostPort": 8080}]), "spec.containers[0].ports[80].hostPort"),
        (
            with_container(resources={"limits": {"nvidia.com/gpu": "1"}}),
            "spec.containers[0].resources (nvidia.com/gpu)",
        ),
        (
            with_container(env=[{"name": "X", "valueFrom": {"fileKeyRef": {"path": "x"}}}]),
            "spec.containers[0].env[X].valueFrom.fileKeyRef",
        ),
        (
            with_container(env=[{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.hostname"}}}]),
            "spec.containers[0].env[X].valueFrom.fieldRef (spec.hostname)",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(spec: dict[str, Any], named: str) -> None:
    refusal = refusal_of(spec)

    assert refusal is not None
    assert refusal.reason == "Unsupported"
    assert named in refusal.message


def test_everything_that_is_in_the_way_is_named_at_once() -> None:
    refusal = refusal_of(with_pod(hostPID=True, hostAliases=[{"ip": "10.0.0.1"}]))

    assert refusal is not None
    assert "spec.hostPID, spec.hostAliases" in refusal.message


def test_what_a_pod_does_not_get_though_it_runs_is_told() -> None:
    limited = with_container(resources={"limits": {"cpu": "1", "memory": "1Gi"}}) | {"volumes": []}

    assert [notice.reason for notice in notices_of(DEFAULTED)] == ["TokenNotMounted"]
    assert [notice.message for notice in notices_of(limited)] == ["limits of cpu are not enforced on this node"]


def test_the_launch_holds_only_the_containers_that_are_to_start_with_references_expanded() -> None:
    pod = {
        "metadata": {"uid": "u", "namespace": "shop", "name": "web"},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [
                {
                    "name": "main", "image": "nodeless/host", "command": ["serve", "$(PORT)", "$$(PORT)"],
                    "resources": {"limits": {"memory": "64Mi"}},
                },
                {"name": "side", "image": "nodeless/host"},
            ],
        },
    }  # fmt: skip

    launch = launch_of(pod, {"main": {"PORT": "80"}}, {"main": 3})

    (container,) = launch.containers
    assert (container.name, container.restart) == ("main", 3)
    assert container.command == ("serve", "80", "$(PORT)")
    assert container.memory_bytes_max == 64 * 1024 * 1024


def test_a_deletion_decides_the_grace_period() -> None:
    spec = {"terminationGracePeriodSeconds": 40}

    assert grace_s_of({"metadata": {"deletionGracePeriodSeconds": 3}, "spec": spec}) == 3.0
    assert grace_s_of({"metadata": {}, "spec": spec}) == 40.0


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("250m", 0.25), ("1Gi", 2**30), ("1.5G", 1.5e9), ("2e3", 2000), ("1E", 10**18), (".5", 0.5), ("0", 0)],
)
def test_quantities_are_read_exactly(text: str, number: float) -> None:
    assert parse_quantity(text) == number


@pytest.mark.parametrize("text", ["", "1g", "one", "1 Gi", "1Gi ", "--1", "e3"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a Kubernetes quantity"):
        parse_quantity(text)
