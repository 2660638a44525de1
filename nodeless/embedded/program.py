"""One program of the embedded system: how it is started, when it is ready, what has to be ready before it.

This is the seam between those who know a program (the control plane, the broker, our own three) and the supervisor that
runs them. It holds no behaviour.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ProgramSpec:
    """A program as its supervisor sees it. Names are unique within one system."""

    name: str
    argv: tuple[str, ...]
    """The command, its first element an absolute path."""

    env: Mapping[str, str] = field(default_factory=dict)
    """The whole environment; nothing is inherited (a user's HTTP_PROXY or ETCD_* must not reach these programs)."""

    cwd: Path | None = None
    """Working directory; None for the supervisor's own."""

    after: tuple[str, ...] = ()
    """Names of the programs that have to be ready before this one is started."""

    ready: Callable[[], Awaitable[None]]
    """Returns as soon as the program serves; may be asked again at any time.

    It asks as often as it sees fit, never raises because the program is not there yet, and waits for ever: the caller
    sets the deadline (`ready_within_s`) and cancels it when the process ends.
    """

    ready_within_s: float = 30.0
    """How long a start may take before it counts as failed. [seconds]"""

    stop_within_s: float = 10.0
    """Time between SIGTERM and SIGKILL. [seconds]"""
