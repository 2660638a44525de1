"""One function and its real worker processes on a real broker: what is stored, what is tried again, what dies and how."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from bus.core.assignment import EXIT_FUNCTION_UNUSABLE, DeliveryPolicy
from bus.core.attempts import Attempt, History
from bus.core.event import Event
from bus.core.reports import FENCE
from tests.broker import Broker, running_broker
from tests.worker import SUBJECT, function_on

pytestmark = pytest.mark.integration

ECHO = """
async def handle(event):
    return {"n": event.json()["n"]}
"""


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with running_broker(tmp_path / "nats") as running:
        yield running


async def test_results_are_stored_and_events_acknowledged(broker: Broker, tmp_path: Path) -> None:
    async with function_on(broker, tmp_path, ECHO) as function:
        function.start_worker()
        await function.publish(50)
        await function.wait_settled()
        results = await function.results()

    assert {id_: value for id_, (value, _) in results.items()} == {f"e{n}": b'{"n":%d}' % n for n in range(1, 51)}
    _, headers = results["e1"]
    assert (headers["Nodeless-Worker"], headers["Nodeless-Node"], headers["Nodeless-Attempt"]) == (
        "worker-0",
        "tests",
        "1",
    )
    assert headers["Nodeless-Started-At"] <= headers["Nodeless-Finished-At"]


async def test_a_synchronous_handler_runs_beside_others_in_threads(broker: Broker, tmp_path: Path) -> None:
    source = """
import sys, threading
both = threading.Barrier(2, timeout=15)

def handle(event):
    both.wait()  # passes only if two calls run at once
    sys.stdout.write(f"printed {event.id}\\n")
"""
    async with function_on(broker, tmp_path, source) as function:
        worker = function.start_worker()
        await function.publish(2)
        await function.wait_settled()
        dead, results = await function.dead(), await function.results()

    assert not dead
    assert not results  # nothing returned, nothing stored
    assert "printed e1" in worker.log
    assert "printed e2" in worker.log


async def test_a_failing_event_is_tried_again_and_then_dead_with_its_history(broker: Broker, tmp_path: Path) -> None:
    source = """
async def handle(event):
    raise ValueError(f"no stock for {event.id} \u2603")
"""
    async with function_on(broker, tmp_path, source) as function:
        function.start_worker()
        await function.publish()
        await function.wait_settled()
        (dead,) = await function.dead()

    assert dead.data == b'{"n":1}'
    assert dead.headers["ce-id"] == "e1"
    assert (dead.letter.reason, dead.letter.subject, dead.letter.sequence) == ("attempts-exhausted", SUBJECT, 1)
    assert [(each.delivery, each.outcome) for each in dead.letter.history] == [
        (1, "failed"),
        (2, "failed"),
        (3, "failed"),
    ]
    assert {each.error for each in dead.letter.history} == {"ValueError: no stock for e1 \u2603"}
    assert "line 3, in handle" in dead.letter.history[0].traceback
    assert {each.worker for each in dead.letter.history} == {"worker-0"}


async def test_a_rejected_event_is_dead_at_once_and_one_asked_for_later_comes_later(
    broker: Broker, tmp_path: Path
) -> None:
    source = """
from nodeless import Reject, RetryLater
seen = set()

async def handle(event):
    if event.id == "e1":
        raise Reject("not an order of ours")
    if event.id not in seen:
        seen.add(event.id)
        raise RetryLater(0.3)
    return "second time"
"""
    async with function_on(broker, tmp_path, source) as function:
        function.start_worker()
        await function.publish(2)
        await function.wait_settled()
        dead, results = await function.dead(), await function.results()

    assert [(each.letter.reason, each.headers["ce-id"], len(each.letter.history)) for each in dead] == [
        ("rejected", "e1", 1)
    ]
    assert results["e2"][0] == b"second time"
    assert results["e2"][1]["Nodeless-Attempt"] == "2"


async def test_a_call_that_overruns_is_tried_again(broker: Broker, tmp_path: Path) -> None:
    source = """
import asyncio
seen = set()

async def handle(event):
    if event.id not in seen:
        seen.add(event.id)
        await asyncio.sleep(60)
    return "in time"
"""
    policy = DeliveryPolicy(attempts=3, timeout_s=0.3, backoff_initial_s=0.05)
    async with function_on(broker, tmp_path, source, delivery=policy) as function:
        function.start_worker()
        await function.publish()
        await function.wait_settled()

        assert (await function.results())["e1"][0] == b"in time"


async def test_a_thread_that_overruns_is_abandoned_and_its_worker_leaves_to_be_replaced(
    broker: Broker, tmp_path: Path
) -> None:
    source = """
import pathlib, time

def handle(event):
    mark = pathlib.Path(__file__).parent.parent / "was-here"
    if not mark.exists():
        mark.touch()
        time.sleep(60)
    return "in time"
"""
    policy = DeliveryPolicy(attempts=3, timeout_s=0.3, backoff_initial_s=0.05)
    async with function_on(broker, tmp_path, source, delivery=policy) as function:
        first = function.start_worker()
        await function.publish()
        assert await first.wait() == 0
        function.start_worker()
        await function.wait_settled()

        assert (await function.results())["e1"][0] == b"in time"
        assert "has to be replaced" in first.log


async def test_an_undecodable_event_is_dead_with_the_field(broker: Broker, tmp_path: Path) -> None:
    async with function_on(broker, tmp_path, ECHO) as function:
        function.start_worker()
        await function.admin.store(SUBJECT, b"{}", {"ce-id": "x", "ce-source": "s", "ce-specversion": "1.0"})
        await function.wait_settled()
        (dead,) = await function.dead()

    assert dead.letter.reason == "undecodable"
    assert "type" in dead.letter.message


async def test_an_event_that_kills_its_workers_is_dead_and_takes_no_neighbour_with_it(
    broker: Broker, tmp_path: Path
) -> None:
    source = """
import asyncio, os, signal

async def handle(event):
    if event.id == "e3":
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(0.05)
    return event.id
"""
    async with function_on(broker, tmp_path, source, lease_s=1.0) as function:
        await function.publish(12)
        deaths = 0
        worker = function.start_worker()
        async with asyncio.timeout(60):
            while (state := await function.state()).pending or state.ack_pending:
                if worker.process.poll() is not None:
                    deaths += 1
                    worker = function.start_worker()
                await asyncio.sleep(0.05)
        (dead,) = await function.dead()
        results = await function.results()

    assert deaths == 3
    assert (dead.headers["ce-id"], dead.letter.reason) == ("e3", "worker-died")
    assert "3 attempts, 3 of them with the worker's death" in dead.letter.message
    assert set(results) == {f"e{n}" for n in range(1, 13)} - {"e3"}


async def test_a_killed_workers_event_comes_to_another_within_the_lease(broker: Broker, tmp_path: Path) -> None:
    source = """
import asyncio, pathlib

async def handle(event):
    mark = pathlib.Path(__file__).parent.parent / "was-here"
    if not mark.exists():
        mark.touch()
        print("began", flush=True)
        await asyncio.sleep(60)
    return "done"
"""
    async with function_on(broker, tmp_path, source) as function:
        first = function.start_worker()
        await function.publish()
        await first.wait_log("began")
        first.signal(signal.SIGKILL)
        function.start_worker()
        await function.wait_settled()

        assert (await function.results())["e1"][1]["Nodeless-Attempt"] == "2"


async def test_a_terminated_worker_finishes_what_it_has_in_hand(broker: Broker, tmp_path: Path) -> None:
    source = """
import asyncio

async def handle(event):
    print("began", flush=True)
    await asyncio.sleep(0.7)
    return "done"
"""
    async with function_on(broker, tmp_path, source) as function:
        worker = function.start_worker()
        await function.publish(3)
        await worker.wait_log("began", 3)
        worker.signal(signal.SIGTERM)
        status = await worker.wait()

        assert status == 0
        assert len(await function.results()) == 3
        assert (await function.state()).ack_pending == 0


async def test_a_coroutine_that_does_not_heed_its_timeout_has_its_worker_replaced(
    broker: Broker, tmp_path: Path
) -> None:
    source = """
import asyncio

async def handle(event):
    if event.id == "e1":
        print("stubborn", flush=True)
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass
    return event.id
"""
    policy = DeliveryPolicy(timeout_s=0.2, attempts=1)
    async with function_on(broker, tmp_path, source, delivery=policy) as function:
        worker = function.start_worker(grace_s=1)
        await function.publish(2)
        await worker.wait(timeout_s=25)
        function.start_worker(name="the-next")
        await function.wait_settled()
        dead, results = await function.dead(), await function.results()

    assert "a call goes on after its timeout" in worker.log
    assert worker.process.returncode == 0
    assert [letter.letter.reason for letter in dead] == ["worker-died"]
    assert set(results) == {"e2"}


async def test_a_handler_whose_own_cancellation_escapes_is_not_tried_without_end(
    broker: Broker, tmp_path: Path
) -> None:
    source = """
import asyncio

async def handle(event):
    raise asyncio.CancelledError
"""
    policy = DeliveryPolicy(attempts=2, backoff_initial_s=0.05, backoff_factor=1)
    async with function_on(broker, tmp_path, source, delivery=policy) as function:
        function.start_worker()
        await function.publish(1)
        await function.wait_settled()
        dead = await function.dead()

    assert [attempt.outcome for attempt in dead[0].letter.history] == ["failed", "failed"]


async def test_a_history_that_cannot_be_read_does_not_hold_its_event_for_ever(broker: Broker, tmp_path: Path) -> None:
    source = "from nodeless import RetryLater\n\nasync def handle(event):\n    raise RetryLater(1.5)\n"
    policy = DeliveryPolicy(attempts=2)
    async with function_on(broker, tmp_path, source, delivery=policy) as function:
        worker = function.start_worker()
        await function.publish(1)
        await function.wait_recorded(1)
        await function.admin.store(function.assignment.attempts_subject(1), b'{"attempts":"of another version"}')
        await function.wait_settled()
        dead = await function.dead()

    assert "history unreadable" in worker.log
    assert len(dead) == 1


async def test_a_history_that_somebody_else_has_written_is_not_overwritten(broker: Broker, tmp_path: Path) -> None:
    marker = tmp_path / "go"
    source = f"""
import asyncio, pathlib

async def handle(event):
    print("begun", flush=True)
    while not pathlib.Path({str(marker)!r}).exists():
        await asyncio.sleep(0.02)
    raise ValueError("no")
"""
    async with function_on(broker, tmp_path, source) as function:
        worker = function.start_worker()
        await function.publish(1)
        await worker.wait_log("begun")
        theirs = History(attempts=(Attempt(delivery=1, outcome="failed", worker="another", error="of another"),))
        subject = function.assignment.attempts_subject(1)
        await function.admin.store(subject, msgspec.json.encode(theirs))
        marker.touch()
        await worker.wait_log("another worker has written the history")
        await function.wait_settled()
        dead = await function.dead()

    history = dead[0].letter.history
    assert [(each.delivery, each.worker) for each in history] == [(1, "another"), (2, "worker-0"), (3, "worker-0")]


async def test_a_result_that_was_stored_by_a_worker_that_died_before_its_acknowledgement_stays(
    broker: Broker, tmp_path: Path
) -> None:
    async with function_on(broker, tmp_path, "async def handle(event):\n    return 'second'\n") as function:
        event = Event(
            subject=SUBJECT, id="e1", source="tests", type="orders.created",
            datacontenttype="application/json", data=b'{"n":1}',
        )  # fmt: skip
        subject = f"{function.assignment.results_prefix}.{event.digest}"
        await function.admin.store(subject, b"first", {"Nodeless-Event-Id": "e1"}, expected_last_subject_sequence=0)
        worker = function.start_worker()
        await function.publish(1)
        await function.wait_settled()
        results, dead = await function.results(), await function.dead()

    assert {id_: value for id_, (value, _) in results.items()} == {"e1": b"first"}
    assert dead == []
    assert "a result is stored already" in worker.log


async def test_a_call_longer_than_the_lease_survives_a_broker_that_is_away_for_longer_than_that(
    broker: Broker, tmp_path: Path
) -> None:
    source = """
import asyncio

async def handle(event):
    print("begun", flush=True)
    await asyncio.sleep(6)
    return event.id
"""
    async with function_on(broker, tmp_path, source, lease_s=2.0) as function:
        worker = function.start_worker()
        await function.publish(2)
        await worker.wait_log("begun", count=2)
        broker.kill()
        await asyncio.sleep(3)
        await broker.start()
        await function.wait_settled(60)
        results, dead = await function.results(), await function.dead()

    assert {id_: value for id_, (value, _) in results.items()} == {"e1": b"e1", "e2": b"e2"}
    assert dead == []


async def test_a_loop_blocked_beyond_the_lease_doubles_no_result_and_takes_nobody_elses_delivery(
    broker: Broker, tmp_path: Path
) -> None:
    marker = tmp_path / "blocked"
    source = f"""
import pathlib, time

async def handle(event):
    marker = pathlib.Path({str(marker)!r})
    if event.id == "e1" and not marker.exists():
        marker.touch()
        time.sleep(9)
        raise ValueError("told too late: nobody else's call may end by it")
    return event.id
"""
    async with function_on(broker, tmp_path, source) as function:
        blocked = function.start_worker()
        await function.publish(1)
        async with asyncio.timeout(10):
            while not marker.exists():
                await asyncio.sleep(0.02)
        function.start_worker(name="the-other")
        await blocked.wait_log("delivery lost")
        await function.publish(5, first=2)
        await function.wait_settled()
        results, dead = await function.results(), await function.dead()

    assert {id_: value for id_, (value, _) in results.items()} == {f"e{n}": b"e%d" % n for n in range(1, 7)}
    assert dead == []


async def test_a_call_interrupted_after_the_grace_period_costs_no_attempt(broker: Broker, tmp_path: Path) -> None:
    source = """
import asyncio, pathlib

async def handle(event):
    mark = pathlib.Path(__file__).parent.parent / "was-here"
    if not mark.exists():
        mark.touch()
        print("began", flush=True)
        await asyncio.sleep(60)
    return "done"
"""
    async with function_on(broker, tmp_path, source, delivery=DeliveryPolicy(attempts=1)) as function:
        first = function.start_worker(grace_s=0.2)
        await function.publish()
        await first.wait_log("began")
        first.signal(signal.SIGTERM)
        assert await first.wait() == 0
        function.start_worker()
        await function.wait_settled()

        assert not await function.dead()
        assert (await function.results())["e1"][1]["Nodeless-Attempt"] == "1"


async def test_a_fenced_worker_runs_what_it_has_says_so_and_pulls_no_more(broker: Broker, tmp_path: Path) -> None:
    source = """
import asyncio

async def handle(event):
    print("began", flush=True)
    await asyncio.sleep(0.5)
    return "done"
"""
    async with function_on(broker, tmp_path, source) as function:
        worker = function.start_worker()
        await function.publish(2)
        await worker.wait_log("began", 2)
        fenced = asyncio.ensure_future(function.report_where(worker, "fenced"))
        await asyncio.sleep(0)
        await function.admin.send(function.assignment.control_subject(worker.uid), FENCE)
        report = await fenced
        assert (report.held, report.busy, report.handled) == (0, 0, 2)

        await function.publish(3, first=10)
        await asyncio.sleep(0.5)
        state = await function.state()

        assert (state.pending, state.ack_pending, state.waiting) == (3, 0, 0)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_package\ndef handle(event): ...\n", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise RuntimeError('no database')\n", "RuntimeError: no database"),
        ("def other(event): ...\n", "'handle' does not exist"),
        ("handle = 3\n", "'handle' is not callable"),
        ("def handle(event:\n", "SyntaxError"),
    ],
)
async def test_an_unusable_function_says_why_and_its_events_wait(
    broker: Broker, tmp_path: Path, source: str, reason: str
) -> None:
    async with function_on(broker, tmp_path, source) as function:
        await function.publish()
        worker = function.start_worker()

        assert await worker.wait() == EXIT_FUNCTION_UNUSABLE
        assert reason in worker.termination
        assert (await function.state()).pending == 1


async def test_a_broker_killed_in_the_middle_loses_and_doubles_nothing(broker: Broker, tmp_path: Path) -> None:
    async with function_on(broker, tmp_path, ECHO) as function:
        function.start_worker()
        function.start_worker()
        await function.publish(200)
        await broker.restart()
        await function.admin.wait_connected(20)
        await function.publish(100, first=201)
        await function.wait_settled(60)
        results = await function.results()

    assert set(results) == {f"e{n}" for n in range(1, 301)}
    assert not any(headers["Nodeless-Attempt"] == "0" for _, headers in results.values())
