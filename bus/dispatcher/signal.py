"""A flag that wakes one task: set any number of times before it looks, seen once."""

import asyncio
from contextlib import suppress


class Signal:
    """For one waiter. `set` runs on the event loop and returns at once."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def set(self) -> None:
        self._event.set()

    def set_within(self, seconds: float) -> None:
        """Set it then, at the latest; for what comes in bursts and need not be seen at once."""
        if self._timer is None and not self._event.is_set():
            self._timer = asyncio.get_running_loop().call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._event.set()

    async def wait(self, seconds: float | None = None) -> None:
        """Return when it is set, or after so many seconds; it is clear then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
