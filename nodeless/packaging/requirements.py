"""A function's requirements, resolved once, locked by hash, and installed into its bundle.

`requirements.txt` is what the author writes. Resolving it writes `requirements.lock` beside it, with exact versions and
hashes; as long as `requirements.txt` stays as it was, later deployments install exactly what the lock says, so the same
folder gives the same bundle. pip resolves and installs: it is on every machine that has Python, and takes wheels only here
(a source distribution would run its build on the machine of whoever deploys).
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from nodeless.packaging.archive import File
from nodeless.packaging.handlers import DeployError

SITE_PACKAGES = "site-packages"
"""Folder of the bundle that workers put on their path."""
LOCK_NAME = "requirements.lock"
_INSTALL_S_MAX = 600.0


class Vendored(Struct, frozen=True, kw_only=True):
    files: Mapping[str, File]
    """Paths relative to the bundle's root."""
    packages: tuple[str, ...]
    """`name==version`, sorted."""
    is_new_lock: bool


def vendored(folder: Path) -> Vendored | None:
    """Return what `folder/requirements.txt` asks for, installed; None where there is no such file or it asks for nothing.

    Writes `requirements.lock` into the folder when it is missing or of another `requirements.txt`.
    Raises `DeployError` with pip's own last words where something cannot be resolved or installed.
    """
    wanted = folder / "requirements.txt"
    if not wanted.is_file():
        return None
    text = wanted.read_bytes()
    if not any(line.split(b"#")[0].strip() for line in text.splitlines()):
        return None
    lock = folder / LOCK_NAME
    heading = f"# of requirements.txt with sha256 {hashlib.sha256(text).hexdigest()}"
    is_new = not (lock.is_file() and lock.read_text().splitlines()[:1] == [heading])
    if is_new:
        lock.write_text("\n".join([heading, *_resolved(wanted)]) + "\n")
    with tempfile.TemporaryDirectory(prefix="nodeless-vendor-") as directory:
        target = Path(directory)
        _pip(
            ["install", "--require-hashes", "--no-deps", "--no-compile", "--only-binary=:all:"],
            "-r",
            str(lock),
            "--target",
            directory,
        )
        files = {
            f"{SITE_PACKAGES}/{path.relative_to(target).as_posix()}": File(
                path.read_bytes(), bool(path.stat().st_mode & 0o100)
            )
            for path in sorted(target.rglob("*"))
            if path.is_file() and _is_kept(path.relative_to(target))
        }
    files[LOCK_NAME] = File(lock.read_bytes())
    packages = tuple(sorted(line.split(" ")[0] for line in lock.read_text().splitlines()[1:] if line))
    return Vendored(files=files, packages=packages, is_new_lock=is_new)


def _is_kept(path: Path) -> bool:
    """Leave out what differs between two installations of the same wheel: programs with an interpreter's path, and
    pip's own notes. RECORD names both and is of use to an uninstaller only."""
    if path.parts[0] == "bin" or "__pycache__" in path.parts:
        return False
    return not (
        path.parent.name.endswith(".dist-info") and path.name in {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
    )


def _resolved(wanted: Path) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="nodeless-resolve-") as directory:
        report = Path(directory) / "report.json"
        _pip(
            ["install", "--dry-run", "--ignore-installed", "--only-binary=:all:"],
            "-r",
            str(wanted),
            "--report",
            str(report),
        )
        lines = []
        for item in json.loads(report.read_bytes())["install"]:
            name, version = item["metadata"]["name"], item["metadata"]["version"]
            digest = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
            if digest is None:
                raise DeployError(
                    f"{wanted}: {name} does not come from an archive, so it cannot be locked by its hash; name a released version"
                )
            lines.append(f"{name.lower().replace('_', '-')}=={version} --hash=sha256:{digest}")
        return sorted(lines)


def _pip(command: list[str], *arguments: str) -> None:
    run = [sys.executable, "-m", "pip", *command, "--quiet", "--disable-pip-version-check", "--no-input", *arguments]
    try:
        done = subprocess.run(
            run, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_INSTALL_S_MAX, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DeployError(
            f"pip was not done after {_INSTALL_S_MAX:.0f} s; is the package index within reach?"
        ) from error
    if done.returncode:
        last = "\n  ".join(done.stderr.strip().splitlines()[-6:])
        raise DeployError(
            f"pip could not {command[0]} the requirements:\n  {last}\n(only wheels are taken; correct requirements.txt, or the network)"
        )
