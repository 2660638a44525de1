"""One connection to the pre-forked parent or the reaper: requests with a descriptor, and their replies.

Unix sockets of the type SOCK_SEQPACKET keep packets apart and pass descriptors; asyncio's streams do neither, so this
reads and writes the socket itself. A packet is small and the socket's buffer is not: a send that would block is taken
for a connection that is lost.
"""

import asyncio
import itertools
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

PACKET_BYTES_MAX = 16 * 1024


class ChannelLost(ConnectionError):
    """The connection is gone: requests that had no reply yet were carried out, or were not."""


class Channel:
    """Use `Channel.open`, and `close` it; `lost` is called once when the other side goes."""

    def __init__(self, connection: socket.socket, lost: Callable[[], None]) -> None:
        self._socket, self._lost = connection, lost
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.is_open = True
        self._loop.add_reader(connection, self._receive)

    @classmethod
    def open(cls, path: Path, lost: Callable[[], None]) -> "Channel":
        """Connect to a listening socket; returns at once, since the connection waits in its queue.

        Raises `OSError` where nobody listens.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setblocking(False)
        # Through the directory's descriptor: a socket's path is limited to 108 bytes, a directory's is not.
        directory = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
        except OSError:
            connection.close()
            raise
        finally:
            os.close(directory)
        return cls(connection, lost)

    async def request(self, message: Mapping[str, object], descriptor: int | None, timeout_s: float) -> dict[str, Any]:
        """Send a request and return its reply; raise `ChannelLost`, or `TimeoutError` where none came in time."""
        if not self.is_open:
            raise ChannelLost("the connection is closed")
        number = next(self._ids)
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._waiting[number] = future
        try:
            packet = msgspec.json.encode({"id": number, **message})
            try:
                socket.send_fds(self._socket, [packet], [] if descriptor is None else [descriptor])
            except OSError as error:
                del self._waiting[number]  # told by this raise, not by its future
                self.close()
                raise ChannelLost(str(error)) from error
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            self._waiting.pop(number, None)

    def _receive(self) -> None:
        try:
            packet = self._socket.recv(PACKET_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self.close()
            self._lost()
            return
        reply = msgspec.json.decode(packet)
        future = self._waiting.get(reply["id"])
        if future is not None and not future.done():
            future.set_result(reply)

    def close(self) -> None:
        """Let go; those who wait for a reply get `ChannelLost`."""
        if not self.is_open:
            return
        self.is_open = False
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ChannelLost("the other side is gone"))
