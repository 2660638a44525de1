"""What a worker prints, as it stands in the pod's log."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from provider.core.logs import CRI_LINE, LogSelection
from workers.output import LINE_CHARACTERS_MAX, LineStream


class Log:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.stream = LineStream(self.descriptor, "stdout")

    @property
    def lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines(keepends=True)

    @property
    def shown(self) -> bytes:
        """As `kubectl logs` shows it."""
        selection = LogSelection()
        return b"".join(selection.take(line) for line in self.lines)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    opened = Log(tmp_path / "0.log")
    yield opened
    os.close(opened.descriptor)


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("length", [1, LINE_CHARACTERS_MAX, LINE_CHARACTERS_MAX + 1, 5 * LINE_CHARACTERS_MAX + 3])
def test_a_line_of_any_length_comes_out_whole_however_it_was_printed(log: Log, length: int, pieces: int) -> None:
    text = "".join(chr(ord("a") + n % 26) for n in range(length))
    size = -(-length // pieces)
    for start in range(0, length, size):
        log.stream.write(text[start : start + size])
    log.stream.write("\nnext\n")

    assert log.shown == text.encode() + b"\nnext\n"
    assert all(CRI_LINE.match(line) for line in log.lines)
    assert max(len(line) for line in log.lines) < LINE_CHARACTERS_MAX + 100


def test_bytes_and_what_is_no_text_are_written_with_replacements(log: Log) -> None:
    log.stream.buffer.write(b"\x00\xff\n")
    log.stream.write("\ud800\n")

    assert log.shown == "\x00\ufffd\n?\n".encode()


def test_a_stream_that_was_closed_still_writes(log: Log) -> None:
    log.stream.close()
    print("late", file=log.stream)

    assert log.shown == b"late\n"


def test_what_threads_print_at_once_is_not_mixed_within_a_line(log: Log) -> None:
    both = threading.Barrier(2, timeout=5)

    def print_slowly(name: str) -> None:
        for piece in (name, " ", name, "\n"):
            log.stream.write(piece)
            both.wait()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(print_slowly, ["one", "two"]))

    assert sorted(log.shown.splitlines()) == [b"one one", b"two two"]


def test_a_line_without_an_end_is_written_when_the_worker_leaves(log: Log) -> None:
    log.stream.write("unended")
    log.stream.close_line()

    assert log.shown == b"unended\n"
