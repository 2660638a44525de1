"""The pre-forked parent by itself, spoken to as the process backend does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.broker import free_port

pytestmark = pytest.mark.integration

SECRET = "correct-horse-battery-staple"
WAIT_S = 15.0


def wait_for(what: Callable[[], Any], wait_s: float = WAIT_S) -> Any:
    deadline_s = time.monotonic() + wait_s
    while not (found := what()):
        assert time.monotonic() < deadline_s, "nothing came in time"
        time.sleep(0.005)
    return found


def has_in_memory(pid: int, text: str) -> bool:
    """Say whether a process' writable memory holds `text`."""
    wanted = text.encode()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            bounds, mode = line.split()[:2]
            if not mode.startswith("rw") or "[v" in line:
                continue
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            memory.seek(start)
            try:
                if wanted in memory.read(end - start):
                    return True
            except OSError:
                continue
    return False


class Parent:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        path = directory / "s"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.chdir(directory)
        listener.bind("s")
        listener.listen(16)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workers.prefork", "--listen", str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
        )
        listener.close()
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.settimeout(WAIT_S)
        self.connection.connect(path.name)
        self._ids = 0

    def container(self, name: str) -> Path:
        made = self.directory / name / "main" / "0"
        made.mkdir(parents=True)
        Path(f"{made}.log").touch()
        return made

    def ask(self, container: Path, launch: object) -> dict[str, Any]:
        descriptor = os.memfd_create("launch")
        os.write(descriptor, json.dumps(launch).encode() if not isinstance(launch, bytes) else launch)
        self._ids += 1
        request = {"id": self._ids, "directory": str(container)}
        socket.send_fds(self.connection, [json.dumps(request).encode()], [descriptor])
        os.close(descriptor)
        reply: dict[str, Any] = json.loads(self.connection.recv(16384))
        assert reply["id"] == self._ids
        return reply

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def close(self) -> None:
        self.connection.close()
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            assert self.process.wait(timeout=5) in (0, -9)
        finally:
            self.process.kill()


@pytest.fixture(params=["forked", "spare"])
def parent(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Parent]:
    """A parent that forks for the first request, or that has a spare for it."""
    before = Path.cwd()
    opened = Parent(tmp_path)
    if request.param == "spare":
        wait_for(opened.children)
    yield opened
    opened.close()
    os.chdir(before)


@pytest.fixture
def silent_broker() -> Iterator[str]:
    """A port that takes connections and says nothing: a worker waits there."""
    with socket.create_server(("127.0.0.1", free_port())) as server:
        yield f"nats://127.0.0.1:{server.getsockname()[1]}"


def waiting_worker(url: str, **more: Any) -> dict[str, Any]:
    assignment = {
        "namespace": "default", "function": "f", "uid": "u", "version": "v", "handler": "app:f",
        "bundle": f"sha256:{'0' * 64}", "consumer": "f-1",
    }  # fmt: skip
    environment = {"NODELESS_ASSIGNMENT": json.dumps(assignment), "NODELESS_NATS_URL": url, "NODELESS_LOG": "cri"}
    return {"environment": environment | {"SECRET": SECRET}, **more}


def exit_of(container: Path) -> dict[str, Any]:
    wait_for((container / "exit.json").exists)
    found: dict[str, Any] = json.loads((container / "exit.json").read_text())
    return found


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_is_a_process_of_its_own_with_nothing_of_its_parent_open(parent: Parent, silent_broker: str) -> None:
    container = parent.container("u1")
    reply = parent.ask(container, waiting_worker(silent_broker, memory_bytes_max=512 * 1024 * 1024))
    record = json.loads(
        wait_for(lambda: (container / "process.json").exists() and (container / "process.json").read_text())
    )
    wait_for(lambda: Path(f"/proc/{reply['pid']}/comm").read_text() == "nodeless-worker\n")

    assert reply["outcome"] == "started"
    assert {key: record[key] for key in ("pid", "start_ticks", "started_ns")} == {
        key: reply[key] for key in ("pid", "start_ticks", "started_ns")
    }
    assert os.getsid(reply["pid"]) == os.getpgid(reply["pid"]) == reply["pid"]
    opened = {str(link.readlink()) for link in Path(f"/proc/{reply['pid']}/fd").iterdir()}
    assert not any("memfd" in name or "pipe" in name for name in opened), opened
    assert {"/dev/null", f"{container}.log", str(container / "lock")} <= opened
    limits = Path(f"/proc/{reply['pid']}/limits").read_text()
    assert "Max data size             536870912" in limits

    os.kill(reply["pid"], signal.SIGKILL)
    assert {key: exit_of(container)[key] for key in ("exit_code", "signal")} == {"exit_code": 137, "signal": 9}


def test_the_parent_never_sees_a_secret(parent: Parent, silent_broker: str) -> None:
    reply = parent.ask(parent.container("u1"), waiting_worker(silent_broker))
    wait_for(lambda: has_in_memory(reply["pid"], SECRET))

    assert not has_in_memory(parent.process.pid, SECRET)

    os.kill(reply["pid"], signal.SIGKILL)


def test_a_container_is_started_once_whether_it_runs_or_has_ended(parent: Parent, silent_broker: str) -> None:
    container = parent.container("u1")
    pid = parent.ask(container, waiting_worker(silent_broker))["pid"]

    assert parent.ask(container, waiting_worker(silent_broker))["outcome"] == "already"
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_there(pid))
    exit_of(container)
    assert parent.ask(container, waiting_worker(silent_broker))["outcome"] == "already"


def test_a_container_whose_directory_is_gone_is_not_started(parent: Parent, silent_broker: str) -> None:
    reply = parent.ask(parent.directory / "gone", waiting_worker(silent_broker))

    assert reply["outcome"] == "refused"
    assert "gone" in reply["reason"]


def test_what_goes_wrong_in_the_child_is_in_its_log(parent: Parent) -> None:
    container = parent.container("u1")

    assert parent.ask(container, b"no launch")["outcome"] == "started"

    assert exit_of(container)["exit_code"] == 1
    assert "DecodeError" in Path(f"{container}.log").read_text()


def test_a_memory_limit_that_leaves_nothing_for_a_function_is_not_set_and_said(
    parent: Parent, silent_broker: str
) -> None:
    container = parent.container("u1")

    pid = parent.ask(container, waiting_worker(silent_broker, memory_bytes_max=1024 * 1024))["pid"]

    wait_for(lambda: "the memory limit of 1 MiB is not enforced" in Path(f"{container}.log").read_text())
    os.kill(pid, signal.SIGKILL)


def test_workers_outlive_a_parent_that_leaves(parent: Parent, silent_broker: str) -> None:
    pid = parent.ask(parent.container("u1"), waiting_worker(silent_broker))["pid"]
    assert parent.process.stdin is not None

    parent.process.stdin.close()

    assert parent.process.wait(timeout=5) == 0
    assert is_there(pid)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("parent", ["spare"], indirect=True)
def test_the_spare_is_the_next_container_and_another_one_takes_its_place(parent: Parent, silent_broker: str) -> None:
    (spare,) = parent.children()
    container = parent.container("u1")

    assert parent.ask(container, waiting_worker(silent_broker))["pid"] == spare
    wait_for((container / "process.json").exists)
    assert json.loads((container / "process.json").read_text())["pid"] == spare
    assert len(wait_for(lambda: len(found := parent.children()) == 2 and found)) == 2


@pytest.mark.parametrize("parent", ["spare"], indirect=True)
def test_a_spare_that_was_killed_is_replaced_and_costs_no_start(parent: Parent, silent_broker: str) -> None:
    (spare,) = parent.children()
    os.kill(spare, signal.SIGKILL)
    reply = parent.ask(parent.container("u1"), waiting_worker(silent_broker))

    if reply["pid"] == spare:  # it had its part in hand when it died: its end is told like any other's
        assert exit_of(parent.directory / "u1" / "main" / "0")["signal"] == signal.SIGKILL
    assert parent.ask(parent.container("u2"), waiting_worker(silent_broker))["outcome"] == "started"
    wait_for(lambda: spare not in parent.children())


@pytest.mark.parametrize("parent", ["spare"], indirect=True)
def test_spares_that_die_of_themselves_are_made_ever_more_rarely(parent: Parent) -> None:
    began_s = time.monotonic()
    for _ in range(4):
        (spare,) = wait_for(parent.children)
        os.kill(spare, signal.SIGKILL)
        while spare in parent.children():  # not collected yet
            time.sleep(0.005)

    assert time.monotonic() - began_s > 0.2 + 0.4 + 0.8


@pytest.mark.parametrize("parent", ["spare"], indirect=True)
def test_a_spare_ends_with_its_parent(parent: Parent) -> None:
    (spare,) = parent.children()
    parent.process.kill()
    parent.process.wait(timeout=5)

    wait_for(lambda: not is_there(spare))
