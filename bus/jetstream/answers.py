"""What the JetStream API answers, as values and as this project's errors."""

import msgspec
from msgspec import Struct
from nats.aio.msg import Msg

from bus.core.errors import BrokerUnavailable, HeadersTooLarge, NotFound, PayloadTooLarge, Refused, SequenceConflict

_WRONG_LAST_SEQUENCE = 10071
_NOT_FOUND = {10014: "consumer", 10059: "stream", 10037: "message"}
_MESSAGE_TOO_LARGE = 10054
_HEADERS_TOO_LARGE = 10097


class _ApiError(Struct, frozen=True):
    code: int = 0
    err_code: int = 0
    description: str = ""


class Answer(Struct, frozen=True):
    """What all answers have in common with an acknowledgement."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _ApiError | None = None


_answers = msgspec.json.Decoder(Answer)


def status_of(message: Msg) -> str:
    """Return the status of a message without data, such as 503 for a subject that nobody listens to."""
    return (message.headers or {}).get("Status", "") if not message.data else ""


def checked(reply: Msg, operation: str, url: str) -> Answer:
    """Return the answer; raise the `BusError` that it tells of. Sizes are the caller's to fill in."""
    try:
        answer = _answers.decode(reply.data)
    except msgspec.DecodeError as error:
        raise Refused(operation, f"unreadable answer {bytes(reply.data)[:100]!r}") from error
    if answer.error is None:
        return answer
    code, reason = answer.error.err_code, answer.error.description
    if code == _WRONG_LAST_SEQUENCE:
        raise SequenceConflict(operation, reason, code)
    if code == _MESSAGE_TOO_LARGE:
        raise PayloadTooLarge(0, None)
    if code == _HEADERS_TOO_LARGE:
        raise HeadersTooLarge(0)
    if code in _NOT_FOUND:
        raise NotFound(_NOT_FOUND[code], operation)
    if answer.error.code == 503:  # away, or full: it may be otherwise in a moment
        raise BrokerUnavailable(url, reason)
    raise Refused(operation, reason, code)
