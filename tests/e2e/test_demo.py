"""The README's first command."""

import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.integration]

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("pushed", "stored", "woken", "pod created", "bound", "started", "first pull", "handler done", "acknowledged")


def test_a_git_push_runs_a_function_on_a_node_that_is_not_there() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "demo"], capture_output=True, text=True, timeout=115, stdin=subprocess.DEVNULL
    )

    assert done.returncode == 0, done.stdout + done.stderr
    places = [done.stdout.index(f" {step} ") for step in STEPS]
    assert places == sorted(places)
    assert "Open the shop" in done.stdout
    assert "from pod on-push-" in done.stdout
