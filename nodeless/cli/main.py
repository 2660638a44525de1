"""`nodeless`: the entry point. Errors that a person can do something about become one message and an exit status."""

import os
import sys

import typer

from nodeless.cli.commands import events, functions, git, system
from nodeless.cli.errors import EPILOG, FAILED, reported

app = typer.Typer(
    name="nodeless",
    help="An event bus with function workers for Kubernetes, on nodes that are not there.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
system.declare(app)
functions.declare(app)
events.declare(app)
git.declare(app)


def main() -> int:
    """Run the command line and return its exit status."""
    try:
        status = app(standalone_mode=False)
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing more can be said to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except BaseException as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # the command line's own: a wrong option
            error.show()
            return int(error.exit_code)
        expected = reported(error)
        if expected is None:
            raise
        return expected
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main())
