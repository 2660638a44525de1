"""Who calls the node's API, and whether the cluster lets them: certificates, TokenReview, SubjectAccessReview.

Answers are remembered for a while, so that following a log costs the API server nothing. Nobody is anonymous.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

import anyio

from bus.cluster.connection import Cluster
from bus.cluster.errors import Invalid
from bus.cluster.resources import SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS
from provider.core.authorization import (
    ALLOWED_FOR_S,
    DENIED_FOR_S,
    Identity,
    Right,
    access_review,
    identity_of_certificate,
    identity_of_review,
)

TOKEN_FOR_S = 120.0
TOKEN_REFUSED_FOR_S = 10.0
REMEMBERED_MAX = 1024

V = TypeVar("V")


class Remembered(Generic[V]):
    """Values, each for a time of its own; the oldest goes when there are too many."""

    def __init__(self) -> None:
        self._values: OrderedDict[object, tuple[float, V]] = OrderedDict()

    def get(self, key: object) -> V | None:
        found = self._values.get(key)
        if found is None or found[0] < anyio.current_time():
            return None
        return found[1]

    def put(self, key: object, value: V, for_s: float) -> None:
        self._values.pop(key, None)
        self._values[key] = (anyio.current_time() + for_s, value)
        while len(self._values) > REMEMBERED_MAX:
            self._values.popitem(last=False)


class Access:
    """Asks the API server, as the node's own identity."""

    def __init__(self, cluster: Cluster, node: str) -> None:
        self._cluster, self._node = cluster, node
        self._identities: Remembered[tuple[Identity | None]] = Remembered()
        self._answers: Remembered[bool] = Remembered()

    async def identify(self, certificate: Mapping[str, Any] | None, authorization: str) -> Identity | None:
        """Return who calls: by a certificate that TLS has verified, else by a bearer token; None for anybody else."""
        identity = identity_of_certificate(certificate)
        if identity is not None:
            return identity
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return None
        return await self._review(token.strip())

    async def _review(self, token: str) -> Identity | None:
        key = hashlib.sha256(token.encode()).digest()
        known = self._identities.get(key)
        if known is not None:
            return known[0]
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        try:
            identity = identity_of_review(await self._cluster.create(TOKEN_REVIEWS, body))
        except Invalid:
            identity = None
        self._identities.put(key, (identity,), TOKEN_REFUSED_FOR_S if identity is None else TOKEN_FOR_S)
        return identity

    async def is_allowed(self, identity: Identity, rights: Iterable[Right]) -> bool:
        """Say whether the identity has one of the rights on this node. Raises `ClusterError` where nobody can tell."""
        for right in rights:
            if await self._has(identity, right):
                return True
        return False

    async def _has(self, identity: Identity, right: Right) -> bool:
        key = (identity, right)
        known = self._answers.get(key)
        if known is not None:
            return known
        review = await self._cluster.create(SUBJECT_ACCESS_REVIEWS, access_review(identity, right, self._node))
        is_allowed = bool((review.get("status") or {}).get("allowed"))
        self._answers.put(key, is_allowed, ALLOWED_FOR_S if is_allowed else DENIED_FOR_S)
        return is_allowed
