"""Free TCP ports on loopback which two systems that start at once never both take.

Asking the kernel for "any port" hands out ephemeral ones, which any outgoing connection may be using when the system
comes up the next time. So ports are drawn below that range and remembered by the caller. Between "it was free" and the
program's own bind, and for as long as the supervisor lives, a port is held by an abstract Unix socket of its name:
whoever else looks for a port here sees it taken, and the kernel gives it back when the process ends, however it ends.
"""

import json
import random
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from nodeless.embedded.files import write_private

PORTS_DRAWN = range(20_000, 32_000)
"""Above what services usually listen on, below the lowest ephemeral port of Linux (32768)."""

DRAWS_MAX = 1000


class NoFreePort(RuntimeError):
    def __init__(self) -> None:
        super().__init__(
            f"no free TCP port on 127.0.0.1 in {PORTS_DRAWN.start}-{PORTS_DRAWN.stop - 1} after {DRAWS_MAX} draws; "
            "see which programs listen there with `ss -ltn`"
        )


class PortReservations:
    """Ports held for one system until closed."""

    def __init__(self) -> None:
        self._held: dict[int, socket.socket] = {}

    def reserve(self, wanted: int | None = None) -> int:
        """Return `wanted` if it is free, else another free port. Raises `NoFreePort`."""
        if wanted is not None and self._take(wanted):
            return wanted
        for _ in range(DRAWS_MAX):
            port = random.choice(PORTS_DRAWN)  # noqa: S311 - spreading, not secrecy
            if self._take(port):
                return port
        raise NoFreePort

    def keep(self, path: Path, names: Sequence[str]) -> dict[str, int]:
        """Return a port for each name: that of last time where it is free, another one where not. `path` remembers."""
        try:
            before: dict[str, int] = json.loads(path.read_text())
        except (OSError, ValueError):
            before = {}
        ports = {name: self.reserve(before.get(name)) for name in names}
        if ports != before:
            write_private(path, json.dumps(ports))
        return ports

    @property
    def descriptors(self) -> list[int]:
        """The descriptors that hold the ports: a process that inherits them holds the ports too."""
        return [mark.fileno() for mark in self._held.values()]

    def _take(self, port: int) -> bool:
        if port in self._held:
            return False
        mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            mark.bind(f"\0nodeless-port-{port}")
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                # As servers do it: a port whose last connections are in TIME_WAIT is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            mark.close()
            return False
        self._held[port] = mark
        return True

    def close(self) -> None:
        while self._held:
            self._held.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
