"""`python -m bus.ingress.git deliver --spool DIR`: the detached deliverer that the hook starts."""

import asyncio
import logging
import sys
from pathlib import Path

from bus.ingress.git.deliver import deliver_spool
from bus.ingress.git.errors import GitBridgeError
from bus.ingress.git.spool import Spool
from bus.logs import set_up_logging

USAGE = """\
usage: python -m bus.ingress.git deliver --spool DIR

Publishes the pushes that wait in DIR (the directory `nodeless` inside a git repository), in order and once, and ends
when none waits, or when the bus has been away for a quarter of an hour. Exit status: 0 nothing waits (or another
deliverer is at work), 2 wrong use, 69 some pushes still wait.
"""


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(USAGE)
        return 0
    match arguments:
        case ["deliver", "--spool", directory]:
            pass
        case _:
            sys.stderr.write(USAGE)
            return 2
    set_up_logging()
    try:
        delivered = asyncio.run(deliver_spool(Spool(Path(directory).absolute())))
    except GitBridgeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except Exception:
        # Standard error is the spool's log: nobody is there to see the traceback, and the push is kept.
        logging.getLogger("nodeless.git").exception("the deliverer failed; pushes wait")
        return 70
    return 69 if delivered.waiting and not delivered.reason.startswith("another") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
