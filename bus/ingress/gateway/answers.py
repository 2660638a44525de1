"""What a caller is told: one status for each way in which publishing ends, and a body that names the fault.

Every answer that is not 202 is `{"error": …, "field": …, "message": …}`; `field` is there where one is at fault. The
message says what was seen and what to do.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from bus.core.errors import (
    BrokerUnavailable,
    BusError,
    HeadersTooLarge,
    InvalidEvent,
    InvalidSubject,
    NotAllowed,
    PayloadTooLarge,
    PublishUnconfirmed,
)
from bus.core.event import STRUCTURED

RETRY_AFTER_S = 1
"""What a caller is asked to wait when the bus is away or the gateway is full. [seconds]"""


class Problem(Exception):
    """A request that is not taken, as it is answered."""

    def __init__(
        self, status: int, error: str, message: str, *, field: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        self.status, self.error, self.message, self.field = status, error, message, field
        self.headers = dict(headers or {})
        super().__init__(f"{status} {error}: {message}")

    def response(self) -> Response:
        body = {"error": self.error, "field": self.field, "message": self.message}
        if not self.field:
            del body["field"]
        return json_response(body, self.status, self.headers)


def json_response(body: Any, status: int, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body) + b"\n", status, headers, media_type="application/json")


def problem_of(error: BusError) -> Problem:
    """Return what the caller is told about an event that was not confirmed as stored."""
    again = {"Retry-After": str(RETRY_AFTER_S)}
    match error:
        case InvalidEvent():
            status = 415 if error.field == "content-type" else 400
            headers = {"Accept": STRUCTURED} if status == 415 else {}
            return Problem(status, "invalid-event", str(error), field=error.field, headers=headers)
        case InvalidSubject():
            return Problem(400, "invalid-subject", str(error), field="subject")
        case HeadersTooLarge():
            return Problem(413, "too-large", str(error), field="attributes")
        case PayloadTooLarge():
            return Problem(413, "too-large", str(error), field="data")
        case NotAllowed():
            return Problem(403, "not-allowed", str(error), field="subject")
        case PublishUnconfirmed():
            message = (
                "the bus went away before it confirmed; repeating the request is safe as long as source and id stay"
            )
            return Problem(503, "unconfirmed", message, headers=again)
        case BrokerUnavailable():
            return Problem(503, "bus-away", f"not stored: {error}; try again", headers=again)
        case _:
            return Problem(502, "refused", str(error))
