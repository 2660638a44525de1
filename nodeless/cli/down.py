"""`nodeless down`: stop in order, and remove the data where that is asked for."""

from pathlib import Path

from nodeless.embedded import control
from nodeless.embedded.home import Home


def down(directory: Path, *, has_purge: bool) -> None:
    home = Home.at(directory)
    print(
        f"stopped the system in {home.directory}"
        if control.stop(home)
        else f"no system was running in {home.directory}"
    )
    if has_purge:
        print(f"removed its data from {home.directory}" if control.purge(home) else "it had no data")
