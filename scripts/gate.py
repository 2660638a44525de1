"""The gate: every check of this project, in stages, the same for people and machines.

A stage is a list of commands. The first failing stage ends the run, unless stages were named. Under the gate an
integration test that skips itself fails (`NODELESS_GATE=1`; see `tests/conftest.py`).
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
PYTEST = (PYTHON, "-m", "pytest", "-q", "--durations=5")

STAGES: dict[str, tuple[tuple[str, ...], ...]] = {
    "lint": (
        # Without its cache, which does not notice that a module has come into being and sorts imports as before.
        (PYTHON, "-m", "ruff", "check", "--no-cache", "."),
        (PYTHON, "-m", "ruff", "format", "--check", "."),
    ),
    "types": ((PYTHON, "-m", "mypy"),),
    "layers": ((*PYTEST, "tests/test_layers.py"),),
    "unit": ((*PYTEST, "tests/unit", "tests/properties"),),
    "build": ((PYTHON, "-m", "nodeless.embedded.controlplane", "build"),),
    "contract": ((*PYTEST, "tests/contract"),),
    "integration": ((*PYTEST, "tests/integration"),),
    "e2e": ((*PYTEST, "tests/e2e"),),
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        print(f"no stage {', '.join(unknown)}; the stages are {', '.join(STAGES)}", file=sys.stderr)
        return 2
    environment = {**os.environ, "NODELESS_GATE": "1"}
    for name in names or STAGES:
        started_s = time.monotonic()
        for command in STAGES[name]:
            print(f"=== {name}: {' '.join(command[1:] if command[0] == PYTHON else command)}", flush=True)
            status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
            if status:
                print(f"=== {name}: failed with status {status}", flush=True)
                return 1
        print(f"=== {name}: passed in {time.monotonic() - started_s:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
