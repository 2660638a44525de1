"""From an environment to a worker that has seen its events, and an exit status that says how it went."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec

from bus.core.assignment import (
    ENVIRONMENT_ASSIGNMENT,
    ENVIRONMENT_BUNDLES,
    ENVIRONMENT_GRACE_S,
    ENVIRONMENT_NATS_CREDENTIALS,
    ENVIRONMENT_NATS_URL,
    ENVIRONMENT_NODE_NAME,
    ENVIRONMENT_POD_NAME,
    ENVIRONMENT_POD_UID,
    ENVIRONMENT_TERMINATION_LOG,
    EXIT_FUNCTION_UNUSABLE,
    Assignment,
    decode_assignment,
)
from bus.core.errors import BrokerUnavailable, BusError, NotFound
from bus.jetstream.connection import BusConfig, Connection, open_connection
from bus.jetstream.objects import get_bundle
from workers.errors import FunctionUnusable
from workers.invoke import Invoker
from workers.load import load_handler, unpack, unpacked_path
from workers.output import flush_output, set_up_output
from workers.settle import Identity
from workers.worker import Worker

log = logging.getLogger("nodeless.worker")

GRACE_S = 30.0
CONNECT_S = 20.0


async def _handler_of(assignment: Assignment, bundles: Path, connection: Connection) -> Any:
    folder = unpacked_path(bundles, assignment.bundle)
    if not folder.is_dir():
        try:
            archive = await get_bundle(connection, assignment.bundle)
        except BusError as error:
            if error.retryable:
                raise
            raise FunctionUnusable(f"its code cannot be fetched: {error}") from error
        folder = unpack(archive, bundles, assignment.bundle)
    return load_handler(folder, assignment.handler)


async def _serve(assignment: Assignment, environment: Mapping[str, str], started_ns: int) -> None:
    config = BusConfig(
        url=environment[ENVIRONMENT_NATS_URL],
        credentials_text=environment.get(ENVIRONMENT_NATS_CREDENTIALS) or None,
        name=f"worker {environment.get(ENVIRONMENT_POD_NAME, '')}",
        inbox_prefix=assignment.inbox_prefix,
        connect_s=CONNECT_S,
    )
    identity = Identity(
        pod=environment.get(ENVIRONMENT_POD_NAME, "worker"),
        uid=environment.get(ENVIRONMENT_POD_UID, str(os.getpid())),
        node=environment.get(ENVIRONMENT_NODE_NAME, ""),
        started_ns=started_ns,
    )
    bundles = Path(environment.get(ENVIRONMENT_BUNDLES) or Path.home() / ".cache" / "nodeless" / "bundles")
    async with open_connection(config) as connection:
        handler = await _handler_of(assignment, bundles, connection)
        invoker = Invoker(handler, assignment.concurrency, assignment.delivery.timeout_s)
        worker = Worker(assignment, identity, invoker)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.stop, f"{signal.Signals(number).name} received")
        await worker.serve(connection, float(environment.get(ENVIRONMENT_GRACE_S) or GRACE_S))


def main(environment: Mapping[str, str]) -> int:
    """Run one worker and return its exit status: 0 after an orderly leave, 78 for an unusable function, 69 without
    a broker.

    May be called in a child that was forked from a parent which had done the imports.
    """
    started_ns = time.time_ns()
    set_up_output(environment)
    try:
        assignment = decode_assignment(environment[ENVIRONMENT_ASSIGNMENT])
    except (KeyError, msgspec.DecodeError) as error:
        return _unusable(environment, f"this worker was given no assignment: {error}", "", 64)
    try:
        _run(_serve(assignment, environment, started_ns))
        return 0
    except FunctionUnusable as error:
        return _unusable(environment, error.reason, error.details, EXIT_FUNCTION_UNUSABLE)
    except (BrokerUnavailable, NotFound) as error:
        return _unusable(environment, str(error), "", 69)
    finally:
        flush_output()


def _run(life: Coroutine[Any, Any, None]) -> None:
    """What `asyncio.run` does, but for its end: it would wait for calls that do not heed their cancellation, for ever.
    Whoever called us ends the process.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(life)


def _unusable(environment: Mapping[str, str], reason: str, details: str, status: int) -> int:
    log.error("%s", reason)
    if details:
        log.error("%s", details.rstrip())
    path = environment.get(ENVIRONMENT_TERMINATION_LOG)
    if path:
        Path(path).write_text(reason[:4096])
    return status
