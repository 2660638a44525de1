"""Standard output and logs of a worker, in the format in which a kubelet keeps logs.

With `NODELESS_LOG=cri` (set by a backend that has no container engine to do it) each line is written at once, with
one system call, as `<time> <stream> F <text>`. That is what `kubectl logs --timestamps` and `--since` need, and it
survives kill -9. What C code or child processes write to the descriptors goes to the same file as it is. Source:
kubelet, CRI log format.
"""

import io
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from bus.core.assignment import ENVIRONMENT_LOG

LINE_CHARACTERS_MAX = 16 * 1024
"""A longer line is written in parts, as container engines do."""

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LineStream(io.TextIOBase):
    """A text stream that writes whole lines to a descriptor, each with its time and stream name. Each thread has lines
    of its own: `print` writes a line in pieces, and handlers run beside each other.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor, self._name = descriptor, name
        self._rests: dict[int, str] = {}  # by thread: what was printed since the last end of line
        self._lock = threading.Lock()
        self.buffer = _Bytes(self)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        thread = threading.get_ident()
        with self._lock:
            *lines, rest = (self._rests.pop(thread, "") + text).split("\n")
            for line in lines:
                self._line("F", self._parted(line))
            if rest := self._parted(rest):
                self._rests[thread] = rest
        return len(text)

    def _parted(self, text: str) -> str:
        """Write whole parts of a long line, and return what is left of it."""
        start = 0
        while len(text) - start > LINE_CHARACTERS_MAX:
            self._line("P", text[start : start + LINE_CHARACTERS_MAX])
            start += LINE_CHARACTERS_MAX
        return text[start:]

    def close_line(self) -> None:
        """Write what was printed without an end of line; called when the worker leaves."""
        with self._lock:
            while self._rests:
                self._line("F", self._rests.popitem()[1])

    def _line(self, tag: str, line: str) -> None:
        now_ns = time.time_ns()
        seconds, nanoseconds = divmod(now_ns, 1_000_000_000)
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09d}Z"
        data = f"{stamp} {self._name} {tag} {line}\n".encode(errors="replace")
        while data:
            data = data[os.write(self._descriptor, data) :]


class _Bytes(io.RawIOBase):
    """What programs find as `sys.stdout.buffer`."""

    def __init__(self, stream: LineStream) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        text = bytes(data).decode(errors="replace")
        self._stream.write(text)
        return len(data)


class FieldFormatter(logging.Formatter):
    """`LEVEL logger: message field=value …`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in vars(record).items() if name not in _STANDARD)
        text = f"{record.levelname} {record.name}: {record.getMessage()}{fields}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def set_up_output(environment: Mapping[str, str]) -> None:
    """Make standard output, standard error and logging go where the pod's log is."""
    if environment.get(ENVIRONMENT_LOG) == "cri":
        sys.stdout = LineStream(1, "stdout")
        sys.stderr = LineStream(2, "stderr")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FieldFormatter())
    logging.basicConfig(level=environment.get("NODELESS_LOG_LEVEL", "INFO").upper(), handlers=[handler], force=True)


def flush_output() -> None:
    """Have everything printed by now in the log. What a handler did to its streams does not matter any more."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            if isinstance(stream, LineStream):
                stream.close_line()
            else:
                stream.flush()
