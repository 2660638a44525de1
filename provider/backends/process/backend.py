"""The backend whose containers are processes of this machine: workers from a pre-forked parent, commands of the host.

This module keeps what is known of each pod and speaks the seam; `launcher` gets processes started, `container` watches
one, `records` says what is on disk. Nothing here holds a worker: parent and reaper live on when this process is lost.
"""

import fcntl
import logging
import os
import re
import shutil
import sys
from asyncio import AbstractEventLoop, Event, TimerHandle, get_running_loop
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import msgspec
from anyio.abc import TaskGroup

from provider.backends.process.container import Container
from provider.backends.process.launcher import Launcher, minimal_environment
from provider.backends.process.logfile import read_log
from provider.backends.process.records import (
    BUNDLES,
    LOG_SUFFIX,
    PODS,
    boot_id,
    read_exit,
    read_process,
    take_lock,
    write_whole,
)
from provider.backends.seam import LogQuery
from provider.core.images import cold_reason, is_worker, refusal_of
from provider.core.launch import ContainerLaunch, PodLaunch, PodObservation
from provider.core.processes import PodRecord, environment_of
from provider.errors import BackendUnavailable, PodNotFound, PodRejected

log = logging.getLogger(__name__)

POD_RECORD = "pod.json"
ROOT = Path(__file__).resolve().parents[3]
"""Where the packages are: a clone, or site-packages."""
ADOPTION_S = 1.0
"""How long a start that was interrupted may take to show its record, when a node comes back. [seconds]"""


class _Pod:
    """One pod; calls for it are taken one after the other."""

    def __init__(self, directory: Path, namespace: str, name: str) -> None:
        self.directory, self.namespace, self.name = directory, namespace, name
        self.uid = directory.name
        self.containers: dict[str, Container] = {}
        self.lock = anyio.Lock()
        self.kill_s: float | None = None
        """Set once it is to stop: when its containers are ended by force, on the loop's clock."""
        self.timer: TimerHandle | None = None

    def observation(self) -> PodObservation:
        containers = tuple(container.observation() for container in self.containers.values())
        return PodObservation(uid=self.uid, namespace=self.namespace, name=self.name, containers=containers)

    def write(self) -> None:
        """Keep names and restart numbers, never an environment."""
        restarts = {name: container.restart for name, container in self.containers.items()}
        record = PodRecord(namespace=self.namespace, name=self.name, containers=restarts)
        write_whole(self.directory / POD_RECORD, msgspec.json.encode(record))


class ProcessBackend:
    """Owns `state_directory`; one at a time. `lifeline_fd` is the read end of a pipe at whose end nothing may remain."""

    name = "process"

    def __init__(self, state_directory: Path, python: str = sys.executable, lifeline_fd: int | None = None) -> None:
        self._state = state_directory.absolute()
        self._pods_directory = self._state / PODS
        self._boot = boot_id()
        self._launcher = Launcher(self._state, ROOT, python, lifeline_fd)
        self._python = python
        self._pods: dict[str, _Pod] = {}
        self._changed: dict[str, None] = {}
        self._loop: AbstractEventLoop
        self._group: TaskGroup

    # -- lifetime

    async def __aenter__(self) -> Self:
        self._loop = get_running_loop()
        self._wake = Event()
        for directory in (self._state, self._pods_directory, self._state / BUNDLES):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._owner = self._take_ownership()
        try:
            self._group = anyio.create_task_group()
            await self._group.__aenter__()
            try:
                await self._launcher.open()
                self._group.start_soon(self._launcher.keep_reaper)
                await self._adopt_all()
            except BaseException:
                await self._leave()
                raise
        except BaseException:
            os.close(self._owner)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._leave()
        finally:
            os.close(self._owner)

    async def _leave(self) -> None:
        """Let go of everything; what runs runs on."""
        for pod in self._pods.values():
            if pod.timer is not None:
                pod.timer.cancel()
            for container in pod.containers.values():
                container.let_go()
        self._launcher.close()
        self._group.cancel_scope.cancel()
        await self._group.__aexit__(None, None, None)

    async def end(self, grace_s: float = 2.0) -> None:
        """End every worker, the parent and the reaper: for a node that goes for good. Statuses are still observed."""
        await self._launcher.end(grace_s)

    def _take_ownership(self) -> int:
        descriptor = os.open(self._state / "node.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise BackendUnavailable(
                "process", f"another node works in {self._state}; give each its own directory, or end that one"
            ) from error
        return descriptor

    async def _adopt_all(self) -> None:
        for directory in sorted(self._pods_directory.iterdir()):
            try:
                record = msgspec.json.decode((directory / POD_RECORD).read_bytes(), type=PodRecord)
            except (OSError, msgspec.DecodeError) as error:
                # The record comes before the first process: there is none.
                log.warning("remains of a pod removed", extra={"pod_uid": directory.name, "reason": str(error)})
                shutil.rmtree(directory, ignore_errors=True)
                continue
            pod = _Pod(directory, record.namespace, record.name)
            self._pods[pod.uid] = pod
            for name, restart in record.containers.items():
                pod.containers[name] = container = Container(directory, name, restart)
                await self._adopt(pod, container)
        if self._pods:
            log.info("pods adopted", extra={"pods": len(self._pods)})

    async def _adopt(self, pod: _Pod, container: Container) -> None:
        deadline_s = self._loop.time() + ADOPTION_S
        while container.directory.is_dir() and self._loop.time() < deadline_s:
            lock = take_lock(container.directory)
            if lock is not None:
                os.close(lock)
            if lock is not None or read_process(container.directory) or read_exit(container.directory):
                break
            await anyio.sleep(0.005)  # a start in the middle: its record comes
        if container.adopt(self._boot):
            assert container.process is not None
            container.watch(container.process, self._boot, lambda: self._gone(pod, container))

    # -- the seam

    def check(self, pod: PodLaunch) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", pod.uid):
            raise PodRejected("InvalidUID", f"pod UID {pod.uid!r} cannot be the name of a directory")
        for container in pod.containers:
            refusal = refusal_of(container)
            if refusal is not None:
                raise PodRejected(refusal.reason, refusal.message)

    async def start(self, pod: PodLaunch) -> None:
        self.check(pod)
        known = self._pods.get(pod.uid)
        if known is None:
            known = _Pod(self._pods_directory / pod.uid, pod.namespace, pod.name)
            self._pods[pod.uid] = known
        async with known.lock:
            wanted = []
            for launch in pod.containers:
                container = known.containers.get(launch.name)
                if container is None or container.restart < launch.restart:
                    container = Container(known.directory, launch.name, launch.restart)
                    wanted.append((launch, container))
                elif container.restart == launch.restart and container.process is None and not container.has_ended:
                    wanted.append((launch, container))
            if not wanted:
                return
            known.containers |= {container.name: container for _, container in wanted}
            known.directory.mkdir(mode=0o700, exist_ok=True)
            known.write()
            for launch, container in wanted:
                await self._start(known, container, launch)

    async def _start(self, pod: _Pod, container: Container, launch: ContainerLaunch) -> None:
        if container.has_ended:  # stopped while those before it were being started
            return
        container.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        container.log.touch(mode=0o600)  # a log is there from now on, however late the process writes to it
        self._drop_old(container)
        worker = is_worker(launch.image)
        environment = environment_of(
            launch.environment,
            minimal_environment(),
            bundles=str(self._state / BUNDLES),
            termination_log=str(container.termination_log),
            is_worker=worker,
        )
        wanted: dict[str, object] = {
            "environment": environment,
            "working_directory": launch.working_directory or "/",
            "memory_bytes_max": launch.memory_bytes_max,
        }
        cold = cold_reason(launch.environment) if worker else ""
        if worker and not cold:
            outcome = await self._launcher.start(container.directory, msgspec.json.encode(wanted), "parent")
        else:
            if cold:
                log.info("worker starts cold", extra={"pod_uid": pod.uid, "reason": cold})
                paths = [environment.get("PYTHONPATH", ""), str(ROOT)]
                environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
            argv = [self._python, "-P", "-m", "workers"] if worker else [*launch.command, *launch.args]
            wanted |= {"argv": argv, "copies_output": not worker}
            outcome = await self._launcher.start(container.directory, msgspec.json.encode(wanted), "reaper")
        if outcome.record is None:
            container.adopt(self._boot)
            self._tell(pod)
            return
        container.watch(outcome.record, self._boot, lambda: self._gone(pod, container))
        self._tell(pod)
        if pod.kill_s is not None:  # stopped meanwhile
            container.terminate()
            self._set_timer(pod, pod.kill_s)

    def _drop_old(self, container: Container) -> None:
        """Of earlier runs the last one is kept, for `kubectl logs --previous`."""
        if container.restart >= 2:
            old = container.directory.with_name(str(container.restart - 2))
            shutil.rmtree(old, ignore_errors=True)
            Path(f"{old}{LOG_SUFFIX}").unlink(missing_ok=True)

    async def stop(self, uid: str, grace_s: float) -> None:
        pod = self._pod(uid)
        kill_s = self._loop.time() + max(0.0, grace_s)
        is_first = pod.kill_s is None
        pod.kill_s = kill_s if pod.kill_s is None else min(kill_s, pod.kill_s)
        for container in pod.containers.values():
            if container.is_running and is_first and grace_s > 0:
                container.terminate()
            elif container.process is None and not container.has_ended and container.bar():
                self._tell(pod)
        self._set_timer(pod, pod.kill_s)

    def _set_timer(self, pod: _Pod, kill_s: float) -> None:
        if pod.timer is not None:
            pod.timer.cancel()
        if kill_s <= self._loop.time():
            self._kill(pod)
        else:
            pod.timer = self._loop.call_at(kill_s, self._kill, pod)

    def _kill(self, pod: _Pod) -> None:
        for container in pod.containers.values():
            if container.is_running:
                log.info("killed after its grace period", extra={"pod_uid": pod.uid, "container": container.name})
                container.kill()

    async def forget(self, uid: str) -> None:
        pod = self._pods.get(uid)
        if pod is None or pod.lock.locked() or any(container.is_running for container in pod.containers.values()):
            return
        if any(not container.has_ended and not container.bar() for container in pod.containers.values()):
            return  # being started at this moment by a request of a node before us
        del self._pods[uid]
        shutil.rmtree(pod.directory, ignore_errors=True)

    def pods(self) -> Sequence[PodObservation]:
        return [pod.observation() for pod in self._pods.values()]

    async def observations(self) -> AsyncIterator[PodObservation]:
        while True:
            while self._changed:
                uid = next(iter(self._changed))
                del self._changed[uid]
                pod = self._pods.get(uid)
                if pod is not None:
                    yield pod.observation()
            self._wake.clear()
            await self._wake.wait()

    async def logs(self, uid: str, container: str, query: LogQuery) -> AsyncIterator[bytes]:
        one = self._pod(uid).containers.get(container)
        if one is None:
            raise PodNotFound(uid, f"container {container!r}")
        path = one.earlier if query.previous else one.log
        if not path.exists() or (not query.previous and one.process is None):
            raise PodNotFound(uid, f"{'earlier' if query.previous else 'started'} run of container {container!r}")
        async for part in read_log(path, query, lambda: query.previous or one.has_ended):
            yield part

    # -- inside

    def _pod(self, uid: str) -> _Pod:
        pod = self._pods.get(uid)
        if pod is None:
            raise PodNotFound(uid)
        return pod

    def _tell(self, pod: _Pod) -> None:
        self._changed[pod.uid] = None
        self._wake.set()

    def _gone(self, pod: _Pod, container: Container) -> None:
        self._group.start_soon(self._learn_status, pod, container)

    async def _learn_status(self, pod: _Pod, container: Container) -> None:
        await container.wait_status()
        observation = container.observation()
        log.info(
            "container ended",
            extra={"pod_uid": pod.uid, "container": container.name, "exit_code": observation.exit_code, "reason": observation.reason},
        )  # fmt: skip
        self._tell(pod)
