"""What to do with a delivery: before its call, from what happened to the event before; after it, from how the call
went.

An attempt is a call that began. What happened before is told by the history in `ATTEMPTS` and by the broker's
delivery count together:

    record of an earlier delivery          what it says                                   an attempt?
    handed-back, interrupted               a worker that left gave it back                no
    failed, timed-out, rejected            the call ended so                              yes
    began, or no record at all             the worker died with it                        yes

So nothing that dies can go uncounted: a death leaves no record, and the broker counts every delivery. From the
second delivery on, `began` is written before the call; the first delivery, the common case, costs no record.

An event with a death in its past runs alone in its worker: if it kills again, it takes no neighbours with it.
"""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from bus.core.assignment import DeliveryPolicy
from bus.core.attempts import Attempt
from bus.core.retry import retry_delay_s

NOT_ATTEMPTS = frozenset({"handed-back", "interrupted"})
HAND_BACK_DELAY_S = 0.01
"""Delay of a delivery that a leaving worker gives back: soon, but never a bare NAK."""


class Start(Struct, frozen=True, kw_only=True):
    """What to do with a delivery before its call."""

    action: Literal["run", "run-alone", "dead"]
    attempt: int
    """Number of the call that would begin now, from 1."""
    reason: str = ""
    """For `dead`: what is said about it."""
    is_death: bool = False
    """For `dead`: the last straw was a worker's death."""


class Settlement(Struct, frozen=True, kw_only=True):
    """How to end a delivery after a call that did not succeed."""

    action: Literal["retry", "dead"]
    delay_s: float = 0.0
    reason: str = ""


def full_history(records: Sequence[Attempt], delivery: int) -> tuple[Attempt, ...]:
    """Return one record for each delivery before number `delivery`; a missing or unfinished one is a worker's
    death.
    """
    known = {record.delivery: record for record in records}
    history = []
    for number in range(1, delivery):
        record = known.get(number)
        if record is None:
            record = Attempt(delivery=number, outcome="began", worker="", error="the worker died")
        elif record.outcome == "began":
            record = _with_error(record, "the worker died")
        history.append(record)
    return tuple(history)


def _with_error(record: Attempt, error: str) -> Attempt:
    return Attempt(
        delivery=record.delivery,
        outcome=record.outcome,
        worker=record.worker,
        node=record.node,
        version=record.version,
        started_at=record.started_at,
        error=error,
    )


def start_of(policy: DeliveryPolicy, history: Sequence[Attempt]) -> Start:
    """Say whether a call may begin, given the full history of the deliveries before."""
    attempts = [record for record in history if record.outcome not in NOT_ATTEMPTS]
    deaths = [record for record in attempts if record.outcome == "began"]
    number = len(attempts) + 1
    if len(attempts) >= policy.attempts:
        is_death = attempts[-1].outcome == "began"
        cause = "its worker died" if is_death else attempts[-1].error or attempts[-1].outcome
        died = f", {len(deaths)} of them with the worker's death" if deaths else ""
        reason = f"{len(attempts)} attempts{died}; the last: {cause}"
        return Start(action="dead", attempt=number, reason=reason, is_death=is_death)
    return Start(action="run-alone" if deaths else "run", attempt=number)


Ended = Literal["succeeded", "failed", "timed-out", "rejected", "retry-later"]


def settlement_of(
    policy: DeliveryPolicy, attempt: int, ended: Ended, draw: float, *, error: str = "", after_s: float | None = None
) -> Settlement:
    """Say how to end a delivery whose call was number `attempt` (from 1) and did not succeed; `draw` is from [0, 1)."""
    if ended == "rejected":
        return Settlement(action="dead", reason=error)
    if attempt >= policy.attempts:
        return Settlement(action="dead", reason=f"{attempt} attempts; the last: {error or ended}")
    delay_s = after_s if after_s is not None else retry_delay_s(policy, attempt, draw)
    return Settlement(action="retry", delay_s=delay_s)
