"""A build of the control plane's module, with a small module in its place: real Go, seconds instead of minutes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nodeless.embedded.controlplane.build import build
from nodeless.embedded.controlplane.errors import BuildFailed

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
HELLO = 'package main\n\nimport "os"\n\nfunc main() { os.Stdout.WriteString("hello " + os.Args[1]) }\n'


class Quiet:
    """Keeps what a build says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    def update(self, text: str, fraction: float | None, detail: str = "") -> None:
        if not self.said or self.said[-1] != text:
            self.said.append(text)


@pytest.fixture
def module(tmp_path: Path) -> Path:
    directory = tmp_path / "module"
    directory.mkdir()
    (directory / "go.mod").write_text("module hello\n\ngo 1.22\n")
    (directory / "main.go").write_text(HELLO)
    return directory


def build_quietly(binary: Path, module: Path) -> None:
    build(binary, Quiet(), module)


def test_a_build_makes_a_working_program_and_leaves_nothing_else(module: Path, tmp_path: Path) -> None:
    binary, progress = tmp_path / "cache" / "entry" / "program", Quiet()
    build(binary, progress, module)

    assert subprocess.run([binary, "there"], capture_output=True, check=True).stdout == b"hello there"
    assert [path.name for path in binary.parent.iterdir()] == ["program"]
    assert "control plane: linking" in progress.said


def test_two_builds_at_once_wait_for_each_other_and_make_one_program(module: Path, tmp_path: Path) -> None:
    binary = tmp_path / "cache" / "entry" / "program"
    context = multiprocessing.get_context("spawn")
    builds = [context.Process(target=build_quietly, args=(binary, module)) for _ in range(2)]
    for each in builds:
        each.start()
    for each in builds:
        each.join(100)

    assert [each.exitcode for each in builds] == [0, 0]
    assert subprocess.run([binary, "both"], capture_output=True, check=True).stdout == b"hello both"


def test_a_module_that_does_not_compile_says_where_and_leaves_no_program(module: Path, tmp_path: Path) -> None:
    (module / "main.go").write_text("package main\n\nfunc main() { nowhere() }\n")
    binary = tmp_path / "cache" / "entry" / "program"

    with pytest.raises(BuildFailed, match="undefined: nowhere"):
        build(binary, Quiet(), module)

    assert not binary.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_no_half_program_and_the_next_one_goes_on(
    module: Path, tmp_path: Path, number: signal.Signals
) -> None:
    binary = tmp_path / "cache" / "entry" / "program"
    code = (
        "import pathlib, sys; from tests.integration.test_build import build_quietly; "
        "build_quietly(*map(pathlib.Path, sys.argv[1:]))"
    )
    # An empty build cache of its own, so that there is something to interrupt.
    environment = os.environ | {"GOCACHE": str(tmp_path / "gocache"), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code, binary, module], env=environment, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 60
    while not (binary.parent / "work").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(number)
    process.wait(30)

    assert process.returncode != 0
    assert not binary.exists()
    build(binary, Quiet(), module)
    assert subprocess.run([binary, "again"], capture_output=True, check=True).stdout == b"hello again"
