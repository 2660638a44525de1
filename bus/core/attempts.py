"""The history of one event at one function: what is kept in `ATTEMPTS` and travels into `DEAD`.

Each record on `Assignment.attempts_subject(sequence)` holds the *whole* history so far, so the newest message of the
subject is all that a worker has to read.
"""

from typing import Literal

from msgspec import Struct

Outcome = Literal["began", "failed", "timed-out", "interrupted", "handed-back", "rejected"]
"""`began` is written before the call from the second delivery on; it is replaced by the call's outcome. A history
that ends in `began`, or that lacks a record for an earlier delivery, tells of a worker that died. `handed-back` is a
delivery that was not run: it is not an attempt."""


class Attempt(Struct, frozen=True, kw_only=True):
    delivery: int
    """The broker's delivery count, from 1."""
    outcome: Outcome
    worker: str
    """Pod name."""
    node: str = ""
    version: str = ""
    started_at: str = ""
    """RFC 3339, UTC."""
    duration_s: float = 0.0
    error: str = ""
    """`Type: message` of the exception."""
    traceback: str = ""
    """Cut to its last 16 KiB."""


class History(Struct, frozen=True, kw_only=True):
    attempts: tuple[Attempt, ...] = ()
    due_at: str = ""
    """RFC 3339, UTC: when the event comes again; empty when it will not, or is being run."""


class DeadLetter(Struct, frozen=True, kw_only=True):
    """Headers of the original event stay on the message; this is the value of its `Nodeless-Dead` header (JSON)."""

    function: str
    """namespace/name"""
    uid: str
    stream: str
    sequence: int
    subject: str
    """The event's own subject."""
    reason: Literal["attempts-exhausted", "rejected", "worker-died", "undecodable", "expired"]
    message: str
    died_at: str
    redrive: int = 0
    history: tuple[Attempt, ...] = ()
