"""Put the bridge into a repository: the hook, and the directory that it writes to. Doing it again brings both up to
date.
"""

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import msgspec
from msgspec import Struct

from bus.core.git import push_subject
from bus.core.subjects import check_subject
from bus.ingress.git import hook
from bus.ingress.git.errors import GitBridgeError
from bus.ingress.git.spool import DIRECTORY, BridgeSettings, Spool, SpoolStatus

_MARK = "Written by `nodeless git install`"

# In a directory of hooks that several repositories share, this one does nothing for those without a bridge.
_HOOK = f"""\
#!/bin/sh
# Tells the Nodeless bus what was pushed. {_MARK}, which may write it again.
bridge=${{GIT_DIR:-.}}/{DIRECTORY}/post-receive
[ -x "$bridge" ] || exit 0
exec "$bridge"
"""

_BRIDGE = f"""\
#!/bin/sh
# {_MARK}, which may write it again.
# Takes what git gives to post-receive. Never fails: the push has happened.
bridge=${{GIT_DIR:-.}}/{DIRECTORY}
case $bridge in /*) ;; *) bridge=$PWD/$bridge ;; esac
python=@python@
program=@program@
updates=$(cat)
[ -n "$updates" ] || exit 0
if [ -x "$python" ] && [ -r "$program" ]; then
    printf '%s\\n' "$updates" | "$python" -I -S "$program" "$bridge" && exit 0
fi
umask @umask@
name=$(date +%s).$$
if printf 'pusher %s\\n\\n%s\\n' "${{GL_USERNAME:-${{REMOTE_USER:-$(id -un)}}}}" "$updates" > "$bridge/spool/raw/.$name" &&
    mv "$bridge/spool/raw/.$name" "$bridge/spool/raw/$name"; then
    echo "nodeless: warning: $python cannot announce this push; it is kept. Run 'nodeless git install' again" >&2
else
    echo "nodeless: warning: this push is not announced: $bridge cannot be written" >&2
fi
exit 0
"""


class Installed(Struct, frozen=True, kw_only=True):
    git_directory: Path
    hook: Path
    subjects: str
    """Pattern of the repository's events."""
    is_new: bool
    """False where a bridge was there before and was brought up to date."""
    is_chained: bool
    """The repository's own post-receive hook calls the bridge."""


def install(repository: Path, settings: BridgeSettings, *, python: Path | None = None) -> Installed:
    """Make pushes to `repository` (a bare one, a `.git` directory, or a working tree) into events; `python` is the
    interpreter that has this package (default: this one).

    Raises `GitBridgeError` for what is no repository, and for a post-receive hook that is not ours and does not
    call the bridge.
    """
    git_directory, hooks = _locate(repository)
    spool = Spool(git_directory / DIRECTORY)
    is_new = not (spool.directory / "settings.json").exists()
    settings = _completed(settings, git_directory)
    check_subject(push_subject(settings.owner, settings.repository, "refs/heads/main"))
    spool.create()
    spool.save_settings(settings)
    bridge = spool.directory / "post-receive"
    _write_program(bridge, _bridge_text(python or Path(sys.executable), git_directory))
    target = hooks / "post-receive"
    is_chained = _install_hook(target, bridge)
    pattern = push_subject(settings.owner, settings.repository, "refs/heads/main").rsplit(".", 2)[0] + ".>"
    return Installed(git_directory=git_directory, hook=target, subjects=pattern, is_new=is_new, is_chained=is_chained)


def spool_status(repository: Path) -> SpoolStatus:
    """Say what waits, what failed and what came last. Raises `GitBridgeError` where there is no bridge."""
    return spool_of(repository).status()


def spool_of(repository: Path) -> Spool:
    return Spool(_locate(repository)[0] / DIRECTORY)


def _locate(repository: Path) -> tuple[Path, Path]:
    """Return the git directory, that of the main working tree where there are several, and the directory of its hooks."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    question = ["git", "rev-parse", "--path-format=absolute", "--git-common-dir", "--git-path", "hooks"]
    try:
        answer = subprocess.run(
            question, cwd=repository, env=environment, capture_output=True, text=True, timeout=20, check=False
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        if not repository.is_dir():
            raise GitBridgeError(f"{repository} is no directory; expected a git repository") from error
        raise GitBridgeError(f"git cannot be run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise GitBridgeError(f"git did not answer within {error.timeout:g} s in {repository}") from error
    if answer.returncode:
        reason = answer.stderr.strip().splitlines()[0] if answer.stderr.strip() else "git says so"
        raise GitBridgeError(f"{repository} is no git repository ({reason}); make one with `git init --bare`")
    git_directory, hooks = (Path(line) for line in answer.stdout.splitlines())
    inside = {repository.resolve(), (repository / ".git").resolve()}
    if git_directory.resolve() not in inside and not (repository / ".git").is_file():
        raise GitBridgeError(f"{repository} is only inside of the repository {git_directory}; name that one")
    return git_directory.resolve(), hooks


def _completed(settings: BridgeSettings, git_directory: Path) -> BridgeSettings:
    name = git_directory.parent.name if git_directory.name == ".git" else git_directory.name.removesuffix(".git")
    host = socket.gethostname()
    credentials = settings.nats_credentials
    if credentials is not None:
        credentials = str(Path(credentials).absolute())
        if not Path(credentials).is_file():
            raise GitBridgeError(f"the credentials file {credentials} is not there")
    return msgspec.structs.replace(
        settings,
        nats_credentials=credentials,
        repository=settings.repository or name,
        source=settings.source or f"git://{quote(host)}{quote(str(git_directory))}",
    )


def _bridge_text(python: Path, git_directory: Path) -> str:
    umask = 0o777 & ~git_directory.stat().st_mode
    return (
        _BRIDGE.replace("@python@", shlex.quote(str(python)))
        .replace("@program@", shlex.quote(str(Path(hook.__file__).resolve())))
        .replace("@umask@", f"{umask:03o}")
    )


def _install_hook(target: Path, bridge: Path) -> bool:
    """Return whether a hook that is not ours calls the bridge."""
    if target.exists() or target.is_symlink():
        try:
            text = target.read_text(errors="replace")
        except OSError as error:
            raise GitBridgeError(f"{target} exists and cannot be read: {error}") from error
        if str(bridge) in text or f"{DIRECTORY}/post-receive" in text:
            if _MARK not in text:
                return True
        else:
            raise GitBridgeError(
                f"{target} exists and is not ours. Let it call the bridge with what git gives it, for example by\n"
                f"    updates=$(cat); printf '%s\\n' \"$updates\" | {shlex.quote(str(bridge))}\n"
                "and install again, or move it away"
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    _write_program(target, _HOOK)
    return False


def _write_program(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.chmod(0o755)
    draft.replace(path)
