"""What the command line does to what it shows."""

from datetime import UTC, datetime

import pytest

from nodeless.cli.output import age, on_one_line, print_rows, short_time


def test_a_row_stays_on_its_line_whatever_its_cells_hold(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "a", "message": "two\nlines"}, {"name": "b", "message": "\x1b[2Jcleared"}]

    print_rows(rows, ("name", "message"), empty="")

    assert capsys.readouterr().out.splitlines() == [
        "NAME   MESSAGE",
        "a      two\\nlines",
        "b      \\x1b[2Jcleared",
    ]


def test_text_that_harms_no_line_is_left_as_it_is() -> None:
    assert on_one_line("hällo wörld ☃ {}") == "hällo wörld ☃ {}"


@pytest.mark.parametrize(
    ("moment", "shown"),
    [
        ("2026-11-24T23:00:39.060866+00:00", "2026-11-24T23:00:39.060Z"),
        ("2026-11-25T00:00:39+01:00", "2026-11-24T23:00:39.000Z"),
        ("2026-11-24T23:04:46.338767Z", "2026-11-24T23:04:46.338Z"),
        ("", ""),
    ],
)
def test_moments_have_one_width(moment: str, shown: str) -> None:
    assert short_time(moment) == shown


@pytest.mark.parametrize(
    ("since", "shown"), [("23:59:58", "2s"), ("23:58:00", "2m"), ("20:59:00", "3h"), ("00:00:00", "1d"), ("24", "0s")]
)
def test_an_age_is_written_as_kubectl_does(since: str, shown: str) -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    moments = {"00:00:00": "2026-01-01T00:00:00+00:00", "24": "2026-01-02T00:00:01+00:00"}

    assert age(moments.get(since, f"2026-01-01T{since}+00:00"), now) == shown
