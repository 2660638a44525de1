"""From a path to a bundle: handlers are read and not run, and the same files give the same bytes."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from nodeless.packaging import bundle as bundle_module
from nodeless.packaging.archive import File, archive_of
from nodeless.packaging.bundle import bundle_of
from nodeless.packaging.handlers import DeployError, declared_handlers, function_name, named_handler, only_handler

DECLARED = b"""
import nodeless
from nodeless import function

@function(subject="events.git.push.>", attempts=3)
def on_push(event):
    raise SystemExit("a deployment must not run this")

@nodeless.function(name="second", subject=["events.a", "events.b.*"])
async def other(event): ...
"""


def test_declared_handlers_carry_what_their_decorator_says() -> None:
    first, second = declared_handlers({"app.py": DECLARED})

    assert (first.handler, first.name, first.subjects) == ("app:on_push", "on-push", ("events.git.push.>",))
    assert first.options == {"attempts": 3}
    assert (second.handler, second.name, second.subjects) == ("app:other", "second", ("events.a", "events.b.*"))


@pytest.mark.parametrize(
    "source",
    [
        b"import nodeless as bus\n@bus.function(subject='events.a')\ndef a(e): ...\n",
        b"from nodeless import Event, function as on\n@on(subject='events.a')\ndef a(e): ...\n",
        b"from nodeless import function\n@function(subject='events.a')\nasync def a(e): ...\n",
    ],
)
def test_the_decorator_is_known_by_whatever_name_it_was_imported(source: bytes) -> None:
    (found,) = declared_handlers({"app.py": source})

    assert (found.name, found.subjects) == ("a", ("events.a",))


def test_a_decorator_of_somebody_else_declares_nothing() -> None:
    assert declared_handlers({"app.py": b"import other as bus\n@bus.function\ndef a(e): ...\n"}) == []


def test_a_file_that_cannot_be_imported_is_named_where_no_handler_is_found() -> None:
    with pytest.raises(DeployError, match=r"no public function \(and my-app\.py, which cannot be imported"):
        only_handler({"my-app.py": b"def a(e): ...\n"})


def test_two_handlers_with_one_name_are_refused_with_both_places() -> None:
    source = b'@function(name="x")\ndef a(e): ...\n@function(name="x")\ndef b(e): ...\n'

    with pytest.raises(DeployError, match=r"app:a \(line 1\) and app:b \(line 3\)"):
        declared_handlers({"app.py": source})


def test_a_decorator_argument_that_is_computed_is_refused() -> None:
    with pytest.raises(DeployError, match=r"line 2: @function.subject=.*no literal"):
        declared_handlers({"app.py": b"import os\n@function(subject=os.environ['S'])\ndef a(e): ...\n"})


def test_a_file_that_does_not_parse_is_named_with_its_line() -> None:
    with pytest.raises(DeployError, match=r"app\.py, line 2: this is not Python"):
        declared_handlers({"app.py": b"x = 1\ndef f(:\n"})


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        ("app", "expected module:callable"),
        ("other:f", "no module 'other' in what is deployed; it holds: app"),
        ("app:g", "defines no 'g' at its top level; it defines: f"),
    ],
)
def test_a_named_handler_that_is_not_there_is_refused(handler: str, message: str) -> None:
    with pytest.raises(DeployError, match=message):
        named_handler({"app.py": b"def f(e): ...\n"}, handler)


def test_a_named_handler_may_be_bound_by_an_assignment_or_an_import() -> None:
    sources = {"pkg/app.py": b"from .impl import run\nhandle = run\n", "pkg/__init__.py": b""}

    assert named_handler(sources, "pkg.app:handle").name == "handle"
    assert named_handler(sources, "pkg.app:run").handler == "pkg.app:run"


def test_the_only_public_function_is_the_handler_and_several_are_a_question() -> None:
    assert only_handler({"app.py": b"def _h(): ...\ndef handle(e): ...\n"}).handler == "app:handle"
    with pytest.raises(DeployError, match="Seen: app:a, app:b"):
        only_handler({"app.py": b"def a(e): ...\ndef b(e): ...\n"})


@pytest.mark.parametrize("text", ["", "-", "über", "x" * 53])
def test_a_name_that_kubernetes_refuses_is_refused_first(text: str) -> None:
    with pytest.raises(DeployError, match="--name"):
        function_name(text)


def test_an_archive_depends_on_names_contents_and_modes_only() -> None:
    one = archive_of({"b.py": File(b"2"), "a.py": File(b"1", True)})
    two = archive_of({"a.py": File(b"1", True), "b.py": File(b"2")})

    assert one == two
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(one))) as archive:
        entries = archive.getmembers()
    assert [(entry.name, entry.mode, entry.mtime, entry.uid) for entry in entries] == [
        ("a.py", 0o755, 0, 0),
        ("b.py", 0o644, 0, 0),
    ]


def test_a_folder_and_its_touched_copy_give_the_same_bundle(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "lib").mkdir(parents=True)
        (folder / "app.py").write_text("def handle(event): ...\n")
        (folder / "lib" / "data.json").write_text("{}")
    (tmp_path / "two" / "__pycache__").mkdir()
    (tmp_path / "two" / "__pycache__" / "app.pyc").write_bytes(b"x")
    (tmp_path / "two" / ".git").mkdir()
    (tmp_path / "two" / ".git" / "config").write_text("x")
    os.utime(tmp_path / "two" / "app.py", (0, 0))

    one, two = bundle_of(tmp_path / "one"), bundle_of(tmp_path / "two")

    assert one == two
    assert one.files == 2


def test_a_bundle_over_the_limit_is_refused_with_its_largest_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app.py").write_text("def handle(event): ...\n")
    (tmp_path / "model.bin").write_bytes(os.urandom(200_000))
    monkeypatch.setattr(bundle_module, "ARCHIVE_BYTES_MAX", 100_000)

    with pytest.raises(DeployError, match=r"takes 0\.2 MiB, and 0\.1 MiB is the limit.*model\.bin"):
        bundle_of(tmp_path)


def test_a_path_that_is_missing_or_no_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("")

    with pytest.raises(DeployError, match="there is no"):
        bundle_of(tmp_path / "absent")
    with pytest.raises(DeployError, match="no Python file"):
        bundle_of(tmp_path / "x.txt")
