"""Laws of pushes and their subjects."""

from hypothesis import given
from hypothesis import strategies as st

from bus.core.git import Push, RefUpdate, known_before, parse_push, push_subject, push_text
from bus.core.subjects import check_subject, matches

IDS = st.text("0123456789abcdef", min_size=40, max_size=40)
# git-check-ref-format(1), as far as it matters here: no control characters, no blank, no backslash, tilde, caret,
# colon, question mark, asterisk, bracket.
NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\x7f \\~^:?*[", exclude_categories=("Cc", "Zs", "Zl", "Zp")),
    min_size=1,
)
USUAL_REFS = st.builds("refs/{}/{}".format, st.sampled_from(["heads", "tags", "notes"]), NAMES)
REFS = USUAL_REFS | NAMES
UPDATES = st.builds(RefUpdate, IDS, IDS, REFS)
PUSHES = st.builds(
    Push,
    number=st.integers(0, 10**12 - 1),
    nonce=st.text("0123456789abcdef", min_size=16, max_size=16),
    pusher=st.text(st.characters(codec="utf-8", exclude_characters="\n")),
    pushed_at_ns=st.integers(0, 2**62),
    updates=st.lists(UPDATES, min_size=1).map(tuple),
)


@given(PUSHES)
def test_a_push_is_read_back_as_it_was_written(push: Push) -> None:
    assert parse_push(f"{push.number:012d}-{push.nonce}", push_text(push).encode()) == push


@given(NAMES, NAMES, REFS)
def test_every_ref_has_a_subject_of_seven_tokens_below_the_bridge(owner: str, repository: str, ref: str) -> None:
    subject = push_subject(owner, repository, ref)

    check_subject(subject)
    assert matches("events.git.push.*.*.*.*", subject)


@given(st.lists(USUAL_REFS, min_size=2, max_size=6, unique=True))
def test_different_refs_never_share_a_subject(refs: list[str]) -> None:
    assert len({push_subject("local", "shop", ref) for ref in refs}) == len(refs)


@given(st.dictionaries(REFS, IDS, max_size=4), st.lists(PUSHES, max_size=4))
def test_what_was_known_before_is_found_by_undoing_each_push(refs: dict[str, str], pushes: list[Push]) -> None:
    undone = dict(refs)
    for push in reversed(pushes):
        for update in reversed(push.updates):
            undone[update.ref] = update.before

    assert known_before(refs, pushes) == {id_ for id_ in undone.values() if id_.strip("0")}
