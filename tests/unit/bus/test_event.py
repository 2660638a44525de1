"""Events: what each form of a CloudEvent becomes, and which field a malformed one is refused for."""

import pytest

from bus.core.errors import InvalidEvent
from bus.core.event import Event, event_from_http, event_of, subject_of_type

BINARY = {"Ce-Id": "1", "CE-Source": "/s", "ce-type": "t.x", "ce-specversion": "1.0", "Content-Type": "text/plain"}


def of(headers: dict[str, str] | None, data: bytes = b"") -> Event:
    return event_of("events.a", headers, data, stream="EVENTS", sequence=7, stored_at="2026-01-01T00:00:00Z")


def test_a_plain_payload_is_an_event_too() -> None:
    event = of(None, b"hello")

    assert (event.id, event.type, event.source, event.data) == ("EVENTS:7", "events.a", "nats://EVENTS", b"hello")


def test_header_names_are_read_in_any_case_and_values_decoded() -> None:
    event = of(
        {
            "CE-ID": '"quoted %C3%BC"',
            "ce-Source": "/s",
            "Ce-Type": "t",
            "ce-specversion": "1.0",
            "ce-datacontenttype": "x/y",
        }
    )

    assert (event.id, event.datacontenttype) == ("quoted ü", "x/y")


def test_binary_http_takes_its_content_type_and_a_subject_from_its_type() -> None:
    event = event_from_http(BINARY, b"data", subject=None)

    assert (event.subject, event.datacontenttype, event.data) == ("events.t.x", "text/plain", b"data")


@pytest.mark.parametrize(
    ("document", "data", "content_type"),
    [
        (b'"data":{"a":1}', b'{"a":1}', "application/json"),
        (b'"data":"text"', b'"text"', "application/json"),
        (b'"data":"text","datacontenttype":"text/plain"', b"text", "text/plain"),
        (b'"data_base64":"AAE="', b"\x00\x01", None),
        (b'"data":null', b"", None),
    ],
)
def test_structured_data_keeps_its_meaning(document: bytes, data: bytes, content_type: str | None) -> None:
    body = b'{"specversion":"1.0","id":"1","source":"/s","type":"t","n":5,"b":true,' + document + b"}"
    event = event_from_http({"content-type": "application/cloudevents+json; charset=UTF-8"}, body, subject="events.x")

    assert (event.data, event.datacontenttype, event.extensions) == (data, content_type, {"n": "5", "b": "true"})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"Ce-Id": ""}, "id"),
        ({"ce-specversion": "0.3"}, "specversion"),
        ({"ce-time": "yesterday"}, "time"),
        ({"ce-with-dash": "x"}, "with-dash"),
        ({"ce-x": "a%0Ab"}, "x"),
        ({"ce-x": "%FF"}, "ce-x"),
        ({"ce-x": "y" * 9000}, "x"),
        ({"ce-datacontenttype": "a/b"}, "ce-datacontenttype"),
        ({"Content-Type": "application/cloudevents-batch+json"}, "content-type"),
    ],
)
def test_a_malformed_event_is_refused_for_its_field(change: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        event_from_http(BINARY | change, b"", subject=None)

    assert caught.value.field == field


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"specversion":"1.0"}', b'{"data":1,"data_base64":"AA=="}'])
def test_a_malformed_document_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidEvent):
        event_from_http({"content-type": "application/cloudevents+json"}, body, subject=None)


def test_identity_is_source_and_id_together() -> None:
    def one(source: str, id_: str) -> str:
        return Event(subject="events.a", id=id_, source=source, type="t").digest

    assert len({one("a", "bc"), one("ab", "c"), one("a", "b")}) == 3
    assert one("a", "b") == one("a", "b")


def test_a_hostile_type_becomes_a_valid_subject() -> None:
    assert subject_of_type("com.x>*. y..z") == "events.com.x%3E%2A.%20y.%00.z"
