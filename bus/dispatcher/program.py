"""Put the dispatcher together and run it until told to stop."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import anyio

from bus.cluster.connection import ClusterConfig, open_cluster
from bus.cluster.errors import ClusterUnavailable
from bus.core.assignment import WORKER_IMAGE, Assignment
from bus.core.credentials import Permissions, inbox_prefix, worker_permissions
from bus.core.errors import BrokerUnavailable, ConfigurationError
from bus.dispatcher.dispatcher import Dispatcher, open_dispatcher
from bus.dispatcher.settings import DispatcherConfig
from bus.dispatcher.shared import Shared
from bus.dispatcher.wakes import WakeSignals
from bus.health import serve_health
from bus.jetstream.connection import BusConfig, open_connection
from bus.jetstream.credentials import mint_user
from bus.scaler.events import open_recorder
from bus.scaler.manifest import WorkerSettings
from bus.scaler.pods import Scaler

log = logging.getLogger(__name__)

NAME = "dispatcher"
RETRY_S = 0.25

T = TypeVar("T")


def credentials_minter(config: DispatcherConfig) -> Callable[[Assignment], str] | None:
    """Return how a function's workers get their credentials, or None where the broker asks for none.

    Raises `ConfigurationError` for files that cannot be read or hold something else.
    """
    if config.nats_account_seed:
        seed = _text("nats_account_seed", config.nats_account_seed)
        try:
            mint_user(seed, "probe", Permissions(publish=(), subscribe=()))
        except ValueError as error:
            raise ConfigurationError("nats_account_seed", config.nats_account_seed, "file", str(error)) from error
        return lambda assignment: mint_user(
            seed, f"worker {assignment.namespace}/{assignment.function}", worker_permissions(assignment)
        )
    if config.nats_worker_credentials:
        text = _text("nats_worker_credentials", config.nats_worker_credentials)
        return lambda _: text
    return None


def _text(key: str, path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(key, path, "file", f"it cannot be read: {error}") from error


@asynccontextmanager
async def _opened(open_: Callable[[], AbstractAsyncContextManager[T]], seconds: float) -> AsyncIterator[T]:
    """Open a connection, again while the other side is not there yet; raise its error after `seconds`."""
    deadline_s = anyio.current_time() + seconds
    while True:
        context = open_()
        try:
            opened = await context.__aenter__()
            break
        except (BrokerUnavailable, ClusterUnavailable) as error:
            if anyio.current_time() >= deadline_s:
                raise
            log.info("first contact will be tried again: %s", error)
            await anyio.sleep(RETRY_S)
    try:
        yield opened
    except BaseException as error:
        if not await context.__aexit__(type(error), error, error.__traceback__):
            raise
    else:
        await context.__aexit__(None, None, None)


async def run(config: DispatcherConfig, credentials_of: Callable[[Assignment], str] | None) -> None:
    """Work until cancelled. Raises `BrokerUnavailable` or `ClusterUnavailable` where there is no first contact within
    `config.connect_s`, and the former when the broker refuses us for good; `OSError` where the health port is taken.
    """
    bus = BusConfig(
        url=config.nats_url, credentials=config.nats_credentials, name=NAME, inbox_prefix=inbox_prefix(NAME)
    )
    kubernetes = ClusterConfig(kubeconfig=config.kubeconfig, context=config.context)
    settings = WorkerSettings(
        image=config.worker_image or f"{WORKER_IMAGE}:{version('nodeless-bus')}",
        nats_url=config.worker_nats_url or config.nats_url,
        has_credentials=credentials_of is not None,
    )
    opened: list[Dispatcher] = []
    async with (
        serve_health(config.health_port, lambda: opened[0].reason_not_ready() if opened else "connecting"),
        _opened(lambda: open_connection(bus), config.connect_s) as connection,
        _opened(lambda: open_cluster(kubernetes), config.connect_s) as cluster,
        open_recorder(cluster) as recorder,
    ):
        shared = Shared(
            cluster=cluster,
            connection=connection,
            scaler=Scaler(cluster, settings, credentials_of),
            wakes=WakeSignals(connection),
            recorder=recorder,
        )
        async with open_dispatcher(shared, config.replicas) as dispatcher:
            opened.append(dispatcher)
            log.info("dispatching", extra={"nats": connection.url, "cluster": cluster.server})
            await connection.wait_closed()
            raise BrokerUnavailable(connection.url, "it has refused this user for good")
