import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.backends.process.logfile import BLOCK_BYTES, LINE_BYTES_MAX, read_log, tail_offset
from provider.backends.seam import LogQuery


def tail(data: bytes, lines: int) -> bytes:
    descriptor = os.memfd_create("log")
    try:
        os.write(descriptor, data)
        return data[tail_offset(descriptor, lines) :]
    finally:
        os.close(descriptor)


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=20), st.integers(0, 25))
def test_the_tail_of_a_file_is_its_last_lines(lines: list[bytes], wanted: int) -> None:
    data = b"".join(line + b"\n" for line in lines)

    assert tail(data, wanted) == b"".join(line + b"\n" for line in lines[max(0, len(lines) - wanted) :])


@pytest.mark.parametrize("length", [BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES])
def test_lines_longer_than_a_block_are_found(length: int, tmp_path: Path) -> None:
    data = b"first\n" + b"x" * length + b"\nlast\n"

    assert tail(data, 1) == b"last\n"
    assert tail(data, 2) == data[6:]
    assert tail(data, 3) == tail(data, 9) == data


def test_a_last_line_without_an_end_counts() -> None:
    assert tail(b"one\ntwo", 1) == b"two"
    assert tail(b"one\ntwo", 2) == b"one\ntwo"


async def shown(path: Path, query: LogQuery) -> bytes:
    parts = [part async for part in read_log(path, query, lambda: True)]
    return b"".join(parts)


async def test_what_has_no_ends_of_lines_is_shown_without_being_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(b"2026-01-01T00:00:00Z stdout F first\n" + b"\0" * (8 * LINE_BYTES_MAX) + b"\nlast\n")

    tracemalloc.start()
    try:
        async for part in read_log(path, LogQuery(), lambda: True):
            assert len(part) < 2 * LINE_BYTES_MAX
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 6 * LINE_BYTES_MAX
    assert await shown(path, LogQuery()) == b"first\n" + b"\0" * (8 * LINE_BYTES_MAX) + b"\nlast\n"
    assert await shown(path, LogQuery(limit_bytes=100)) == b"first\n" + b"\0" * 94
