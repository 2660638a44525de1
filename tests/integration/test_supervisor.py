"""The supervisor with real processes: order, restarts, steps, and that nothing outlives it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import anyio
import msgspec
import pytest

from nodeless.embedded import processes
from nodeless.embedded.errors import NotReady
from nodeless.embedded.home import Endpoints, Home, Plan, SystemState
from nodeless.embedded.program import Answers, Greets, ProgramSpec
from nodeless.embedded.supervisor import LOG_BYTES_MAX, Supervisor, supervised

pytestmark = pytest.mark.integration

WITHIN_S = 20.0

SERVER = """
import os, signal, socket, sys, time
name, port, story, ends_after = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])

def tell(what):
    with open(story, "a") as file:
        file.write(f"{what} {name}\\n")

def leave(*_):
    tell("stop")
    os._exit(0)

signal.signal(signal.SIGTERM, leave)
tell("start")
server = socket.create_server(("127.0.0.1", port))
if ends_after:
    signal.signal(signal.SIGALRM, lambda *_: os._exit(3))
    signal.setitimer(signal.ITIMER_REAL, ends_after)
while True:
    peer, _ = server.accept()
    peer.sendall(b"hello from " + name.encode() + b"\\n")
    peer.close()
"""
"""Says hello to whoever connects."""

HOLDER = """
import os, subprocess, sys
descriptor = int(sys.argv[sys.argv.index("--lifeline") + 1])
pids = sys.argv[2]
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", sys.argv[3], str(descriptor)], pass_fds=[descriptor],
                         start_new_session=True)
with open(pids + ".new", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename(pids + ".new", pids)
exec(sys.argv[1])
"""
"""A program that leaves another one behind, in a session of its own."""

FAITHFUL = "import os, sys; os.read(int(sys.argv[1]), 1)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stage:
    """Makes specs of small programs and reads what they tell."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.story = directory / "story"

    def server(self, name: str, *, after: tuple[str, ...] = (), ends_after_s: float = 0.0) -> ProgramSpec:
        port = free_port()
        return ProgramSpec(
            name=name,
            argv=(sys.executable, "-I", "-S", "-c", SERVER, name, str(port), str(self.story), str(ends_after_s)),
            after=after,
            ready=Greets(port=port, text=f"hello from {name}"),
        )

    def step(self, name: str, code: str, *, after: tuple[str, ...] = (), within_s: float = 10.0) -> ProgramSpec:
        return ProgramSpec(
            name=name, argv=(sys.executable, "-I", "-S", "-c", code), after=after, ready_within_s=within_s
        )

    def log(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    @property
    def told(self) -> list[str]:
        return self.story.read_text().splitlines() if self.story.exists() else []


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(WITHIN_S):
        while not condition():
            await anyio.sleep(0.01)


def state_of(supervisor: Supervisor, name: str) -> str:
    return next(each.state for each in supervisor.states if each.name == name)


async def test_programs_start_when_what_they_need_is_ready_and_stop_before_it(stage: Stage) -> None:
    specs = [stage.server("c", after=("a", "b")), stage.server("b", after=("a",)), stage.server("a")]

    async with supervised(specs, stage.log) as supervisor:
        with anyio.fail_after(WITHIN_S):
            await supervisor.wait_ready()
        assert supervisor.is_ready

    assert stage.told == ["start a", "start b", "start c", "stop c", "stop b", "stop a"]
    assert {each.state for each in supervisor.states} == {"stopped"}


async def test_a_program_that_is_killed_is_started_again_and_says_how_it_ended(stage: Stage) -> None:
    async with supervised([stage.server("a"), stage.server("b")], stage.log) as supervisor:
        await supervisor.wait_ready()
        first, other = (each.pid for each in supervisor.states)
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.states[0].restarts == 1 and supervisor.is_ready)

        state = supervisor.states[0]
        assert state.pid != first
        assert state.last_end == "ended with SIGKILL"
        assert supervisor.states[1].pid == other, "its neighbour was left alone"
    assert stage.told.count("start a") == 2


async def test_a_program_that_keeps_ending_is_started_after_longer_and_longer_pauses(stage: Stage) -> None:
    moments: list[float] = []
    spec = stage.server("a", ends_after_s=0.2)

    def on_change(state: object) -> None:
        if getattr(state, "state", "") == "backing off":
            moments.append(time.monotonic())

    async with supervised([spec], stage.log, on_change=on_change) as supervisor:
        await supervisor.wait_ready()
        await until(lambda: len(moments) >= 4)

    pauses = [after - before for before, after in pairwise(moments)]
    assert pauses[0] >= 0.1
    assert pauses[1] >= 0.2
    assert pauses[2] >= 0.4
    assert supervisor.states[0].last_end == "ended with status 3"


async def test_who_waits_for_a_program_that_never_gets_ready_is_told_its_last_words(stage: Stage) -> None:
    broken = ProgramSpec(
        name="broken",
        argv=(sys.executable, "-I", "-S", "-c", "import sys; sys.exit('no such luck')"),
        after=("a",),
        ready=Greets(port=free_port(), text="never"),
    )

    with pytest.raises(NotReady) as caught:
        async with supervised([stage.server("a"), broken], stage.log) as supervisor:
            with anyio.fail_after(WITHIN_S):
                await supervisor.wait_ready()

    assert caught.value.program == "broken"
    assert "ended with status 1 before it was ready" in str(caught.value)
    assert "no such luck" in caught.value.last_words
    assert stage.told == ["start a", "stop a"]


async def test_a_program_that_is_not_ready_in_time_is_ended_and_tried_again(stage: Stage) -> None:
    slow = ProgramSpec(
        name="slow",
        argv=(sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"),
        ready=Greets(port=free_port(), text="never"),
        ready_within_s=0.3,
    )

    async with supervised([slow], stage.log) as supervisor:
        await until(lambda: supervisor.states[0].restarts >= 1)

    assert supervisor.states[0].last_end == "was not ready within 0.3 s"


async def test_what_needs_a_program_that_is_away_is_started_when_it_is_back(stage: Stage) -> None:
    async with supervised([stage.server("a"), stage.server("b", after=("a",))], stage.log) as supervisor:
        await supervisor.wait_ready()
        for pid in [each.pid for each in supervisor.states]:
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        await until(lambda: stage.told.count("start b") == 2 and supervisor.is_ready)

    starts = [line for line in stage.told if line.startswith("start")]
    assert starts == ["start a", "start b", "start a", "start b"]


async def test_a_step_runs_once_and_what_comes_after_waits_for_its_success(stage: Stage) -> None:
    tally = stage.directory / "tally"
    code = f"import sys; p={str(tally)!r}; open(p, 'a').write('x'); sys.exit(len(open(p).read()) < 2)"
    specs = [stage.step("setup", code, after=("a",)), stage.server("a"), stage.server("b", after=("setup",))]

    async with supervised(specs, stage.log) as supervisor:
        with anyio.fail_after(WITHIN_S):
            await supervisor.wait_ready()
        assert state_of(supervisor, "setup") == "done"
        await anyio.sleep(0.3)

    assert tally.read_text() == "xx", "failed once, succeeded once, and was not run again"
    assert stage.told == ["start a", "start b", "stop b", "stop a"]


async def test_a_step_that_takes_too_long_is_ended(stage: Stage) -> None:
    with pytest.raises(NotReady, match=r"was not done within 0\.2 s"):
        async with supervised([stage.step("setup", "import time; time.sleep(600)", within_s=0.2)], stage.log) as slow:
            await slow.wait_ready()


async def test_a_program_that_ignores_the_request_to_stop_is_killed_at_its_deadline(stage: Stage) -> None:
    code = "import signal, socket\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVER.split('tell("start")\n')[1]
    port = free_port()
    preface = f"import os, time; name, port, ends_after = 'deaf', {port}, 0\n"
    deaf = ProgramSpec(
        name="deaf",
        argv=(sys.executable, "-I", "-S", "-c", preface + code),
        ready=Greets(port=port, text="hello"),
        stop_within_s=0.2,
    )

    async with supervised([deaf], stage.log) as supervisor:
        await supervisor.wait_ready()
        pid = supervisor.states[0].pid
        assert pid is not None
        stopped_s = time.monotonic()

    assert 0.2 <= time.monotonic() - stopped_s < WITHIN_S
    assert processes.identity(pid) is None


async def test_a_program_gets_the_environment_of_its_spec_and_nothing_else(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example")
    out = stage.directory / "environment"
    code = f"import os, json; json.dump(dict(os.environ), open({str(out)!r}, 'w'))"
    spec = ProgramSpec(name="step", argv=(sys.executable, "-I", "-S", "-c", code), env={"ONLY": "this"})

    async with supervised([spec], stage.log) as supervisor:
        await supervisor.wait_ready()

    seen = json.loads(out.read_text())
    assert {name for name in seen if not name.startswith("LC_")} == {"ONLY"}


async def test_a_log_above_its_bound_is_set_aside_at_the_next_start(stage: Stage) -> None:
    log = stage.log("step")
    log.parent.mkdir(parents=True)
    with log.open("wb") as file:
        file.truncate(LOG_BYTES_MAX + 1)

    async with supervised([stage.step("step", "print('fresh')")], stage.log) as supervisor:
        await supervisor.wait_ready()

    assert log.read_text() == "fresh\n"
    assert log.with_name("step.log.1").stat().st_size == LOG_BYTES_MAX + 1


async def test_http_that_does_not_answer_200_is_not_ready(stage: Stage) -> None:
    port = free_port()
    code = (
        "import http.server\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    asked = 0\n"
        "    def do_GET(self):\n"
        "        H.asked += 1\n"
        "        self.send_response(200 if H.asked > 3 and self.path == '/readyz' else 503)\n"
        "        self.send_header('Content-Length', '0'); self.end_headers()\n"
        "    def log_message(self, *_): pass\n"
        f"http.server.HTTPServer(('127.0.0.1', {port}), H).serve_forever()\n"
    )
    spec = ProgramSpec(name="web", argv=(sys.executable, "-I", "-c", code), ready=Answers(port=port, path="/readyz"))

    async with supervised([spec], stage.log) as supervisor:
        with anyio.fail_after(WITHIN_S):
            await supervisor.wait_ready()


# -- the process that stays


class Running:
    """`python -m nodeless.embedded` on a plan of small programs."""

    def __init__(self, home: Home, process: "subprocess.Popen[bytes]") -> None:
        self.home, self.process = home, process

    def state(self) -> SystemState:
        state = self.home.running()
        assert state is not None
        return state

    async def ready(self) -> SystemState:
        await until(lambda: (state := self.home.running()) is not None and state.is_ready)
        return self.state()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(programs: list[ProgramSpec], *, prelude: str = "") -> Running:
        home = Home.at(tmp_path / "home")
        home.claim()
        endpoints = Endpoints(
            nats_url="", nats_credentials=None, git_credentials=None, gateway_url="", gateway_token_file="",
            kubeconfig="", node="n",
        )  # fmt: skip
        home.plan.write_bytes(msgspec.json.encode(Plan(programs=tuple(programs), endpoints=endpoints)))
        code = f"import sys; from nodeless.embedded import __main__ as it, supervisor\n{prelude}\nsys.exit(it.main(sys.argv[1:]))"
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(home.directory)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        started.append(process)
        return Running(home, process)

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def holder(stage: Stage, left_behind: str, code: str | None = None) -> tuple[ProgramSpec, Path]:
    """Return a program that leaves another one behind, and the file with both process ids."""
    pids = stage.directory / "pids"
    port = free_port()
    serve = code or (
        "import socket\n"
        f"server = socket.create_server(('127.0.0.1', {port}))\n"
        "while True:\n    peer, _ = server.accept(); peer.sendall(b'held\\n'); peer.close()\n"
    )
    return ProgramSpec(
        name="holder",
        argv=(sys.executable, "-I", "-S", "-c", HOLDER, serve, str(pids), left_behind),
        ready=Greets(port=port, text="held"),
        lifeline_flag="--lifeline",
    ), pids


def process_ids(pids: Path) -> list[int]:
    return [int(word) for word in pids.read_text().split()]


async def test_nothing_outlives_a_supervisor_that_is_killed(stage: Stage, start: Callable[..., Running]) -> None:
    spec, pids = holder(stage, FAITHFUL)
    running = start([stage.server("a"), stage.server("b", after=("a",)), spec])
    state = await running.ready()
    everyone = {*process_ids(pids), *(each.pid for each in state.programs if each.pid is not None)}
    assert len(everyone) == 4
    assert everyone == {each.pid for each in processes.descendants(running.process.pid)}

    running.process.kill()
    running.process.wait()

    await until(lambda: all(processes.identity(pid) is None for pid in everyone))
    assert running.home.running() is None


async def test_a_program_started_again_keeps_its_lifeline_and_what_it_left_behind(
    stage: Stage, start: Callable[..., Running]
) -> None:
    spec, pids = holder(stage, FAITHFUL)
    running = start([spec])
    await running.ready()
    first, left_behind = process_ids(pids)

    os.kill(first, signal.SIGKILL)
    await until(lambda: process_ids(pids)[0] != first)
    state = await running.ready()

    assert state.programs[0].restarts == 1
    assert processes.identity(left_behind) is not None
    assert left_behind in {each.pid for each in processes.children(running.process.pid)}, "it is the supervisor's now"
    both = [left_behind, *process_ids(pids)]
    running.process.terminate()
    assert running.process.wait(WITHIN_S) == 0
    assert all(processes.identity(pid) is None for pid in both)


async def test_what_ignores_its_lifeline_is_killed_when_the_system_stops(
    stage: Stage, start: Callable[..., Running]
) -> None:
    spec, pids = holder(stage, STUBBORN)
    running = start([spec], prelude="supervisor.LEFT_BEHIND_S = 0.2")
    await running.ready()
    left_behind = process_ids(pids)[1]

    running.process.terminate()

    assert running.process.wait(WITHIN_S) == 0
    assert processes.identity(left_behind) is None


async def test_ended_orphans_do_not_stay_as_zombies(stage: Stage, start: Callable[..., Running]) -> None:
    port = free_port()
    code = (
        "import os, socket, time\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        if os.fork() == 0: time.sleep(0.3)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        f"server = socket.create_server(('127.0.0.1', {port}))\n"
        "while True:\n    peer, _ = server.accept(); peer.sendall(b'up\\n'); peer.close()\n"
    )
    spec = ProgramSpec(name="forks", argv=(sys.executable, "-I", "-S", "-c", code), ready=Greets(port=port, text="up"))
    running = start([spec])
    await running.ready()

    await until(lambda: len(processes.children(running.process.pid)) == 1)


async def test_a_system_that_cannot_start_stops_and_ends_with_status_1(
    stage: Stage, start: Callable[..., Running]
) -> None:
    running = start([stage.server("a"), stage.step("setup", "import sys; sys.exit('not today')", after=("a",))])

    await until(lambda: running.process.poll() is not None)

    assert running.process.returncode == 1
    assert stage.told[-1] == "stop a"
    assert not running.home.state.exists()
