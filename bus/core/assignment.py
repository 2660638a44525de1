"""What a worker pod is told: one function, one consumer, one policy.

The scaler writes an `Assignment` as JSON into the pod's environment (`ENVIRONMENT_ASSIGNMENT`), the worker decodes
it. The names of everything that belongs to one function on the bus are derived here and nowhere else.
"""

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

ENVIRONMENT_ASSIGNMENT = "NODELESS_ASSIGNMENT"
"""JSON of the `Assignment`."""
ENVIRONMENT_NATS_URL = "NODELESS_NATS_URL"
ENVIRONMENT_NATS_CREDENTIALS = "NODELESS_NATS_CREDENTIALS"
"""Text of a NATS credentials file; absent where the broker asks for none."""
ENVIRONMENT_POD_NAME = "NODELESS_POD_NAME"
ENVIRONMENT_POD_UID = "NODELESS_POD_UID"
ENVIRONMENT_NODE_NAME = "NODELESS_NODE_NAME"
ENVIRONMENT_BUNDLES = "NODELESS_BUNDLES"
"""Directory of unpacked bundles that workers on one node share; set by the backend."""
ENVIRONMENT_GRACE_S = "NODELESS_GRACE_S"
"""How long a leaving worker lets calls in hand go on. [seconds]"""
ENVIRONMENT_LOG = "NODELESS_LOG"
"""`cri`: write lines in the format in which a kubelet keeps logs; set by a backend without a container engine."""
ENVIRONMENT_TERMINATION_LOG = "NODELESS_TERMINATION_LOG"
"""File whose content becomes the container's termination message; set by the backend."""

WORKER_IMAGE = "nodeless/worker"
"""Repository of the function runtime's image; the tag is this project's version. A node that has the runtime itself
need not pull it."""
FUNCTION_LABEL = "nodeless.dev/function"
"""On worker pods: the Function's name."""
VERSION_LABEL = "nodeless.dev/version"
WOKEN_ANNOTATION = "nodeless.dev/woken-at"
"""On worker pods: when the demand for this pod was seen. RFC 3339, UTC, microseconds."""

EXIT_FUNCTION_UNUSABLE = 78
"""Exit status of a worker whose handler cannot be imported or found (EX_CONFIG of sysexits.h)."""

LEASE_S = 6.0
"""How long the broker waits for a sign of life of a delivery; renewed at a third of it. A dead worker's events come
back after at most this long."""


DUE_S_MAX = 7 * 86_400.0
"""Longest delay before an event is tried again; the record that tells of it is kept for longer (`ATTEMPTS`)."""


class DeliveryPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often and how long a function is tried for one event."""

    attempts: Annotated[int, Meta(ge=1, le=100)] = 5
    """Calls that may begin before the event is dead. [attempts]"""
    timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    """Longest duration of one call. [seconds]"""
    backoff_initial_s: Annotated[float, Meta(ge=0)] = 1.0
    backoff_factor: Annotated[float, Meta(ge=1)] = 5.0
    backoff_max_s: Annotated[float, Meta(ge=0, le=DUE_S_MAX)] = 600.0


class Assignment(Struct, frozen=True, kw_only=True):
    """One function, as its workers know it."""

    namespace: str
    function: str
    uid: str
    """UID of the Function object; part of dead letters' identity."""
    version: str
    """Short digest of everything that makes a worker of one kind differ from another (code, handler, policy)."""
    handler: str
    """`module:callable`."""
    bundle: str
    """`sha256:` and 64 hex digits: name of the archive in the object store."""
    consumer: str
    stream: str = "EVENTS"
    concurrency: Annotated[int, Meta(ge=1)] = 10
    delivery: DeliveryPolicy = DeliveryPolicy()
    lease_s: float = LEASE_S

    @property
    def results_prefix(self) -> str:
        """Results are published to this and the event's digest."""
        return f"results.{self.namespace}.{self.function}"

    @property
    def dead_subject(self) -> str:
        return f"dead.{self.namespace}.{self.function}"

    def attempts_subject(self, sequence: int) -> str:
        """Where the history of the event at `sequence` of this stream is kept."""
        return f"attempts.{self.namespace}.{self.function}.{self.stream}.{sequence}"

    def report_subject(self, worker: str) -> str:
        """Where the worker with that pod UID reports its state (core NATS)."""
        return f"reports.{self.namespace}.{self.function}.{worker}"

    def control_subject(self, worker: str) -> str:
        """Where the worker with that pod UID takes requests (core NATS)."""
        return f"control.{self.namespace}.{self.function}.{worker}"

    @property
    def inbox_prefix(self) -> str:
        """Inboxes of this function's workers; nobody else may listen there."""
        return f"_INBOX_{self.consumer}"


def consumer_name(namespace: str, function: str) -> str:
    """Return the stable name of a function's consumer: the function and a hash of its full name.

    Function names are DNS labels, which are valid consumer names too (no dots, blanks or wildcards).
    """
    digest = hashlib.sha256(f"{namespace}/{function}".encode()).hexdigest()
    return f"{function}-{digest[:8]}"


def bundle_digest(archive: bytes) -> str:
    return f"sha256:{hashlib.sha256(archive).hexdigest()}"


def encode_assignment(assignment: Assignment) -> str:
    return msgspec.json.encode(assignment).decode()


def decode_assignment(text: str) -> Assignment:
    """Raise `msgspec.ValidationError` where the text does not hold an assignment."""
    return msgspec.json.decode(text, type=Assignment)
