"""The status of a Function, from what the dispatcher knows: pure, so that what `kubectl` shows can be read in one place.

Conditions: Ready (an event published now will be handled), Subscribed (the consumer is as the spec wants it) and Scaling
(workers can be had). Numbers may lag by a moment; conditions may not.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from bus.core.assignment import FUNCTION_LABEL
from bus.core.starts import Starts
from bus.functions.conditions import Condition, merged


class Observed(Struct, frozen=True, kw_only=True):
    """What is to be told about one function."""

    name: str
    generation: int
    version: str
    patterns: tuple[str, ...] = ()
    consumer: str = ""
    fault: str = ""
    """Why the object cannot work as it is; empty when it can."""
    subscription_fault: tuple[str, str] | None = ("Pending", "the consumer is being made")
    """(reason, message), or None when the consumer is in place."""
    starts: Starts = Starts()
    unschedulable: str = ""
    """The scheduler's own message about a pod that has found no node."""
    workers: int = 0
    ready: int = 0
    pending: int = 0
    in_flight: int = 0
    dead: int = 0
    settled_to: int | None = None
    """Sequence in the stream up to which all events were settled; None before the first look."""
    decision: str = ""


def conditions_of(seen: Observed) -> tuple[Condition, ...]:
    return (_ready(seen), _subscribed(seen), _scaling(seen))


def _ready(seen: Observed) -> Condition:
    if seen.fault:
        return Condition(type="Ready", status="False", reason="InvalidSpec", message=seen.fault)
    if seen.subscription_fault is not None:
        return Condition(
            type="Ready", status="False", reason="NotSubscribed", message=": ".join(seen.subscription_fault)
        )
    if seen.starts.is_failing(seen.version) and not seen.ready:
        return Condition(type="Ready", status="False", reason=seen.starts.reason, message=seen.starts.message)
    if seen.ready:
        return Condition(type="Ready", status="True", reason="Serving", message="workers take events")
    if seen.workers:
        return Condition(type="Ready", status="True", reason="Starting", message="workers are starting")
    return Condition(type="Ready", status="True", reason="Asleep", message="a worker starts with the next event")


def _subscribed(seen: Observed) -> Condition:
    if seen.fault:
        return Condition(type="Subscribed", status="False", reason="InvalidSpec", message=seen.fault)
    if seen.subscription_fault is not None:
        reason, message = seen.subscription_fault
        return Condition(type="Subscribed", status="False", reason=reason, message=message)
    message = f"consumer {seen.consumer} selects {', '.join(seen.patterns)}"
    return Condition(type="Subscribed", status="True", reason="Subscribed", message=message)


def _scaling(seen: Observed) -> Condition:
    if seen.starts.is_failing(seen.version) and not seen.ready:
        message = f"{seen.starts.failures} failed starts in a row; the next try comes {seen.starts.backoff_s:g} s after the last"
        return Condition(type="Scaling", status="False", reason="BackingOff", message=message)
    if seen.unschedulable:
        return Condition(type="Scaling", status="False", reason="Unschedulable", message=seen.unschedulable)
    if seen.fault or seen.subscription_fault is not None:
        return Condition(type="Scaling", status="False", reason="NotSubscribed", message="see the condition Subscribed")
    return Condition(type="Scaling", status="True", reason="Active", message="workers follow the events")


def status_of(seen: Observed, before: Iterable[Mapping[str, Any]], now: str) -> dict[str, Any]:
    """Return the whole status; `before` are the conditions written last, `now` is RFC 3339."""
    return {
        "observedGeneration": seen.generation,
        "selector": f"{FUNCTION_LABEL}={seen.name}",
        "version": seen.version,
        "workers": seen.workers,
        "ready": seen.ready,
        "pending": seen.pending,
        "inFlight": seen.in_flight,
        "dead": seen.dead,
        **({"settledTo": seen.settled_to} if seen.settled_to is not None else {}),
        "decision": seen.decision,
        "conditions": merged(before, conditions_of(seen), generation=seen.generation, now=now),
    }
