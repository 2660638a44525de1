"""What a backend is told about one pod, and what it tells back: plain values, the same for every backend.

The node side has resolved everything by then (environment, references, defaults): a backend reads nothing of
Kubernetes. Containers are identified by pod UID, name and restart number.
"""

from typing import Literal

from msgspec import Struct


class ContainerLaunch(Struct, frozen=True, kw_only=True):
    """One container to run."""

    name: str
    image: str
    command: tuple[str, ...] = ()
    """Replaces the image's entry point; empty: the image's own."""
    args: tuple[str, ...] = ()
    working_directory: str = ""
    environment: dict[str, str] = {}
    """The whole environment, resolved. Secrets are in it: never to be logged."""
    memory_bytes_max: int | None = None
    restart: int = 0
    """How often this container was started before; names its log file too."""


class PodLaunch(Struct, frozen=True, kw_only=True):
    """One pod to run."""

    uid: str
    namespace: str
    name: str
    containers: tuple[ContainerLaunch, ...]


class ContainerObservation(Struct, frozen=True, kw_only=True):
    """One container, as the backend sees it now. Times are RFC 3339, UTC, with microseconds."""

    name: str
    restart: int
    state: Literal["waiting", "running", "terminated"]
    started_at: str = ""
    finished_at: str = ""
    exit_code: int = 0
    """128 and the signal where a signal ended it, as a kubelet tells it."""
    signal: int = 0
    reason: str = ""
    """For Kubernetes: Completed, Error, OOMKilled, ContainerStatusUnknown, …"""
    message: str = ""
    """Termination message, or why it waits."""
    container_id: str = ""
    """`<backend>://<id>`."""


class PodObservation(Struct, frozen=True, kw_only=True):
    """One pod, as the backend sees it now. A pod of which nothing is left (`forget`) is not observed any more."""

    uid: str
    namespace: str
    name: str
    containers: tuple[ContainerObservation, ...]
