"""The Node object that this program presents, and its lease.

Labels are those that a node identity may set on itself: `kubernetes.io/role` and `node-role.kubernetes.io/*` are refused
by admission. No Hostname address is published: it would be tried first, and nothing resolves it. Taints can be set at
creation only.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

LEASE_S = 40
"""Without a renewal for this long the control plane takes the node for lost. Source: the kubelet's default. [seconds]"""
PROVIDER_TAINT = "virtual-kubelet.io/provider"
PROVIDER = "nodeless"


class Machine(Struct, frozen=True, kw_only=True):
    """What is known of where the node runs."""

    operating_system: str = "linux"
    """As Kubernetes calls it: `linux`."""
    architecture: str
    """As Kubernetes calls it: `amd64`, `arm64`."""
    kernel: str
    os_image: str
    machine_id: str
    boot_id: str


class Capacity(Struct, frozen=True, kw_only=True):
    cpu: str
    memory: str
    pods: int

    @property
    def resources(self) -> dict[str, str]:
        return {"cpu": self.cpu, "memory": self.memory, "pods": str(self.pods)}


class NodeDescription(Struct, frozen=True, kw_only=True):
    """Everything that the Node object is made from."""

    name: str
    address: str
    port: int
    backend: str
    version: str
    """Ours."""
    kubernetes_version: str
    """The API server's, as `v1.37.2`: a node must not be newer than it."""
    capacity: Capacity
    machine: Machine
    is_tainted: bool = False


ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
"""Machine names of the kernel, where Kubernetes has another."""


def labels_of(node: NodeDescription) -> dict[str, str]:
    return {
        "type": "virtual-kubelet",
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": node.machine.operating_system,
        "kubernetes.io/arch": node.machine.architecture,
        "node.kubernetes.io/instance-type": f"nodeless-{node.backend}",
        "node.kubernetes.io/exclude-from-external-load-balancers": "true",
        "nodeless.dev/backend": node.backend,
    }


def node_object(node: NodeDescription, *, now: str) -> dict[str, Any]:
    """Return the Node to create."""
    taints = [{"key": PROVIDER_TAINT, "value": PROVIDER, "effect": "NoSchedule"}] if node.is_tainted else []
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": labels_of(node)},
        "spec": {"taints": taints} if taints else {},
        "status": node_status({}, node, now=now),
    }


def node_status(before: Mapping[str, Any], node: NodeDescription, *, now: str) -> dict[str, Any]:
    """Return the status to write. Conditions of others in `before` stay, as the patch merges them by type."""
    resources = node.capacity.resources
    return {
        "capacity": resources,
        "allocatable": resources,
        "addresses": [{"type": "InternalIP", "address": node.address}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": node.port}},
        "nodeInfo": {
            "kubeletVersion": kubelet_version(node.kubernetes_version, node.version),
            "kubeProxyVersion": "",
            "containerRuntimeVersion": f"{node.backend}://{node.version}",
            "operatingSystem": node.machine.operating_system,
            "architecture": node.machine.architecture,
            "kernelVersion": node.machine.kernel,
            "osImage": node.machine.os_image,
            "machineID": node.machine.machine_id,
            "systemUUID": node.machine.machine_id,
            "bootID": node.machine.boot_id,
        },
        "conditions": _conditions(before, now),
    }


def kubelet_version(kubernetes_version: str, version: str) -> str:
    """Return a version as clients parse a kubelet's: the API server's release, and ours behind it."""
    release = kubernetes_version.partition("-")[0].partition("+")[0] or "v0.0.0"
    return f"{release}-nodeless.{version}"


_CONDITIONS = (
    ("Ready", "True", "KubeletReady", "the virtual node is posting ready status"),
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "nothing is evicted by this node"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "nothing is evicted by this node"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "nothing is evicted by this node"),
    ("NetworkUnavailable", "False", "NoNetworkToSetUp", "pods share the network of the machine"),
)


def _conditions(before: Mapping[str, Any], now: str) -> list[dict[str, Any]]:
    known = {each["type"]: each for each in before.get("conditions") or ()}
    return [
        {
            "type": type_,
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": known[type_]["lastTransitionTime"]
            if type_ in known and known[type_]["status"] == status
            else now,
        }
        for type_, status, reason, message in _CONDITIONS
    ]


def lease_object(name: str, node_uid: str, *, now: str) -> dict[str, Any]:
    """Return the lease to write; `now` is RFC 3339 with microseconds. It goes with its Node."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": node_uid}],
        },
        "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_S, "renewTime": now},
    }
