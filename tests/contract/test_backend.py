"""What the node relies on of whatever runs its pods: one suite for every backend."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path

import pytest

from provider.backends.memory import Machine, MemoryBackend, Script
from provider.backends.process.backend import ProcessBackend
from provider.backends.seam import Backend, LogQuery
from provider.core.launch import ContainerLaunch, ContainerObservation, PodLaunch
from provider.core.logs import nanoseconds_of
from provider.errors import PodNotFound, PodRejected

HOST = "nodeless/host:latest"
WAIT_S = 15.0

# behaviour -> (what a shell does, what a script in memory says)
BEHAVIOURS: dict[str, tuple[str, Script]] = {
    "runs": ("trap 'exit 0' TERM; echo ready; while :; do sleep 0.02; done", Script(lines=("ready",))),
    "succeeds": ("echo one; echo two; echo three", Script(runs_s=0.05, lines=("one", "two", "three"))),
    "fails": ("exit 3", Script(runs_s=0.05, exit_code=3)),
    "crashes": ("kill -SEGV $$", Script(runs_s=0.05, signal=11)),
    "is stubborn": ("trap '' TERM; echo ready; sleep 60", Script(leaves_s=None, lines=("ready",))),
    "explains": (
        'printf "no such table" > "$NODELESS_TERMINATION_LOG"; exit 1',
        Script(runs_s=0.05, exit_code=1, message="no such table"),
    ),
    "runs shortly": ("echo ready; sleep 0.3; echo done; exit 5", Script(runs_s=0.3, exit_code=5, lines=("ready",))),
}


class Kit:
    """One kind of backend on one machine, which outlives each backend opened on it."""

    def __init__(self, open_backend: Callable[[], AbstractAsyncContextManager[Backend]], *, is_real: bool) -> None:
        self.open = open_backend
        self._is_real = is_real

    def container(self, behaviour: str, name: str = "main", restart: int = 0) -> ContainerLaunch:
        if not self._is_real:
            return ContainerLaunch(name=name, image=f"{behaviour}:1", restart=restart)
        command = ("sh", "-c", BEHAVIOURS[behaviour][0])
        return ContainerLaunch(name=name, image=HOST, command=command, restart=restart)

    def pod(self, *behaviours: str, uid: str = "u1", restart: int = 0) -> PodLaunch:
        names = ("main", "second", "third")
        containers = tuple(
            self.container(behaviour, name, restart) for behaviour, name in zip(behaviours, names, strict=False)
        )
        return PodLaunch(uid=uid, namespace="default", name=f"pod-{uid}", containers=containers)


@pytest.fixture(params=["memory", pytest.param("process", marks=pytest.mark.integration)])
async def kit(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kit]:
    if request.param == "memory":
        machine = Machine()
        scripts = {behaviour: script for behaviour, (_, script) in BEHAVIOURS.items()}
        yield Kit(lambda: MemoryBackend(scripts, machine), is_real=False)
        assert all(count == 1 for count in machine.starts.values())
        return
    yield Kit(lambda: ProcessBackend(tmp_path / "node"), is_real=True)
    async with ProcessBackend(tmp_path / "node") as backend:
        await backend.end(grace_s=0)


def seen(backend: Backend, uid: str = "u1") -> dict[str, ContainerObservation]:
    return {
        container.name: container for pod in backend.pods() if pod.uid == uid for container in pod.containers
    }  # fmt: skip


async def wait_state(backend: Backend, state: str, uid: str = "u1", name: str = "main") -> ContainerObservation:
    async with asyncio.timeout(WAIT_S):
        while True:
            container = seen(backend, uid).get(name)
            if container is not None and container.state == state:
                return container
            await asyncio.sleep(0.005)


async def text_of(backend: Backend, uid: str = "u1", name: str = "main", **query: object) -> str:
    parts = [part async for part in backend.logs(uid, name, LogQuery(**query))]  # type: ignore[arg-type]
    return b"".join(parts).decode()


async def wait_printed(backend: Backend, text: str, uid: str = "u1", name: str = "main") -> None:
    async with asyncio.timeout(WAIT_S):
        while text not in await text_of(backend, uid, name):
            await asyncio.sleep(0.005)


async def test_a_started_pod_is_seen_running_with_its_names_and_times(kit: Kit) -> None:
    before_ns = time.time_ns()
    async with kit.open() as backend:
        await backend.start(kit.pod("runs"))

        (pod,) = backend.pods()
        (container,) = pod.containers
        assert (pod.uid, pod.namespace, pod.name) == ("u1", "default", "pod-u1")
        assert (container.state, container.restart, container.finished_at) == ("running", 0, "")
        assert before_ns // 1000 <= nanoseconds_of(container.started_at) // 1000 <= time.time_ns() // 1000
        assert container.container_id.startswith(f"{backend.name}://")


@pytest.mark.parametrize(
    ("behaviour", "exit_code", "signal", "reason"),
    [("succeeds", 0, 0, "Completed"), ("fails", 3, 0, "Error"), ("crashes", 139, 11, "Error")],
)
async def test_how_a_container_ended_is_known(
    kit: Kit, behaviour: str, exit_code: int, signal: int, reason: str
) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod(behaviour))

        container = await wait_state(backend, "terminated")

        assert (container.exit_code, container.signal, container.reason) == (exit_code, signal, reason)
        assert nanoseconds_of(container.started_at) <= nanoseconds_of(container.finished_at) <= time.time_ns()


async def test_a_termination_message_is_told(kit: Kit) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod("explains"))

        assert (await wait_state(backend, "terminated")).message == "no such table"


async def test_starting_again_starts_nothing_running_or_ended(kit: Kit) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod("runs", "succeeds"))
        ended = await wait_state(backend, "terminated", name="second")
        running = seen(backend)["main"]

        await backend.start(kit.pod("runs", "succeeds"))
        await asyncio.sleep(0.1)

        assert seen(backend) == {"main": running, "second": ended}
        assert await text_of(backend, name="second") == "one\ntwo\nthree\n"


async def test_a_higher_restart_number_starts_a_container_again_and_keeps_the_log_before(kit: Kit) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod("succeeds"))
        first = await wait_state(backend, "terminated")

        await backend.start(kit.pod("runs", restart=1))
        await wait_printed(backend, "ready")

        container = await wait_state(backend, "running")
        assert container.restart == 1
        assert container.container_id != first.container_id
        assert await text_of(backend) == "ready\n"
        assert await text_of(backend, previous=True) == "one\ntwo\nthree\n"


async def test_a_stopped_container_leaves_within_its_grace(kit: Kit) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod("runs"))
        await wait_printed(backend, "ready")

        await backend.stop("u1", 30)

        container = await wait_state(backend, "terminated")
        assert (container.exit_code, container.signal) == (0, 0)


async def test_a_container_that_does_not_leave_is_killed_after_its_grace(kit: Kit) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod("is stubborn"))
        await wait_printed(backend, "ready")
        before_s = time.monotonic()

        await backend.stop("u1", 0.3)

        container = await wait_state(backend, "terminated")
        assert (container.exit_code, container.signal, container.reason) == (137, 9, "Error")
        assert time.monotonic() - before_s >= 0.29


async def test_a_second_stop_shortens_the_grace_and_does_not_lengthen_it(kit: Kit) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod("is stubborn"))
        await wait_printed(backend, "ready")

        await backend.stop("u1", 60)
        await backend.stop("u1", 0.2)
        await backend.stop("u1", 60)

        assert (await wait_state(backend, "terminated")).signal == 9


async def test_all_containers_of_a_pod_are_stopped(kit: Kit) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod("runs", "runs", "succeeds"))
        await wait_printed(backend, "ready")
        await wait_printed(backend, "ready", name="second")
        await wait_state(backend, "terminated", name="third")

        await backend.stop("u1", 30)

        for name in ("main", "second", "third"):
            assert (await wait_state(backend, "terminated", name=name)).exit_code == 0


async def test_stopping_what_is_not_there_says_so(kit: Kit) -> None:
    async with kit.open() as backend:
        with pytest.raises(PodNotFound):
            await backend.stop("nobody", 1)


async def test_a_forgotten_pod_is_gone_and_its_uid_is_free_again(kit: Kit) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod("succeeds"))
        await wait_state(backend, "terminated")

        await backend.forget("u1")
        await backend.forget("u1")

        assert backend.pods() == []
        with pytest.raises(PodNotFound):
            await text_of(backend)
    async with kit.open() as backend:
        assert backend.pods() == []


async def test_a_running_pod_is_not_forgotten(kit: Kit) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod("runs"))

        await backend.forget("u1")

        assert seen(backend)["main"].state == "running"


async def test_every_change_is_observed_and_nothing_that_was_there_before(kit: Kit) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod("runs", uid="before"))
    async with kit.open() as backend:
        async with aclosing(backend.observations()) as observations, asyncio.timeout(WAIT_S):  # type: ignore[type-var]
            await backend.start(kit.pod("runs shortly", uid="u1"))
            states = []
            async for pod in observations:
                assert pod.uid == "u1"
                states.append(pod.containers[0].state)
                if states[-1] == "terminated":
                    break

        assert states == ["running", "terminated"]


async def test_what_runs_is_adopted_and_not_started_again(kit: Kit) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod("runs"))
        await wait_printed(backend, "ready")
        before = backend.pods()

    async with kit.open() as backend:
        assert backend.pods() == before
        await backend.start(kit.pod("runs"))
        assert backend.pods() == before

        await backend.stop("u1", 30)
        assert (await wait_state(backend, "terminated")).exit_code == 0


async def test_how_it_ended_while_nobody_looked_is_known(kit: Kit) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod("runs shortly"))
        started = seen(backend)["main"].started_at
    await asyncio.sleep(0.8)

    async with kit.open() as backend:
        container = seen(backend)["main"]
        assert (container.state, container.exit_code, container.started_at) == ("terminated", 5, started)


async def test_an_end_after_adoption_is_observed(kit: Kit) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod("runs shortly"))

    async with kit.open() as backend, aclosing(backend.observations()) as observations:  # type: ignore[type-var]
        async with asyncio.timeout(WAIT_S):
            pod = await anext(observations)

        assert (pod.containers[0].state, pod.containers[0].exit_code) == ("terminated", 5)


async def test_a_log_is_read_as_it_was_asked_for(kit: Kit) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod("succeeds"))
        container = await wait_state(backend, "terminated")

        assert await text_of(backend) == "one\ntwo\nthree\n"
        assert await text_of(backend, tail_lines=2) == "two\nthree\n"
        assert await text_of(backend, tail_lines=0) == ""
        assert await text_of(backend, limit_bytes=6) == "one\ntw"
        assert await text_of(backend, since_time="2999-01-01T00:00:00Z") == ""
        assert await text_of(backend, since_time=container.started_at, tail_lines=1) == "three\n"
        stamp, _, text = (await text_of(backend, timestamps=True, tail_lines=1)).partition(" ")
        assert text == "three\n"
        assert nanoseconds_of(container.started_at) <= nanoseconds_of(stamp) <= time.time_ns()


async def test_a_followed_log_ends_with_its_container(kit: Kit) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod("runs shortly"))
        before_s = time.monotonic()

        async with asyncio.timeout(WAIT_S):
            text = await text_of(backend, follow=True)

        assert text.startswith("ready\n")
        assert time.monotonic() - before_s > 0.2


async def test_no_log_of_what_is_not_there(kit: Kit) -> None:
    async with kit.open() as backend:
        await backend.start(kit.pod("succeeds"))

        for uid, name, previous in (("nobody", "main", False), ("u1", "other", False), ("u1", "main", True)):
            with pytest.raises(PodNotFound):
                await text_of(backend, uid, name, previous=previous)


async def test_an_image_that_is_not_known_is_refused_with_what_is_known(kit: Kit) -> None:
    pod = PodLaunch(
        uid="u1", namespace="default", name="p", containers=(ContainerLaunch(name="main", image="docker.io/nginx:1"),)
    )
    async with kit.open() as backend:
        with pytest.raises(PodRejected, match=r"docker\.io/nginx:1.*know") as refused:
            backend.check(pod)
        with pytest.raises(PodRejected):
            await backend.start(pod)

        assert refused.value.reason == "ErrImageNeverPull"
        assert backend.pods() == []
