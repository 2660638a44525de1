"""Which wake signals are listened to: one subscription for each distinct pattern, shared by the functions that sleep."""

from collections.abc import Collection, Mapping

from msgspec import Struct


class SubscriptionChanges(Struct, frozen=True):
    open: tuple[str, ...]
    close: tuple[str, ...]


def subscription_changes(listeners: Mapping[str, Collection[str]], present: Collection[str]) -> SubscriptionChanges:
    """Return which patterns to subscribe and which to give up, given what each listener waits for."""
    wanted = {pattern for patterns in listeners.values() for pattern in patterns}
    return SubscriptionChanges(tuple(sorted(wanted.difference(present))), tuple(sorted(set(present) - wanted)))


def listeners_of(listeners: Mapping[str, Collection[str]], pattern: str) -> tuple[str, ...]:
    """Return who waits for signals on that pattern, in the order in which they came."""
    return tuple(listener for listener, patterns in listeners.items() if pattern in patterns)
