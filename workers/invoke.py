"""Run a handler once for one event, and say how it went.

Coroutine functions run on the loop under a timeout. Others run in threads; a thread cannot be stopped, so one that
overruns is abandoned, and its worker says that it has to be replaced. So it does for a coroutine that goes on after it
was cancelled.
"""

import asyncio
import inspect
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from msgspec import Struct

from bus.core.event import Event
from bus.core.settlement import Ended
from workers.errors import Reject, RetryLater

TRACEBACK_CHARACTERS_MAX = 16 * 1024
HEED_S = 5.0
"""How long after its timeout a coroutine may take to leave. [seconds]"""


class Call(Struct, frozen=True, kw_only=True):
    """How one call ended."""

    ended: Ended
    result: bytes | None = None
    """What the handler returned, encoded; None where it returned nothing."""
    content_type: str = ""
    error: str = ""
    """`Type: message`."""
    traceback: str = ""
    after_s: float | None = None
    is_abandoned: bool = False
    """The call goes on in a thread that nobody waits for."""


class Invoker:
    """One handler and the threads it may use."""

    def __init__(self, handler: Callable[..., Any], concurrency: int, timeout_s: float) -> None:
        self._handler = handler
        self._timeout_s = timeout_s
        self.is_interrupted = False
        """Set by who cancels calls: a cancellation that nobody asked for is the handler's own."""
        self.on_unheeded: Callable[[], None] = lambda: None
        """Called when a call goes on after it was cancelled."""
        # An object with `async def __call__` is a coroutine function by its method only.
        method = getattr(type(handler), "__call__", None)  # noqa: B004 - the method itself is wanted
        self._is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(method)
        self._threads = None if self._is_async else ThreadPoolExecutor(concurrency, thread_name_prefix="handler")

    async def call(self, event: Event) -> Call:
        """Run the handler; never raises for what the handler does. Cancelling it, after `is_interrupted` was set, is an
        interruption, which is raised.
        """
        try:
            value = await (self._on_loop(event) if self._is_async else self._in_thread(event))
            return _succeeded(value)
        except _TimedOut as error:
            return Call(ended="timed-out", error=str(error), is_abandoned=not self._is_async)
        except RetryLater as error:
            return Call(ended="retry-later", error=f"RetryLater: {error}", after_s=error.after_s)
        except Reject as error:
            return Call(ended="rejected", error=f"Reject: {error}")
        except BaseException as error:  # sys.exit in a handler is its failure, not the worker's end
            if self.is_interrupted and isinstance(error, asyncio.CancelledError):
                raise
            return Call(ended="failed", error=_one_line(error), traceback=_traceback(error))

    async def _on_loop(self, event: Event) -> object:
        return await self._within_timeout(self._handler(event))

    async def _within_timeout(self, awaitable: Awaitable[object]) -> object:
        unheeded = asyncio.get_running_loop().call_later(self._timeout_s + HEED_S, self.on_unheeded)
        deadline = asyncio.timeout(self._timeout_s)
        try:
            async with deadline:
                return await awaitable
        except TimeoutError as error:
            if deadline.expired():
                raise _TimedOut(self._timeout_s) from error
            raise  # the handler's own
        finally:
            unheeded.cancel()

    async def _in_thread(self, event: Event) -> object:
        running = asyncio.get_running_loop().run_in_executor(self._threads, _contained, self._handler, event)
        done, _ = await asyncio.wait({running}, timeout=self._timeout_s)
        if not done:
            raise _TimedOut(self._timeout_s)
        value, error = running.result()
        if error is not None:
            raise error
        if inspect.isawaitable(value):
            return await self._within_timeout(value)
        return value


class _TimedOut(Exception):
    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the call took longer than its timeout of {timeout_s:g} s")


def _contained(handler: Callable[..., Any], event: Event) -> tuple[object, BaseException | None]:
    """Run in a thread; hand exceptions over as values: a SystemExit must not end the executor's thread."""
    try:
        return handler(event), None
    except BaseException as error:
        return None, error


def _succeeded(value: object) -> Call:
    if value is None:
        return Call(ended="succeeded")
    if isinstance(value, bytes | bytearray | memoryview):
        return Call(ended="succeeded", result=bytes(value), content_type="application/octet-stream")
    if isinstance(value, str):
        return Call(ended="succeeded", result=value.encode(), content_type="text/plain; charset=utf-8")
    return Call(ended="succeeded", result=msgspec.json.encode(value), content_type="application/json")


def _one_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()[:1024]


def _traceback(error: BaseException) -> str:
    """Return the traceback without the frames of this module: the author wants to see theirs."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    text = "".join(traceback.format_exception(type(error), error, frames))
    return text[-TRACEBACK_CHARACTERS_MAX:]
