"""Put a control plane together: ports, certificates, kubeconfigs, flags, and what "ready" means for each program.

`ControlPlane` describes; a supervisor runs its `programs()`. `running_control_plane` does both, for as long as a block.
"""

import json
import os
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import anyio
from anyio.abc import Process

from nodeless.embedded.controlplane.binaries import Binaries
from nodeless.embedded.controlplane.build import find_or_build
from nodeless.embedded.controlplane.components import (
    ADDRESS,
    AFTER,
    API_SERVER,
    CONTROLLER_MANAGER,
    ETCD,
    PROGRAMS,
    READY_PATH,
    SCHEDULER,
    SERVICE_ADDRESS,
    Layout,
    Ports,
    arguments,
    memory_environment,
    scheduler_config,
)
from nodeless.embedded.controlplane.errors import NotReady
from nodeless.embedded.controlplane.pki import ADMIN_GROUP, ADMIN_USER, KeyPair, Pki, keep_kubeconfig, write_private
from nodeless.embedded.controlplane.probe import INTERVAL_S, Probe, client_context
from nodeless.embedded.ports import PortReservations
from nodeless.embedded.program import ProgramSpec
from nodeless.embedded.tether import tethered

IDENTITIES = {SCHEDULER: "system:kube-scheduler", CONTROLLER_MANAGER: "system:kube-controller-manager"}
"""The users to which Kubernetes' own bootstrap roles are bound."""

INHERITED = ("PATH", "HOME", "TMPDIR", "TZ", "LANG")
"""All that a program gets of our environment: proxies, ETCD_*, GODEBUG or KUBECONFIG would change what it does."""

READY_WITHIN_S = 60.0
"""A start takes 2 seconds; on a machine that is busy with something else it may take many times that."""
API_SERVER_STOP_WITHIN_S = 15.0

LOG_LINES_SHOWN = 10

DEFAULT_ACCOUNT_PATH = "/api/v1/namespaces/default/serviceaccounts"
CREATED, CONFLICT = 201, 409


class ControlPlane:
    """One control plane in one directory, ready to be started. Opening it makes whatever is missing there."""

    def __init__(self, directory: Path, binaries: Binaries, reservations: PortReservations) -> None:
        self.binaries = binaries
        self.layout = Layout(directory.resolve())
        self.layout.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.ports = _ports(self.layout.ports, reservations)
        self.pki = Pki(self.layout.pki, service_address=SERVICE_ADDRESS)
        self.kubeconfig = keep_kubeconfig(self.layout.kubeconfig, self.pki.ca, self.url, ADMIN_USER, (ADMIN_GROUP,))
        for program, user in IDENTITIES.items():
            self.issue_kubeconfig(self.layout.program_kubeconfig(program), user)
        write_private(self.layout.scheduler_config, scheduler_config(self.layout))
        # etcd refuses a data directory that others can read.
        self.layout.etcd_data.mkdir(mode=0o700, exist_ok=True)

    @property
    def directory(self) -> Path:
        return self.layout.directory

    @property
    def url(self) -> str:
        return f"https://{ADDRESS}:{self.ports.api_server}"

    @property
    def ca_certificate(self) -> Path:
        """Signs the API server's certificate, all client certificates and those of the nodes."""
        return self.pki.certificate("ca")

    @property
    def front_proxy_ca_certificate(self) -> Path:
        return self.pki.certificate("front-proxy-ca")

    def issue_client(self, user: str, groups: Sequence[str] = ()) -> KeyPair:
        """Return a client certificate for `user` in `groups`."""
        return self.pki.ca.issue_client(user, groups)

    def issue_serving(self, name: str, hosts: Sequence[str]) -> KeyPair:
        """Return a serving certificate that the API server trusts, for the names and addresses in `hosts`."""
        return self.pki.ca.issue_serving(name, hosts)

    def issue_kubeconfig(
        self, path: Path, user: str, groups: Sequence[str] = (), *, namespace: str = "default"
    ) -> Path:
        """Make sure that `path` holds a kubeconfig for `user`; one that still fits is left as it is."""
        return keep_kubeconfig(path, self.pki.ca, self.url, user, groups, namespace)

    def programs(self, names: Sequence[str] = PROGRAMS) -> list[ProgramSpec]:
        """Return what a supervisor has to know about each of `names`, in the order in which they start."""
        return [self._program(name) for name in PROGRAMS if name in names]

    def _program(self, name: str) -> ProgramSpec:
        return ProgramSpec(
            name=name,
            argv=(*self.binaries.command(name), *arguments(name, self.layout, self.ports)),
            env=_environment(os.environ) | memory_environment(name),
            cwd=self.directory,
            after=AFTER[name],
            ready=_Readiness(self, name),
            ready_within_s=READY_WITHIN_S,
            stop_within_s=API_SERVER_STOP_WITHIN_S if name == API_SERVER else 10.0,
        )

    def context(self, program: str) -> ssl.SSLContext:
        """Return the TLS context with which the administrator (for etcd: the API server) speaks to `program`."""
        if program == ETCD:
            authority, client = self.pki.certificate("etcd-ca"), "apiserver-etcd-client"
        else:
            authority, client = self.ca_certificate, "admin"
        return client_context(str(authority), str(self.pki.certificate(client)), str(self.pki.key(client)))


class _Readiness:
    """Waits for until one program says that it is ready; for the API server it also makes the default ServiceAccount on the way.

    Pods are refused until their namespace has that account. The controller that makes it comes up seconds later than
    the API, so whoever creates the first pod would wait for nothing else.
    """

    def __init__(self, plane: ControlPlane, program: str) -> None:
        self._plane, self._program = plane, program
        self._is_account_made = program != API_SERVER

    async def __call__(self) -> None:
        port = self._plane.ports.health(self._program)
        async with Probe(ADDRESS, port, self._plane.context(self._program)) as probe:
            while not self._is_account_made:
                account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
                status = await probe.ask("POST", DEFAULT_ACCOUNT_PATH, json.dumps(account).encode())
                self._is_account_made = status in (CREATED, CONFLICT)
                if not self._is_account_made:
                    await anyio.sleep(INTERVAL_S)
            await probe.wait_for(READY_PATH[self._program])


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    return {name: ours[name] for name in INHERITED if name in ours}


def _ports(path: Path, reservations: PortReservations) -> Ports:
    """Return the ports of last time where they are free, other ones where not, and remember them."""
    try:
        before: dict[str, int] = json.loads(path.read_text())
    except (OSError, ValueError):
        before = {}
    names = ("api_server", "etcd", "etcd_peer", "scheduler", "controller_manager")
    ports = Ports(**{name: reservations.reserve(before.get(name)) for name in names})
    if asdict(ports) != before:
        write_private(path, json.dumps(asdict(ports)))
    return ports


@asynccontextmanager
async def running_control_plane(
    directory: Path, programs: Sequence[str] = PROGRAMS, *, binaries: Binaries | None = None
) -> AsyncIterator[ControlPlane]:
    """Run a control plane in `directory` for the length of the block; it is ready when the block begins.

    `programs` names what is wanted of it; whatever comes before these in the start order has to be among them. Without
    `binaries` they are found or built. The programs end with this process, even if that is killed; their state stays in
    `directory`, and another block may go on with it. Raises `NotReady` if a program ends or is not ready in time.
    """
    # Blocks while it builds, on purpose: nothing else is to be done meanwhile, and Ctrl-C gets through.
    chosen = binaries or find_or_build(needed=programs)
    with PortReservations() as reservations:
        plane = ControlPlane(directory, chosen, reservations)
        starts = _Starts(plane, programs)
        try:
            await starts.run()
            yield plane
        finally:
            with anyio.CancelScope(shield=True):
                await starts.stop()


class _Starts:
    """Starts programs in their order and stops them in the opposite one. No restarts: that is a supervisor's work."""

    def __init__(self, plane: ControlPlane, names: Sequence[str]) -> None:
        self._specs = plane.programs(names)
        self._log = plane.layout.log
        self._ready = {spec.name: anyio.Event() for spec in self._specs}
        self._processes: dict[str, Process] = {}

    async def run(self) -> None:
        failures: list[NotReady] = []
        async with anyio.create_task_group() as starting:

            async def start(spec: ProgramSpec) -> None:
                try:
                    await self._start(spec)
                except NotReady as failure:
                    failures.append(failure)
                    starting.cancel_scope.cancel()

            for spec in self._specs:
                starting.start_soon(start, spec)
        if failures:
            raise failures[0]

    async def _start(self, spec: ProgramSpec) -> None:
        for name in spec.after:
            await self._ready[name].wait()
        log = self._log(spec.name)
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = self._processes[spec.name] = await anyio.open_process(
                tethered(spec.argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=spec.env,
                cwd=spec.cwd,
                start_new_session=True,  # a Ctrl-C at a terminal is for us, who stop them in order
            )
        with anyio.move_on_after(spec.ready_within_s) as deadline:
            async with anyio.create_task_group() as racing:

                async def become_ready() -> None:
                    await spec.ready()
                    self._ready[spec.name].set()
                    racing.cancel_scope.cancel()

                racing.start_soon(become_ready)
                await process.wait()
                racing.cancel_scope.cancel()
        if self._ready[spec.name].is_set():
            return
        if deadline.cancelled_caught:
            raise NotReady(spec.name, f"was not ready within {spec.ready_within_s:g} s", log, _last_lines(log))
        raise NotReady(spec.name, f"ended with status {process.returncode} before it was ready", log, _last_lines(log))

    async def stop(self) -> None:
        for spec in reversed(self._specs):
            process = self._processes.get(spec.name)
            if process is None:
                continue
            with suppress(ProcessLookupError):
                process.terminate()
            with anyio.move_on_after(spec.stop_within_s):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])
