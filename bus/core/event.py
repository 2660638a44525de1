"""Events: CloudEvents 1.0, and their form on NATS and over HTTP.

On NATS an event is written in binary mode: every attribute is a header `ce-<name>`, the data is the payload. It is
read in binary mode (header names in any case), in structured mode (`Content-Type: application/cloudevents+json`),
and as a plain payload without any attribute, which becomes an event of its own: its type is its subject, its id its
place in the stream.

Two events are the same when source *and* id are the same (CloudEvents 1.0, "id"); the digest of both is the id by
which the broker drops a second copy.

Source: CloudEvents 1.0.2, its NATS protocol binding 1.0.3 (draft) and HTTP protocol binding 1.0.2.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from bus.core.errors import InvalidEvent
from bus.core.subjects import token

MESSAGE_ID = "Nats-Msg-Id"
STRUCTURED = "application/cloudevents+json"
ATTRIBUTE_BYTES_MAX = 8 * 1024
"""Longest value of one attribute, as text in UTF-8. A header larger than this is somebody's payload in the wrong
place.
"""
ATTRIBUTES_MAX = 64

_NAME = re.compile(r"[a-z0-9]{1,40}")
"""Lower-case letters and digits; CloudEvents advises 20 characters at most, some extensions in use are longer."""
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})")
_REQUIRED = ("id", "source", "type")
_KNOWN = frozenset({*_REQUIRED, "specversion", "time", "datacontenttype", "dataschema", "subject"})


class Event(Struct, frozen=True, kw_only=True):
    """One fact, as it was published. `subject` is the NATS subject; CloudEvents' own attribute of that name is
    `ce_subject`.
    """

    subject: str
    id: str
    source: str
    type: str
    time: str | None = None
    """RFC 3339."""
    datacontenttype: str | None = None
    dataschema: str | None = None
    ce_subject: str | None = None
    extensions: dict[str, str] = {}
    data: bytes = b""

    @property
    def digest(self) -> str:
        """Identity of the event: 32 hex digits over source and id."""
        return hashlib.sha256(f"{self.source}\0{self.id}".encode(errors="surrogatepass")).hexdigest()[:32]

    def json(self) -> Any:
        """Return the data decoded as JSON; raise `msgspec.DecodeError` where it is none."""
        return msgspec.json.decode(self.data)

    def text(self) -> str:
        """Return the data decoded as UTF-8; raise `UnicodeDecodeError` where it is none."""
        return self.data.decode()


def attributes_of(event: Event) -> dict[str, str]:
    """Return the CloudEvents attributes that the event has, by name."""
    known = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": event.time,
        "datacontenttype": event.datacontenttype,
        "dataschema": event.dataschema,
        "subject": event.ce_subject,
    }
    return {name: value for name, value in known.items() if value is not None} | event.extensions


def headers_of(event: Event) -> dict[str, str]:
    """Return the event's NATS headers: its attributes in binary mode, and the id by which the broker drops a second
    copy.
    """
    headers = {f"ce-{name}": _percent_encoded(value) for name, value in attributes_of(event).items()}
    headers[MESSAGE_ID] = event.digest
    return headers


def event_of(
    subject: str, headers: Mapping[str, str] | None, data: bytes, *, stream: str, sequence: int, stored_at: str
) -> Event:
    """Return the event in a stored message.

    Raises `InvalidEvent` for a message that says it is a CloudEvent and is none.
    """
    lower = {name.lower(): value for name, value in (headers or {}).items()}
    if lower.get("content-type", "").lower().startswith("application/cloudevents"):
        return _structured(lower["content-type"], data, subject)
    attributes = {name[3:]: _percent_decoded(name, value) for name, value in lower.items() if name.startswith("ce-")}
    if not attributes:
        return Event(
            subject=subject,
            id=f"{stream}:{sequence}",
            source=f"nats://{stream}",
            type=subject,
            time=stored_at or None,
            datacontenttype=lower.get("content-type"),
            data=data,
        )
    return _event(attributes, data, subject)


def event_from_http(headers: Mapping[str, str], body: bytes, *, subject: str | None) -> Event:
    """Return the event in an HTTP request, binary or structured; without a subject it goes to `events.<type>`.

    Raises `InvalidEvent` with the attribute or header at fault.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    content_type = lower.get("content-type")
    if (content_type or "").lower().startswith("application/cloudevents"):
        return _structured(content_type or "", body, subject)
    attributes = {name[3:]: _percent_decoded(name, value) for name, value in lower.items() if name.startswith("ce-")}
    if not attributes:
        raise InvalidEvent(
            "ce-specversion",
            "no CloudEvent: expected ce-id, ce-source, ce-specversion and ce-type as headers, or "
            f"Content-Type: {STRUCTURED}",
        )
    if "datacontenttype" in attributes:
        raise InvalidEvent("ce-datacontenttype", "over HTTP the Content-Type header carries it")
    if content_type is not None:
        attributes["datacontenttype"] = content_type
    return _event(attributes, body, subject)


def _structured(content_type: str, body: bytes, subject: str | None) -> Event:
    media_type, _, parameters = content_type.lower().partition(";")
    if media_type.strip() != STRUCTURED:
        raise InvalidEvent("content-type", f"{media_type.strip()!r} is not taken; expected {STRUCTURED}")
    charset = re.search(r"charset=\"?([^\";\s]+)", parameters)
    if charset and charset[1] not in {"utf-8", "utf8", "us-ascii"}:
        raise InvalidEvent("content-type", f"charset {charset[1]!r} is not taken; JSON is UTF-8")
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidEvent("body", f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidEvent("body", "expected one JSON object")
    data = _structured_data(document)
    attributes: dict[str, str] = {}
    for name, value in document.items():
        if name in {"data", "data_base64"} or value is None:
            continue
        match value:
            case bool():
                attributes[name] = "true" if value else "false"
            case int():
                attributes[name] = str(value)
            case str():
                attributes[name] = value
            case _:
                raise InvalidEvent(name, "expected a string, an integer or a boolean")
    if data and "data" in document and "datacontenttype" not in attributes:
        attributes["datacontenttype"] = "application/json"
    return _event(attributes, data, subject)


def _structured_data(document: Mapping[str, Any]) -> bytes:
    if "data" in document and "data_base64" in document:
        raise InvalidEvent("data_base64", "data and data_base64 exclude each other")
    if "data_base64" in document:
        try:
            return msgspec.convert(document["data_base64"], bytes)
        except msgspec.ValidationError as error:
            raise InvalidEvent("data_base64", "expected text in base64") from error
    if document.get("data") is None:
        return b""
    kind = document.get("datacontenttype")
    is_json = not isinstance(kind, str) or re.match(r"[^;]*[/+]json\s*(;|$)", kind.lower()) is not None
    if isinstance(document["data"], str) and not is_json:
        return document["data"].encode()
    return msgspec.json.encode(document["data"])


def _event(attributes: Mapping[str, str], data: bytes, subject: str | None) -> Event:
    if len(attributes) > ATTRIBUTES_MAX:
        raise InvalidEvent("attributes", f"{len(attributes)} of them; at most {ATTRIBUTES_MAX} are taken")
    for name, value in attributes.items():
        if not _NAME.fullmatch(name):
            raise InvalidEvent(name, "an attribute's name has 1 to 40 of a-z and 0-9")
        if len(value.encode(errors="surrogatepass")) > ATTRIBUTE_BYTES_MAX:
            raise InvalidEvent(name, f"longer than {ATTRIBUTE_BYTES_MAX} bytes")
        if any(ord(character) < 32 or 0x7F <= ord(character) <= 0x9F for character in value):
            raise InvalidEvent(name, "contains a control character")
        if any(0xD800 <= ord(character) <= 0xDFFF for character in value):
            raise InvalidEvent(name, "contains half of a surrogate pair")
    if "specversion" not in attributes:
        raise InvalidEvent("specversion", "missing; expected 1.0")
    if attributes["specversion"] != "1.0":
        raise InvalidEvent("specversion", f"{attributes['specversion']!r} is not taken; expected 1.0")
    for name in _REQUIRED:
        if not attributes.get(name):
            raise InvalidEvent(name, "missing or empty")
    time = attributes.get("time")
    if time is not None and not _TIME.fullmatch(time):
        raise InvalidEvent("time", f"{time!r} is no RFC 3339 timestamp such as 2026-01-31T12:00:00Z")
    return Event(
        subject=subject if subject is not None else subject_of_type(attributes["type"]),
        id=attributes["id"],
        source=attributes["source"],
        type=attributes["type"],
        time=time,
        datacontenttype=attributes.get("datacontenttype"),
        dataschema=attributes.get("dataschema"),
        ce_subject=attributes.get("subject"),
        extensions={name: value for name, value in attributes.items() if name not in _KNOWN},
        data=data,
    )


def subject_of_type(type_: str) -> str:
    """Return `events.<type>`, the subject of an event that names none: the type's dots part its tokens."""
    return "events." + ".".join(token(part) if part else "%00" for part in type_.split("."))


def _percent_encoded(value: str) -> str:
    return "".join(
        character
        if "!" <= character <= "~" and character not in '"%'
        else "".join(f"%{byte:02X}" for byte in character.encode())
        for character in value
    )


def _percent_decoded(name: str, value: str) -> str:
    """Return a header's value as the binding reads it: without enclosing quotes, percent-decoded as UTF-8."""
    text = value.strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = re.sub(r"\\(.)", r"\1", text[1:-1])
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidEvent(name, "its percent-encoding is not UTF-8") from error
