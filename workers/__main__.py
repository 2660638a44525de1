"""`python -m workers`: one worker, told by its environment what to do."""

import os
import sys

from workers.runtime import main

if __name__ == "__main__":
    status = main(os.environ)
    sys.stdout.flush()
    # A handler's thread that overran its timeout may still run; nobody waits for it.
    os._exit(status)
