"""What the API is told of a pod."""

from typing import Any

import pytest

from provider.core.images import Refusal
from provider.core.launch import ContainerObservation
from provider.core.status import Knowledge, Place, Waiting, changes, phase_of, status_of, whole_seconds

PLACE = Place(address="10.0.0.7", backend="memory")
START, END, NOW = "2026-01-31T12:00:00.123456Z", "2026-01-31T12:00:10.5Z", "2026-01-31T12:01:00Z"


def pod(*containers: str, policy: str = "Never", **fields: Any) -> dict[str, Any]:
    names = containers or ("main",)
    return {
        "metadata": {"name": "web", "uid": "u", "generation": 1, **fields.pop("metadata", {})},
        "spec": {"restartPolicy": policy, "containers": [{"name": name, "image": "app"} for name in names]},
        **fields,
    }


def run(name: str = "main", state: Any = "running", restart: int = 0, **fields: Any) -> ContainerObservation:
    times: dict[str, Any] = {"started_at": START} | ({"finished_at": END} if state == "terminated" else {})
    return ContainerObservation(name=name, restart=restart, state=state, **times, **fields)


def knowledge(*runs: ContainerObservation, **fields: Any) -> Knowledge:
    return Knowledge(runs={each.name: each for each in runs}, **fields)


def condition(status: dict[str, Any], type_: str) -> dict[str, Any]:
    return next(each for each in status["conditions"] if each["type"] == type_)


OK: dict[str, Any] = {"state": "terminated"}
BAD: dict[str, Any] = {"state": "terminated", "exit_code": 1}


@pytest.mark.parametrize(
    ("policy", "states", "phase"),
    [
        ("Never", [None], "Pending"),
        ("Never", [{"state": "waiting"}], "Pending"),
        ("Never", [{}], "Running"),
        ("Never", [{}, None], "Pending"),
        ("Never", [{}, OK], "Running"),
        ("Never", [OK, OK], "Succeeded"),
        ("Never", [OK, BAD], "Failed"),
        ("OnFailure", [OK], "Succeeded"),
        ("OnFailure", [BAD], "Running"),
        ("OnFailure", [BAD, OK], "Running"),
        ("Always", [OK], "Running"),
        ("Always", [BAD], "Running"),
        ("Always", [{"state": "waiting", "restart": 1}], "Running"),
    ],
)
def test_the_phase_follows_the_containers(policy: str, states: list[dict[str, Any] | None], phase: str) -> None:
    names = [f"c{index}" for index in range(len(states))]
    runs = [run(name, **state) for name, state in zip(names, states, strict=True) if state is not None]

    assert phase_of(pod(*names, policy=policy), knowledge(*runs)) == phase


def test_a_final_phase_is_never_taken_back() -> None:
    for phase in ("Failed", "Succeeded"):
        assert phase_of(pod(status={"phase": phase}), knowledge(run())) == phase


def test_a_deleted_pod_ends_as_its_containers_did_whatever_its_restart_policy() -> None:
    deleted = {"deletionTimestamp": NOW}

    assert phase_of(pod(policy="Always", metadata=deleted), knowledge(run(**OK))) == "Succeeded"
    assert phase_of(pod(policy="Always", metadata=deleted), knowledge(run(**BAD))) == "Failed"
    assert phase_of(pod(policy="Always", metadata=deleted), knowledge(run())) == "Running"


def test_a_refused_pod_fails_unless_its_owner_would_replace_it_without_end() -> None:
    refused = knowledge(refusal=Refusal("Unsupported", "spec.initContainers"))

    failed = status_of(pod(), refused, PLACE, now=NOW)
    waiting = status_of(pod(policy="Always"), refused, PLACE, now=NOW)

    assert (failed["phase"], failed["reason"], failed["message"]) == ("Failed", "Unsupported", "spec.initContainers")
    assert waiting["phase"] == "Pending"
    assert waiting["containerStatuses"][0]["state"] == {
        "waiting": {"reason": "Unsupported", "message": "spec.initContainers"}
    }


def test_a_running_pod_is_told_with_its_times_addresses_and_readiness() -> None:
    status = status_of(pod(), knowledge(run(container_id="memory://1")), PLACE, now=NOW)

    (container,) = status["containerStatuses"]
    assert status["phase"] == "Running"
    assert (status["podIP"], status["hostIP"], status["podIPs"]) == ("10.0.0.7", "10.0.0.7", [{"ip": "10.0.0.7"}])
    assert container["state"] == {"running": {"startedAt": "2026-01-31T12:00:00Z"}}
    assert (container["ready"], container["started"], container["containerID"]) == (True, True, "memory://1")
    assert condition(status, "Ready")["status"] == "True"
    assert condition(status, "Ready")["observedGeneration"] == 1
    assert status["observedGeneration"] == 1


def test_an_end_is_told_with_code_signal_reason_and_message() -> None:
    killed = run(state="terminated", exit_code=137, signal=9, reason="OOMKilled", message="out of memory")

    status = status_of(pod(), knowledge(killed), PLACE, now=NOW)

    assert status["containerStatuses"][0]["state"]["terminated"] == {
        "exitCode": 137, "signal": 9, "reason": "OOMKilled", "message": "out of memory",
        "startedAt": "2026-01-31T12:00:00Z", "finishedAt": "2026-01-31T12:00:10Z",
    }  # fmt: skip
    assert condition(status, "Ready")["reason"] == "PodFailed"


def test_a_container_in_back_off_shows_how_its_last_run_ended() -> None:
    known = knowledge(run(restart=2, **BAD), waiting={"main": Waiting("CrashLoopBackOff", "back-off 20s")})

    (container,) = status_of(pod(policy="Always"), known, PLACE, now=NOW)["containerStatuses"]

    assert container["state"] == {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}}
    assert (container["restartCount"], container["lastState"]["terminated"]["exitCode"]) == (2, 1)


def test_a_restarted_container_keeps_the_end_of_the_run_before() -> None:
    known = knowledge(run(restart=1), previous={"main": run(**BAD)})

    (container,) = status_of(pod(policy="Always"), known, PLACE, now=NOW)["containerStatuses"]

    assert "running" in container["state"]
    assert (container["restartCount"], container["lastState"]["terminated"]["exitCode"]) == (1, 1)


def test_the_api_remembers_the_run_before_when_the_node_does_not() -> None:
    told = {"name": "main", "restartCount": 0, "state": {"terminated": {"exitCode": 5}}, "lastState": {}}
    before = pod(policy="Always", status={"containerStatuses": [told]})

    (container,) = status_of(before, knowledge(run(restart=1)), PLACE, now=NOW)["containerStatuses"]

    assert container["lastState"] == {"terminated": {"exitCode": 5}}


def test_the_same_knowledge_twice_is_written_once() -> None:
    known = knowledge(run(container_id="memory://1"))
    written = status_of(pod(), known, PLACE, now=NOW)
    # As the API server gives it back: with what it adds, and times that are not set as null.
    stored = written | {
        "qosClass": "BestEffort",
        "conditions": [each | {"lastProbeTime": None} for each in written["conditions"]],
    }

    again = status_of(pod(status=stored), known, PLACE, now="2026-01-31T13:00:00Z")

    assert changes(stored, again) == {}


def test_conditions_change_their_time_only_with_their_status_and_only_changed_ones_are_written() -> None:
    before = status_of(pod(), knowledge(run()), PLACE, now=NOW)
    later = "2026-01-31T13:00:00Z"

    after = status_of(pod(status=before), knowledge(run(**OK)), PLACE, now=later)
    changed = {each["type"]: each for each in changes(before, after)["conditions"]}

    assert condition(after, "Ready")["lastTransitionTime"] == later
    assert changed["Initialized"]["lastTransitionTime"] == NOW  # its reason changed, its status did not
    assert "startTime" not in changes(before, after)


def test_conditions_of_others_are_not_touched() -> None:
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": NOW}

    wanted = status_of(pod(status={"conditions": [scheduled]}), knowledge(run()), PLACE, now=NOW)

    assert "PodScheduled" not in {each["type"] for each in wanted["conditions"]}


@pytest.mark.parametrize("time", ["2026-01-31T12:00:00.5Z", "2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000001+00:00"])
def test_times_are_cut_to_whole_seconds(time: str) -> None:
    assert whole_seconds(time) == "2026-01-31T12:00:00Z"
