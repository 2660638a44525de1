"""What this process remembers of one pod, beside API and backend (it can be lost at any time), and one look at it all."""

from typing import Any

from msgspec import Struct

from provider.core.history import Containers, newest
from provider.core.images import Refusal
from provider.core.launch import ContainerObservation, PodObservation
from provider.core.plan import Desired, Plan, calm_restart
from provider.core.status import Waiting


class Record:
    def __init__(self, history: dict[str, ContainerObservation]) -> None:
        self.history = history
        """What the API knew when the pod was first seen."""
        self.launched: dict[str, ContainerObservation] = {}
        """The newest run of each container that the backend has accepted."""
        self.launched_at = 0.0
        self.observation: PodObservation | None = None
        self.ends: dict[str, tuple[ContainerObservation, ...]] = {name: (run,) for name, run in history.items()}
        """The last two runs of each container that ended, newest last."""
        self.calm_restarts: dict[str, int] = {}
        self.waiting: Waiting | None = None
        """Why the last attempt to start did not succeed."""
        self.attempts = 0
        self.refusal: Refusal | None = None
        self.stop_grace_s: float | None = None
        """The grace period of the stop that the backend was asked for."""
        self.is_removed = False
        """The API server has accepted the removal; a finalizer may hold the object back."""
        self.answer: dict[str, Any] | None = None
        """The pod as the API server answered the last write: newer than the informer's, for a moment."""
        self.told: set[tuple[str, str, int]] = set()

    def observe(self, observation: PodObservation) -> None:
        self.observation = observation
        for run in observation.containers:
            self.calm_restarts[run.name] = calm_restart(self.calm_restarts.get(run.name, 0), run)
            before = self.ends.get(run.name, ())
            if run.state == "terminated" and (not before or before[-1].restart <= run.restart):
                # What the API remembers of the same run is a guess, where the backend knows.
                self.ends[run.name] = (*[end for end in before if end.restart < run.restart][-1:], run)

    @property
    def runs(self) -> Containers:
        observed = () if self.observation is None else self.observation.containers
        return newest(self.history.values(), self.launched.values(), observed)

    @property
    def in_backend(self) -> Containers:
        """The newest run of each container that the backend has: a start may name it again, harmlessly."""
        observed = () if self.observation is None else self.observation.containers
        return newest(self.launched.values(), observed)

    def previous(self, runs: Containers) -> dict[str, ContainerObservation]:
        """Return the run before the current one of each container."""
        return {
            name: older[-1]
            for name, ends in self.ends.items()
            if name in runs and (older := [end for end in ends if end.restart < runs[name].restart])
        }

    def first_time(self, what: str, container: str = "", restart: int = 0) -> bool:
        """Say whether `what` was not told before, and remember that it is now."""
        key = (what, container, restart)
        if key in self.told:
            return False
        self.told.add(key)
        return True


class View(Struct, frozen=True):
    """One pod at one moment."""

    pod: dict[str, Any] | None
    desired: Desired
    runs: Containers
    plan: Plan
