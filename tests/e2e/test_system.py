"""A system as a whole: its data, its neighbours, its end."""

import os
import signal

import pytest

from tests.system import System, eventually, running_system

pytestmark = [pytest.mark.e2e, pytest.mark.integration]

KEEP = (
    "from nodeless import function\n\n@function(subject='events.keep.>')\ndef keep(event):\n    return event.text()\n"
)


def test_state_survives_down_and_up(own_system: System) -> None:
    own_system.deploy(KEEP)
    own_system.nodeless("publish", "keep.a", "before")
    eventually(lambda: own_system.nodeless("results", "keep"), lambda text: "before" in text)
    own_system.nodeless("down")
    assert not own_system.processes()
    own_system.nodeless("up", "--detach")

    assert "before" in own_system.nodeless("results", "keep")
    own_system.nodeless("publish", "keep.a", "after")
    eventually(lambda: own_system.nodeless("results", "keep"), lambda text: "after" in text)


def test_two_systems_on_one_machine_do_not_clash(system: System) -> None:
    with running_system() as other:
        other.deploy(KEEP)

        assert "keep" in other.nodeless("functions")
        assert "keep" not in system.nodeless("functions")


def test_nothing_remains_when_the_supervisor_is_killed(own_system: System) -> None:
    own_system.deploy(KEEP)
    own_system.nodeless("publish", "keep.a", "x")
    eventually(
        lambda: own_system.pods_of("keep"), lambda pods: any(p["status"].get("phase") == "Running" for p in pods)
    )
    os.kill(own_system.status()["supervisor"]["pid"], signal.SIGKILL)

    eventually(own_system.processes, lambda processes: not processes, timeout_s=20)


def test_memory_of_the_idle_system_is_within_its_bounds(own_system: System) -> None:
    memory = own_system.status()["memory"]

    assert memory["total_mb"] < 900
    assert memory["own_mb"] < 200
