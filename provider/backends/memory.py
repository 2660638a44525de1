"""Pods that exist in memory alone: no process is started. The test kit of the node, under the contract of the seam.

A script for each image says what its containers do. The `Machine` is what lives on when a backend is left, or lost:
plain data, from which the state of a container at any time follows by computation.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from msgspec import Struct

from bus.core.assignment import WORKER_IMAGE
from provider.backends.seam import LogQuery
from provider.core.images import HOST_IMAGE, repository_of
from provider.core.launch import ContainerLaunch, ContainerObservation, PodLaunch, PodObservation
from provider.core.logs import LogSelection, time_of
from provider.errors import PodNotFound, PodRejected


class Script(Struct, frozen=True, kw_only=True):
    """What a container of one image does."""

    runs_s: float | None = None
    """How long it runs by itself; None: until it is stopped. [seconds]"""
    exit_code: int = 0
    signal: int = 0
    """Ends by this signal instead of with `exit_code`."""
    leaves_s: float | None = 0.0
    """How long after SIGTERM it leaves, with status 0; None: it does not heed SIGTERM. [seconds]"""
    lines: tuple[str, ...] = ()
    """What it prints when it starts."""
    message: str = ""
    """Its termination message."""


DEFAULT_SCRIPTS: Mapping[str, Script] = {WORKER_IMAGE: Script(), HOST_IMAGE: Script()}


class _Ended(Struct, frozen=True):
    at_ns: int
    exit_code: int
    signal: int = 0


class _Container:
    """One started container; times are nanoseconds since 1970."""

    def __init__(self, launch: ContainerLaunch, script: Script) -> None:
        self.name, self.restart, self.script = launch.name, launch.restart, script
        self.started_ns = time.time_ns()
        self.term_ns: int | None = None
        self.kill_ns: int | None = None
        stamp = time_of(self.started_ns)
        self.log = [f"{stamp} stdout F {line}\n".encode() for line in script.lines]

    def ending(self) -> _Ended | None:
        """Return how it ends, as far as that is settled: the earliest of its causes."""
        causes = []
        if self.script.runs_s is not None:
            at_ns = self.started_ns + int(self.script.runs_s * 1e9)
            code = 128 + self.script.signal if self.script.signal else self.script.exit_code
            causes.append(_Ended(at_ns, code, self.script.signal))
        if self.term_ns is not None and self.script.leaves_s is not None:
            causes.append(_Ended(self.term_ns + int(self.script.leaves_s * 1e9), 0))
        if self.kill_ns is not None:
            causes.append(_Ended(self.kill_ns, 137, 9))
        return min(causes, key=lambda cause: cause.at_ns, default=None)

    def has_ended(self) -> bool:
        ending = self.ending()
        return ending is not None and ending.at_ns <= time.time_ns()

    def stop(self, grace_s: float) -> None:
        now_ns = time.time_ns()
        if self.term_ns is None:
            self.term_ns = now_ns
        kill_ns = now_ns + int(grace_s * 1e9)
        self.kill_ns = min(kill_ns, self.kill_ns or kill_ns)

    def observation(self) -> ContainerObservation:
        known = ContainerObservation(
            name=self.name,
            restart=self.restart,
            state="running",
            started_at=time_of(self.started_ns),
            container_id=f"memory://{self.started_ns:x}",
        )
        ending = self.ending()
        if ending is None or ending.at_ns > time.time_ns():
            return known
        return ContainerObservation(
            name=self.name,
            restart=self.restart,
            state="terminated",
            started_at=known.started_at,
            finished_at=time_of(ending.at_ns),
            exit_code=ending.exit_code,
            signal=ending.signal,
            reason="Completed" if ending.exit_code == 0 else "Error",
            message=self.script.message,
            container_id=known.container_id,
        )


class _Pod:
    def __init__(self, launch: PodLaunch) -> None:
        self.uid, self.namespace, self.name = launch.uid, launch.namespace, launch.name
        self.containers: dict[str, list[_Container]] = {}
        """By name; one for each restart."""

    @property
    def current(self) -> list[_Container]:
        return [restarts[-1] for restarts in self.containers.values()]

    def observation(self) -> PodObservation:
        containers = tuple(container.observation() for container in self.current)
        return PodObservation(uid=self.uid, namespace=self.namespace, name=self.name, containers=containers)


class Machine:
    """What runs on, whoever looks. `starts` counts, so that a test can see a container that was started twice."""

    def __init__(self) -> None:
        self.pods: dict[str, _Pod] = {}
        self.starts: dict[tuple[str, str, int], int] = {}


class MemoryBackend:
    """`scripts` by repository of the image, without tag; a `machine` that is handed on is adopted."""

    name = "memory"

    def __init__(self, scripts: Mapping[str, Script] = DEFAULT_SCRIPTS, machine: Machine | None = None) -> None:
        self.machine = machine or Machine()
        self._scripts = scripts
        self._changed: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}

    async def __aenter__(self) -> Self:
        for pod in self.machine.pods.values():
            for container in pod.current:
                if not container.has_ended():
                    self._watch(pod, container)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def check(self, pod: PodLaunch) -> None:
        for container in pod.containers:
            if repository_of(container.image) not in self._scripts:
                raise PodRejected(
                    "ErrImageNeverPull",
                    f"container {container.name!r} wants image {container.image!r}; this backend knows {', '.join(sorted(self._scripts))}",
                )

    async def start(self, pod: PodLaunch) -> None:
        self.check(pod)
        known = self.machine.pods.setdefault(pod.uid, _Pod(pod))
        for launch in pod.containers:
            restarts = known.containers.setdefault(launch.name, [])
            if restarts and restarts[-1].restart >= launch.restart:
                continue
            container = _Container(launch, self._scripts[repository_of(launch.image)])
            restarts.append(container)
            key = (pod.uid, launch.name, launch.restart)
            self.machine.starts[key] = self.machine.starts.get(key, 0) + 1
            self._tell(pod.uid)
            self._watch(known, container)

    async def stop(self, uid: str, grace_s: float) -> None:
        pod = self._pod(uid)
        for container in pod.current:
            if not container.has_ended():
                container.stop(grace_s)
                self._watch(pod, container)

    async def forget(self, uid: str) -> None:
        pod = self.machine.pods.get(uid)
        if pod is not None and all(container.has_ended() for container in pod.current):
            del self.machine.pods[uid]

    def pods(self) -> Sequence[PodObservation]:
        return [pod.observation() for pod in self.machine.pods.values()]

    async def observations(self) -> AsyncIterator[PodObservation]:
        while True:
            while self._changed:
                uid = next(iter(self._changed))
                del self._changed[uid]
                pod = self.machine.pods.get(uid)
                if pod is not None:
                    yield pod.observation()
            self._wake.clear()
            await self._wake.wait()

    async def logs(self, uid: str, container: str, query: LogQuery) -> AsyncIterator[bytes]:
        restarts = self._pod(uid).containers.get(container, [])
        if len(restarts) < (2 if query.previous else 1):
            raise PodNotFound(uid, f"{'earlier run of ' if query.previous else ''}container {container!r}")
        one = restarts[-2 if query.previous else -1]
        selection = LogSelection(
            timestamps=query.timestamps, since=query.since_time, limit_bytes=query.limit_bytes
        )  # fmt: skip
        skipped = 0 if query.tail_lines is None else max(0, len(one.log) - query.tail_lines)
        for line in one.log[skipped:]:
            part = selection.take(line)
            if part:
                yield part
        # A script prints nothing later: only its end is waited for, which is a time and not an event.
        while query.follow and not one.has_ended() and not selection.is_full:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    def _pod(self, uid: str) -> _Pod:
        pod = self.machine.pods.get(uid)
        if pod is None:
            raise PodNotFound(uid)
        return pod

    def _tell(self, uid: str) -> None:
        self._changed[uid] = None
        self._wake.set()

    def _watch(self, pod: _Pod, container: _Container) -> None:
        """Have the end of `container` told when it comes."""
        key = (pod.uid, container.name)
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        ending = container.ending()
        if ending is None:
            return
        delay_s = max(0.0, (ending.at_ns - time.time_ns()) / 1e9)

        def ended() -> None:
            # The loop's clock and the machine's are not the same one; ask again where they differ.
            self._timers.pop(key, None)
            if container.has_ended():
                self._tell(pod.uid)
            else:
                self._watch(pod, container)

        self._timers[key] = asyncio.get_running_loop().call_later(delay_s, ended)
