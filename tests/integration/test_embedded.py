"""The embedded broker, and the whole system as `nodeless up` makes it."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from bus.cluster.connection import ClusterConfig, open_cluster
from bus.core.credentials import PROGRAMS, Program, inbox_prefix
from bus.core.errors import BrokerUnavailable, NotAllowed
from bus.core.event import Event
from bus.jetstream.connection import BusConfig, Connection, open_connection
from bus.jetstream.topology import ensure_streams
from nodeless.cli.target import Target
from nodeless.embedded import processes
from nodeless.embedded.broker import Broker
from nodeless.embedded.controlplane.launch import ControlPlane
from nodeless.embedded.home import Home
from nodeless.embedded.ports import PortReservations
from nodeless.embedded.supervisor import supervised
from tests.broker import running_broker

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

NODELESS = Path(sysconfig.get_path("scripts")) / "nodeless"
WITHIN_S = 30.0

APP = """
from nodeless import Event, function

@function(subject="events.hello.*", idle="60s")
def hello(event: Event) -> object:
    print("hello from the worker")
    return {"got": event.json()}
"""


@contextmanager
def directory_of_homes() -> Iterator[Callable[[str], Home]]:
    """Homes with short paths, since there are Unix sockets below them; what runs there is taken down afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="nl-"))

    def home(name: str = "home") -> Home:
        return Home.at(directory / name)

    try:
        yield home
    finally:
        for each in directory.iterdir():
            nodeless(Home.at(each), "down", check=False)
        shutil.rmtree(directory)


@pytest.fixture
def homes() -> Iterator[Callable[[str], Home]]:
    with directory_of_homes() as home:
        yield home


@pytest.fixture(scope="module")
def system() -> Iterator[Home]:
    """A system that several tests share; none of them takes it down."""
    with directory_of_homes() as homes:
        home = homes("shared")
        nodeless(home, "up", "--detach")
        app = home.directory.parent / "app.py"
        app.write_text(APP)
        nodeless(home, "deploy", str(app))
        app.unlink()
        yield home


def nodeless(home: Home, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [NODELESS, *arguments, "--home", home.directory], capture_output=True, text=True, timeout=200, check=False
    )
    if check and done.returncode:
        logs = "\n".join(f"--- {log.name}\n{log.read_text()[-1500:]}" for log in home.log("x").parent.glob("*.log"))
        pytest.fail(f"nodeless {arguments} ended with status {done.returncode}:\n{done.stdout}{done.stderr}\n{logs}")
    return done


def status(home: Home) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(nodeless(home, "status", "-o", "json", check=False).stdout)
    return document


def everyone(home: Home) -> set[int]:
    """Return every process of the system."""
    state = home.running_or_raise()
    return {state.supervisor.pid, *(each.pid for each in processes.descendants(state.supervisor.pid))}


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if processes.identity(pid) is not None}


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(WITHIN_S):
        while not condition():
            await anyio.sleep(0.05)


def results(home: Home, function: str = "hello") -> list[Any]:
    lines = nodeless(home, "results", function, "-o", "json").stdout.splitlines()
    return [json.loads(line)["result"] for line in lines]


async def handle_one(home: Home, number: int) -> None:
    """Publish an event with that number and wait for its result."""
    nodeless(home, "publish", "hello.world", str(number))
    await until(lambda: {"got": number} in results(home))


# -- the broker


@asynccontextmanager
async def embedded_broker(home: Home) -> AsyncIterator[Broker]:
    home.claim()
    with PortReservations() as reservations:
        broker = Broker(home, reservations)
        broker.credentials()
        async with supervised([broker.program()], home.log) as supervisor:
            with anyio.fail_after(WITHIN_S):
                await supervisor.wait_ready()
            yield broker


@asynccontextmanager
async def connected(home: Home, broker: Broker, program: Program) -> AsyncIterator[Connection]:
    path = str(home.program(program) / "nats.creds")
    config = BusConfig(url=broker.url, credentials=path, name=program, inbox_prefix=inbox_prefix(program))
    async with open_connection(config) as connection:
        yield connection


def event(subject: str) -> Event:
    return Event(subject=subject, id=str(time.monotonic_ns()), source="test", type="test")


async def test_the_broker_lets_nobody_in_without_credentials(homes: Callable[..., Home]) -> None:
    async with embedded_broker(homes()) as broker:
        with pytest.raises(BrokerUnavailable):
            async with open_connection(BusConfig(url=broker.url)):
                pass
        await until(lambda: "authentication error" in homes().log("nats-server").read_text())


async def test_credentials_of_another_brokers_authority_are_refused(homes: Callable[..., Home]) -> None:
    async with embedded_broker(homes("a")) as a, embedded_broker(homes("b")):
        with pytest.raises(BrokerUnavailable):
            async with connected(homes("b"), a, "cli"):
                pass
        await until(lambda: "authentication error" in homes("a").log("nats-server").read_text())


async def test_each_program_may_do_its_own_part_and_no_more(homes: Callable[..., Home]) -> None:
    home = homes()
    async with embedded_broker(home) as broker:
        async with connected(home, broker, "dispatcher") as dispatcher:
            await ensure_streams(dispatcher)
            with pytest.raises(NotAllowed):
                await dispatcher.publish(event("events.orders.created"))
        async with connected(home, broker, "gateway") as gateway:
            await gateway.publish(event("events.orders.created"))
            with pytest.raises(NotAllowed):
                await gateway.publish(event("events.git.push.x"))
        async with connected(home, broker, "git") as git:
            await git.publish(event("events.git.push.x"))
            with pytest.raises(NotAllowed):
                await git.publish(event("events.orders.created"))
        async with connected(home, broker, "cli") as cli:
            await cli.publish(event("events.orders.created"))
            with pytest.raises(NotAllowed):
                await cli.api("STREAM.DELETE.EVENTS")


async def test_what_was_stored_is_there_after_a_restart_on_the_same_port(homes: Callable[..., Home]) -> None:
    home = homes()
    async with embedded_broker(home) as broker:
        first = broker.port
        async with connected(home, broker, "dispatcher") as dispatcher:
            await ensure_streams(dispatcher)
        async with connected(home, broker, "cli") as cli:
            stored = await cli.publish(event("events.orders.created"))

    async with embedded_broker(home) as again:
        assert again.port == first
        async with connected(home, again, "cli") as cli:
            message = await cli.message_at("EVENTS", stored.sequence)

    assert message is not None
    assert message.subject == "events.orders.created"


def test_secrets_of_the_broker_are_for_their_owner_only(homes: Callable[..., Home]) -> None:
    home = homes()
    home.claim()
    with PortReservations() as reservations:
        broker = Broker(home, reservations)
        secrets = [home.nats / "authority.json", home.nats / "nats.conf", broker.account_seed_file]
        secrets += broker.credentials().values()

    assert len(secrets) == 3 + len(PROGRAMS)
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert stat.S_IMODE(home.directory.stat().st_mode) == 0o700


def test_credentials_are_kept_as_long_as_they_say_what_they_should(homes: Callable[..., Home]) -> None:
    home = homes()
    home.claim()
    with PortReservations() as reservations:
        broker = Broker(home, reservations)
        before = {program: path.read_text() for program, path in broker.credentials().items()}
        (home.program("git") / "nats.creds").write_text(before["cli"])
        after = {program: path.read_text() for program, path in broker.credentials().items()}

    assert after["cli"] == before["cli"]
    assert after["git"] not in {before["cli"], before["git"]}, "the rights were another program's: minted again"


# -- the whole system


async def test_a_system_comes_up_whole_and_handles_an_event(system: Home) -> None:
    document = status(system)

    assert document["ready"]
    assert {each["component"]: each["healthy"] for each in document["components"]} == dict.fromkeys(
        (
            "etcd", "kube-apiserver", "kube-scheduler", "kube-controller-manager", "nats-server", "setup", "dispatcher",
            "gateway", "node",
        ),
        True,
    )  # fmt: skip
    await handle_one(system, 1)
    assert "hello from the worker" in nodeless(system, "logs", "hello").stdout


def test_status_counts_every_process_of_the_system_once(system: Home) -> None:
    memory = status(system)["memory"]

    measured = [each["pid"] for each in memory["processes"]]
    assert len(measured) == len(set(measured))
    assert set(measured) >= {each.pid for each in system.running_or_raise().programs if each.pid is not None}
    assert any("reaper" in each["command"] and each["component"] == "node" for each in memory["processes"])
    assert 0 < memory["own_mb"] < memory["total_mb"] < sum(each["rss_mb"] for each in memory["processes"])


@pytest.mark.parametrize(
    ("program", "user"),
    [("dispatcher", "system:serviceaccount:nodeless-system:dispatcher"), ("node", "system:node:nodeless-0")],
)
async def test_each_program_has_an_identity_of_its_own(system: Home, program: str, user: str) -> None:
    kubeconfig = system.program(program) / "kubeconfig"
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}

    async with open_cluster(ClusterConfig(kubeconfig=str(kubeconfig))) as cluster:
        answer = await cluster.call("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=review)

    assert answer["status"]["userInfo"]["username"] == user
    command = next(each.pid for each in system.running_or_raise().programs if each.name == program)
    assert command is not None
    assert str(kubeconfig) in processes.command_line(command)


async def test_each_of_our_programs_comes_back_after_being_killed(system: Home) -> None:
    victims = {"dispatcher", "gateway", "node", "nats-server"}
    for program in system.running_or_raise().programs:
        if program.name in victims:
            assert program.pid is not None
            os.kill(program.pid, signal.SIGKILL)

    await until(lambda: all(each.restarts for each in system.running_or_raise().programs if each.name in victims))
    await until(lambda: status(system)["ready"])
    await handle_one(system, 2)


def test_a_second_up_in_one_home_says_what_is_running(system: Home) -> None:
    first = system.running_or_raise()

    for arguments in (("up", "--detach", "-o", "json"), ("up", "-o", "json")):
        again = nodeless(system, *arguments)
        assert "running already" in again.stderr
        assert json.loads(again.stdout)["supervisor"]["pid"] == first.supervisor.pid


async def test_functions_events_and_results_survive_down_and_up(homes: Callable[..., Home], tmp_path: Path) -> None:
    home = homes()
    (tmp_path / "app.py").write_text(APP)
    nodeless(home, "up", "--detach")
    nodeless(home, "deploy", str(tmp_path / "app.py"))
    await handle_one(home, 1)
    before, pids = status(home), everyone(home)
    nodeless(home, "down")
    assert alive(pids) == set()
    assert nodeless(home, "status", check=False).returncode == 3

    nodeless(home, "up", "--detach")

    after = status(home)
    for kept in ("kubeconfig", "nats_url", "gateway_url"):
        assert after[kept] == before[kept]
    assert results(home) == [{"got": 1}]
    await handle_one(home, 2)

    nodeless(home, "down", "--purge")
    assert not home.directory.exists()


async def test_nothing_is_left_when_the_supervisor_is_killed_and_the_next_up_goes_on(
    homes: Callable[..., Home], tmp_path: Path
) -> None:
    home = homes()
    (tmp_path / "app.py").write_text(APP)
    nodeless(home, "up", "--detach")
    nodeless(home, "deploy", str(tmp_path / "app.py"))
    await handle_one(home, 1)
    pids = everyone(home)
    assert any("worker" in " ".join(processes.command_line(pid)) for pid in pids)

    os.kill(home.running_or_raise().supervisor.pid, signal.SIGKILL)

    await until(lambda: not alive(pids))
    nodeless(home, "up", "--detach")
    await handle_one(home, 2)
    assert {"got": 1} in results(home)


async def test_two_systems_at_once_do_not_know_of_each_other(homes: Callable[..., Home], tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    a, b = homes("a"), homes("b")
    starting = [
        subprocess.Popen(
            [NODELESS, "up", "--detach", "--home", home.directory], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for home in (a, b)
    ]
    for process in starting:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    nodeless(a, "deploy", str(tmp_path / "app.py"))
    await handle_one(a, 1)

    assert status(a)["ready"]
    assert status(b)["ready"]
    assert [each["name"] for each in status(a)["functions"]] == ["hello"]
    assert status(b)["functions"] == []
    assert not everyone(a) & everyone(b)
    nodeless(a, "down")
    assert status(b)["ready"]


async def test_up_in_the_foreground_stops_in_order_at_ctrl_c(homes: Callable[..., Home]) -> None:
    home = homes()
    with subprocess.Popen(
        [NODELESS, "up", "--home", home.directory], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            await until(lambda: (state := home.running()) is not None and state.is_ready)
            pids = everyone(home)
            assert process.pid in pids, "the command became the supervisor"
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                process.kill()

    assert process.returncode == 0
    assert "Ready in" in output
    assert "kube-apiserver" in errors
    assert alive(pids) == set()


async def test_a_system_that_cannot_start_says_why_and_is_taken_down(homes: Callable[..., Home]) -> None:
    home = homes()

    done = nodeless(home, "up", "--detach", "--nats", "nats://127.0.0.1:1", check=False)

    assert done.returncode == 1
    assert "no answer from NATS at nats://127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
    assert home.running() is None
    with home.locked():
        pass


async def test_an_interrupted_start_leaves_nothing(homes: Callable[..., Home]) -> None:
    home = homes()
    with subprocess.Popen(
        [NODELESS, "up", "--detach", "--home", home.directory],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        await until(lambda: (state := home.running()) is not None and state.programs[0].state == "ready")
        pids = everyone(home)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Traceback" not in errors
    assert alive(pids) == set()


async def test_external_servers_take_the_place_of_the_embedded_ones(
    homes: Callable[..., Home], plane: ControlPlane, tmp_path: Path
) -> None:
    home = homes()
    (tmp_path / "app.py").write_text(APP)
    async with running_broker(tmp_path / "broker", has_streams=False) as broker:
        seed = tmp_path / "account.seed"
        seed.write_text(broker.account_seed)
        nodeless(
            home, "up", "--detach", "--kubeconfig", str(plane.kubeconfig), "--nats", broker.url, "--nats-account-seed",
            str(seed),
        )  # fmt: skip
        state = home.running_or_raise()

        assert {each.name for each in state.programs} == {"setup", "dispatcher", "gateway", "node"}
        assert status(home)["nats_url"] == broker.url
        assert Target.of_home(home.directory).cluster.kubeconfig == str(plane.kubeconfig)
        nodeless(home, "deploy", str(tmp_path / "app.py"))
        await handle_one(home, 1)
        nodeless(home, "delete", "hello")
        nodeless(home, "down")
