"""Start of a whole system: `nodeless up` from nothing and on existing data, and what the idle system holds in
memory.
"""

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from rich.progress import Progress

from nodeless.embedded.controlplane.launch import running_control_plane
from scripts.benches.report import Report, Row, machine
from scripts.benches.system import nodeless

RUNS = 3


async def run(runs: int, progress: Progress) -> Report:
    task = progress.add_task("start", total=runs)
    first_s: list[float] = []
    again_s: list[float] = []
    total_mb: list[float] = []
    own_mb: list[float] = []
    bare_s: list[float] = []
    for _ in range(runs):
        directory = Path(tempfile.mkdtemp(prefix="nodeless-bench-"))
        home = directory / "home"
        try:
            first_s.append(_seconds(home, "up", "--detach"))
            memory = json.loads(nodeless(home, "status", "-o", "json"))["memory"]
            total_mb.append(memory["total_mb"])
            own_mb.append(memory["own_mb"])
            nodeless(home, "down")
            again_s.append(_seconds(home, "up", "--detach"))
            nodeless(home, "down")
            bare_s.append(await _bare_control_plane(directory / "bare"))
        finally:
            if home.exists():
                nodeless(home, "down", "--purge")
            shutil.rmtree(directory, ignore_errors=True)
        progress.advance(task)
    return Report(
        bench="start",
        machine=machine(),
        rows=(
            Row("up_first_s", round(statistics.median(first_s), 2), "s", runs),
            Row("up_again_s", round(statistics.median(again_s), 2), "s", runs),
            Row("bare_control_plane_s", round(statistics.median(bare_s), 2), "s", runs),
            Row("memory_total_mb", round(statistics.median(total_mb), 1), "MB", runs),
            Row("memory_own_mb", round(statistics.median(own_mb), 1), "MB", runs),
        ),
        ratios={"up_first_to_bare_control_plane": round(statistics.median(first_s) / statistics.median(bare_s), 2)},
        notes=(
            "Medians. Control plane built, nothing else prepared; the command's own start is included.",
            "bare_control_plane: the four programs of Kubernetes alone, from nothing until all are ready.",
            "memory: proportional set sizes of all processes when the command returns; our own programs apart.",
        ),
    )


async def _bare_control_plane(directory: Path) -> float:
    started_s = time.monotonic()
    async with running_control_plane(directory):
        return time.monotonic() - started_s


def _seconds(home: Path, *arguments: str) -> float:
    started_s = time.monotonic()
    nodeless(home, *arguments)
    return time.monotonic() - started_s
