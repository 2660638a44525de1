"""Worker pods as they are made, watched and told about."""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from bus.core.assignment import decode_assignment
from bus.core.demand import Worker
from bus.core.reports import WorkerReport, WorkerState
from bus.core.starts import Starts
from bus.dispatcher.tracking import UNWATCHED_S_MAX, WorkerTracker
from bus.functions.model import Function, check_function, function_of
from bus.functions.status import Observed, conditions_of, status_of
from bus.scaler.manifest import WorkerSettings, credentials_secret, ordinal_of, owner_uid, pod_name, worker_pod

SETTINGS = WorkerSettings(image="nodeless/worker:1", nats_url="nats://broker", has_credentials=True)
UID = "0a1b2c3d-4e5f-6789"


def function(**spec: Any) -> Function:
    whole = {"handler": "app:handle", "code": {"bundle": "sha256:" + "0" * 64}, "triggers": [{"subject": "events.a"}]}
    metadata = {"name": "bill", "namespace": "shop", "uid": UID, "generation": 3}
    return function_of({"metadata": metadata, "spec": whole | spec})


# -- made


def test_a_pods_name_is_of_its_function_and_ordinal_alone() -> None:
    assert pod_name(function(), 12) == "bill-0a1b2c3d-12"
    assert ordinal_of("bill-0a1b2c3d-12") == 12


def test_a_worker_is_told_its_assignment_before_what_the_user_sets() -> None:
    mine = function(pod={"env": [{"name": "LEVEL", "value": "high"}], "nodeSelector": {"zone": "a"}})

    pod = worker_pod(mine, 0, SETTINGS, "2026-01-01T00:00:00.000001+00:00")

    container = pod["spec"]["containers"][0]
    names = [variable["name"] for variable in container["env"]]
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert decode_assignment(values["NODELESS_ASSIGNMENT"] or "") == mine.assignment()
    assert names[-1] == "LEVEL"
    assert pod["spec"]["nodeSelector"] == {"type": "virtual-kubelet", "zone": "a"}
    assert "resources" not in container
    assert owner_uid(pod) == UID
    json.dumps(pod)


@pytest.mark.parametrize(("timeout", "grace", "whole"), [("1s", "25", 30), ("60s", "60", 65), ("2h", "300", 305)])
def test_a_leaving_worker_may_end_its_calls(timeout: str, grace: str, whole: int) -> None:
    pod = worker_pod(function(delivery={"timeout": timeout}), 0, SETTINGS, "")

    values = {variable["name"]: variable.get("value") for variable in pod["spec"]["containers"][0]["env"]}
    assert values["NODELESS_GRACE_S"] == grace
    assert pod["spec"]["terminationGracePeriodSeconds"] == whole


def test_credentials_are_in_the_secret_and_not_in_the_pod() -> None:
    secret = credentials_secret(function(), "the seed")
    pod = worker_pod(function(), 0, SETTINGS, "")

    assert secret["metadata"]["name"] == "bill-bus"
    assert "the seed" not in json.dumps(pod)


def test_an_environment_cannot_take_the_place_of_the_assignment() -> None:
    with pytest.raises(ValueError, match="worker's own"):
        check_function(function(pod={"env": [{"name": "NODELESS_ASSIGNMENT", "value": "{}"}]}))


def test_a_timeout_that_no_worker_could_take_is_refused() -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        check_function(function(delivery={"timeout": "0s"}))


# -- watched


def seen(phase: str = "Pending", uid: str = "u1", name: str = "bill-0a1b2c3d-0", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"uid": uid, "name": name, "labels": {"nodeless.dev/version": "v1"}},
        "spec": {"nodeName": "n"} if phase != "Pending" else {},
        "status": {"phase": phase, **status},
    }


def exited(code: int, message: str = "") -> dict[str, Any]:
    terminated = {"exitCode": code, "message": message, "reason": "Error"}
    return seen("Failed", containerStatuses=[{"state": {"terminated": terminated}}])


def said(*, handled: int = 0, held: int = 0, state: WorkerState = "running") -> WorkerReport:
    return WorkerReport(
        worker="u1", pod="p", version="v1", state=state, concurrency=1, busy=0, held=held, pending=0, service_s=0.0,
        handled=handled, failed=0, idle_s=0.0,
    )  # fmt: skip


def only(tracker: WorkerTracker, now_s: float) -> Worker:
    (worker,) = tracker.workers(now_s)
    return worker


def test_what_we_made_counts_before_the_watch_tells_of_it_and_not_for_ever() -> None:
    tracker = WorkerTracker()
    tracker.on_pod(seen(), 0.0, is_watched=False)

    assert only(tracker, 1.0).stage_at(1.0) == "unbound"
    assert tracker.workers(UNWATCHED_S_MAX + 1) == ()


def test_an_answer_of_ours_does_not_undo_what_was_watched() -> None:
    tracker = WorkerTracker()
    tracker.on_pod(seen("Running"), 0.0, is_watched=True)
    tracker.on_pod(seen("Pending"), 0.1, is_watched=False)

    assert only(tracker, 1.0).phase == "Running"


def test_a_report_may_come_before_its_pod_is_seen() -> None:
    tracker = WorkerTracker()
    assert tracker.on_report(said(), 0.0) is None
    assert tracker.workers(0.0) == ()

    tracker.on_pod(seen("Running"), 0.1, is_watched=True)

    assert only(tracker, 0.2).stage_at(0.2) == "live"


def test_an_end_before_any_work_is_a_failed_start_told_once() -> None:
    tracker = WorkerTracker()
    tracker.on_pod(seen("Running"), 0.0, is_watched=True)

    ended = tracker.on_pod(exited(78, "app cannot be imported: no"), 1.0, is_watched=True)

    assert ended is not None
    assert (ended.is_failed_start, ended.reason, ended.message) == (
        True,
        "HandlerUnusable",
        "app cannot be imported: no",
    )
    assert tracker.on_pod(exited(78), 2.0, is_watched=True) is None
    assert tracker.on_pod_gone("u1", 3.0) is None


def test_a_worker_that_proved_itself_and_dies_is_no_failed_start_but_had_work() -> None:
    tracker = WorkerTracker()
    tracker.on_pod(seen("Running"), 0.0, is_watched=True)
    tracker.on_report(said(handled=1, held=1), 0.5)

    ended = tracker.on_pod(exited(137), 1.0, is_watched=True)

    assert ended is not None
    assert (ended.is_failed_start, ended.had_work, ended.reason) == (False, True, "WorkersFailing")
    assert ended.message == "worker bill-0a1b2c3d-0 ended with status 137: Error"


def test_a_worker_that_was_asked_to_go_has_not_failed() -> None:
    tracker = WorkerTracker()
    tracker.on_pod(seen("Running"), 0.0, is_watched=True)
    tracker.on_report(said(state="fenced"), 0.5)
    tracker.on_deleted("u1")

    ended = tracker.on_pod_gone("u1", 1.0)

    assert ended is not None
    assert (ended.is_failed_start, ended.had_work) == (False, False)


@pytest.mark.parametrize(("first", "is_failed_start"), [("Running", False), ("Succeeded", False), ("Pending", True)])
def test_a_worker_of_an_earlier_life_that_left_in_order_has_not_failed(first: str, is_failed_start: bool) -> None:
    tracker = WorkerTracker()
    left = seen("Succeeded", containerStatuses=[{"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}])
    before = tracker.on_pod(seen(first) if first != "Succeeded" else left, 0.0, is_watched=True)
    ended = before or tracker.on_pod(left, 1.0, is_watched=True)

    assert ended is not None
    assert ended.is_failed_start is is_failed_start


def test_a_worker_that_says_that_it_fences_serves_nobody_new() -> None:
    tracker = WorkerTracker()
    tracker.on_pod(seen("Running"), 0.0, is_watched=True)
    tracker.on_report(said(held=1, state="fencing"), 0.5)

    assert only(tracker, 1.0).stage_at(1.0) == "fencing"


def test_nobody_is_silent_for_our_own_disconnection() -> None:
    tracker = WorkerTracker()
    tracker.on_pod(seen("Running"), 0.0, is_watched=True)
    tracker.on_report(said(), 0.0)

    tracker.on_reconnect(100.0)

    assert only(tracker, 101.0).stage_at(101.0) == "live"


def test_the_scheduler_s_own_words_are_passed_on() -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}
    tracker = WorkerTracker()
    tracker.on_pod(seen(conditions=[condition]), 0.0, is_watched=True)

    assert tracker.unschedulable() == "0/1 nodes are available"


# -- told

WELL = Observed(name="bill", generation=3, version="v1", subscription_fault=None, consumer="c", patterns=("events.a",))
FAILING = Starts(version="v1", failures=2, failed_s=0.0, reason="HandlerUnusable", message="no")


@pytest.mark.parametrize(
    ("changes", "ready", "subscribed", "scaling"),
    [
        ({}, "True Asleep", "True Subscribed", "True Active"),
        ({"workers": 1}, "True Starting", "True Subscribed", "True Active"),
        ({"workers": 1, "ready": 1}, "True Serving", "True Subscribed", "True Active"),
        ({"workers": 1, "unschedulable": "no node"}, "True Starting", "True Subscribed", "False Unschedulable"),
        ({"starts": FAILING}, "False HandlerUnusable", "True Subscribed", "False BackingOff"),
        ({"starts": FAILING, "ready": 1}, "True Serving", "True Subscribed", "True Active"),
        ({"subscription_fault": ("NotReachable", "away")}, "False NotSubscribed", "False NotReachable", "False NotSubscribed"),
        ({"fault": "bad"}, "False InvalidSpec", "False InvalidSpec", "False NotSubscribed"),
    ],
)  # fmt: skip
def test_conditions_say_what_is_in_the_way(changes: dict[str, Any], ready: str, subscribed: str, scaling: str) -> None:
    told = [f"{each.status} {each.reason}" for each in conditions_of(replace(WELL, **changes))]

    assert told == [ready, subscribed, scaling]


def test_a_transition_time_changes_with_the_status_alone() -> None:
    first = status_of(WELL, (), "2026-01-01T00:00:00Z")["conditions"]
    second = status_of(replace(WELL, workers=1, generation=4), first, "2026-01-01T00:00:09Z")["conditions"]
    third = status_of(replace(WELL, starts=FAILING), second, "2026-01-01T00:00:30Z")["conditions"]

    times = [[each["lastTransitionTime"][-3:-1] for each in conditions] for conditions in (first, second, third)]
    assert times == [["00", "00", "00"], ["00", "00", "00"], ["30", "30", "00"]]
    assert {each["observedGeneration"] for each in second} == {4}
