"""A Function object as values: what the API server keeps (`manifests/crd/functions.yaml`), with durations in seconds.

Unknown fields are tolerated when reading, so that an older dispatcher can live with a newer CRD. What the CRD cannot
check (whether a text is a subject pattern, in full) is checked by `check_function`.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from bus.core.assignment import Assignment, DeliveryPolicy, consumer_name, decode_assignment, encode_assignment
from bus.core.errors import InvalidPattern
from bus.core.subjects import check_pattern, covers, minimal
from bus.core.topology import EVENTS

API_VERSION = "nodeless.dev/v1alpha1"
FINALIZER = "nodeless.dev/consumer"
RESERVED_PREFIX = "NODELESS_"
"""Of environment variables: what a worker is told by the scaler and its node."""

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?")


def duration_s(text: str) -> float:
    """Return the seconds in `1h2m3.5s` or `250ms`; raise `ValueError` for what is no such duration."""
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise ValueError(f"{text!r} is no duration such as 30s, 1m30s or 250ms")
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


class Metadata(Struct, frozen=True, rename="camel"):
    name: str
    namespace: str
    uid: str
    generation: int = 1
    deletion_timestamp: str | None = None
    finalizers: tuple[str, ...] = ()

    @property
    def is_deleted(self) -> bool:
        return self.deletion_timestamp is not None


class Code(Struct, frozen=True):
    bundle: str


class Trigger(Struct, frozen=True):
    subject: str


class Backoff(Struct, frozen=True):
    initial: str = "1s"
    factor: float = 5.0
    max: str = "10m"


class Delivery(Struct, frozen=True):
    attempts: int = 5
    timeout: str = "30s"
    backoff: Backoff = Backoff()


class Scaling(Struct, frozen=True):
    min: int = 0
    max: int = 20
    concurrency: int = 10
    idle: str = "30s"


class EnvironmentVariable(Struct, frozen=True):
    name: str
    value: str = ""


class Pod(Struct, frozen=True, rename="camel"):
    env: tuple[EnvironmentVariable, ...] = ()
    resources: dict[str, Any] = {}
    node_selector: dict[str, str] = {}


class Spec(Struct, frozen=True):
    handler: str
    code: Code
    triggers: tuple[Trigger, ...]
    runtime: Literal["python"] = "python"
    delivery: Delivery = Delivery()
    scaling: Scaling = Scaling()
    pod: Pod = Pod()


class Function(Struct, frozen=True):
    """One Function object; `status` is not part of it: it is written, never read back."""

    metadata: Metadata
    spec: Spec

    @property
    def key(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def patterns(self) -> tuple[str, ...]:
        return minimal(trigger.subject for trigger in self.spec.triggers)

    @property
    def consumer(self) -> str:
        return consumer_name(self.metadata.namespace, self.metadata.name)

    @property
    def idle_s(self) -> float:
        return duration_s(self.spec.scaling.idle)

    @property
    def version(self) -> str:
        """Digest of everything that makes one worker differ from another; scaling bounds and triggers do not."""
        parts = (
            self.spec.runtime,
            self.spec.handler,
            self.spec.code,
            self.spec.delivery,
            self.spec.pod,
            self.spec.scaling.concurrency,
        )
        return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:10]

    def assignment(self) -> Assignment:
        delivery = self.spec.delivery
        return Assignment(
            namespace=self.metadata.namespace,
            function=self.metadata.name,
            uid=self.metadata.uid,
            version=self.version,
            handler=self.spec.handler,
            bundle=self.spec.code.bundle,
            stream=EVENTS,
            consumer=self.consumer,
            concurrency=self.spec.scaling.concurrency,
            delivery=DeliveryPolicy(
                attempts=delivery.attempts,
                timeout_s=duration_s(delivery.timeout),
                backoff_initial_s=duration_s(delivery.backoff.initial),
                backoff_factor=delivery.backoff.factor,
                backoff_max_s=duration_s(delivery.backoff.max),
            ),
        )


def function_of(item: Mapping[str, Any]) -> Function:
    """Return the typed form of an object; raise `msgspec.ValidationError` with the field's path."""
    return msgspec.convert(item, Function)


def check_function(function: Function) -> None:
    """Raise `InvalidPattern` or `ValueError` for what the API server's schema let through and cannot work."""
    for trigger in function.spec.triggers:
        check_pattern(trigger.subject)
        if not covers("events.>", trigger.subject):
            raise InvalidPattern(
                trigger.subject, "it lies outside the stream EVENTS; expected a pattern below 'events.'"
            )
    for variable in function.spec.pod.env:
        if variable.name.startswith(RESERVED_PREFIX):
            raise ValueError(
                f"spec.pod.env: {variable.name!r} is the worker's own; choose a name without {RESERVED_PREFIX}"
            )
    # Bounds of the delivery policy are checked where it is decoded, and workers decode it.
    decode_assignment(encode_assignment(function.assignment()))
    duration_s(function.spec.scaling.idle)
