"""`nodeless`: the entry point. Errors that a person can do something about become one message and an exit status."""

import os
import sys
from pathlib import Path

import typer

from nodeless.cli.commands import events, functions, git, system
from nodeless.cli.errors import EPILOG, FAILED, reported

app = typer.Typer(
    name="nodeless",
    help="An event bus with function workers for Kubernetes, on nodes that are not there.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="markdown",
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
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever called
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - open as long as this process
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing more can be said to them.
        _discard_output()
        return FAILED
    except BaseException as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # the command line's own: a wrong option
            error.show()
            return int(error.exit_code)
        expected = reported(error)
        if expected is None:
            raise
        if isinstance(error, OSError) and error.filename is None:
            _discard_output()
        return expected
    return status if isinstance(status, int) else 0


def _discard_output() -> None:
    """Send what is still buffered nowhere: the interpreter would complain that it cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
