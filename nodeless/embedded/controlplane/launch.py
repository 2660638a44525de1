"""Put a control plane together: ports, certificates, kubeconfigs, flags, and what "ready" means for each program.

`ControlPlane` describes; a supervisor runs its `programs()`. `running_control_plane` does both, for as long as a block.
"""

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

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
from nodeless.embedded.controlplane.pki import ADMIN_GROUP, ADMIN_USER, KeyPair, Pki, keep_kubeconfig
from nodeless.embedded.files import write_private
from nodeless.embedded.ports import PortReservations
from nodeless.embedded.program import Answers, Post, ProgramSpec, Tls, inherited_environment
from nodeless.embedded.supervisor import supervised

IDENTITIES = {SCHEDULER: "system:kube-scheduler", CONTROLLER_MANAGER: "system:kube-controller-manager"}
"""The users to which Kubernetes' own bootstrap roles are bound."""

READY_WITHIN_S = 60.0
"""A start takes 2 seconds; on a machine that is busy with something else it may take many times that."""
API_SERVER_STOP_WITHIN_S = 15.0

CREATED, CONFLICT = 201, 409
DEFAULT_ACCOUNT = Post(
    path="/api/v1/namespaces/default/serviceaccounts",
    body=json.dumps({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
    accepted=(CREATED, CONFLICT),
)
"""Pods are refused until their namespace has that account. The controller that makes it comes up seconds later than the
API, so whoever creates the first pod would wait for nothing else."""


class ControlPlane:
    """One control plane in one directory, ready to be started. Opening it makes whatever is missing there."""

    def __init__(self, directory: Path, binaries: Binaries, reservations: PortReservations) -> None:
        self.binaries = binaries
        self.layout = Layout(directory.resolve())
        self.layout.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.ports = Ports(**reservations.keep(self.layout.ports, Ports.names()))
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
            env=inherited_environment(os.environ) | memory_environment(name),
            cwd=str(self.directory),
            after=AFTER[name],
            ready=Answers(
                port=self.ports.health(name),
                path=READY_PATH[name],
                tls=self.tls(name),
                before=DEFAULT_ACCOUNT if name == API_SERVER else None,
            ),
            ready_within_s=READY_WITHIN_S,
            stop_within_s=API_SERVER_STOP_WITHIN_S if name == API_SERVER else 10.0,
        )

    def tls(self, program: str) -> Tls:
        """Return how the administrator (for etcd: the API server) speaks to `program`."""
        if program == ETCD:
            authority, client = self.pki.certificate("etcd-ca"), "apiserver-etcd-client"
        else:
            authority, client = self.ca_certificate, "admin"
        return Tls(
            authority=str(authority), certificate=str(self.pki.certificate(client)), key=str(self.pki.key(client))
        )


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
        async with supervised(plane.programs(programs), plane.layout.log) as supervisor:
            await supervisor.wait_ready()
            yield plane
