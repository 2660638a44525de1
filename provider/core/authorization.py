"""Who may call the node's HTTPS API: which right a request needs, and for how long an answer holds.

Source: pkg/kubelet/server/auth.go. The finer names are tried first (Kubernetes 1.33 and later grant them), then `proxy`.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

ALLOWED_FOR_S = 300.0
DENIED_FOR_S = 30.0
"""A right that was just granted is seen after this at the latest."""

_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_OWN = {"stats": "stats", "metrics": "metrics", "logs": "log", "checkpoint": "checkpoint"}
_FINER = {"pods": "pods", "runningpods": "pods", "healthz": "healthz", "configz": "configz", "statusz": "statusz"}


class Identity(Struct, frozen=True, kw_only=True):
    """Who calls."""

    user: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Right(Struct, frozen=True):
    """A verb on one subresource of our Node."""

    verb: str
    subresource: str


def rights_of(method: str, path: str) -> tuple[Right, ...]:
    """Return the rights of which a request needs one, in the order in which to ask."""
    verb = _VERBS.get(method.upper(), "")
    first = path.strip("/").partition("/")[0]
    if first in _OWN:
        names: tuple[str, ...] = (_OWN[first],)
    elif first in _FINER:
        names = (_FINER[first], "proxy")
    else:
        names = ("proxy",)
    return tuple(Right(verb, name) for name in names)


def access_review(identity: Identity, right: Right, node: str) -> dict[str, Any]:
    """Return the SubjectAccessReview that asks whether `identity` has `right` on `node`."""
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": identity.user,
            "groups": list(identity.groups),
            "uid": identity.uid,
            "extra": {key: list(values) for key, values in identity.extra},
            "resourceAttributes": {
                "verb": right.verb,
                "version": "v1",
                "resource": "nodes",
                "subresource": right.subresource,
                "name": node,
            },
        },
    }


def identity_of_certificate(certificate: Mapping[str, Any] | None) -> Identity | None:
    """Return whom a verified client certificate (as `ssl` tells it) names: the common name, in its organisations."""
    if not certificate:
        return None
    parts = [pair for each in certificate.get("subject", ()) for pair in each]
    names = [value for key, value in parts if key == "commonName"]
    if not names:
        return None
    groups = [value for key, value in parts if key == "organizationName"]
    return Identity(user=names[0], groups=(*groups, "system:authenticated"))


def identity_of_review(review: Mapping[str, Any]) -> Identity | None:
    """Return whom an answered TokenReview names; None where the token is not good."""
    status = review.get("status") or {}
    if not status.get("authenticated"):
        return None
    user = status.get("user") or {}
    extra = tuple((key, tuple(values)) for key, values in sorted((user.get("extra") or {}).items()))
    return Identity(
        user=user.get("username", ""), groups=tuple(user.get("groups") or ()), uid=user.get("uid", ""), extra=extra
    )
