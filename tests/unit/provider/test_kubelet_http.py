"""HTTP on one connection: requests one after the other, long answers, bad input, and clients that go."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, ObjectReceiveStream, ObjectSendStream

from provider.kubelet.http import BODY_BYTES_MAX, Answer, LongAnswer, Request, serve_connection


class Wire(ByteStream):
    """One end of a connection in memory."""

    def __init__(self, send: ObjectSendStream[bytes], receive: ObjectReceiveStream[bytes]) -> None:
        self._send, self._receive = send, receive

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._receive.receive()

    async def send(self, item: bytes) -> None:
        if item:
            await self._send.send(item)

    async def send_eof(self) -> None:
        await self._send.aclose()

    async def aclose(self) -> None:
        await self._send.aclose()
        await self._receive.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {}


def wires() -> tuple[Wire, Wire]:
    there, here = anyio.create_memory_object_stream[bytes](100), anyio.create_memory_object_stream[bytes](100)
    return Wire(there[0], here[1]), Wire(here[0], there[1])


async def exchange(sent: bytes, handle: Callable[[Request], Awaitable[Answer | LongAnswer]] | None = None) -> str:
    """Return all that a client gets that sends this and nothing more."""
    client, server = wires()
    async with anyio.create_task_group() as group:

        async def serve() -> None:
            await serve_connection(server, handle or echo)
            await server.aclose()

        group.start_soon(serve)
        await client.send(sent)
        await client.send_eof()
        got = b""
        with anyio.fail_after(5):
            try:
                while True:
                    got += await client.receive()
            except anyio.EndOfStream:
                pass
        await client.aclose()
    return got.decode()


async def echo(request: Request) -> Answer:
    return Answer(status=200, body=f"{request.method} {request.path} {dict(request.query)}".encode())


async def test_requests_on_one_connection_are_answered_in_order() -> None:
    got = await exchange(b"GET /a%20b?x=1&y= HTTP/1.1\r\nHost: n\r\n\r\nGET /c HTTP/1.1\r\nHost: n\r\n\r\n")

    assert got.count("HTTP/1.1 200") == 2
    assert got.index("GET /a b {'x': '1', 'y': ''}") < got.index("GET /c {}")


async def test_a_client_that_wants_one_answer_gets_one() -> None:
    got = await exchange(b"GET /a HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\nGET /b HTTP/1.1\r\nHost: n\r\n\r\n")

    assert got.count("HTTP/1.1 200") == 1


async def test_the_answer_to_head_has_no_body() -> None:
    got = await exchange(b"HEAD /a HTTP/1.1\r\nHost: n\r\n\r\n")

    assert "content-length: 10" in got.lower()
    assert got.endswith("\r\n\r\n")


async def test_a_body_is_read_and_dropped() -> None:
    got = await exchange(
        b"POST /a HTTP/1.1\r\nHost: n\r\nContent-Length: 3\r\n\r\nxyzGET /b HTTP/1.1\r\nHost: n\r\n\r\n"
    )

    assert got.count("HTTP/1.1 200") == 2


async def test_a_body_without_end_is_refused() -> None:
    length = BODY_BYTES_MAX + 1
    head = f"POST /a HTTP/1.1\r\nHost: n\r\nContent-Length: {length}\r\n\r\n".encode()

    assert "413" in (await exchange(head + b"x" * length)).splitlines()[0]


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01 nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /" + b"a" * 100_000]
)
def test_what_is_not_http_gets_a_client_error_and_the_end(sent: bytes) -> None:
    got = anyio.run(exchange, sent)

    assert got.startswith(("HTTP/1.1 400", "HTTP/1.1 431"))
    assert "connection: close" in got.lower()


async def test_an_upgrade_that_is_not_taken_up_is_answered_as_a_request() -> None:
    upgrade = b"POST /exec HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n"

    async def refuse(request: Request) -> Answer:
        return Answer(status=501, body=b"not here\n")

    assert (await exchange(upgrade, refuse)).startswith("HTTP/1.1 501")


async def test_a_long_answer_comes_in_parts_and_the_connection_goes_on() -> None:
    client, server = wires()
    more = anyio.Event()

    async def parts() -> AsyncGenerator[bytes, None]:
        yield b"first\n"
        await more.wait()
        yield b"second\n"

    async def handle(request: Request) -> Answer | LongAnswer:
        return LongAnswer(parts=parts()) if request.path == "/log" else Answer(status=200, body=b"after")

    async with anyio.create_task_group() as group:
        group.start_soon(serve_connection, server, handle)
        await client.send(b"GET /log HTTP/1.1\r\nHost: n\r\n\r\n")
        got = b""
        with anyio.fail_after(5):
            while b"first" not in got:  # it is here although the second is not written yet
                got += await client.receive()
            more.set()
            while b"0\r\n\r\n" not in got:
                got += await client.receive()
            await client.send(b"GET /next HTTP/1.1\r\nHost: n\r\n\r\n")
            while b"after" not in got:
                got += await client.receive()
        group.cancel_scope.cancel()
    await client.aclose()
    await server.aclose()

    assert b"transfer-encoding: chunked" in got.lower()
    assert b"second" in got


async def test_a_follower_that_goes_ends_the_answer() -> None:
    client, server = wires()
    was_closed = False

    async def parts() -> AsyncGenerator[bytes, None]:
        nonlocal was_closed
        try:
            yield b"first\n"
            await anyio.sleep_forever()
        finally:
            was_closed = True

    async def handle(request: Request) -> LongAnswer:
        return LongAnswer(parts=parts())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(serve_connection, server, handle)
            await client.send(b"GET /log HTTP/1.1\r\nHost: n\r\n\r\n")
            await client.receive()
            await client.aclose()
    await server.aclose()

    assert was_closed


@pytest.mark.parametrize("has_had_a_long_answer", [False, True])
async def test_a_connection_that_stays_silent_is_closed_without_a_word(
    has_had_a_long_answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provider.kubelet.http.IDLE_S", 0.05)

    async def parts() -> AsyncGenerator[bytes, None]:
        yield b"log\n"

    async def handle(request: Request) -> LongAnswer:
        return LongAnswer(parts=parts())

    client, server = wires()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            if has_had_a_long_answer:
                await client.send(b"GET /log HTTP/1.1\r\nHost: n\r\n\r\n")
            group.start_soon(serve_connection, server, handle)  # ends, and raises nothing
            got = b""
            while has_had_a_long_answer and b"0\r\n\r\n" not in got:
                got += await client.receive()
    await client.aclose()
    await server.aclose()
