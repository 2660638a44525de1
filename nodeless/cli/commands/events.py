"""`publish`, `tail`, `results`, `dead list`."""

import os
import sys
from collections.abc import Mapping
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any, Literal

import typer

from nodeless.cli.options import FunctionArgument, reaches
from nodeless.cli.output import Format, OutputOption, on_one_line, print_json, print_line, print_rows, short_time
from nodeless.cli.target import Target

# Rows that come one by one cannot wait for the widest: the width that a column mostly needs, 0 for the last one.
EVENT_COLUMNS = {"sequence": 8, "time": 24, "subject": 28, "type": 20, "id": 36, "data": 0}
RESULT_COLUMNS = {"time": 24, "event": 36, "attempt": 7, "worker": 24, "result": 0}
DEAD_COLUMNS = ("id", "died", "subject", "event", "reason", "attempts", "message")


def declare(app: typer.Typer) -> None:
    app.command()(publish)
    app.command()(tail)
    app.command()(results)
    dead = typer.Typer(help="Events that could not be handled.", no_args_is_help=True)
    dead.command("list")(dead_list)
    app.add_typer(dead, name="dead")


@reaches(bus=True)
def publish(
    target: Target,
    subject: Annotated[str, typer.Argument(help="Such as orders.created; `events.` in front may be left out.")],
    data: Annotated[str | None, typer.Argument(help="The event's data; `-` reads standard input.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="CloudEvents type; default the subject.")] = None,
    source: Annotated[str, typer.Option(help="CloudEvents source.")] = "nodeless-cli",
    id_: Annotated[str | None, typer.Option("--id", help="CloudEvents id; default a new one.")] = None,
    content_type: Annotated[str | None, typer.Option(help="Of the data; default by what they look like.")] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Publish one event, and return when the broker has stored it."""
    import anyio

    from nodeless.cli import events as body

    content = sys.stdin.buffer.read() if data == "-" else os.fsencode(data or "")
    event = body.new_event(subject, content, type_=type_, source=source, id_=id_, content_type=content_type)
    stored = anyio.run(body.publish, target, event)
    if output == Format.JSON:
        print_json(
            {
                "stream": stored.stream,
                "sequence": stored.sequence,
                "id": event.id,
                "subject": event.subject,
                "duplicate": stored.duplicate,
            }
        )
        return
    known = " (it was there before: same source and id)" if stored.duplicate else ""
    print(f"stored in {stored.stream} as {stored.sequence}: {event.subject} {event.id}{known}")


@reaches(bus=True)
def tail(
    target: Target,
    pattern: Annotated[str, typer.Argument(help="Such as orders.*; default everything.")] = ">",
    is_all: Annotated[bool, typer.Option("--all", help="Begin with the oldest event that is stored.")] = False,
    follow: Annotated[bool, typer.Option(help="Go on with what comes, until Ctrl-C.")] = True,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show events as they come."""
    import anyio

    from nodeless.cli import events as body

    start: Literal["all", "new"] = "all" if is_all or not follow else "new"
    anyio.run(_print_each, body.tail(target, pattern, start=start, follow=follow), EVENT_COLUMNS, output)


@reaches(cluster=True, bus=True)
def results(
    target: Target,
    function: FunctionArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show what a function returned, oldest first."""
    import anyio

    from nodeless.cli import events as body

    rows = body.results(target, target.namespace_or_current, function, follow=follow)
    anyio.run(_print_each, rows, RESULT_COLUMNS, output, None if follow else f"no results of {function} yet")


@reaches(cluster=True, bus=True)
def dead_list(target: Target, function: FunctionArgument, output: OutputOption = Format.TABLE) -> None:
    """Show the events that a function could not handle, each with its reason and attempts (`-o json`: the history too)."""
    import anyio

    from nodeless.cli import events as body

    letters = anyio.run(partial(body.dead_letters, target, target.namespace_or_current, function))
    if output == Format.JSON:
        print_json(letters)
    else:
        print_rows(
            [each | {"died": short_time(each["died"])} for each in letters],
            DEAD_COLUMNS,
            empty=f"no dead letters of {function}",
        )


async def _print_each(rows: Any, columns: Mapping[str, int], output: Format, empty: str | None = None) -> None:
    """Print rows as they come, each on a line of its own; what is wrong with one stands at its end."""
    count = 0
    async with aclosing(rows) as opened:
        async for row in opened:
            count += 1
            if output == Format.JSON:
                print_line(row)
                continue
            if count == 1:
                _print_cells([column.upper() for column in columns], columns)
            wrong = [f"({on_one_line(row['invalid'])})"] if "invalid" in row else []
            _print_cells([_shown(column, row[column]) for column in columns] + wrong, columns)
    if not count and empty is not None:
        sys.stderr.write(empty + "\n")


def _print_cells(cells: list[str], columns: Mapping[str, int]) -> None:
    widths = [*columns.values(), 0]
    line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False))
    print(line.rstrip(), flush=True)


def _shown(column: str, value: object) -> str:
    if isinstance(value, str):
        return on_one_line(short_time(value) if column == "time" else value) or "-"
    import msgspec

    return on_one_line(msgspec.json.encode(value).decode())
