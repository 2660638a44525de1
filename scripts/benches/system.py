"""A whole system in a directory of its own, for the time of one bench."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BenchError(Exception):
    pass


def nodeless(home: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["nodeless", *arguments, "--home", str(home)], capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode:
        raise BenchError(
            f"nodeless {' '.join(arguments)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


@contextmanager
def running_system() -> Iterator[Path]:
    """Bring a system up and yield its home directory; take it down and remove it afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="nodeless-bench-"))
    home = directory / "home"
    try:
        nodeless(home, "up", "--detach")
        yield home
    finally:
        if home.exists():
            nodeless(home, "down", "--purge")
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def deployed(home: Path, source: str) -> Iterator[None]:
    """Deploy one source file; its functions go with the system."""
    with tempfile.TemporaryDirectory(prefix="nodeless-bench-source-") as directory:
        path = Path(directory) / "app.py"
        path.write_text(source)
        nodeless(home, "deploy", str(path))
        yield
