from provider.core.processes import (
    Ending,
    environment_of,
    never_started,
    terminated,
    unknown_ending,
)

MINIMAL = {"PATH": "/bin", "LANG": "C.UTF-8"}


def test_the_pods_own_environment_wins_over_the_minimum_and_not_over_what_the_backend_must_set() -> None:
    given = {"LANG": "de", "NODELESS_TERMINATION_LOG": "/etc/passwd", "NODELESS_BUNDLES": "/x", "NODELESS_LOG": "no"}

    worker = environment_of(given, MINIMAL, bundles="/b", termination_log="/t", is_worker=True)
    other = environment_of({}, MINIMAL, bundles="/b", termination_log="/t", is_worker=False)

    assert worker == {
        "PATH": "/bin", "LANG": "de", "NODELESS_TERMINATION_LOG": "/t", "NODELESS_BUNDLES": "/b", "NODELESS_LOG": "cri"
    }  # fmt: skip
    assert other == {**MINIMAL, "NODELESS_TERMINATION_LOG": "/t"}


def told(ending: Ending, message: str = "") -> tuple[int, int, str, str]:
    seen = terminated("main", 2, ending, started_ns=1_000_000_000, message=message, container_id="process://1-2")
    assert (seen.name, seen.restart, seen.state, seen.container_id) == ("main", 2, "terminated", "process://1-2")
    assert (seen.started_at, seen.finished_at) == ("1970-01-01T00:00:01.000000Z", "1970-01-01T00:00:02.000000Z")
    return seen.exit_code, seen.signal, seen.reason, seen.message


def test_an_end_is_told_as_a_kubelet_tells_it() -> None:
    at_ns = 2_000_000_000

    assert told(Ending(exit_code=0, finished_ns=at_ns)) == (0, 0, "Completed", "")
    assert told(Ending(exit_code=3, finished_ns=at_ns), "no table") == (3, 0, "Error", "no table")
    assert told(Ending(exit_code=137, signal=9, finished_ns=at_ns)) == (137, 9, "Error", "")
    assert told(unknown_ending(at_ns))[:3] == (137, 0, "ContainerStatusUnknown")
    assert told(never_started(at_ns))[:3] == (137, 0, "NotStarted")


def test_a_containers_own_message_is_worth_more_than_ours() -> None:
    ending = Ending(exit_code=128, finished_ns=2_000_000_000, reason="StartError", message="cannot be started")

    assert told(ending)[3] == "cannot be started"
    assert told(ending, "its own")[3] == "its own"
