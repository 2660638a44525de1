"""What is put on record."""

import msgspec

from bus.core.attempts import Attempt, DeadLetter, History
from workers.invoke import TRACEBACK_CHARACTERS_MAX
from workers.settle import RECORD_BYTES_MAX, _header, cut_letters, encoded_history


def attempts(count: int) -> tuple[Attempt, ...]:
    return tuple(
        Attempt(delivery=number, outcome="failed", worker="w", error="E: " + "e" * 1000, traceback="t" * TRACEBACK_CHARACTERS_MAX)
        for number in range(1, count + 1)
    )  # fmt: skip


def test_a_short_history_is_recorded_whole() -> None:
    whole = attempts(5)

    assert msgspec.json.decode(encoded_history(whole, ""), type=History).attempts == whole


def test_the_longest_history_fits_into_a_message_and_keeps_its_newest_traceback() -> None:
    data = encoded_history(attempts(100), "2026-01-31T12:00:00Z")
    kept = msgspec.json.decode(data, type=History)

    assert len(data) < RECORD_BYTES_MAX
    assert len(kept.attempts) == 100
    assert [bool(each.traceback) for each in kept.attempts] == [False] * 99 + [True]
    assert kept.due_at == "2026-01-31T12:00:00Z"


def test_a_dead_letter_is_cut_until_it_fits_and_loses_what_matters_least_first() -> None:
    letter = DeadLetter(
        function="n/f", uid="u", stream="EVENTS", sequence=1, subject="events.a", reason="attempts-exhausted",
        message="\u2603" * 1024, died_at="", history=tuple(msgspec.structs.replace(each, error="\u2603" * 1024) for each in attempts(100)),
    )  # fmt: skip
    cuts = list(cut_letters(letter))
    sizes = [len(_header(cut)) for cut in cuts]

    assert cuts[0] == letter
    assert [bool(each.traceback) for each in cuts[1].history] == [False] * 99 + [True]
    assert len(cuts[2].history) == 100
    assert [each.delivery for each in cuts[3].history] == [96, 97, 98, 99, 100]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 20 * 1024  # of the 64 KiB that a broker takes, the rest is the event's own
