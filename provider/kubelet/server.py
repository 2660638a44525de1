"""The listening side of the node's API: TLS, with client certificates asked for and not demanded.

A caller without one may bring a bearer token (metrics-server does). HTTP/1.1 only: upgrades need it.
"""

import logging
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import AnyByteStream, Listener, SocketStream, TaskGroup
from anyio.streams.tls import TLSAttribute, TLSListener, TLSStream

from bus.core.errors import ConfigurationError
from provider.kubelet.api import KubeletApi
from provider.kubelet.http import Answer, LongAnswer, Request, serve_connection

log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0
CONNECTIONS_MAX = 1000
"""At the same time, whether or not they have said who they are; a follower of a log holds one."""
CLOSE_S = 1.0
ACCEPT_AGAIN_S = 0.1
"""After a connection could not be taken, as when no descriptor is left."""


class _Bounded(Listener[SocketStream]):
    """Sockets that take so many connections and drop the others at once, before they cost a handshake."""

    def __init__(self, sockets: Listener[SocketStream], connections_max: int) -> None:
        self._sockets = sockets
        self._connections = anyio.CapacityLimiter(connections_max)

    async def serve(self, handler: Callable[[SocketStream], Any], task_group: TaskGroup | None = None) -> None:
        async def bounded(stream: SocketStream) -> None:
            try:
                self._connections.acquire_on_behalf_of_nowait(stream)
            except anyio.WouldBlock:
                log.warning("connection refused: too many", extra={"connections_max": self._connections.total_tokens})
                await anyio.aclose_forcefully(stream)
                return
            try:
                await handler(stream)
            finally:
                self._connections.release_on_behalf_of(stream)

        await self._sockets.serve(bounded, task_group)

    async def aclose(self) -> None:
        await self._sockets.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._sockets.extra_attributes


class _Listener(TLSListener):
    @staticmethod
    async def handle_handshake_error(exc: BaseException, stream: AnyByteStream) -> None:
        await anyio.aclose_forcefully(stream)
        if not isinstance(exc, Exception):
            raise exc
        # Port scanners, and certificates of strangers: the caller is told by TLS.
        log.info("no TLS with a caller: %s %s", type(exc).__name__, exc)


def server_context(certificate: str, key: str, client_ca: str) -> ssl.SSLContext:
    """Return the TLS settings; raise `ConfigurationError` for files that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            "certificate", certificate, "file", f"with key {key}: {error}; PEM files are needed"
        ) from error
    try:
        context.load_verify_locations(client_ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError("client_ca", client_ca, "file", f"{error}; a PEM file is needed") from error
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


@asynccontextmanager
async def open_listener(context: ssl.SSLContext, *, address: str, port: int) -> AsyncIterator[TLSListener]:
    """Own the listening sockets; callers wait until somebody serves. Raises `OSError` where the port is taken."""
    sockets = await anyio.create_tcp_listener(local_host=address, local_port=port)
    bounded = _Bounded(sockets, CONNECTIONS_MAX)
    async with _Listener(bounded, context, standard_compatible=False, handshake_timeout=HANDSHAKE_S) as listener:
        yield listener


@asynccontextmanager
async def open_server(api: KubeletApi, listener: Listener[Any]) -> AsyncIterator[None]:
    """Serve until the block is left; then requests in hand are cut off."""

    async def serve(stream: TLSStream) -> None:
        certificate = stream.extra(TLSAttribute.peer_certificate, None)  # noqa: S610 - not Django's

        async def handle(request: Request) -> Answer | LongAnswer:
            return await api.answer(request, certificate)

        try:
            await serve_connection(stream, handle)
        except Exception:
            log.exception("request failed")
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_S):
                await stream.aclose()

    async def accept() -> None:
        while True:
            try:
                await listener.serve(serve, group)
            except* OSError as errors:
                log.error("no connection can be taken: %s", errors.exceptions[0])
            await anyio.sleep(ACCEPT_AGAIN_S)

    async with anyio.create_task_group() as group:
        group.start_soon(accept)
        try:
            yield
        finally:
            group.cancel_scope.cancel()
