"""`python -m nodeless.embedded.controlplane build`: have the control plane's programs on this machine."""

import argparse
import sys
from pathlib import Path

from nodeless.embedded.controlplane.build import cached_binary, find_or_build
from nodeless.embedded.controlplane.components import PROGRAMS
from nodeless.embedded.controlplane.errors import ControlPlaneError


def main(arguments: list[str]) -> int:
    """Return 0 if the programs are there, 1 if they cannot be had, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m nodeless.embedded.controlplane", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="find or build the programs, and say how each is called")
    building.add_argument("--assets", type=Path, help="a directory with the programs, instead of building them")
    commands.add_parser("path", help="say where the binary of this version lies once it is built")
    options = parser.parse_args(arguments)
    if options.command == "path":
        print(cached_binary())  # noqa: T201
        return 0
    try:
        binaries = find_or_build(assets=options.assets)
    except ControlPlaneError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is compiled is kept, and the next build goes on from there", file=sys.stderr)  # noqa: T201
        return 130
    for program in PROGRAMS:
        print(f"{program}: {' '.join(binaries.command(program))}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
