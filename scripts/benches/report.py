"""The form of every bench's result: a table for people, one JSON object for programs."""

import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct


class Row(Struct, frozen=True):
    name: str
    value: float
    unit: str
    runs: int


class Report(Struct, frozen=True, kw_only=True):
    bench: str
    machine: str
    rows: tuple[Row, ...]
    ratios: dict[str, float] = {}
    notes: tuple[str, ...] = ()


def machine() -> str:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the values lie (nearest rank); the values must not be empty."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def print_report(report: Report, *, as_json: bool) -> None:
    if as_json:
        document: dict[str, Any] = msgspec.to_builtins(report)
        sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
        return
    width = max(len(row.name) for row in report.rows)
    print(f"\n{report.bench} on {report.machine}")
    for row in report.rows:
        print(f"  {row.name:<{width}}  {row.value:>10.2f} {row.unit:<6} ({row.runs} runs)")
    for name, value in report.ratios.items():
        print(f"  {name:<{width}}  {value:>10.2f}")
    for note in report.notes:
        print(f"  {note}")
