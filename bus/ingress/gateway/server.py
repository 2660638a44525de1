"""Serve the gateway from our own task group: uvicorn without its signal handlers, stopped by us."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import uvicorn
from starlette.applications import Starlette

from bus.core.errors import ConfigurationError

CONNECTIONS_MAX = 2048
"""Connections at once; further ones are told 503 by uvicorn. [connections]"""
BACKLOG = 1024
HEADER_BYTES_MAX = 128 * 1024
"""Largest request line and headers together. [bytes]"""
KEEP_ALIVE_S = 75
"""How long an idle connection is kept; longer than the 60 s after which clients and proxies give theirs up.
[seconds]"""


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: they are the program's, which stops more than this server."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; raise `ConfigurationError` where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only where the protocol is named; with it on, each answer takes 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise ConfigurationError("port", port, "setting", f"{host} port {port} cannot be had: {error}") from error
    return listening


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(application: Starlette, listening: socket.socket, stop: anyio.Event, grace_s: float) -> None:
    """Serve until `stop`; then take no more, and give requests in hand `grace_s` to end."""
    config = uvicorn.Config(
        application,
        loop="none",
        http="h11",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(grace_s)),
        h11_max_incomplete_event_size=HEADER_BYTES_MAX,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server = _Server(config)

    async def wait_stop() -> None:
        await stop.wait()
        server.should_exit = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait_stop)
        await server.serve(sockets=[listening])
        tasks.cancel_scope.cancel()
