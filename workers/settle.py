"""Put on record what a call came to, in the order in which a crash at any point neither loses nor doubles anything.

    success     result stored (the broker refuses a second one)   -> acknowledged
    failure     attempt recorded, with its due time               -> NAK with delay
    the end     dead letter stored (de-duplicated by its id)      -> TERM
    handed back recorded as no attempt                            -> NAK with a very short delay

Each step is confirmed before the next one begins.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Literal, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from bus.core.assignment import Assignment
from bus.core.attempts import Attempt, DeadLetter, History, Outcome
from bus.core.errors import BusError, PayloadTooLarge, SequenceConflict
from bus.core.event import MESSAGE_ID, Event
from bus.core.settlement import full_history
from bus.core.topology import ATTEMPTS
from bus.jetstream.connection import Connection
from bus.jetstream.consumer import PullConsumer
from bus.jetstream.delivery import Delivery, rfc3339
from workers.core.leases import Lease, is_held

log = logging.getLogger(__name__)

TRY_S_MAX = 60.0
"""How long one step is tried while the broker is away; then the lease has long ended and the event comes again."""
DEAD_HEADER = "Nodeless-Dead"
LAST_ATTEMPTS, LAST_ERROR_CHARACTERS = 5, 256
"""What is kept of a history for which there is no room: 5 x 256 characters, escaped, are 8 KiB at most."""
RECORD_BYTES_MAX = 512 * 1024
"""A longer history keeps the newest traceback alone: a broker takes 1 MiB. [bytes]"""

T = TypeVar("T")


class Lost(Exception):
    """The delivery is no longer ours: nothing may be said about it any more."""


class Held(Struct):
    """One delivery in hand."""

    delivery: Delivery
    lease: Lease
    pulled_ns: int
    event: Event | None = None
    attempt: int = 1
    history: tuple[Attempt, ...] = ()
    """What happened to the event before, once it was read."""
    is_history_read: bool = False
    record_sequence: int = 0
    """Sequence of the newest record in `ATTEMPTS`; 0 where there is none."""
    started_ns: int = 0
    finished_ns: int = 0


class Identity(Struct, frozen=True, kw_only=True):
    """Who this worker is, as it stands in records and results."""

    pod: str
    uid: str
    node: str
    started_ns: int


class Settler:
    def __init__(self, connection: Connection, pull: PullConsumer, assignment: Assignment, identity: Identity) -> None:
        self._connection, self._pull = connection, pull
        self._assignment, self._identity = assignment, identity

    async def read_history(self, held: Held) -> None:
        """Have `held` know what happened before, and where the newest record of it is."""
        if held.is_history_read or held.delivery.count == 1:
            return
        subject = self._assignment.attempts_subject(held.delivery.sequence)
        message = await self._tried(held, lambda: self._connection.last_message(ATTEMPTS, subject))
        records: tuple[Attempt, ...] = ()
        if message is not None:
            held.record_sequence = message.sequence
            try:
                records = msgspec.json.decode(message.data, type=History).attempts
            except msgspec.DecodeError as error:
                # Of another version, say. Without it the deliveries count as attempts, so it comes to an end.
                log.warning("history unreadable: %s", error, extra={"subject": subject})
        held.history = full_history(records, held.delivery.count)
        held.is_history_read = True

    async def record_began(self, held: Held) -> None:
        """Write that a call begins; a worker that dies in it leaves this behind."""
        await self._record(held, self.attempt_of(held, "began"), due_s=None)

    async def succeed(self, held: Held, result: bytes | None, content_type: str) -> None:
        """Store the result, if there is one, and acknowledge. Raises `PayloadTooLarge` where the result cannot be
        stored.
        """
        assert held.event is not None
        if result is not None:
            subject = f"{self._assignment.results_prefix}.{held.event.digest}"
            headers = self._result_headers(held, held.event, content_type)

            async def store() -> None:
                try:
                    await self._connection.store(subject, result, headers, expected_last_subject_sequence=0)
                except SequenceConflict:
                    log.info("a result is stored already", extra={"event_id": headers["Nodeless-Event-Id"]})

            await self._tried(held, store, needs_lease=False)
        await self._tried(held, lambda: self._pull.ack(held.delivery), needs_lease=False)

    async def retry(self, held: Held, attempt: Attempt, delay_s: float) -> None:
        await self._record(held, attempt, due_s=delay_s)
        await self._tried(held, lambda: self._pull.retry_after(held.delivery, delay_s))

    async def dead(
        self,
        held: Held,
        reason: Literal["attempts-exhausted", "rejected", "worker-died", "undecodable"],
        message: str,
        attempts: tuple[Attempt, ...],
    ) -> None:
        """Store the event with its story, and only then have it never delivered again."""
        delivery, assignment = held.delivery, self._assignment
        letter = DeadLetter(
            function=f"{assignment.namespace}/{assignment.function}",
            uid=assignment.uid,
            stream=delivery.stream,
            sequence=delivery.sequence,
            subject=delivery.subject,
            reason=reason,
            message=message[:1024],
            died_at=datetime.now(UTC).isoformat(timespec="microseconds"),
            history=attempts,
        )
        identity = f"{assignment.uid}:{delivery.stream}:{delivery.sequence}:{letter.redrive}"
        headers = {
            name: value
            for name, value in delivery.headers.items()
            if not name.lower().startswith("nats-") and not name.lower().startswith("nodeless-")
        }

        async def store() -> None:
            for cut in cut_letters(letter):
                try:
                    await self._connection.store(
                        assignment.dead_subject,
                        delivery.data,
                        headers | {MESSAGE_ID: identity, DEAD_HEADER: _header(cut)},
                    )
                    return
                except PayloadTooLarge:
                    continue
            raise Lost("the event with its story is larger than the broker takes")

        await self._tried(held, store)
        await self._tried(held, lambda: self._pull.terminate(held.delivery, f"{reason}: {message}"))

    async def hand_back(self, held: Held, outcome: Literal["handed-back", "interrupted"], delay_s: float) -> None:
        await self.read_history(held)
        await self._record(held, self.attempt_of(held, outcome), due_s=delay_s)
        await self._tried(held, lambda: self._pull.retry_after(held.delivery, delay_s))

    def attempt_of(self, held: Held, outcome: Outcome, error: str = "", traceback: str = "") -> Attempt:
        """Return the record of this delivery's call."""
        started_ns = held.started_ns or time.time_ns()
        return Attempt(
            delivery=held.delivery.count,
            outcome=outcome,
            worker=self._identity.pod,
            node=self._identity.node,
            version=self._assignment.version,
            started_at=rfc3339(started_ns),
            duration_s=max(0.0, (held.finished_ns - started_ns) / 1e9) if held.finished_ns else 0.0,
            error=error,
            traceback=traceback,
        )

    async def _record(self, held: Held, attempt: Attempt, due_s: float | None) -> None:
        due_at = rfc3339(time.time_ns() + int(due_s * 1e9)) if due_s is not None else ""
        data = encoded_history((*held.history, attempt), due_at)
        subject = self._assignment.attempts_subject(held.delivery.sequence)

        async def store() -> None:
            try:
                stored = await self._connection.store(
                    subject, data, expected_last_subject_sequence=held.record_sequence
                )
            except SequenceConflict as error:
                newest = await self._connection.last_message(ATTEMPTS, subject)
                if newest is not None and newest.data == data:
                    held.record_sequence = newest.sequence  # our own, whose acknowledgement was lost
                    return
                raise Lost("another worker has written the history of this event") from error
            held.record_sequence = stored.sequence

        await self._tried(held, store)

    def _result_headers(self, held: Held, event: Event, content_type: str) -> dict[str, str]:
        return {
            "Content-Type": content_type,
            "Nodeless-Event-Id": quote(event.id, safe="!#$&'()*+,/:;=?@[]-._~ "),
            "Nodeless-Sequence": str(held.delivery.sequence),
            "Nodeless-Worker": self._identity.pod,
            "Nodeless-Worker-Uid": self._identity.uid,
            "Nodeless-Node": self._identity.node,
            "Nodeless-Version": self._assignment.version,
            "Nodeless-Attempt": str(held.attempt),
            "Nodeless-Worker-Started-At": rfc3339(self._identity.started_ns),
            "Nodeless-Pulled-At": rfc3339(held.pulled_ns),
            "Nodeless-Started-At": rfc3339(held.started_ns),
            "Nodeless-Finished-At": rfc3339(held.finished_ns),
        }

    async def _tried(self, held: Held, step: Callable[[], Awaitable[T]], *, needs_lease: bool = True) -> T:
        """Take one step, again while the broker is away; raise `Lost` when the delivery is no longer ours.

        An acknowledgement needs no lease: the event is handled, whoever else holds it now.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + TRY_S_MAX
        wait_s = 0.02
        while True:
            if needs_lease and not is_held(held.lease, loop.time(), self._assignment.lease_s):
                raise Lost("the lease ended before the delivery was settled")
            try:
                return await step()
            except BusError as error:
                if not error.retryable or loop.time() + wait_s > deadline_s:
                    raise
                log.info("settling waits for the broker: %s", error)
            await asyncio.sleep(wait_s)
            wait_s = min(1.0, wait_s * 2)


def encoded_history(attempts: tuple[Attempt, ...], due_at: str) -> bytes:
    """Return the record of these attempts, without the tracebacks of all but the last where it would be too long."""
    data = msgspec.json.encode(History(attempts=attempts, due_at=due_at))
    if len(data) > RECORD_BYTES_MAX:
        shorter = (*_without_tracebacks(attempts[:-1]), attempts[-1])
        data = msgspec.json.encode(History(attempts=shorter, due_at=due_at))
    return data


def cut_letters(letter: DeadLetter) -> Iterator[DeadLetter]:
    """Yield the letter, then with less and less of its history, until it fits into one header with any event's own."""
    yield letter
    for history in (
        (*_without_tracebacks(letter.history[:-1]), *letter.history[-1:]),
        _without_tracebacks(letter.history),
        tuple(msgspec.structs.replace(each, error=each.error[:LAST_ERROR_CHARACTERS])
              for each in _without_tracebacks(letter.history[-LAST_ATTEMPTS:])),
    ):  # fmt: skip
        yield msgspec.structs.replace(letter, history=history)


def _without_tracebacks(history: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
    return tuple(msgspec.structs.replace(attempt, traceback="") for attempt in history)


def _header(letter: DeadLetter) -> str:
    """Return the letter as one header line: JSON with everything beyond ASCII escaped, since headers carry no other."""
    return json.dumps(msgspec.to_builtins(letter))
