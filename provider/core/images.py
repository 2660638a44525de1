"""Images that a backend without a container engine understands: names for what is on the machine already."""

from bus.core.assignment import WORKER_IMAGE

HOST_IMAGE = "nodeless/host"
"""A program of the machine itself: the container's command is run as it is."""


def repository_of(image: str) -> str:
    """Return an image reference without tag and digest."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def is_worker(image: str) -> bool:
    """Say whether the image is the function runtime, which a node may have in memory already."""
    return repository_of(image) == WORKER_IMAGE
