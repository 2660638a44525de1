"""Prepare a whole system: control plane, broker and our three programs, each with an identity of its own.

`prepare` makes everything that lies on disk (certificates, kubeconfigs, credentials, configuration) and returns the plan
that a supervisor runs. An external broker or an external Kubernetes takes the place of the embedded one here, and nowhere
else:

- external NATS: its URL and one credentials file for all our programs; with an account seed, a user of its own for each
  program and for each function's workers, as with the embedded broker;
- external Kubernetes: the kubeconfig given is the identity of dispatcher and node (it has to have their rights), and
  applies the manifests. `kubectl logs` works where that API server reaches the node's address and does not insist on
  another authority than ours for its certificate.
"""

import base64
import hashlib
import os
import re
import secrets
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import Struct

from bus.core.credentials import PROGRAMS
from bus.core.errors import ConfigurationError
from nodeless.embedded.broker import Broker, keep_credentials
from nodeless.embedded.controlplane.binaries import Binaries
from nodeless.embedded.controlplane.components import API_SERVER, ETCD
from nodeless.embedded.controlplane.launch import ControlPlane
from nodeless.embedded.controlplane.pki import ADMIN_GROUP, ADMIN_USER, Authority
from nodeless.embedded.files import write_private
from nodeless.embedded.home import Endpoints, Home, Plan
from nodeless.embedded.ports import PortReservations
from nodeless.embedded.program import Answers, ProgramSpec, Tls, inherited_environment

NODE_NAME = "nodeless-0"
"""In a cluster of its own. In somebody else's, two systems must not be one node: see `node_name`."""
NODE_ADDRESS = "127.0.0.1"
DISPATCHER_USER = "system:serviceaccount:nodeless-system:dispatcher"
SETUP, DISPATCHER, GATEWAY, NODE = "setup", "dispatcher", "gateway", "node"

SETUP_WITHIN_S = 90.0
PROGRAM_READY_WITHIN_S = 60.0
"""A start takes a second or two; on a machine that is busy with something else it may take many times that."""
PROGRAM_STOP_WITHIN_S = 15.0
"""More than the 10 s in which our programs finish what is in hand."""
TOKEN_BYTES = 32
HOST_CHARACTERS = 40
"""Of the machine's name in its node's; a node's name has at most 63 where it becomes a label."""


class SystemOptions(Struct, frozen=True, kw_only=True):
    """What a user may replace; paths are absolute."""

    nats_url: str | None = None
    nats_credentials: str | None = None
    nats_account_seed: str | None = None
    """Path of a file with the seed of an account on the external broker."""
    kubeconfig: str | None = None
    context: str | None = None

    def __post_init__(self) -> None:
        if self.nats_url is None and (self.nats_credentials or self.nats_account_seed):
            raise ConfigurationError(
                "nats-credentials", self.nats_credentials or self.nats_account_seed, "command line",
                "credentials are for an external broker: add --nats URL",
            )  # fmt: skip


def node_name(home: Home, *, is_embedded: bool) -> str:
    """Return the name of the home's node: the same at every start, and another one for every other home.

    Two nodes with one name would each run every pod that is bound to it.
    """
    if is_embedded:
        return NODE_NAME
    host = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().lower())[:HOST_CHARACTERS].strip("-")
    place = hashlib.sha256(f"{socket.gethostname()}:{home.directory}".encode(errors="surrogateescape")).hexdigest()
    return f"nodeless-{host or 'host'}-{place[:6]}"


class _Kubernetes(Struct, kw_only=True):
    """The API server and who is who there."""

    programs: list[ProgramSpec]
    after: tuple[str, ...]
    """What has to be ready before the API answers at all."""
    serving: tuple[str, ...]
    """What has to be ready before our programs may use it."""
    admin: str
    dispatcher: str
    node: str
    context: str | None
    authority: Authority
    client_authorities: str
    """PEM file: who may call the node."""


class _Nats(Struct, kw_only=True):
    programs: list[ProgramSpec]
    url: str
    credentials: Mapping[str, str]
    account_seed: str | None


def prepare(home: Home, options: SystemOptions, binaries: Binaries | None, reservations: PortReservations) -> Plan:
    """Make what is missing in `home` and return what is to be run there; `binaries` is None where Kubernetes is
    external. Raises `ConfigurationError`, `EmbeddedError`.
    """
    kubernetes = (
        _external_kubernetes(home, options)
        if binaries is None
        else _embedded_kubernetes(home, ControlPlane(home.directory, binaries, reservations))
    )
    nats = _external_nats(home, options) if options.nats_url else _embedded_nats(Broker(home, reservations))
    name = node_name(home, is_embedded=binaries is not None)
    ports = reservations.keep(home.directory / "programs" / "ports.json", (DISPATCHER, GATEWAY, NODE))
    token_file = home.program(GATEWAY) / "token"
    if not token_file.exists():
        write_private(token_file, secrets.token_urlsafe(TOKEN_BYTES) + "\n")
    after = (SETUP, *kubernetes.serving, *(program.name for program in nats.programs))
    plan = Plan(
        programs=(
            *kubernetes.programs,
            *nats.programs,
            _setup(kubernetes),
            _dispatcher(kubernetes, nats, ports[DISPATCHER], after),
            _node(home, name, kubernetes, ports[NODE], after),
            _gateway(nats, ports[GATEWAY], token_file, after),
        ),
        endpoints=Endpoints(
            nats_url=nats.url,
            nats_credentials=nats.credentials.get("cli"),
            git_credentials=nats.credentials.get("git"),
            gateway_url=f"http://127.0.0.1:{ports[GATEWAY]}",
            gateway_token_file=str(token_file),
            kubeconfig=kubernetes.admin,
            context=kubernetes.context,
            node=name,
        ),
    )
    write_private(home.plan, msgspec.json.encode(plan))
    return plan


# -- Kubernetes


def _embedded_kubernetes(home: Home, plane: ControlPlane) -> _Kubernetes:
    return _Kubernetes(
        programs=plane.programs(),
        after=(ETCD,),
        serving=(API_SERVER,),
        admin=str(plane.kubeconfig),
        dispatcher=str(plane.issue_kubeconfig(home.program(DISPATCHER) / "kubeconfig", DISPATCHER_USER)),
        node=str(
            plane.issue_kubeconfig(home.program(NODE) / "kubeconfig", f"system:node:{NODE_NAME}", ("system:nodes",))
        ),
        context=None,
        authority=plane.pki.ca,
        client_authorities=str(plane.ca_certificate),
    )


def _external_kubernetes(home: Home, options: SystemOptions) -> _Kubernetes:
    given = options.kubeconfig or _default_kubeconfig()
    authority = Authority(home.pki, "ca")
    if not (home.pki / "admin.crt").exists():
        admin = authority.issue_client(ADMIN_USER, (ADMIN_GROUP,))
        write_private(home.pki / "admin.key", admin.key)
        write_private(home.pki / "admin.crt", admin.certificate)
    # The cluster's API server calls the node with a certificate of its own authority, and our supervisor with one of ours.
    client_authorities = write_private(
        home.program(NODE) / "client-ca.crt", authority.certificate + _cluster_authority(given, options.context)
    )
    return _Kubernetes(
        programs=[],
        after=(),
        serving=(),
        admin=given,
        dispatcher=given,
        node=given,
        context=options.context,
        authority=authority,
        client_authorities=str(client_authorities),
    )


def _default_kubeconfig() -> str:
    """Return the one file that kubectl would use without being told."""
    named = os.environ.get("KUBECONFIG", "")
    if os.pathsep in named:
        raise ConfigurationError("KUBECONFIG", named, "environment", "name one file with --kubeconfig")
    return str(Path(named or "~/.kube/config").expanduser().absolute())


def _cluster_authority(kubeconfig: str, context: str | None) -> bytes:
    """Return the PEM of the authority that signed the API server's certificate; empty where none is named."""
    try:
        content: dict[str, Any] = yaml.safe_load(Path(kubeconfig).read_text())
        contexts = {each["name"]: each["context"] for each in content["contexts"]}
        clusters = {each["name"]: each["cluster"] for each in content["clusters"]}
        cluster = clusters[contexts[context or content["current-context"]]["cluster"]]
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError("kubeconfig", kubeconfig, "command line", f"it cannot be read: {error}") from error
    except (KeyError, TypeError) as error:
        raise ConfigurationError(
            "kubeconfig", kubeconfig, "command line",
            f"it defines no context {context or 'to be current'!r} with a cluster ({error})",
        ) from error  # fmt: skip
    if "certificate-authority-data" in cluster:
        return base64.b64decode(str(cluster["certificate-authority-data"]))
    if "certificate-authority" in cluster:
        return (Path(kubeconfig).parent / str(cluster["certificate-authority"])).read_bytes()
    return b""


# -- NATS


def _embedded_nats(broker: Broker) -> _Nats:
    return _Nats(
        programs=[broker.program()],
        url=broker.url,
        credentials={program: str(path) for program, path in broker.credentials().items()},
        account_seed=str(broker.account_seed_file),
    )


def _external_nats(home: Home, options: SystemOptions) -> _Nats:
    assert options.nats_url is not None
    credentials: Mapping[str, str] = {}
    if options.nats_account_seed is not None:
        try:
            seed = Path(options.nats_account_seed).read_text()
            credentials = {program: str(path) for program, path in keep_credentials(home, seed).items()}
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                "nats-account-seed", options.nats_account_seed, "command line", str(error)
            ) from error
    if options.nats_credentials is not None:
        if not os.access(options.nats_credentials, os.R_OK):
            raise ConfigurationError(
                "nats-credentials", options.nats_credentials, "command line", "no such file, or it cannot be read"
            )
        credentials = dict.fromkeys(PROGRAMS, options.nats_credentials) | dict(credentials)
    return _Nats(programs=[], url=options.nats_url, credentials=credentials, account_seed=options.nats_account_seed)


# -- our programs


def _python(name: str, module: str, flags: Mapping[str, object], **rest: Any) -> ProgramSpec:
    """Return the spec of one of our programs; flags that are None are left out."""
    given = tuple(word for flag, value in flags.items() if value is not None for word in (f"--{flag}", str(value)))
    return ProgramSpec(
        name=name,
        # -P: whatever lies in the directory from which the system was started is not imported.
        argv=(sys.executable, "-P", "-m", module, *given),
        env=inherited_environment(os.environ),
        **({"ready_within_s": PROGRAM_READY_WITHIN_S, "stop_within_s": PROGRAM_STOP_WITHIN_S} | rest),
    )


def _setup(kubernetes: _Kubernetes) -> ProgramSpec:
    # Started before the API answers: its own start then costs nothing.
    flags = {"kubeconfig": kubernetes.admin, "context": kubernetes.context}
    return _python(SETUP, "nodeless.embedded.setup", flags, after=kubernetes.after, ready_within_s=SETUP_WITHIN_S)


def _dispatcher(kubernetes: _Kubernetes, nats: _Nats, port: int, after: tuple[str, ...]) -> ProgramSpec:
    flags = {
        "kubeconfig": kubernetes.dispatcher,
        "context": kubernetes.context,
        "nats-url": nats.url,
        "nats-credentials": nats.credentials.get("dispatcher"),
        "nats-account-seed": nats.account_seed,
        "health-port": port,
    }
    return _python(DISPATCHER, "bus.dispatcher", flags, after=after, ready=Answers(port=port, path="/readyz"))


def _gateway(nats: _Nats, port: int, token_file: Path, after: tuple[str, ...]) -> ProgramSpec:
    flags = {
        "nats-url": nats.url,
        "nats-credentials": nats.credentials.get("gateway"),
        "host": "127.0.0.1",
        "port": port,
        "token-file": token_file,
    }
    return _python(GATEWAY, "bus.ingress.gateway", flags, after=after, ready=Answers(port=port, path="/readyz"))


def _node(home: Home, name: str, kubernetes: _Kubernetes, port: int, after: tuple[str, ...]) -> ProgramSpec:
    certificate, key = home.program(NODE) / "serving.crt", home.program(NODE) / "serving.key"
    if not (certificate.exists() and kubernetes.authority.accepts(certificate.read_bytes(), (NODE_ADDRESS, name))):
        pair = kubernetes.authority.issue_serving(f"system:node:{name}", (NODE_ADDRESS, name))
        write_private(key, pair.key)
        write_private(certificate, pair.certificate)
    home.node.mkdir(mode=0o700, exist_ok=True)
    flags = {
        "name": name,
        "kubeconfig": kubernetes.node,
        "context": kubernetes.context,
        "state-directory": home.node,
        "address": NODE_ADDRESS,
        "port": port,
        "certificate": certificate,
        "key": key,
        "client-ca": kubernetes.client_authorities,
        "backend": "process",
    }
    administrator = Tls(
        authority=str(kubernetes.authority.certificate_path),
        certificate=str(home.pki / "admin.crt"),
        key=str(home.pki / "admin.key"),
    )
    return _python(
        NODE,
        "provider",
        flags,
        after=after,
        ready=Answers(port=port, path="/healthz", tls=administrator),
        lifeline_flag="--lifeline-fd",
    )
