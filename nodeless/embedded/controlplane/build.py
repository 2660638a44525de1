"""Find the control plane's programs, or build them from the Go module beside this file.

Order: a directory given by the user or by KUBEBUILDER_ASSETS; the user's cache, under the hash of the module's sources;
a build. A build can be interrupted at any moment: what is compiled stays in Go's own cache, and the binary appears
under its name only when it is whole. Two builds at once wait for each other.
"""

import os
import platform
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, NamedTuple, cast

from nodeless.embedded.controlplane.binaries import BINARY_NAME, Binaries, given_binaries, one_binary
from nodeless.embedded.controlplane.components import PROGRAMS
from nodeless.embedded.controlplane.errors import BuildFailed
from nodeless.embedded.controlplane.estimate import BuildEstimate, Package, rounded_time
from nodeless.embedded.controlplane.progress import Progress, shown_progress
from nodeless.embedded.controlplane.toolchain import (
    cache_directory,
    find_go,
    go_environment,
    locked,
    needed_version,
)
from nodeless.embedded.tether import tethered

MODULE = Path(__file__).resolve().parent / "module"
TICK_S = 0.5
INTERRUPTED_WITHIN_S = 5.0
"""Go removes its work directory when interrupted; after this it is killed."""
LINES_KEPT = 20
LIST_FORMAT = '{{.ImportPath}}\t{{.Stale}}\t{{.Dir}}\t{{join .GoFiles ","}}'


def find_or_build(
    progress: Progress | None = None, *, assets: Path | None = None, needed: Sequence[str] = PROGRAMS
) -> Binaries:
    """Return the programs named in `needed`, building them if they are nowhere: minutes, once per user and version.

    Without `progress` a build shows itself on standard error. Blocks; Ctrl-C interrupts it, and the next call goes on
    from there. Raises `ProgramMissing`, `ToolchainMissing`, `BuildFailed`.
    """
    given = given_binaries(assets, os.environ, needed)
    if given is not None:
        return given
    binary = cached_binary()
    if binary.is_file():
        return one_binary(binary)
    if progress is not None:
        build(binary, progress)
    else:
        with shown_progress() as shown:
            build(binary, shown)
    return one_binary(binary)


def link_flags(go_mod: str) -> str:
    """Return the linker's flags: no symbol tables, and the version that the API server tells (clients parse it)."""
    found = re.search(r"^\s*k8s\.io/kubernetes (v(\d+)\.(\d+)\.\S+)$", go_mod, re.MULTILINE)
    if not found:
        return "-s -w"
    package = "k8s.io/component-base/version"
    version = {"gitVersion": found[1], "gitMajor": found[2], "gitMinor": found[3]}
    return " ".join(["-s -w", *(f"-X {package}.{name}={value}" for name, value in version.items())])


def module_digest(module: Path = MODULE) -> str:
    """Return 32 hex digits over all that decides what the binary is: sources, pinned modules, flags, this machine."""
    digest = sha256()
    for path in sorted([module / "go.mod", module / "go.sum", *module.glob("*.go")]):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    digest.update(f"{link_flags((module / 'go.mod').read_text())}\n{platform.machine()}".encode())
    return digest.hexdigest()[:32]


def cached_binary() -> Path:
    """Return where the binary of this version lies once it is built."""
    return cache_directory() / "controlplane" / module_digest() / BINARY_NAME


def build(binary: Path, progress: Progress, module: Path = MODULE) -> None:
    """Make `binary` from `module`, in one step at the end; if another process has made it meanwhile, that is the same."""
    entry = binary.parent
    with locked(entry.with_suffix(".lock"), progress, "control plane: another build is running"):
        if binary.is_file():
            return
        go_mod = (module / "go.mod").read_text()
        go = find_go(needed_version(go_mod), progress)
        work = entry / "work"
        shutil.rmtree(work, ignore_errors=True)  # of a build that was killed
        work.mkdir(parents=True)
        try:
            started_s = time.monotonic()
            runner = _Go(go, module, work, link_flags(go_mod))
            packages = _packages(runner, progress)
            made = _compiled(runner, packages, progress)
            made.replace(binary)
            progress.note(f"control plane built in {rounded_time(time.monotonic() - started_s)}: {binary}")
        finally:
            shutil.rmtree(work, ignore_errors=True)


class _Go(NamedTuple):
    """The toolchain at work on one module."""

    go: Path
    module: Path
    work: Path
    """Where it keeps what is unfinished."""
    link: str

    def command(self, verb: str, *arguments: str) -> tuple[str, ...]:
        flags = ("-trimpath", "-buildvcs=false", "-mod=readonly", f"-ldflags={self.link}")
        return (str(self.go), verb, *flags, *arguments, ".")


def _packages(runner: _Go, progress: Progress) -> list[Package]:
    """Return every package of the build; fetches the modules that are not on this machine yet."""
    sums = runner.module / "go.sum"
    lines = sums.read_text().splitlines() if sums.exists() else []
    modules = sum(1 for line in lines if "/go.mod h1:" not in line) or 1
    fetched = 0
    progress.update("control plane: reading its packages", None)

    def on_line(line: str) -> None:
        nonlocal fetched
        if line.startswith("go: downloading "):
            fetched += 1
            # Not all of go.sum is for this platform, so this may end before 100 %.
            progress.update(
                "control plane: fetching Go modules", min(fetched / modules, 0.99), f"{fetched} of about {modules}"
            )

    listing = runner.work / "packages"
    with listing.open("w") as output:
        _run(runner, runner.command("list", "-deps", f"-f={LIST_FORMAT}"), on_line, lambda: None, output.fileno())
    packages = []
    for line in listing.read_text().splitlines():
        path, is_stale, directory, files = line.split("\t")
        sizes = ((Path(directory) / name).stat().st_size for name in files.split(",") if name)
        packages.append(Package(path, is_stale == "false", sum(sizes)))
    return packages


def _compiled(runner: _Go, packages: Sequence[Package], progress: Progress) -> Path:
    """Return the new binary, on disk, still under a name of its own."""
    made = runner.work / BINARY_NAME
    estimate = BuildEstimate(packages, jobs=os.cpu_count() or 1)
    started_s = time.monotonic()

    def show() -> None:
        if estimate.is_linking:
            progress.update("control plane: linking", estimate.fraction, "about 10 s")
            return
        remaining_s = estimate.remaining_s(time.monotonic() - started_s)
        detail = f"{estimate.begun} of {estimate.packages} packages"
        if remaining_s is not None:
            detail += f", about {rounded_time(remaining_s)} left"
        progress.update("control plane: compiling", estimate.fraction, detail)

    show()
    _run(runner, runner.command("build", "-v", f"-o={made}"), estimate.see, show, subprocess.DEVNULL)
    with made.open("rb") as file:
        os.fsync(file.fileno())
    return made


def _run(
    runner: _Go, command: Sequence[str], on_line: Callable[[str], None], on_tick: Callable[[], None], output: int
) -> None:
    """Run Go in the module; every line it says goes to `on_line`, and every `TICK_S` seconds comes `on_tick`."""
    last: deque[str] = deque(maxlen=LINES_KEPT)
    with _started(runner, command, output) as process, cast("IO[bytes]", process.stderr) as errors:
        for line in _lines(errors.fileno(), on_tick):
            last.append(line)
            on_line(line)
        status = process.wait()
    if status:
        raise BuildFailed(" ".join(command[:3]), status, "\n".join(last))


@contextmanager
def _started(runner: _Go, command: Sequence[str], output: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        tethered(command),
        cwd=runner.module,
        env=go_environment() | {"GOTMPDIR": str(runner.work)},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that the compilers can be interrupted with it
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(INTERRUPTED_WITHIN_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _lines(descriptor: int, on_tick: Callable[[], None]) -> Iterator[str]:
    """Yield the lines that arrive at `descriptor` until its end."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            on_tick()
            if not selector.select(TICK_S):
                continue
            data = os.read(descriptor, 65_536)
            if not data:
                break
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")
