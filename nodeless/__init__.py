"""Nodeless: an event bus with function workers for Kubernetes, on nodes that are not there.

The public names of this package are resolved when they are first used, so that a worker's
`from nodeless import Event` costs nothing but the event.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bus.core.event import Event as Event
    from workers.declaration import function as function
    from workers.errors import Reject as Reject
    from workers.errors import RetryLater as RetryLater

__version__ = "0.1.0"

_PUBLIC = {
    "Event": "bus.core.event",
    "function": "workers.declaration",
    "Reject": "workers.errors",
    "RetryLater": "workers.errors",
}

__all__ = ["Event", "function", "Reject", "RetryLater", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'nodeless' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
