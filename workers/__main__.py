"""`python -m workers`: one worker, told by its environment what to do."""

import os
import traceback

from workers.output import flush_output
from workers.runtime import main

if __name__ == "__main__":
    status = 1
    try:
        status = main(os.environ)
    except BaseException:
        traceback.print_exc()
    flush_output()
    # A handler's thread that overran its timeout may still run, and a coroutine of its; nobody waits for them.
    os._exit(status)
