"""`python -m provider`: settings, logging, signals, exit status.

0 after SIGTERM or SIGINT, 2 for a wrong setting, 69 where the API server or the backend does not answer at the start.
"""

import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence

import anyio

from bus.cluster.errors import ClusterError
from bus.core.configuration import flags_of, load, usage_of
from bus.core.errors import ConfigurationError
from provider.errors import ProviderError
from provider.logs import set_up_logging
from provider.program import run
from provider.settings import PREFIX, NodeConfig

log = logging.getLogger(__name__)

UNUSABLE, UNAVAILABLE = 2, 69
DESCRIPTORS = 16 * 1024
"""Wanted: one for each container, each caller, each watched object; many machines begin with 1024."""


PURPOSE = "Presents a virtual node to a Kubernetes cluster, and runs the pods that are bound to it."


async def _run_until_stopped(config: NodeConfig) -> int:
    """Return the exit status."""
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def be_the_node() -> None:
            try:
                await run(config)
            except (ConfigurationError, ClusterError, ProviderError, OSError) as error:
                failures.append(error)
                group.cancel_scope.cancel()

        group.start_soon(be_the_node)
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("stopping", extra={"signal": number.name})
                break
        group.cancel_scope.cancel()
    for error in failures:
        sys.stderr.write(f"error: {error}\n")
        return UNUSABLE if isinstance(error, ConfigurationError) else UNAVAILABLE
    return 0


def main(arguments: Sequence[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(usage_of(NodeConfig, "python -m provider", PURPOSE, prefix=PREFIX))
        return 0
    try:
        config = load(NodeConfig, flags=flags_of(NodeConfig, arguments), environment=os.environ, prefix=PREFIX)
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        return UNUSABLE
    set_up_logging()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, DESCRIPTORS)), hard))
    return anyio.run(_run_until_stopped, config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
