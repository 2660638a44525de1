"""The mark that makes a callable a handler: read from the source at deployment, without effect at run time."""

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def function(
    *,
    subject: str | list[str] = "",
    name: str | None = None,
    attempts: int | None = None,
    timeout: str | None = None,
    concurrency: int | None = None,
    min: int | None = None,
    max: int | None = None,
    idle: str | None = None,
) -> Callable[[F], F]:
    """Declare a handler for the events on `subject` (one pattern or several).

    `nodeless deploy` reads the arguments from the text of the module, so they have to be literals. `name` defaults
    to the callable's own; the rest are the fields of the same names in the Function's `delivery` and `scaling`
    (durations as `30s`, `1m30s`).
    """

    def mark(handler: F) -> F:
        return handler

    return mark
