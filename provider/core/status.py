"""A pod's status, as a kubelet would write it, from its spec and what is known of its containers.

Pure, and stable: the same knowledge gives the same status, so that it is written only when something changed. Times are
cut to whole seconds, which is all that the API keeps. Nothing here takes back an end: a pod with a final phase keeps it.

Only what the node owns is stated. `qosClass`, the PodScheduled condition and conditions of others are not touched: the
patch is strategic, which merges conditions by type.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from provider.core.history import Containers
from provider.core.images import Refusal
from provider.core.launch import ContainerObservation
from provider.core.plan import ENDED_PHASES, Desired, Observed, desired_of, observed_of

MESSAGE_CHARACTERS_MAX = 4096
"""What a kubelet keeps of one container's termination message."""


class Waiting(Struct, frozen=True):
    """Why a container does not run yet, or not again."""

    reason: str
    message: str = ""


class Knowledge(Struct, frozen=True, kw_only=True):
    """All that the node knows of one pod beside what the API says."""

    runs: Containers = {}
    previous: Containers = {}
    """The run before, where it is known."""
    waiting: Mapping[str, Waiting] = {}
    refusal: Refusal | None = None


class Place(Struct, frozen=True, kw_only=True):
    """Where the pods of this node are."""

    address: str
    backend: str


def status_of(pod: Mapping[str, Any], known: Knowledge, place: Place, *, now: str) -> dict[str, Any]:
    """Return the fields of the pod's status that this node owns. `now` is RFC 3339 in whole seconds."""
    spec, before = pod["spec"], pod.get("status") or {}
    generation = pod["metadata"].get("generation")
    phase = phase_of(pod, known)
    containers = [_container_status(each, pod, known, place) for each in spec["containers"]]
    wanted: dict[str, Any] = {
        "phase": phase,
        "hostIP": place.address,
        "hostIPs": [{"ip": place.address}],
        "startTime": before.get("startTime") or now,
        "containerStatuses": containers,
        "conditions": _conditions(before, phase, containers, generation, now),
    }
    if known.runs or before.get("podIP"):
        wanted |= {"podIP": place.address, "podIPs": [{"ip": place.address}]}
    if generation is not None:
        wanted["observedGeneration"] = generation
    if known.refusal is not None:
        wanted |= {"reason": known.refusal.reason, "message": known.refusal.message}
    return wanted


def phase_of(pod: Mapping[str, Any], known: Knowledge) -> str:
    """Return the phase. Source: pkg/kubelet/kubelet_pods.go, getPhase."""
    before = (pod.get("status") or {}).get("phase")
    if before in ENDED_PHASES:
        return str(before)
    policy = pod["spec"].get("restartPolicy", "Always")
    if known.refusal is not None:
        # Whatever owns a pod that is always restarted (a ReplicaSet) replaces a failed one at once, which would fail
        # again, without end: such a pod waits and says why, as one whose image cannot be pulled.
        return "Failed" if policy != "Always" else "Pending"
    runs = [known.runs.get(each["name"]) for each in pod["spec"]["containers"]]
    succeeded = all(run is not None and run.state == "terminated" and run.exit_code == 0 for run in runs)
    if desired_of(pod) is Desired.STOP and observed_of(known.runs) is not Observed.RUNNING:
        return "Succeeded" if succeeded else "Failed"
    if any(run is None or (run.state == "waiting" and run.restart == 0) for run in runs):
        return "Pending"
    if policy == "Always" or not all(run is not None and run.state == "terminated" for run in runs):
        return "Running"
    if succeeded:
        return "Succeeded"
    return "Running" if policy == "OnFailure" else "Failed"


def _container_status(
    container: Mapping[str, Any], pod: Mapping[str, Any], known: Knowledge, place: Place
) -> dict[str, Any]:
    name = container["name"]
    run = known.runs.get(name)
    before = _container_before(pod, name)
    status: dict[str, Any] = {
        "name": name,
        "image": container.get("image", ""),
        "imageID": f"{place.backend}://{container.get('image', '')}" if run is not None else "",
        "restartCount": run.restart if run is not None else 0,
        "ready": run is not None and run.state == "running",
        "started": run is not None and run.state == "running",
        "lastState": _last_state(run, known.previous.get(name), before),
    }
    if run is not None and run.container_id:
        status["containerID"] = run.container_id
    waiting = known.waiting.get(name)
    if known.refusal is not None and run is None:
        waiting = Waiting(known.refusal.reason, known.refusal.message)
    if waiting is not None and (run is None or run.state != "running"):
        if run is not None and run.state == "terminated":
            status["lastState"] = {"terminated": _terminated(run)}
        status["state"] = {"waiting": _filled(reason=waiting.reason, message=waiting.message)}
    elif run is None or run.state == "waiting":
        told = run.message if run is not None else ""
        reason = (run.reason if run is not None else "") or "ContainerCreating"
        status["state"] = {"waiting": _filled(reason=reason, message=told)}
    elif run.state == "running":
        status["state"] = {"running": {"startedAt": whole_seconds(run.started_at)}}
    else:
        status["state"] = {"terminated": _terminated(run)}
    return status


def _container_before(pod: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    for each in (pod.get("status") or {}).get("containerStatuses") or ():
        if each["name"] == name:
            return dict(each)
    return {}


def _last_state(
    run: ContainerObservation | None, previous: ContainerObservation | None, before: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the end of the run before the current one: as observed, else as the API remembers it."""
    if run is None:
        return dict(before.get("lastState") or {})
    if previous is not None and previous.restart < run.restart:
        return {"terminated": _terminated(previous)}
    if before.get("restartCount", 0) < run.restart and "terminated" in (before.get("state") or {}):
        return {"terminated": before["state"]["terminated"]}
    return dict(before.get("lastState") or {})


def _terminated(run: ContainerObservation) -> dict[str, Any]:
    return {"exitCode": run.exit_code} | _filled(
        signal=run.signal,
        reason=run.reason or ("Completed" if run.exit_code == 0 else "Error"),
        message=run.message[:MESSAGE_CHARACTERS_MAX],
        startedAt=whole_seconds(run.started_at),
        finishedAt=whole_seconds(run.finished_at),
        containerID=run.container_id,
    )


def _conditions(
    before: Mapping[str, Any], phase: str, containers: list[dict[str, Any]], generation: int | None, now: str
) -> list[dict[str, Any]]:
    unready = [each["name"] for each in containers if not each["ready"]]
    has_started = any("running" in each["state"] for each in containers)
    reason, message = "", ""
    if phase in ENDED_PHASES:
        reason = "PodCompleted" if phase == "Succeeded" else "PodFailed"
    elif unready:
        reason, message = "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]"
    is_ready = not unready and phase == "Running"
    wanted = (
        ("PodReadyToStartContainers", has_started, "", ""),
        ("Initialized", True, "PodCompleted" if phase == "Succeeded" else "", ""),
        ("Ready", is_ready, "" if is_ready else reason, "" if is_ready else message),
        ("ContainersReady", is_ready, "" if is_ready else reason, "" if is_ready else message),
    )
    known = {each["type"]: each for each in before.get("conditions") or ()}
    conditions = []
    for type_, holds, why, what in wanted:
        status = "True" if holds else "False"
        old = known.get(type_)
        since = old["lastTransitionTime"] if old is not None and old["status"] == status else now
        condition = {"type": type_, "status": status, "lastTransitionTime": since} | _filled(reason=why, message=what)
        if generation is not None:
            condition["observedGeneration"] = generation
        conditions.append(condition)
    return conditions


def changes(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `wanted` that differs from the status as it is; empty: nothing to write."""
    changed = {
        key: value for key, value in wanted.items() if key != "conditions" and _without_nulls(before.get(key)) != value
    }
    known = {each["type"]: each for each in before.get("conditions") or ()}
    conditions = []
    for each in wanted["conditions"]:
        old = known.get(each["type"], {})
        gone = {key: None for key in ("reason", "message") if key in old and key not in each}
        if gone or any(old.get(key) != value for key, value in each.items()):
            conditions.append(each | gone)
    if conditions:
        changed["conditions"] = conditions
    return changed


def _without_nulls(value: Any) -> Any:
    """The API server writes times that are not set as null."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value


def whole_seconds(time: str) -> str:
    """Return an RFC 3339 time in UTC without its fraction."""
    head, _, _ = time.partition(".")
    return head.removesuffix("Z").removesuffix("+00:00") + "Z" if time else ""


def _filled(**fields: object) -> dict[str, Any]:
    """Leave out what is empty, as the API server does."""
    return {key: value for key, value in fields.items() if value}
