"""One program of the embedded system: how it is started, when it is ready, what has to be ready before it.

This is the seam between those who know a program (the control plane, the broker, our own three) and the supervisor that
runs them. It is data: whoever prepares a system writes it down, and the process that stays reads it and carries no more
than it needs.
"""

from collections.abc import Mapping

from msgspec import Struct, field

INHERITED = ("PATH", "HOME", "TMPDIR", "TZ", "LANG")
"""All that a program gets of our environment: proxies, ETCD_*, GODEBUG or KUBECONFIG would change what it does."""


def inherited_environment(ours: Mapping[str, str]) -> dict[str, str]:
    return {name: ours[name] for name in INHERITED if name in ours}


class Tls(Struct, frozen=True, kw_only=True):
    """How to speak to a server that asks who is there; paths of PEM files."""

    authority: str
    certificate: str
    key: str


class Post(Struct, frozen=True, kw_only=True):
    """A request that is made once, as soon as the program takes it."""

    path: str
    body: str
    accepted: tuple[int, ...]
    """The statuses that say that it need not be made again."""


class Answers(Struct, frozen=True, kw_only=True, tag="answers"):
    """Ready when `path` answers 200 on loopback."""

    port: int
    path: str
    tls: Tls | None = None
    """None for plain HTTP."""
    before: Post | None = None
    """What has to be accepted first."""


class Greets(Struct, frozen=True, kw_only=True, tag="greets"):
    """Ready when the first line that it says to whoever connects holds `text`."""

    port: int
    text: str


Readiness = Answers | Greets


class ProgramSpec(Struct, frozen=True, kw_only=True):
    """A program as its supervisor sees it. Names are unique within one system."""

    name: str
    argv: tuple[str, ...]
    """The command, its first element an absolute path."""

    env: dict[str, str] = field(default_factory=dict)
    """The whole environment; nothing is inherited (a user's HTTP_PROXY or ETCD_* must not reach these programs)."""

    cwd: str | None = None
    """Working directory; None for the supervisor's own."""

    after: tuple[str, ...] = ()
    """Names of the programs that have to be ready before this one is started, and that outlive it."""

    ready: Readiness | None = None
    """None for a step: it is ready when it has ended with status 0, and is not started again."""

    ready_within_s: float = 30.0
    """How long a start may take before it counts as failed. [seconds]"""

    stop_within_s: float = 10.0
    """Time between SIGTERM and SIGKILL. [seconds]"""

    lifeline_flag: str | None = None
    """The flag by which it learns the number of the descriptor that ends when its supervisor does: the read end of a
    pipe to which nobody writes. None: it gets none."""
