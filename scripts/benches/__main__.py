"""`scripts/bench NAME [-o json] [--runs N]`."""

import argparse
import asyncio
import importlib
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nodeless.cli.errors import INTERRUPTED
from nodeless.embedded.controlplane.build import find_or_build
from nodeless.embedded.controlplane.errors import ControlPlaneError
from scripts.benches.report import print_report
from scripts.benches.system import BenchError

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
    try:
        find_or_build()  # no bench measures that, and its minutes are shown here
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            report = asyncio.run(bench.run(options.runs or bench.RUNS, progress))
    except (BenchError, ControlPlaneError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return INTERRUPTED
    print_report(report, as_json=options.output == "json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
