"""`up`, `down`, `status`, `run`, `version`: the system itself."""

from pathlib import Path
from typing import Annotated

import typer

from nodeless.cli.errors import USAGE, CommandError
from nodeless.cli.options import (
    DEFAULT_HOME,
    SERVERS,
    ContextOption,
    CredentialsOption,
    HomeOption,
    KubeconfigOption,
    NatsOption,
)
from nodeless.cli.output import Format, OutputOption


def declare(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(down)
    app.command()(status)
    # The program has options of its own, --help among them.
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(context_settings=passed_on, add_help_option=False)(run)
    app.command()(version)


def up(
    home: HomeOption = DEFAULT_HOME,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when the system is ready.")] = False,
    nats_url: NatsOption = None,
    nats_credentials: CredentialsOption = None,
    nats_account_seed: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="For --nats: seed of the account; gives every program and function a user of its own.",
            rich_help_panel=SERVERS,
        ),
    ] = None,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    assets: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Programs of a control plane, instead of building them.")
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Start a whole system: Kubernetes, NATS, dispatcher, gateway and one virtual node.

    Stays until Ctrl-C, which stops everything in order; with --detach it returns when all is ready. What the system
    knows is kept in its home, and the next `up` goes on with it. With --nats or --kubeconfig, servers that run elsewhere
    take the place of the embedded ones. The first start builds the control plane, which takes minutes.
    """
    from nodeless.cli import up as body

    body.up(
        home,
        body.options_of(
            nats_url=nats_url,
            nats_credentials=nats_credentials,
            nats_account_seed=nats_account_seed,
            kubeconfig=kubeconfig,
            context=context,
        ),
        assets=assets,
        is_detached=detach,
        is_json=output == Format.JSON,
    )


def down(
    home: HomeOption = DEFAULT_HOME,
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove all its data too: functions, events, results.")
    ] = False,
) -> None:
    """Stop the system, each program after those that need it. Its data stay, unless --purge is given."""
    from nodeless.cli.down import down as body

    body(home, has_purge=purge)


def status(home: HomeOption = DEFAULT_HOME, output: OutputOption = Format.TABLE) -> None:
    """Show how to reach the system, the health of each program, the functions, and the memory it holds.

    Exit status 1 if a program is not well, 3 if no system is running.
    """
    from nodeless.cli.status import status as body

    raise typer.Exit(body(home, is_json=output == Format.JSON))


def run(
    context: typer.Context,
    program: Annotated[str, typer.Argument(help="gateway, dispatcher or node.", show_default=False)] = "--help",
) -> None:
    """Run one of the three programs alone, as a cluster does; all that follows is passed on (try `run node --help`)."""
    from nodeless.cli.run import MODULES
    from nodeless.cli.run import run as body

    if program in {"-h", "--help"}:
        print(context.get_help())
        return
    if program not in MODULES:
        raise CommandError(f"{program!r} is none of our programs; expected one of {', '.join(MODULES)}", USAGE)
    body(program, context.args)


def version(output: OutputOption = Format.TABLE) -> None:
    """Show the versions of this program and of the servers that it brings."""
    from nodeless.cli.version import version as body

    body(is_json=output == Format.JSON)
