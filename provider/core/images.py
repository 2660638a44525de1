"""Images that a backend without a container engine understands: names for what is on the machine already."""

from collections.abc import Mapping

from msgspec import Struct

from bus.core.assignment import ENVIRONMENT_NATS_URL, WORKER_IMAGE
from provider.core.launch import ContainerLaunch

HOST_IMAGE = "nodeless/host"
"""A program of the machine itself: the container's command is run as it is."""

COLD_PREFIXES = ("PYTHON", "LD_", "MALLOC_", "GLIBC_")
"""Variables that an interpreter, a loader or an allocator reads once, at its start."""


def repository_of(image: str) -> str:
    """Return an image reference without tag and digest."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def is_worker(image: str) -> bool:
    """Say whether the image is the function runtime, which a node may have in memory already."""
    return repository_of(image) == WORKER_IMAGE


class Refusal(Struct, frozen=True):
    """Why a pod can never run here: a CamelCase reason for programs, and a message for people."""

    reason: str
    message: str


def refusal_of(container: ContainerLaunch) -> Refusal | None:
    """Return why the machine itself cannot run this container, or None where it can."""
    who = f"container {container.name!r}"
    if is_worker(container.image):
        if container.command or container.args:
            return Refusal(
                "CommandNotSupported",
                f"{who} gives image {container.image!r} a command, and here that image is the function runtime alone; "
                f"leave command and args out, or take image {HOST_IMAGE!r}",
            )
    elif repository_of(container.image) == HOST_IMAGE:
        if not container.command and not container.args:
            return Refusal("CommandMissing", f"{who} has image {HOST_IMAGE!r} and no command: there is nothing to run")
    else:
        return Refusal(
            "ErrImageNeverPull",
            f"{who} wants image {container.image!r}, and this node has no container engine to run it; "
            f"it knows {WORKER_IMAGE} (the function runtime) and {HOST_IMAGE} (a command of the machine)",
        )
    return None


def cold_reason(environment: Mapping[str, str]) -> str:
    """Say why a worker with this environment cannot be forked from a parent that has done its imports; empty if it can."""
    early = sorted(name for name in environment if name.startswith(COLD_PREFIXES))
    if early:
        return f"{', '.join(early)} must act before the interpreter starts"
    if environment.get(ENVIRONMENT_NATS_URL, "").startswith(("ws:", "wss:")):
        return "the WebSocket client is not among what the parent has imported"
    return ""
