"""The gateway's routes: take a CloudEvent, store it, say where.

    POST /                    the subject follows from the event's type: `events.<type>`
    POST /events/{subject}    to that subject; `events.` may be left out
    GET  /readyz              200 while the bus can be reached

202 is answered after JetStream's acknowledgement and not before.
"""

import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from bus.core.credentials import BRIDGED
from bus.core.errors import BusError
from bus.core.event import event_from_http
from bus.core.subjects import check_subject, covers
from bus.ingress.gateway.answers import RETRY_AFTER_S, Problem, json_response, problem_of
from bus.jetstream.connection import Connection

log = logging.getLogger("nodeless.gateway")

BODY_S = 30.0
"""How long a caller may take to send a request's body. [seconds]"""
LEFT_OVER_BYTES_MAX = 16 * 1024 * 1024
"""How much of a refused body is read and thrown away, so that its sender gets to read the answer. [bytes]"""
LEFT_OVER_S = 2.0
PUBLISH_S = 10.0
"""How long the broker may take to acknowledge. [seconds]"""


class Gateway:
    """Takes requests for one connection."""

    def __init__(self, connection: Connection, *, token: str | None, body_bytes_max: int, in_flight_max: int) -> None:
        self._connection = connection
        self._token = f"bearer {token}".encode() if token is not None else None
        self._body_bytes_max, self._in_flight_max = body_bytes_max, in_flight_max
        self._in_flight = 0

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self._answering(self._publish), methods=["POST"]),
                Route("/events/{subject:path}", self._answering(self._publish), methods=["POST"]),
                Route("/readyz", self._ready, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _not_routed},
        )

    async def _ready(self, request: Request) -> Response:
        if self._connection.is_connected:
            return json_response({"ready": True}, 200)
        return json_response({"ready": False, "message": "the bus cannot be reached"}, 503)

    def _answering(self, take: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            started_s = time.monotonic()
            try:
                return await take(request)
            except Problem as error:
                problem = error
            except BusError as error:
                problem = problem_of(error)
            log.log(
                logging.WARNING if problem.status >= 500 else logging.INFO,
                "request not taken",
                extra={
                    "status": problem.status,
                    "error": problem.error,
                    "path": request.url.path,
                    "client": request.client.host if request.client else "",
                    "duration_s": f"{time.monotonic() - started_s:.3f}",
                    "reason": problem.message,
                },
            )
            return problem.response()

        return answer

    async def _publish(self, request: Request) -> Response:
        self._check_token(request)
        if self._in_flight >= self._in_flight_max:
            raise Problem(
                429,
                "busy",
                f"{self._in_flight} requests are at work, and at most {self._in_flight_max} are taken at once; try again",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        self._in_flight += 1
        try:
            headers = _headers(request.headers.raw)
            _check_encoding(request)
            body = await self._body(request)
            event = event_from_http(headers, body, subject=_subject(request.path_params.get("subject")))
            check_subject(event.subject)
            if any(covers(pattern, event.subject) for pattern in BRIDGED):
                message = f"{event.subject!r} is published by its bridge only, so that readers can trust its origin"
                raise Problem(403, "not-allowed", message, field="subject")
            stored = await self._connection.publish(event, timeout_s=PUBLISH_S)
        finally:
            self._in_flight -= 1
        return json_response(
            {"stream": stored.stream, "sequence": stored.sequence, "id": event.id, "duplicate": stored.duplicate}, 202
        )

    def _check_token(self, request: Request) -> None:
        if self._token is None:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = f"{scheme.lower()} {token.strip()}".encode()
        if not hmac.compare_digest(given, self._token):
            seen = "the token is not the right one" if token else "expected 'Authorization: Bearer <token>'"
            raise Problem(
                401,
                "unauthorized",
                seen,
                field="authorization",
                headers={"WWW-Authenticate": 'Bearer realm="nodeless"'},
            )

    async def _body(self, request: Request) -> bytes:
        """Return the body; never holds more than `body_bytes_max` of it."""
        body = bytearray()
        announced = request.headers.get("content-length", "")
        is_too_large = announced.isdigit() and int(announced) > self._body_bytes_max
        if is_too_large and "expect" in request.headers:
            raise self._too_large()  # its sender waits to be told before it sends
        try:
            with anyio.fail_after(BODY_S):
                async for chunk in request.stream():
                    if is_too_large or len(body) + len(chunk) > self._body_bytes_max:
                        del body
                        await _throw_away(request)
                        raise self._too_large()
                    body += chunk
        except TimeoutError:
            message = f"the body was not there within {BODY_S:g} s"
            raise Problem(408, "too-slow", message, headers={"Connection": "close"}) from None
        except ClientDisconnect:
            raise Problem(400, "cut-off", "the caller left in the middle of the body", field="body") from None
        return bytes(body)

    def _too_large(self) -> Problem:
        message = (
            f"the request is larger than {self._body_bytes_max} bytes; "
            "store large data elsewhere and publish a reference (CloudEvents dataref)"
        )
        return Problem(413, "too-large", message, field="body", headers={"Connection": "close"})


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return those headers that make the event. Raises `Problem` for one that is ours or that is there twice."""
    headers: dict[str, str] = {}
    for name_bytes, value_bytes in raw:
        name = name_bytes.decode("latin-1").lower()
        if name.startswith("nats-"):
            message = f"{name} belongs to the broker; an event's identity is its ce-source and ce-id"
            raise Problem(400, "invalid-event", message, field=name)
        if not name.startswith("ce-") and name != "content-type":
            continue
        if name in headers:
            raise Problem(400, "invalid-event", f"{name} is there twice", field=name)
        if not value_bytes.isascii():
            message = f"{name} holds characters outside of ASCII; percent-encode them as UTF-8"
            raise Problem(400, "invalid-event", message, field=name)
        headers[name] = value_bytes.decode("ascii")
    return headers


def _check_encoding(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        message = f"Content-Encoding {encoding!r} is not taken; send the body as it is"
        headers = {"Accept-Encoding": "identity"}
        raise Problem(415, "unsupported-encoding", message, field="content-encoding", headers=headers)


def _subject(path: str | None) -> str | None:
    if path is None:
        return None
    return path if path.startswith("events.") else f"events.{path}"


async def _throw_away(request: Request) -> None:
    """Read on for a while: a sender whose connection is cut may never see why."""
    left = LEFT_OVER_BYTES_MAX
    with anyio.move_on_after(LEFT_OVER_S):
        while left > 0:
            message = await request.receive()
            left -= len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                return


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        message = f"{request.method} is not taken here"
        return Problem(405, "method-not-allowed", message, headers=error.headers).response()
    message = f"there is no {request.url.path!r}; events go to POST / or POST /events/<subject>"
    return Problem(error.status_code, "not-found", message).response()
