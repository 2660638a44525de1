"""Make the broker have the streams and consumers that are wanted; say what is there."""

from msgspec import Struct

from bus.core.errors import NotFound, Refused
from bus.core.topology import (
    STREAMS,
    ConsumerSpec,
    StreamSpec,
    consumer_changes,
    consumer_config,
    consumer_start,
    kept_start,
    stream_changes,
    stream_config,
)
from bus.jetstream.connection import Connection

_NAME_IN_USE = 10058


class ConsumerState(Struct, frozen=True, kw_only=True):
    """Where one consumer stands. All counts are events, all sequences those of the stream."""

    pending: int
    """Not yet delivered once."""
    ack_pending: int
    """Delivered and not settled; those that wait for their retry are among them."""
    redelivered: int
    waiting: int
    """Parked pull requests."""
    delivered_sequence: int
    ack_floor_sequence: int
    """Everything up to here is acknowledged."""
    patterns: tuple[str, ...]


async def ensure_streams(connection: Connection, replicas: int = 1) -> list[str]:
    """Create or change what differs; return one line for each change. Raises `StreamMismatch`, `Refused`,
    `BrokerUnavailable`.
    """
    done: list[str] = []
    for spec in STREAMS:
        done += await _ensure_stream(connection, spec, replicas)
    return done


async def _ensure_stream(connection: Connection, spec: StreamSpec, replicas: int) -> list[str]:
    desired = stream_config(spec, replicas, connection.payload_bytes_max)
    try:
        observed = (await connection.api(f"STREAM.INFO.{spec.name}"))["config"]
    except NotFound:
        try:
            await connection.api(f"STREAM.CREATE.{spec.name}", desired)
        except Refused as error:
            if error.code != _NAME_IN_USE:  # another program was first
                raise
        return [f"stream {spec.name} created"]
    changes = stream_changes(desired, observed)
    if changes:
        await connection.api(f"STREAM.UPDATE.{spec.name}", {**observed, **desired})
    return [f"stream {spec.name}: {field} set to {value!r}" for field, value in changes.items()]


async def ensure_consumer(connection: Connection, spec: ConsumerSpec, *, settled_to: int | None = None) -> list[str]:
    """Create or change the consumer; return one line for each change. Raises as `ensure_streams`.

    `settled_to`: how far the function had come with a consumer that it had before; one that is made anew goes on there.
    """
    desired = consumer_config(spec)
    try:
        observed = (await connection.api(f"CONSUMER.INFO.{spec.stream}.{spec.name}"))["config"]
    except NotFound:
        last = (await connection.api(f"STREAM.INFO.{spec.stream}"))["state"]["last_seq"]
        action, start, changes = "create", consumer_start(settled_to, last), {"it": "created"}
    else:
        action, start, changes = "update", kept_start(observed), consumer_changes(desired, observed)
    if not changes:
        return []
    one_filter = desired.get("filter_subject")
    subject = f"CONSUMER.CREATE.{spec.stream}.{spec.name}" + (f".{one_filter}" if one_filter else "")
    await connection.api(subject, {"stream_name": spec.stream, "config": desired | start, "action": action})
    return [f"consumer {spec.name}: {field} set to {value!r}" for field, value in changes.items()]


async def delete_consumer(connection: Connection, stream: str, name: str) -> None:
    """Delete the consumer; that it is absent is success."""
    try:
        await connection.api(f"CONSUMER.DELETE.{stream}.{name}")
    except NotFound:
        return


async def consumer_state(connection: Connection, stream: str, name: str) -> ConsumerState:
    """Raise `NotFound` where there is no such consumer."""
    info = await connection.api(f"CONSUMER.INFO.{stream}.{name}")
    config = info["config"]
    one = config.get("filter_subject")
    return ConsumerState(
        pending=info["num_pending"],
        ack_pending=info["num_ack_pending"],
        redelivered=info["num_redelivered"],
        waiting=info["num_waiting"],
        delivered_sequence=info["delivered"]["stream_seq"],
        ack_floor_sequence=info["ack_floor"]["stream_seq"],
        patterns=(one,) if one else tuple(config.get("filter_subjects") or ()),
    )


async def message_count(connection: Connection, stream: str, subject: str) -> int:
    """Return how many messages the stream holds on one subject (no wildcard)."""
    info = await connection.api(f"STREAM.INFO.{stream}", {"subjects_filter": subject})
    return int((info["state"].get("subjects") or {}).get(subject, 0))
