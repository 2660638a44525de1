"""What can go wrong on the bus, by whose fault it is.

    ConfigurationError(ValueError)   a setting is wrong: names key, value, source and the fix
    BusError
      InvalidSubject                 the caller's mistake: never retried
      InvalidPattern
      InvalidEvent                     names the field
      PayloadTooLarge
      StreamMismatch                 the broker says no: a person has to decide
      Refused                          any other refusal of the broker, with its code
        SequenceConflict                 the expected last sequence on the subject was another
        NotAllowed                       this user may not do that
      NotFound                         no such stream, consumer, message or object
      BrokerUnavailable              try again                                            retryable
      PublishUnconfirmed             outcome unknown: try again with the same event id    retryable

Loops look at `retryable` and at nothing else.
"""


class ConfigurationError(ValueError):
    """A setting that cannot be used."""

    def __init__(self, key: str, value: object, source: str, fix: str) -> None:
        self.key, self.value, self.source, self.fix = key, value, source, fix
        super().__init__(f"{key}={value!r} ({source}): {fix}")


class BusError(Exception):
    retryable = False


class InvalidSubject(BusError):
    def __init__(self, subject: str, reason: str) -> None:
        self.subject, self.reason = subject, reason
        super().__init__(f"{subject!r} is not a subject: {reason}")


class InvalidPattern(BusError):
    def __init__(self, pattern: str, reason: str) -> None:
        self.pattern, self.reason = pattern, reason
        super().__init__(f"{pattern!r} is not a subject pattern: {reason}")


class InvalidEvent(BusError):
    """An event that CloudEvents 1.0 does not allow; `field` is the attribute or header at fault."""

    def __init__(self, field: str, reason: str) -> None:
        self.field, self.reason = field, reason
        super().__init__(f"invalid CloudEvent: {field}: {reason}")


class PayloadTooLarge(BusError):
    def __init__(self, size_bytes: int, size_bytes_max: int | None) -> None:
        """`size_bytes_max` is None where the broker did not name the stream's bound."""
        self.size_bytes, self.size_bytes_max = size_bytes, size_bytes_max
        bound = "the stream takes less" if size_bytes_max is None else f"the broker takes {size_bytes_max}"
        super().__init__(
            f"the event takes {size_bytes} bytes with its headers, and {bound}; "
            "store large data elsewhere and publish a reference (CloudEvents dataref)"
        )


class HeadersTooLarge(PayloadTooLarge):
    def __init__(self, size_bytes: int) -> None:
        self.size_bytes, self.size_bytes_max = size_bytes, None
        BusError.__init__(
            self, f"the headers take {size_bytes} bytes, and the broker stores 65535; what is long belongs in the data"
        )


class StreamMismatch(BusError):
    """The stream or consumer exists with a setting that the broker cannot change in place."""

    def __init__(self, name: str, field: str, observed: object, desired: object) -> None:
        self.name, self.field, self.observed, self.desired = name, field, observed, desired
        super().__init__(
            f"{name!r} has {field}={observed!r}, and {desired!r} is needed; the broker cannot change this in "
            f"place: delete {name!r} (what it holds goes with it), or use another NATS account"
        )


class Refused(BusError):
    """The broker understood and said no; `code` is its JetStream error code (0 when it gave none)."""

    def __init__(self, operation: str, reason: str, code: int = 0) -> None:
        self.operation, self.reason, self.code = operation, reason, code
        super().__init__(f"the broker refused to {operation}: {reason}" + (f" (error {code})" if code else ""))


class SequenceConflict(Refused):
    """Something is already stored on that subject (JetStream error 10071)."""


class NotAllowed(Refused):
    """The user's permissions do not cover the subject."""


class NotFound(BusError):
    def __init__(self, kind: str, name: str) -> None:
        self.kind, self.name = kind, name
        super().__init__(f"no {kind} {name!r} on this broker")


class BrokerUnavailable(BusError):
    retryable = True

    def __init__(self, url: str, reason: str) -> None:
        self.url, self.reason = url, reason
        super().__init__(f"no answer from NATS at {url}: {reason}")


class PublishUnconfirmed(BusError):
    """The event may or may not be stored; publishing it again with the same id cannot double it."""

    retryable = True

    def __init__(self, subject: str, reason: str) -> None:
        self.subject, self.reason = subject, reason
        super().__init__(f"no acknowledgement for {subject!r}: {reason}; try again with the same event id")
