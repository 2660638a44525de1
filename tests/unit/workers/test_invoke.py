"""How a call ended, whatever the handler does."""

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from bus.core.event import Event
from workers.errors import Reject, RetryLater
from workers.invoke import Call, Invoker

EVENT = Event(subject="events.a", id="1", source="tests", type="a", data=b'{"n":1}')


async def called(handler: Callable[..., Any], timeout_s: float = 5.0) -> Call:
    return await Invoker(handler, 2, timeout_s).call(EVENT)


@pytest.mark.parametrize(
    ("value", "result", "content_type"),
    [
        (None, None, ""),
        ({"a": 1}, b'{"a":1}', "application/json"),
        ("text", b"text", "text/plain; charset=utf-8"),
        (b"\x00", b"\x00", "application/octet-stream"),
    ],
)
async def test_what_a_handler_returns_is_encoded(value: object, result: bytes | None, content_type: str) -> None:
    call = await called(lambda event: value)

    assert (call.ended, call.result, call.content_type) == ("succeeded", result, content_type)


async def test_a_value_that_cannot_be_encoded_is_the_handlers_failure() -> None:
    call = await called(lambda event: object())

    assert call.ended == "failed"
    assert "object" in call.error


async def test_an_object_with_a_coroutine_call_runs_on_the_loop() -> None:
    class Handler:
        async def __call__(self, event: Event) -> int:
            return 7

    assert (await called(Handler())).result == b"7"


async def test_an_exception_is_told_with_the_authors_frames_only() -> None:
    async def handler(event: Event) -> None:
        raise ValueError("no such order")

    call = await called(handler)

    assert (call.ended, call.error) == ("failed", "ValueError: no such order")
    assert "test_invoke.py" in call.traceback
    assert "workers/invoke.py" not in call.traceback


def leave_the_program(event: Event) -> None:
    sys.exit(3)


def interrupt(event: Event) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("handler", "error"), [(leave_the_program, "SystemExit: 3"), (interrupt, "KeyboardInterrupt")])
async def test_leaving_from_a_handler_is_its_failure_and_not_the_workers_end(
    handler: Callable[..., Any], error: str
) -> None:
    call = await called(handler)

    assert (call.ended, call.error) == ("failed", error)


async def test_a_coroutine_that_overruns_is_cancelled_and_a_thread_is_abandoned() -> None:
    async def slow(event: Event) -> None:
        await asyncio.sleep(5)

    on_loop = await called(slow, 0.05)
    in_thread = await called(lambda event: time.sleep(0.3), 0.05)

    assert (on_loop.ended, on_loop.is_abandoned) == ("timed-out", False)
    assert (in_thread.ended, in_thread.is_abandoned) == ("timed-out", True)


async def test_a_handlers_own_timeout_error_is_a_failure() -> None:
    async def handler(event: Event) -> None:
        raise TimeoutError("the shop is closed")

    assert (await called(handler)).error == "TimeoutError: the shop is closed"


async def test_control_flow_is_told_apart_from_failures() -> None:
    def reject(event: Event) -> None:
        raise Reject("not ours")

    def later(event: Event) -> None:
        raise RetryLater(7.5)

    assert (await called(reject)).ended == "rejected"
    assert ((await called(later)).ended, (await called(later)).after_s) == ("retry-later", 7.5)


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_cancellation_that_nobody_asked_for_is_the_handlers_failure(is_async: bool) -> None:
    async def on_loop(event: Event) -> None:
        other = asyncio.ensure_future(asyncio.sleep(60))
        other.cancel()
        await other

    def in_thread(event: Event) -> None:
        raise asyncio.CancelledError

    call = await called(on_loop if is_async else in_thread)

    assert (call.ended, call.error) == ("failed", "asyncio.exceptions.CancelledError")


async def test_a_handler_that_cancels_its_own_task_has_failed_and_harms_nobody_else() -> None:
    async def handler(event: Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60)

    assert (await called(handler)).ended == "failed"
    await asyncio.sleep(0)  # no cancellation is left over for whatever comes next in this task


async def test_an_interruption_is_raised() -> None:
    async def handler(event: Event) -> None:
        await asyncio.sleep(60)

    invoker = Invoker(handler, 1, 60)
    calling = asyncio.ensure_future(invoker.call(EVENT))
    await asyncio.sleep(0)
    invoker.is_interrupted = True
    calling.cancel()

    with pytest.raises(asyncio.CancelledError):
        await calling


async def test_a_thread_that_returns_a_coroutine_has_it_run_under_the_timeout() -> None:
    async def later() -> int:
        await asyncio.sleep(60)
        return 1

    call = await called(lambda event: later(), timeout_s=0.05)

    assert call.ended == "timed-out"
