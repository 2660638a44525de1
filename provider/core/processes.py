"""Decisions about containers that are processes of the machine: their environment, and how their end is told."""

from collections.abc import Mapping

from msgspec import Struct

from bus.core.assignment import ENVIRONMENT_BUNDLES, ENVIRONMENT_LOG, ENVIRONMENT_TERMINATION_LOG
from provider.core.history import EXIT_UNKNOWN, REASON_UNKNOWN
from provider.core.launch import ContainerObservation
from provider.core.logs import time_of

"""Set to `cri` it makes a worker write its log in the format of container engines."""
MESSAGE_BYTES_MAX = 4096
"""As much of a termination message as Kubernetes takes."""


class PodRecord(Struct, frozen=True, kw_only=True):
    """What is kept on disk about a pod, so that a node that comes later knows whose processes these are."""

    namespace: str = ""
    name: str = ""
    containers: dict[str, int] = {}
    """Restart number by name, in the pod's order."""


class Ending(Struct, frozen=True, kw_only=True):
    """How a container ended, as far as it is known."""

    exit_code: int
    signal: int = 0
    finished_ns: int
    reason: str = ""
    message: str = ""


def environment_of(
    given: Mapping[str, str], minimal: Mapping[str, str], *, bundles: str, termination_log: str, is_worker: bool
) -> dict[str, str]:
    """Return the whole environment of a container's process; what the pod gives wins over the minimum."""
    environment = {**minimal, **given, ENVIRONMENT_TERMINATION_LOG: termination_log}
    if is_worker:
        environment |= {ENVIRONMENT_BUNDLES: bundles, ENVIRONMENT_LOG: "cri"}
    return environment


def unknown_ending(now_ns: int) -> Ending:
    return Ending(
        exit_code=EXIT_UNKNOWN,
        finished_ns=now_ns,
        reason=REASON_UNKNOWN,
        message="its process is gone, and nobody was there to see how it ended",
    )


def never_started(now_ns: int) -> Ending:
    return Ending(
        exit_code=EXIT_UNKNOWN, finished_ns=now_ns, reason="NotStarted", message="it was stopped before it was started"
    )


def terminated(
    name: str, restart: int, ending: Ending, *, started_ns: int, message: str, container_id: str
) -> ContainerObservation:
    """Return the observation of an ended container; its own termination message is worth more than ours."""
    reason = ending.reason or ("Completed" if ending.exit_code == 0 else "Error")
    return ContainerObservation(
        name=name,
        restart=restart,
        state="terminated",
        started_at=time_of(started_ns),
        finished_at=time_of(ending.finished_ns),
        exit_code=ending.exit_code,
        signal=ending.signal,
        reason=reason,
        message=message or ending.message,
        container_id=container_id,
    )
