"""Who may run beside whom: ordinary calls together, a call that has killed before alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Many may be inside, or one alone. Whoever wants to be alone comes next: no newcomer passes it."""

    def __init__(self) -> None:
        self._inside = 0
        self._is_alone = False
        self._alone_waiting = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        if self._is_alone or self._alone_waiting:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._is_alone and not self._alone_waiting)
                self._inside += 1
        else:
            self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if self._alone_waiting:
                await self._tell()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        self._alone_waiting += 1
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._inside and not self._is_alone)
                self._is_alone = True
        finally:
            self._alone_waiting -= 1
        try:
            yield
        finally:
            self._is_alone = False
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
