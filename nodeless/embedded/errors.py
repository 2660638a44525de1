"""What can go wrong with an embedded system, by whose fault it is.

EmbeddedError
  HomeUnusable        that directory is somebody else's, or cannot be written
  HomeBusy            another process is starting or removing the system there
  NotRunning          there is no system in that directory
  NotReady            a program ended, or did not serve in time; names its log            retryable
  NotStopped          the supervisor is still there after all its deadlines
  ControlPlaneError   the control plane's programs cannot be had: `controlplane/errors.py`
"""

from pathlib import Path


class EmbeddedError(Exception):
    retryable = False


class HomeUnusable(EmbeddedError):
    def __init__(self, home: Path, reason: str) -> None:
        self.home = home
        super().__init__(f"{home} cannot be the home of a system: {reason}; name another directory with --home")


class HomeBusy(EmbeddedError):
    retryable = True

    def __init__(self, home: Path) -> None:
        self.home = home
        super().__init__(f"another process is starting or removing the system in {home}; try again when it has ended")


class NotRunning(EmbeddedError):
    def __init__(self, home: Path) -> None:
        self.home = home
        super().__init__(
            f"no system is running in {home}; start it with `nodeless up --home {home}`, name another one with --home (or "
            "NODELESS_HOME), or name servers with --kubeconfig and --nats"
        )


class NotReady(EmbeddedError):
    retryable = True

    def __init__(self, program: str, reason: str, log: Path | None, last_words: str = "") -> None:
        self.program, self.log, self.last_words = program, log, last_words
        where = f"; its log is {log}" if log else ""
        super().__init__(f"{program} {reason}{where}" + (f":\n{last_words}" if last_words else ""))


class NotStopped(EmbeddedError):
    def __init__(self, pid: int, within_s: float) -> None:
        self.pid = pid
        super().__init__(
            f"the supervisor (process {pid}) did not end within {within_s:g} s of being asked; "
            f"`kill -9 {pid}` ends it and every program of the system with it"
        )
