"""Settings: where a value comes from, and what is said about a wrong one."""

from typing import Annotated

import pytest
from msgspec import Meta, Struct

from bus.core.configuration import flags_of, load, usage_of
from bus.core.errors import ConfigurationError


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: str
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    is_open: bool = False


def test_flags_win_over_environment_over_file_over_default() -> None:
    settings = load(
        Settings,
        flags={"url": "flag", "port": None},
        environment={"NODELESS_URL": "environment", "NODELESS_PORT": "8", "NODELESS_OTHER": "x"},
        file={"port": 7, "is_open": True},
    )

    assert settings == Settings(url="flag", port=8, is_open=True)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, r"url=None \(not given\): set it in NODELESS_URL"),
        ({"NODELESS_URL": "u", "NODELESS_PORT": "70000"}, r"port='70000' \(NODELESS_PORT\): .*<= 65535"),
        ({"NODELESS_URL": "u", "NODELESS_PORT": "many"}, r"port='many' \(NODELESS_PORT\): Expected `int`"),
    ],
)
def test_a_wrong_setting_is_named_with_value_source_and_what_to_do(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(Settings, environment=environment)


def test_an_unknown_key_of_the_file_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no such setting; expected one of is_open, port, url"):
        load(Settings, file={"url": "u", "prot": 1})


def test_flags_are_taken_in_both_forms_and_a_boolean_may_stand_alone() -> None:
    assert flags_of(Settings, ["--url", "nats://a", "--port=3", "--is-open"]) == {
        "url": "nats://a",
        "port": "3",
        "is_open": True,
    }


@pytest.mark.parametrize("arguments", [["--colour", "red"], ["url"], ["--url"]])
def test_a_wrong_command_line_says_what_is_known(arguments: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=arguments[0]):
        flags_of(Settings, arguments)


def test_help_names_each_setting_with_its_default_and_where_else_it_can_be_set() -> None:
    text = usage_of(Settings, "python -m program", "Does something.", prefix="NODELESS_PROGRAM_")

    assert text.startswith("usage: python -m program ")
    assert [line.split() for line in text.splitlines()[-3:]] == [
        ["--url", "NODELESS_PROGRAM_URL", "required"],
        ["--port", "NODELESS_PROGRAM_PORT", "default", "0"],
        ["--is-open", "NODELESS_PROGRAM_IS_OPEN", "default", "False"],
    ]
