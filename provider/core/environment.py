"""A container's environment: which objects it is made of, and what it is once they are there.

The order and the rules are a kubelet's (pkg/kubelet/kubelet_pods.go, makeEnvironmentVariables): `envFrom` first, then
`env` in its order, each entry seeing those before it through `$(NAME)`. What a kubelet adds of itself is not added:
addresses of Services lead nowhere on a node without a service proxy.
"""

import base64
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from msgspec import Struct

from provider.core.quantity import parse_quantity

Kind = Literal["Secret", "ConfigMap"]
_WHOLE: tuple[tuple[str, Kind], ...] = (("configMapRef", "ConfigMap"), ("secretRef", "Secret"))
_KEYS: tuple[tuple[str, Kind], ...] = (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret"))


class Source(Struct, frozen=True):
    """A Secret or ConfigMap in the pod's namespace."""

    kind: Kind
    name: str


class Need(Struct, frozen=True):
    """A source with what of it is needed. Without a key: all of it."""

    source: Source
    is_optional: bool
    key: str = ""


Objects = Mapping[Source, Mapping[str, Any] | None]
"""What was fetched; None: there is no such object."""


class Shortage(Exception):
    """A mandatory object or key is missing, or no text: the container waits until it is as it should be.

    `event` is the reason that virtual kubelets give it in Events.
    """

    def __init__(self, event: str, message: str) -> None:
        self.event, self.message = event, message
        super().__init__(message)


class Facts(Struct, frozen=True, kw_only=True):
    """What else a variable may refer to."""

    pod: Mapping[str, Any]
    address: str
    """Of the node, and so of the pod."""
    allocatable: Mapping[str, str]
    """Of the node: the limit of a container that states none."""


def needs_of(container: Mapping[str, Any]) -> tuple[Need, ...]:
    """Return the objects that the container's environment refers to, in order."""
    found: list[Need] = []
    for each in container.get("envFrom") or ():
        for field, kind in _WHOLE:
            if field in each:
                found.append(_need(kind, each[field]))
    for each in container.get("env") or ():
        reference = each.get("valueFrom") or {}
        for field, kind in _KEYS:
            if field in reference:
                found.append(_need(kind, reference[field]))
    return tuple(found)


def sources_of(containers: Iterable[Mapping[str, Any]]) -> tuple[Source, ...]:
    """Return each object once."""
    return tuple(dict.fromkeys(need.source for each in containers for need in needs_of(each)))


def absent_optional(container: Mapping[str, Any], objects: Objects) -> tuple[Source, ...]:
    """Return the optional objects that do not exist."""
    return tuple(
        dict.fromkeys(
            need.source for need in needs_of(container) if need.is_optional and objects.get(need.source) is None
        )
    )


def environment_of(container: Mapping[str, Any], objects: Objects, facts: Facts) -> dict[str, str]:
    """Return the container's environment; raise `Shortage` for the first mandatory object or key that is missing."""
    found: dict[str, str] = {}
    for each in container.get("envFrom") or ():
        prefix = each.get("prefix") or ""
        for field, kind in _WHOLE:
            if field in each:
                values = _values(_need(kind, each[field]), objects)
                found |= {prefix + key: value for key, value in values.items() if is_name(prefix + key)}
    for each in container.get("env") or ():
        if each.get("value"):
            found[each["name"]] = expanded(each["value"], found)
            continue
        value = _referred(each.get("valueFrom") or {}, objects, facts, container)
        if value is not None:
            found[each["name"]] = value
    return found


def is_name(text: str) -> bool:
    """Say whether a variable may be called so. Source: apimachinery, IsRelaxedEnvVarName (Kubernetes 1.30)."""
    return bool(text) and all(" " <= character <= "~" and character != "=" for character in text)


_REFERENCE = re.compile(r"\$(?:\$|\(([^()]*)\))")


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """Return the text with `$(NAME)` replaced by values and `$$` by `$`; an unknown name stays as it is written.

    Source: third_party/forked/golang/expansion.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        return "$" if name is None else variables.get(name, match.group(0))

    return _REFERENCE.sub(value, text)


def _need(kind: Kind, reference: Mapping[str, Any]) -> Need:
    source = Source(kind, reference.get("name") or "")
    return Need(source, bool(reference.get("optional")), reference.get("key") or "")


def _values(need: Need, objects: Objects) -> dict[str, str]:
    """Return the object's data; nothing for an optional one that is missing."""
    found = objects.get(need.source)
    if found is None:
        if need.is_optional:
            return {}
        kind, name = need.source.kind, need.source.name
        raise Shortage(f"Mandatory{kind}NotFound", f"{kind} {name!r} not found")
    data = found.get("data") or {}
    if need.source.kind == "ConfigMap":
        return dict(data)
    wanted = {need.key: data[need.key]} if need.key in data else ({} if need.key else data)
    return {key: _text(need.source.name, key, value) for key, value in wanted.items()}


def _text(secret: str, key: str, encoded: str) -> str:
    try:
        return base64.b64decode(encoded).decode()
    except UnicodeDecodeError as error:
        raise Shortage("InvalidEnvironmentValue", f"Secret {secret!r}, key {key!r}: not text (UTF-8)") from error


def _referred(reference: Mapping[str, Any], objects: Objects, facts: Facts, container: Mapping[str, Any]) -> str | None:
    """Return the value that the reference stands for; None where the variable is not to be set at all."""
    for field, kind in _KEYS:
        if field in reference:
            need = _need(kind, reference[field])
            values = _values(need, objects)
            if need.key in values:
                return values[need.key]
            if need.is_optional:
                return None
            raise Shortage(f"Mandatory{kind}KeyNotFound", f"{kind} {need.source.name!r} has no key {need.key!r}")
    if "fieldRef" in reference:
        return pod_field(reference["fieldRef"]["fieldPath"], facts)
    if "resourceFieldRef" in reference:
        return container_resource(reference["resourceFieldRef"], facts, container["name"])
    return ""


_FIELDS: dict[str, Callable[[Facts], str]] = {
    "metadata.name": lambda facts: str(facts.pod["metadata"]["name"]),
    "metadata.namespace": lambda facts: str(facts.pod["metadata"]["namespace"]),
    "metadata.uid": lambda facts: str(facts.pod["metadata"]["uid"]),
    "spec.nodeName": lambda facts: str(facts.pod["spec"].get("nodeName", "")),
    "spec.serviceAccountName": lambda facts: str(facts.pod["spec"].get("serviceAccountName", "")),
    "status.hostIP": lambda facts: facts.address,
    "status.hostIPs": lambda facts: facts.address,
    "status.podIP": lambda facts: facts.address,
    "status.podIPs": lambda facts: facts.address,
}
_MAP_ENTRY = re.compile(r"metadata\.(labels|annotations)\['([^']*)'\]")


def is_field(path: str) -> bool:
    """Say whether this node can tell that field."""
    return path in _FIELDS or _MAP_ENTRY.fullmatch(path) is not None


def pod_field(path: str, facts: Facts) -> str:
    """Return a field of the pod; a label or annotation that is not there is empty."""
    entry = _MAP_ENTRY.fullmatch(path)
    if entry is not None:
        values = facts.pod["metadata"].get(entry.group(1)) or {}
        return str(values.get(entry.group(2), ""))
    return _FIELDS[path](facts)


_RESOURCE = re.compile(r"(limits|requests)\.(.+)")


def container_resource(reference: Mapping[str, Any], facts: Facts, own: str) -> str:
    """Return a limit or request in whole divisors, rounded up; without a limit what the node has, without a request 0.

    Source: pkg/api/v1/resource, ExtractContainerResourceValue.
    """
    match = _RESOURCE.fullmatch(reference["resource"])
    assert match is not None, "the API server admits limits.* and requests.* only"
    which, resource = match.groups()
    wanted = reference.get("containerName") or own
    resources: Mapping[str, Any] = {}
    for container in facts.pod["spec"]["containers"]:
        if container["name"] == wanted:
            resources = container.get("resources") or {}
    stated = (resources.get(which) or {}).get(resource)
    if stated is None:
        stated = facts.allocatable.get(resource, "0") if which == "limits" else "0"
    divisor = parse_quantity(str(reference.get("divisor") or "0"))
    return str(math.ceil(parse_quantity(str(stated)) / (divisor or 1)))
