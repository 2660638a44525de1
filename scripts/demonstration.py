"""The main job, as a user would do it: a git push runs a function on a node that is not there.

Brings a system up in a directory of its own, makes a bare repository with the hook, deploys the example, commits,
pushes, waits for the result, prints what happened when, and takes everything down. Exit status 0 only if the result
came from the worker pod.
"""

import argparse
import asyncio
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from bus.core.event import event_of
from bus.jetstream.connection import StoredMessage
from bus.jetstream.reading import read
from bus.jetstream.topology import consumer_state
from nodeless.cli.errors import INTERRUPTED
from nodeless.cli.events import lower_headers
from nodeless.cli.target import Target
from nodeless.embedded.controlplane.build import find_or_build
from nodeless.embedded.controlplane.errors import ControlPlaneError
from scripts.observe import Observer, epoch_s, observe

ROOT = Path(__file__).resolve().parent.parent
FUNCTION = "on-push"
RESULT_WAIT_S = 30.0
ACKNOWLEDGED_WAIT_S = 10.0

console = Console(highlight=False)


class DemonstrationError(Exception):
    pass


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command as a user would, show it, and return what it printed; raise `DemonstrationError` if it fails."""
    words = [str(word) for word in command]
    shown = shlex.join(word.replace(str(ROOT) + "/", "") for word in words)
    console.print(f"[bold]$ {shown}[/bold]", soft_wrap=True)
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    output = (done.stdout + done.stderr).strip()
    if output:
        console.print("  " + output.replace("\n", "\n  "), markup=False, style="dim", soft_wrap=True)
    if done.returncode:
        raise DemonstrationError(f"{words[0]} ended with status {done.returncode}")
    return done.stdout


def nodeless(home: Path, *arguments: str | Path) -> str:
    return run("nodeless", *arguments, "--home", home)


def make_repository(home: Path, directory: Path) -> Path:
    """Make a bare repository with our hook and a clone of it with one commit to push; return the clone."""
    bare, clone = directory / "shop.git", directory / "shop"
    run("git", "init", "--quiet", "--bare", "--initial-branch=main", bare)
    nodeless(home, "git", "install", bare)
    run("git", "clone", "--quiet", bare, clone)
    run("git", "-C", clone, "config", "user.name", "Ada")
    run("git", "-C", clone, "config", "user.email", "ada@shop.example")
    (clone / "README.md").write_text("# A shop\n")
    run("git", "-C", clone, "checkout", "--quiet", "-B", "main")
    run("git", "-C", clone, "add", "README.md")
    run("git", "-C", clone, "commit", "--quiet", "-m", "Open the shop")
    return clone


async def push_and_watch(target: Target, clone: Path) -> tuple[dict[str, float], StoredMessage, Observer]:
    """Push, wait for the result, and return when each step happened, in seconds since the push began."""
    async with observe(target, FUNCTION) as observer:
        events = read(observer.connection, "EVENTS", "events.git.push.>", start="new", follow=True)
        stored = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.5)  # let the reader's consumer be there before the push
        pushed_s = time.time()
        push = await asyncio.create_subprocess_exec("git", "-C", str(clone), "push", "--quiet", "origin", "main")
        message = await asyncio.wait_for(stored, RESULT_WAIT_S)
        event = event_of(
            message.subject,
            message.headers,
            message.data,
            stream="EVENTS",
            sequence=message.sequence,
            stored_at=message.stored_at,
        )
        result = await observer.result_of(event.digest, RESULT_WAIT_S)
        acknowledged_s = await acknowledged(observer, message.sequence)
        if await push.wait():
            raise DemonstrationError("git push failed")
        steps = observer.steps(epoch_s(message.stored_at), result)
        pod = observer.pods[lower_headers(result.headers)["nodeless-worker"]]
        headers = lower_headers(result.headers)
        timeline = {
            "pushed": pushed_s,
            "stored": steps["stored"],
            "woken": steps["woken"],
            "pod created": steps["created"],
            "bound": steps["bound"],
            "started": steps["forked"],
            "first pull": steps["pulled"],
            "handler done": epoch_s(headers["nodeless-finished-at"]),
            "acknowledged": acknowledged_s,
        }
        if pod.node != headers.get("nodeless-node"):
            raise DemonstrationError(
                f"the result says node {headers.get('nodeless-node')!r}, and the pod was bound to {pod.node!r}"
            )
        await events.aclose()
        return {name: moment_s - pushed_s for name, moment_s in timeline.items()}, result, observer


async def acknowledged(observer: Observer, sequence: int) -> float:
    """Return when the broker showed the event as acknowledged; it is asked about once a millisecond."""
    from bus.core.assignment import consumer_name

    name = consumer_name(observer.namespace, FUNCTION)
    deadline_s = time.monotonic() + ACKNOWLEDGED_WAIT_S
    while time.monotonic() < deadline_s:
        state = await consumer_state(observer.connection, "EVENTS", name)
        if state.ack_floor_sequence >= sequence and state.ack_pending == 0:
            return time.time()
        await asyncio.sleep(0.001)
    raise DemonstrationError(f"the event was not acknowledged within {ACKNOWLEDGED_WAIT_S:.0f} s")


def print_timeline(timeline: dict[str, float]) -> None:
    table = Table(title="What happened after the push", title_justify="left")
    table.add_column("step")
    table.add_column("ms since the push", justify="right")
    table.add_column("ms for this step", justify="right")
    before_s = 0.0
    for name, since_s in timeline.items():
        table.add_row(name, f"{since_s * 1000:.1f}", f"{(since_s - before_s) * 1000:.1f}")
        before_s = since_s
    console.print(table)


def print_result(result: StoredMessage) -> None:
    headers = lower_headers(result.headers)
    console.print(
        f"Result of [bold]{FUNCTION}[/bold] from pod {headers['nodeless-worker']} on node {headers['nodeless-node']}:"
    )
    console.print(msgspec.json.format(result.data, indent=2).decode(), markup=False)


def print_around(home: Path, clone: Path) -> None:
    console.print(
        f"""
The system goes on running. To look around:
  export PATH={ROOT}/.venv/bin:$PATH KUBECONFIG={home}/kubeconfig NODELESS_HOME={home}
  kubectl get functions,pods,nodes -o wide
  kubectl describe function {FUNCTION}
  nodeless status
  nodeless results {FUNCTION}
  (cd {clone} && git commit --allow-empty -m again && git push)
  nodeless logs {FUNCTION} -f
To take it down and remove its data:
  nodeless down --purge --home {home} && rm -r {home.parent}
""",
        markup=False,
        soft_wrap=True,
    )


def ended(error: BaseException) -> int:
    """Say why the demonstration ends, and return its exit status."""
    is_interrupt = isinstance(error, KeyboardInterrupt)
    why = "interrupted" if is_interrupt else str(error) or "no result in time"
    console.print(f"demo: {why}", style="red", markup=False, soft_wrap=True)
    return INTERRUPTED if is_interrupt else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", action="store_true", help="leave the system running and say how to look around")
    options = parser.parse_args()
    try:
        find_or_build()  # here, where its minutes are seen; the first `up` would be silent about them
    except (ControlPlaneError, KeyboardInterrupt) as error:
        return ended(error)
    directory = Path(tempfile.mkdtemp(prefix="nodeless-demo-"))
    home = directory / "home"
    started_s = time.monotonic()
    is_kept = False
    try:
        nodeless(home, "up", "--detach")
        nodeless(home, "deploy", ROOT / "examples" / FUNCTION)
        clone = make_repository(home, directory)
        console.print(f"[bold]$ git -C {clone} push origin main[/bold]", soft_wrap=True)
        target = Target.of_home(home)
        timeline, result, _ = asyncio.run(push_and_watch(target, clone))
        print_timeline(timeline)
        print_result(result)
        if options.keep:
            is_kept = True
            print_around(home, clone)
        return 0
    except KeyboardInterrupt as error:
        return ended(error)
    except (DemonstrationError, TimeoutError, subprocess.TimeoutExpired) as error:
        status = ended(error)
        for log in sorted((home / "logs").glob("*.log")):
            console.print(
                f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:]),
                markup=False,
                style="dim",
            )
        return status
    finally:
        if not is_kept:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave a system behind
            if home.exists():
                subprocess.run(
                    ["nodeless", "down", "--purge", "--home", str(home)], check=False, stdout=subprocess.DEVNULL
                )
            shutil.rmtree(directory, ignore_errors=True)
        console.print(f"demo: {time.monotonic() - started_s:.1f} s in all", style="dim")


if __name__ == "__main__":
    sys.exit(main())
