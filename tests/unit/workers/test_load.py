"""Bundles that are none, bundles that two workers unpack at once, and modules that do what they like."""

import gzip
import io
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

import workers.runtime  # noqa: F401 - what a worker has imported by the time it loads its handler
from workers.errors import FunctionUnusable
from workers.load import load_handler, unpack

DIGEST = "sha256:" + "a" * 64


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as entries:
        for member, data in members:
            member.size = len(data)
            entries.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def file(name: str, data: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), data


def link(name: str, to: str, type_: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = type_, to
    return member, b""


WHOLE = archive(file("app.py", b"def handle(event):\n    return 1\n" * 2000))
LARGE = archive(file("data", bytes(Random(1).choices(b"abcdefgh ", k=100_000))))


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no archive at all",
        WHOLE[: len(WHOLE) // 2],
        gzip.compress(b"no archive either" * 100),
        archive(file("../outside")),
        archive(link("out", "../../etc", tarfile.SYMTYPE), file("out/passwd")),
        archive(link("hard", "nowhere", tarfile.LNKTYPE)),
        archive(link("pipe", "", tarfile.FIFOTYPE)),
        archive(file("a"), file("a/b")),
        archive(file("n" * 300)),
    ],
    ids=[
        "empty",
        "text",
        "half",
        "no tar",
        "outside",
        "link outside",
        "hard link",
        "pipe",
        "file as folder",
        "long name",
    ],
)
def test_what_does_not_unpack_is_an_unusable_function_and_leaves_nothing(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(FunctionUnusable, match=DIGEST):
        unpack(data, tmp_path, DIGEST)

    assert list(tmp_path.iterdir()) == []


def test_wherever_a_bundle_is_damaged_nothing_worse_is_raised(tmp_path: Path) -> None:
    refused = 0
    for at in range(12, len(LARGE), 211):
        try:
            unpack(damaged(LARGE, at), tmp_path / str(at), DIGEST)
        except FunctionUnusable:
            refused += 1
            assert list((tmp_path / str(at)).iterdir()) == []

    assert refused


def test_workers_that_unpack_the_same_bundle_at_once_all_get_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        folders = set(threads.map(lambda _: unpack(WHOLE, tmp_path, DIGEST), range(32)))

    assert folders == {tmp_path / ("a" * 64)}
    assert list(tmp_path.iterdir()) == [*folders]


@pytest.fixture
def imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What a worker does to its own interpreter is undone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.usefixtures("imports")
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import asyncio\nraise asyncio.CancelledError", "CancelledError"),
        ("def handle(event:", "SyntaxError"),
        ("", "'handle' does not exist"),
        ("handle = 7", "'handle' is not callable"),
        ("class handle: ...", "its objects cannot be called"),
        ("class handle:\n    def __init__(self): raise OSError('no database')", "OSError: no database"),
        ("async def handle(event):\n    yield 1", "yields"),
        ("class handle:\n    def __call__(self, event):\n        yield 1", "yields"),
    ],
)
def test_a_module_that_cannot_be_used_is_told_with_its_last_line(source: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "unusable_module.py").write_text(source)

    with pytest.raises(FunctionUnusable) as raised:
        load_handler(tmp_path, "unusable_module:handle")

    assert said in raised.value.reason


@pytest.mark.usefixtures("imports")
@pytest.mark.parametrize("name", ["json", "bus", "workers"])
def test_a_module_named_as_one_of_the_workers_own_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("def handle(event): ...")

    with pytest.raises(FunctionUnusable, match="give yours another name"):
        load_handler(tmp_path, f"{name}:handle")


@pytest.mark.usefixtures("imports")
def test_vendored_packages_come_behind_the_functions_own_modules(tmp_path: Path) -> None:
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "of_both.py").write_text("WHOSE = 'vendored'")
    (tmp_path / "site-packages" / "vendored_only.py").write_text("")
    (tmp_path / "of_both.py").write_text("WHOSE = 'own'")
    (tmp_path / "own_module.py").write_text("import of_both, vendored_only\ndef handle(event): return of_both.WHOSE")

    assert load_handler(tmp_path, "own_module:handle")(None) == "own"


@pytest.mark.usefixtures("imports")
def test_a_class_is_made_once_and_its_object_is_the_handler(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(
        "class Counter:\n    def __init__(self): self.calls = 0\n"
        "    def __call__(self, event):\n        self.calls += 1\n        return self.calls\n"
    )
    handler = load_handler(tmp_path, "counting:Counter")

    assert [handler(None), handler(None)] == [1, 2]
