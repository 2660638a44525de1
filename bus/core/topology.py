"""What has to be on the broker: streams, the store of bundles, and one consumer for each function.

Everything is stated; nothing is left to a server's default. `stream_changes` and `consumer_changes` compare what is
wanted with what the broker has, and say what can be changed in place. The rest is a `StreamMismatch`, which a person
has to decide.
"""

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from bus.core.assignment import DUE_S_MAX, LEASE_S
from bus.core.errors import StreamMismatch
from bus.core.subjects import minimal

NANOSECONDS = 1_000_000_000
DAY_S = 86_400.0
MIB = 1024 * 1024

EVENTS = "EVENTS"
RESULTS = "RESULTS"
ATTEMPTS = "ATTEMPTS"
DEAD = "DEAD"
BUNDLES_BUCKET = "BUNDLES"
BUNDLES_STREAM = f"OBJ_{BUNDLES_BUCKET}"

DUPLICATE_WINDOW_S = 600.0
"""How long the broker remembers event ids; kept in its memory."""
EVENT_BYTES_MAX = 1 * MIB
"""Largest event, headers included: the server's own default of `max_payload`, stated."""
STORY_BYTES_MAX = 128 * 1024
"""What a dead letter may add to its event. An event that is taken has to fit with it, whatever the server's `max_payload`."""


class StreamSpec(Struct, frozen=True, kw_only=True):
    """One stream as it has to be. File storage and limits retention throughout: an acknowledgement never deletes."""

    name: str
    subjects: tuple[str, ...]
    description: str
    bytes_max: int
    """When this is reached, `discard` says who loses: the publisher or the oldest message. [bytes]"""
    discard: Literal["new", "old"]
    age_max_s: float = 0.0
    """0: kept until trimmed. [seconds]"""
    messages_per_subject_max: int = -1
    message_bytes_max: int = EVENT_BYTES_MAX
    story_bytes: int = 0
    """Room that a message has to leave below the server's bound, for what is added to it later. [bytes]"""
    duplicate_window_s: float = 120.0
    republish_headers: tuple[str, str] | None = None
    """(from, to) patterns: the headers of each stored message are published there."""
    allow_rollup: bool = False


STREAMS: tuple[StreamSpec, ...] = (
    StreamSpec(
        name=EVENTS,
        subjects=("events.>",),
        description="every event; history and replay come from here",
        bytes_max=10 * 1024 * MIB,
        discard="new",
        duplicate_window_s=DUPLICATE_WINDOW_S,
        story_bytes=STORY_BYTES_MAX,
        republish_headers=("events.>", "wake.>"),
    ),
    StreamSpec(
        name=RESULTS,
        subjects=("results.>",),
        description="what functions returned",
        bytes_max=2 * 1024 * MIB,
        discard="old",
        age_max_s=7 * DAY_S,
        messages_per_subject_max=1,
    ),
    StreamSpec(
        name=ATTEMPTS,
        subjects=("attempts.>",),
        description="the history of events that were not handled at once",
        bytes_max=1024 * MIB,
        discard="old",
        age_max_s=2 * DUE_S_MAX,
        messages_per_subject_max=1,
    ),
    StreamSpec(
        name=DEAD,
        subjects=("dead.>",),
        description="events that could not be handled, with their story",
        bytes_max=2 * 1024 * MIB,
        discard="new",
        duplicate_window_s=DUPLICATE_WINDOW_S,
        message_bytes_max=2 * EVENT_BYTES_MAX,
    ),
    StreamSpec(
        name=BUNDLES_STREAM,
        subjects=(f"$O.{BUNDLES_BUCKET}.C.>", f"$O.{BUNDLES_BUCKET}.M.>"),
        description="function code by digest",
        bytes_max=10 * 1024 * MIB,
        discard="new",
        allow_rollup=True,
    ),
)


def stream_config(spec: StreamSpec, replicas: int, payload_bytes_max: int = 2 * EVENT_BYTES_MAX) -> dict[str, Any]:
    """Return the stream's configuration as the JetStream API takes it, on a server with that `max_payload`."""
    config: dict[str, Any] = {
        "name": spec.name,
        "description": spec.description,
        "subjects": list(spec.subjects),
        "retention": "limits",
        "storage": "file",
        "discard": spec.discard,
        "max_bytes": spec.bytes_max,
        "max_age": int(spec.age_max_s * NANOSECONDS),
        "max_msgs": -1,
        "max_msgs_per_subject": spec.messages_per_subject_max,
        "max_msg_size": min(spec.message_bytes_max, payload_bytes_max - spec.story_bytes),
        "max_consumers": -1,
        "duplicate_window": int(spec.duplicate_window_s * NANOSECONDS),
        "num_replicas": replicas,
        "allow_direct": True,
        "allow_rollup_hdrs": spec.allow_rollup,
        "deny_delete": False,
        "deny_purge": False,
    }
    if spec.republish_headers is not None:
        source, destination = spec.republish_headers
        config["republish"] = {"src": source, "dest": destination, "headers_only": True}
    return config


# Settings that no server changes on an existing stream. Source: nats-server, stream update checks.
_FIXED_STREAM_FIELDS = ("retention", "storage", "max_consumers")
_FIXED_CONSUMER_FIELDS = ("ack_policy", "replay_policy", "durable_name")
_START_FIELDS = ("deliver_policy", "opt_start_seq", "opt_start_time")


def stream_changes(desired: Mapping[str, Any], observed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields to change, with their new values; empty when nothing differs.

    Raises `StreamMismatch` for a difference that the broker cannot change in place.
    """
    return _changes(str(desired["name"]), desired, observed, _FIXED_STREAM_FIELDS)


def _changes(
    name: str, desired: Mapping[str, Any], observed: Mapping[str, Any], fixed: tuple[str, ...]
) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for field, value in desired.items():
        seen = observed.get(field)
        if seen == value or (seen is None and not value):
            continue
        if field == "metadata" and isinstance(value, dict) and value.items() <= (seen or {}).items():
            continue  # The server adds keys of its own (_nats.*).
        if field in fixed:
            raise StreamMismatch(name, field, seen, value)
        changes[field] = value
    return changes


class ConsumerSpec(Struct, frozen=True, kw_only=True):
    """The durable pull consumer of one function: its cursor on one stream."""

    name: str
    stream: str
    patterns: tuple[str, ...]
    owner: str
    """namespace/name of the Function; kept in the consumer's metadata."""
    owner_uid: str
    lease_s: float = LEASE_S
    in_flight_max: int = 1000
    """Deliveries in hand of all workers together, those that wait for their retry included. [events]"""


WAITING_MAX = 1024
"""Pull requests that may be parked on one consumer. One worker parks one or two. [requests]"""


def consumer_config(spec: ConsumerSpec) -> dict[str, Any]:
    """Return the consumer's configuration as the JetStream API takes it."""
    patterns = minimal(spec.patterns)
    filters: dict[str, Any] = (
        {"filter_subject": patterns[0]} if len(patterns) == 1 else {"filter_subjects": list(patterns)}
    )
    return {
        "name": spec.name,
        "durable_name": spec.name,
        "description": f"function {spec.owner}",
        "ack_policy": "explicit",
        "replay_policy": "instant",
        "ack_wait": int(spec.lease_s * NANOSECONDS),
        # Unlimited: the worker counts attempts, and a message the server gave up on would be in limbo.
        "max_deliver": -1,
        "max_ack_pending": spec.in_flight_max,
        "max_waiting": WAITING_MAX,
        "metadata": {"nodeless.dev/function": spec.owner, "nodeless.dev/uid": spec.owner_uid},
        **filters,
    }


def consumer_start(settled_to: int | None, last_sequence: int) -> dict[str, Any]:
    """Return where a consumer that is made now begins.

    `settled_to` is known where the function had one before and lost it: everything up to there in the stream was settled
    then, and what came later may be handled twice but is not lost. A stream that has not come so far is another one, and
    all of it came later.
    """
    if settled_to is None:
        return {"deliver_policy": "new"}
    start = settled_to + 1 if settled_to <= last_sequence else 1
    return {"deliver_policy": "by_start_sequence", "opt_start_seq": start}


def kept_start(observed: Mapping[str, Any]) -> dict[str, Any]:
    """Return where an existing consumer began: an update has to repeat it."""
    return {field: observed[field] for field in _START_FIELDS if field in observed}


def consumer_changes(desired: Mapping[str, Any], observed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields to change, as `stream_changes` does; the one filter and the many count as one field."""
    changes = _changes(str(desired["name"]), desired, observed, _FIXED_CONSUMER_FIELDS)
    if _filters(desired) == _filters(observed):
        changes.pop("filter_subject", None)
        changes.pop("filter_subjects", None)
    else:
        changes["filters"] = sorted(_filters(desired))
    return changes


def _filters(config: Mapping[str, Any]) -> frozenset[str]:
    one = config.get("filter_subject")
    return frozenset([one] if one else config.get("filter_subjects") or [])
