"""What is put on record."""

import msgspec

from bus.core.attempts import Attempt, History
from workers.invoke import TRACEBACK_CHARACTERS_MAX
from workers.settle import RECORD_BYTES_MAX, encoded_history


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
