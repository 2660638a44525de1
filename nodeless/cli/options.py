"""Options that many commands share, and how they become a `Target`."""

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from nodeless.cli.errors import USAGE, CommandError
from nodeless.cli.target import Target
from nodeless.embedded.home import HOME_VARIABLE

DEFAULT_HOME = Path("~/.nodeless")
SERVERS = "Servers"

HomeOption = Annotated[
    Path, typer.Option("--home", envvar=HOME_VARIABLE, help="Directory of the system.", show_default="~/.nodeless")
]
KubeconfigOption = Annotated[
    str | None,
    typer.Option("--kubeconfig", envvar="NODELESS_KUBECONFIG", help="Instead of the home's.", rich_help_panel=SERVERS),
]
ContextOption = Annotated[
    str | None, typer.Option("--context", help="Of the kubeconfig; default its current one.", rich_help_panel=SERVERS)
]
NatsOption = Annotated[
    str | None,
    typer.Option(
        "--nats", metavar="URL", envvar="NODELESS_NATS_URL", help="Instead of the home's.", rich_help_panel=SERVERS
    ),
]
CredentialsOption = Annotated[
    str | None,
    typer.Option(
        "--nats-credentials",
        metavar="FILE",
        envvar="NODELESS_NATS_CREDENTIALS",
        help="For --nats.",
        rich_help_panel=SERVERS,
    ),
]
NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Default: that of the kubeconfig's context.")
]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,251}[a-z0-9])?")


def checked_function_names(names: list[str]) -> list[str]:
    for name in names:
        checked_function_name(name)
    return names


def checked_function_name(name: str) -> str:
    """Return the name if a function can have it: it becomes a part of subjects and paths, where others mean something."""
    if not _NAME.fullmatch(name):
        raise CommandError(f"{name!r} can be no function's name: expected a-z, 0-9 and '-'", USAGE)
    return name


FunctionArgument = Annotated[str, typer.Argument(help="Name of a function.", callback=checked_function_name)]

_HOME = {"home": (HomeOption, DEFAULT_HOME)}
_NAMESPACE = {"namespace": (NamespaceOption, None)}
_CLUSTER = {"kubeconfig": (KubeconfigOption, None), "context": (ContextOption, None)}
_BUS = {"nats_url": (NatsOption, None), "nats_credentials": (CredentialsOption, None)}


def reaches(*, cluster: bool = False, bus: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that say which servers it talks to; it gets them as its first argument, a `Target`."""
    offered: dict[str, tuple[Any, object]] = dict(_HOME)
    offered |= (_NAMESPACE | _CLUSTER) if cluster else {}
    offered |= _BUS if bus else {}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command).parameters.values())[1:]

        @functools.wraps(command)
        def wrapped(**given: Any) -> None:
            target = Target(**{name: given.pop(name) for name in offered})
            command(target, **given)

        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in offered.items()
        ]
        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
        wrapped.__dict__["__signature__"] = inspect.Signature([*parameters, *added])
        wrapped.__annotations__ = {each.name: each.annotation for each in (*parameters, *added)}
        del wrapped.__wrapped__
        return wrapped

    return decorate
