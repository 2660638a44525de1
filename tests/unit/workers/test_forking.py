"""The protocol of the pre-forked parent, and that the process backend means the same by it."""

import json
import os
from pathlib import Path

import msgspec
import pytest

from provider.backends.process import records
from workers import child
from workers.core import forking

MIB = 1024 * 1024


def test_a_start_time_is_found_behind_any_command_name() -> None:
    rest = " ".join(str(number) for number in range(4, 53))

    assert forking.start_ticks_of(f"7 (a b) S) S {rest}") == 22
    assert forking.start_ticks_of(Path("/proc/self/stat").read_text()) == records.start_ticks(os.getpid())


def test_both_sides_write_what_the_other_reads(tmp_path: Path) -> None:
    process = forking.ProcessRecord(pid=1, start_ticks=2, boot_id="b", started_ns=3)
    child.write_record(tmp_path / forking.PROCESS_RECORD, process)
    child.write_record(tmp_path / forking.EXIT_RECORD, forking.exit_of(2, 9, 4))

    assert records.read_process(tmp_path) == (1, 2, "b", 3)
    assert records.read_exit(tmp_path) == (137, 9, 4, "", "")
    assert (records.LOCK, records.PROCESS_RECORD, records.EXIT_RECORD, records.LOG_SUFFIX) == (
        forking.LOCK, forking.PROCESS_RECORD, forking.EXIT_RECORD, forking.LOG_SUFFIX
    )  # fmt: skip
    records.write_record(tmp_path / "back", records.ProcessRecord(1, 2, "b", 3))
    assert msgspec.json.decode((tmp_path / "back").read_bytes(), type=forking.ProcessRecord) == process


def test_how_a_process_ended_is_told_the_same_by_both() -> None:
    for code, status in ((os.CLD_EXITED, 3), (os.CLD_KILLED, 15), (os.CLD_DUMPED, 11)):
        ours, theirs = forking.exit_of(code, status, 0), records.exit_of(code, status)
        assert (ours.exit_code, ours.signal) == (theirs.exit_code, theirs.signal)
    assert forking.exit_of(os.CLD_EXITED, 3, 0).exit_code == 3
    assert forking.exit_of(os.CLD_DUMPED, 11, 0).exit_code == 139


def test_half_a_record_of_a_machine_that_went_down_means_a_process_of_nobody(tmp_path: Path) -> None:
    (tmp_path / forking.PROCESS_RECORD).write_text('{"pid": 1')
    (tmp_path / forking.EXIT_RECORD).write_text("")

    record = records.read_process(tmp_path)
    assert record is not None
    assert not records.is_alive(record, records.boot_id())
    assert records.read_exit(tmp_path) is None


def test_a_launch_with_what_the_other_side_adds_is_understood() -> None:
    launch = {"environment": {"A": "1"}, "working_directory": "/", "memory_bytes_max": None}

    assert forking.decode_launch(json.dumps(launch).encode()) == forking.Launch(
        environment={"A": "1"}, working_directory="/"
    )
    with pytest.raises(msgspec.DecodeError):
        forking.decode_launch(b"{}")
    with pytest.raises(msgspec.DecodeError):
        forking.decode_request(b'{"id": 1}')


@pytest.mark.parametrize(
    ("wanted", "limit", "is_said"),
    [(None, None, False), (512 * MIB, 512 * MIB, False), (62 * MIB, 62 * MIB, False), (61 * MIB, None, True)],
)
def test_a_memory_limit_is_set_where_a_function_has_room_in_it(
    wanted: int | None, limit: int | None, is_said: bool
) -> None:
    found, remark = forking.memory_limit(wanted, 30 * MIB)

    assert found == limit
    assert bool(remark) == is_said
