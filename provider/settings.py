"""Settings of the virtual node (`python -m provider`): flags, or NODELESS_NODE_* in the environment."""

import ipaddress
import re
from typing import Annotated

from msgspec import Meta, Struct

from bus.core.errors import ConfigurationError
from provider.core.quantity import parse_quantity

PREFIX = "NODELESS_NODE_"
PODS_MAX = 500

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)


class NodeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One virtual node."""

    name: str
    """Of the Node object. The node's identity in the cluster is `system:node:<name>`."""
    kubeconfig: str | None = None
    """Path; default kubectl's own rules, then the pod's service account."""
    context: str | None = None
    state_directory: str
    """Where the backend keeps its records and the containers' logs. Short: sockets lie in it."""
    address: str = "127.0.0.1"
    """InternalIP of the Node and of its pods; the HTTPS API listens there. Where it is a loopback address, `kubectl
    logs` works and the API server's node and pod proxies do not."""
    port: Annotated[int, Meta(ge=1, le=65535)] = 10250
    """Of the HTTPS API."""
    certificate: str
    """Path of the serving certificate (PEM), for `address`, signed by an authority that the API server trusts."""
    key: str
    """Path of its key (PEM)."""
    client_ca: str
    """Path of the certificates (PEM) that sign client certificates in this cluster."""
    backend: str = "process"
    """What really runs the pods: process, memory, or the name of an installed plug-in."""
    cpu: str | None = None
    """Capacity, as a Kubernetes quantity; default what the machine has."""
    memory: str | None = None
    """Capacity, as a Kubernetes quantity; default what the machine has."""
    pods: Annotated[int, Meta(ge=1, le=100_000)] = PODS_MAX
    """Capacity. [pods]"""
    taint: bool = False
    """Whether the Node is created with the taint virtual-kubelet.io/provider=nodeless:NoSchedule, so that only pods that
    tolerate it come here."""
    lifeline_fd: Annotated[int, Meta(ge=3)] | None = None
    """Read end of a pipe that somebody else holds open: when it is closed, everything that this node runs ends."""

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise ConfigurationError(
                "name", self.name, "name", "a Node is named in lower case letters, digits, '-' and '.'"
            )
        try:
            ipaddress.ip_address(self.address)
        except ValueError as error:
            raise ConfigurationError("address", self.address, "address", f"{error}: an IP address is needed") from error
        for key, value in (("cpu", self.cpu), ("memory", self.memory)):
            try:
                if value is not None and parse_quantity(value) <= 0:
                    raise ConfigurationError(key, value, key, "a node needs more than nothing")
            except ConfigurationError:
                raise
            except ValueError as error:
                raise ConfigurationError(key, value, key, str(error)) from error
