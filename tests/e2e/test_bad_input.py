"""Each mistake gets an answer that says what was seen, what was expected and what to do; nothing is lost."""

import json

import httpx
import pytest

from tests.system import System, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.integration]


def refused(system: System, *arguments: str) -> str:
    done = system.run("nodeless", *arguments)
    assert done.returncode not in {0, 120}, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def test_an_unusable_handler_is_told_in_a_condition_and_its_events_wait_for_the_next_version(system: System) -> None:
    broken = """
from nodeless import function
import no_such_package

@function(subject="events.broken.>", name="broken")
def handle(event): ...
"""
    system.deploy(broken)
    system.nodeless("publish", "broken.a", "precious")
    condition = eventually(
        lambda: system.condition("broken", "Ready"), lambda each: each.get("reason") == "HandlerUnusable"
    )

    assert condition["status"] == "False"
    assert "ModuleNotFoundError: No module named 'no_such_package'" in condition["message"]
    system.deploy(broken.replace("import no_such_package\n", "").replace("...", "return event.text()"))
    eventually(lambda: system.nodeless("results", "broken"), lambda text: "precious" in text)
    eventually(lambda: system.condition("broken", "Ready"), lambda each: each["status"] == "True")
    system.nodeless("delete", "broken")


def test_deployments_that_cannot_work_are_refused_and_change_nothing(system: System) -> None:
    source = "from nodeless import function\n\n@function(subject={subject!r}, name={name!r})\ndef a(event): ...\n"
    twice = (
        source.format(subject="events.x", name="same")
        + "\n@function(subject='events.y', name='same')\ndef b(event): ...\n"
    )
    path = system.directory / "bad.py"
    for text, part in (
        (source.format(subject="orders.>", name="fine"), "events.orders.>"),
        (source.format(subject="events..a", name="fine"), "empty token"),
        (source.format(subject="events.a>", name="fine"), "whole tokens"),
        (source.format(subject="events.a", name="Not_Fine!"), "a-z"),
        (twice, "two handlers"),
        ("def broken(:\n", "this is not Python"),
    ):
        path.write_text(text)
        assert part in refused(system, "deploy", str(path)), text

    path.write_text("from nodeless import function\n\n@function(subject='events.a')\ndef large(event): ...\n")
    folder = system.directory / "large"
    folder.mkdir(exist_ok=True)
    (folder / "app.py").write_text(path.read_text())
    (folder / "data.bin").write_bytes(bytes(range(256)) * 4)
    with (folder / "noise.bin").open("wb") as noise:
        import random

        noise.write(random.Random(1).randbytes(66 * 1024 * 1024))
    assert "64.0 MiB is the limit" in refused(system, "deploy", str(folder))
    assert "there is no" in refused(system, "deploy", str(system.directory / "nowhere"))
    assert "large" not in system.nodeless("functions")


def test_the_gateway_names_the_field_and_the_limit(system: System) -> None:
    url = system.status()["gateway_url"]
    token = (system.home / "programs" / "gateway" / "token").read_text().strip()
    good = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:
        without = client.post("/", headers={name: value for name, value in good.items() if name != "ce-type"})
        large = client.post("/", headers=good, content=b"x" * (2 * 1024 * 1024))
        bridged = client.post("/events/git.push.a.b.heads.main", headers=good)
        fine = client.post("/", headers=good, content=b"{}")
    stranger = httpx.post(url, headers=good)

    assert (without.status_code, without.json()["field"]) == (400, "type")
    assert large.status_code == 413
    assert bridged.status_code == 403
    assert stranger.status_code == 401
    assert (fine.status_code, fine.json()["stream"]) == (202, "EVENTS")


def test_commands_say_what_is_wrong_in_one_line(system: System) -> None:
    assert "no-such-function" in refused(system, "logs", "no-such-function")
    assert "whole tokens" in refused(system, "tail", "a>b")
    assert "not a subject" in refused(system, "publish", "a b", "x")
    assert "no such command" in refused(system, "explode").lower()
    done = system.run("nodeless", "functions", "--home", "/nonexistent/home")
    assert done.returncode == 3
    assert "nodeless up" in done.stderr


def test_everything_that_prints_data_can_print_json(system: System) -> None:
    system.deploy(
        "from nodeless import function\n\n@function(subject='events.json.>')\ndef shown(event):\n    return [1]\n"
    )
    stored = json.loads(system.nodeless("publish", "json.a", "{}", "-o", "json"))
    eventually(lambda: system.nodeless("results", "shown", "-o", "json"), lambda text: "[" in text)

    assert stored["stream"] == "EVENTS"
    assert "shown" in {each["name"] for each in json.loads(system.nodeless("functions", "-o", "json"))}
    assert json.loads(system.nodeless("dead", "list", "shown", "-o", "json")) == []
    assert system.status()["memory"]["total_mb"] > 0
    system.nodeless("delete", "shown")
