"""Who may run beside whom: ordinary calls together, a call that may kill its worker alone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Gate:
    """Many may be inside, or one alone. While one is alone, or waits for it, nobody else is let in: nobody waits."""

    def __init__(self) -> None:
        self._inside = 0
        self._is_taken = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def is_free(self) -> bool:
        """Whether one more would be let in."""
        return not self._is_taken

    @asynccontextmanager
    async def enter(self, *, alone: bool, on_alone: Callable[[], None]) -> AsyncIterator[bool]:
        """Yield whether we are inside; one that wants to be alone is, once all others have left.

        `on_alone` is called when `is_free` changes.
        """
        if self._is_taken:
            yield False
            return
        if alone:
            self._is_taken = True
            on_alone()
            try:
                await self._empty.wait()
                yield True
            finally:
                self._is_taken = False
                on_alone()
            return
        self._inside += 1
        self._empty.clear()
        try:
            yield True
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()
