"""The pod of one worker and the Secret of a function's workers, as the API server takes them. Pure."""

import base64
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from bus.core.assignment import (
    ENVIRONMENT_ASSIGNMENT,
    ENVIRONMENT_GRACE_S,
    ENVIRONMENT_NATS_CREDENTIALS,
    ENVIRONMENT_NATS_URL,
    ENVIRONMENT_NODE_NAME,
    ENVIRONMENT_POD_NAME,
    ENVIRONMENT_POD_UID,
    FUNCTION_LABEL,
    VERSION_LABEL,
    WOKEN_ANNOTATION,
    encode_assignment,
)
from bus.functions.model import API_VERSION, Function, duration_s

CONTAINER = "worker"
CREDENTIALS_KEY = "nats.creds"
MANAGED_BY = "nodeless"
NODE_TYPE = {"type": "virtual-kubelet"}
TOLERATIONS = [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}]

GRACE_S_MIN = 25.0
GRACE_S_MAX = 300.0
"""A leaving worker lets a call go on for as long as the function's own timeout, within these."""
LEAVE_S = 5
"""What a worker needs beyond that to settle and to say good-bye."""


class WorkerSettings(Struct, frozen=True, kw_only=True):
    """What all worker pods have in common."""

    image: str
    nats_url: str
    has_credentials: bool


def pod_name(function: Function, ordinal: int) -> str:
    """Return the name that only one pod can have: the guard against doubling."""
    return f"{function.metadata.name}-{function.metadata.uid[:8]}-{ordinal}"


def ordinal_of(name: str) -> int:
    return int(name.rsplit("-", 1)[1])


def secret_name(function: str) -> str:
    return f"{function}-bus"


def grace_s(function: Function) -> float:
    return min(GRACE_S_MAX, max(GRACE_S_MIN, duration_s(function.spec.delivery.timeout)))


def worker_pod(function: Function, ordinal: int, settings: WorkerSettings, woken_at: str) -> dict[str, Any]:
    """Return the pod of the worker with that ordinal; `woken_at` (RFC 3339) is when the demand for it was seen."""
    metadata, pod = function.metadata, function.spec.pod
    environment: list[dict[str, Any]] = [
        {"name": ENVIRONMENT_ASSIGNMENT, "value": encode_assignment(function.assignment())},
        {"name": ENVIRONMENT_NATS_URL, "value": settings.nats_url},
        _from_field(ENVIRONMENT_POD_NAME, "metadata.name"),
        _from_field(ENVIRONMENT_POD_UID, "metadata.uid"),
        _from_field(ENVIRONMENT_NODE_NAME, "spec.nodeName"),
        {"name": ENVIRONMENT_GRACE_S, "value": f"{grace_s(function):g}"},
    ]
    if settings.has_credentials:
        reference = {"name": secret_name(metadata.name), "key": CREDENTIALS_KEY}
        environment.append({"name": ENVIRONMENT_NATS_CREDENTIALS, "valueFrom": {"secretKeyRef": reference}})
    environment += [{"name": variable.name, "value": variable.value} for variable in pod.env]
    container: dict[str, Any] = {"name": CONTAINER, "image": settings.image, "env": environment}
    if pod.resources:
        container["resources"] = pod.resources
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(function, ordinal),
            "namespace": metadata.namespace,
            "labels": _labels(function) | {VERSION_LABEL: function.version},
            "annotations": {WOKEN_ANNOTATION: woken_at},
            "ownerReferences": [owner_reference(function)],
        },
        "spec": {
            "containers": [container],
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": int(grace_s(function)) + LEAVE_S,
            "nodeSelector": NODE_TYPE | pod.node_selector,
            "tolerations": TOLERATIONS,
        },
    }


def credentials_secret(function: Function, credentials: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": secret_name(function.metadata.name),
            "namespace": function.metadata.namespace,
            "labels": _labels(function),
            "ownerReferences": [owner_reference(function)],
        },
        "type": "Opaque",
        "data": {CREDENTIALS_KEY: base64.b64encode(credentials.encode()).decode()},
    }


def owner_reference(function: Function) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "Function",
        "name": function.metadata.name,
        "uid": function.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def owner_uid(pod: Mapping[str, Any]) -> str | None:
    """Return the UID of the Function that a pod belongs to."""
    for owner in pod["metadata"].get("ownerReferences", ()):
        if owner.get("controller") and owner["kind"] == "Function" and owner["apiVersion"] == API_VERSION:
            return str(owner["uid"])
    return None


def _labels(function: Function) -> dict[str, str]:
    return {FUNCTION_LABEL: function.metadata.name, "app.kubernetes.io/managed-by": MANAGED_BY}


def _from_field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
