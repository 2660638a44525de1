"""What a push is as values: the spool's text, subjects, what a new branch brought, and the size of its event."""

import msgspec
import pytest

from bus.core.errors import InvalidSubject
from bus.core.git import (
    COMMIT_FORMAT,
    COMMITS_MAX,
    DATA_BYTES_MAX,
    PATHS_MAX,
    Author,
    Commit,
    Push,
    RefPush,
    RefUpdate,
    UnreadablePush,
    event_of_update,
    is_entry,
    known_before,
    parse_commits,
    parse_push,
    parse_updates,
    push_subject,
    ref_type,
    with_paths,
)
from bus.core.subjects import check_subject

A, B, C, ZERO = "a" * 40, "b" * 40, "c" * 40, "0" * 40
NAME = "000000000042-9f86d081884c7d65"


def push(*updates: RefUpdate, number: int = 42) -> Push:
    return Push(
        number=number, nonce="9f86d081884c7d65", pusher="ada", pushed_at_ns=1767225600123456789, updates=updates
    )


def commit(number: int = 1, subject: str = "Open the shop", paths: tuple[str, ...] = ()) -> Commit:
    return Commit(
        id=f"{number:040x}",
        subject=subject,
        author=Author("Ada", "ada@shop.example"),
        time="2026-01-01T00:00:00Z",
        added=paths,
    )


def data_of(update: RefUpdate, *commits: Commit, total: int | None = None, is_forced: bool = False) -> RefPush:
    event = event_of_update(
        push(update),
        update,
        owner="local",
        repository="shop",
        path="/srv/shop.git",
        source="git://host/srv/shop.git",
        is_forced=is_forced,
        commits=commits,
        commits_total=len(commits) if total is None else total,
    )
    return msgspec.json.decode(event.data, type=RefPush)


def test_a_spooled_push_is_read_as_the_hook_wrote_it() -> None:
    text = f"pusher ada of shop\ntime 1767225600123456789\n\n{ZERO} {A} refs/heads/main\n{A} {B} refs/tags/v1\n"

    read = parse_push(NAME, text.encode())

    assert read.number == 42
    assert read.pusher == "ada of shop"
    assert read.pushed_at == "2026-01-01T00:00:00.123456Z"
    assert read.updates == (RefUpdate(ZERO, A, "refs/heads/main"), RefUpdate(A, B, "refs/tags/v1"))
    assert read.updates[0].is_created
    assert not read.updates[0].is_deleted


def test_bytes_that_are_not_utf_8_keep_refs_apart() -> None:
    text = f"pusher ada\ntime 1\n\n{A} {B} refs/heads/".encode()

    read = parse_push(NAME, text + b"\xff\n" + f"{A} {B} refs/heads/".encode() + b"\xfe\n")

    assert [update.ref for update in read.updates] == [r"refs/heads/\xff", r"refs/heads/\xfe"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "time"),
        (b"pusher ada\ntime soon\n\n", "time"),
        (f"time 1\n\n{A} refs/heads/main\n".encode(), "before"),
        (f"time 1\n\n{A} {B[:39]} refs/heads/main\n".encode(), "before"),
        (f"time 1\n\n{A} {B} refs/heads/a b\n".encode(), "before"),
    ],
)
def test_a_file_that_holds_no_push_is_refused_with_what_is_missing(content: bytes, reason: str) -> None:
    with pytest.raises(UnreadablePush, match=reason):
        parse_push(NAME, content)


def test_drafts_and_reasons_are_no_pushes() -> None:
    assert is_entry(NAME)
    assert not is_entry(f".{NAME}")
    assert not is_entry(f"{NAME}.reason")
    with pytest.raises(UnreadablePush):
        parse_push("notes.txt", b"time 1\n\n")


def test_object_ids_of_both_hashes_are_read() -> None:
    long = "d" * 64

    assert parse_updates(f"{'0' * 64} {long} refs/heads/main\n")[0].is_created


@pytest.mark.parametrize(
    ("ref", "subject"),
    [
        ("refs/heads/main", "events.git.push.local.shop.heads.main"),
        ("refs/heads/feature/x.y%", "events.git.push.local.shop.heads.feature/x%2Ey%25"),
        ("refs/tags/v1.0", "events.git.push.local.shop.tags.v1%2E0"),
        ("refs/notes/commits", "events.git.push.local.shop.notes.commits"),
        ("refs/changes/12/34", "events.git.push.local.shop.changes.12/34"),
        ("refs/stash", "events.git.push.local.shop.other.refs/stash"),
        ("refs/heads/größe", "events.git.push.local.shop.heads.gr%C3%B6%C3%9Fe"),
    ],
)
def test_a_push_goes_to_the_subject_of_its_ref(ref: str, subject: str) -> None:
    assert push_subject("local", "shop", ref) == subject


def test_the_longest_names_still_make_a_subject_and_stay_apart() -> None:
    subjects = {push_subject("ö" * 300, "ü" * 300, f"refs/{'x' * 300}/{'ä' * 2000}{end}") for end in ("1", "2")}

    assert len(subjects) == 2
    for subject in subjects:
        check_subject(subject)


def test_an_owner_of_dots_is_one_token() -> None:
    with pytest.raises(InvalidSubject):
        check_subject(push_subject("", "shop", "refs/heads/main"))
    assert push_subject("a.b", "shop", "refs/heads/main").split(".")[3] == "a%2Eb"


@pytest.mark.parametrize(
    ("ref", "type_"), [("refs/heads/main", "branch"), ("refs/tags/v1", "tag"), ("refs/notes/commits", "other")]
)
def test_refs_are_branches_tags_or_something_else(ref: str, type_: str) -> None:
    assert ref_type(ref) == type_


def test_two_new_branches_of_one_push_do_not_hide_each_others_commits() -> None:
    refs = {"refs/heads/main": A, "refs/heads/one": B, "refs/heads/two": B}
    pushed = push(RefUpdate(ZERO, B, "refs/heads/one"), RefUpdate(ZERO, B, "refs/heads/two"))

    assert known_before(refs, [pushed]) == {A}


def test_what_later_pushes_did_is_undone() -> None:
    refs = {"refs/heads/main": C, "refs/heads/one": C}
    first = push(RefUpdate(ZERO, A, "refs/heads/one"), number=1)
    second = push(RefUpdate(A, C, "refs/heads/one"), RefUpdate(B, C, "refs/heads/main"), number=2)
    third = push(RefUpdate(A, ZERO, "refs/heads/gone"), number=3)

    assert known_before(refs, [first, second, third]) == {A, B}


def test_commits_are_read_from_gits_output() -> None:
    assert COMMIT_FORMAT == "%H%x00%an%x00%ae%x00%aI%x00%s"
    output = f"commit {A}\n{A}\0Ada Ü\0ada@x\x002026-01-01T00:00:00+01:00\0First: line\ncommit {B}\n{B}\0B\0b\0t\0\n".encode()

    commits = parse_commits(output)

    assert [(each.id, each.subject, each.author.name) for each in commits] == [
        (A, "First: line", "Ada Ü"),
        (B, "", "B"),
    ]


def test_paths_are_read_from_gits_output_even_when_it_is_cut_off() -> None:
    output = f"{A}\0A\0a b\0M\0d/ü\0T\0link\0D\0old\0{B}\0A\0new\0A\0cut of".encode()

    first, second, merge = with_paths([commit(1), commit(2), commit(3)], b"")
    assert (first.paths_total, second.added, merge.added) == (0, (), ())
    a, b = with_paths([msgspec.structs.replace(commit(), id=A), msgspec.structs.replace(commit(), id=B)], output)

    assert (a.added, a.modified, a.removed, a.paths_total) == (("a b",), ("d/ü", "link"), ("old",), 4)
    assert (b.added, b.paths_total) == (("new",), 1)


def test_many_paths_are_counted_and_not_all_named() -> None:
    output = f"{A}\0".encode() + b"".join(b"A\0f%d\0" % number for number in range(PATHS_MAX + 5))

    (cut,) = with_paths([msgspec.structs.replace(commit(), id=A)], output)

    assert len(cut.added) == PATHS_MAX
    assert cut.paths_total == PATHS_MAX + 5


def test_an_event_tells_what_happened_to_the_ref() -> None:
    created = data_of(RefUpdate(ZERO, A, "refs/heads/a/b"), commit(2), commit(1))
    deleted = data_of(RefUpdate(A, ZERO, "refs/tags/v1"))
    forced = data_of(RefUpdate(A, B, "refs/heads/main"), is_forced=True)

    assert (created.created, created.deleted, created.name, created.ref_type) == (True, False, "a/b", "branch")
    assert [each.id for each in created.commits] == [commit(1).id, commit(2).id]
    assert (deleted.deleted, deleted.ref_type, deleted.commits) == (True, "tag", ())
    assert forced.forced
    assert (forced.pusher, forced.repository, forced.owner, forced.path) == ("ada", "shop", "local", "/srv/shop.git")


def test_an_event_has_the_identity_of_its_push_and_ref() -> None:
    update = RefUpdate(A, B, "refs/heads/main")

    def build(path: str) -> tuple[str, str, str]:
        event = event_of_update(
            push(update),
            update,
            owner="local",
            repository="shop",
            path=path,
            source="git://host/srv",
            is_forced=False,
            commits=[],
            commits_total=None,
        )
        return event.digest, event.id, event.source

    assert build("/srv") == build("/moved")
    assert build("/srv")[1] == "42-9f86d081884c7d65:refs/heads/main"


def test_only_the_newest_commits_are_named() -> None:
    newest_first = [commit(number) for number in range(200, 0, -1)]

    data = data_of(RefUpdate(A, B, "refs/heads/main"), *newest_first, total=4711)

    assert len(data.commits) == COMMITS_MAX
    assert data.commits[-1].id == commit(200).id
    assert data.commits_total == 4711


def test_a_large_push_fits_without_its_paths_and_a_huge_one_without_its_oldest_commits() -> None:
    update = RefUpdate(A, B, "refs/heads/main")
    with_long_paths = [commit(number, paths=("p" * 4000,)) for number in range(100, 0, -1)]
    with_long_subjects = [commit(number, subject="s" * 10_000) for number in range(100, 0, -1)]

    large, huge = data_of(update, *with_long_paths), data_of(update, *with_long_subjects)

    assert len(large.commits) == 100
    assert large.commits[0].added == ()
    assert 0 < len(huge.commits) < 100
    assert huge.commits[-1].id == commit(100).id
    assert len(msgspec.json.encode(huge)) <= DATA_BYTES_MAX
