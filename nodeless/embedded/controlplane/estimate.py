"""How far a Go build is, from what it says while it runs. Pure.

`go list` names the packages which are not in the build cache; the build prints each one's name when its compilation
starts. Packages differ a thousandfold in size, so each counts with the bytes of its source, plus what starting a compiler
costs. Linking comes last and says nothing: it counts as much as compiling the bytes that would take the same time.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

PACKAGE_BYTES = 15_000
"""What a package costs beside its own bytes, in bytes. (A build from nothing: 2546 packages, 99 MB.)"""
LINK_BYTES = 4_000_000
"""Linking takes about ten seconds, and two cores compile 0.4 MB of source a second."""
REMAINING_FROM_FRACTION = 0.03
"""Before this, a guess at the remaining time would be noise."""


class Package(NamedTuple):
    path: str
    is_cached: bool
    source_bytes: int


class BuildEstimate:
    """Follows one build of the last package in `packages`, whose own compilation counts as part of linking.

    `jobs` compilations run at a time, so that many of those begun last are not done yet.
    """

    def __init__(self, packages: Sequence[Package], jobs: int) -> None:
        self._weights: Mapping[str, int] = {
            package.path: package.source_bytes + PACKAGE_BYTES for package in packages[:-1] if not package.is_cached
        }
        self._in_hand: deque[str] = deque()
        self._jobs = max(1, jobs)
        self._done_bytes = 0
        self._begun: set[str] = set()
        self._all_bytes = sum(self._weights.values()) + LINK_BYTES

    @property
    def packages(self) -> int:
        """Packages to compile."""
        return len(self._weights)

    @property
    def begun(self) -> int:
        return len(self._begun)

    @property
    def is_linking(self) -> bool:
        return self.begun == self.packages

    @property
    def fraction(self) -> float:
        """Return how much is done, 0 to 1; never falls, and is 1 only for a build that is over."""
        return self._done_bytes / self._all_bytes

    def see(self, line: str) -> None:
        """Take one line of `go build -v`; lines which name no package to be built say nothing here."""
        path = line.strip()
        if path not in self._weights or path in self._begun:
            return
        self._begun.add(path)
        self._in_hand.append(path)
        while len(self._in_hand) > (0 if self.is_linking else self._jobs):
            self._done_bytes += self._weights[self._in_hand.popleft()]

    def remaining_s(self, elapsed_s: float) -> float | None:
        """Return the seconds left if it goes on as it went so far; None while nobody could know."""
        if self.fraction < REMAINING_FROM_FRACTION:
            return None
        return elapsed_s * (1 - self.fraction) / self.fraction


def rounded_time(seconds: float) -> str:
    """Return a time as one would say it: "40 s", "2 min 30 s"."""
    if seconds < 60:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes, rest = divmod(10 * round(seconds / 10), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"
