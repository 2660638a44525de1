"""A whole system as a user has it: `nodeless up` in a directory of its own, driven by its commands and by kubectl."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from nodeless.cli.target import Target

COMMAND_S = 180.0

T = TypeVar("T")


class CommandFailed(AssertionError):
    """The message holds all that was printed."""


class System:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.environment = os.environ | {
            # Commands of the environment these tests run in: nodeless, and kubectl from its wheel.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "KUBECONFIG": str(self.home / "kubeconfig"),
            "NODELESS_HOME": str(self.home),
        }

    @property
    def target(self) -> Target:
        return Target.of_home(self.home)

    def run(self, *command: str | Path, cwd: Path | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command as this system's user, whatever its exit status."""
        return subprocess.run(
            [str(word) for word in command], env=self.environment, cwd=cwd or self.directory, input=stdin,
            capture_output=True, text=True, timeout=COMMAND_S,
        )  # fmt: skip

    def succeed(self, *command: str | Path, cwd: Path | None = None, stdin: str = "") -> str:
        done = self.run(*command, cwd=cwd, stdin=stdin)
        if done.returncode:
            raise CommandFailed(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def nodeless(self, *arguments: str | Path, stdin: str = "") -> str:
        return self.succeed("nodeless", *arguments, stdin=stdin)

    def kubectl(self, *arguments: str | Path, stdin: str = "") -> str:
        return self.succeed("kubectl", *arguments, stdin=stdin)

    def status(self) -> dict[str, Any]:
        # Its exit status says whether all is well; the document is printed either way.
        status: dict[str, Any] = json.loads(self.run("nodeless", "status", "-o", "json").stdout)
        return status

    def deploy(self, source: str, *arguments: str) -> str:
        """Deploy one source file."""
        path = self.directory / "app.py"
        path.write_text(source)
        return self.nodeless("deploy", path, *arguments)

    def object(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def pods_of(self, function: str) -> list[dict[str, Any]]:
        text = self.kubectl("get", "pods", "-l", f"nodeless.dev/function={function}", "-o", "json")
        items: list[dict[str, Any]] = json.loads(text)["items"]
        return items

    def condition(self, function: str, type_: str) -> dict[str, Any]:
        conditions = self.object("function", function).get("status", {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == type_), {"status": "absent"})

    def processes(self) -> dict[int, list[str]]:
        """Return the command line of every process of this system: its home is named there, or it works in it."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                command = [
                    part.decode(errors="replace") for part in (entry / "cmdline").read_bytes().split(b"\0") if part
                ]
                place = (entry / "cwd").readlink()
            except OSError:
                continue
            if command and (place.is_relative_to(self.home) or any(str(self.home) in part for part in command)):
                found[int(entry.name)] = command
        return found


def eventually(read: Callable[[], T], is_right: Callable[[T], bool], timeout_s: float = 30.0) -> T:
    """Read until it is right; fail with what was read last."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = read()
        if is_right(value):
            return value
        if time.monotonic() > deadline_s:
            raise AssertionError(f"after {timeout_s:g} s it still is {value!r}")
        time.sleep(0.1)


@contextmanager
def running_system(environment: Mapping[str, str] | None = None) -> Iterator[System]:
    """Bring a system up, and take it down with its data at the end."""
    directory = Path(tempfile.mkdtemp(prefix="nodeless-e2e-"))
    system = System(directory)
    system.environment |= environment or {}
    try:
        system.nodeless("up", "--detach")
        yield system
    finally:
        system.run("nodeless", "down", "--purge")
        remaining = system.processes()
        for pid in remaining:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)
        assert not remaining, f"left behind: {remaining}"
