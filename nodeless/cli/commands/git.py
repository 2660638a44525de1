"""`git install`, `git deliver`, `git status`: the bridge of one repository."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from nodeless.cli.errors import FAILED
from nodeless.cli.options import reaches
from nodeless.cli.output import Format, OutputOption, print_json, short_time
from nodeless.cli.target import Target

RepositoryArgument = Annotated[Path, typer.Argument(metavar="REPO", help="A bare repository, or a working tree.")]


def declare(app: typer.Typer) -> None:
    git = typer.Typer(help="Make pushes to a git repository into events.", no_args_is_help=True)
    git.command("install")(install)
    git.command("deliver")(deliver)
    git.command("status")(status)
    app.add_typer(git, name="git")


@reaches(bus=True)
def install(
    target: Target,
    repository: RepositoryArgument,
    owner: Annotated[str, typer.Option(help="Token of the subject that groups repositories.")] = "local",
    name: Annotated[str, typer.Option(help="Name in subjects; default the directory's, without .git.")] = "",
    output: OutputOption = Format.TABLE,
) -> None:
    """Put the post-receive hook into a repository. Doing it again brings it up to date."""
    from bus.ingress.git.install import install as body
    from bus.ingress.git.spool import BridgeSettings

    url, credentials = target.git_user
    settings = BridgeSettings(nats_url=url, nats_credentials=credentials, owner=owner, repository=name)
    installed = body(repository, settings)
    if output == Format.JSON:
        print_json(installed)
        return
    how = "installed" if installed.is_new else "brought up to date"
    called = ", which calls the bridge itself" if installed.is_chained else ""
    print(f"hook {how}: {installed.hook}{called}\npushes become events on {installed.subjects}")


def deliver(
    repository: RepositoryArgument,
    retry_failed: Annotated[bool, typer.Option(help="Try those again that the broker refused.")] = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """Publish now what waits in a repository's spool. Exit status 1 if something still waits."""
    from bus.ingress.git.deliver import deliver as body
    from bus.ingress.git.install import spool_status

    at_work = spool_status(repository).deliverer
    if at_work is not None:
        sys.stderr.write(f"process {at_work} is delivering already; waiting for it\n")
    delivered = body(repository, retry_failed=retry_failed)
    if output == Format.JSON:
        print_json(delivered)
    else:
        print(f"{delivered.events} event(s) of {delivered.pushes} push(es) delivered")
        if delivered.failed:
            print(f"{delivered.failed} push(es) refused; see `nodeless git status {repository}`")
        if delivered.waiting:
            print(f"{delivered.waiting} push(es) still wait: {delivered.reason}")
    if delivered.waiting or delivered.failed:
        raise typer.Exit(FAILED)


def status(repository: RepositoryArgument, output: OutputOption = Format.TABLE) -> None:
    """Show what waits to be delivered, what was refused, and what came last."""
    from bus.ingress.git.install import spool_status

    spool = spool_status(repository)
    if output == Format.JSON:
        print_json(spool)
        return
    since = f", the oldest since {short_time(spool.oldest_at)}" if spool.oldest_at else ""
    at_work = f"; process {spool.deliverer} is delivering" if spool.deliverer is not None else ""
    print(f"{spool.waiting} push(es) wait{since}{at_work}")
    for failed in spool.failed:
        print(f"refused: {failed.name}: {failed.reason}")
    if spool.last_delivered is not None:
        last = spool.last_delivered
        after = f"{last.latency_s * 1000:.0f} ms" if last.latency_s < 1 else f"{last.latency_s:.1f} s"
        print(f"last delivered: push {last.push} at {short_time(last.delivered_at)}, {after} after the push")
