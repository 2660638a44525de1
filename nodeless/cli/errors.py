"""What becomes of an error at the command line: one message that says what was seen and what to do, and a status.

0    done
1    failed, or what was asked about is not well
2    wrong use: an unknown option, a value that does not fit
3    no system is running there, or a server does not answer
130  interrupted
"""

import errno
import sys
from collections.abc import Iterator

DONE, FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

EPILOG = (
    "Exit statuses: 0 done; 1 failed, or what was asked about is not well; 2 wrong use; 3 no system is running there, "
    "or a server does not answer; 130 interrupted."
)


_OUTPUT_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})


class CommandError(Exception):
    """A person's mistake, or an outcome that a person has to know; the message says all there is to say."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        self.status = status
        super().__init__(message)


def reported(error: BaseException) -> int | None:
    """Print what an expected error says and return the exit status for it; None for one that nobody expected.

    A task group's errors come in groups; each distinct message is printed once.
    """
    leaves = list(_leaves(error))
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    statuses = [_status(leaf) for leaf in leaves]
    known = [status for status in statuses if status is not None]
    if len(known) < len(statuses):
        return None
    for message in dict.fromkeys(_message(leaf) for leaf in leaves):
        sys.stderr.write(f"error: {message}\n")
    return max(known)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _status(error: BaseException) -> int | None:
    # Only here: on the way of a command that succeeds, these cost more than the command line itself.
    from bus.cluster.errors import ClusterError, ClusterUnavailable
    from bus.core.errors import BrokerUnavailable, BusError, ConfigurationError, InvalidPattern, InvalidSubject
    from nodeless.embedded.errors import EmbeddedError, NotRunning
    from nodeless.packaging.handlers import DeployError

    match error:
        case CommandError():
            return error.status
        case NotRunning() | BrokerUnavailable() | ClusterUnavailable():
            return UNREACHABLE
        case ConfigurationError() | InvalidSubject() | InvalidPattern():
            return USAGE
        case BusError() | ClusterError() | EmbeddedError() | DeployError():
            return FAILED
        case OSError() if error.filename is not None or error.errno in _OUTPUT_ERRORS:  # a file that the user named
            return FAILED
        case _:
            return None


def _message(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or 'the output cannot be written'}: {error.strerror}"
    return str(error)
