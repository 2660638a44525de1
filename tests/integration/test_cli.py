"""The command line as a shell sees it: what it prints where, and its exit status. No system runs here."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

NODELESS = Path(sysconfig.get_path("scripts")) / "nodeless"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def nodeless(home: Path, *arguments: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NODELESS_", "KUBE"))}
    return subprocess.run(
        [NODELESS, *arguments],
        env=environment | {"NODELESS_HOME": str(home), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        input=stdin,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("status", 3, "no system is running in {home}; start it with `nodeless up --home {home}`"),
        ("functions", 3, "no system is running in {home}"),
        ("publish orders.created", 3, "no system is running in {home}"),
        ("results hello", 3, "no system is running in {home}"),
        ("git install /", 3, "no system is running in {home}"),
        ("publish orders.created --nats nats://127.0.0.1:1", 3, "no answer from NATS at nats://127.0.0.1:1"),
        ("functions --kubeconfig /no/such/file", 3, "is it a kubeconfig, and is there such a context?"),
        ("publish a*b", 2, "'events.a*b' is not a subject"),
        ("tail a..b", 2, "'events.a..b' is not a subject pattern"),
        ("deploy /no/such/path", 1, "there is no /no/such/path; expected a .py file or a folder"),
        ("deploy {root}/README.md", 1, "is no Python file; expected a .py file or a folder"),
        ("deploy {root}/examples/on-push --env NAME", 2, "--env 'NAME' sets nothing: expected KEY=VALUE"),
        ("results hello --kubeconfig /no/such/file", 1, "/no/such/file: No such file or directory"),
        ("tail --nats-credentials /x", 2, "add --nats URL"),
        ("up --nats-credentials /x", 2, "credentials are for an external broker: add --nats URL"),
        ("up --kubeconfig /no/such/file", 2, "kubeconfig='/no/such/file'"),
        ("up --assets /tmp", 1, "holds no program of a control plane"),
        ("up --home {root}", 1, "{root} cannot be the home of a system: it holds files"),
        ("run cook", 2, "'cook' is none of our programs; expected one of gateway, dispatcher, node"),
        ("run gateway --oven hot", 2, "no such flag"),
        ("git status {root}/docs", 1, "name that one"),
        ("bogus", 2, "No such command 'bogus'"),
        ("up --bogus", 2, "No such option: --bogus"),
        ("deploy", 2, "Missing argument"),
        ("results a/b", 2, "'a/b' can be no function's name"),
        ("delete fine ../x", 2, "'../x' can be no function's name"),
        ("logs hello --tail -1", 2, "Invalid value for '--tail'"),
        ("publish orders --source= --nats nats://127.0.0.1:1", 1, "source: missing or empty"),
        ("publish orders --id= --nats nats://127.0.0.1:1", 1, "id: missing or empty"),
        ("up --kubeconfig {root}/README.md", 2, "kubeconfig='{root}/README.md'"),
        ("functions -o yaml", 2, "'yaml' is not one of"),
    ],
)
def test_a_mistake_gets_one_message_and_its_status_and_no_traceback(
    home: Path, arguments: str, status: int, message: str
) -> None:
    words = arguments.format(home=home, root=ROOT).split()

    done = nodeless(home, *words)

    assert done.returncode == status, done.stderr
    assert message.format(home=home, root=ROOT) in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_down_where_nothing_runs_is_no_error(home: Path) -> None:
    done = nodeless(home, "down", "--purge")

    assert done.returncode == 0
    assert f"no system was running in {home}" in done.stdout
    assert not home.exists()


def test_purge_removes_nothing_from_a_directory_that_is_not_a_systems(home: Path) -> None:
    (home / "etcd").mkdir(parents=True)

    assert nodeless(home, "down", "--purge").returncode == 0
    assert [each.name for each in home.iterdir()] == ["etcd"]


def test_help_names_every_command_and_the_exit_statuses(home: Path) -> None:
    done = nodeless(home, "--help")

    assert done.returncode == 0
    for command in ("up", "down", "status", "run", "version", "deploy", "delete", "functions", "logs"):
        assert f" {command} " in done.stdout
    for command in ("publish", "tail", "results", "dead", "git"):
        assert f" {command} " in done.stdout
    assert "3 no system is running there" in " ".join(done.stdout.split())


def test_the_command_line_carries_no_client_before_a_command_needs_it() -> None:
    heavy = ("kr8s", "httpx", "nats", "rich", "cryptography", "yaml", "starlette")
    code = f"import sys, nodeless.cli.main; print([name for name in {heavy!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"


def test_the_process_that_stays_carries_no_client_and_no_certificate_library() -> None:
    heavy = ("kr8s", "httpx", "nats", "nkeys", "rich", "typer", "cryptography", "yaml")
    code = f"import sys, nodeless.embedded.__main__; print([name for name in {heavy!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("program", ["gateway", "dispatcher", "node"])
def test_run_becomes_the_program_and_passes_its_arguments_on(home: Path, program: str) -> None:
    done = nodeless(home, "run", program, "--help")

    assert done.returncode == 0
    assert "usage: python -m" in done.stdout


def test_versions_are_one_json_document(home: Path) -> None:
    versions = json.loads(nodeless(home, "version", "-o", "json").stdout)

    assert set(versions) == {"nodeless", "kubernetes", "nats-server", "python"}
    assert "unknown" not in versions.values()


def test_a_reader_that_has_seen_enough_is_no_traceback(home: Path) -> None:
    process = subprocess.Popen(
        f"{NODELESS} version | true",
        shell=True,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NODELESS_HOME": str(home)},
    )
    _, errors = process.communicate(timeout=30)

    assert "Traceback" not in errors


def test_output_that_cannot_be_written_is_one_message_and_no_traceback(home: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [NODELESS, "version"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False
        )

    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: No space left on device\n"


def test_a_cache_that_cannot_be_written_is_named_with_what_to_do(home: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "KUBEBUILDER_ASSETS"}
    done = subprocess.run(
        [NODELESS, "up", "--detach", "--home", home],
        env=environment | {"XDG_CACHE_HOME": "/proc/self/nowhere"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert "the cache /proc/self/nowhere/nodeless/controlplane" in done.stderr
    assert "XDG_CACHE_HOME" in done.stderr


def test_closed_standard_streams_are_no_traceback(home: Path) -> None:
    done = subprocess.run(f"{NODELESS} version >&- 2>&-", shell=True, timeout=30, check=False)

    assert done.returncode == 0
