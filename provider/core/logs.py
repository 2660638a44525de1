"""What of a container's log a reader wants: the lines of the file, one after the other, as `kubectl logs` shows them.

A line is in the format in which container engines keep logs, `<time> <stream> <P|F> <text>`, where P says that the
next line continues it; or it is anything else (C code that wrote to the descriptor), which has the time of the line
before it. Source: kubelet, CRI log format.
"""

import re
from datetime import UTC, datetime, timedelta

CRI_LINE = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)) (?:stdout|stderr) ([PF])(?::\S*)? "
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def nanoseconds_of(time: str) -> int:
    """Return an RFC 3339 time as nanoseconds since 1970, UTC; raise `ValueError` for anything else."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", time)
    if match is None:
        raise ValueError(f"{time!r} is no RFC 3339 time; expected one such as 2026-01-31T12:00:00Z")
    whole, fraction, zone = match.groups()
    moment = datetime.fromisoformat(whole.upper() + ("+00:00" if zone in "Zz" else zone))
    return (moment - _EPOCH) // timedelta(seconds=1) * 1_000_000_000 + int((fraction or "").ljust(9, "0")[:9])


def time_of(nanoseconds: int) -> str:
    """Return RFC 3339, UTC, with microseconds; empty for 0, which stands for unknown."""
    if not nanoseconds:
        return ""
    moment = _EPOCH + timedelta(microseconds=nanoseconds // 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class LogSelection:
    """Feed it the lines of a log in order; it returns what the reader gets of each.

    `since` is RFC 3339 or empty; `limit_bytes` cuts the output there, in the middle of a line if need be.
    """

    def __init__(self, *, timestamps: bool = False, since: str = "", limit_bytes: int | None = None) -> None:
        self._timestamps = timestamps
        self._since_ns = nanoseconds_of(since) if since else None
        self._left = limit_bytes
        self._time = b""
        self._is_in_line = False

    @property
    def is_full(self) -> bool:
        """The limit is reached: nothing more will come."""
        return self._left is not None and self._left <= 0

    def take(self, line: bytes) -> bytes:
        """Return the output for one line of the file, given with its end of line, or without at the file's end."""
        match = CRI_LINE.match(line)
        if match is None:
            text, is_partial = line, False
        else:
            self._time = match[1]
            is_partial = match[2] == b"P"
            text = line[match.end() :]
            if is_partial:
                text = text.removesuffix(b"\n")
        if self._since_ns is not None and (not self._time or nanoseconds_of(self._time.decode()) < self._since_ns):
            return b""
        if self._timestamps and not self._is_in_line and self._time:
            text = self._time + b" " + text
        self._is_in_line = is_partial or not text.endswith(b"\n")
        if self._left is not None:
            text = text[: self._left]
            self._left -= len(text)
        return text
