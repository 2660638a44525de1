"""One whole event, handled with nobody there: so that the first real one finds code that has run and memory of its own.

A copy of the pre-forked parent shares its memory until it writes, and an interpreter is slow where it runs for the first
time: connecting takes four times as long in such a copy as it does the second time. A spare child has nothing else to
do, so it plays a worker's life against a broker that it plays as well, on a loopback socket of its own: connect, pull,
run, store a result, acknowledge, leave.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from bus.core.assignment import Assignment
from bus.core.credentials import Permissions
from bus.core.event import Event
from bus.jetstream.connection import BusConfig, open_connection
from bus.jetstream.credentials import mint_user, new_authority
from workers.invoke import Invoker
from workers.settle import Identity
from workers.worker import Worker

REHEARSAL_S = 2.0
"""It takes some 30 ms. One that takes longer is given up: it is a help, and no more."""

_ASSIGNMENT = Assignment(
    namespace="rehearsal", function="rehearsal", uid="rehearsal", version="", handler="", bundle="", consumer="rehearsal",
    concurrency=1,
)  # fmt: skip
_HEADERS = (
    b"NATS/1.0\r\nce-specversion: 1.0\r\nce-id: 1\r\nce-source: rehearsal\r\nce-type: rehearsal\r\n"
    b"ce-datacontenttype: application/json\r\n\r\n"
)
_DATA = b'{"n":1}'


def rehearse() -> None:
    """Live one worker's life and leave nothing of it. Never raises: without it, the first event is slower."""
    logging.disable(logging.CRITICAL)
    try:
        asyncio.run(asyncio.wait_for(_life(), REHEARSAL_S))
    except Exception as error:
        logging.disable(logging.NOTSET)
        logging.getLogger(__name__).warning("rehearsal failed: %s: %s", type(error).__name__, error)
    finally:
        logging.disable(logging.NOTSET)


async def _life() -> None:
    broker = _Broker()
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        config = BusConfig(
            url=f"nats://127.0.0.1:{port}",
            credentials_text=mint_user(
                new_authority().account_seed, "rehearsal", Permissions(publish=(), subscribe=())
            ),
            inbox_prefix=_ASSIGNMENT.inbox_prefix,
        )
        async with open_connection(config) as connection:
            identity = Identity(pod="rehearsal", uid="rehearsal", node="rehearsal", started_ns=time.time_ns())
            worker = Worker(_ASSIGNMENT, identity, Invoker(_handle, 1, 1.0))
            broker.on_acknowledged = lambda: worker.stop("rehearsed")
            await worker.serve(connection, 0.5)
        await broker.ended.wait()
    finally:
        server.close()
        await server.wait_closed()


async def _handle(event: Event) -> object:
    return event.json()


class _Broker:
    """The few lines of a NATS server that one worker and one event take."""

    def __init__(self) -> None:
        self.on_acknowledged: Callable[[], None] = lambda: None
        self.ended = asyncio.Event()
        """The connection is closed, on this side too."""
        self._subscriptions: dict[str, bytes] = {}
        self._has_delivered = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b'INFO {"server_id":"rehearsal","version":"2.14.0","proto":1,"headers":true,"max_payload":1048576,'
            b'"auth_required":true,"nonce":"rehearsal"}\r\n'
        )
        answers: dict[bytes, Callable[[asyncio.StreamReader, list[bytes]], Awaitable[bytes]]] = {
            b"PING": self._pong, b"SUB": self._subscribe, b"PUB": self._published, b"HPUB": self._published,
        }  # fmt: skip
        try:
            while line := await reader.readline():
                verb, *words = line.split()
                if verb in answers:
                    writer.write(await answers[verb](reader, words))
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            self.ended.set()

    async def _pong(self, reader: asyncio.StreamReader, words: list[bytes]) -> bytes:
        return b"PONG\r\n"

    async def _subscribe(self, reader: asyncio.StreamReader, words: list[bytes]) -> bytes:
        self._subscriptions[words[0].decode().removesuffix("*")] = words[-1]
        return b""

    async def _published(self, reader: asyncio.StreamReader, words: list[bytes]) -> bytes:
        await reader.readexactly(int(words[-1]) + 2)
        subject, reply = words[0].decode(), words[1].decode()
        subscription = next((id_ for prefix, id_ in self._subscriptions.items() if reply.startswith(prefix)), None)
        if subscription is None:  # a report: nobody is to answer
            return b""
        if subject.startswith("$JS.API.CONSUMER.MSG.NEXT."):
            return self._delivery(subscription)
        if subject.startswith("$JS.ACK."):
            self.on_acknowledged()
            return b"MSG %s %s 0\r\n\r\n" % (words[1], subscription)
        stored = b'{"stream":"RESULTS","seq":1}'
        return b"MSG %s %s %d\r\n%s\r\n" % (words[1], subscription, len(stored), stored)

    def _delivery(self, subscription: bytes) -> bytes:
        if self._has_delivered:
            return b""
        self._has_delivered = True
        sizes = b"%d %d" % (len(_HEADERS), len(_HEADERS) + len(_DATA))
        reply = b"$JS.ACK.EVENTS.rehearsal.1.1.1.%d.0" % time.time_ns()
        return b"HMSG events.rehearsal %s %s %s\r\n%s%s\r\n" % (subscription, reply, sizes, _HEADERS, _DATA)
