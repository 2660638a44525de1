"""A worker speaks for a delivery only while it may."""

from workers.core.leases import Lease, is_held, renew


def test_a_lease_renewed_in_time_goes_on() -> None:
    lease = Lease(0.0)

    assert renew(lease, 2.0, 6.0)
    assert is_held(lease, 7.9, 6.0)


def test_a_lease_renewed_too_late_is_lost_for_good() -> None:
    lease = Lease(0.0)

    assert not renew(lease, 6.0, 6.0)
    assert not renew(lease, 6.1, 6.0)
    assert not is_held(lease, 0.5, 6.0)
