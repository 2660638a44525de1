"""What the node's API serves: health, pods, what runs, and logs. What it does not serve it says clearly."""

import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import msgspec

from bus.cluster.errors import ClusterError
from provider.backends.seam import Backend, LogQuery
from provider.core.authorization import rights_of
from provider.errors import PodNotFound
from provider.kubelet.access import Access
from provider.kubelet.http import Answer, LongAnswer, Request
from provider.kubelet.queries import BadQuery, log_query
from provider.node.pods import Pods

log = logging.getLogger(__name__)

READ_ONLY = frozenset({"healthz", "pods", "runningpods", "containerLogs"})
NOT_YET = frozenset({"exec", "attach", "portForward", "run", "checkpoint", "cri"})


class KubeletApi:
    """Answers one request at a time, from the pods as the node knows them."""

    def __init__(
        self, access: Access, pods: Pods, backend: Backend, *, node: str, is_ready: Callable[[], bool]
    ) -> None:
        self._access, self._pods, self._backend = access, pods, backend
        self._node, self._is_ready = node, is_ready

    async def answer(self, request: Request, certificate: Mapping[str, Any] | None) -> Answer | LongAnswer:
        """Authenticate, authorise, answer; nothing is told to anybody who may not ask."""
        rights = rights_of(request.method, request.path)
        try:
            identity = await self._access.identify(certificate, request.headers.get("authorization", ""))
            if identity is None:
                return _text(401, "Unauthorized: a client certificate of this cluster or a bearer token is needed")
            if not await self._access.is_allowed(identity, rights):
                names = " or ".join(f"nodes/{right.subresource}" for right in rights)
                asked = f"user={identity.user}, verb={rights[0].verb}, resource={names}, name={self._node}"
                return _text(403, f"Forbidden ({asked})")
        except ClusterError as error:
            log.warning("nobody can tell who may call: %s", error)
            return _text(503, "the API server cannot be asked whether this is allowed; try again")
        return self._route(request)

    def _route(self, request: Request) -> Answer | LongAnswer:
        first, *rest = request.path.strip("/").split("/")
        if first in NOT_YET:
            return _text(501, f"{first} is not implemented by this node")
        if first not in READ_ONLY:
            return _text(404, "404 page not found")
        if request.method not in {"GET", "HEAD"}:
            return _text(405, f"{first} can only be read", ("allow", "GET"))
        if first == "healthz":
            return _text(200, "ok") if self._is_ready() else _text(503, "the node is not registered, or not in sync")
        if first == "pods":
            return _pod_list(self._pods.objects)
        if first == "runningpods":
            return _pod_list(self._running())
        return self._logs(rest, request)

    def _running(self) -> list[dict[str, Any]]:
        """Return what the backend really runs, whatever the API thinks."""
        return [
            {
                "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
                "spec": {"containers": [{"name": each.name} for each in pod.containers if each.state == "running"]},
                "status": {},
            }
            for pod in self._backend.pods()
            if any(each.state == "running" for each in pod.containers)
        ]

    def _logs(self, names: list[str], request: Request) -> Answer | LongAnswer:
        if len(names) != 3 or not all(names):
            return _text(404, "404 page not found: /containerLogs/NAMESPACE/POD/CONTAINER is expected")
        namespace, name, container = names
        pod = self._pods.find(namespace, name)
        if pod is None:
            return _text(404, f'pod "{name}" not found in namespace "{namespace}" on this node')
        if container not in {each["name"] for each in pod["spec"]["containers"]}:
            return _text(404, f'container "{container}" not found in pod "{name}"')
        try:
            query = log_query(request.query, now_ns=time.time_ns())
        except BadQuery as bad:
            return _text(bad.status, bad.message)
        uid = pod["metadata"]["uid"]
        run = self._pods.runs_in_backend(uid).get(container)
        if run is None:
            return _text(400, f'container "{container}" in pod "{name}" is waiting to start, or nothing is left of it')
        if query.previous and run.restart == 0:
            return _text(400, f'previous terminated container "{container}" in pod "{name}" not found')
        if request.method == "HEAD":
            return _text(200, "")
        return LongAnswer(parts=self._log_parts(uid, container, query))

    async def _log_parts(self, uid: str, container: str, query: LogQuery) -> AsyncGenerator[bytes, None]:
        parts = self._backend.logs(uid, container, query)
        try:
            async for part in parts:
                yield part
        except PodNotFound as error:  # it was removed since we looked
            log.info("log gone: %s", error, extra={"pod_uid": uid})
        finally:
            if isinstance(parts, AsyncGenerator):  # whatever the backend holds open for a follower that went
                await parts.aclose()


def _pod_list(items: list[dict[str, Any]]) -> Answer:
    body = msgspec.json.encode({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
    return Answer(status=200, body=body, content_type="application/json")


def _text(status: int, text: str, *headers: tuple[str, str]) -> Answer:
    return Answer(status=status, body=f"{text}\n".encode() if text else b"", headers=headers)
