"""A parked pull on one durable consumer, and the ways to settle what it brings.

The pull request lives on the server and is lost with its connection, so it is made again after a reconnect, at its
end, and when the server has not told of its end in time. A request is one message with a batch size; data
messages come with their original subject and do not say which request they answer, so the server's order is used:
the oldest request is served first. Status messages come on the request's own token and end exactly that one.

A request cannot be taken back. Unsubscribing its inbox does not do it: the server counts what it has put into its
queue as delivered, and then finds nobody to send it to (4 of 54 in one try on 2.15.1). So requests are short, and a
fence waits for their ends, which come behind all that they brought.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress

import msgspec
import nats.errors
from msgspec import Struct

from bus.core.errors import BrokerUnavailable, BusError, NotFound, PublishUnconfirmed
from bus.jetstream.connection import Connection, Message
from bus.jetstream.delivery import Delivery, delivery_of

log = logging.getLogger(__name__)

PULL_EXPIRES_S = 2.0
"""How long a parked request stands: the longest time that a fence takes. An idle worker says two words in that time."""
END_OVERDUE_S = 2.0
"""How long after that the server's word of its end may take. Later, the request is taken for lost."""
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 1.0
UNSUBSCRIBE_S = 5.0
_BENIGN = ("batch completed", "request timeout", "message size exceeds", "leadership change", "server shutdown")


class _Request(Struct):
    left: int
    """Deliveries that it may still bring."""
    overdue_s: float
    """When it is taken for lost, on the loop's clock."""


class PullConsumer:
    """Use `open_pull`."""

    def __init__(
        self,
        connection: Connection,
        stream: str,
        consumer: str,
        on_delivery: Callable[[Delivery], None],
        on_gone: Callable[[BusError], None],
    ) -> None:
        self._connection = connection
        self._next_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._consumer = consumer
        self._on_delivery = on_delivery
        self._on_gone = on_gone
        self._inbox = connection.new_inbox()
        self._tokens = itertools.count(1)
        self._requests: dict[str, _Request] = {}  # by token, oldest first
        self._wanted = 0
        self._is_fenced = False
        self._retry_s = RETRY_FIRST_S
        self._retry_at_s = 0.0
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()

    def want(self, deliveries: int) -> None:
        """Keep up to that many deliveries asked for. What is asked for already cannot be taken back, except by
        `fence`.
        """
        self._wanted = deliveries
        if deliveries > self.asked:
            self._changed.set()

    @property
    def asked(self) -> int:
        """Deliveries that open requests may still bring."""
        return sum(request.left for request in self._requests.values())

    async def fence(self) -> None:
        """Ask for no more, for good; whatever is asked for already has been handed over, or never comes, when this
        returns: within `PULL_EXPIRES_S`, a little more where the server is slow.
        """
        self._is_fenced = True
        self._wanted = 0
        self._changed.set()
        while self._requests and self._connection.is_connected:
            self._drop_overdue()
            self._ended.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(END_OVERDUE_S / 4):
                    await self._ended.wait()
        with suppress(nats.errors.Error, TimeoutError):
            # `drain` of a callback subscription: unsubscribe, flush, and wait until the callback has had everything.
            await asyncio.wait_for(asyncio.shield(self._subscription._subscription.drain()), UNSUBSCRIBE_S)

    # -- settling

    async def ack(self, delivery: Delivery, timeout_s: float = 5.0) -> None:
        """Return when the broker has recorded the acknowledgement; `PublishUnconfirmed`, `BrokerUnavailable`
        otherwise.
        """
        await self._settle(delivery, b"+ACK", timeout_s)

    async def retry_after(self, delivery: Delivery, delay_s: float, timeout_s: float = 5.0) -> None:
        """Give it back, to be delivered again after `delay_s`. Never without a delay: a bare NAK comes back at
        once, for ever.
        """
        body = b"-NAK " + msgspec.json.encode({"delay": max(1, int(delay_s * 1_000_000_000))})
        await self._settle(delivery, body, timeout_s)

    async def terminate(self, delivery: Delivery, reason: str, timeout_s: float = 5.0) -> None:
        """Have it never delivered again; the reason travels in the broker's advisory."""
        await self._settle(delivery, b"+TERM " + " ".join(reason.split())[:200].encode(), timeout_s)

    async def extend(self, deliveries: Iterable[Delivery]) -> None:
        """Begin the lease of each anew. Raises `BrokerUnavailable` where that cannot even be sent."""
        if not self._connection.is_connected:
            raise BrokerUnavailable(self._connection.url, "leases are not renewed while the connection is away")
        for delivery in deliveries:
            await self._connection.send(delivery.reply, b"+WPI")

    async def _settle(self, delivery: Delivery, body: bytes, timeout_s: float) -> None:
        try:
            await self._connection.request(delivery.reply, body, timeout_s=timeout_s)
        except NotFound as error:
            raise PublishUnconfirmed(delivery.reply, "the consumer does not answer") from error

    # -- asking

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_fenced:
            now_s = loop.time()
            if self._connection.is_connected:
                self._drop_overdue()
            missing = self._wanted - self.asked
            # Refill at half: one request for several deliveries, and never a request for each.
            is_due = missing > 0 and self.asked <= self._wanted // 2
            if is_due and now_s >= self._retry_at_s and self._connection.is_connected:
                await self._ask(missing)
            self._changed.clear()
            wait_s = END_OVERDUE_S if not is_due else max(0.02, self._retry_at_s - now_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()

    async def _ask(self, batch: int) -> None:
        token = str(next(self._tokens))
        overdue_s = asyncio.get_running_loop().time() + PULL_EXPIRES_S + END_OVERDUE_S
        self._requests[token] = _Request(batch, overdue_s)
        request = {"batch": batch, "expires": int(PULL_EXPIRES_S * 1_000_000_000)}
        try:
            await self._connection.send(
                self._next_subject, msgspec.json.encode(request), reply=f"{self._inbox}.{token}"
            )
        except BrokerUnavailable:
            self._end(token)

    def _drop_overdue(self) -> None:
        now_s = asyncio.get_running_loop().time()
        for token in [token for token, request in self._requests.items() if now_s >= request.overdue_s]:
            log.warning("pull request lost", extra={"consumer": self._consumer})
            self._end(token)

    def _end(self, token: str) -> None:
        self._requests.pop(token, None)
        self._ended.set()

    def _on_message(self, message: Message) -> None:
        delivery = delivery_of(message)
        if delivery is None:
            self._on_status(message)
            return
        self._retry_s = RETRY_FIRST_S
        oldest = next(iter(self._requests), None)
        if oldest is not None:
            self._requests[oldest].left -= 1
        self._on_delivery(delivery)
        if oldest is not None and self._requests[oldest].left <= 0:
            self._end(oldest)

    def _on_status(self, message: Message) -> None:
        status = message.headers.get("Status", "")
        description = message.headers.get("Description", "").lower()
        self._end(message.subject.rsplit(".", 1)[1])
        if status == "409" and ("consumer deleted" in description or "push based" in description):
            self._is_fenced = True
            self._changed.set()
            self._on_gone(NotFound("consumer", self._consumer))
            return
        if status != "408" and not any(text in description for text in _BENIGN):
            # 503: nobody answers for the consumer, as while a restarted server recovers it. Anything else: named in the log.
            log.info("pull refused: %s %s", status, description, extra={"consumer": self._consumer})
            self._retry_at_s = asyncio.get_running_loop().time() + self._retry_s
            self._retry_s = min(RETRY_MAX_S, self._retry_s * 2)
        self._changed.set()

    def _on_reconnect(self) -> None:
        self._requests.clear()
        self._ended.set()
        self._retry_at_s, self._retry_s = 0.0, RETRY_FIRST_S
        self._changed.set()

    async def _open(self) -> None:
        self._subscription = await self._connection.subscribe(f"{self._inbox}.*", self._on_message)
        self._connection.on_reconnect(self._on_reconnect)


@asynccontextmanager
async def open_pull(
    connection: Connection,
    stream: str,
    consumer: str,
    on_delivery: Callable[[Delivery], None],
    on_gone: Callable[[BusError], None],
) -> AsyncIterator[PullConsumer]:
    """Own one pull consumer; `on_delivery` runs on the loop for each delivery, `on_gone` once if the consumer was
    deleted.
    """
    pull = PullConsumer(connection, stream, consumer, on_delivery, on_gone)
    await pull._open()
    running = asyncio.ensure_future(pull._run())
    try:
        yield pull
    finally:
        running.cancel()
        await asyncio.wait({running})
        if not pull._is_fenced:
            await pull._subscription.unsubscribe()
