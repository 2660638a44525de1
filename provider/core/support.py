"""What this node can do for a pod. Everything else is refused by name, so that nothing is ignored in silence.

Lists of what is accepted rather than of what is not: a field that a newer Kubernetes adds is refused until somebody has
thought about it. A field that holds nothing (false, an empty list or object) asks for nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from provider.core.environment import is_field
from provider.core.images import Refusal

UNSUPPORTED = "Unsupported"
TOKEN_VOLUME_PREFIX = "kube-api-access-"  # noqa: S105 - a name

# Fields that the node follows, and those that are the scheduler's or the API server's business.
_POD_FIELDS = frozenset(
    {
        "containers", "restartPolicy", "terminationGracePeriodSeconds", "volumes", "nodeName", "nodeSelector", "affinity",
        "tolerations", "topologySpreadConstraints", "schedulerName", "schedulingGates", "priority", "priorityClassName",
        "preemptionPolicy", "serviceAccountName", "serviceAccount", "automountServiceAccountToken", "imagePullSecrets",
        "enableServiceLinks", "dnsPolicy", "os",
        "ephemeralContainers",  # added to a pod that runs: no reason to end it, and told in an Event of its own
    }
)  # fmt: skip
_CONTAINER_FIELDS = frozenset(
    {
        "name", "image", "imagePullPolicy", "command", "args", "workingDir", "env", "envFrom", "ports", "resources",
        "resizePolicy", "volumeMounts", "terminationMessagePath", "terminationMessagePolicy",
    }
)  # fmt: skip
_DEFAULTS = {"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}
_POD_VALUES = {"os": ({"name": "linux"},), "dnsPolicy": ("ClusterFirst", "Default", "ClusterFirstWithHostNet")}
_MEASURED = frozenset({"cpu", "memory", "ephemeral-storage"})


class Notice(Struct, frozen=True):
    """Something that the pod may do without, and is told so once, as a Warning Event."""

    reason: str
    message: str


def refusal_of(spec: Mapping[str, Any]) -> Refusal | None:
    """Return why a pod with this spec can never run here, naming every field that is in the way; None if it can."""
    found = [*_pod_refusals(spec)]
    for index, container in enumerate(spec["containers"]):
        found += (f"containers[{index}].{each}" for each in _container_refusals(container, _token_volumes(spec)))
    if not found:
        return None
    return Refusal(UNSUPPORTED, f"this node cannot do what the pod asks for: spec.{', spec.'.join(found)}")


def notices_of(spec: Mapping[str, Any]) -> tuple[Notice, ...]:
    """Return what the pod does not get, though it runs."""
    found: list[Notice] = []
    if _token_volumes(spec):
        found.append(
            Notice(
                "TokenNotMounted",
                "no service account token is mounted on this node: containers run without /var/run/secrets; "
                "set automountServiceAccountToken: false to say that none is needed",
            )
        )
    limited = sorted(
        {
            name
            for container in spec["containers"]
            for name in ((container.get("resources") or {}).get("limits") or {})
            if name in _MEASURED and name != "memory"
        }
    )
    if limited:
        found.append(Notice("LimitNotEnforced", f"limits of {' and '.join(limited)} are not enforced on this node"))
    return tuple(found)


def _pod_refusals(spec: Mapping[str, Any]) -> Iterator[str]:
    for field, value in spec.items():
        if not value:
            continue
        if field not in _POD_FIELDS or (field in _POD_VALUES and value not in _POD_VALUES[field]):
            yield field
    tokens = _token_volumes(spec)
    for volume in spec.get("volumes") or ():
        if volume["name"] not in tokens:
            kind = next((key for key in volume if key != "name"), "emptyDir")
            yield f"volumes[{volume['name']}] ({kind})"


def _container_refusals(container: Mapping[str, Any], tokens: frozenset[str]) -> Iterator[str]:
    for field, value in container.items():
        if not value:
            continue
        if field not in _CONTAINER_FIELDS or (field in _DEFAULTS and value != _DEFAULTS[field]):
            yield field
    for port in container.get("ports") or ():
        # Containers share the machine's network: a port of the container is that port of the machine, no other.
        if port.get("hostPort") and port["hostPort"] != port["containerPort"]:
            yield f"ports[{port['containerPort']}].hostPort"
        if port.get("hostIP"):
            yield f"ports[{port['containerPort']}].hostIP"
    for mount in container.get("volumeMounts") or ():
        if mount["name"] not in tokens:
            yield f"volumeMounts[{mount['name']}]"
    for variable in container.get("env") or ():
        reference = variable.get("valueFrom") or {}
        path = (reference.get("fieldRef") or {}).get("fieldPath")
        if path is not None and not is_field(path):
            yield f"env[{variable['name']}].valueFrom.fieldRef ({path})"
        unknown = reference.keys() - {"fieldRef", "resourceFieldRef", "secretKeyRef", "configMapKeyRef"}
        yield from (f"env[{variable['name']}].valueFrom.{each}" for each in sorted(unknown))
    resources = container.get("resources") or {}
    if resources.get("claims"):
        yield "resources.claims"
    for name in sorted({*(resources.get("limits") or {}), *(resources.get("requests") or {})} - _MEASURED):
        yield f"resources ({name})"


def _token_volumes(spec: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the volumes that the API server adds to every pod for its service account's token."""
    return frozenset(
        volume["name"]
        for volume in spec.get("volumes") or ()
        if volume["name"].startswith(TOKEN_VOLUME_PREFIX)
        and any("serviceAccountToken" in each for each in (volume.get("projected") or {}).get("sources") or ())
    )
