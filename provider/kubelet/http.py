"""HTTP/1.1 on one connection: requests in, answers out, long answers sent as they come.

Own, and on raw streams: exec and port-forward take connections over (SPDY, WebSocket), which no web server hands out.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from urllib.parse import parse_qsl, unquote

import anyio
import h11
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream
from msgspec import Struct

log = logging.getLogger(__name__)

IDLE_S = 90.0
"""How long a connection may be silent between requests. Source: the kubelet's own bound."""
HEADER_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 1024 * 1024
"""Nothing that is served here takes a body; one of this size is read and dropped."""
SEND_S = 60.0
"""How long one part of an answer may take to leave: a reader that stands still is cut off."""
PART_BYTES = 64 * 1024


class Request(Struct, frozen=True, kw_only=True):
    method: str
    path: str
    """Decoded, without the query."""
    query: tuple[tuple[str, str], ...] = ()
    headers: dict[str, str] = {}
    """Names in lower case; of a repeated one the last."""


class Answer(Struct, frozen=True, kw_only=True):
    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


class LongAnswer(Struct, frozen=True, kw_only=True):
    """Sent in chunks, each as soon as it is there. Left unfinished when the client goes."""

    parts: AsyncGenerator[bytes, None]
    content_type: str = "text/plain; charset=utf-8"


Handler = Callable[[Request], Awaitable[Answer | LongAnswer]]


async def serve_connection(stream: ByteStream, handle: Handler) -> None:
    """Answer the requests on one connection, one after the other, until either side ends it."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_BYTES_MAX)
    try:
        while True:
            try:
                with anyio.move_on_after(IDLE_S) as waiting:
                    request = await _receive_request(stream, connection)
                    if request is None:
                        return
                    answer = await handle(request)
                    if isinstance(answer, Answer):
                        await _send_answer(stream, connection, answer, has_body=request.method != "HEAD")
                if waiting.cancelled_caught:
                    return
                if not isinstance(answer, Answer) and not await _send_long(stream, connection, answer):
                    return
            except h11.RemoteProtocolError as error:
                await _refuse(stream, connection, error)
                return
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()
    except (EndOfStream, BrokenResourceError, ClosedResourceError):
        return


async def _receive_request(stream: ByteStream, connection: h11.Connection) -> Request | None:
    """Return the next request with its body read and dropped; None when the client is done."""
    found: h11.Request | None = None
    body_bytes = 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                await stream.send(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            try:
                connection.receive_data(await stream.receive())
            except EndOfStream:
                connection.receive_data(b"")
        elif isinstance(event, h11.Request):
            found = event
        elif isinstance(event, h11.Data):
            body_bytes += len(event.data)
            if body_bytes > BODY_BYTES_MAX:
                raise h11.RemoteProtocolError("the body is too large", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage):
            assert found is not None, "h11 ends a message only after its beginning"
            return _request(found)
        elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            # An upgrade that was offered is not taken up: h11 waits for our answer.
            return _request(found) if found is not None and event is h11.PAUSED else None


def _request(event: h11.Request) -> Request:
    path, _, query = event.target.decode("latin-1").partition("?")
    return Request(
        method=event.method.decode("latin-1"),
        path=unquote(path),
        query=tuple(parse_qsl(query, keep_blank_values=True)),
        headers={name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers},
    )


async def _send_answer(stream: ByteStream, connection: h11.Connection, answer: Answer, *, has_body: bool) -> None:
    headers = [("content-type", answer.content_type), ("content-length", str(len(answer.body))), *answer.headers]
    data = connection.send(h11.Response(status_code=answer.status, headers=headers)) or b""
    if has_body and answer.body:
        data += connection.send(h11.Data(data=answer.body)) or b""
    data += connection.send(h11.EndOfMessage()) or b""
    await stream.send(data)


async def _send_long(stream: ByteStream, connection: h11.Connection, answer: LongAnswer) -> bool:
    """Send the parts as they come; return False when the client went before the end."""
    headers = [("content-type", answer.content_type), ("transfer-encoding", "chunked")]
    await _send(stream, connection.send(h11.Response(status_code=200, headers=headers)))
    has_gone = False

    async def watch_client() -> None:
        """A client that reads a log has nothing to say: what comes from it is its end."""
        nonlocal has_gone
        try:
            received = 0
            while received < HEADER_BYTES_MAX:
                data = await stream.receive()
                received += len(data)
                connection.receive_data(data)
        except (EndOfStream, BrokenResourceError, ClosedResourceError):
            pass
        has_gone = True
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch_client)
        try:
            async with aclosing(answer.parts) as parts:
                async for part in parts:
                    for start in range(0, len(part), PART_BYTES):
                        await _send(stream, connection.send(h11.Data(data=part[start : start + PART_BYTES])))
            await _send(stream, connection.send(h11.EndOfMessage()))
        except (BrokenResourceError, ClosedResourceError):
            has_gone = True
        group.cancel_scope.cancel()
    return not has_gone


async def _send(stream: ByteStream, data: bytes | None) -> None:
    with anyio.move_on_after(SEND_S):
        await stream.send(data or b"")
        return
    raise BrokenResourceError


async def _refuse(stream: ByteStream, connection: h11.Connection, error: h11.RemoteProtocolError) -> None:
    log.debug("not HTTP: %s", error)
    if connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
        answer = Answer(status=error.error_status_hint, body=f"{error}\n".encode(), headers=(("connection", "close"),))
        await _send_answer(stream, connection, answer, has_body=True)
