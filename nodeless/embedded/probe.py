"""One HTTP connection on loopback, kept open, for asking a program whether it is ready.

Enough HTTP for that and no more, so that the supervisor need not carry a Kubernetes client.
"""

import ssl
from types import TracebackType
from typing import Self

import anyio
import h11
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

INTERVAL_S = 0.02
"""Between two questions. A start takes one to two seconds, and what waits for it should not wait longer."""
ANSWER_S = 5.0
RECEIVE_BYTES = 65_536

NO_ANSWER = (OSError, ssl.SSLError, anyio.EndOfStream, anyio.BrokenResourceError, h11.RemoteProtocolError, TimeoutError)


def client_context(authority: str, certificate: str, key: str) -> ssl.SSLContext:
    """Return a context that trusts `authority` (a file) only and shows a client certificate."""
    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(certificate, key)
    return context


class Probe:
    """Asks one program, over TLS if there is a `context`. Not for use by two tasks at once."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        self.host, self.port, self.context = host, port, context
        self._stream: ByteStream | None = None
        self._http = h11.Connection(h11.CLIENT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def ask(self, method: str, path: str, body: bytes = b"") -> int | None:
        """Return the status of the answer, or None if there was none within `ANSWER_S` seconds."""
        try:
            with anyio.fail_after(ANSWER_S):
                return await self._exchange(method, path, body)
        except NO_ANSWER:
            await self._close()
            return None

    async def wait_for(self, path: str, status: int = 200) -> None:
        """Return once `path` answers with `status`."""
        while await self.ask("GET", path) != status:  # noqa: ASYNC110 - another process, which calls nobody back
            await anyio.sleep(INTERVAL_S)

    async def _exchange(self, method: str, path: str, body: bytes) -> int:
        if self._stream is None:
            self._stream = await self._connected()
            self._http = h11.Connection(h11.CLIENT)
        headers = [("Host", f"{self.host}:{self.port}"), ("Content-Length", str(len(body)))]
        if body:
            headers.append(("Content-Type", "application/json"))
        for event in (h11.Request(method=method, target=path, headers=headers), h11.Data(body), h11.EndOfMessage()):
            if data := self._http.send(event):
                await self._stream.send(data)
        status = 0
        while True:
            incoming = self._http.next_event()
            if incoming is h11.NEED_DATA:
                self._http.receive_data(await self._stream.receive(RECEIVE_BYTES))
            elif isinstance(incoming, h11.Response):
                status = incoming.status_code
            elif isinstance(incoming, h11.EndOfMessage):
                break
            elif isinstance(incoming, h11.ConnectionClosed):
                raise anyio.EndOfStream
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            await self._close()
        return status

    async def _connected(self) -> ByteStream:
        tcp = await anyio.connect_tcp(self.host, self.port)
        if self.context is None:
            return tcp
        return await TLSStream.wrap(tcp, hostname=self.host, ssl_context=self.context, standard_compatible=False)

    async def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)
