"""`nodeless publish`, `tail`, `results` and `dead list`: events on their way in, and what became of them."""

import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from bus.core.attempts import DeadLetter
from bus.core.event import Event, event_of
from bus.core.subjects import check_pattern, check_subject
from bus.jetstream.connection import Connection, Stored, open_connection
from bus.jetstream.reading import read
from nodeless.cli.output import json_or_text
from nodeless.cli.target import Target

EVENTS_PREFIX = "events."


def new_event(
    subject: str, data: bytes, *, type_: str | None, source: str, id_: str | None, content_type: str | None
) -> Event:
    """Return the event that `publish` sends; the subject may leave out the leading `events.`."""
    full = subject if subject.startswith(EVENTS_PREFIX) else EVENTS_PREFIX + subject
    check_subject(full)
    return Event(
        subject=full,
        id=id_ or str(uuid.uuid4()),
        source=source,
        type=type_ or full.removeprefix(EVENTS_PREFIX),
        time=datetime.now(UTC).isoformat(),
        datacontenttype=content_type or _content_type(data),
        data=data,
    )


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
    """Yield events on a pattern as they are stored."""
    full = pattern if pattern.startswith(EVENTS_PREFIX) or pattern == ">" else EVENTS_PREFIX + pattern
    full = "events.>" if full == ">" else full
    check_pattern(full)
    async with (
        open_connection(target.bus) as connection,
        aclosing(read(connection, "EVENTS", full, start=start, follow=follow)) as messages,
    ):
        async for message in messages:
            event = event_of(
                message.subject,
                message.headers,
                message.data,
                stream="EVENTS",
                sequence=message.sequence,
                stored_at=message.stored_at,
            )
            yield {
                "sequence": message.sequence,
                "time": message.stored_at,
                "subject": event.subject,
                "type": event.type,
                "source": event.source,
                "id": event.id,
                "data": json_or_text(event.data),
            }


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
                "event": headers.get("nodeless-event-id", message.subject.rsplit(".", 1)[1]),
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
            event = event_of(
                letter.subject,
                message.headers,
                message.data,
                stream=letter.stream,
                sequence=letter.sequence,
                stored_at=message.stored_at,
            )
            yield {
                "id": f"{letter.stream}:{letter.sequence}",
                "died": letter.died_at,
                "subject": letter.subject,
                "event": event.id,
                "reason": letter.reason,
                "message": letter.message,
                "attempts": sum(attempt.outcome != "handed-back" for attempt in letter.history),
                "history": letter.history,
                "data": json_or_text(event.data),
            }


def lower_headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
