"""From a bundle's digest to a callable: fetch, unpack, import.

Unpacked bundles lie in a directory that all workers of a node share, one folder for each digest. A folder appears
under its name only when it is complete (renamed into place), so that several workers may unpack at once.
"""

import importlib
import inspect
import io
import os
import shutil
import sys
import tarfile
import tempfile
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from workers.errors import FunctionUnusable

UNPACKED_BYTES_MAX = 1024 * 1024 * 1024
"""A bundle that unpacks to more is refused: a small archive may hold a very large file of zeros."""
SITE_PACKAGES = "site-packages"


def unpacked_path(bundles: Path, digest: str) -> Path:
    return bundles / digest.removeprefix("sha256:")


def unpack(archive: bytes, bundles: Path, digest: str) -> Path:
    """Unpack a bundle below `bundles` unless it is there, and return its folder; raise `FunctionUnusable` for no
    archive.
    """
    target = unpacked_path(bundles, digest)
    if target.is_dir():
        return target
    bundles.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=".unpack-", dir=bundles))
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as entries:
            members = entries.getmembers()
            if sum(member.size for member in members) > UNPACKED_BYTES_MAX:
                raise FunctionUnusable(f"the bundle unpacks to more than {UNPACKED_BYTES_MAX} bytes")
            # The filter refuses absolute paths, links out of the folder, devices.
            entries.extractall(directory, members, filter="data")
        directory.chmod(0o755)
        try:
            directory.rename(target)
        except OSError:
            if not target.is_dir():
                raise
        return target
    except (
        tarfile.TarError,
        OSError,
        EOFError,
        zlib.error,
        KeyError,
        ValueError,
    ) as error:  # `tarfile` lets all of them out
        raise FunctionUnusable(f"the bundle {digest} cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def load_handler(folder: Path, handler: str) -> Callable[..., Any]:
    """Import `module:callable` with the bundle's folder, and its vendored packages, first on the path.

    Raises `FunctionUnusable` with the traceback's last line where that fails, whatever the module does.
    """
    module_name, _, attribute = handler.partition(":")
    for path in (folder / SITE_PACKAGES, folder):
        if path.is_dir():
            sys.path.insert(0, str(path))
    importlib.invalidate_caches()
    os.chdir(folder)
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:  # a module may call sys.exit, or raise whatever it likes
        if isinstance(error, KeyboardInterrupt):
            raise
        last = traceback.format_exception_only(error)[-1].strip()
        raise FunctionUnusable(f"{module_name} cannot be imported: {last}", _without_our_frames(error)) from error
    if not _is_of(module, folder):
        raise FunctionUnusable(
            f"{module_name} is a module of the worker's own Python ({getattr(module, '__file__', 'built in')}); give yours another name"
        )
    found = getattr(module, attribute, None)
    if not callable(found):
        what = "is not callable" if found is not None else "does not exist"
        raise FunctionUnusable(f"{handler}: {attribute!r} {what} in {module_name}")
    made = _instance(handler, found) if isinstance(found, type) else found
    if any(inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each) for each in (made, _call_of(made))):
        raise FunctionUnusable(f"{handler} yields, and a handler returns its result: one value, or nothing")
    return made


def _call_of(made: object) -> object:
    return getattr(type(made), "__call__", None)  # noqa: B004 - the method itself is wanted


def _instance(handler: str, class_: type) -> Callable[..., Any]:
    """Return the one object of a handler that is a class; it is made once for each worker."""
    try:
        made = class_()
    except Exception as error:
        last = traceback.format_exception_only(error)[-1].strip()
        raise FunctionUnusable(f"{handler} cannot be made: {last}", _without_our_frames(error)) from error
    if not callable(made):
        raise FunctionUnusable(
            f"{handler}: its objects cannot be called; give the class a method `__call__(self, event)`"
        )
    return cast("Callable[..., Any]", made)


def _is_of(module: object, folder: Path) -> bool:
    origin = getattr(module, "__file__", None)
    paths = [origin] if origin else list(getattr(module, "__path__", []))
    return any(Path(path).is_relative_to(folder) for path in paths)


def _without_our_frames(error: BaseException) -> str:
    frames = error.__traceback__
    while frames is not None and (
        "importlib" in frames.tb_frame.f_code.co_filename or frames.tb_frame.f_code.co_filename == __file__
    ):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames or error.__traceback__))
