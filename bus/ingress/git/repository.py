"""Read a repository through git's plumbing, whose output no configuration changes; each call bounded in time and size.

The repository is named by `--git-dir`, so that git does not ask whether the caller owns it: who may read the spool
has been let in by the repository's owner.
"""

import os
import subprocess
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from bus.core.git import COMMIT_FORMAT, COMMITS_MAX, Commit, parse_commits, with_paths
from bus.ingress.git.errors import GitBridgeError

GIT_S = 20.0
"""Longest time for one git command; it is killed then, and the event goes without what it would have told. [seconds]"""
OUTPUT_BYTES_MAX = 8 * 1024 * 1024
"""More of a command's output is not read: a first commit may hold a million paths. [bytes]"""


class GitFailed(Exception):
    """Git could not answer: objects are missing, or it took too long."""


class Repository:
    def __init__(self, git_directory: Path) -> None:
        self.git_directory = git_directory

    def refs(self) -> dict[str, str]:
        """Return what each ref names."""
        output = self._git(["for-each-ref", "--format=%(objectname) %(refname)"])
        lines = output.decode(errors="backslashreplace").splitlines()
        return {ref: id_ for id_, _, ref in (line.partition(" ") for line in lines)}

    def commits(self, wanted: str, excluded: Iterable[str]) -> tuple[tuple[Commit, ...], int]:
        """Return the newest commits that `wanted` reaches and none of `excluded` does, newest first and with their
        changed paths, and how many there are in all.
        """
        range_ = "".join([f"{wanted}\n", *(f"^{id_}\n" for id_ in sorted(set(excluded)))]).encode()
        # Git reads its standard input where it meets `--stdin`, so what bears on that comes before.
        listed = ["--stdin", "--encoding=UTF-8", f"--max-count={COMMITS_MAX + 1}", f"--format={COMMIT_FORMAT}"]
        command = ["rev-list"]
        try:
            output = self._git([*command, *listed], range_)
        except GitFailed:
            # What a ref named before may be gone by now: pruned after a forced push.
            command.append("--ignore-missing")
            output = self._git([*command, *listed], range_)
        commits = parse_commits(output)
        total = len(commits)
        if total > COMMITS_MAX:
            total = int(self._git([*command, "--stdin", "--count"], range_))
        commits = commits[:COMMITS_MAX]
        if not commits:
            return (), total
        ids = "".join(f"{commit.id}\n" for commit in commits).encode()
        paths = self._git(["diff-tree", "--stdin", "-r", "--root", "-z", "--name-status", "--no-renames"], ids)
        return with_paths(commits, paths), total

    def is_ancestor(self, before: str, after: str) -> bool:
        """Say whether `after` contains `before`; it does not, where `before` is gone or is no commit."""
        try:
            self._git(["merge-base", "--is-ancestor", before, after])
        except GitFailed:
            return False
        return True

    def _git(self, arguments: list[str], given: bytes = b"") -> bytes:
        """Return at most `OUTPUT_BYTES_MAX` of what git writes. What is given must not be answered line by line with
        more than a pipe holds before all of it is read.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        try:
            process = subprocess.Popen(
                ["git", f"--git-dir={self.git_directory}", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment | {"LC_ALL": "C", "GIT_NO_LAZY_FETCH": "1"},
            )
        except OSError as error:
            raise GitBridgeError(f"git cannot be run: {error}") from error
        timer = threading.Timer(GIT_S, process.kill)
        timer.start()
        with process:
            assert process.stdin is not None and process.stdout is not None and process.stderr is not None
            try:
                with suppress(BrokenPipeError):
                    process.stdin.write(given)
                    process.stdin.close()
                output = process.stdout.read(OUTPUT_BYTES_MAX)
                if len(output) == OUTPUT_BYTES_MAX:
                    process.kill()
                    return output
                complaint = process.stderr.read(2000).decode(errors="replace").strip()
                status = process.wait()
            finally:
                timer.cancel()
                process.kill()
        if status:
            took = f" after {GIT_S:g} s" if status < 0 else ""
            raise GitFailed(f"git {arguments[0]} ended with status {status}{took}: {complaint}")
        return output
