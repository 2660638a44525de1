"""What is deployed: the files of a PATH, the handlers in them, and the archive that holds them."""

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from bus.core.assignment import bundle_digest
from nodeless.packaging.archive import ARCHIVE_BYTES_MAX, File, archive_of
from nodeless.packaging.handlers import Declared, DeployError, declared_handlers, named_handler, only_handler
from nodeless.packaging.requirements import LOCK_NAME, vendored

IGNORED_FOLDERS = frozenset({"__pycache__", "node_modules", "venv", "env", "build", "dist"})
FILES_MAX = 10_000
"""More files than this are taken for a mistake (a home folder, a virtual environment)."""


class Bundle(Struct, frozen=True, kw_only=True):
    handlers: tuple[Declared, ...]
    archive: bytes
    digest: str
    """`sha256:` and 64 hex digits."""
    files: int
    packages: tuple[str, ...] = ()
    is_new_lock: bool = False


def bundle_of(path: Path, handler: str | None = None) -> Bundle:
    """Return the bundle of a file or a folder, with the handlers it declares or the one that is named.

    Raises `DeployError` where the path is missing, holds no handler, or makes an archive above `ARCHIVE_BYTES_MAX`.
    """
    if path.is_file():
        if path.suffix != ".py":
            raise DeployError(f"{path} is no Python file; expected a .py file or a folder")
        own: Mapping[str, File] = {path.name: File(path.read_bytes())}
        dependencies = None
    elif path.is_dir():
        own, dependencies = _files_of(path), vendored(path)
    else:
        raise DeployError(f"there is no {path}; expected a .py file or a folder")
    sources = {name: file.content for name, file in own.items()}
    if handler is not None:
        handlers = [named_handler(sources, handler)]
    else:
        handlers = declared_handlers(sources) or [only_handler(sources)]
    files = {**own, **(dependencies.files if dependencies else {})}
    archive = archive_of(files)
    if len(archive) > ARCHIVE_BYTES_MAX:
        largest = sorted(files, key=lambda name: -len(files[name].content))[:3]
        raise DeployError(
            f"the bundle of {path} takes {_mebibytes(len(archive))}, and {_mebibytes(ARCHIVE_BYTES_MAX)} is the limit; its largest files: "
            + ", ".join(f"{name} ({_mebibytes(len(files[name].content))})" for name in largest)
        )
    return Bundle(
        handlers=tuple(handlers),
        archive=archive,
        digest=bundle_digest(archive),
        files=len(files),
        packages=dependencies.packages if dependencies else (),
        is_new_lock=bool(dependencies and dependencies.is_new_lock),
    )


def _files_of(folder: Path) -> Mapping[str, File]:
    """Return the regular files of a folder; hidden ones, caches and virtual environments are left out."""
    found: dict[str, File] = {}
    pending = [folder]
    while pending:
        current = pending.pop()
        for entry in sorted(current.iterdir()):
            if entry.name.startswith(".") or entry.suffix == ".pyc" or entry.is_symlink():
                continue
            if entry.is_dir():
                if entry.name not in IGNORED_FOLDERS and not (entry / "pyvenv.cfg").exists():
                    pending.append(entry)
                continue
            if not entry.is_file() or (current == folder and entry.name == LOCK_NAME):
                continue
            found[entry.relative_to(folder).as_posix()] = File(entry.read_bytes(), bool(entry.stat().st_mode & 0o100))
            if len(found) > FILES_MAX:
                raise DeployError(
                    f"{folder} holds more than {FILES_MAX} files; deploy the folder of the function alone"
                )
    return found


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 1024 / 1024:.1f} MiB"
