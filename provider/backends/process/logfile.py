"""Read a container's log file: its last lines, and what is added while somebody follows."""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio

from provider.backends.seam import LogQuery
from provider.core.logs import LogSelection

BLOCK_BYTES = 64 * 1024
LINE_BYTES_MAX = 1024 * 1024
"""More than this is not kept in memory to wait for the end of a line."""
FOLLOW_S = 0.05
"""How often a followed file is looked at; only while somebody follows. [seconds]"""


async def read_log(path: Path, query: LogQuery, has_ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Yield what `query` wants of the file; a followed one ends when all is read after `has_ended` was true."""
    selection = LogSelection(timestamps=query.timestamps, since=query.since_time, limit_bytes=query.limit_bytes)
    with path.open("rb", buffering=0) as file:
        if query.tail_lines is not None:
            file.seek(tail_offset(file.fileno(), query.tail_lines))
        rest = b""
        while not selection.is_full:
            is_last = not query.follow or has_ended()  # asked before the read: what came until then is read
            block = file.read(BLOCK_BYTES)
            *lines, rest = (rest + block).split(b"\n")
            output = b"".join(selection.take(line + b"\n") for line in lines if not selection.is_full)
            # Whatever wrote it is gone, or writes no lines: what there is, is shown as it is.
            if (not block and is_last and rest) or len(rest) > LINE_BYTES_MAX:
                output += selection.take(rest)
                rest = b""
            if output:
                yield output
            if not block and is_last:
                return
            await anyio.sleep(0 if block else FOLLOW_S)


def tail_offset(descriptor: int, lines: int) -> int:
    """Return where the last `lines` lines of a file begin."""
    size = os.fstat(descriptor).st_size
    if lines <= 0:
        return size
    # The end of line at the very end ends the last line and begins none.
    position, wanted = size, lines + 1
    is_ended = size > 0 and os.pread(descriptor, 1, size - 1) == b"\n"
    if not is_ended:
        wanted = lines
    while position > 0:
        start = max(0, position - BLOCK_BYTES)
        block = os.pread(descriptor, position - start, start)
        at = len(block)
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            wanted -= 1
            if wanted == 0:
                return start + at + 1
        position = start
    return 0
