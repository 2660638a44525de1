"""The protocol between whoever wants a worker started and the pre-forked parent: values and their encoding.

Over a connection (Unix socket, SOCK_SEQPACKET) comes one `ForkRequest` a packet, with exactly one descriptor beside
it (SCM_RIGHTS): a file that holds the `Launch`. The parent hands the descriptor to the child unread, and answers each
request with one `ForkReply`. All values are JSON.

A container is started once. Its directory holds `lock`, held (flock) from before the fork until the child's end;
`process.json` (`ProcessRecord`), written by the child before anything else runs; and `exit.json` (`ExitRecord`),
written by the child that ends by itself and by whoever collects it. A directory that is locked, or holds a record, or
is gone, starts nothing. The child's log is the directory's name with `.log`.
"""

from typing import Literal

import msgspec
from msgspec import Struct

LOCK = "lock"
PROCESS_RECORD = "process.json"
EXIT_RECORD = "exit.json"
LOG_SUFFIX = ".log"


class ForkRequest(Struct, frozen=True, kw_only=True):
    id: int
    directory: str
    """Absolute path of the container's directory; pod UID, container and restart number are in it."""


class ForkReply(Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: int
    outcome: Literal["started", "already", "refused"]
    pid: int = 0
    start_ticks: int = 0
    started_ns: int = 0
    reason: str = ""
    """Why it was refused: nothing was started."""


class Part(Struct, frozen=True, kw_only=True):
    """What turns a spare child into one container's process; two descriptors come beside it: the launch, the lock."""

    directory: str
    started_ns: int


class Launch(Struct, frozen=True, kw_only=True):
    """What the child alone reads, after the fork."""

    environment: dict[str, str]
    """The whole of it. Secrets are in it."""
    working_directory: str = ""
    memory_bytes_max: int | None = None


class ProcessRecord(Struct, frozen=True, kw_only=True):
    """Which process runs a container: a process id alone comes round again."""

    pid: int
    start_ticks: int
    """Start time in clock ticks since boot, field 22 of /proc/PID/stat."""
    boot_id: str
    started_ns: int
    """Nanoseconds since 1970, UTC."""


class ExitRecord(Struct, frozen=True, kw_only=True):
    exit_code: int
    """128 and the signal where a signal ended it."""
    signal: int
    finished_ns: int


_requests = msgspec.json.Decoder(ForkRequest)
_launches = msgspec.json.Decoder(Launch)
_parts = msgspec.json.Decoder(Part)


def decode_request(packet: bytes) -> ForkRequest:
    """Raise `msgspec.DecodeError` where the packet holds no request."""
    return _requests.decode(packet)


def decode_part(packet: bytes) -> Part:
    """Raise `msgspec.DecodeError` where the packet holds no part."""
    return _parts.decode(packet)


def decode_launch(data: bytes) -> Launch:
    """Raise `msgspec.DecodeError` where the file holds no launch."""
    return _launches.decode(data)


def start_ticks_of(stat: str) -> int:
    """Return the start time from the text of /proc/PID/stat. The command's name in it may hold blanks and brackets."""
    return int(stat[stat.rindex(")") + 2 :].split()[19])


def exit_of(code: int, status: int, finished_ns: int) -> ExitRecord:
    """Return the record for what `waitid` told: CLD_EXITED (1) with a status, otherwise the signal's number."""
    if code == 1:
        return ExitRecord(exit_code=status, signal=0, finished_ns=finished_ns)
    return ExitRecord(exit_code=128 + status, signal=status, finished_ns=finished_ns)


MEMORY_LEAST_BYTES = 32 * 1024 * 1024
"""What a worker needs above the runtime itself. A limit that leaves less would end it before its first event."""


def memory_limit(wanted: int | None, data_bytes: int) -> tuple[int | None, str]:
    """Return the RLIMIT_DATA to set, or None, and what to say about it.

    `data_bytes` is what the process has of that kind before its function is loaded.
    """
    if wanted is None:
        return None, ""
    if wanted < data_bytes + MEMORY_LEAST_BYTES:
        mebibytes = 1024 * 1024
        return None, (
            f"the memory limit of {wanted // mebibytes} MiB is not enforced: the runtime alone has "
            f"{data_bytes // mebibytes} MiB, and a function needs {MEMORY_LEAST_BYTES // mebibytes} MiB more to begin"
        )
    return wanted, ""
