"""One connection to an API server: plain objects in and out, typed errors, nothing retried in silence.

kr8s finds and loads the configuration (kubeconfig, in-cluster account, exec plug-ins), keeps the credentials and
carries the requests. What it does that would hurt here is switched off in `_Api`: idle connections closed after 5 s
(a new TLS handshake in the middle of a cold start), 100 connections at most, and three fresh logins for each 403
(`docs/decisions/0003-kr8s-under-one-door.md`).
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import httpx
import msgspec
import yaml
from kr8s._api import Api
from msgspec import Struct

from bus.cluster.errors import ClusterError, ClusterUnavailable, Forbidden, error_of
from bus.cluster.resources import Resource

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 500
CALL_S = 30.0
PAGE_ITEMS = 500
Strategy = Literal["merge", "json", "strategic"]
_TYPES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}


class ClusterConfig(Struct, frozen=True, kw_only=True):
    """How to reach the API server; without a kubeconfig, kubectl's own rules and then the pod's service account."""

    kubeconfig: str | None = None
    context: str | None = None
    connect_s: float = 10.0


class _Api(Api):
    _session: httpx.AsyncClient | None

    async def _create_session(self) -> None:
        headers = {"User-Agent": "nodeless"}
        if self.auth.token:
            headers["Authorization"] = f"Bearer {self.auth.token}"
        if self._session is not None:
            await self._session.aclose()
        limits = httpx.Limits(
            max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX, keepalive_expiry=None
        )
        self._session = httpx.AsyncClient(
            base_url=self.auth.server,
            headers=headers,
            verify=await self.auth.ssl_context(),
            timeout=httpx.Timeout(CALL_S, pool=CALL_S),
            limits=limits,
            proxy=self.auth.proxy,
            trust_env=False,
        )


class Cluster:
    """Use `open_cluster`. Objects are plain dictionaries as the API server writes them."""

    def __init__(self, api: _Api) -> None:
        self._api = api

    @property
    def server(self) -> str:
        return str(self._api.auth.server)

    @property
    def namespace(self) -> str:
        """The context's namespace."""
        return str(self._api.auth.namespace)

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> dict[str, Any]:
        return await self.call("GET", resource.path(namespace, name))

    async def list(
        self, resource: Resource, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> dict[str, Any]:
        """Return the whole list, read in pages, with the resourceVersion from which a watch may go on."""
        query = {"limit": str(PAGE_ITEMS)}
        if label_selector:
            query["labelSelector"] = label_selector
        if field_selector:
            query["fieldSelector"] = field_selector
        items: list[dict[str, Any]] = []
        while True:
            page = await self.call("GET", resource.path(namespace), query=query)
            items += page["items"]
            following = page["metadata"].get("continue")
            if not following:
                return page | {"items": items}
            query["continue"] = following

    async def create(
        self,
        resource: Resource,
        body: Mapping[str, Any],
        namespace: str | None = None,
        *,
        name: str = "",
        subresource: str = "",
    ) -> dict[str, Any]:
        return await self.call("POST", resource.path(namespace, name, subresource), body=body)

    async def replace(
        self, resource: Resource, body: Mapping[str, Any], namespace: str | None = None, *, subresource: str = ""
    ) -> dict[str, Any]:
        return await self.call("PUT", resource.path(namespace, body["metadata"]["name"], subresource), body=body)

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        namespace: str | None = None,
        *,
        subresource: str = "",
        strategy: Strategy = "merge",
    ) -> dict[str, Any]:
        """Change parts of an object; a `metadata.uid` or `metadata.resourceVersion` in it is a precondition.

        `json` takes a list of operations (RFC 6902). `strategic` merges lists with keys (conditions, addresses) by their
        key, and is for built-in kinds only.
        """
        path = resource.path(namespace, name, subresource)
        return await self.call("PATCH", path, body=patch, content_type=_TYPES[strategy])

    async def apply(
        self,
        resource: Resource,
        body: Mapping[str, Any],
        *,
        field_manager: str,
        namespace: str | None = None,
        subresource: str = "",
        force: bool = True,
    ) -> dict[str, Any]:
        """Server-side apply: this manager's fields become exactly those of `body`; unknown fields are refused."""
        query = {"fieldManager": field_manager, "fieldValidation": "Strict"} | ({"force": "true"} if force else {})
        path = resource.path(namespace, body["metadata"]["name"], subresource)
        return await self.call("PATCH", path, body=body, query=query, content_type=_TYPES["apply"])

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        grace_s: int | None = None,
        propagation: str | None = None,
    ) -> dict[str, Any]:
        """Delete by name, and only if it is still the object with that UID; `Conflict` if it is another one."""
        options: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        if propagation is not None:
            options["propagationPolicy"] = propagation
        return await self.call("DELETE", resource.path(namespace, name), body=options)

    async def version(self) -> dict[str, Any]:
        return await self.call("GET", "/version")

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """Make one request and return the decoded answer; raise the `ClusterError` that fits."""
        operation = f"{method} {path}"
        content = None if body is None else msgspec.json.encode(body)
        has_logged_in_again = False
        while True:
            try:
                async with self._api.call_api(
                    method, version="", base=path, url="", raise_for_status=False,
                    content=content, params=dict(query or {}), headers={"Content-Type": content_type, "Accept": "application/json"},
                ) as response:  # fmt: skip
                    if response.status_code == 401 and not has_logged_in_again:
                        has_logged_in_again = True
                        await self._log_in_again()
                        continue
                    if response.is_error:
                        raise _error(operation, response.status_code, response.content)
                    answer: dict[str, Any] = msgspec.json.decode(response.content) if response.content else {}
                    return answer
            except (httpx.HTTPError, OSError, TimeoutError) as error:
                raise ClusterUnavailable(operation, _reason(error)) from error
            except ClusterError:
                raise
            except Exception as error:  # kr8s raises unrelated classes of its own
                if type(error).__module__.startswith("kr8s"):
                    raise ClusterUnavailable(operation, _reason(error)) from error
                raise

    async def _log_in_again(self) -> None:
        """Credentials may have been rotated: read them once more."""
        await self._api.auth.reauthenticate()
        await self._api._create_session()

    @asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str], *, silent_s: float | None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a long answer and yield its chunks; a silence of more than `silent_s` raises `ClusterUnavailable`."""
        operation = f"GET {path}"
        timeout = httpx.Timeout(CALL_S, read=silent_s, pool=CALL_S)
        try:
            async with self._api.call_api(
                "GET",
                version="",
                base=path,
                url="",
                raise_for_status=False,
                stream=True,
                params=dict(query),
                timeout=timeout,
            ) as response:
                if response.is_error:
                    raise _error(operation, response.status_code, await response.aread())
                yield response.aiter_bytes()
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise ClusterUnavailable(operation, _reason(error)) from error
        except Exception as error:
            if type(error).__module__.startswith("kr8s"):
                raise ClusterUnavailable(operation, _reason(error)) from error
            raise

    async def lines(self, path: str, query: Mapping[str, str] | None = None) -> AsyncGenerator[str, None]:
        """Yield the lines of a long answer, without their ends, as they come."""
        async with self.stream(path, query or {}, silent_s=None) as chunks:
            async for line in lines_of(chunks):
                yield line.decode(errors="replace")


async def lines_of(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the lines of what comes in parts, without their ends; the last one may have none."""
    rest = b""
    async for chunk in chunks:
        *complete, rest = (rest + chunk).split(b"\n")
        for line in complete:
            yield line
    if rest:
        yield rest


def _error(operation: str, status: int, content: bytes) -> ClusterError:
    reason, message = "", content[:500].decode(errors="replace")
    try:
        document = msgspec.json.decode(content)
        if isinstance(document, dict):
            reason, message = document.get("reason", ""), document.get("message", message)
    except msgspec.DecodeError:
        pass
    return error_of(operation, status, reason, message)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


@asynccontextmanager
async def open_cluster(config: ClusterConfig) -> AsyncIterator[Cluster]:
    """Own one connection; on exit all its sockets are closed.

    Raises `ClusterUnavailable` where no configuration is found or no server answers within `config.connect_s`.
    """
    api = _Api(bypass_factory=True, kubeconfig=config.kubeconfig, context=config.context)
    operation = f"connect with {config.kubeconfig or 'the default kubeconfig'}"
    try:
        await api.auth
        await api._create_session()
    except (ValueError, TypeError, OSError, KeyError, yaml.YAMLError) as error:
        reason = f"{_reason(error)}; is it a kubeconfig, and is there such a context?"
        raise ClusterUnavailable(operation, reason) from error
    cluster = Cluster(api)
    try:
        try:
            with anyio.fail_after(config.connect_s):
                await cluster.version()
        except TimeoutError as error:
            raise ClusterUnavailable(operation, f"{cluster.server} is silent for {config.connect_s:g} s") from error
        except Forbidden:
            log.debug("this identity may not read the version")
        yield cluster
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(2.0):
            if api._session is not None:
                await api._session.aclose()
