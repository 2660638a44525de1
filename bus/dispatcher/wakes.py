"""Wake signals for sleeping functions: one core subscription for each distinct pattern, shared.

The broker republishes the headers of each stored event below `wake.`. A signal says only that there is something: it is
handed to every function that waits on the pattern, and what to do is decided there.
"""

from collections.abc import Callable

import anyio

from bus.core.routing import listeners_of, subscription_changes
from bus.core.subjects import wake_subject
from bus.jetstream.connection import Connection, Message, Subscription


class WakeSignals:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._listeners: dict[str, tuple[str, ...]] = {}
        self._callbacks: dict[str, Callable[[], None]] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._lock = anyio.Lock()

    @property
    def patterns(self) -> tuple[str, ...]:
        """What is subscribed now."""
        return tuple(self._subscriptions)

    async def listen(self, listener: str, patterns: tuple[str, ...], on_signal: Callable[[], None]) -> None:
        """Have `on_signal` called for each event stored on the patterns after this returns.

        Raises `BrokerUnavailable` where the broker has not confirmed that; the subscriptions stay then, and are in place
        when the connection is back.
        """
        self._listeners[listener] = patterns
        self._callbacks[listener] = on_signal
        await self.settle()
        await self._connection.flush()

    def forget(self, listener: str) -> None:
        """Call it no more; `settle` gives up what nobody waits for."""
        self._listeners.pop(listener, None)
        self._callbacks.pop(listener, None)

    async def settle(self) -> None:
        """Subscribe what somebody waits for, and nothing else."""
        async with self._lock:
            changes = subscription_changes(self._listeners, self._subscriptions)
            for pattern in changes.open:
                self._subscriptions[pattern] = await self._connection.subscribe(
                    wake_subject(pattern), self._handler_of(pattern)
                )
            for pattern in changes.close:
                await self._subscriptions.pop(pattern).unsubscribe()

    def _handler_of(self, pattern: str) -> Callable[[Message], None]:
        def on_message(_: Message) -> None:
            for listener in listeners_of(self._listeners, pattern):
                self._callbacks[listener]()

        return on_message
