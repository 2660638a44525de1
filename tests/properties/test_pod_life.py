"""One pod through any order of wishes, ends, losses and restarts: the laws of its life hold, whatever happens."""

from datetime import UTC, datetime
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from provider.core.history import newest, remembered
from provider.core.launch import ContainerObservation
from provider.core.plan import ENDED_PHASES, Desired, Step, desired_of, epoch_s, plan
from provider.core.status import Knowledge, Place, changes, status_of

PLACE = Place(address="10.0.0.7", backend="model")
BEGIN_S = epoch_s("2026-01-31T12:00:00Z")
NAMES = ("main", "side")


def time_of(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class PodLife(RuleBasedStateMachine):
    """The shell in miniature: the API's object, a backend that keeps runs, and a node that may forget everything."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = BEGIN_S
        self.pod: dict[str, Any] | None = None
        self.backend: dict[str, ContainerObservation] = {}
        self.history: dict[str, ContainerObservation] = {}
        self.is_seen = False
        self.starts: list[tuple[str, int]] = []
        self.was_lost = False

    # -- the world

    @precondition(lambda self: self.pod is None and not self.starts)
    @rule(policy=st.sampled_from(["Never", "OnFailure", "Always"]), names=st.sampled_from([NAMES[:1], NAMES]))
    def create(self, policy: str, names: tuple[str, ...]) -> None:
        self.pod = {
            "metadata": {"name": "web", "uid": "u", "generation": 1},
            "spec": {"restartPolicy": policy, "containers": [{"name": name, "image": "app"} for name in names]},
            "status": {"phase": "Pending"},
        }

    @precondition(lambda self: self.pod is not None)
    @rule()
    def delete(self) -> None:
        assert self.pod is not None
        self.pod["metadata"]["deletionTimestamp"] = time_of(self.now_s)

    @precondition(lambda self: self.pod is not None)
    @rule()
    def delete_by_force(self) -> None:
        self.pod = None

    @precondition(lambda self: self.pod is not None)
    @rule()
    def evict(self) -> None:
        assert self.pod is not None
        self.pod["status"]["phase"] = "Failed"

    @rule(seconds=st.sampled_from([1, 10, 60, 700]))
    def wait(self, seconds: int) -> None:
        self.now_s += seconds

    @rule(name=st.sampled_from(NAMES), exit_code=st.sampled_from([0, 1]))
    def end(self, name: str, exit_code: int) -> None:
        run = self.backend.get(name)
        if run is not None and run.state == "running":
            self.backend[name] = ContainerObservation(
                name=name, restart=run.restart, state="terminated", started_at=run.started_at,
                finished_at=time_of(self.now_s), exit_code=exit_code,
            )  # fmt: skip

    @rule()
    def restart_node(self) -> None:
        """Everything that the process remembers is gone."""
        self.history, self.is_seen = {}, False

    @precondition(lambda self: self.backend)
    @rule()
    def restart_machine(self) -> None:
        self.restart_node()
        self.backend.clear()
        self.was_lost = True

    # -- the node

    @rule()
    def reconcile(self) -> None:
        if not self.is_seen:
            self.history = remembered((self.pod or {}).get("status") or {}, time_of(self.now_s))
            self.is_seen = True
        desired = desired_of(self.pod)
        if self.pod is None:
            step = plan(desired, "Never", (), self.backend, now_s=self.now_s)
        else:
            names = [each["name"] for each in self.pod["spec"]["containers"]]
            step = plan(desired, self.pod["spec"]["restartPolicy"], names, self.runs, now_s=self.now_s)
        if step.step is Step.START:
            assert desired is Desired.RUN
            for name, restart in step.starts.items():
                self.starts.append((name, restart))
                self.backend[name] = ContainerObservation(
                    name=name, restart=restart, state="running", started_at=time_of(self.now_s)
                )
        elif step.step is Step.STOP:
            for name in list(self.backend):
                self.end(name, 1)
        elif step.step is Step.FORGET:
            assert all(run.state == "terminated" for run in self.backend.values())
            self.backend.clear()
        if self.pod is not None:
            self.write_status()
        if step.step is Step.REMOVE:
            assert all(run.state == "terminated" for run in self.backend.values())
            self.pod = None

    @property
    def runs(self) -> dict[str, ContainerObservation]:
        return newest(self.history.values(), self.backend.values())

    def write_status(self) -> None:
        assert self.pod is not None
        before = self.pod["status"]
        wanted = status_of(self.pod, Knowledge(runs=self.runs), PLACE, now=time_of(self.now_s))
        if before["phase"] in ENDED_PHASES:
            assert wanted["phase"] == before["phase"], "a final phase was taken back"
        for old in before.get("containerStatuses") or ():
            new = next(each for each in wanted["containerStatuses"] if each["name"] == old["name"])
            assert new["restartCount"] >= old["restartCount"], "an older run was told"
        self.pod["status"] = before | wanted
        again = status_of(self.pod, Knowledge(runs=self.runs), PLACE, now=time_of(self.now_s + 5))
        assert changes(self.pod["status"], again) == {}, "the same knowledge was written twice"

    # -- the laws

    @invariant()
    def no_run_is_started_twice(self) -> None:
        # Only a machine that was lost before the first status was written can repeat a run: nothing remembers it.
        if not self.was_lost:
            assert len(self.starts) == len(set(self.starts))

    @invariant()
    def never_means_once(self) -> None:
        if self.pod is not None and self.pod["spec"]["restartPolicy"] == "Never":
            assert all(restart == 0 for _, restart in self.starts)

    def teardown(self) -> None:
        """When the world holds still, a pod that is not wanted is gone after a few looks."""
        if self.pod is not None:
            self.delete()
        for _ in range(4):
            self.reconcile()
        assert self.pod is None
        assert not self.backend


TestPodLife = PodLife.TestCase
TestPodLife.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
