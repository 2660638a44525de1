"""Decisions about workers, and the views of demand, starts and signals they are made from."""

from typing import Any

import pytest
from msgspec.structs import replace

from bus.core.demand import START_S_MAX, Demand, Worker, demand_of, held_by, is_doubtful
from bus.core.reports import REPORT_EXPIRY_S, WorkerReport
from bus.core.routing import listeners_of, subscription_changes
from bus.core.scaling import FENCE_AGAIN_S, SILENT_S_MAX, Decision, ScalingPolicy, decide
from bus.core.starts import BACKOFF_MAX_S, Starts, after_failure

NOW_S = 1000.0
POLICY = ScalingPolicy(min=0, max=4, concurrency=10, idle_s=30.0)


def report(*, held: int = 0, idle_s: float = 0.0, state: str = "running", **others: Any) -> WorkerReport:
    values: dict[str, Any] = {
        "worker": "u", "pod": "p", "version": "v1", "concurrency": 10, "pending": 0, "service_s": 0.0, "handled": 0, "failed": 0
    }  # fmt: skip
    return WorkerReport(**values | {"held": held, "busy": held, "idle_s": idle_s, "state": state} | others)


def pod(ordinal: int, **others: Any) -> Worker:
    values: dict[str, Any] = {"uid": f"u{ordinal}", "name": f"f-{ordinal}", "ordinal": ordinal, "version": "v1"}
    return Worker(**values | {"seen_s": NOW_S - 5, "heard_s": NOW_S} | others)


def starting(ordinal: int, **others: Any) -> Worker:
    return pod(ordinal, **{"is_bound": True, "phase": "Running", "running_s": NOW_S - 1} | others)


def live(ordinal: int, held: int = 0, idle_s: float = 0.0, **others: Any) -> Worker:
    return starting(ordinal, report=report(held=held, idle_s=idle_s), **others)


def decided(*workers: Worker, policy: ScalingPolicy = POLICY, starts: Starts | None = None, **demand: Any) -> Decision:
    return decide(policy, "v1", Demand(**demand), workers, starts or Starts(), NOW_S)


# -- come


def test_a_signal_makes_one_worker() -> None:
    decision = decided(is_woken=True)

    assert (decision.create, decision.cause, decision.listens) == ((0,), "Woken", False)


def test_a_function_without_work_and_workers_listens() -> None:
    decision = decided()

    assert (decision.desired, decision.listens, decision.changes_something) == (0, True, False)


@pytest.mark.parametrize(("pending", "count"), [(1, 1), (10, 1), (11, 2), (39, 4), (4000, 4)])
def test_a_backlog_is_shared_among_as_many_workers_as_it_fills(pending: int, count: int) -> None:
    assert len(decided(pending=pending).create) == count


def test_workers_that_start_count_as_if_they_served() -> None:
    assert decided(starting(0), pod(1), pending=20).create == ()
    assert decided(starting(0), pod(1), pending=21).create == (2,)


def test_what_live_workers_hold_counts_too() -> None:
    assert decided(live(0, held=10), pending=1).create == (1,)


def test_orphaned_events_make_a_worker_and_say_so() -> None:
    decision = decided(orphaned=3)

    assert (decision.create, decision.cause) == ((0,), "Orphaned")
    assert decision.reason == "3 events in flight that no live worker holds"


def test_the_floor_is_kept_without_work() -> None:
    decision = decided(policy=replace(POLICY, min=2))

    assert (decision.create, decision.cause, decision.reason) == ((0, 1), "Floor", "at least 2 wanted")


def test_a_silent_worker_does_not_count() -> None:
    gone = live(0, held=5, heard_s=NOW_S - REPORT_EXPIRY_S)

    assert decided(gone, pending=5).create == (1,)


# -- go


def test_an_idle_worker_beyond_what_is_needed_is_fenced_and_a_busy_one_is_not() -> None:
    decision = decided(live(0, held=3), live(1, idle_s=31.0), live(2, idle_s=5.0))

    assert (decision.fence, decision.delete, decision.desired) == (("u1",), (), 2)


def test_the_last_worker_waits_for_a_fresh_look() -> None:
    worker = live(0, idle_s=31.0)

    before, after = decided(worker), decided(worker, is_checked=True)

    assert (before.fence, before.checks, before.listens) == ((), True, True)
    assert (after.fence, after.checks, after.listens) == (("u0",), False, True)


def test_a_fenced_worker_that_holds_nothing_is_deleted_and_one_that_holds_something_is_not() -> None:
    free = starting(0, report=report(state="fenced"), fence_asked_s=NOW_S - 1)
    busy = starting(1, report=report(state="fenced", held=1), fence_asked_s=NOW_S - 1)

    assert decided(free, busy).delete == ("u0",)


def test_a_fence_that_nobody_answers_is_sent_again() -> None:
    assert decided(live(0, fence_asked_s=NOW_S - FENCE_AGAIN_S)).fence == ("u0",)
    assert decided(live(0, fence_asked_s=NOW_S - 1)).fence == ()


def test_a_worker_silent_for_long_is_deleted() -> None:
    limit_s = REPORT_EXPIRY_S + SILENT_S_MAX

    assert decided(live(0, heard_s=NOW_S - limit_s)).delete == ("u0",)
    assert decided(live(0, heard_s=NOW_S - limit_s + 1)).delete == ()


def test_a_worker_that_runs_and_says_nothing_is_deleted() -> None:
    assert decided(starting(0, running_s=NOW_S - START_S_MAX)).delete == ("u0",)
    assert decided(starting(0, running_s=NOW_S - START_S_MAX + 1)).delete == ()


def test_a_pod_that_found_no_node_and_is_not_needed_is_deleted() -> None:
    assert decided(pod(0, seen_s=NOW_S - 31), live(1)).delete == ("u0",)


def test_above_a_lowered_ceiling_the_least_busy_go() -> None:
    policy = replace(POLICY, max=1)

    decision = decided(live(0, held=9), live(1, held=2), live(2), policy=policy, pending=50)

    assert (set(decision.fence), decision.cause) == ({"u1", "u2"}, "Ceiling")


def test_a_retry_due_within_idle_keeps_a_worker_and_a_later_one_does_not() -> None:
    worker = live(0, idle_s=31.0)

    soon = decided(worker, not_due=1, due_in_s=30.0, is_checked=True)
    later = decided(worker, not_due=1, due_in_s=31.0, is_checked=True)

    assert (soon.fence, soon.cause) == ((), "Serving")
    assert later.fence == ("u0",)
    assert decided(not_due=1, due_in_s=31.0).look_again_s == pytest.approx(1.0)
    assert decided(not_due=1, due_in_s=20.0).create == ()


# -- replace


def test_an_old_worker_goes_when_a_new_one_is_live() -> None:
    old = live(0, held=1, version="v0")

    alone, helped, replaced = decided(old), decided(old, starting(1)), decided(old, live(1))

    assert (alone.create, alone.fence, alone.cause) == ((1,), (), "Replaced")
    assert (helped.create, helped.fence) == ((), ())
    assert (replaced.create, replaced.fence, replaced.cause) == ((), ("u0",), "Replaced")


def test_where_only_one_worker_is_allowed_the_old_one_goes_first() -> None:
    policy = replace(POLICY, max=1)
    old = live(0, held=1, version="v0")

    first = decided(old, policy=policy)
    meanwhile = decided(replace(old, fence_asked_s=NOW_S), policy=policy, pending=1)
    then = decided(replace(old, report=report(state="fenced"), fence_asked_s=NOW_S), policy=policy, pending=1)

    assert (first.fence, first.create) == (("u0",), ())
    assert meanwhile.create == ()
    assert (then.delete, then.create) == (("u0",), (1,))


def test_an_old_worker_without_work_goes_without_a_successor() -> None:
    decision = decided(live(0, version="v0"), is_checked=True)

    assert (decision.fence, decision.create, decision.listens) == (("u0",), (), True)


def test_an_old_worker_stays_while_new_ones_fail() -> None:
    failing = Starts(version="v1", failures=3, failed_s=NOW_S)

    assert decided(live(0, held=1, version="v0"), starts=failing).fence == ()


# -- fail


def test_a_failed_start_is_tried_again_after_the_back_off_and_alone() -> None:
    failing = Starts(version="v1", failures=3, failed_s=NOW_S - 3.0)

    waiting = decided(pending=40, starts=failing)
    due = decided(pending=40, starts=replace(failing, failed_s=NOW_S - 4.0))
    tried = decided(starting(0), pending=40, starts=replace(failing, failed_s=NOW_S - 4.0))

    assert (waiting.create, waiting.cause) == ((), "BackingOff")
    assert waiting.look_again_s == pytest.approx(1.0)
    assert waiting.reason == "3 failed starts; the next try comes 4 s after the last"
    assert due.create == (0,)
    assert tried.create == ()


def test_the_newest_failed_pod_stays_until_the_next_try_for_its_logs() -> None:
    failing = Starts(version="v1", failures=2, failed_s=NOW_S - 1.0)
    failed = [starting(0, phase="Failed", seen_s=NOW_S - 9), starting(1, phase="Failed", seen_s=NOW_S - 2)]

    waiting = decided(*failed, pending=1, starts=failing)
    due = decided(failed[1], pending=1, starts=replace(failing, failed_s=NOW_S - 2.0))

    assert waiting.delete == ("u0",)
    assert (due.create, due.delete) == ((0,), ("u1",))


def test_starts_under_way_together_fail_once() -> None:
    first = after_failure(Starts(), "v1", begun_s=10.0, now_s=12.0, reason="WorkersFailing", message="a")
    second = after_failure(first, "v1", begun_s=11.0, now_s=13.0, reason="WorkersFailing", message="b")
    third = after_failure(second, "v1", begun_s=14.0, now_s=15.0, reason="HandlerUnusable", message="c")
    other = after_failure(third, "v2", begun_s=16.0, now_s=17.0, reason="WorkersFailing", message="d")

    assert [each.failures for each in (first, second, third, other)] == [1, 1, 2, 1]
    assert [each.backoff_s for each in (first, third, replace(third, failures=50))] == [1.0, 2.0, BACKOFF_MAX_S]
    assert third.due_s("v1") == 17.0
    assert not third.is_failing("v2")


# -- demand


def test_in_flight_is_held_waiting_or_orphaned() -> None:
    due_s = {5: NOW_S + 60, 6: NOW_S + 20, 7: NOW_S - 1, 2: NOW_S + 5}

    demand = demand_of(pending=4, unsettled=10, held=3, due_s=due_s, settled_to=2, now_s=NOW_S)

    assert (demand.pending, demand.not_due, demand.orphaned) == (4, 2, 5)
    assert demand.due_in_s == pytest.approx(20.0)


def test_records_of_retries_never_exceed_what_is_in_flight() -> None:
    demand = demand_of(pending=0, unsettled=1, held=1, due_s={5: NOW_S + 9}, settled_to=0, now_s=NOW_S)

    assert (demand.not_due, demand.orphaned, demand.due_in_s) == (0, 0, None)


def test_a_worker_that_leaves_still_settles_what_it_holds() -> None:
    leaving = live(0, held=2, is_deleted=True)

    assert held_by([leaving, live(1, held=3)], NOW_S) == 5
    assert held_by([leaving], NOW_S + REPORT_EXPIRY_S) == 0
    assert held_by([starting(2, phase="Failed", report=report(held=4))], NOW_S) == 0


def test_only_the_broker_knows_when_all_are_full_or_say_that_something_waits() -> None:
    assert is_doubtful(0, [live(0, held=10)], NOW_S)
    assert not is_doubtful(0, [live(0, held=10), live(1, held=9)], NOW_S)
    assert is_doubtful(5, [live(0)], NOW_S)
    assert not is_doubtful(5, [live(0), starting(1)], NOW_S)
    assert not is_doubtful(5, [], NOW_S)


# -- signals


def test_each_pattern_is_subscribed_once_for_all_who_wait_on_it() -> None:
    listeners = {"a": ("events.x", "events.y"), "b": ("events.y",)}

    changes = subscription_changes(listeners, ("events.y", "events.z"))

    assert (changes.open, changes.close) == (("events.x",), ("events.z",))
    assert listeners_of(listeners, "events.y") == ("a", "b")
