"""Which system a command talks to: servers that are named, else those of a home where one is running."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from bus.core.credentials import inbox_prefix
from bus.core.errors import ConfigurationError
from nodeless.embedded.home import Endpoints, Home

if TYPE_CHECKING:
    from bus.cluster.connection import ClusterConfig
    from bus.jetstream.connection import BusConfig

PROGRAM = "cli"
DEFAULT_NAMESPACE = "default"


class Target(Struct, frozen=True, kw_only=True):
    """Nothing is read or asked before it is needed: a command that publishes does not need Kubernetes."""

    home: Path
    kubeconfig: str | None = None
    context: str | None = None
    nats_url: str | None = None
    nats_credentials: str | None = None
    namespace: str | None = None
    """None: the kubeconfig's."""

    @classmethod
    def of_home(cls, home: Path) -> "Target":
        return cls(home=home)

    @property
    def endpoints(self) -> Endpoints:
        """Of the home's system. Raises `NotRunning`."""
        return Home.at(self.home).running_or_raise().endpoints

    @property
    def cluster(self) -> "ClusterConfig":
        """How to reach the API server. Raises `NotRunning`."""
        from bus.cluster.connection import ClusterConfig

        kubeconfig, context = self._kubernetes
        return ClusterConfig(kubeconfig=kubeconfig, context=context)

    @property
    def bus(self) -> "BusConfig":
        """How to reach the broker, as the command line's user. Raises `NotRunning`."""
        from bus.jetstream.connection import BusConfig

        url, credentials = self.nats_url, self.nats_credentials
        if url is None:
            if credentials is not None:
                raise ConfigurationError("nats-credentials", credentials, "option", "add --nats URL of their broker")
            url, credentials = self.endpoints.nats_url, self.endpoints.nats_credentials
        return BusConfig(url=url, credentials=credentials, name=PROGRAM, inbox_prefix=inbox_prefix(PROGRAM))

    @property
    def git_user(self) -> tuple[str, str | None]:
        """URL of the broker and path of the credentials with which a repository's bridge publishes. Raises
        `NotRunning`.
        """
        if self.nats_url is not None:
            return self.nats_url, self.nats_credentials
        return self.endpoints.nats_url, self.endpoints.git_credentials

    @property
    def namespace_or_current(self) -> str:
        """The namespace given, else that of the kubeconfig's context; reads the file only, and asks no server."""
        if self.namespace is not None:
            return self.namespace
        kubeconfig, context = self._kubernetes
        return _context_namespace(kubeconfig, context) if kubeconfig else DEFAULT_NAMESPACE

    @property
    def _kubernetes(self) -> tuple[str | None, str | None]:
        if self.kubeconfig is not None or self.context is not None:
            return self.kubeconfig, self.context
        return self.endpoints.kubeconfig, self.endpoints.context


def _context_namespace(kubeconfig: str, context: str | None) -> str:
    try:
        text = Path(kubeconfig).expanduser().read_text()
        try:
            content: dict[str, Any] = msgspec.json.decode(text)  # as `up` writes it
        except msgspec.DecodeError:
            import yaml

            content = yaml.safe_load(text)
        contexts = {each["name"]: each["context"] for each in content["contexts"]}
        return str(contexts[context or content["current-context"]].get("namespace", DEFAULT_NAMESPACE))
    except OSError:
        raise
    except Exception as error:  # whatever is wrong with the file, the fix is the same
        raise ConfigurationError(
            "kubeconfig", kubeconfig, "option", f"it defines no context {context or 'to be current'!r} ({error})"
        ) from error
