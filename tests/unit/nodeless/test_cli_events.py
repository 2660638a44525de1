"""Events as the command line makes and shows them."""

import re

import pytest

from bus.core.errors import InvalidEvent
from bus.core.event import headers_of
from bus.jetstream.connection import StoredMessage
from nodeless.cli.deploy import function_object, spec_changes
from nodeless.cli.events import _event_row, new_event
from nodeless.packaging.handlers import Declared, DeployError

DEFAULTS = {"type_": None, "source": "shell", "id_": None, "content_type": None}


def stored(headers: dict[str, str], data: bytes) -> StoredMessage:
    return StoredMessage(
        subject="events.a", headers=headers, data=data, sequence=7, stored_at="2026-01-01T00:00:00+00:00"
    )


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"source": ""}, "source"),
        ({"id_": ""}, "id"),
        ({"type_": ""}, "type"),
        ({"content_type": "text/plain\r\nx: y"}, "datacontenttype"),
        ({"source": "\udcff"}, "attributes"),
    ],
)
def test_an_event_that_no_reader_would_take_is_not_made(given: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidEvent) as raised:
        new_event("a", b"", **(DEFAULTS | given))  # type: ignore[arg-type]

    assert raised.value.field == field


def test_what_is_made_is_shown_again_as_it_was_given() -> None:
    event = new_event("a.b", "hällo".encode(), type_="ü ü", source="ä/b", id_='ñ "q"', content_type=None)

    row = _event_row(stored(headers_of(event), event.data))

    assert (row["type"], row["source"], row["id"], row["data"]) == ("ü ü", "ä/b", 'ñ "q"', "hällo")
    assert "invalid" not in row


def test_an_event_that_is_none_is_shown_with_what_is_wrong() -> None:
    row = _event_row(stored({"ce-id": "1", "ce-specversion": "1.0"}, b"junk"))

    assert row["sequence"] == 7
    assert row["data"] == "junk"
    assert row["invalid"] == "invalid CloudEvent: source: missing or empty"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempts": "x"}, "attempts='x': expected a whole number"),
        ({"max": True}, "max=True: expected a whole number"),
        ({"timeout": 5}, "timeout=5: '5' is no duration such as 30s"),
        ({"idle": "soon"}, "idle=soon: 'soon' is no duration"),
    ],
)
def test_an_option_of_another_kind_is_refused_before_anything_is_stored(
    options: dict[str, object], message: str
) -> None:
    declared = Declared(handler="app:a", name="a", subjects=("events.a",), options=options)

    with pytest.raises(DeployError, match=re.escape(message)):
        function_object(
            declared, namespace="default", name="a", subjects=(), bundle="sha256:0", options={}, environment={}
        )


def test_a_changed_environment_is_told_as_it_was_given() -> None:
    before = {"pod": {"env": [{"name": "A", "value": "1"}]}}
    after = {"pod": {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}}

    assert spec_changes(before, after) == ["pod.env: [A=1] -> [A=1, B=2]"]
