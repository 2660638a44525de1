"""The virtual node put together: cluster, backend, pods, registration and the HTTPS API, each owned by one block.

run
├─ backend            (its own tasks)
├─ recorder           writes Events
├─ pods               informer, backend observations, one lane for each pod
├─ registration       Node status, lease, watch of the own Node
└─ HTTPS server       one task for each connection
"""

import logging
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import anyio

from bus.cluster.connection import ClusterConfig, open_cluster
from bus.core.errors import ConfigurationError
from provider.backends.seam import Backend
from provider.core.node import NodeDescription
from provider.core.status import Place
from provider.events import open_recorder
from provider.kubelet.access import Access
from provider.kubelet.api import KubeletApi
from provider.kubelet.server import open_listener, open_server, server_context
from provider.machine import capacity_of, read_machine
from provider.node.pods import open_pods
from provider.node.registration import open_registration
from provider.settings import NodeConfig

log = logging.getLogger(__name__)

PLUG_INS = "nodeless.backends"
"""Entry point group: each name is a backend, each object a `BackendFactory`."""

BackendFactory = Callable[[NodeConfig], AbstractAsyncContextManager[Backend]]


def _process(config: NodeConfig) -> AbstractAsyncContextManager[Backend]:
    from provider.backends.process.backend import ProcessBackend

    return ProcessBackend(Path(config.state_directory), sys.executable, config.lifeline_fd)


def _memory(config: NodeConfig) -> AbstractAsyncContextManager[Backend]:
    from provider.backends.memory import MemoryBackend

    return MemoryBackend()


OWN: dict[str, BackendFactory] = {"process": _process, "memory": _memory}


def backend_factory(name: str) -> BackendFactory:
    """Return the backend of that name; raise `ConfigurationError` where there is none."""
    if name in OWN:
        return OWN[name]
    found = entry_points(group=PLUG_INS)
    if name in found.names:
        factory: BackendFactory = found[name].load()
        return factory
    known = ", ".join(sorted({*OWN, *found.names}))
    raise ConfigurationError("backend", name, "backend", f"no such backend is installed; known: {known}")


async def run(config: NodeConfig) -> None:
    """Be the node until cancelled; what runs on it then runs on.

    Raises `ConfigurationError` for files that cannot be used, `ClusterUnavailable` where the API server does not answer,
    `BackendUnavailable`, and `OSError` where the port is taken.
    """
    context = server_context(config.certificate, config.key, config.client_ca)
    factory = backend_factory(config.backend)
    capacity = capacity_of(config.cpu, config.memory, config.pods)
    async with AsyncExitStack() as stack:
        # What fails at the start, fails here, outside of all task groups.
        listener = await stack.enter_async_context(open_listener(context, address=config.address, port=config.port))
        cluster = await stack.enter_async_context(
            open_cluster(ClusterConfig(kubeconfig=config.kubeconfig, context=config.context))
        )
        backend = await stack.enter_async_context(factory(config))
        description = NodeDescription(
            name=config.name,
            address=config.address,
            port=config.port,
            backend=backend.name,
            version=_own_version(),
            kubernetes_version=str((await cluster.version()).get("gitVersion", "")),
            capacity=capacity,
            machine=read_machine(),
            is_tainted=config.taint,
        )
        recorder = await stack.enter_async_context(open_recorder(cluster, config.name))
        place = Place(address=config.address, backend=backend.name)
        pods = await stack.enter_async_context(
            open_pods(
                cluster, backend, recorder, node=config.name, place=place, allocatable=capacity.resources
            )
        )  # fmt: skip
        registration = await stack.enter_async_context(open_registration(cluster, description, recorder))
        api = KubeletApi(
            Access(cluster, config.name),
            pods,
            backend,
            node=config.name,
            is_ready=lambda: registration.is_ready and pods.is_synced,
        )
        await stack.enter_async_context(open_server(api, listener))
        log.info("node serves", extra={"node": config.name, "address": config.address, "port": config.port})
        await anyio.sleep_forever()


def _own_version() -> str:
    try:
        return version("nodeless-bus")
    except PackageNotFoundError:  # run from a clone that is not installed
        return "0.0.0"
