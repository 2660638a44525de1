"""One message as a consumer delivered it, with what its reply subject tells."""

from collections.abc import Mapping
from datetime import UTC, datetime

from msgspec import Struct

from bus.jetstream.connection import Message


class Delivery(Struct, frozen=True, kw_only=True):
    """One attempt of the broker to hand one event to one function."""

    subject: str
    headers: Mapping[str, str]
    data: bytes
    stream: str
    sequence: int
    """In the stream."""
    consumer_sequence: int
    count: int
    """How often it was delivered, this time included; from 1."""
    pending: int
    """Events the consumer had yet to deliver when it sent this one."""
    stored_ns: int
    """When it was stored. [nanoseconds since the epoch]"""
    reply: str

    @property
    def stored_at(self) -> str:
        return rfc3339(self.stored_ns)


def delivery_of(message: Message) -> Delivery | None:
    """Return the delivery in a message, or None for what is none (a status of the server).

    The reply subject has 9 tokens, or 11 and more with domain and account before the stream. Source: ADR-15 and the
    server's feature flag `js_ack_fc_v2`.
    """
    parts = message.reply.split(".")
    if len(parts) < 9 or parts[0] != "$JS" or parts[1] != "ACK":
        return None
    stream, _, count, sequence, consumer_sequence, stored_ns, pending = parts[2:9] if len(parts) < 11 else parts[4:11]
    return Delivery(
        subject=message.subject,
        headers=message.headers,
        data=message.data,
        stream=stream,
        sequence=int(sequence),
        consumer_sequence=int(consumer_sequence),
        count=int(count),
        pending=int(pending),
        stored_ns=int(stored_ns),
        reply=message.reply,
    )


def rfc3339(nanoseconds: int) -> str:
    """Return the time in UTC with microseconds."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000).isoformat(timespec="microseconds")
