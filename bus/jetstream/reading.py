"""Read a stream in order, from a place on, to its present end or for ever.

Each reader is an ephemeral consumer without acknowledgements, made with the filter in the subject of the request,
so that a user's permissions can name what it may read. It goes with its reader: the server drops it after a while
of silence.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, Literal

import msgspec

from bus.core.errors import BrokerUnavailable, NotFound
from bus.jetstream.connection import Connection, Message, StoredMessage
from bus.jetstream.delivery import delivery_of

BATCH = 256
EXPIRES_S = 5.0
"""A request ends after this; the end doubles as the sign of life. [seconds]"""
INACTIVE_S = 30.0


async def read(
    connection: Connection,
    stream: str,
    pattern: str,
    *,
    start: Literal["all", "new"] | int = "all",
    follow: bool = False,
) -> AsyncGenerator[StoredMessage, None]:
    """Yield the messages on `pattern`, oldest first, each once, over reconnects too.

    `start` is all, only what is stored from now on, or a sequence. Without `follow` it ends with what was stored
    when it began. Raises `NotFound` for a stream that is not there. Close the iterator (`aclosing`) when leaving
    early.
    """
    reader = _Reader(connection, stream, pattern, start)
    try:
        async for message in reader.messages(follow):
            yield message
    finally:
        await reader.close()


class _Reader:
    def __init__(self, connection: Connection, stream: str, pattern: str, start: Literal["all", "new"] | int) -> None:
        self._connection, self._stream, self._pattern = connection, stream, pattern
        self._start: str | int = start
        self._inbox = connection.new_inbox()
        self._queue: asyncio.Queue[Message] = asyncio.Queue()
        self._subscription: Any = None
        self._name = ""

    async def messages(self, follow: bool) -> AsyncGenerator[StoredMessage, None]:
        self._subscription = await self._connection.subscribe(f"{self._inbox}.*", self._queue.put_nowait)
        left = await self._create()
        if not follow and not left:
            return
        while True:
            asked = await self._ask()
            while asked:
                message = await self._next()
                if message is None:
                    break  # the request ended, or the server did
                delivery = delivery_of(message)
                if delivery is None:
                    break
                asked -= 1
                self._start = delivery.sequence + 1
                yield StoredMessage(
                    delivery.subject,
                    dict(delivery.headers),
                    bytes(delivery.data),
                    delivery.sequence,
                    delivery.stored_at,
                )
                if not follow and delivery.pending == 0:
                    return

    async def _next(self) -> Message | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(EXPIRES_S + 2):
                return await self._queue.get()
        await self._again()
        return None

    async def _ask(self) -> int:
        while not self._connection.is_connected:
            await self._connection.wait_connected(3600)
            await self._again()
        request = {"batch": BATCH, "expires": int(EXPIRES_S * 1_000_000_000)}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        await self._connection.send(subject, msgspec.json.encode(request), reply=f"{self._inbox}.r")
        return BATCH

    async def _again(self) -> None:
        """Make the consumer anew behind what was read: after a silence, the old one may be gone."""
        while True:
            try:
                await self._connection.wait_connected(3600)
                await self._create()
                return
            except (BrokerUnavailable, NotFound):
                await asyncio.sleep(0.2)

    async def _create(self) -> int:
        """Create the consumer and return how many messages wait for it."""
        self._name = secrets.token_hex(16)
        config: dict[str, Any] = {
            "name": self._name,
            "ack_policy": "none",
            "replay_policy": "instant",
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(INACTIVE_S * 1_000_000_000),
            "filter_subject": self._pattern,
        }
        if isinstance(self._start, int):
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, self._start)}
        else:
            config["deliver_policy"] = self._start
        answer = await self._connection.api(
            f"CONSUMER.CREATE.{self._stream}.{self._name}.{self._pattern}",
            {"stream_name": self._stream, "config": config, "action": "create"},
        )
        if self._start == "new":
            self._start = int(answer["delivered"]["stream_seq"]) + 1
        return int(answer["num_pending"])

    async def close(self) -> None:
        if self._subscription is not None:
            await self._subscription.unsubscribe()
