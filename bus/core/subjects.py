"""Subjects and patterns: their grammar, matching, and what one pattern covers of another.

A subject is tokens joined by dots. In a pattern the token `*` stands for exactly one token, and `>`, as the last
one, for one or more. Source: NATS subject-based messaging, ADR-6.
"""

from collections.abc import Iterable

from bus.core.errors import InvalidPattern, InvalidSubject

SUBJECT_BYTES_MAX = 1024
"""Longer subjects are refused here; the server's own bound is its control line of 4,096 bytes, headers' names
included.
"""

_FORBIDDEN = frozenset(chr(code) for code in range(33)) | {"\x7f"}


def check_subject(subject: str) -> None:
    """Raise `InvalidSubject` unless events can be published to this subject."""
    reason = _grammar_fault(subject)
    if reason is None and any("*" in part or ">" in part for part in subject.split(".")):
        reason = "wildcards belong into patterns; percent-encode them in a subject"
    if reason is not None:
        raise InvalidSubject(subject, reason)


def check_pattern(pattern: str) -> None:
    """Raise `InvalidPattern` unless the text is a subject pattern."""
    reason = _grammar_fault(pattern)
    if reason is None:
        parts = pattern.split(".")
        if any(("*" in part or ">" in part) and len(part) > 1 for part in parts):
            reason = "'*' and '>' stand for whole tokens, as in events.*.created"
        elif ">" in parts[:-1]:
            reason = "'>' can only be the last token"
    if reason is not None:
        raise InvalidPattern(pattern, reason)


def _grammar_fault(text: str) -> str | None:
    if not text:
        return "it is empty"
    if len(text.encode(errors="surrogatepass")) > SUBJECT_BYTES_MAX:
        return f"it is longer than {SUBJECT_BYTES_MAX} bytes"
    if any(not part for part in text.split(".")):
        return "it has an empty token (a dot at an end, or two in a row)"
    for character in text:
        if character in _FORBIDDEN or 0xD800 <= ord(character) <= 0xDFFF:
            return f"it contains {character!r}; percent-encode blanks and control characters"
    if text.startswith("$"):
        return "subjects that begin with '$' belong to the broker"
    return None


def matches(pattern: str, subject: str) -> bool:
    """Say whether an event on `subject` is selected by `pattern`; both have to be valid."""
    return covers(pattern, subject)


def covers(pattern: str, other: str) -> bool:
    """Say whether every subject that `other` selects is selected by `pattern` too; both have to be valid."""
    wide, narrow = pattern.split("."), other.split(".")
    for index, part in enumerate(wide):
        if part == ">":
            return len(narrow) > index
        if index >= len(narrow) or narrow[index] == ">" or (part not in {"*", narrow[index]}):
            return False
    return len(wide) == len(narrow)


def minimal(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns without those that another one covers, sorted.

    The broker refuses a consumer whose filters overlap by covering one another.
    """
    distinct = sorted(set(patterns))
    return tuple(each for each in distinct if not any(other != each and covers(other, each) for other in distinct))


def token(text: str) -> str:
    """Return any text as one token: percent-encoded (UTF-8) where NATS forbids a character, and for `.` and `%`."""
    return "".join(
        character
        if "!" <= character <= "~" and character not in ".*>%"
        else "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogatepass"))
        for character in text
    )


def wake_subject(pattern: str) -> str:
    """Return where the broker republishes the headers of what is stored on `pattern` (below `events.`)."""
    head, _, tail = pattern.partition(".")
    if head != "events" or not tail:
        raise InvalidPattern(pattern, "only what lies below 'events.' has a wake signal")
    return f"wake.{tail}"
