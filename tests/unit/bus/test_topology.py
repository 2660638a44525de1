"""What is asked of the broker: bounds that fit each other on any server."""

import pytest

from bus.core.assignment import DUE_S_MAX
from bus.core.topology import ATTEMPTS, DEAD, EVENTS, MIB, NANOSECONDS, STORY_BYTES_MAX, STREAMS, stream_config

SPECS = {spec.name: spec for spec in STREAMS}


@pytest.mark.parametrize("payload_bytes_max", [256 * 1024, MIB, 2 * MIB, 8 * MIB])
def test_an_event_that_is_taken_fits_into_the_dead_letters_with_its_story(payload_bytes_max: int) -> None:
    event = stream_config(SPECS[EVENTS], 1, payload_bytes_max)["max_msg_size"]
    dead = stream_config(SPECS[DEAD], 1, payload_bytes_max)["max_msg_size"]

    assert event + STORY_BYTES_MAX <= min(dead, payload_bytes_max)


def test_the_record_of_an_attempt_outlives_the_longest_delay() -> None:
    assert stream_config(SPECS[ATTEMPTS], 1)["max_age"] > DUE_S_MAX * NANOSECONDS


def test_no_acknowledgement_deletes_and_no_publisher_is_overrun() -> None:
    for spec in STREAMS:
        config = stream_config(spec, 3)
        assert (config["retention"], config["storage"], config["num_replicas"]) == ("limits", "file", 3)
    assert {spec.name for spec in STREAMS if spec.discard == "new"} >= {EVENTS, DEAD}
