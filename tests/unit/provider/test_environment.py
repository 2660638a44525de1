"""A container's environment, by a kubelet's rules."""

import base64
from typing import Any

import pytest

from provider.core.environment import (
    Facts,
    Need,
    Shortage,
    Source,
    absent_optional,
    environment_of,
    expanded,
    needs_of,
    sources_of,
)

POD = {
    "metadata": {
        "name": "web", "namespace": "shop", "uid": "u-1",
        "labels": {"app.kubernetes.io/name": "web"}, "annotations": {"note": "a=b"},
    },
    "spec": {
        "nodeName": "vn", "serviceAccountName": "default",
        "containers": [
            {"name": "main", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}},
            {"name": "side"},
        ],
    },
}  # fmt: skip
FACTS = Facts(pod=POD, address="10.0.0.7", allocatable={"cpu": "4", "memory": "8Gi"})

SECRET, MAP = Source("Secret", "keys"), Source("ConfigMap", "settings")
OBJECTS = {
    SECRET: {"data": {"token": base64.b64encode(b"s3cret").decode(), "blob": base64.b64encode(b"\xff").decode()}},
    MAP: {"data": {"COLOUR": "blue", "SIZE": "3"}},
}


def resolved(*env: dict[str, Any], env_from: tuple[dict[str, Any], ...] = (), name: str = "main") -> dict[str, str]:
    return environment_of({"name": name, "env": list(env), "envFrom": list(env_from)}, OBJECTS, FACTS)


def field(path: str) -> dict[str, Any]:
    return {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("$(A)-$(B)", "1-2"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("cost: 5$", "cost: 5$"),
        ("$(A", "$(A"),
        ("$A", "$A"),
        ("", ""),
    ],
)
def test_references_are_expanded_as_kubernetes_does(text: str, result: str) -> None:
    assert expanded(text, {"A": "1", "B": "2"}) == result


def test_an_entry_sees_those_before_it_and_not_those_after() -> None:
    found = resolved(
        {"name": "A", "value": "$(B)"}, {"name": "B", "value": "two"}, {"name": "C", "value": "$(B)"}, {"name": "D"}
    )

    assert found == {"A": "$(B)", "B": "two", "C": "two", "D": ""}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "web"),
        ("metadata.namespace", "shop"),
        ("metadata.uid", "u-1"),
        ("metadata.labels['app.kubernetes.io/name']", "web"),
        ("metadata.annotations['note']", "a=b"),
        ("metadata.annotations['absent']", ""),
        ("spec.nodeName", "vn"),
        ("spec.serviceAccountName", "default"),
        ("status.hostIP", "10.0.0.7"),
        ("status.podIP", "10.0.0.7"),
        ("status.podIPs", "10.0.0.7"),
    ],
)
def test_fields_of_the_pod(path: str, value: str) -> None:
    assert resolved(field(path)) == {"X": value}


@pytest.mark.parametrize(
    ("reference", "value"),
    [
        ({"resource": "limits.cpu"}, "2"),
        ({"resource": "limits.cpu", "divisor": "1m"}, "1500"),
        ({"resource": "limits.memory"}, str(64 * 1024 * 1024)),
        ({"resource": "limits.memory", "divisor": "1Mi"}, "64"),
        ({"resource": "requests.cpu", "divisor": "0"}, "1"),
        ({"resource": "requests.memory"}, "0"),
        ({"resource": "limits.cpu", "containerName": "side"}, "4"),
        ({"resource": "limits.memory", "containerName": "side", "divisor": "1Gi"}, "8"),
    ],
)
def test_resources_are_told_in_whole_divisors_rounded_up(reference: dict[str, str], value: str) -> None:
    assert resolved({"name": "X", "valueFrom": {"resourceFieldRef": reference}}) == {"X": value}


def test_keys_of_secrets_and_config_maps() -> None:
    token = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}}
    size = {"name": "SIZE", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "SIZE"}}}

    assert resolved(token, size) == {"TOKEN": "s3cret", "SIZE": "3"}


def test_whole_objects_come_first_with_their_prefix_and_are_overridden_and_referred_to() -> None:
    found = resolved(
        {"name": "P_SIZE", "value": "$(P_COLOUR)"}, env_from=({"prefix": "P_", "configMapRef": {"name": "settings"}},)
    )

    assert found == {"P_COLOUR": "blue", "P_SIZE": "blue"}


def test_what_is_optional_and_missing_is_left_out() -> None:
    absent = {"name": "X", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "k", "optional": True}}}
    no_key = {"name": "Y", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "absent", "optional": True}}}
    container = {"name": "main", "env": [absent, no_key]}

    assert resolved(absent, no_key) == {}
    assert absent_optional(container, OBJECTS) == (Source("Secret", "absent"),)


@pytest.mark.parametrize(
    ("reference", "event"),
    [
        ({"secretKeyRef": {"name": "absent", "key": "k"}}, "MandatorySecretNotFound"),
        ({"configMapKeyRef": {"name": "absent", "key": "k"}}, "MandatoryConfigMapNotFound"),
        ({"secretKeyRef": {"name": "keys", "key": "absent"}}, "MandatorySecretKeyNotFound"),
        ({"secretKeyRef": {"name": "keys", "key": "blob"}}, "InvalidEnvironmentValue"),
    ],
)
def test_what_is_mandatory_and_missing_is_named(reference: dict[str, Any], event: str) -> None:
    with pytest.raises(Shortage) as raised:
        resolved({"name": "X", "valueFrom": reference})

    assert raised.value.event == event
    assert "absent" in str(raised.value) or "not text" in str(raised.value)


def test_every_object_is_fetched_once() -> None:
    container = {
        "name": "main",
        "envFrom": [{"configMapRef": {"name": "settings"}}],
        "env": [
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}},
            {"name": "B", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "other", "optional": True}}},
        ],
    }

    assert needs_of(container)[1] == Need(SECRET, is_optional=False, key="token")
    assert sources_of([container, container]) == (MAP, SECRET)
