"""What became of a pod's containers, put together from all that remembers them.

Three memories, none complete: the API's status (older, but survives everything), what this process has asked of the
backend (not shown by it yet), and what the backend observes. For each container the newest run counts, and of one run
the backend's word.

A run of which the API says "running" and the backend knows nothing was lost: the machine was restarted, or its
records were removed. It has ended, nobody knows how, and it is not silently started a second time.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from provider.core.launch import ContainerObservation

EXIT_UNKNOWN = 137
"""What a kubelet tells of a container that it could not find any more."""
REASON_UNKNOWN = "ContainerStatusUnknown"

Containers = Mapping[str, ContainerObservation]
"""By container name; a container that was never started is not in it."""


def remembered(status: Mapping[str, Any], now: str) -> dict[str, ContainerObservation]:
    """Return the runs that a pod's status tells of, for a node that has nothing else to go by.

    What the status calls running is lost, and ended `now` (RFC 3339) as far as anybody can tell.
    """
    found: dict[str, ContainerObservation] = {}
    for each in status.get("containerStatuses") or ():
        run = _run(each, now)
        if run is not None:
            found[each["name"]] = run
    return found


def _run(status: Mapping[str, Any], now: str) -> ContainerObservation | None:
    name, restart = status["name"], status.get("restartCount", 0)
    state: Mapping[str, Any] = status.get("state") or {}
    last: Mapping[str, Any] = status.get("lastState") or {}
    if "running" in state:
        return ContainerObservation(
            name=name,
            restart=restart,
            state="terminated",
            started_at=state["running"].get("startedAt") or "",
            finished_at=now,
            exit_code=EXIT_UNKNOWN,
            reason=REASON_UNKNOWN,
            message="the node was restarted, and nothing is known of this container any more",
            container_id=status.get("containerID", ""),
        )
    # Between two runs (CrashLoopBackOff) the one that ended is the last state.
    ended = state.get("terminated") or last.get("terminated")
    if ended is None:
        return None
    return ContainerObservation(
        name=name,
        restart=restart,
        state="terminated",
        started_at=ended.get("startedAt") or "",
        finished_at=ended.get("finishedAt") or "",
        exit_code=ended.get("exitCode", 0),
        signal=ended.get("signal", 0),
        reason=ended.get("reason", ""),
        message=ended.get("message", ""),
        container_id=ended.get("containerID", ""),
    )


def newest(*memories: Iterable[ContainerObservation]) -> dict[str, ContainerObservation]:
    """Return each container's newest run; of the same run, what the later memory says."""
    found: dict[str, ContainerObservation] = {}
    for memory in memories:
        for run in memory:
            known = found.get(run.name)
            if known is None or run.restart >= known.restart:
                found[run.name] = run
    return found
