"""The Node object, its lease, and the settings that it is made from."""

import json
import re

import pytest

from bus.core.configuration import load
from bus.core.errors import ConfigurationError
from provider.core.node import (
    Capacity,
    Machine,
    NodeDescription,
    kubelet_version,
    lease_object,
    node_object,
    node_status,
)
from provider.program import backend_factory
from provider.settings import NodeConfig

MACHINE = Machine(architecture="amd64", kernel="6.1", os_image="Debian", machine_id="m", boot_id="b")
NODE = NodeDescription(
    name="vn", address="10.0.0.7", port=10250, backend="process", version="0.1.0", kubernetes_version="v1.37.2",
    capacity=Capacity(cpu="2", memory="8Gi", pods=500), machine=MACHINE,
)  # fmt: skip
NOW, LATER = "2026-01-31T12:00:00Z", "2026-01-31T12:05:00Z"

# What NodeRestriction refuses a node to say of itself.
FORBIDDEN = re.compile(r"kubernetes\.io/role|node-role\.kubernetes\.io/|node-restriction\.kubernetes\.io/")


def test_a_node_sets_no_label_that_admission_refuses_and_publishes_no_host_name() -> None:
    node = node_object(NODE, now=NOW)

    assert not [label for label in node["metadata"]["labels"] if FORBIDDEN.match(label)]
    assert {address["type"] for address in node["status"]["addresses"]} == {"InternalIP"}


def test_a_node_takes_all_pods_unless_it_is_to_be_tainted() -> None:
    tainted = node_object(
        NodeDescription(**{f: getattr(NODE, f) for f in NODE.__struct_fields__} | {"is_tainted": True}), now=NOW
    )

    assert "taints" not in node_object(NODE, now=NOW)["spec"]
    assert tainted["spec"]["taints"] == [
        {"key": "virtual-kubelet.io/provider", "value": "nodeless", "effect": "NoSchedule"}
    ]


def test_a_heartbeat_does_not_move_transition_times() -> None:
    first = node_status({}, NODE, now=NOW)

    second = node_status(first, NODE, now=LATER)

    assert {each["lastTransitionTime"] for each in second["conditions"]} == {NOW}
    assert {each["lastHeartbeatTime"] for each in second["conditions"]} == {LATER}


def test_a_node_that_was_lost_says_when_it_came_back() -> None:
    lost = {"conditions": [{"type": "Ready", "status": "Unknown", "lastTransitionTime": NOW}]}

    conditions = {each["type"]: each for each in node_status(lost, NODE, now=LATER)["conditions"]}

    assert (conditions["Ready"]["status"], conditions["Ready"]["lastTransitionTime"]) == ("True", LATER)


@pytest.mark.parametrize(
    ("server", "version"),
    [
        ("v1.37.2", "v1.37.2-nodeless.0.1.0"),
        ("v1.34.4+k3s1", "v1.34.4-nodeless.0.1.0"),
        ("v1.33.1-eks-595af52", "v1.33.1-nodeless.0.1.0"),
        ("", "v0.0.0-nodeless.0.1.0"),
    ],
)
def test_the_version_can_be_parsed_and_is_not_newer_than_the_servers(server: str, version: str) -> None:
    assert kubelet_version(server, "0.1.0") == version
    assert re.fullmatch(r"v\d+\.\d+\.\d+-[0-9A-Za-z.-]+", version)


def test_the_lease_goes_with_its_node() -> None:
    lease = lease_object("vn", "uid-1", now="2026-01-31T12:00:00.000001Z")

    assert lease["spec"]["leaseDurationSeconds"] == 40
    assert lease["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Node", "name": "vn", "uid": "uid-1"}]
    assert json.loads(json.dumps(lease)) == lease


REQUIRED = {"name": "vn", "state_directory": "/s", "certificate": "c", "key": "k", "client_ca": "a"}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"name": "VN 1"}, "name"),
        ({"address": "somewhere"}, "address"),
        ({"cpu": "two"}, "cpu"),
        ({"memory": "0"}, "memory"),
        ({"pods": "0"}, "pods"),
        ({"port": "70000"}, "port"),
        ({"lifeline_fd": "1"}, "lifeline_fd"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(wrong: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load(NodeConfig, flags=REQUIRED | wrong)

    assert raised.value.key == named


def test_an_unknown_backend_is_named_with_those_that_are_there() -> None:
    with pytest.raises(ConfigurationError, match="known: memory, process"):
        backend_factory("moon")
