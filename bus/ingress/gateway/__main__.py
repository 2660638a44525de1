"""`python -m bus.ingress.gateway`: the program."""

import logging
import os
import signal
import socket
import sys

import anyio

from bus.core.configuration import flags_of, load, usage_of
from bus.core.credentials import inbox_prefix
from bus.core.errors import BrokerUnavailable, ConfigurationError
from bus.ingress.gateway.app import Gateway
from bus.ingress.gateway.server import listen, serve, url_of
from bus.ingress.gateway.settings import PREFIX, GatewayConfig, read_token
from bus.jetstream.connection import BusConfig, Connection, open_connection
from bus.logs import set_up_logging

log = logging.getLogger("nodeless.gateway")

EXIT_USAGE, EXIT_UNAVAILABLE = 2, 69


PURPOSE = "Takes CloudEvents over HTTP and stores them in the bus."


async def run(config: GatewayConfig, token: str | None, listening: socket.socket) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status."""
    bus = BusConfig(
        url=config.nats_url,
        credentials=config.nats_credentials,
        name="gateway",
        inbox_prefix=inbox_prefix("gateway"),
    )
    stop = anyio.Event()
    status = 0

    async def wait_signal() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                stop.set()

    async def watch(connection: Connection) -> None:
        nonlocal status
        await connection.wait_closed()
        log.error("the broker ended the connection for good: are these its credentials?")
        status = EXIT_UNAVAILABLE
        stop.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait_signal)
        try:
            async with open_connection(bus) as connection:
                tasks.start_soon(watch, connection)
                gateway = Gateway(
                    connection,
                    token=token,
                    body_bytes_max=config.body_bytes_max,
                    in_flight_max=config.in_flight_max,
                )
                sys.stdout.write(url_of(listening) + "\n")
                sys.stdout.flush()
                await serve(gateway.application(), listening, stop, config.grace_s)
                tasks.cancel_scope.cancel()
        except BrokerUnavailable as error:
            log.error("no first contact with the bus", extra={"reason": str(error)})
            status = EXIT_UNAVAILABLE
            tasks.cancel_scope.cancel()
    return status


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(usage_of(GatewayConfig, "python -m bus.ingress.gateway", PURPOSE, prefix=PREFIX))
        return 0
    try:
        config = load(GatewayConfig, flags=flags_of(GatewayConfig, arguments), environment=os.environ, prefix=PREFIX)
        token = read_token(config)
        listening = listen(config.host, config.port)
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USAGE
    set_up_logging()
    with listening:
        return anyio.run(run, config, token, listening)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
