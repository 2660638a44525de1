"""Start a program that ends with its parent, however the parent ends.

`tethered(argv)` puts this file in front of a command: it asks the kernel for SIGKILL at the parent's death
(PR_SET_PDEATHSIG, which survives exec) and becomes the program. A separate interpreter rather than a hook between fork
and exec: such a hook runs Python in a copy of a process whose other threads are gone, and costs the supervisor its vfork.

The kernel means the *thread* that forked: start programs from the main thread.
"""

import os
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
SIGKILL = 9


def tethered(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command that runs `argv` and dies with the process that starts it."""
    # -I and -S: nothing but this file is read, so that it starts in about ten milliseconds.
    return (sys.executable, "-I", "-S", __file__, str(os.getpid()), *argv)


def main() -> None:
    import ctypes

    parent = int(sys.argv[1])
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0):
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before the kernel was told
        os.kill(os.getpid(), SIGKILL)
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - a list of arguments, as our callers have it


if __name__ == "__main__":
    main()
