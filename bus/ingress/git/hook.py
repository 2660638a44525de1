# pathlib would take half of this program's time.
# ruff: noqa: PTH100, PTH104, PTH105, PTH108, PTH110, PTH116, PTH123, PTH208
"""What `post-receive` runs: write the push into the spool, start the deliverer, let the pusher go.

It runs for every push while a person waits, so it uses the standard library's quick parts only and is started as
`python -I -S`: no site-packages, 15 ms in all. The work is done in a child without the pusher's streams, since git
waits until they are closed; the parent waits for the child's word that the push is on disk, but never longer than
`SPOOL_WAIT_S`. A slow disk then delays the event, not the push.

Exit status: 0, or 1 when the push could not be written; the shell around it (`install.py`) then keeps what git said
in `spool/raw`, which the next run takes in.
"""

import fcntl
import os
import select
import sys
import time

SPOOL_WAIT_S = 0.7
"""Longest time that a push waits for its spool. [seconds]"""
LOG_BYTES_MAX = 1024 * 1024
"""A larger log is put aside as `log.1` when a deliverer starts. [bytes]"""
ENTRY_DIGITS = 12

_PUSHERS = (b"GL_USERNAME", b"GL_USER", b"GITEA_PUSHER_NAME", b"REMOTE_USER", b"GIT_COMMITTER_NAME")
"""Where GitLab, gitolite, Gitea, and git's HTTP backend say who pushes, in the order in which they are believed."""


def main(directory: str) -> int:
    """Take in the push on standard input; `directory` is the bridge's own one inside the repository."""
    pushed_at_ns = time.time_ns()
    updates = sys.stdin.buffer.read()
    if not updates.strip():
        return 0
    directory = os.path.abspath(directory)
    reading, writing = os.pipe()
    if os.fork() == 0:
        _child(directory, updates, pushed_at_ns, writing)
    os.close(writing)
    if not select.select([reading], [], [], SPOOL_WAIT_S)[0]:
        sys.stderr.write(f"nodeless: warning: {directory} is slow; this push is announced when it is written there\n")
        return 0
    answer = os.read(reading, 1000).decode(errors="replace")
    if answer != "spooled":
        sys.stderr.write(f"nodeless: warning: {answer or 'the hook ended early'}\n")
        return 1
    return 0


def _child(directory: str, updates: bytes, pushed_at_ns: int, writing: int) -> None:
    """Write the push, say so, and become the deliverer; never returns."""
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.closerange(3, writing)
        os.closerange(writing + 1, 256)
        try:
            # The directory's mode says whether a group shares the repository.
            os.umask(0o777 & ~os.stat(directory).st_mode)
            spool_push(directory, pusher(), pushed_at_ns, updates)
        except Exception as error:
            _tell(writing, f"{type(error).__name__}: {error}".encode()[:1000])
            os._exit(1)
        _tell(writing, b"spooled")
        start_deliverer(directory)
    finally:
        os._exit(1)


def _tell(writing: int, text: bytes) -> None:
    try:  # noqa: SIM105  (contextlib takes 2 ms to import)
        os.write(writing, text)
    except BrokenPipeError:
        pass  # the parent has waited long enough and is gone
    os.close(writing)


def pusher() -> bytes:
    """Return who pushes, as well as it is known here."""
    for name in _PUSHERS:
        if value := os.environb.get(name, b"").strip():
            return b" ".join(value.split())[:200]
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name.encode()
    except KeyError:
        return str(os.getuid()).encode()


def spool_push(directory: str, who: bytes, pushed_at_ns: int, updates: bytes) -> None:
    """Return when the push is on disk, with what was left in `spool/raw` before it."""
    counter = os.open(f"{directory}/number", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        # Numbers are given and files put into place under one lock: whoever lists the spool never sees a push appear
        # before one that it has seen.
        fcntl.flock(counter, fcntl.LOCK_EX)
        _take_in_raw(directory, counter)
        _write_entry(directory, counter, b"pusher %s\ntime %d\n\n%s" % (who, pushed_at_ns, updates))
    finally:
        os.close(counter)


def take_in_raw(directory: str) -> None:
    """Give numbers to the pushes that the shell kept because this program could not run."""
    if not os.listdir(f"{directory}/spool/raw"):
        return
    counter = os.open(f"{directory}/number", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(counter, fcntl.LOCK_EX)
        _take_in_raw(directory, counter)
    finally:
        os.close(counter)


def _take_in_raw(directory: str, counter: int) -> None:
    raw = f"{directory}/spool/raw"
    files = [(os.stat(f"{raw}/{name}").st_mtime_ns, name) for name in os.listdir(raw) if not name.startswith(".")]
    for kept_at_ns, name in sorted(files):
        with open(f"{raw}/{name}", "rb") as file:
            content = file.read()
        _write_entry(directory, counter, b"time %d\n%s" % (kept_at_ns, content))
        os.unlink(f"{raw}/{name}")


def _write_entry(directory: str, counter: int, content: bytes) -> None:
    number = _next_number(directory, counter)
    spool = f"{directory}/spool"
    name = f"{number:0{ENTRY_DIGITS}d}-{os.urandom(8).hex()}"
    draft = os.open(f"{spool}/.{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(draft, view) :]
        os.fsync(draft)
    finally:
        os.close(draft)
    os.rename(f"{spool}/.{name}", f"{spool}/{name}")
    sync_directory(spool)


def _next_number(directory: str, counter: int) -> int:
    """Return a number above the counter and above all that wait: after a crash, the counter may be behind them."""
    text = os.pread(counter, 32, 0).strip()
    waiting = [name[:ENTRY_DIGITS] for name in os.listdir(f"{directory}/spool")]
    newest = max((int(number) for number in waiting if number.isdigit()), default=0)
    number = max(int(text) if text.isdigit() else 0, newest) + 1
    os.pwrite(counter, b"%0*d\n" % (ENTRY_DIGITS, number), 0)
    os.ftruncate(counter, ENTRY_DIGITS + 1)
    return number


def sync_directory(directory: str) -> None:
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def is_being_delivered(directory: str) -> bool:
    """Say whether a deliverer is at work. It lists the spool once more after it let go of its lock, so a push that
    was written before this question was asked is seen by it.
    """
    lock = os.open(f"{directory}/deliver.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def start_deliverer(directory: str) -> None:
    """Become the deliverer, unless one is at work. Git's variables would make it look at the pusher's world."""
    if is_being_delivered(directory):
        os._exit(0)
    log = f"{directory}/log"
    if os.path.exists(log) and os.stat(log).st_size > LOG_BYTES_MAX:
        os.replace(log, f"{log}.1")
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(written, 1)
    os.dup2(written, 2)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "PYTHON"))}
    arguments = [sys.executable, "-P", "-m", "bus.ingress.git", "deliver", "--spool", directory]
    os.execve(sys.executable, arguments, environment)  # noqa: S606  (a list of arguments, no shell)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
