"""How commands print: a table for people, one JSON document for programs; results to standard output, problems to
standard error.
"""

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Format, typer.Option("--output", "-o", help="table for people, json for programs.")]


def print_json(value: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value, enc_hook=_plain), indent=2).decode() + "\n")


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no form in JSON here")


def print_line(value: object) -> None:
    """Print one JSON document on one line, at once: for commands that go on."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def on_one_line(text: str) -> str:
    """Return text with line ends and control characters as escapes: data neither break a table nor steer a terminal."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def short_time(moment: str) -> str:
    """Return an RFC 3339 moment to the millisecond, as UTC: of one width, so that lines that come one by one align."""
    try:
        utc = datetime.fromisoformat(moment).astimezone(UTC)
    except ValueError:
        return moment
    return utc.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def age(since: str, now: datetime) -> str:
    """Return how long ago an RFC 3339 moment is, as kubectl writes it: `42s`, `5m`, `3h`, `12d`."""
    seconds = max(0, int((now - datetime.fromisoformat(since)).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, empty: str) -> None:
    """Print rows under their columns, as kubectl does; `empty` goes to standard error where there is none."""
    if not rows:
        sys.stderr.write(empty + "\n")
        return
    cells = [[column.upper() for column in columns], *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    for line in cells:
        sys.stdout.write(
            "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n"
        )


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "True" if value else "False"
    if isinstance(value, list | tuple):
        return on_one_line(",".join(str(item) for item in value)) or "-"
    return on_one_line(str(value))


def text_of(data: bytes) -> str:
    """Return data as a person reads it: text where it is text, otherwise its size."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"<{len(data)} bytes>"


def json_or_text(data: bytes) -> object:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return text_of(data)
