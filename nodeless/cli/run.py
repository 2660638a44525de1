"""`nodeless run gateway|dispatcher|node`: this process becomes the program."""

import os
import sys
from collections.abc import Sequence

MODULES = {"gateway": "bus.ingress.gateway", "dispatcher": "bus.dispatcher", "node": "provider"}


def run(program: str, arguments: Sequence[str]) -> None:
    """Does not return. What the program says and how it ends is its own."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", MODULES[program], *arguments])  # noqa: S606 - no shell
