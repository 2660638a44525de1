"""Publish what waits in a spool: in order, each event once, until nothing waits or the bus has been away too long.

One deliverer at a time works on a spool. An event is published and confirmed before the next one; a push leaves the
spool when all its events are confirmed. So it may die at any moment: the next one begins with the same push, and its
events have the same ids. Within the broker's window the broker drops the second copy; later, what is stored last on
the event's own subject tells whether it is there.

asyncio's own primitives, and nothing imported that is not used: the time from push to stored event is mostly this
program's start.
"""

import asyncio
import logging
import random
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from bus.core.assignment import DeliveryPolicy
from bus.core.credentials import inbox_prefix
from bus.core.errors import BrokerUnavailable, BusError
from bus.core.event import MESSAGE_ID, Event
from bus.core.git import Push, RefUpdate, UnreadablePush, event_of_update, known_before, ref_type
from bus.core.retry import retry_delay_s
from bus.core.topology import DUPLICATE_WINDOW_S, EVENTS
from bus.ingress.git.install import spool_of
from bus.ingress.git.repository import GitFailed, Repository
from bus.ingress.git.spool import LastDelivered, Spool
from bus.jetstream.connection import BusConfig, Connection, open_connection

log = logging.getLogger("nodeless.git")

GIVE_UP_S = 900.0
"""How long a deliverer that was started by a push tries without any success; what waits then waits for the next
push, or for `nodeless git deliver`. [seconds]"""
BACK_OFF = DeliveryPolicy(backoff_initial_s=0.2, backoff_factor=2.0, backoff_max_s=5.0)
SURE_S = DUPLICATE_WINDOW_S / 2
"""A push younger than this cannot have outlived the broker's memory of ids; an older one is looked up. [seconds]"""
LATER_PUSHES_MAX = 1000
"""How far ahead the waiting pushes are read to tell what a new branch brought. [pushes]"""
CONNECT_S = 5.0
LOCK_POLL_S = 0.05


class Delivered(Struct, frozen=True, kw_only=True):
    """What one run did."""

    events: int
    """Confirmed by the broker, those that it already had included. [events]"""
    pushes: int
    """Taken out of the spool, all of their events confirmed. [pushes]"""
    failed: int
    """Put aside: refused for good. [pushes]"""
    waiting: int
    """Still in the spool. [pushes]"""
    reason: str = ""
    """Why some still wait; empty when none does."""


class _Counts:
    events = pushes = failed = 0


def deliver(repository: Path, *, give_up_s: float = 30.0, retry_failed: bool = False) -> Delivered:
    """Publish what waits in the repository's spool, and say what was done. A deliverer that is at work is waited for.

    Gives up after `give_up_s` without success; `retry_failed` makes the failed pushes wait again first. Raises
    `GitBridgeError` where there is no bridge.
    """
    spool = spool_of(repository)
    if retry_failed:
        spool.settings()
        spool.take_back_failed()
    return asyncio.run(deliver_spool(spool, give_up_s=give_up_s, is_patient=True))


async def deliver_spool(spool: Spool, *, give_up_s: float = GIVE_UP_S, is_patient: bool = False) -> Delivered:
    """Publish what waits. Where another deliverer is at work, leave it to that one, or wait for it if `is_patient`."""
    spool.settings()
    counts = _Counts()
    reason = ""
    deadline_s = time.monotonic() + give_up_s
    spool.take_in_raw()
    # Asked again after the lock is free: a push that came after the last look inside, and whose own deliverer found
    # the lock taken, is seen here.
    while not reason and spool.waiting():
        with spool.delivering() as is_ours:
            if is_ours:
                reason = await _Deliverer(spool, counts, give_up_s).run()
                continue
        if not is_patient:
            reason = "another deliverer is at work"
        elif time.monotonic() > deadline_s:
            log_path = spool.directory / "log"
            reason = f"another deliverer has been at work for {give_up_s:g} s, and goes on; it says why in {log_path}"
        else:
            await asyncio.sleep(LOCK_POLL_S)
    return Delivered(
        events=counts.events, pushes=counts.pushes, failed=counts.failed, waiting=len(spool.waiting()), reason=reason
    )


class _Deliverer:
    def __init__(self, spool: Spool, counts: _Counts, give_up_s: float) -> None:
        self._spool, self._counts, self._give_up_s = spool, counts, give_up_s
        self._settings = spool.settings()
        self._repository = Repository(spool.git_directory)
        self._tries = 0
        self._deadline_s = time.monotonic() + give_up_s

    async def run(self) -> str:
        """Return when nothing waits, or why some still do."""
        config = BusConfig(
            url=self._settings.nats_url,
            credentials=self._settings.nats_credentials,
            name=f"git {self._settings.owner}/{self._settings.repository}",
            inbox_prefix=inbox_prefix("git"),
            connect_s=min(CONNECT_S, self._give_up_s),
        )
        try:
            while True:
                try:
                    async with open_connection(config) as connection:
                        await self._empty(connection)
                        return ""
                except BusError as error:
                    if not error.retryable:
                        raise
                    await self._back_off(error)
        except BusError as error:
            log.warning("pushes wait", extra={"reason": str(error), "waiting": len(self._spool.waiting())})
            return str(error)

    async def _empty(self, connection: Connection) -> None:
        while names := self._spool.waiting():
            for name in names:
                await self._deliver(connection, name)

    async def _deliver(self, connection: Connection, name: str) -> None:
        """Take one push out of the spool, with all its events confirmed, or refused and put aside."""
        try:
            push = self._spool.push(name)
        except UnreadablePush as error:
            self._put_aside(name, str(error), None, ())
            return
        refused: dict[RefUpdate, str] = {}
        git_s = publish_s = 0.0
        known: frozenset[str] | None = None
        for update in push.updates:
            started_s = time.monotonic()
            if known is None and update.is_created:
                known = await asyncio.to_thread(self._known_before, name)
            event = await asyncio.to_thread(self._event, push, update, known or frozenset())
            built_s = time.monotonic()
            try:
                await self._publish(connection, event, push)
                self._counts.events += 1
            except BusError as error:
                if error.retryable:
                    raise
                refused[update] = f"{update.ref}: {error}"
            git_s += built_s - started_s
            publish_s += time.monotonic() - built_s
        if refused:
            self._put_aside(name, "\n".join(refused.values()), push, tuple(refused))
            return
        self._counts.pushes += 1
        latency_s = time.time() - push.pushed_at_ns / 1e9
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        self._spool.remove(name, LastDelivered(push=push.number, delivered_at=now, latency_s=round(latency_s, 4)))
        log.info(
            "push delivered",
            extra={
                "push": push.number,
                "events": len(push.updates),
                "git_s": f"{git_s:.4f}",
                "publish_s": f"{publish_s:.4f}",
                "latency_s": f"{latency_s:.4f}",
            },
        )

    def _put_aside(self, name: str, reason: str, push: Push | None, refused: tuple[RefUpdate, ...]) -> None:
        self._spool.set_aside(name, reason, push, refused)
        self._counts.failed += 1
        log.error("push refused for good", extra={"push": name, "reason": reason})

    # -- what happened in the repository

    def _known_before(self, name: str) -> frozenset[str]:
        refs = self._repository.refs()
        later = [other for other in self._spool.waiting() if other >= name][:LATER_PUSHES_MAX]
        pushes = []
        for other in later:
            try:
                pushes.append(self._spool.push(other))
            except UnreadablePush:
                continue  # put aside when its turn comes
        return known_before(refs, pushes)

    def _event(self, push: Push, update: RefUpdate, known: frozenset[str]) -> Event:
        settings = self._settings
        is_update = not update.is_created and not update.is_deleted
        is_forced = is_update and (
            ref_type(update.ref) == "tag" or not self._repository.is_ancestor(update.before, update.after)
        )
        try:
            commits, total = (
                ((), 0)
                if update.is_deleted
                else self._repository.commits(update.after, {update.before} if is_update else known)
            )
        except GitFailed as error:
            log.warning("commits are unknown", extra={"push": push.number, "ref": update.ref, "reason": str(error)})
            commits, total = (), None
        return event_of_update(
            push,
            update,
            owner=settings.owner,
            repository=settings.repository,
            path=str(self._spool.git_directory),
            source=settings.source,
            is_forced=is_forced,
            commits=commits,
            commits_total=total,
        )

    # -- the bus

    async def _publish(self, connection: Connection, event: Event, push: Push) -> None:
        """Return when the event is stored. Raises what the broker will never take, and `BrokerUnavailable` when the
        connection is of no more use, or after `give_up_s` without success.
        """
        while True:
            try:
                if not await self._is_stored(connection, event, push):
                    await connection.publish(event)
                self._tries = 0
                self._deadline_s = time.monotonic() + self._give_up_s
                return
            except BusError as error:
                if not error.retryable or connection.is_closed:
                    raise
                await self._back_off(error, connection)

    async def _is_stored(self, connection: Connection, event: Event, push: Push) -> bool:
        age_s = time.time() - push.pushed_at_ns / 1e9
        if 0 <= age_s < SURE_S:
            return False
        last = await connection.last_message(EVENTS, event.subject)
        return last is not None and last.headers.get(MESSAGE_ID) == event.digest

    async def _back_off(self, error: BusError, connection: Connection | None = None) -> None:
        """Wait before the next try, no longer than until the connection is back; raise the error when it is time to
        give up.
        """
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise error
        if self._tries == 0:
            log.warning("the bus is away", extra={"reason": str(error)})
        self._tries += 1
        delay_s = min(left_s, retry_delay_s(BACK_OFF, self._tries, random.random()))  # noqa: S311  (jitter)
        if connection is None or connection.is_connected:
            await asyncio.sleep(delay_s)
        else:
            with suppress(BrokerUnavailable):
                await connection.wait_connected(delay_s)
