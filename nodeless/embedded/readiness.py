"""Wait until a program is ready, as its spec says; never raises because it is not there yet.

The caller sets the deadline. The same question, asked once with a short one, is a program's health.
"""

import anyio

from nodeless.embedded.probe import ANSWER_S, INTERVAL_S, Probe, client_context
from nodeless.embedded.program import Answers, Greets, Post, Readiness

ADDRESS = "127.0.0.1"
LINE_BYTES_MAX = 65_536


async def wait_ready(readiness: Readiness) -> None:
    """Return as soon as the program serves. Waits for ever."""
    match readiness:
        case Answers():
            await _answers(readiness)
        case Greets():
            await _greets(readiness)


async def is_healthy(readiness: Readiness, within_s: float) -> bool:
    """True if the program says within that time that it is ready."""
    with anyio.move_on_after(within_s):
        await wait_ready(readiness)
        return True
    return False


async def _answers(readiness: Answers) -> None:
    tls = readiness.tls
    context = client_context(tls.authority, tls.certificate, tls.key) if tls else None
    async with Probe(ADDRESS, readiness.port, context) as probe:
        if readiness.before is not None:
            await _accepted(probe, readiness.before)
        await probe.wait_for(readiness.path)


async def _accepted(probe: Probe, post: Post) -> None:
    while await probe.ask("POST", post.path, post.body.encode()) not in post.accepted:  # noqa: ASYNC110 - as in Probe
        await anyio.sleep(INTERVAL_S)


async def _greets(readiness: Greets) -> None:
    while True:
        try:
            with anyio.fail_after(ANSWER_S):
                if readiness.text.encode() in await _first_line(readiness.port):
                    return
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError, TimeoutError):
            pass  # not there yet
        await anyio.sleep(INTERVAL_S)


async def _first_line(port: int) -> bytes:
    async with await anyio.connect_tcp(ADDRESS, port) as stream:
        line = b""
        while b"\n" not in line and len(line) < LINE_BYTES_MAX:
            line += await stream.receive(LINE_BYTES_MAX)
        return line
