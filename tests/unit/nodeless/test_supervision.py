"""Decisions around the supervisor and the command line, without a process."""

import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.cluster.errors import ClusterUnavailable
from bus.core.errors import BrokerUnavailable, ConfigurationError, InvalidSubject
from nodeless.cli.deploy import environment_of
from nodeless.cli.errors import CommandError, reported
from nodeless.cli.target import Target
from nodeless.embedded.broker import configuration
from nodeless.embedded.errors import HomeBusy, HomeUnusable
from nodeless.embedded.home import Home
from nodeless.embedded.report import Failed, Progress, decoded, encoded, progress_line
from nodeless.embedded.supervisor import (
    RESTART_INITIAL_S,
    RESTART_MAX_S,
    ProgramState,
    State,
    how_it_ended,
    restart_delay_s,
)


@given(st.integers(1, 10_000))
def test_a_program_waits_longer_after_each_failure_and_never_beyond_the_bound(failures: int) -> None:
    assert RESTART_INITIAL_S <= restart_delay_s(failures) <= restart_delay_s(failures + 1) <= RESTART_MAX_S


@pytest.mark.parametrize(("status", "words"), [(0, "status 0"), (3, "status 3"), (-9, "SIGKILL"), (-64, "SIGRTMAX")])
def test_an_end_is_told_in_words(status: int, words: str) -> None:
    assert how_it_ended(status) == words


@pytest.mark.parametrize(
    "report", [Progress(ProgramState(name="a", state="ready", pid=3, start_s=0.5)), Failed("no\nsuch luck")]
)
def test_a_report_is_one_line_and_reads_back_the_same(report: Progress | Failed) -> None:
    line = encoded(report)

    assert line.count(b"\n") == 1
    assert decoded(line) == report


def test_a_person_hears_of_what_is_ready_and_of_what_failed_only() -> None:
    lines = {
        state: progress_line(ProgramState(name="a", state=state, failures=1, last_end="ended with SIGKILL"))
        for state in get_args(State)
    }

    assert [state for state, line in lines.items() if line] == ["ready", "done", "backing off"]
    assert "ended with SIGKILL; starting again in 0.1 s" in (lines["backing off"] or "")


def test_errors_of_a_task_group_become_one_message_each_and_the_gravest_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    group = ExceptionGroup(
        "",
        [
            BrokerUnavailable("nats://x", "silent"),
            ExceptionGroup("", [InvalidSubject("a b", "blank"), BrokerUnavailable("nats://x", "silent")]),
        ],
    )

    assert reported(group) == 3
    assert capsys.readouterr().err.splitlines() == [
        "error: no answer from NATS at nats://x: silent",
        "error: 'a b' is not a subject: blank",
    ]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CommandError("said"), 1),
        (ConfigurationError("key", 1, "flag", "fix"), 2),
        (ClusterUnavailable("GET /", "no"), 3),
        (HomeBusy(Path("/x")), 1),
        (FileNotFoundError(2, "No such file", "/x"), 1),
        (KeyboardInterrupt(), 130),
        (BaseExceptionGroup("", [KeyboardInterrupt(), ValueError()]), 130),
        (ValueError("ours"), None),
        (ExceptionGroup("", [CommandError("said"), ValueError("ours")]), None),
        (ConnectionResetError("not a file's"), None),
    ],
)
def test_each_error_has_its_exit_status_and_our_own_bugs_have_none(error: BaseException, status: int | None) -> None:
    assert reported(error) == status


def test_environment_variables_may_hold_equal_signs_and_the_last_one_counts() -> None:
    assert environment_of(["A=1", "B=x=y", "A=", "C= "]) == {"A": "", "B": "x=y", "C": " "}


@pytest.mark.parametrize("wrong", ["A", "=1", ""])
def test_an_environment_variable_without_a_name_or_a_value_is_refused(wrong: str) -> None:
    with pytest.raises(CommandError, match="expected KEY=VALUE"):
        environment_of([wrong])


# -- homes


def test_a_home_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    home.claim()

    with home.locked(), pytest.raises(HomeBusy), home.locked():
        pass
    with home.locked():
        pass


def test_a_directory_with_somebodys_files_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()

    with pytest.raises(HomeUnusable, match="it holds files"):
        Home.at(tmp_path).claim()
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_home_of_another_layout_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".nodeless").write_text("9\n")

    with pytest.raises(HomeUnusable, match="'9'"):
        Home.at(tmp_path).claim()


def test_purge_removes_what_is_the_systems_and_nothing_else(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    home.claim()
    (home.directory / "etcd" / "member").mkdir(parents=True)
    (home.directory / "kubeconfig").touch()
    (home.directory / "notes.txt").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (home.directory / "logs").symlink_to(outside)

    with home.locked():
        assert home.purge()

    assert [each.name for each in home.directory.iterdir()] == ["notes.txt"]
    assert (outside / "kept").exists()


def test_a_state_whose_process_is_gone_is_nobodys(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    identity = {"pid": 1, "start_ticks": 1, "boot_id": "another boot"}
    endpoints = {
        "nats_url": "", "nats_credentials": None, "git_credentials": None, "gateway_url": "",
        "gateway_token_file": "", "kubeconfig": "", "node": "",
    }  # fmt: skip
    home.state.write_text(
        json.dumps({"supervisor": identity, "started_at": "", "is_ready": True, "endpoints": endpoints, "programs": []})
    )

    assert home.running() is None


# -- targets


def kubeconfig(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


YAML = """
contexts:
- {name: here, context: {cluster: c, user: u, namespace: shop}}
- {name: there, context: {cluster: c, user: u}}
current-context: here
"""


@pytest.mark.parametrize(("context", "namespace"), [(None, "shop"), ("here", "shop"), ("there", "default")])
@pytest.mark.parametrize("is_json", [True, False])
def test_the_namespace_is_the_contexts_where_none_is_given(
    tmp_path: Path, context: str | None, namespace: str, is_json: bool
) -> None:
    import yaml

    text = json.dumps(yaml.safe_load(YAML)) if is_json else YAML
    target = Target(home=tmp_path, kubeconfig=kubeconfig(tmp_path / "config", text), context=context)

    assert target.namespace_or_current == namespace


def test_a_context_that_is_not_in_the_kubeconfig_is_named(tmp_path: Path) -> None:
    target = Target(home=tmp_path, kubeconfig=kubeconfig(tmp_path / "config", YAML), context="nowhere")

    with pytest.raises(ConfigurationError, match="nowhere"):
        _ = target.namespace_or_current


def test_servers_that_are_named_need_no_home(tmp_path: Path) -> None:
    target = Target(home=tmp_path, kubeconfig="/k", nats_url="nats://x", nats_credentials="/c", namespace="n")

    assert target.cluster.kubeconfig == "/k"
    assert (target.bus.url, target.bus.credentials) == ("nats://x", "/c")
    assert target.namespace_or_current == "n"
    assert target.git_user == ("nats://x", "/c")


def test_the_brokers_configuration_syncs_before_it_acknowledges_and_listens_on_loopback_only() -> None:
    text = configuration(4222, Path('/a "b"'), "operator: x\n")

    assert "sync_interval: always" in text
    assert 'listen: "127.0.0.1:4222"' in text
    assert r'store_dir: "/a \"b\""' in text
    assert "http" not in text
    assert text.endswith("operator: x\n")
