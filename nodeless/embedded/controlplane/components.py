"""The four programs of a control plane and their flags. Pure: ports and paths in, arguments out.

Every flag that matters here is stated, whatever the program's default is today. The reasons are beside them.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path

ETCD, API_SERVER = "etcd", "kube-apiserver"
SCHEDULER, CONTROLLER_MANAGER = "kube-scheduler", "kube-controller-manager"
PROGRAMS = (ETCD, API_SERVER, SCHEDULER, CONTROLLER_MANAGER)
"""In the order in which they are started."""

AFTER = {ETCD: (), API_SERVER: (ETCD,), SCHEDULER: (API_SERVER,), CONTROLLER_MANAGER: (API_SERVER,)}
"""What has to be ready first. Started before RBAC's bootstrap roles exist, the last two meet 403 and back off for
seconds; started after the API server's readiness, the first pod runs two seconds earlier."""

READY_PATH = {ETCD: "/readyz", API_SERVER: "/readyz", SCHEDULER: "/readyz", CONTROLLER_MANAGER: "/healthz"}
"""The controller-manager has no /readyz; it serves before its controllers run."""

ADDRESS = "127.0.0.1"
SERVICE_RANGE = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"
"""The first address of the range: the `kubernetes` Service."""
SERVICE_ACCOUNT_ISSUER = "https://kubernetes.default.svc.cluster.local"

CLIENT_QPS, CLIENT_BURST = 500, 1000
"""Requests per second that scheduler and controller-manager may send. The defaults (50 and 20) hold a burst of 500
pods back for ten seconds; here the API server is on the same machine, and priority and fairness protects it."""

MEMORY = {
    ETCD: ("50", "128MiB"),
    API_SERVER: ("50", "400MiB"),
    SCHEDULER: ("50", "96MiB"),
    CONTROLLER_MANAGER: ("50", "128MiB"),
}
"""GOGC and GOMEMLIMIT: collect at half the usual growth, and eagerly near a heap that a laptop should not exceed. The
limit is soft: beyond it a program spends more time collecting (Go caps that at half), and goes on."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """TCP ports on loopback."""

    api_server: int
    etcd: int
    etcd_peer: int
    scheduler: int
    controller_manager: int

    @classmethod
    def names(cls) -> list[str]:
        return [field.name for field in fields(cls)]

    def health(self, program: str) -> int:
        """Return the port on which `program` answers at `READY_PATH`."""
        return {
            ETCD: self.etcd,
            API_SERVER: self.api_server,
            SCHEDULER: self.scheduler,
            CONTROLLER_MANAGER: self.controller_manager,
        }[program]


@dataclass(frozen=True)
class Layout:
    """Where things lie inside the directory of one system."""

    directory: Path

    @property
    def pki(self) -> Path:
        return self.directory / "pki"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.directory / "kubeconfig"

    @property
    def etcd_data(self) -> Path:
        return self.directory / "etcd"

    @property
    def ports(self) -> Path:
        return self.directory / "controlplane" / "ports.json"

    @property
    def scheduler_config(self) -> Path:
        return self.directory / "controlplane" / "kube-scheduler.json"

    def program_kubeconfig(self, program: str) -> Path:
        return self.directory / "programs" / program / "kubeconfig"

    def log(self, program: str) -> Path:
        return self.directory / "logs" / f"{program}.log"


def arguments(program: str, layout: Layout, ports: Ports) -> tuple[str, ...]:
    """Return the flags of `program`."""
    flags = {
        ETCD: _etcd,
        API_SERVER: _api_server,
        SCHEDULER: _scheduler,
        CONTROLLER_MANAGER: _controller_manager,
    }[program](layout, ports)
    return tuple(f"--{name}={value}" for name, value in flags.items())


def memory_environment(program: str) -> dict[str, str]:
    collect_percent, limit = MEMORY[program]
    return {"GOGC": collect_percent, "GOMEMLIMIT": limit}


def _etcd(layout: Layout, ports: Ports) -> dict[str, object]:
    client, peer = f"https://{ADDRESS}:{ports.etcd}", f"https://{ADDRESS}:{ports.etcd_peer}"
    certificate, key, authority = layout.pki / "etcd.crt", layout.pki / "etcd.key", layout.pki / "etcd-ca.crt"
    return {
        "name": "nodeless",
        "data-dir": layout.etcd_data,
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "cert-file": certificate,
        "key-file": key,
        "trusted-ca-file": authority,
        "client-cert-auth": "true",
        # A single member talks to nobody, but has to listen.
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"nodeless={peer}",
        "peer-cert-file": certificate,
        "peer-key-file": key,
        "peer-trusted-ca-file": authority,
        "peer-client-cert-auth": "true",
        # A single member elects itself after one election timeout: 0.1 s instead of 1 s at every start.
        "heartbeat-interval": 10,
        "election-timeout": 100,
        "log-level": "warn",
    }


def _api_server(layout: Layout, ports: Ports) -> dict[str, object]:
    pki = layout.pki
    return {
        "bind-address": ADDRESS,
        "secure-port": ports.api_server,
        # Loopback cannot be an endpoint of the `kubernetes` Service, and nothing here routes Service addresses.
        "advertise-address": ADDRESS,
        "endpoint-reconciler-type": "none",
        "etcd-servers": f"https://{ADDRESS}:{ports.etcd}",
        "etcd-cafile": pki / "etcd-ca.crt",
        "etcd-certfile": pki / "apiserver-etcd-client.crt",
        "etcd-keyfile": pki / "apiserver-etcd-client.key",
        "tls-cert-file": pki / "apiserver.crt",
        "tls-private-key-file": pki / "apiserver.key",
        "client-ca-file": pki / "ca.crt",
        "anonymous-auth": "false",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "service-account-issuer": SERVICE_ACCOUNT_ISSUER,
        "service-account-key-file": pki / "sa.pub",
        "service-account-signing-key-file": pki / "sa.key",
        "service-cluster-ip-range": SERVICE_RANGE,
        # Nodes: verified both ways, and reached by address only (the first type tried by default is a host name).
        "kubelet-client-certificate": pki / "apiserver-kubelet-client.crt",
        "kubelet-client-key": pki / "apiserver-kubelet-client.key",
        "kubelet-certificate-authority": pki / "ca.crt",
        "kubelet-preferred-address-types": "InternalIP",
        # Aggregated API servers; by endpoint, since no proxy makes Service addresses work.
        "requestheader-client-ca-file": pki / "front-proxy-ca.crt",
        "requestheader-allowed-names": "front-proxy-client",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "proxy-client-cert-file": pki / "front-proxy-client.crt",
        "proxy-client-key-file": pki / "front-proxy-client.key",
        "enable-aggregator-routing": "true",
        "profiling": "false",
    }


def _scheduler(layout: Layout, ports: Ports) -> dict[str, object]:
    kubeconfig = layout.program_kubeconfig(SCHEDULER)
    return {
        "config": layout.scheduler_config,
        "bind-address": ADDRESS,
        "secure-port": ports.scheduler,
        "tls-cert-file": layout.pki / "kube-scheduler.crt",
        "tls-private-key-file": layout.pki / "kube-scheduler.key",
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "authentication-tolerate-lookup-failure": "true",
    }


def scheduler_config(layout: Layout) -> str:
    """Return the scheduler's configuration file: the client limits can be set nowhere else."""
    return json.dumps(
        {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {
                "kubeconfig": str(layout.program_kubeconfig(SCHEDULER)),
                "qps": CLIENT_QPS,
                "burst": CLIENT_BURST,
            },
            # One of each: an election would only cost time at the start.
            "leaderElection": {"leaderElect": False},
            "enableProfiling": False,
        },
        indent=2,
    )


def _controller_manager(layout: Layout, ports: Ports) -> dict[str, object]:
    pki, kubeconfig = layout.pki, layout.program_kubeconfig(CONTROLLER_MANAGER)
    return {
        "kubeconfig": kubeconfig,
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        # A 403 in the moment before RBAC's bootstrap is not a reason to exit.
        "authentication-tolerate-lookup-failure": "true",
        "bind-address": ADDRESS,
        "secure-port": ports.controller_manager,
        "tls-cert-file": pki / "kube-controller-manager.crt",
        "tls-private-key-file": pki / "kube-controller-manager.key",
        "leader-elect": "false",
        # All that a kubectl user expects. Volumes are attached to machines, and there is none; controllers that need
        # a cloud (routes, load balancers) are not started without one.
        "controllers": "*,-persistentvolume-attach-detach-controller",
        "allocate-node-cidrs": "false",
        "use-service-account-credentials": "true",
        "service-account-private-key-file": pki / "sa.key",
        "root-ca-file": pki / "ca.crt",
        "cluster-signing-cert-file": pki / "ca.crt",
        "cluster-signing-key-file": pki / "ca.key",
        "client-ca-file": pki / "ca.crt",
        "requestheader-client-ca-file": pki / "front-proxy-ca.crt",
        "kube-api-qps": CLIENT_QPS,
        "kube-api-burst": CLIENT_BURST,
        "profiling": "false",
    }
