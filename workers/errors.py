"""What can go wrong in a worker.

WorkerError
  FunctionUnusable       the bundle or the handler: no event can be handled; says why
  RetryLater             raised by a handler: not now, again after so many seconds
  Reject                 raised by a handler: never; the event goes to the dead letters at once
"""

from bus.core.assignment import DUE_S_MAX


class WorkerError(Exception):
    pass


class FunctionUnusable(WorkerError):
    """The handler cannot be imported or found; `details` is the traceback."""

    def __init__(self, reason: str, details: str = "") -> None:
        self.reason, self.details = reason, details
        super().__init__(reason)


class RetryLater(WorkerError):
    """The event shall come again after `after_s` seconds; it costs an attempt."""

    def __init__(self, after_s: float, reason: str = "") -> None:
        if not 0 <= after_s <= DUE_S_MAX:
            raise ValueError(f"after_s={after_s!r}: expected seconds between 0 and a week ({DUE_S_MAX:.0f})")
        self.after_s = after_s
        super().__init__(reason or f"asked to come again after {after_s:g} s")


class Reject(WorkerError):
    """The event can never be handled: it becomes a dead letter at once, with this reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
