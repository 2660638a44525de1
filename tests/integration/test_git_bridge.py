"""A real `git push` into a real repository, through the hook and its detached deliverer, to a real broker."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.core.errors import NotAllowed
from bus.core.event import Event, event_of
from bus.ingress.git.deliver import Delivered, deliver
from bus.ingress.git.errors import GitBridgeError
from bus.ingress.git.install import install, spool_of, spool_status
from bus.ingress.git.spool import BridgeSettings
from bus.jetstream.connection import BusConfig, StoredMessage, open_connection
from bus.jetstream.reading import read
from tests.broker import Broker, running_broker

pytestmark = pytest.mark.integration

WAIT_S = 30.0


class Forge:
    """One bare repository with the bridge, and clones of it."""

    def __init__(self, directory: Path, broker: Broker) -> None:
        self.directory = directory
        self.broker = broker
        self.bare = directory / "shop.git"
        self.clone = directory / "shop"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GL_USERNAME": "ada",
        }
        self.git("init", "--quiet", "--bare", "--initial-branch=main", self.bare)
        self.git("init", "--quiet", "--initial-branch=main", self.clone)
        for name, value in (("name", "Ada"), ("email", "ada@shop.example")):
            self.git("config", f"user.{name}", value, cwd=self.clone)
        self.git("remote", "add", "origin", self.bare, cwd=self.clone)

    @property
    def settings(self) -> BridgeSettings:
        return BridgeSettings(
            nats_url=self.broker.url,
            nats_credentials=str(self.broker.credential_files()["git"]),
            source="git://test/shop",
        )

    def git(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return (done.stdout + done.stderr).strip()

    def commit(self, message: str, file: str = "file", content: str | None = None) -> str:
        (self.clone / file).write_text(message if content is None else content)
        self.git("add", "--all", cwd=self.clone)
        self.git("commit", "--quiet", "--message", message, cwd=self.clone)
        return self.git("rev-parse", "HEAD", cwd=self.clone)

    def push(self, *what: str) -> str:
        """Push and return what the pusher sees."""
        return self.git("push", "--quiet", "origin", *what, cwd=self.clone)

    def waiting(self) -> int:
        return spool_status(self.bare).waiting

    async def stored(self) -> list[StoredMessage]:
        """Return what is stored of this bridge, oldest first."""
        async with open_connection(self.broker.config("admin")) as connection:
            return [message async for message in read(connection, "EVENTS", "events.git.>")]

    async def pushed(self, count: int) -> list[dict[str, Any]]:
        """Wait until nothing waits and return the data of all events, of which there have to be so many."""
        await wait_until(lambda: spool_status(self.bare).waiting == 0)
        messages = await self.stored()
        assert len(messages) == count, [message.subject for message in messages]
        return [msgspec.json.decode(message.data) for message in messages]

    async def deliver(self, *, retry_failed: bool = False, give_up_s: float = 20.0) -> Delivered:
        """As `nodeless git deliver` does."""
        return await asyncio.to_thread(deliver, self.bare, give_up_s=give_up_s, retry_failed=retry_failed)

    def deliverers(self) -> list[int]:
        """Return the process ids of this spool's hooks and deliverers."""
        wanted = str(self.bare / "nodeless").encode()
        found = []
        for process in Path("/proc").iterdir():
            with suppress(OSError):
                arguments = (process / "cmdline").read_bytes().split(b"\0")
                if process.name.isdecimal() and wanted in map(os.path.normpath, arguments):
                    found.append(int(process.name))
        return found

    async def kill_deliverer(self, *, is_expected: bool = True) -> None:
        """kill -9 of whatever is at work on the spool, until nothing is."""
        if is_expected:
            await wait_until(lambda: bool(self.deliverers()))
        while pids := self.deliverers():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.02)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with running_broker(tmp_path / "nats") as running:
        yield running


@pytest.fixture
async def forge(tmp_path: Path, broker: Broker) -> AsyncIterator[Forge]:
    forge = Forge(tmp_path, broker)
    install(forge.bare, forge.settings)
    yield forge
    await forge.kill_deliverer(is_expected=False)


async def test_a_push_is_an_event_that_tells_what_was_pushed(forge: Forge) -> None:
    first = forge.commit("Open the shop", "README.md")
    second = forge.commit("Add prices\n\nwith a long explanation", "prices ü.txt")

    assert forge.push("main") == ""

    (push,) = await forge.pushed(1)
    (message,) = await forge.stored()
    event = event_of(
        message.subject,
        message.headers,
        message.data,
        stream="EVENTS",
        sequence=message.sequence,
        stored_at=message.stored_at,
    )
    assert event.subject == "events.git.push.local.shop.heads.main"
    assert (event.type, event.source, event.ce_subject) == (
        "dev.nodeless.git.push",
        "git://test/shop",
        "refs/heads/main",
    )
    assert event.time == push["pushed_at"]
    assert push["commits"][0]["author"] == {"name": "Ada", "email": "ada@shop.example"}
    assert [(commit["id"], commit["subject"], commit["added"]) for commit in push["commits"]] == [
        (first, "Open the shop", ["README.md"]),
        (second, "Add prices", ["prices ü.txt"]),
    ]
    expected = {
        "owner": "local", "repository": "shop", "path": str(forge.bare), "push": 1, "pusher": "ada",
        "ref": "refs/heads/main", "ref_type": "branch", "name": "main", "before": "0" * 40, "after": second,
        "created": True, "deleted": False, "forced": False, "commits_total": 2,
    }  # fmt: skip
    assert {name: push[name] for name in expected} == expected


async def test_each_updated_ref_of_a_push_is_an_event_of_its_own(forge: Forge) -> None:
    forge.commit("One")
    forge.push("main")
    two = forge.commit("Two")
    forge.git("tag", "--annotate", "--message", "first release", "v1.0", cwd=forge.clone)

    forge.push("main", "HEAD:refs/heads/feature/x.y%", "HEAD:refs/heads/größe", "v1.0")

    pushes = await forge.pushed(5)
    subjects = [message.subject.removeprefix("events.git.push.local.shop.") for message in await forge.stored()]
    assert subjects == [
        "heads.main", "heads.main", "heads.feature/x%2Ey%25", "heads.gr%C3%B6%C3%9Fe", "tags.v1%2E0",
    ]  # fmt: skip
    assert [push["push"] for push in pushes] == [1, 2, 2, 2, 2]
    # What is new on a branch is told on each branch that has it; the commit that main had is new on none.
    assert [[commit["id"] for commit in push["commits"]] for push in pushes[1:]] == [[two]] * 4


async def test_deleted_and_forced_updates_are_told_as_such(forge: Forge) -> None:
    forge.commit("One")
    lost = forge.commit("Two")
    forge.push("main", "main:topic", "main:refs/tags/v1")
    forge.git("reset", "--quiet", "--hard", "HEAD~1", cwd=forge.clone)
    kept = forge.commit("Another two", content="x")

    forge.push("--force", "main", ":topic", "main:refs/tags/v1")

    forced, deleted, moved = (await forge.pushed(6))[3:]
    assert (forced["forced"], forced["before"], forced["after"]) == (True, lost, kept)
    assert [commit["id"] for commit in forced["commits"]] == [kept]
    assert (deleted["deleted"], deleted["after"], deleted["commits"], deleted["forced"]) == (True, "0" * 40, [], False)
    assert (moved["ref_type"], moved["forced"], moved["created"]) == ("tag", True, False)


async def test_what_was_pruned_since_then_does_not_stop_the_event(forge: Forge, broker: Broker) -> None:
    forge.commit("One")
    forge.commit("Two")
    forge.push("main")
    await forge.pushed(1)
    broker.kill()
    forge.git("reset", "--quiet", "--hard", "HEAD~1", cwd=forge.clone)
    third = forge.commit("Three", content="x")
    forge.push("--force", "main")
    forge.git(f"--git-dir={forge.bare}", "gc", "--quiet", "--prune=now")
    await broker.start()

    await forge.deliver()

    (_, forced) = await forge.pushed(2)
    assert forced["forced"]
    assert third in [commit["id"] for commit in forced["commits"]]


async def test_while_the_broker_is_away_pushes_succeed_wait_and_are_delivered_in_order_and_once(
    forge: Forge, broker: Broker
) -> None:
    broker.kill()
    for number in range(5):
        forge.commit(f"Commit {number}")
        assert forge.push("main", f"main:refs/heads/b{number}") == ""
    assert forge.waiting() == 5
    await broker.start()

    pushes = await forge.pushed(10)

    assert [push["push"] for push in pushes] == [number for number in range(1, 6) for _ in range(2)]
    mains = [push for push in pushes if push["name"] == "main"]
    assert [push["before"] for push in mains[1:]] == [push["after"] for push in mains[:-1]]
    # Branches that came later hide nothing of those that came before.
    assert [len(push["commits"]) for push in pushes] == [1] * 10


async def test_a_broker_killed_in_the_middle_of_a_push_gets_all_of_it_once(forge: Forge, broker: Broker) -> None:
    refs = await push_many_refs(forge, 150)
    async with open_connection(broker.config("admin")) as connection:
        messages = read(connection, "EVENTS", "events.git.>", follow=True)
        for _ in range(10):
            await anext(messages)
        await messages.aclose()

    await broker.restart()

    assert [push["ref"] for push in await forge.pushed(150)] == refs


async def test_a_deliverer_killed_in_the_middle_is_revived_by_the_next_push(forge: Forge, broker: Broker) -> None:
    refs = await push_many_refs(forge, 150)
    async with open_connection(broker.config("admin")) as connection:
        messages = read(connection, "EVENTS", "events.git.>", follow=True)
        for _ in range(10):
            await anext(messages)
        await messages.aclose()
    await forge.kill_deliverer()
    assert len(await forge.stored()) < 150

    forge.push("main:refs/heads/last")

    assert [push["ref"] for push in await forge.pushed(151)] == [*refs, "refs/heads/last"]


async def push_many_refs(forge: Forge, count: int) -> list[str]:
    forge.commit("One")
    refs = [f"refs/heads/b{number:03d}" for number in range(count)]
    forge.push(*(f"main:{ref}" for ref in refs))
    return refs


async def test_pushes_at_the_same_time_are_all_told(forge: Forge) -> None:
    forge.commit("One")
    forge.push("main")
    pushing = [
        await asyncio.create_subprocess_exec(
            "git", "push", "--quiet", "origin", f"main:refs/heads/p{number}", cwd=forge.clone, env=forge.environment
        )
        for number in range(8)
    ]

    assert [await process.wait() for process in pushing] == [0] * 8

    pushes = await forge.pushed(9)
    assert {push["ref"] for push in pushes[1:]} == {f"refs/heads/p{number}" for number in range(8)}
    assert [push["push"] for push in pushes] == list(range(1, 10))


async def test_an_event_whose_confirmation_was_lost_is_not_stored_again_after_the_brokers_memory_of_it(
    forge: Forge, broker: Broker
) -> None:
    forge.commit("One")
    broker.kill()
    forge.push("main")
    spool = spool_of(forge.bare)
    (name,) = spool.waiting()
    await forge.kill_deliverer()
    entry = forge.bare / "nodeless/spool" / name
    old_ns = time.time_ns() - 3600 * 1_000_000_000
    content = entry.read_text().split("\n")
    content[1] = f"time {old_ns}"
    entry.write_text("\n".join(content))
    await broker.start()
    async with open_connection(broker.config("admin")) as admin:
        config = (await admin.api("STREAM.INFO.EVENTS"))["config"]
        await admin.api("STREAM.UPDATE.EVENTS", config | {"duplicate_window": 100_000_000})
    saved = entry.read_bytes()
    assert (await forge.deliver()).events == 1
    await asyncio.sleep(0.5)  # the broker's memory of the id is over

    entry.write_bytes(saved)  # as if the deliverer had been killed before it took note
    again = await forge.deliver()

    assert (again.events, again.pushes, again.waiting) == (1, 1, 0)
    await forge.pushed(1)


async def test_a_push_that_can_never_be_stored_is_put_aside_with_the_reason_and_stops_nothing(
    forge: Forge, broker: Broker
) -> None:
    broker.kill()
    forge.commit("One")
    forge.push("main")
    forge.push("main:refs/heads/next")
    await forge.kill_deliverer()
    spool = spool_of(forge.bare)
    first, second = spool.waiting()
    (forge.bare / "nodeless/spool" / first).write_text("pusher ada\ntime 1\n\nnonsense\n")
    await broker.start()

    delivered = await forge.deliver()

    assert (delivered.events, delivered.failed, delivered.waiting) == (1, 1, 0)
    (failed,) = spool_status(forge.bare).failed
    assert failed.name == first
    assert "nonsense" in failed.reason
    assert [push["ref"] for push in await forge.pushed(1)] == ["refs/heads/next"]
    assert second not in spool.waiting()


async def test_refs_that_the_broker_refuses_are_put_aside_alone_and_can_be_tried_again(
    forge: Forge, broker: Broker
) -> None:
    async with open_connection(broker.config("admin")) as admin:
        config = (await admin.api("STREAM.INFO.EVENTS"))["config"]
        await admin.api("STREAM.UPDATE.EVENTS", config | {"max_msg_size": 2500})
    forge.commit("One")
    forge.push("main")
    forge.commit("Large " + "x" * 400, content="1")
    for number in range(6):
        forge.commit(f"Large {number} " + "x" * 400)

    forge.push("main:refs/heads/small", "main:large", "main~7:refs/heads/old")

    await wait_until(lambda: len(spool_status(forge.bare).failed) == 1)
    (failed,) = spool_status(forge.bare).failed
    assert "refs/heads/large" in failed.reason
    assert "refs/heads/old" not in failed.reason
    assert [push["ref"] for push in await forge.pushed(2)] == ["refs/heads/main", "refs/heads/old"]

    async with open_connection(broker.config("admin")) as admin:
        await admin.api("STREAM.UPDATE.EVENTS", config)
    delivered = await forge.deliver(retry_failed=True)

    assert (delivered.failed, delivered.pushes) == (0, 1)
    assert {push["ref"] for push in await forge.pushed(4)} >= {"refs/heads/large", "refs/heads/small"}


async def test_deliver_gives_up_in_time_says_why_and_keeps_what_waits(forge: Forge, broker: Broker) -> None:
    broker.kill()
    forge.commit("One")
    forge.push("main")
    await forge.kill_deliverer()

    delivered = await forge.deliver(give_up_s=0.5)

    assert (delivered.events, delivered.waiting) == (0, 1)
    assert "no answer from NATS" in delivered.reason
    assert forge.waiting() == 1


async def test_a_push_is_not_held_up_by_a_slow_spool_and_is_told_later(forge: Forge) -> None:
    forge.commit("One")
    with (forge.bare / "nodeless/number").open("w") as counter:
        fcntl.flock(counter, fcntl.LOCK_EX)
        seen = forge.push("main")
        assert "is slow" in seen
        assert forge.waiting() == 0

    await wait_until(lambda: spool_status(forge.bare).last_delivered is not None)

    (push,) = await forge.pushed(1)
    assert push["ref"] == "refs/heads/main"


async def test_without_its_interpreter_the_hook_warns_and_keeps_the_push_for_later(forge: Forge) -> None:
    install(forge.bare, forge.settings, python=Path("/nonexistent/python"))
    forge.commit("One")
    seen = forge.push("main")
    assert seen.count("\n") == 0
    assert "/nonexistent/python cannot announce this push; it is kept" in seen
    install(forge.bare, forge.settings)
    forge.commit("Two")

    forge.push("main")

    pushes = await forge.pushed(2)
    assert [push["commits"][0]["subject"] for push in pushes] == ["One", "Two"]
    assert pushes[0]["pusher"] == "ada"


async def test_an_interpreter_that_breaks_costs_no_push_and_deliver_takes_it_in(forge: Forge) -> None:
    broken = forge.directory / "python"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    install(forge.bare, forge.settings, python=broken)
    forge.commit("One")
    assert "it is kept" in forge.push("main")

    delivered = await forge.deliver()

    assert (delivered.events, delivered.pushes) == (1, 1)
    await forge.pushed(1)


async def test_a_push_goes_through_even_if_the_spool_is_gone(forge: Forge) -> None:
    for directory in ("spool/raw", "spool/failed", "spool"):
        (forge.bare / "nodeless" / directory).rmdir()
    forge.commit("One")

    seen = forge.push("main")

    assert "is not announced" in seen
    assert forge.git(f"--git-dir={forge.bare}", "rev-parse", "main") == forge.git("rev-parse", "HEAD", cwd=forge.clone)


async def test_two_deliverers_never_work_on_one_spool(forge: Forge) -> None:
    spool = spool_of(forge.bare)
    with spool.delivering() as is_ours:
        assert is_ours
        forge.commit("One")
        forge.push("main")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bus.ingress.git", "deliver", "--spool", str(spool.directory)
        )
        assert await process.wait() == 0
        assert forge.waiting() == 1
        assert not await forge.stored()

    delivered = await forge.deliver()

    assert (delivered.events, delivered.waiting) == (1, 0)


def test_a_hook_of_somebody_else_is_left_alone_until_it_calls_the_bridge(tmp_path: Path) -> None:
    bare = tmp_path / "shop.git"
    subprocess.run(["git", "init", "--quiet", "--bare", bare], check=True)
    hook = bare / "hooks/post-receive"
    theirs = "#!/bin/sh\necho theirs\n"
    hook.write_text(theirs)

    with pytest.raises(GitBridgeError, match="not ours") as refusal:
        install(bare, BridgeSettings(nats_url="nats://127.0.0.1:1"))

    assert hook.read_text() == theirs
    line = next(line.strip() for line in str(refusal.value).splitlines() if "updates=$(cat)" in line)
    hook.write_text(f"{theirs}{line}\n")
    assert install(bare, BridgeSettings(nats_url="nats://127.0.0.1:1")).is_chained
    assert hook.read_text() == f"{theirs}{line}\n"


async def test_a_hook_of_somebody_else_that_calls_the_bridge_tells_pushes(tmp_path: Path, broker: Broker) -> None:
    forge = Forge(tmp_path, broker)
    hook = forge.bare / "hooks/post-receive"
    hook.write_text("#!/bin/sh\necho theirs >&2\n")
    hook.chmod(0o755)
    with pytest.raises(GitBridgeError) as refusal:
        install(forge.bare, forge.settings)
    line = next(line.strip() for line in str(refusal.value).splitlines() if "updates=$(cat)" in line)
    hook.write_text(hook.read_text() + line + "\n")
    install(forge.bare, forge.settings)
    forge.commit("One")

    seen = forge.push("main")

    assert "theirs" in seen
    await forge.pushed(1)


async def test_the_hook_goes_where_the_repository_looks_for_hooks(tmp_path: Path, broker: Broker) -> None:
    forge = Forge(tmp_path, broker)
    hooks = tmp_path / "shared hooks"
    forge.git(f"--git-dir={forge.bare}", "config", "core.hooksPath", hooks)

    installed = install(forge.bare, forge.settings)

    assert installed.hook == hooks / "post-receive"
    assert not (forge.bare / "hooks/post-receive").exists()
    forge.commit("One")
    assert forge.push("main") == ""
    await forge.pushed(1)


async def test_a_hook_that_repositories_share_does_nothing_for_those_without_a_bridge(
    tmp_path: Path, broker: Broker
) -> None:
    forge = Forge(tmp_path, broker)
    other = Forge(tmp_path / "other", broker)
    for each in (forge, other):
        each.git(f"--git-dir={each.bare}", "config", "core.hooksPath", tmp_path / "hooks")
    install(forge.bare, forge.settings)
    other.commit("One")

    assert other.push("main") == ""
    assert not (other.bare / "nodeless").exists()


async def test_a_moved_repository_goes_on(forge: Forge) -> None:
    moved = forge.directory / "moved.git"
    forge.bare.rename(moved)
    forge.bare = moved
    forge.git("remote", "set-url", "origin", moved, cwd=forge.clone)
    forge.commit("One")

    forge.push("main")

    (push,) = await forge.pushed(1)
    assert push["path"] == str(moved)
    assert push["repository"] == "shop"


async def test_a_working_tree_can_have_a_bridge_too(tmp_path: Path, broker: Broker) -> None:
    forge = Forge(tmp_path, broker)
    tree = tmp_path / "tree"
    forge.git("init", "--quiet", "--initial-branch=trunk", tree)
    installed = install(tree, forge.settings)
    forge.bare = tree / ".git"
    forge.git("remote", "set-url", "origin", tree, cwd=forge.clone)
    forge.commit("One")

    forge.push("main")

    assert installed.subjects == "events.git.push.local.tree.>"
    (push,) = await forge.pushed(1)
    assert push["repository"] == "tree"


def test_installing_again_brings_the_bridge_up_to_date(tmp_path: Path) -> None:
    bare = tmp_path / "shop.git"
    subprocess.run(["git", "init", "--quiet", "--bare", bare], check=True)

    first = install(bare, BridgeSettings(nats_url="nats://one:4222"))
    second = install(bare, BridgeSettings(nats_url="nats://two:4222", owner="acme", repository="store"))

    assert (first.is_new, second.is_new) == (True, False)
    assert first.subjects == "events.git.push.local.shop.>"
    assert second.subjects == "events.git.push.acme.store.>"
    assert spool_of(bare).settings().nats_url == "nats://two:4222"


def test_what_is_no_repository_is_refused_with_what_to_do(tmp_path: Path) -> None:
    settings = BridgeSettings(nats_url="nats://127.0.0.1:1")
    (tmp_path / "plain").mkdir()
    tree = tmp_path / "tree"
    subprocess.run(["git", "init", "--quiet", tree], check=True)
    (tree / "inside").mkdir()
    missing = msgspec.structs.replace(settings, nats_credentials=str(tmp_path / "no.creds"))

    with pytest.raises(GitBridgeError, match="no directory"):
        install(tmp_path / "nothing", settings)
    with pytest.raises(GitBridgeError, match="git init --bare"):
        install(tmp_path / "plain", settings)
    with pytest.raises(GitBridgeError, match="only inside"):
        install(tree / "inside", settings)
    with pytest.raises(GitBridgeError, match="credentials"):
        install(tree, missing)
    with pytest.raises(GitBridgeError, match="nodeless git install"):
        spool_status(tree)


async def test_the_git_user_can_publish_what_was_pushed_and_nothing_else(broker: Broker) -> None:
    config: BusConfig = broker.config("git")
    async with open_connection(config) as connection:
        await connection.publish(Event(subject="events.git.push.a.b.heads.c", id="1", source="s", type="t"))
        with pytest.raises(NotAllowed):
            await connection.publish(Event(subject="events.orders", id="2", source="s", type="t"))


def test_the_deliverer_says_how_it_is_used_and_what_is_not_there(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bus.ingress.git", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30)

    shown, wrong, nowhere = run("--help"), run("deliver"), run("deliver", "--spool", str(tmp_path / "nodeless"))

    assert (shown.returncode, wrong.returncode, nowhere.returncode) == (0, 2, 2)
    assert shown.stdout == wrong.stderr
    assert "run `nodeless git install` on it" in nowhere.stderr
    assert nowhere.stderr.count("\n") == 1
