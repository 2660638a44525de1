"""`nodeless publish`, `tail`, `results` and `dead list`: events on their way in, and what became of them."""

import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import unquote

import msgspec

from bus.core.attempts import DeadLetter
from bus.core.errors import InvalidEvent
from bus.core.event import Event, event_of, headers_of
from bus.core.subjects import check_pattern, check_subject
from bus.jetstream.connection import Connection, Stored, StoredMessage, open_connection
from bus.jetstream.reading import read
from nodeless.cli.output import json_or_text
from nodeless.cli.target import Target

EVENTS_PREFIX = "events."


def new_event(
    subject: str, data: bytes, *, type_: str | None, source: str, id_: str | None, content_type: str | None
) -> Event:
    """Return the event that `publish` sends; the subject may leave out the leading `events.`.

    Raises `InvalidSubject`, and `InvalidEvent` for what a reader would refuse.
    """
    full = subject if subject.startswith(EVENTS_PREFIX) else EVENTS_PREFIX + subject
    check_subject(full)
    event = Event(
        subject=full,
        id=str(uuid.uuid4()) if id_ is None else id_,
        source=source,
        type=full.removeprefix(EVENTS_PREFIX) if type_ is None else type_,
        time=datetime.now(UTC).isoformat(),
        datacontenttype=_content_type(data) if content_type is None else content_type,
        data=data,
    )
    try:
        headers = headers_of(event)
    except UnicodeEncodeError as error:
        raise InvalidEvent("attributes", f"{error.object!r} is not UTF-8") from error
    return event_of(full, headers, data, stream="EVENTS", sequence=0, stored_at="")


def _content_type(data: bytes) -> str:
    try:
        msgspec.json.decode(data)
    except msgspec.DecodeError:
        return "text/plain" if _is_text(data) else "application/octet-stream"
    return "application/json"


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


async def publish(target: Target, event: Event) -> Stored:
    async with open_connection(target.bus) as connection:
        return await connection.publish(event)


async def tail(
    target: Target, pattern: str, *, start: Literal["all", "new"], follow: bool
) -> AsyncIterator[dict[str, Any]]:
    """Yield events on a pattern as they are stored; one that is no CloudEvent says so, and hides no other."""
    full = pattern if pattern.startswith(EVENTS_PREFIX) or pattern == ">" else EVENTS_PREFIX + pattern
    full = "events.>" if full == ">" else full
    check_pattern(full)
    async with (
        open_connection(target.bus) as connection,
        aclosing(read(connection, "EVENTS", full, start=start, follow=follow)) as messages,
    ):
        async for message in messages:
            yield _event_row(message)


def _event_row(message: StoredMessage) -> dict[str, Any]:
    shown = {"sequence": message.sequence, "time": message.stored_at, "subject": message.subject}
    try:
        event = event_of(
            message.subject,
            message.headers,
            message.data,
            stream="EVENTS",
            sequence=message.sequence,
            stored_at=message.stored_at,
        )
    except InvalidEvent as error:
        return shown | {"type": "", "source": "", "id": "", "data": json_or_text(message.data), "invalid": str(error)}
    return shown | {"type": event.type, "source": event.source, "id": event.id, "data": json_or_text(event.data)}


async def results(target: Target, namespace: str, function: str, *, follow: bool) -> AsyncIterator[dict[str, Any]]:
    """Yield a function's stored results, oldest first."""
    async with (
        open_connection(target.bus) as connection,
        aclosing(
            read(connection, "RESULTS", f"results.{namespace}.{function}.*", start="all", follow=follow)
        ) as messages,
    ):
        async for message in messages:
            headers = lower_headers(message.headers)
            yield {
                "time": message.stored_at,
                "event": unquote(headers.get("nodeless-event-id", message.subject.rsplit(".", 1)[1])),
                "worker": headers.get("nodeless-worker", ""),
                "attempt": int(headers.get("nodeless-attempt", "1")),
                "started": headers.get("nodeless-started-at", ""),
                "finished": headers.get("nodeless-finished-at", ""),
                "result": json_or_text(message.data),
            }


async def dead_letters(target: Target, namespace: str, function: str) -> list[dict[str, Any]]:
    """Return a function's dead letters, oldest first, each with its reason and the number of its attempts."""
    async with open_connection(target.bus) as connection:
        return [each async for each in _dead_letters(connection, f"dead.{namespace}.{function}")]


async def _dead_letters(connection: Connection, subject: str) -> AsyncIterator[dict[str, Any]]:
    async with aclosing(read(connection, "DEAD", subject, start="all", follow=False)) as messages:
        async for message in messages:
            headers = lower_headers(message.headers)
            letter = msgspec.json.decode(headers["nodeless-dead"], type=DeadLetter)
            place = f"{letter.stream}:{letter.sequence}"
            try:
                event_id, data = _event_in(letter, message)
            except InvalidEvent:  # it may be here for that very reason; its place is then all the name it has
                event_id, data = place, message.data
            yield {
                "id": place,
                "died": letter.died_at,
                "subject": letter.subject,
                "event": event_id,
                "reason": letter.reason,
                "message": letter.message,
                "attempts": sum(attempt.outcome != "handed-back" for attempt in letter.history),
                "history": letter.history,
                "data": json_or_text(data),
            }


def _event_in(letter: DeadLetter, message: StoredMessage) -> tuple[str, bytes]:
    event = event_of(
        letter.subject,
        message.headers,
        message.data,
        stream=letter.stream,
        sequence=letter.sequence,
        stored_at=message.stored_at,
    )
    return event.id, event.data


def lower_headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
