"""The life of a pod, step by step: what is asked for, what is there, what to do."""

import itertools
from typing import Any

import pytest

from provider.core.history import EXIT_UNKNOWN, REASON_UNKNOWN, newest, remembered
from provider.core.launch import ContainerObservation
from provider.core.plan import (
    BACK_OFF_MAX_S,
    STEPS,
    Desired,
    Observed,
    Step,
    calm_restart,
    desired_of,
    epoch_s,
    observed_of,
    plan,
    restart_delay_s,
)

START, END = "2026-01-31T12:00:00.000000Z", "2026-01-31T12:00:10.000000Z"
NOW_S = epoch_s(END)


def running(name: str = "main", restart: int = 0) -> ContainerObservation:
    return ContainerObservation(name=name, restart=restart, state="running", started_at=START)


def ended(name: str = "main", restart: int = 0, exit_code: int = 0, at: str = END) -> ContainerObservation:
    return ContainerObservation(
        name=name, restart=restart, state="terminated", started_at=START, finished_at=at, exit_code=exit_code
    )


def by_name(*runs: ContainerObservation) -> dict[str, ContainerObservation]:
    return {run.name: run for run in runs}


def pod(**fields: Any) -> dict[str, Any]:
    return {"metadata": {"name": "web", "uid": "u", **fields.pop("metadata", {})}, "spec": {}, **fields}


def test_every_combination_of_desired_and_observed_has_a_step() -> None:
    assert STEPS.keys() == set(itertools.product(Desired, Observed))


def test_only_a_pod_that_is_to_run_is_ever_started() -> None:
    starting = {desired for (desired, _), step in STEPS.items() if step is Step.START}

    assert starting == {Desired.RUN}


def test_only_a_pod_of_which_nothing_runs_is_removed_or_forgotten() -> None:
    leaving = {observed for (_, observed), step in STEPS.items() if step in {Step.REMOVE, Step.FORGET}}

    assert Observed.RUNNING not in leaving


@pytest.mark.parametrize(
    ("object_", "is_refused", "desired"),
    [
        (None, False, Desired.NOTHING),
        (pod(), False, Desired.RUN),
        (pod(status={"phase": "Running"}), False, Desired.RUN),
        (pod(status={"phase": "Failed"}), False, Desired.REST),
        (pod(status={"phase": "Succeeded"}), False, Desired.REST),
        (pod(), True, Desired.REST),
        (pod(metadata={"deletionTimestamp": END}), False, Desired.STOP),
        (pod(metadata={"deletionTimestamp": END}, status={"phase": "Failed"}), True, Desired.STOP),
    ],
)
def test_what_the_api_asks_for(object_: dict[str, Any] | None, is_refused: bool, desired: Desired) -> None:
    assert desired_of(object_, is_refused=is_refused) is desired


def test_a_new_pod_has_all_its_containers_started() -> None:
    step = plan(Desired.RUN, "Never", ["main", "side"], {}, now_s=NOW_S)

    assert step.step is Step.START
    assert step.starts == {"main": 0, "side": 0}


def test_a_start_that_was_interrupted_is_completed() -> None:
    step = plan(Desired.RUN, "Never", ["main", "side"], by_name(running()), now_s=NOW_S)

    assert step.starts == {"side": 0}


def test_a_pod_deleted_before_it_started_is_removed_and_never_started() -> None:
    assert plan(Desired.STOP, "Always", ["main"], {}, now_s=NOW_S).step is Step.REMOVE


def test_a_running_pod_is_left_alone() -> None:
    step = plan(Desired.RUN, "Always", ["main"], by_name(running()), now_s=NOW_S)

    assert (step.step, step.look_again_s) == (Step.NOTHING, None)


@pytest.mark.parametrize(
    ("policy", "exit_code", "is_started"),
    [("Never", 0, False), ("Never", 1, False), ("OnFailure", 0, False), ("OnFailure", 1, True), ("Always", 0, True)],
)
def test_the_restart_policy_decides_whether_it_runs_again(policy: str, exit_code: int, is_started: bool) -> None:
    step = plan(Desired.RUN, policy, ["main"], by_name(ended(exit_code=exit_code)), now_s=NOW_S)

    assert step.starts == ({"main": 1} if is_started else {})


def test_the_second_restart_waits_ten_seconds_from_the_end_and_asks_to_be_looked_at_then() -> None:
    runs = by_name(ended(restart=1, exit_code=1))

    early = plan(Desired.RUN, "Always", ["main"], runs, now_s=NOW_S + 4.0)
    due = plan(Desired.RUN, "Always", ["main"], runs, now_s=NOW_S + 10.0)

    assert (early.step, early.back_offs, early.look_again_s) == (Step.NOTHING, {"main": 10.0}, 6.0)
    assert due.starts == {"main": 2}


def test_the_back_off_doubles_up_to_five_minutes() -> None:
    assert [restart_delay_s(failures) for failures in range(8)] == [0, 10, 20, 40, 80, 160, 300, 300]
    assert restart_delay_s(10**6) == BACK_OFF_MAX_S


def test_a_run_of_ten_minutes_ends_the_series_of_failures() -> None:
    long_run = ended(restart=7, exit_code=1, at="2026-01-31T12:10:00Z")
    after = epoch_s("2026-01-31T12:10:00Z")

    assert calm_restart(0, long_run) == 7
    assert plan(Desired.RUN, "Always", ["main"], by_name(long_run), now_s=after).starts == {"main": 8}
    next_end = by_name(ended(restart=8, exit_code=1))
    again = plan(Desired.RUN, "Always", ["main"], next_end, now_s=NOW_S, calm_restarts={"main": 7})
    assert again.back_offs == {"main": 10.0}


def test_a_clock_that_was_set_back_holds_nobody_up() -> None:
    step = plan(Desired.RUN, "Always", ["main"], by_name(ended(restart=5, exit_code=1)), now_s=NOW_S - 86400)

    assert step.starts == {"main": 6}


def test_a_container_in_back_off_does_not_hold_up_its_neighbour() -> None:
    runs = by_name(ended("main", restart=3, exit_code=1), ended("side", exit_code=1))

    step = plan(Desired.RUN, "Always", ["main", "side"], runs, now_s=NOW_S)

    assert (step.step, step.starts, step.back_offs) == (Step.START, {"side": 1}, {"main": 40.0})


def test_an_orphan_is_stopped_and_then_forgotten() -> None:
    assert plan(Desired.NOTHING, "Never", (), by_name(running()), now_s=NOW_S).step is Step.STOP
    assert plan(Desired.NOTHING, "Never", (), by_name(ended()), now_s=NOW_S).step is Step.FORGET
    assert plan(Desired.NOTHING, "Never", (), {}, now_s=NOW_S).step is Step.FORGET, (
        "a start given up may leave something"
    )


def test_a_container_that_is_being_started_counts_as_running() -> None:
    starting = ContainerObservation(name="main", restart=0, state="waiting")

    assert observed_of(by_name(starting)) is Observed.RUNNING


def test_of_two_memories_the_newer_run_counts_and_of_one_run_the_later_word() -> None:
    found = newest([ended(restart=1)], [running(restart=2)], [ended(restart=1, exit_code=9)])

    assert found == by_name(running(restart=2))
    assert newest([ended(exit_code=1)], [running()]) == by_name(running())


def status(state: dict[str, Any], restart: int = 0, last: dict[str, Any] | None = None) -> dict[str, Any]:
    told = {"name": "main", "restartCount": restart, "state": state, "lastState": last or {}}
    return {"containerStatuses": [told]}


def test_a_container_that_ran_before_a_restart_of_the_machine_is_lost_and_not_started_twice() -> None:
    known = remembered(status({"running": {"startedAt": START}}), END)

    lost = known["main"]
    assert (lost.state, lost.exit_code, lost.reason) == ("terminated", EXIT_UNKNOWN, REASON_UNKNOWN)
    assert plan(Desired.RUN, "Never", ["main"], known, now_s=NOW_S).starts == {}
    assert plan(Desired.RUN, "Always", ["main"], known, now_s=NOW_S).starts == {"main": 1}


def test_a_container_that_waited_before_a_restart_of_the_machine_was_never_started() -> None:
    assert remembered(status({"waiting": {"reason": "ContainerCreating"}}), END) == {}


def test_a_container_between_two_runs_remembers_the_end_of_the_last_one() -> None:
    last = {"terminated": {"exitCode": 4, "startedAt": START, "finishedAt": END, "reason": "Error"}}

    known = remembered(status({"waiting": {"reason": "CrashLoopBackOff"}}, restart=3, last=last), END)

    assert (known["main"].restart, known["main"].exit_code, known["main"].finished_at) == (3, 4, END)
