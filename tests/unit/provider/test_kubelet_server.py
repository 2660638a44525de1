"""The listening side: more callers than there is room for, and a machine without descriptors."""

import resource
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from provider.kubelet import server
from provider.kubelet.http import Answer, Request
from provider.kubelet.server import open_server

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n"


def open_descriptors() -> list[int]:
    return [int(each.name) for each in Path("/proc/self/fd").iterdir()]


class Api:
    async def answer(self, request: Request, certificate: Mapping[str, Any] | None) -> Answer:
        return Answer(status=200, body=b"ok")


@asynccontextmanager
async def serving(connections_max: int) -> AsyncIterator[int]:
    """Yield the port of a server without TLS."""
    sockets = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = sockets.extra(anyio.abc.SocketAttribute.local_port)
    async with server._Bounded(sockets, connections_max) as listener, open_server(Api(), listener):  # type: ignore[arg-type]
        yield port


async def answered(port: int) -> bytes:
    with anyio.fail_after(5):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(REQUEST)
            try:
                return await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return b""


async def test_callers_beyond_the_limit_are_dropped_and_their_places_are_free_again() -> None:
    async with serving(connections_max=3) as port:
        held = [await anyio.connect_tcp("127.0.0.1", port) for _ in range(3)]
        for each in held:
            await each.send(REQUEST)
            assert await each.receive()
        too_many = await answered(port)
        for each in held:
            await each.aclose()
        with anyio.fail_after(5):
            while not await answered(port):
                await anyio.sleep(0.01)

    assert too_many == b""


async def test_a_server_without_descriptors_serves_again_when_there_are_some(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "ACCEPT_AGAIN_S", 0.01)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving(connections_max=100) as port:
        assert await answered(port)
        with ExitStack() as callers:
            highest = max(open_descriptors())
            waiting = [callers.enter_context(socket.socket()) for _ in range(highest + 8)]
            limit = max(each.fileno() for each in waiting) + 1
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                for each in waiting:
                    each.setblocking(False)
                    each.connect_ex(("127.0.0.1", port))
                with anyio.fail_after(5):
                    while "no connection can be taken" not in caplog.text:
                        await anyio.sleep(0.01)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        got = await answered(port)

    assert b"200 OK" in got or b"HTTP/1.1 200" in got


async def test_no_descriptor_is_left_of_callers_that_come_and_go() -> None:
    async with serving(connections_max=100) as port:
        assert await answered(port)
        before = len(open_descriptors())
        for _ in range(50):
            stream = await anyio.connect_tcp("127.0.0.1", port)
            await stream.send(REQUEST[:20])  # and never the rest
            await stream.aclose()
        with anyio.fail_after(5):
            while len(open_descriptors()) > before:
                await anyio.sleep(0.01)
