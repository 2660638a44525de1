"""Which deliveries a worker may still speak for.

The broker hands a delivery to somebody else when its lease ends. A worker renews everything it holds at a third of
the lease; one whose renewal came too late (its loop was blocked, the connection was away) may have lost the
delivery, so it sends no NAK and no TERM for it: that could end another worker's call.
"""

from msgspec import Struct

RENEW_SHARE = 1 / 3


class Lease(Struct):
    """The lease of one delivery. Times are of one monotonic clock, in seconds."""

    renewed_s: float
    is_lost: bool = False


def is_held(lease: Lease, now_s: float, lease_s: float) -> bool:
    """Say whether the delivery is still ours, and remember it if not: a lease once lost does not come back."""
    if now_s - lease.renewed_s >= lease_s:
        lease.is_lost = True
    return not lease.is_lost


def renew(lease: Lease, now_s: float, lease_s: float) -> bool:
    """Take a renewal that was just sent into account; return whether it came in time."""
    if not is_held(lease, now_s, lease_s):
        return False
    lease.renewed_s = now_s
    return True
