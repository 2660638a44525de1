"""`deploy`, `delete`, `functions`, `logs`."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from nodeless.cli.errors import FAILED, CommandError
from nodeless.cli.options import FunctionArgument, checked_function_names, reaches
from nodeless.cli.output import Format, OutputOption, print_json, print_rows
from nodeless.cli.target import Target


def declare(app: typer.Typer) -> None:
    app.command()(deploy)
    app.command()(delete)
    app.command()(functions)
    app.command()(logs)


@reaches(cluster=True, bus=True)
def deploy(
    target: Target,
    path: Annotated[Path, typer.Argument(help="A Python file, or a folder with the function inside.")],
    name: Annotated[str | None, typer.Option(help="Name of the function; default the handler's.")] = None,
    handler: Annotated[str | None, typer.Option(metavar="MODULE:NAME", help="Default: those with @function.")] = None,
    subject: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Events it gets; may be repeated.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Environment; may be repeated.")] = None,
    min_: Annotated[int | None, typer.Option("--min", help="Workers that are always there.")] = None,
    max_: Annotated[int | None, typer.Option("--max", help="Workers at most.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Events that one worker handles at once.")] = None,
    idle: Annotated[str | None, typer.Option(metavar="DURATION", help="How long a worker without work stays.")] = None,
    timeout: Annotated[str | None, typer.Option(metavar="DURATION", help="How long one call may take.")] = None,
    attempts: Annotated[int | None, typer.Option(help="Calls before an event is dead-lettered.")] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Deploy the functions of a file or a folder, or update them, and say what changed.

    Exit status 1 if a function is not subscribed in the end: it is stored, and gets no event yet.
    """
    import anyio

    from nodeless.cli import deploy as body

    options = {
        "min": min_,
        "max": max_,
        "concurrency": concurrency,
        "idle": idle,
        "timeout": timeout,
        "attempts": attempts,
    }
    bundle, deployed = anyio.run(
        partial(
            body.deploy,
            target,
            path,
            handler=handler,
            name=name,
            subjects=subject or (),
            options={option: value for option, value in options.items() if value is not None},
            environment=body.environment_of(env or ()),
        )
    )
    if output == Format.JSON:
        print_json(deployed)
    else:
        body.print_deployed(bundle, deployed)
    if not all(each.ready for each in deployed):
        raise typer.Exit(FAILED)


@reaches(cluster=True)
def delete(
    target: Target,
    names: Annotated[
        list[str],
        typer.Argument(metavar="FUNCTION...", help="Names of functions.", callback=checked_function_names),
    ],
    output: OutputOption = Format.TABLE,
) -> None:
    """Delete functions, and return when their workers and consumers are gone. Their results and dead letters stay."""
    import anyio

    from nodeless.cli.functions import delete_functions

    missing = anyio.run(delete_functions, target, names)
    deleted = [name for name in names if name not in missing]
    if output == Format.JSON:
        print_json({"deleted": deleted, "missing": missing})
    else:
        for name in deleted:
            print(f"function {name} deleted")
    if missing:
        raise CommandError(f"no such function: {', '.join(missing)}; `nodeless functions` lists them")


@reaches(cluster=True)
def functions(
    target: Target,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="In every namespace.")] = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """List functions with their workers, what waits for them, and what is wrong with them."""
    import anyio

    from nodeless.cli.functions import COLUMNS, function_rows

    rows = anyio.run(partial(function_rows, target, all_namespaces=all_namespaces))
    if output == Format.JSON:
        print_json(rows)
    else:
        print_rows(rows, COLUMNS, empty="no functions; deploy one with `nodeless deploy PATH`")


@reaches(cluster=True)
def logs(
    target: Target,
    function: FunctionArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    tail: Annotated[
        int | None, typer.Option(metavar="LINES", min=0, help="Only the last lines of each worker.")
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show what a function's workers print and log, each line after its worker's name."""
    import anyio

    from nodeless.cli import logs as body

    write = body.write_line if output == Format.TABLE else body.write_json
    pods = anyio.run(partial(body.logs, target, function, follow=follow, tail_lines=tail, write=write))
    if not pods:
        sys.stderr.write(f"{function} has no worker now, and a worker's log goes with it; watch with -f\n")
