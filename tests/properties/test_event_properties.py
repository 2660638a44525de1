"""Laws of events and subjects, searched for counter-examples."""

from hypothesis import given
from hypothesis import strategies as st

from bus.core.errors import InvalidSubject
from bus.core.event import Event, event_of, headers_of
from bus.core.subjects import check_pattern, check_subject, covers, matches, minimal, token

TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)
WORDS = st.lists(st.sampled_from(["a", "b", "cc"]), min_size=1, max_size=5)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    parts = draw(st.lists(st.sampled_from(["a", "b", "cc", "*"]), min_size=1, max_size=4))
    return ".".join([*parts, *([">"] if draw(st.booleans()) else [])])


def naive(pattern: list[str], subject: list[str]) -> bool:
    if not pattern or not subject:
        return not pattern and not subject
    if pattern[0] == ">":
        return True
    return pattern[0] in ("*", subject[0]) and naive(pattern[1:], subject[1:])


@given(
    TEXT,
    TEXT,
    TEXT,
    st.dictionaries(st.from_regex(r"x[a-z0-9]{1,10}", fullmatch=True), TEXT, max_size=3),
    st.binary(max_size=50),
)
def test_an_event_survives_its_headers(
    id_: str, source: str, about: str, extensions: dict[str, str], data: bytes
) -> None:
    event = Event(
        subject="events.a", id=id_, source=source, type="t", ce_subject=about, extensions=extensions, data=data
    )
    headers = headers_of(event)

    assert all(value.isascii() and value.isprintable() and value == value.strip() for value in headers.values())
    assert event_of("events.a", headers, data, stream="EVENTS", sequence=1, stored_at="") == event


@given(st.text(max_size=30))
def test_any_text_becomes_one_token(text: str) -> None:
    encoded = token(text)

    assert "." not in encoded
    if text and "\ud800" not in encoded:
        check_subject(f"events.{encoded}")


@given(TEXT, TEXT)
def test_different_texts_become_different_tokens(one: str, two: str) -> None:
    assert (token(one) == token(two)) == (one == two)


@given(patterns(), WORDS)
def test_matching_agrees_with_its_naive_twin(pattern: str, words: list[str]) -> None:
    assert matches(pattern, ".".join(words)) == naive(pattern.split("."), words)


@given(patterns(), patterns(), WORDS)
def test_what_covers_selects_all_that_the_covered_selects(wide: str, narrow: str, words: list[str]) -> None:
    if covers(wide, narrow) and matches(narrow, ".".join(words)):
        assert matches(wide, ".".join(words))


@given(st.lists(patterns(), min_size=1, max_size=5), WORDS)
def test_a_minimal_set_selects_the_same(given_patterns: list[str], words: list[str]) -> None:
    subject = ".".join(words)
    few = minimal(given_patterns)

    assert any(matches(each, subject) for each in few) == any(matches(each, subject) for each in given_patterns)
    assert not any(one != two and covers(one, two) for one in few for two in few)


@given(st.text(max_size=20))
def test_what_is_a_subject_is_a_pattern_too(text: str) -> None:
    try:
        check_subject(text)
    except InvalidSubject:
        return
    check_pattern(text)
