"""A real virtual node for tests: the program in a process of its own, with the process backend, against a real control plane."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio

from bus.cluster.connection import ClusterConfig, open_cluster
from bus.cluster.errors import NotFound
from bus.cluster.resources import NODES
from nodeless.embedded.controlplane.launch import ControlPlane

ROOT = Path(__file__).resolve().parent.parent
READY_S = 20.0
STOP_S = 10.0


class RunningNode:
    """One node program. `kill` and `start` make another process of it in the same directory."""

    def __init__(self, plane: ControlPlane, directory: Path, name: str, flags: Sequence[str]) -> None:
        self.plane, self.directory, self.name = plane, directory, name
        self.flags = flags
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        pair = plane.issue_serving(f"system:node:{name}", ["127.0.0.1"])
        (directory / "node.crt").write_bytes(pair.certificate)
        (directory / "node.key").write_bytes(pair.key)
        plane.issue_kubeconfig(directory / "kubeconfig", f"system:node:{name}", ["system:nodes"])
        self.log = directory / "node.log"
        self._lifeline = os.pipe()
        self.process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def start(self) -> None:
        argv = [
            sys.executable, "-m", "provider", "--name", self.name, "--kubeconfig", str(self.directory / "kubeconfig"),
            "--state-directory", str(self.directory / "state"), "--port", str(self.port),
            "--certificate", str(self.directory / "node.crt"), "--key", str(self.directory / "node.key"),
            "--client-ca", str(self.plane.ca_certificate), "--lifeline-fd", str(self._lifeline[0]), *self.flags,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, cwd=ROOT, stderr=log, pass_fds=[self._lifeline[0]])

    async def wait_ready(self) -> None:
        """Return when the scheduler may place pods here."""
        with anyio.move_on_after(READY_S):
            async with open_cluster(ClusterConfig(kubeconfig=str(self.plane.kubeconfig))) as cluster:
                while self.process.poll() is None:
                    try:
                        node = await cluster.get(NODES, self.name)
                        ready = [each["status"] for each in node["status"]["conditions"] if each["type"] == "Ready"]
                        waiting = [
                            t for t in node["spec"].get("taints", ()) if t["key"].startswith("node.kubernetes.io")
                        ]
                        if ready == ["True"] and not waiting:
                            return
                    except NotFound:
                        pass
                    await anyio.sleep(0.02)
        raise AssertionError(f"the node did not become ready:\n{self.log.read_text(errors='replace')}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_S)

    def stop(self) -> int:
        """Ask it to leave; return its exit status."""
        self.process.terminate()
        return self.process.wait(STOP_S)

    def end(self) -> None:
        """Leave nothing: program, and through the lifeline all that it has started."""
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
        for descriptor in self._lifeline:
            os.close(descriptor)


@asynccontextmanager
async def running_node(plane: ControlPlane, name: str, *flags: str) -> AsyncIterator[RunningNode]:
    """Run a node of that name for the length of the block; it is Ready when the block begins."""
    # A short path: Unix sockets lie in the state directory, and their names are limited to 108 bytes.
    with tempfile.TemporaryDirectory(prefix="nl-", ignore_cleanup_errors=True) as directory:
        node = RunningNode(plane, Path(directory), name, flags)
        node.start()
        try:
            await node.wait_ready()
            yield node
        finally:
            node.end()
            async with open_cluster(ClusterConfig(kubeconfig=str(plane.kubeconfig))) as cluster:
                with suppress(NotFound):
                    await cluster.delete(NODES, name)
