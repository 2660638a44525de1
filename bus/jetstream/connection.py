"""One connection to the broker: storing with acknowledgement, requests, subscriptions, reading what is stored.

Requests have an inbox of their own, with one future each: cheaper than the library's, safe to cancel, and failed at
once when the connection goes, instead of at a timeout. nats-py keeps connecting, authentication, TLS and
reconnecting.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import nats.errors
from msgspec import Struct
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from bus.core.errors import (
    BrokerUnavailable,
    BusError,
    HeadersTooLarge,
    InvalidSubject,
    NotAllowed,
    NotFound,
    PayloadTooLarge,
    PublishUnconfirmed,
    Refused,
)
from bus.core.event import MESSAGE_ID, Event, headers_of
from bus.core.subjects import check_subject
from bus.jetstream.answers import checked, status_of

log = logging.getLogger(__name__)

RECONNECT_WAIT_S = 0.1
PING_INTERVAL_S = 10.0
CLOSED_LOOK_S = 1.0
PENDING_BYTES_MAX = 8 * 1024 * 1024
"""What is kept while the connection is away: acknowledgements and reports. Stores and requests fail instead."""

HEADER_BYTES_MAX = 0xFFFF
"""Headers of one stored message. Source: nats-server, whose store keeps their length in 16 bits. [bytes]"""


class BusConfig(Struct, frozen=True, kw_only=True):
    """How to reach the broker."""

    url: str
    """`nats://host:port`; several, parted by commas."""
    credentials: str | None = None
    """Path of a credentials file; None where the broker asks for none."""
    credentials_text: str | None = None
    """Its text instead."""
    name: str = "nodeless"
    """Shown in the broker's list of connections."""
    inbox_prefix: str = "_INBOX"
    connect_s: float = 5.0
    """Deadline of the first contact; afterwards the connection is made again for ever. [seconds]"""
    close_s: float = 2.0


class Stored(Struct, frozen=True):
    """The broker's acknowledgement: the event is on disk at that place."""

    stream: str
    sequence: int
    duplicate: bool = False
    """The broker already had an event with this id, and kept that one."""


class StoredMessage(Struct, frozen=True):
    subject: str
    headers: dict[str, str]
    data: bytes
    sequence: int
    stored_at: str
    """RFC 3339, UTC."""


class Message(Struct, frozen=True):
    """One message of core NATS."""

    subject: str
    headers: Mapping[str, str]
    data: bytes
    reply: str


class Subscription:
    """A live subscription; its callback runs on the event loop and must not block."""

    def __init__(self, subscription: NatsSubscription) -> None:
        self._subscription = subscription

    async def unsubscribe(self) -> None:
        """Ask the server for no more; what it sent before is still handed over (flush to know)."""
        with suppress(nats.errors.Error):
            await self._subscription.unsubscribe()


class _Client(Client):
    async def _process_pong(self) -> None:
        # One answer belongs to each ping, in order. Where a flush was given up (its timeout, a cancelled caller), the
        # library fails on the late answer and its reader ends, without a word and with the connection still up.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()


class Connection:
    """Use `open_connection`."""

    def __init__(self, client: Client, config: BusConfig) -> None:
        self._client = client
        self.config = config
        self._tokens = itertools.count(1)
        self._waiting: dict[str, tuple[str, asyncio.Future[Msg]]] = {}
        self._inbox = f"{config.inbox_prefix}.{client._nuid.next().decode()}"
        self._reconnected: list[Callable[[], None]] = []
        self._last_error = ""

    @property
    def url(self) -> str:
        return self.config.url

    @property
    def is_connected(self) -> bool:
        return bool(self._client.is_connected)

    @property
    def is_closed(self) -> bool:
        """The broker ended it for good (its user was refused); nothing will bring it back."""
        return bool(self._client.is_closed)

    @property
    def payload_bytes_max(self) -> int:
        return int(self._client.max_payload)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Have `callback` called on the loop each time the connection is back."""
        self._reconnected.append(callback)

    def new_inbox(self) -> str:
        return f"{self.config.inbox_prefix}.{self._client._nuid.next().decode()}"

    # -- storing

    async def publish(self, event: Event, *, timeout_s: float = 5.0) -> Stored:
        """Return when the broker has stored the event.

        Raises `InvalidSubject`, `PayloadTooLarge`, `NotAllowed`, `Refused`, `BrokerUnavailable` (not stored),
        `PublishUnconfirmed` (may be stored; publishing the same event again cannot double it within the
        de-duplication window).
        """
        check_subject(event.subject)
        return await self.store(event.subject, event.data, headers_of(event), timeout_s=timeout_s)

    async def store(
        self,
        subject: str,
        data: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        message_id: str | None = None,
        expected_last_subject_sequence: int | None = None,
        timeout_s: float = 5.0,
    ) -> Stored:
        """Store one message and return the acknowledgement; `SequenceConflict` where the subject's last sequence is
        another.
        """
        all_headers = dict(headers or {})
        if message_id is not None:
            all_headers[MESSAGE_ID] = message_id
        if expected_last_subject_sequence is not None:
            all_headers["Nats-Expected-Last-Subject-Sequence"] = str(expected_last_subject_sequence)
        headers_size = sum(len(name) + len(value) + 4 for name, value in all_headers.items()) + 12
        if headers_size > HEADER_BYTES_MAX:
            raise HeadersTooLarge(headers_size)
        size = len(data) + headers_size
        if (all_headers and size > self.payload_bytes_max) or len(data) > self.payload_bytes_max:
            raise PayloadTooLarge(size, self.payload_bytes_max)
        try:
            reply = await self._ask(subject, data, all_headers or None, timeout_s)
        except TimeoutError as error:
            raise PublishUnconfirmed(subject, f"nothing heard for {timeout_s:g} s") from error
        if status_of(reply) == "503":
            raise BrokerUnavailable(self.url, f"no stream takes {subject!r}")
        try:
            answer = checked(reply, f"store on {subject!r}", self.url)
        except HeadersTooLarge as error:
            raise HeadersTooLarge(headers_size) from error
        except PayloadTooLarge as error:
            raise PayloadTooLarge(size, None) from error
        return Stored(answer.stream, answer.seq, answer.duplicate)

    # -- core NATS

    async def send(
        self, subject: str, data: bytes = b"", *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send without waiting for anybody; kept while the connection is away, up to `PENDING_BYTES_MAX`."""
        try:
            await self._client.publish(subject, data, reply, dict(headers) if headers else None)
        except nats.errors.OutboundBufferLimitError as error:
            raise BrokerUnavailable(self.url, "the buffer of what waits for the connection is full") from error
        except nats.errors.ConnectionClosedError as error:
            raise BrokerUnavailable(self.url, self._last_error or "the connection is closed") from error

    async def request(self, subject: str, data: bytes = b"", *, timeout_s: float) -> bytes:
        """Return the first reply; `NotFound` where nobody listens, `BrokerUnavailable` after `timeout_s`."""
        return bytes((await self._request(subject, data, timeout_s)).data)

    async def _request(self, subject: str, data: bytes, timeout_s: float) -> Msg:
        try:
            reply = await self._ask(subject, data, None, timeout_s)
        except TimeoutError as error:
            raise BrokerUnavailable(self.url, f"no reply on {subject!r} within {timeout_s:g} s") from error
        if status_of(reply) == "503":
            raise NotFound("responder", subject)
        return reply

    async def subscribe(self, subject: str, callback: Callable[[Message], None]) -> Subscription:
        async def on_message(message: Msg) -> None:
            callback(Message(message.subject, message.headers or {}, message.data, message.reply))

        return Subscription(await self._client.subscribe(subject, cb=on_message))

    async def flush(self, timeout_s: float = 2.0) -> None:
        """Return when the server has seen all that was sent before; raise `BrokerUnavailable` otherwise."""
        if not self.is_connected:
            raise BrokerUnavailable(self.url, self._last_error or "the connection is away and being made again")
        try:
            await self._client.flush(timeout=max(1, int(timeout_s)))
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise BrokerUnavailable(self.url, f"flush: {error}") from error

    # -- JetStream API

    async def api(self, operation: str, payload: object = None, *, timeout_s: float = 5.0) -> dict[str, Any]:
        """Call `$JS.API.<operation>` and return its answer; `NotFound`, `Refused`, `BrokerUnavailable`."""
        data = b"" if payload is None else msgspec.json.encode(payload)
        reply = await self._request(f"$JS.API.{operation}", data, timeout_s)
        checked(reply, operation, self.url)
        answer: dict[str, Any] = msgspec.json.decode(reply.data)
        return answer

    async def last_message(self, stream: str, subject: str, *, timeout_s: float = 5.0) -> StoredMessage | None:
        """Return the newest message on that subject, or None."""
        return await self._direct(f"{stream}.{subject}", b"", timeout_s)

    async def message_at(self, stream: str, sequence: int, *, timeout_s: float = 5.0) -> StoredMessage | None:
        return await self._direct(stream, msgspec.json.encode({"seq": sequence}), timeout_s)

    async def _direct(self, what: str, payload: bytes, timeout_s: float) -> StoredMessage | None:
        try:
            reply = await self._request(f"$JS.API.DIRECT.GET.{what}", payload, timeout_s)
        except NotFound as error:
            raise BrokerUnavailable(
                self.url, f"nobody answers for {what!r} (no such stream, or it is being recovered)"
            ) from error
        status = status_of(reply)
        if status == "404":
            return None
        if status:
            raise Refused(f"read {what!r}", f"status {status} {(reply.headers or {}).get('Description', '')}")
        headers = dict(reply.headers or {})
        subject, sequence, stored_at = (
            headers.pop(name, "") for name in ("Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp")
        )
        headers.pop("Nats-Stream", None)
        return StoredMessage(subject, headers, bytes(reply.data), int(sequence), stored_at)

    # -- inside

    async def _ask(self, subject: str, data: bytes, headers: dict[str, str] | None, timeout_s: float) -> Msg:
        """Publish with a reply inbox and return the reply; `TimeoutError`, `BrokerUnavailable`,
        `PublishUnconfirmed`, `NotAllowed`.
        """
        if not self.is_connected:
            raise BrokerUnavailable(self.url, self._last_error or "the connection is away and being made again")
        token = str(next(self._tokens))
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[token] = (subject, future)
        try:
            try:
                await self._client.publish(subject, data, f"{self._inbox}.{token}", headers)
            except nats.errors.BadSubjectError as error:
                raise InvalidSubject(subject, "the client refuses it") from error
            except nats.errors.MaxPayloadError as error:
                raise PayloadTooLarge(len(data), self.payload_bytes_max) from error
            except nats.errors.Error as error:
                raise BrokerUnavailable(self.url, str(error)) from error
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            self._waiting.pop(token, None)

    async def _on_reply(self, message: Msg) -> None:
        waiting = self._waiting.get(message.subject.rsplit(".", 1)[1])
        if waiting is not None and not waiting[1].done():
            waiting[1].set_result(message)

    async def _on_error(self, error: Exception) -> None:
        self._last_error = str(error) or type(error).__name__
        text = self._last_error.lower()
        if "permissions violation for publish" in text:
            for subject, future in list(self._waiting.values()):
                if f'"{subject.lower()}"' in text and not future.done():
                    future.set_exception(NotAllowed(f"publish on {subject!r}", "this user may not"))
        log.debug("broker connection: %s", self._last_error)

    async def _on_disconnect(self) -> None:
        # Closing it ourselves ends here too.
        log.log(logging.DEBUG if self.is_closed else logging.INFO, "broker connection lost", extra={"url": self.url})
        for subject, future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(PublishUnconfirmed(subject, "the connection was lost"))

    async def _on_reconnect(self) -> None:
        log.info("broker connection made again", extra={"url": self.url})
        for callback in self._reconnected:
            callback()

    async def wait_closed(self) -> None:
        """Return when the broker has ended the connection for good, within `CLOSED_LOOK_S` of it."""
        while not self.is_closed:  # noqa: ASYNC110 - nats-py tells nobody
            await asyncio.sleep(CLOSED_LOOK_S)

    async def wait_connected(self, timeout_s: float) -> None:
        """Return when the connection is there; raise `BrokerUnavailable` after `timeout_s`."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        while not self.is_connected:
            if self.is_closed or loop.time() >= deadline_s:
                raise BrokerUnavailable(self.url, self._last_error or f"not connected after {timeout_s:g} s")
            await asyncio.sleep(0.02)


@asynccontextmanager
async def open_connection(config: BusConfig) -> AsyncIterator[Connection]:
    """Own one connection; on exit, flush and close within `config.close_s`.

    Raises `BrokerUnavailable` if no server takes us within `config.connect_s`.
    """
    client = _Client()
    connection = Connection(client, config)
    credentials = RawCredentials(config.credentials_text) if config.credentials_text else config.credentials
    refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def on_error(error: Exception) -> None:
        await connection._on_error(error)
        if isinstance(error, nats.errors.AuthorizationError) and not refused.done():
            refused.set_result("this user is not let in: are these the credentials of this broker?")

    connecting = asyncio.ensure_future(
        client.connect(
            servers=[url.strip() for url in config.url.split(",")],
            name=config.name,
            user_credentials=credentials,
            inbox_prefix=config.inbox_prefix,
            error_cb=on_error,
            disconnected_cb=connection._on_disconnect,
            reconnected_cb=connection._on_reconnect,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_S,
            connect_timeout=max(1, int(config.connect_s)),
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=2,
            pending_size=PENDING_BYTES_MAX,
            # Subjects are checked by `bus.core.subjects`; the library's check is a regular expression for each message.
            skip_subject_validation=True,
        )
    )
    try:
        await asyncio.wait({connecting, refused}, timeout=config.connect_s, return_when=asyncio.FIRST_COMPLETED)
        if not connecting.done() or refused.done():
            reason = (
                refused.result() if refused.done() else connection._last_error or f"silent for {config.connect_s:g} s"
            )
            raise BrokerUnavailable(config.url, reason)
        _raise_first_contact(connecting, config)
        await client.subscribe(f"{connection._inbox}.*", cb=connection._on_reply)
        yield connection
    finally:
        refused.cancel()
        connecting.cancel()
        await asyncio.wait({connecting}, timeout=config.close_s)
        await _close(client, config.close_s)


def _raise_first_contact(connecting: "asyncio.Future[None]", config: BusConfig) -> None:
    error = connecting.exception()
    if isinstance(error, FileNotFoundError | PermissionError):
        raise BrokerUnavailable(config.url, f"the credentials cannot be read: {error}") from error
    if isinstance(error, Exception) and not isinstance(error, BusError):
        raise BrokerUnavailable(config.url, f"{type(error).__name__}: {error}") from error
    if error is not None:
        raise error


async def _close(client: Client, close_s: float) -> None:
    """Flush and close in a task of its own: a cancelled caller must not leave sockets behind."""

    async def close() -> None:
        if client.is_connected:
            with suppress(nats.errors.Error, TimeoutError, OSError):
                await client.flush(timeout=max(1, int(close_s)))
        with suppress(nats.errors.Error, OSError):
            await client.close()

    closing = asyncio.ensure_future(close())
    done, _ = await asyncio.wait({closing}, timeout=close_s + 1)
    if not done:
        closing.cancel()
    elif not closing.cancelled():
        closing.exception()
