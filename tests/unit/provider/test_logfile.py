import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.backends.process.logfile import BLOCK_BYTES, tail_offset


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
