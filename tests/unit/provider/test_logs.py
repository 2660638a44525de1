import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.core.logs import LogSelection, nanoseconds_of, time_of

A = b"2026-01-31T12:00:00.000000001Z stdout F one\n"
B = b"2026-01-31T12:00:01.5Z stderr F two\n"


def selected(*lines: bytes, **options: object) -> bytes:
    selection = LogSelection(**options)  # type: ignore[arg-type]
    return b"".join(selection.take(line) for line in lines)


def test_a_line_is_shown_without_its_time_and_stream_or_with_its_time() -> None:
    assert selected(A, B) == b"one\ntwo\n"
    assert selected(B, timestamps=True) == b"2026-01-31T12:00:01.5Z two\n"


def test_parts_of_one_line_are_joined_and_get_one_time() -> None:
    parts = (
        b"2026-01-31T12:00:00Z stdout P long \n",
        b"2026-01-31T12:00:01Z stdout P long \n",
        b"2026-01-31T12:00:02Z stdout F line\n",
    )

    assert selected(*parts) == b"long long line\n"
    assert selected(*parts, timestamps=True) == b"2026-01-31T12:00:00Z long long line\n"


def test_a_line_without_a_time_is_shown_as_it_is_with_the_time_before_it() -> None:
    assert selected(b"raw\n", A, b"2026 is no time\n") == b"raw\none\n2026 is no time\n"
    assert selected(b"raw\n", A, b"raw\n", timestamps=True) == (
        b"raw\n2026-01-31T12:00:00.000000001Z one\n2026-01-31T12:00:00.000000001Z raw\n"
    )


@pytest.mark.parametrize(
    ("since", "shown"),
    [
        ("2026-01-31T12:00:00Z", b"one\nraw\ntwo\n"),
        ("2026-01-31T12:00:00.000000001Z", b"one\nraw\ntwo\n"),
        ("2026-01-31T12:00:00.000000002Z", b"two\n"),
        ("2026-01-31T13:00:01.5+01:00", b"two\n"),
        ("2026-01-31T12:00:01.500000001Z", b""),
    ],
)
def test_only_what_was_written_since_a_time_is_shown(since: str, shown: bytes) -> None:
    assert selected(A, b"raw\n", B, since=since) == shown


def test_the_output_is_cut_at_its_limit() -> None:
    selection = LogSelection(limit_bytes=6)

    assert (selection.take(A), selection.is_full) == (b"one\n", False)
    assert (selection.take(B), selection.is_full) == (b"tw", True)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-31", "2026-01-31T12:00:00", "2026-13-31T12:00:00Z"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        nanoseconds_of(text)


@given(st.integers(1, 4_000_000_000_000_000_000))
def test_a_time_comes_back_to_the_microsecond(nanoseconds: int) -> None:
    assert nanoseconds_of(time_of(nanoseconds)) == nanoseconds // 1000 * 1000
