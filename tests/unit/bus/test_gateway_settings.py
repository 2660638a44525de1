"""When the gateway refuses to start, and what it takes for a token."""

from pathlib import Path

import pytest

from bus.core.configuration import load
from bus.core.errors import ConfigurationError
from bus.ingress.gateway.settings import PREFIX, GatewayConfig, read_token


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gateway.example"])
def test_without_a_token_only_loopback_is_served(host: str) -> None:
    with pytest.raises(ConfigurationError, match="token"):
        load(GatewayConfig, flags={"nats_url": "nats://n", "host": host})

    assert load(GatewayConfig, flags={"nats_url": "nats://n", "host": host, "token_file": "t"}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_loopback_a_token_is_not_needed(host: str) -> None:
    config = load(GatewayConfig, flags={"nats_url": "nats://n", "host": host})

    assert read_token(config) is None


def test_settings_come_from_the_environment_too() -> None:
    config = load(
        GatewayConfig,
        environment={"NODELESS_GATEWAY_NATS_URL": "nats://n", "NODELESS_GATEWAY_PORT": "0"},
        prefix=PREFIX,
    )

    assert (config.nats_url, config.port) == ("nats://n", 0)


@pytest.mark.parametrize("content", ["", " \n", "two words", "Größe"])
def test_a_token_that_no_header_could_carry_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)

    with pytest.raises(ConfigurationError, match="token_file"):
        read_token(GatewayConfig(nats_url="nats://n", token_file=str(tmp_path / "token")))


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        read_token(GatewayConfig(nats_url="nats://n", token_file=str(tmp_path / "nowhere")))


def test_the_token_is_the_file_without_its_newline(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")

    assert read_token(GatewayConfig(nats_url="nats://n", token_file=str(tmp_path / "token"))) == "s3cret"
