"""Processes of this machine as pods, and what becomes of them when the node, the parent, the reaper or all are killed."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.core.assignment import Assignment, encode_assignment
from provider.backends.process.backend import ProcessBackend
from provider.backends.seam import LogQuery
from provider.core.launch import ContainerLaunch, ContainerObservation, PodLaunch
from provider.errors import BackendUnavailable
from tests.broker import running_broker
from tests.worker import function_on

pytestmark = pytest.mark.integration

WORKER = "nodeless/worker:test"
HOST = "nodeless/host"
WAIT_S = 15.0
SECRET = "correct-horse-battery-staple"
ROUNDS = 10
UNASSIGNED = "this worker was given no assignment"
"""What a worker without an assignment prints, once, before it leaves with status 64."""

# A node in a process of its own, to be killed: it starts the pods it reads, one a line, and says when each is started.
NODE_SIDE = """
import asyncio, sys
from pathlib import Path
import msgspec
from provider.backends.process.backend import ProcessBackend
from provider.core.launch import PodLaunch

async def main():
    async with ProcessBackend(Path(sys.argv[1])) as backend:
        for line in sys.stdin.buffer:
            pod = msgspec.json.decode(line, type=PodLaunch)
            await backend.start(pod)
            print(pod.uid, flush=True)

asyncio.run(main())
"""


def worker(uid: str, environment: dict[str, str] | None = None) -> PodLaunch:
    container = ContainerLaunch(name="worker", image=WORKER, environment=environment or {})
    return PodLaunch(uid=uid, namespace="default", name=f"pod-{uid}", containers=(container,))


def host(uid: str, script: str, **more: Any) -> PodLaunch:
    container = ContainerLaunch(name="worker", image=HOST, command=("sh", "-c", script), **more)
    return PodLaunch(uid=uid, namespace="default", name=f"pod-{uid}", containers=(container,))


@pytest.fixture
def waiting(silent_broker: str) -> Callable[[str], PodLaunch]:
    """Pods whose worker waits for a broker that says nothing."""
    assignment = Assignment(
        namespace="default", function="f", uid="u", version="v", handler="a:f", bundle=f"sha256:{'0' * 64}", consumer="f"
    )  # fmt: skip
    environment = {
        "NODELESS_ASSIGNMENT": encode_assignment(assignment),
        "NODELESS_NATS_URL": silent_broker,
        "SECRET": SECRET,
    }
    return lambda uid: worker(uid, environment)


@pytest.fixture
def silent_broker() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"nats://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[Path]:
    directory = tmp_path / "node"
    yield directory
    async with ProcessBackend(directory) as backend:
        await backend.end(grace_s=0)
    assert not (directory / "processes.json").exists()


def seen(backend: ProcessBackend, uid: str) -> ContainerObservation:
    return next(pod.containers[0] for pod in backend.pods() if pod.uid == uid)


async def wait_for(what: Callable[[], Any], wait_s: float = WAIT_S) -> Any:
    async with asyncio.timeout(wait_s):
        while not (found := what()):
            await asyncio.sleep(0.005)
    return found


async def wait_ended(backend: ProcessBackend, uid: str) -> ContainerObservation:
    await wait_for(lambda: seen(backend, uid).state == "terminated")
    return seen(backend, uid)


async def text_of(backend: ProcessBackend, uid: str) -> str:
    return b"".join([part async for part in backend.logs(uid, "worker", LogQuery())]).decode()


def processes(state: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((state / "processes.json").read_text())
    return found


async def recorded_pid(state: Path, uid: str) -> int:
    record = state / "pods" / uid / "worker" / "0" / "process.json"
    await wait_for(record.exists)
    pid: int = json.loads(record.read_text())["pid"]
    return pid


def pid_of(container: ContainerObservation) -> int:
    return int(container.container_id.removeprefix("process://").partition("-")[0])


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def has_more_pods(state: Path, count: int) -> bool:
    return len(list(state.glob("pods/*/pod.json"))) > count


class NodeSide:
    """A node's backend in a process of its own."""

    def __init__(self, state: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", NODE_SIDE, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def send(self, pod: PodLaunch) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(pod) + b"\n")
        self.process.stdin.flush()

    async def start(self, *pods: PodLaunch) -> None:
        for pod in pods:
            self.send(pod)
            assert self.process.stdout is not None
            line = await asyncio.to_thread(self.process.stdout.readline)
            assert line.decode().strip() == pod.uid

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=5)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@asynccontextmanager
async def node_side(state: Path) -> AsyncIterator[NodeSide]:
    node = NodeSide(state)
    try:
        yield node
    finally:
        if node.process.returncode is None:
            node.kill()


async def test_a_forked_worker_handles_an_event_and_leaves_in_order(state: Path, tmp_path: Path) -> None:
    source = (
        "import os, random, sys, time\n"
        "print('loaded')\n"
        "def handle(event):\n"
        "    print('handling', event.id)\n"
        "    time.sleep(0.02)\n"
        "    return {'pid': os.getpid(), 'random': random.random(), 'secret': os.environ['SECRET'], 'argv': sys.argv}\n"
    )
    async with (
        running_broker(tmp_path / "nats") as broker,
        function_on(broker, tmp_path, source) as function,
        ProcessBackend(state) as backend,
    ):
        environment = {
            "NODELESS_ASSIGNMENT": encode_assignment(function.assignment),
            "NODELESS_NATS_URL": broker.url,
            "NODELESS_NATS_CREDENTIALS": broker.worker_credentials(function.assignment),
            "NODELESS_POD_NAME": "billing-0",
            "SECRET": SECRET,
        }
        await function.publish(200)
        for uid in ("one", "two"):
            await backend.start(worker(uid, environment | {"NODELESS_POD_UID": uid}))
        await function.wait_settled()
        results = [json.loads(data) for data, _ in (await function.results()).values()]
        for uid in ("one", "two"):
            await backend.stop(uid, 10)

        for uid in ("one", "two"):
            assert (await wait_ended(backend, uid)).exit_code == 0
            assert "loaded\n" in await text_of(backend, uid)
        pids = {pid_of(seen(backend, uid)) for uid in ("one", "two")}
        assert len(results) == 200
        assert {result["pid"] for result in results} == pids
        assert len({result["random"] for result in results}) == 200
        assert {result["secret"] for result in results} == {SECRET}


async def test_a_process_gets_exactly_the_environment_of_its_pod(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_NODE", "1")
    async with ProcessBackend(state) as backend:
        await backend.start(host("u1", "env; pwd", environment={"A": "1", "LANG": "de_DE.UTF-8"}))
        await wait_ended(backend, "u1")
        *lines, directory = (await text_of(backend, "u1")).splitlines()

    environment = dict(line.partition("=")[::2] for line in lines)
    # The shell adds the last three.
    assert set(environment) - {"PWD", "SHLVL", "_"} == {
        "A", "LANG", "PATH", "HOME", "TMPDIR", "NODELESS_TERMINATION_LOG"
    }  # fmt: skip
    assert (environment["A"], environment["LANG"], directory) == ("1", "de_DE.UTF-8", "/")


async def test_no_secret_is_on_disk(state: Path, waiting: Callable[[str], PodLaunch]) -> None:
    async with ProcessBackend(state) as backend:
        await backend.start(waiting("u1"))
        await backend.start(host("u2", "sleep 30", environment={"SECRET": SECRET}))

        assert seen(backend, "u1").state == seen(backend, "u2").state == "running"
        for path in state.rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


async def test_an_environment_that_acts_before_imports_starts_a_worker_cold(state: Path) -> None:
    async with ProcessBackend(state) as backend:
        await backend.start(worker("u1", {"PYTHONVERBOSE": "1"}))

        assert (await wait_ended(backend, "u1")).exit_code == 64
        text = await text_of(backend, "u1")
        assert UNASSIGNED in text
        assert "import 'workers.runtime'" in text


async def test_a_command_that_cannot_be_run_says_so(state: Path) -> None:
    async with ProcessBackend(state) as backend:
        container = ContainerLaunch(name="worker", image=HOST, command=("/no/such/program",))
        await backend.start(PodLaunch(uid="u1", namespace="default", name="p", containers=(container,)))

        ended = await wait_ended(backend, "u1")
        assert (ended.exit_code, ended.reason) == (128, "StartError")
        assert "'/no/such/program' cannot be started: No such file or directory" in ended.message


async def test_what_a_command_left_running_ends_with_it(state: Path, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    async with ProcessBackend(state) as backend:
        await backend.start(host("u1", f"sleep 60 & echo $! > {note}; exit 0"))

        assert (await wait_ended(backend, "u1")).exit_code == 0
        pid = int(note.read_text())
        await wait_for(lambda: not is_there(pid))


async def test_long_lines_and_unended_ones_come_out_whole(state: Path) -> None:
    async with ProcessBackend(state) as backend:
        await backend.start(host("u1", "head -c 50000 /dev/zero | tr '\\0' x; echo; printf end"))
        await wait_ended(backend, "u1")

        assert await text_of(backend, "u1") == "x" * 50000 + "\nend\n"
        raw = (state / "pods/u1/worker/0.log").read_text().splitlines()
        assert [line.split(" ", 3)[2] for line in raw] == ["P", "P", "P", "F", "F"]


async def test_a_followed_log_is_told_as_it_grows(state: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with ProcessBackend(state) as backend:
        await backend.start(host("u1", f"echo first; until [ -e {gate} ]; do sleep 0.01; done; echo last"))
        async with asyncio.timeout(WAIT_S):
            parts = []
            async for part in backend.logs("u1", "worker", LogQuery(follow=True)):
                parts.append(part)
                gate.touch()

        assert parts == [b"first\n", b"last\n"]


async def test_a_pod_stopped_before_its_start_never_starts(state: Path, waiting: Callable[[str], PodLaunch]) -> None:
    async with ProcessBackend(state) as backend:
        await backend.start(waiting("warm"))  # the parent is there
        os.kill(processes(state)["prefork"], signal.SIGSTOP)
        starting = asyncio.ensure_future(backend.start(waiting("u1")))
        await asyncio.sleep(0.05)

        await backend.stop("u1", 5)
        os.kill(processes(state)["prefork"], signal.SIGCONT)
        await starting

        ended = seen(backend, "u1")
        assert (ended.state, ended.reason, ended.started_at) == ("terminated", "NotStarted", "")
        assert not (state / "pods/u1/worker/0/process.json").exists()


async def test_two_nodes_do_not_work_in_one_directory(state: Path) -> None:
    async with ProcessBackend(state):
        with pytest.raises(BackendUnavailable, match="another node works in"):
            async with ProcessBackend(state):
                pass


async def test_workers_live_on_when_the_parent_is_killed_and_their_ends_are_known(
    state: Path, waiting: Callable[[str], PodLaunch]
) -> None:
    async with ProcessBackend(state) as backend:
        await backend.start(waiting("before"))
        await backend.start(waiting("lives"))
        parent = processes(state)["prefork"]

        await recorded_pid(state, "before")
        os.kill(parent, signal.SIGKILL)
        await backend.start(waiting("after"))
        os.kill(pid_of(seen(backend, "before")), signal.SIGUSR1)
        os.kill(pid_of(seen(backend, "after")), signal.SIGUSR1)

        for uid in ("before", "after"):
            ended = await wait_ended(backend, uid)
            assert (ended.exit_code, ended.signal) == (128 + signal.SIGUSR1, signal.SIGUSR1)
        assert seen(backend, "lives").state == "running"
        assert processes(state)["prefork"] != parent


async def test_a_start_while_there_is_no_parent_waits_for_the_next(state: Path) -> None:
    async with ProcessBackend(state) as backend:
        await backend.start(worker("warm"))
        os.kill(processes(state)["prefork"], signal.SIGKILL)

        await asyncio.gather(*(backend.start(worker(f"u{number}")) for number in range(5)))

        for number in range(5):
            assert (await wait_ended(backend, f"u{number}")).exit_code == 64


async def test_after_the_node_was_killed_its_workers_are_adopted_with_their_ends(
    state: Path, waiting: Callable[[str], PodLaunch]
) -> None:
    async with node_side(state) as node:
        await node.start(waiting("runs"), waiting("dies"), worker("leaves"), host("script", "sleep 0.2; exit 7"))
        node.kill()
    pid = await recorded_pid(state, "dies")
    os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.5)

    async with ProcessBackend(state) as backend:
        assert {pod.uid: (pod.containers[0].state, pod.containers[0].exit_code) for pod in backend.pods()} == {
            "runs": ("running", 0),
            "dies": ("terminated", 137),
            "leaves": ("terminated", 64),
            "script": ("terminated", 7),
        }
        running = seen(backend, "runs")
        await backend.start(waiting("runs"))
        assert seen(backend, "runs") == running

        await backend.stop("runs", 0)
        assert (await wait_ended(backend, "runs")).signal == signal.SIGKILL


async def test_after_node_and_parent_were_killed_workers_are_adopted_with_their_ends(
    state: Path, waiting: Callable[[str], PodLaunch]
) -> None:
    async with node_side(state) as node:
        await node.start(waiting("runs"), waiting("dies"))
        parent = processes(state)["prefork"]
        node.kill()
        os.kill(parent, signal.SIGKILL)
    pid = await recorded_pid(state, "dies")
    os.kill(pid, signal.SIGTERM)
    await asyncio.sleep(0.3)

    async with ProcessBackend(state) as backend:
        assert seen(backend, "runs").state == "running"
        dead = seen(backend, "dies")
        assert (dead.state, dead.exit_code, dead.signal) == ("terminated", 143, signal.SIGTERM)

        os.kill(pid_of(seen(backend, "runs")), signal.SIGKILL)
        assert (await wait_ended(backend, "runs")).signal == signal.SIGKILL


async def test_when_the_reaper_is_killed_workers_live_on_and_what_is_not_known_is_said(
    state: Path, waiting: Callable[[str], PodLaunch]
) -> None:
    async with ProcessBackend(state) as backend:
        await backend.start(waiting("dies"))
        await backend.start(host("script", "sleep 0.5; exit 7"))
        before = processes(state)

        os.kill(before["reaper"], signal.SIGKILL)
        await wait_for(lambda: (state / "processes.json").exists() and processes(state)["reaper"] != before["reaper"])
        await backend.start(worker("after"))

        assert (await wait_ended(backend, "after")).exit_code == 64
        assert (await wait_ended(backend, "script")).exit_code == 7
        assert seen(backend, "dies").state == "running"
        os.kill(pid_of(seen(backend, "dies")), signal.SIGKILL)
        unknown = await wait_ended(backend, "dies")
        assert (unknown.exit_code, unknown.reason) == (137, "ContainerStatusUnknown")
        await wait_for(lambda: not is_there(before["prefork"]))


async def test_when_the_lifeline_ends_nothing_remains(state: Path, waiting: Callable[[str], PodLaunch]) -> None:
    lifeline, held = os.pipe()
    note = state.parent / "pids"
    stubborn = (
        f"trap '' TERM; (trap '' TERM; setsid sleep 60 & echo $! >> {note}; wait) & echo $! $$ >> {note}; sleep 60"
    )
    async with ProcessBackend(state, lifeline_fd=lifeline) as backend:
        await backend.start(waiting("worker"))
        await backend.start(host("stubborn", stubborn))
        await wait_for(lambda: note.exists() and len(note.read_text().split()) == 3)
        pids = {*processes(state).values(), *(pid_of(seen(backend, uid)) for uid in ("worker", "stubborn"))}
        pids |= {int(pid) for pid in note.read_text().split()}
        assert all(is_there(pid) for pid in pids)

        os.close(held)

        await wait_for(lambda: not any(is_there(pid) for pid in pids))
        assert (await wait_ended(backend, "worker")).signal == signal.SIGTERM
        assert (await wait_ended(backend, "stubborn")).signal == signal.SIGKILL
    os.close(lifeline)


async def test_a_lifeline_is_handed_to_a_reaper_that_was_there(
    state: Path, waiting: Callable[[str], PodLaunch]
) -> None:
    async with ProcessBackend(state) as backend:
        await backend.start(waiting("u1"))
        pids = {*processes(state).values(), pid_of(seen(backend, "u1"))}
    lifeline, held = os.pipe()
    async with ProcessBackend(state, lifeline_fd=lifeline):
        pass
    os.close(lifeline)
    assert all(is_there(pid) for pid in pids)

    os.close(held)

    await wait_for(lambda: not any(is_there(pid) for pid in pids))


async def test_no_pod_is_started_twice_while_parents_are_killed(state: Path) -> None:
    async with ProcessBackend(state) as backend:
        uids = [f"u{number}" for number in range(5 * ROUNDS)]
        for number in range(ROUNDS):
            await backend.start(worker(f"warm{number}"))
            parent = processes(state)["prefork"]
            await asyncio.sleep(1.0)  # one that dies young is started again later each time
            mine = uids[5 * number : 5 * number + 5]
            starting = asyncio.gather(*(backend.start(worker(uid)) for uid in mine))
            await asyncio.sleep(number * 0.001)
            os.kill(parent, signal.SIGKILL)
            await starting
            for uid in mine:
                await backend.start(worker(uid))

        for uid in uids:
            assert (await wait_ended(backend, uid)).exit_code == 64
        counts = Counter((state / f"pods/{uid}/worker/0.log").read_text().count(UNASSIGNED) for uid in uids)
        assert counts == {1: len(uids)}


async def test_no_pod_is_started_twice_or_lost_while_nodes_are_killed(state: Path) -> None:
    uids = [f"u{number}" for number in range(40)]
    for round_ in range(5):
        async with node_side(state) as node:
            for uid in uids:
                node.send(worker(uid))
            await wait_for(partial(has_more_pods, state, round_ * 8))
            node.kill()

    async with ProcessBackend(state) as backend:
        for uid in uids:
            await backend.start(worker(uid))
        for uid in uids:
            assert (await wait_ended(backend, uid)).exit_code == 64
        counts = Counter((state / f"pods/{uid}/worker/0.log").read_text().count(UNASSIGNED) for uid in uids)
        assert counts == {1: 40}


async def test_reaper_and_parent_are_small(state: Path) -> None:
    async with ProcessBackend(state) as backend:
        await backend.start(worker("u1"))
        await wait_ended(backend, "u1")
        sizes = {}
        for name, pid in processes(state).items():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
            assert found is not None
            sizes[name] = int(found[1]) / 1024

    assert sizes["reaper"] < 16
    assert sizes["prefork"] < 40


async def test_a_start_takes_milliseconds(state: Path) -> None:
    async with ProcessBackend(state) as backend:
        await backend.start(worker("warm"))
        durations = []
        for number in range(20):
            before_s = time.perf_counter()
            await backend.start(worker(f"u{number}"))
            durations.append(time.perf_counter() - before_s)

    # Generous, for machines that do other things meanwhile: what counts is that nothing is imported or waited for.
    assert sorted(durations)[10] < 0.1


async def test_a_start_that_goes_on_after_its_node_has_left_starts_nothing(state: Path) -> None:
    async with ProcessBackend(state) as backend:
        await backend.start(worker("warm"))
        os.kill(processes(state)["prefork"], signal.SIGSTOP)
        starting = asyncio.ensure_future(backend.start(worker("u1")))
        await asyncio.sleep(0.05)
        await backend.end(grace_s=0)

    with pytest.raises(BackendUnavailable):
        await starting
    assert not (state / "processes.json").exists()
    assert not (state / "pods/u1/worker/0/process.json").exists()


async def test_a_start_that_was_given_up_starts_nothing_once_its_pod_is_forgotten(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provider.backends.process.launcher.START_S", 0.3)
    async with ProcessBackend(state) as backend:
        await backend.start(worker("warm"))
        os.kill(processes(state)["prefork"], signal.SIGSTOP)
        with pytest.raises(BackendUnavailable):
            await backend.start(worker("u1"))
        await backend.forget("u1")
        os.kill(processes(state)["prefork"], signal.SIGCONT)
        await backend.start(worker("u2"))  # its request is behind the other

        assert {pod.uid for pod in backend.pods()} == {"warm", "u2"}
        assert not (state / "pods/u1").exists()


async def test_forgetting_pods_does_not_disturb_the_collecting_of_others(
    state: Path, waiting: Callable[[str], PodLaunch]
) -> None:
    async with ProcessBackend(state) as backend:
        for number in range(20):
            await backend.start(waiting(f"u{number}"))
            await recorded_pid(state, f"u{number}")
        reaper = processes(state)["reaper"]
        os.kill(processes(state)["prefork"], signal.SIGKILL)  # from now on the reaper looks for whose process it was

        for number in range(20):
            os.kill(pid_of(seen(backend, f"u{number}")), signal.SIGKILL)
        async with asyncio.timeout(WAIT_S):
            while backend.pods():
                for pod in backend.pods():
                    if pod.containers[0].state == "terminated":
                        assert pod.containers[0].signal == signal.SIGKILL
                        await backend.forget(pod.uid)
                await asyncio.sleep(0)

        assert is_there(reaper)
    assert "Traceback" not in (state / "reaper.log").read_text()


@pytest.mark.parametrize("kind", ["worker", "host"])
async def test_a_stop_right_behind_a_start_is_heard(
    state: Path, waiting: Callable[[str], PodLaunch], kind: str
) -> None:
    async with ProcessBackend(state) as backend:
        await backend.start(worker("warm"))
        for number in range(20):
            uid = f"u{number}"
            await backend.start(waiting(uid) if kind == "worker" else host(uid, "exec sleep 60"))
            await asyncio.sleep(number * 0.0003)
            await backend.stop(uid, 60)

        for number in range(20):
            ended = await wait_ended(backend, f"u{number}")
            assert (ended.exit_code, ended.signal) == (143, signal.SIGTERM)
