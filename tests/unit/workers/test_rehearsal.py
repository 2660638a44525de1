"""A rehearsal plays a worker's whole life, and leaves nothing of it."""

import asyncio
import logging
import signal
import socket
import threading
from pathlib import Path

import pytest

from workers import rehearsal


def sockets() -> int:
    return sum("socket:" in str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())


def test_it_handles_one_event_and_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Goal: the real code runs to its end. Method: whatever fails in it is a warning, so there must be none."""
    before = (sockets(), threading.active_count(), signal.getsignal(signal.SIGTERM))
    rehearsal.rehearse()

    assert not caplog.records
    assert (sockets(), threading.active_count(), signal.getsignal(signal.SIGTERM)) == before
    assert logging.getLogger().isEnabledFor(logging.CRITICAL)
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_its_broker_hands_out_the_event_once_and_hears_the_acknowledgement() -> None:
    heard: list[str] = []

    async def life() -> None:
        broker = rehearsal._Broker()
        broker.on_acknowledged = lambda: heard.append("acknowledged")
        server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        with socket.create_connection((host, port)) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            assert (await loop.sock_recv(client, 4096)).startswith(b"INFO ")
            pull = b"PUB $JS.API.CONSUMER.MSG.NEXT.EVENTS.x _I.1 0\r\n\r\n"
            await loop.sock_sendall(client, b"SUB _I.* 7\r\n" + pull)
            delivered = await loop.sock_recv(client, 4096)
            await loop.sock_sendall(client, pull + b"PUB $JS.ACK.EVENTS.x _I.2 4\r\n+ACK\r\nPING\r\n")
            rest = b""
            while not rest.endswith(b"PONG\r\n"):
                rest += await loop.sock_recv(client, 4096)
        await broker.ended.wait()
        server.close()
        assert delivered.startswith(b"HMSG events.rehearsal 7 $JS.ACK.")
        assert b"HMSG" not in rest

    asyncio.run(life())

    assert heard == ["acknowledged"]
