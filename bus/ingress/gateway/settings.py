"""Settings of the gateway: flags over `NODELESS_GATEWAY_*` over defaults."""

import ipaddress
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from bus.core.errors import ConfigurationError

PREFIX = "NODELESS_GATEWAY_"


class GatewayConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    nats_url: str
    nats_credentials: str | None = None
    """Path of the credentials file of the `gateway` user; None where the broker asks for none."""
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    """0: a free one, which is printed."""
    token_file: str | None = None
    """Path of a file with the token that callers have to bear. None: anybody may publish, on loopback only."""
    body_bytes_max: Annotated[int, Meta(ge=1024)] = 2 * 1024 * 1024
    """Larger requests are refused while they are read. The broker has its own bound for an event (1 MiB); a structured
    one may take a third more here, for its base64. [bytes]"""
    in_flight_max: Annotated[int, Meta(ge=1)] = 256
    """Requests at work at once; with `body_bytes_max` the bound of the memory that callers can take. [requests]"""
    grace_s: Annotated[float, Meta(ge=0)] = 10.0
    """How long requests in hand may take after SIGTERM. [seconds]"""

    def __post_init__(self) -> None:
        if self.token_file is None and not _is_loopback(self.host):
            raise ConfigurationError(
                "token_file", None, "not given", f"{self.host!r} is not loopback, so callers have to bear a token"
            )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(config: GatewayConfig) -> str | None:
    """Return the token, or None where callers need none. Raises `ConfigurationError`."""
    if config.token_file is None:
        return None
    try:
        token = Path(config.token_file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError("token_file", config.token_file, "setting", f"it cannot be read: {error}") from error
    if not token or any(not "!" <= character <= "~" for character in token):
        raise ConfigurationError(
            "token_file", config.token_file, "setting", "expected one token of printable ASCII without blanks"
        )
    return token
