"""A person's mistake at the git bridge: not a repository, a hook that is not ours, settings that are missing."""

from bus.core.errors import BusError


class GitBridgeError(BusError):
    """The message says what was seen and what to do."""
