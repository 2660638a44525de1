"""Conditions, as Kubernetes' API conventions want them: a transition time changes only when the status does."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from msgspec import Struct

Status = Literal["True", "False", "Unknown"]


class Condition(Struct, frozen=True, kw_only=True):
    type: str
    status: Status
    reason: str
    """CamelCase, for programs."""
    message: str = ""
    """For people."""


def merged(
    before: Iterable[Mapping[str, Any]], wanted: Iterable[Condition], *, generation: int, now: str
) -> list[dict[str, Any]]:
    """Return the conditions to write: those wanted, sorted by type; each keeps its transition time unless its
    status changed.
    """
    known = {condition["type"]: condition for condition in before}
    written = []
    for condition in sorted(wanted, key=lambda each: each.type):
        old = known.get(condition.type)
        has_changed = old is None or old["status"] != condition.status
        written.append(
            {
                "type": condition.type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message,
                "observedGeneration": generation,
                "lastTransitionTime": now if has_changed or old is None else old["lastTransitionTime"],
            }
        )
    return written
