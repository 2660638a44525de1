"""Attempts are calls that began; what died counts; what was handed back does not."""

import pytest

from bus.core.assignment import DeliveryPolicy
from bus.core.attempts import Attempt, Outcome
from bus.core.settlement import full_history, settlement_of, start_of

POLICY = DeliveryPolicy(attempts=3, backoff_initial_s=2.0, backoff_factor=5.0, backoff_max_s=60.0)


def record(delivery: int, outcome: Outcome, error: str = "") -> Attempt:
    return Attempt(delivery=delivery, outcome=outcome, worker=f"w{delivery}", error=error)


def test_a_first_delivery_runs_beside_others() -> None:
    start = start_of(POLICY, full_history((), 1))

    assert (start.action, start.attempt) == ("run", 1)


def test_a_delivery_without_a_record_is_a_dead_workers() -> None:
    history = full_history((), 2)

    assert [(each.delivery, each.outcome, each.error) for each in history] == [(1, "began", "the worker died")]
    assert (start_of(POLICY, history).action, start_of(POLICY, history).attempt) == ("run-alone", 2)


def test_an_unfinished_record_names_the_worker_that_died() -> None:
    history = full_history((record(1, "failed"), record(2, "began")), 3)

    assert (history[1].worker, history[1].error) == ("w2", "the worker died")
    assert start_of(POLICY, history).action == "run-alone"


@pytest.mark.parametrize("outcome", ["handed-back", "interrupted"])
def test_what_a_leaving_worker_gave_back_costs_no_attempt(outcome: Outcome) -> None:
    history = full_history((record(1, outcome), record(2, outcome), record(3, outcome)), 4)

    assert (start_of(POLICY, history).action, start_of(POLICY, history).attempt) == ("run", 1)


def test_failures_up_to_the_limit_are_retried_and_then_dead_with_the_last_error() -> None:
    history = full_history((record(1, "failed"), record(2, "timed-out"), record(3, "failed", "ValueError: no")), 4)
    start = start_of(POLICY, history)

    assert (start.action, start.is_death) == ("dead", False)
    assert start.reason == "3 attempts; the last: ValueError: no"


def test_an_event_that_kills_its_workers_is_dead_with_that_story() -> None:
    start = start_of(POLICY, full_history((record(2, "began"),), 4))

    assert (start.action, start.is_death) == ("dead", True)
    assert start.reason == "3 attempts, 3 of them with the worker's death; the last: its worker died"


def test_the_delay_is_drawn_below_a_ceiling_that_grows() -> None:
    ceilings = [settlement_of(POLICY, attempt, "failed", 1.0).delay_s for attempt in (1, 2)]

    assert ceilings == [2.0, 10.0]
    assert settlement_of(POLICY, 1, "failed", 0.0).delay_s == 0.0
    assert settlement_of(DeliveryPolicy(attempts=100), 99, "failed", 1.0).delay_s == 600.0


def test_the_last_failure_is_dead_and_a_rejection_is_dead_at_once() -> None:
    assert settlement_of(POLICY, 3, "failed", 0.5, error="E: x").action == "dead"
    assert settlement_of(POLICY, 1, "rejected", 0.5, error="Reject: no").action == "dead"
    assert settlement_of(POLICY, 1, "retry-later", 0.5, after_s=7.0).delay_s == 7.0
