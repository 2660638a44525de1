"""`scripts/bench NAME [-o json] [--runs N]`."""

import argparse
import asyncio
import importlib
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scripts.benches.report import print_report

BENCHES = {"cold-start": "scripts.benches.cold_start", "start": "scripts.benches.start"}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure; every figure of this project comes from here."
    )
    parser.add_argument("name", choices=sorted(BENCHES), help="which bench")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument("--runs", type=int, default=None, help="measured runs (the bench has its own default)")
    options = parser.parse_args()
    bench = importlib.import_module(BENCHES[options.name])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        report = asyncio.run(bench.run(options.runs or bench.RUNS, progress))
    print_report(report, as_json=options.output == "json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
