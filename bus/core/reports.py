"""What workers tell the dispatcher over core NATS, and the one thing they are asked.

A report goes to `Assignment.report_subject(worker)` on every change of what the worker holds (at most 20 a second)
and at least every `REPORT_INTERVAL_S`. A worker that has been silent for `REPORT_EXPIRY_S` counts as not live.

A message with the payload `FENCE` to `Assignment.control_subject(worker)` makes the worker stop pulling for good: it
unsubscribes its pull inbox, flushes, runs what crossed, settles, and only then reports the state `fenced` (`held` is
0). After that its pod may be deleted at no cost. A fenced worker never pulls again.
"""

from typing import Literal

from msgspec import Struct

REPORT_INTERVAL_S = 5.0
REPORT_EXPIRY_S = 12.0
FENCE = b"fence"


WorkerState = Literal["starting", "running", "fencing", "fenced", "stopping"]


class WorkerReport(Struct, frozen=True, kw_only=True):
    worker: str
    """Pod UID."""
    pod: str
    version: str
    state: WorkerState
    concurrency: int
    busy: int
    """Calls that run now."""
    held: int
    """Deliveries in hand, running or waiting for a slot or for settlement."""
    pending: int
    """Events the consumer has yet to deliver, as of the newest delivery; what rides on every message."""
    service_s: float
    """Smoothed duration of a call; 0 before the first."""
    handled: int
    """Deliveries settled since the worker started."""
    failed: int
    idle_s: float
    """How long `held` has been 0; 0 while it is not."""
