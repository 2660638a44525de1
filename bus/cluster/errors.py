"""What can go wrong with the API server, by whose fault it is.

ClusterError
  NotFound            404
  AlreadyExists       409, reason AlreadyExists
  Conflict            409 otherwise: somebody was faster, or a precondition (UID, resourceVersion) does not hold
  Forbidden           401, 403: this identity may not
  Invalid             400, 413, 422: the object is wrong; the server's own message tells where
  Expired             410: that resourceVersion is gone; list again
  ClusterUnavailable  no answer, 429, 5xx                                            retryable
"""


class ClusterError(Exception):
    retryable = False

    def __init__(self, operation: str, message: str, status: int = 0) -> None:
        self.operation, self.message, self.status = operation, message, status
        super().__init__(f"{operation}: {message}")


class NotFound(ClusterError):
    pass


class AlreadyExists(ClusterError):
    pass


class Conflict(ClusterError):
    pass


class Forbidden(ClusterError):
    pass


class Invalid(ClusterError):
    pass


class Expired(ClusterError):
    pass


class ClusterUnavailable(ClusterError):
    retryable = True


def error_of(operation: str, status: int, reason: str, message: str) -> ClusterError:
    """Return the error for an answer's HTTP status and its `Status` object's reason and message."""
    if status == 500 and "field not declared in schema" in message:
        # Server-side apply says so as an internal error; it is the object that is wrong.
        return Invalid(operation, message, status)
    kinds: dict[int, type[ClusterError]] = {
        400: Invalid, 401: Forbidden, 403: Forbidden, 404: NotFound, 405: Invalid, 406: Invalid,
        409: AlreadyExists if reason == "AlreadyExists" else Conflict, 410: Expired, 413: Invalid, 415: Invalid, 422: Invalid,
    }  # fmt: skip
    return kinds.get(status, ClusterUnavailable)(operation, message or f"status {status}", status)
