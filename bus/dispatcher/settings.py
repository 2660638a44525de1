"""Settings of the dispatcher; `NODELESS_DISPATCHER_<FIELD>` in the environment, `--field` on the command line."""

from msgspec import Struct

from bus.core.errors import ConfigurationError


class DispatcherConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    nats_url: str
    """`nats://host:port`; several, parted by commas."""
    nats_credentials: str | None = None
    """Path of the dispatcher's own credentials file; none where the broker asks for none."""
    nats_account_seed: str | None = None
    """Path of a file with the account's seed, with which each function's workers get a user of their own."""
    nats_worker_credentials: str | None = None
    """Path of one credentials file for all workers, where there is no account seed to mint users with."""
    worker_nats_url: str = ""
    """Where workers find the broker; default: `nats_url`."""
    worker_image: str = ""
    """Image of worker pods; default: the runtime of this project's version."""
    replicas: int = 1
    """Of each stream. [servers]"""
    kubeconfig: str | None = None
    context: str | None = None
    health_port: int = 0
    """Port of `/readyz` on 127.0.0.1; 0 for none."""
    connect_s: float = 60.0
    """How long the first contact with broker and API server may take before the program gives up. [seconds]"""

    def __post_init__(self) -> None:
        if self.nats_account_seed and self.nats_worker_credentials:
            raise ConfigurationError(
                "nats_worker_credentials",
                self.nats_worker_credentials,
                "settings",
                "workers get their users from nats_account_seed or share this one; give one of the two",
            )
        if self.replicas not in {1, 3, 5}:
            raise ConfigurationError("replicas", self.replicas, "settings", "a stream has 1, 3 or 5 replicas")
