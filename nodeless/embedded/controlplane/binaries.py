"""What a control plane is made of on disk: one binary that holds all four programs, or a directory with one each."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nodeless.embedded.controlplane.components import PROGRAMS
from nodeless.embedded.controlplane.errors import ProgramMissing

BINARY_NAME = "nodeless-controlplane"
ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"
"""Where tools around controller-runtime keep etcd and kube-apiserver."""


@dataclass(frozen=True)
class Binaries:
    """How each program is called."""

    commands: Mapping[str, tuple[str, ...]]

    def command(self, program: str) -> tuple[str, ...]:
        return self.commands[program]


def one_binary(path: Path) -> Binaries:
    """Return the programs inside the binary which we build: the first argument names the program."""
    return Binaries({program: (str(path), program) for program in PROGRAMS})


def given_binaries(
    assets: Path | None, environment: Mapping[str, str], needed: Sequence[str] = PROGRAMS
) -> Binaries | None:
    """Return what the user has put in a directory: `assets` before KUBEBUILDER_ASSETS; None if neither is given.

    Raises `ProgramMissing` if the directory lacks one of `needed`: a control plane mixed from two origins would fail
    later and in stranger ways.
    """
    if assets is not None:
        directory, source = assets, "--assets"
    elif environment.get(ASSETS_VARIABLE):
        directory, source = Path(environment[ASSETS_VARIABLE]), ASSETS_VARIABLE
    else:
        return None
    directory = directory.expanduser().resolve()
    if _is_program(directory / BINARY_NAME):
        return one_binary(directory / BINARY_NAME)
    found = [program for program in PROGRAMS if _is_program(directory / program)]
    missing = [program for program in needed if program not in found]
    if missing:
        raise ProgramMissing(directory, source, missing, found)
    return Binaries({program: (str(directory / program),) for program in found})


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
