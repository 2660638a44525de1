"""How the starts of a function's workers went, and when the next may be tried.

A start failed if its pod was refused, or ended badly before it had handled an event or run for `PROVEN_S`. Starts that
were under way together fail together and count once. A new version begins with a clean record, and so does a worker
that proves itself.
"""

from typing import Literal

from msgspec import Struct

from bus.core.assignment import EXIT_FUNCTION_UNUSABLE

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 300.0
PROVEN_S = 10.0

Failure = Literal["HandlerUnusable", "WorkersFailing", "PodsRefused"]


class Starts(Struct, frozen=True, kw_only=True):
    version: str = ""
    failures: int = 0
    """Consecutive."""
    failed_s: float = 0.0
    reason: Failure = "WorkersFailing"
    message: str = ""
    """What the last one left behind, for people."""

    def is_failing(self, version: str) -> bool:
        return self.version == version and self.failures > 0

    @property
    def backoff_s(self) -> float:
        return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(self.failures - 1, 16)) if self.failures else 0.0

    def due_s(self, version: str) -> float:
        """Return when the next start of that version may be tried."""
        return self.failed_s + self.backoff_s if self.is_failing(version) else 0.0


def failure_of(exit_code: int | None) -> Failure:
    return "HandlerUnusable" if exit_code == EXIT_FUNCTION_UNUSABLE else "WorkersFailing"


def after_failure(
    starts: Starts, version: str, *, begun_s: float, now_s: float, reason: Failure, message: str
) -> Starts:
    """Return the record after a start of `version`, begun at `begun_s`, has failed."""
    if not starts.is_failing(version):
        return Starts(version=version, failures=1, failed_s=now_s, reason=reason, message=message)
    is_another = begun_s >= starts.failed_s
    return Starts(
        version=version,
        failures=starts.failures + is_another,
        failed_s=now_s if is_another else starts.failed_s,
        reason=reason,
        message=message,
    )
