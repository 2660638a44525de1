"""`GET /readyz` over plain HTTP on loopback: 200 when ready, 503 with the reason when not. For probes, not for people."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

REQUEST_S = 5.0
REQUEST_BYTES_MAX = 8 * 1024


@asynccontextmanager
async def serve_health(port: int, reason_not_ready: Callable[[], str]) -> AsyncIterator[None]:
    """Answer on 127.0.0.1:`port` until the block is left; port 0 serves nothing. Raises `OSError` for a port in use.

    `reason_not_ready` returns an empty text when all is well.
    """
    if not port:
        yield
        return

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(REQUEST_S):
                request = await reader.readuntil(b"\r\n\r\n")
                path = request.split(b" ", 2)[1] if request.count(b" ") >= 2 else b""
                reason = reason_not_ready()
                if path.partition(b"?")[0] != b"/readyz":
                    status, body = "404 Not Found", "only /readyz is served here\n"
                elif reason:
                    status, body = "503 Service Unavailable", f"{reason}\n"
                else:
                    status, body = "200 OK", "ok\n"
                content = body.encode()
                head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(content)}\r\n"
                writer.write(head.encode() + b"Connection: close\r\n\r\n" + content)
                await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", port, limit=REQUEST_BYTES_MAX)
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()
