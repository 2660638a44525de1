"""What was pushed to a git repository, as values: a spooled push, its refs, its commits, the event of each ref.

A push waits in the spool as one file. Its name is its place in the order and 64 random bits, so that no two pushes
share an id even if the counter is lost; its text is what the hook knew:

    000000000042-9f86d081884c7d65
        pusher ada
        time 1767225600000000000

        <before> <after> refs/heads/main
        <before> <after> refs/tags/v1

The lines after the blank one are those that git gives to `post-receive` (githooks(5)). An object id of zeros stands
for a ref that is not there.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec
from msgspec import Struct

from bus.core.event import Event
from bus.core.subjects import token

EVENT_TYPE = "dev.nodeless.git.push"
COMMITS_MAX = 100
"""Newest commits named in one event; `commits_total` tells how many there are. [commits]"""
PATHS_MAX = 300
"""Changed paths named for one commit; `paths_total` tells how many there are. [paths]"""
SUBJECT_CHARACTERS_MAX = 512
"""Longest first line of a commit's message in an event; longer ones are cut. [characters]"""
DATA_BYTES_MAX = 256 * 1024
"""Largest data of one event: a quarter of what the broker takes. Paths go first, then the oldest commits. [bytes]"""

_OWNER_BYTES_MAX, _REPOSITORY_BYTES_MAX, _CATEGORY_BYTES_MAX, _NAME_BYTES_MAX = 128, 200, 64, 512
"""Together with the fixed part below the bound of a subject. [bytes]"""

_ENTRY = re.compile(r"(\d{12})-([0-9a-f]{16})")
_UPDATE = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64}) ([0-9a-f]{40}|[0-9a-f]{64}) (\S+)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

RefType = Literal["branch", "tag", "other"]


class UnreadablePush(ValueError):
    """The spool's file does not hold a push."""


class RefUpdate(Struct, frozen=True):
    """One line of what git says to the hook."""

    before: str
    after: str
    ref: str

    @property
    def is_created(self) -> bool:
        return not self.before.strip("0")

    @property
    def is_deleted(self) -> bool:
        return not self.after.strip("0")


class Push(Struct, frozen=True, kw_only=True):
    """One push, as the hook saw it."""

    number: int
    """Place in the order of this repository's pushes."""
    nonce: str
    pusher: str
    pushed_at_ns: int
    """Since the Unix epoch. [nanoseconds]"""
    updates: tuple[RefUpdate, ...]

    @property
    def pushed_at(self) -> str:
        """RFC 3339, UTC, microseconds."""
        moment = _EPOCH + timedelta(microseconds=self.pushed_at_ns // 1000)
        return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class Author(Struct, frozen=True):
    name: str
    email: str


class Commit(Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    subject: str
    """First line of its message."""
    author: Author
    time: str
    """RFC 3339: when it was written."""
    added: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    paths_total: int = 0
    """Changed paths in all; of a merge, none. More than are named where there are more than `PATHS_MAX`."""


class RefPush(Struct, frozen=True, kw_only=True):
    """Data of one event: what a push did to one ref."""

    owner: str
    repository: str
    path: str
    """Of the repository on the machine that holds it."""
    push: int
    """Events of one push have the same number; later pushes have greater ones."""
    pusher: str
    pushed_at: str
    ref: str
    ref_type: RefType
    name: str
    """The ref without `refs/heads/` and the like."""
    before: str
    after: str
    created: bool
    deleted: bool
    forced: bool
    """What the ref named before is not among the ancestors of what it names now."""
    commits: tuple[Commit, ...]
    """What came with the push, oldest first: of a new ref, those that no other ref reached."""
    commits_total: int | None
    """None where git could not say."""


def is_entry(name: str) -> bool:
    """Say whether a file of that name in the spool is a push."""
    return _ENTRY.fullmatch(name) is not None


def parse_push(name: str, content: bytes) -> Push:
    """Return the push in a file of the spool; raise `UnreadablePush` where it holds none.

    What is not UTF-8 is kept as `\\xNN`: git allows any bytes in a ref but no backslash, so no two refs fall
    together.
    """
    entry = _ENTRY.fullmatch(name)
    if entry is None:
        raise UnreadablePush(f"{name!r} is no name of a push: expected 12 digits, a dash, 16 hex digits")
    head, _, lines = content.decode(errors="backslashreplace").partition("\n\n")
    fields = dict(line.split(" ", 1) for line in head.split("\n") if " " in line)
    if not fields.get("time", "").isdecimal():
        raise UnreadablePush("no line 'time <nanoseconds>' before the blank line")
    return Push(
        number=int(entry[1]),
        nonce=entry[2],
        pusher=fields.get("pusher", ""),
        pushed_at_ns=int(fields["time"]),
        updates=parse_updates(lines),
    )


def parse_updates(lines: str) -> tuple[RefUpdate, ...]:
    """Return the ref updates in what git gave to the hook."""
    updates = []
    for line in lines.split("\n"):
        if not line:
            continue
        match = _UPDATE.fullmatch(line)
        if match is None:
            raise UnreadablePush(f"expected '<before> <after> <ref>' and found {line[:200]!r}")
        updates.append(RefUpdate(match[1], match[2], match[3]))
    return tuple(updates)


def push_text(push: Push) -> str:
    """Return the text of the spool's file, as `parse_push` reads it."""
    lines = "".join(f"{update.before} {update.after} {update.ref}\n" for update in push.updates)
    return f"pusher {push.pusher}\ntime {push.pushed_at_ns}\n\n{lines}"


def ref_parts(ref: str) -> tuple[str, str]:
    """Return category and name: `refs/heads/a/b` is `heads` and `a/b`; a ref outside of this form is `other`."""
    head, _, rest = ref.partition("/")
    category, _, name = rest.partition("/")
    return (category, name) if head == "refs" and category and name else ("other", ref)


def ref_type(ref: str) -> RefType:
    types: dict[str, RefType] = {"heads": "branch", "tags": "tag"}
    return types.get(ref_parts(ref)[0], "other")


def push_subject(owner: str, repository: str, ref: str) -> str:
    """Return where a push to that ref is published; refs of the usual form never share a subject."""
    category, name = ref_parts(ref)
    tokens = (
        _bounded_token(owner, _OWNER_BYTES_MAX),
        _bounded_token(repository, _REPOSITORY_BYTES_MAX),
        _bounded_token(category, _CATEGORY_BYTES_MAX),
        _bounded_token(name, _NAME_BYTES_MAX),
    )
    return "events.git.push." + ".".join(tokens)


def _bounded_token(text: str, bytes_max: int) -> str:
    """Return the text as one token. One that is too long is cut, and ends in `~`, which no ref holds, and a digest."""
    encoded = token(text)
    if len(encoded) <= bytes_max:
        return encoded
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{encoded[: bytes_max - 17]}~{digest}"


def known_before(refs: Mapping[str, str], pushes: Iterable[Push]) -> frozenset[str]:
    """Return what the refs named before the first of `pushes`, given what they name now and all pushes since then.

    A new branch's commits are those that none of these reaches. Refs as they are now would not do: when two new
    branches come with one push, each would hide the commits of the other.
    """
    undone: dict[str, str] = {}
    for push in pushes:
        for update in push.updates:
            undone.setdefault(update.ref, update.before)
    return frozenset(id_ for id_ in ({**refs, **undone}).values() if id_.strip("0"))


def parse_commits(output: bytes) -> tuple[Commit, ...]:
    """Return the commits in the output of `git rev-list --format=<COMMIT_FORMAT>`, in its order."""
    commits = []
    for line in output.decode(errors="replace").split("\n"):
        fields = line.split("\0")
        if len(fields) == len(_COMMIT_FIELDS):
            id_, name, email, time, subject = fields
            commits.append(Commit(id=id_, subject=_cut(subject), author=Author(_cut(name), _cut(email)), time=time))
    return tuple(commits)


_COMMIT_FIELDS = ("%H", "%an", "%ae", "%aI", "%s")
COMMIT_FORMAT = "%x00".join(_COMMIT_FIELDS)


def _cut(text: str) -> str:
    return text if len(text) <= SUBJECT_CHARACTERS_MAX else text[: SUBJECT_CHARACTERS_MAX - 1] + "…"


def with_paths(commits: Sequence[Commit], output: bytes) -> tuple[Commit, ...]:
    """Return the commits with the paths in the output of `git diff-tree --stdin -z --name-status`: the commit's id,
    then letter and path for each change, all ended by NUL. A last path that is cut off is left out.
    """
    changes: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    words = iter(output.decode(errors="replace").split("\0")[:-1])
    for word in words:
        if len(word) > 1:
            current = changes.setdefault(word, [])
        elif (path := next(words, None)) is not None:
            current.append((word, path))
    return tuple(_with_changes(commit, changes.get(commit.id, [])) for commit in commits)


def _with_changes(commit: Commit, changes: Sequence[tuple[str, str]]) -> Commit:
    named = changes[:PATHS_MAX]
    return msgspec.structs.replace(
        commit,
        added=tuple(path for letter, path in named if letter == "A"),
        modified=tuple(path for letter, path in named if letter not in {"A", "D"}),
        removed=tuple(path for letter, path in named if letter == "D"),
        paths_total=len(changes),
    )


def event_of_update(
    push: Push,
    update: RefUpdate,
    *,
    owner: str,
    repository: str,
    path: str,
    source: str,
    is_forced: bool,
    commits: Sequence[Commit],
    commits_total: int | None,
) -> Event:
    """Return the event of one ref of a push. `commits` come newest first, as git lists them.

    Its identity is that of the push and the ref, so that it is the same one however often it is built.
    """
    data = RefPush(
        owner=owner,
        repository=repository,
        path=path,
        push=push.number,
        pusher=push.pusher,
        pushed_at=push.pushed_at,
        ref=update.ref,
        ref_type=ref_type(update.ref),
        name=ref_parts(update.ref)[1],
        before=update.before,
        after=update.after,
        created=update.is_created,
        deleted=update.is_deleted,
        forced=is_forced,
        commits=tuple(reversed(commits[:COMMITS_MAX])),
        commits_total=commits_total,
    )
    return Event(
        subject=push_subject(owner, repository, update.ref),
        id=f"{push.number}-{push.nonce}:{update.ref}",
        source=source,
        type=EVENT_TYPE,
        time=push.pushed_at,
        datacontenttype="application/json",
        ce_subject=update.ref,
        data=encode_bounded(data),
    )


def encode_bounded(data: RefPush, bytes_max: int = DATA_BYTES_MAX) -> bytes:
    """Return the data as JSON of at most `bytes_max`, leaving out paths, then the oldest commits, as far as needed."""
    encoded = msgspec.json.encode(data)
    if len(encoded) > bytes_max:
        bare = tuple(msgspec.structs.replace(commit, added=(), modified=(), removed=()) for commit in data.commits)
        data = msgspec.structs.replace(data, commits=bare)
        encoded = msgspec.json.encode(data)
    while len(encoded) > bytes_max and data.commits:
        data = msgspec.structs.replace(data, commits=data.commits[(len(data.commits) + 1) // 2 :])
        encoded = msgspec.json.encode(data)
    return encoded
