"""What the node program remembers of one pod beside API and backend."""

from typing import Any

from provider.core.launch import ContainerObservation, PodObservation
from provider.node.record import Record


def run(restart: int, state: Any = "terminated", **fields: Any) -> ContainerObservation:
    return ContainerObservation(name="main", restart=restart, state=state, **fields)


def observed(*runs: ContainerObservation) -> PodObservation:
    return PodObservation(uid="u", namespace="shop", name="web", containers=runs)


def test_a_run_that_was_accepted_counts_until_the_backend_shows_it() -> None:
    record = Record({})
    record.observe(observed(run(0, exit_code=1)))
    record.launched["main"] = run(1, "waiting")

    accepted = record.runs["main"]
    record.observe(observed(run(1, "running")))

    assert (accepted.restart, accepted.state) == (1, "waiting")
    assert record.runs["main"].state == "running"


def test_the_run_before_is_the_last_that_ended_however_fast_they_follow() -> None:
    record = Record({})
    for restart in range(3):
        record.observe(observed(run(restart, exit_code=restart)))

    previous = record.previous(record.runs)

    assert previous["main"].exit_code == 1


def test_the_run_before_the_first_one_here_is_what_the_api_remembers() -> None:
    record = Record({"main": run(4, exit_code=137)})
    record.launched["main"] = run(5, "waiting")

    assert record.previous(record.runs)["main"].exit_code == 137
    assert record.in_backend["main"].restart == 5


def test_what_the_backend_knows_of_a_run_counts_more_than_what_the_api_guesses() -> None:
    record = Record({"main": run(0, exit_code=137)})
    record.observe(observed(run(0, exit_code=3)))
    record.launched["main"] = run(1, "waiting")

    assert record.previous(record.runs)["main"].exit_code == 3


def test_nothing_is_told_twice() -> None:
    record = Record({})

    assert record.first_time("started", "main", 0)
    assert not record.first_time("started", "main", 0)
    assert record.first_time("started", "main", 1)
