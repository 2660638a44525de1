"""`python -m bus.dispatcher`: settings, logging, signals, exit status.

0 after SIGTERM or SIGINT, 2 for a wrong setting, 69 where broker or API server do not answer.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

import anyio

from bus.cluster.errors import ClusterUnavailable
from bus.core.configuration import flags_of, load, usage_of
from bus.core.errors import BrokerUnavailable, ConfigurationError
from bus.dispatcher.program import credentials_minter, run
from bus.dispatcher.settings import DispatcherConfig
from bus.logs import set_up_logging

PREFIX = "NODELESS_DISPATCHER_"
UNUSABLE, UNAVAILABLE = 2, 69


PURPOSE = "Gives each Function its consumer and the workers that its events need."


def main(arguments: Sequence[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(usage_of(DispatcherConfig, "python -m bus.dispatcher", PURPOSE, prefix=PREFIX))
        return 0
    try:
        config = load(
            DispatcherConfig, flags=flags_of(DispatcherConfig, arguments), environment=os.environ, prefix=PREFIX
        )
        credentials_of = credentials_minter(config)
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        return UNUSABLE
    set_up_logging()
    for chatty in ("httpx", "httpcore", "nats"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    status = 0

    async def run_until_stopped() -> None:
        nonlocal status
        async with anyio.create_task_group() as group:

            async def stop_on_signal() -> None:
                with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                    async for _ in signals:
                        group.cancel_scope.cancel()
                        return

            group.start_soon(stop_on_signal)
            try:
                await run(config, credentials_of)
            except (BrokerUnavailable, ClusterUnavailable, OSError) as error:
                sys.stderr.write(f"error: {error}\n")
                status = UNAVAILABLE
            group.cancel_scope.cancel()

    anyio.run(run_until_stopped)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
