"""Laws of scaling, searched for counter-examples."""

from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from bus.core.demand import SERVING, Demand, Phase, Worker
from bus.core.reports import REPORT_EXPIRY_S, WorkerReport
from bus.core.scaling import SILENT_S_MAX, Decision, ScalingPolicy, decide
from bus.core.starts import Starts

NOW_S = 1000.0
NEW, OLD = "new", "old"
PHASES: list[Phase] = ["Pending", "Running", "Running", "Running", "Succeeded", "Failed"]


@st.composite
def policies(draw: st.DrawFn) -> ScalingPolicy:
    ceiling = draw(st.integers(1, 12))
    return ScalingPolicy(
        min=draw(st.integers(0, ceiling)),
        max=ceiling,
        concurrency=draw(st.integers(1, 5)),
        idle_s=draw(st.sampled_from([0.0, 1.0, 30.0])),
    )


@st.composite
def worker(draw: st.DrawFn, ordinal: int) -> Worker:
    phase: Phase = draw(st.sampled_from(PHASES))
    is_bound = phase != "Pending" or draw(st.booleans())
    held = draw(st.integers(0, 5))
    report = None
    if phase == "Running" and draw(st.integers(0, 4)):
        report = WorkerReport(
            worker=f"uid-{ordinal}",
            pod=f"f-{ordinal}",
            version=NEW,
            state=draw(st.sampled_from(["running", "running", "running", "fenced", "stopping"])),
            concurrency=5,
            busy=held,
            held=held,
            pending=0,
            service_s=0.0,
            handled=0,
            failed=0,
            idle_s=0.0 if held else draw(st.floats(0, 60)),
        )
    return Worker(
        uid=f"uid-{ordinal}",
        name=f"f-{ordinal}",
        ordinal=ordinal,
        version=draw(st.sampled_from([NEW, NEW, OLD])),
        phase=phase,
        is_bound=is_bound,
        is_deleted=draw(st.integers(0, 5)) == 0,
        seen_s=NOW_S - draw(st.floats(0, 100)),
        running_s=NOW_S - draw(st.floats(0, 100)) if phase == "Running" else None,
        report=report,
        heard_s=NOW_S - draw(st.floats(0, 2 * (REPORT_EXPIRY_S + SILENT_S_MAX))) if draw(st.booleans()) else NOW_S,
        fence_asked_s=draw(st.sampled_from([None, None, None, NOW_S - 0.5, NOW_S - 10.0])),
    )


@st.composite
def crews(draw: st.DrawFn) -> tuple[Worker, ...]:
    ordinals = draw(st.lists(st.integers(0, 15), max_size=10, unique=True))
    return tuple(draw(worker(ordinal)) for ordinal in ordinals)


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    not_due = draw(st.integers(0, 3))
    return Demand(
        pending=draw(st.integers(0, 60)),
        orphaned=draw(st.integers(0, 10)),
        not_due=not_due,
        due_in_s=draw(st.floats(0.1, 100)) if not_due else None,
        is_woken=draw(st.booleans()),
        is_checked=draw(st.booleans()),
    )


records = st.one_of(
    st.just(Starts()),
    st.builds(Starts, version=st.sampled_from([NEW, OLD]), failures=st.integers(1, 12), failed_s=st.floats(900, NOW_S)),
)


def serving(crew: tuple[Worker, ...]) -> list[Worker]:
    return [each for each in crew if each.stage_at(NOW_S) in SERVING]


def active(crew: tuple[Worker, ...]) -> int:
    return sum(each.stage_at(NOW_S) in SERVING | {"fencing"} for each in crew)


@given(policies(), demands(), crews(), records)
def test_what_is_wanted_and_made_stays_in_bounds(
    policy: ScalingPolicy, demand: Demand, crew: tuple[Worker, ...], starts: Starts
) -> None:
    decision = decide(policy, NEW, demand, crew, starts, NOW_S)

    assert policy.min <= decision.desired <= policy.max
    assert not decision.create or active(applied(crew, decision)) <= policy.max


@given(policies(), demands(), crews(), records, st.integers(0, 100))
def test_more_events_never_ask_for_fewer_workers(
    policy: ScalingPolicy, demand: Demand, crew: tuple[Worker, ...], starts: Starts, more: int
) -> None:
    before = decide(policy, NEW, demand, crew, starts, NOW_S)
    after = decide(policy, NEW, replace(demand, pending=demand.pending + more), crew, starts, NOW_S)

    assert before.desired <= after.desired
    assert len(before.create) <= len(after.create)


@given(policies(), demands(), crews(), records)
def test_a_busy_worker_is_named_only_when_it_is_replaced_or_above_the_ceiling(
    policy: ScalingPolicy, demand: Demand, crew: tuple[Worker, ...], starts: Starts
) -> None:
    decision = decide(policy, NEW, demand, crew, starts, NOW_S)

    current = [each for each in serving(crew) if each.version == NEW]
    asked = {each.uid for each in crew if each.stage_at(NOW_S) == "fencing"}
    for each in current:
        if each.uid in decision.fence and each.uid not in asked and len(current) <= policy.max:
            assert each.held == 0
            assert each.idle_for_s(NOW_S) >= policy.idle_s


@given(policies(), demands(), crews(), records)
def test_only_what_runs_no_event_is_deleted(
    policy: ScalingPolicy, demand: Demand, crew: tuple[Worker, ...], starts: Starts
) -> None:
    decision = decide(policy, NEW, demand, crew, starts, NOW_S)

    stages = {each.uid: each.stage_at(NOW_S) for each in crew}
    assert {stages[uid] for uid in decision.delete} <= {"fenced", "finished", "silent", "unbound"}
    assert len(set(decision.delete)) == len(decision.delete)
    assert not set(decision.delete) & set(decision.fence)


@given(policies(), demands(), crews(), records)
def test_the_last_worker_goes_to_sleep_only_after_a_check(
    policy: ScalingPolicy, demand: Demand, crew: tuple[Worker, ...], starts: Starts
) -> None:
    decision = decide(policy, NEW, replace(demand, is_checked=False), crew, starts, NOW_S)

    going = {*decision.fence, *decision.delete}
    if serving(crew) and all(each.uid in going for each in serving(crew)):
        assert decision.desired > 0  # another one comes in its place


@given(policies(), demands(), crews(), records)
def test_an_event_that_waits_is_served_or_listened_for_or_backed_off_from(
    policy: ScalingPolicy, demand: Demand, crew: tuple[Worker, ...], starts: Starts
) -> None:
    decision = decide(policy, NEW, demand, crew, starts, NOW_S)
    after = applied(crew, decision)

    if not serving(after):
        leaving_room = active(after) >= policy.max
        assert decision.listens or starts.is_failing(NEW) or leaving_room
        assert not (decision.listens and (demand.pending or demand.orphaned or demand.is_woken))
        if starts.is_failing(NEW) and not decision.listens and not leaving_room:
            assert decision.look_again_s is not None


def applied(crew: tuple[Worker, ...], decision: Decision) -> tuple[Worker, ...]:
    """Return the workers after what was decided has been done."""
    after = [
        replace(
            each,
            is_deleted=each.is_deleted or each.uid in decision.delete,
            fence_asked_s=NOW_S if each.uid in decision.fence else each.fence_asked_s,
        )
        for each in crew
    ]
    after += [
        Worker(uid=f"made-{ordinal}", name=f"f-{ordinal}", ordinal=ordinal, version=NEW, seen_s=NOW_S)
        for ordinal in decision.create
    ]
    return tuple(after)


@given(policies(), demands(), crews(), records)
def test_deciding_again_asks_for_nothing_more(
    policy: ScalingPolicy, demand: Demand, crew: tuple[Worker, ...], starts: Starts
) -> None:
    assume(policy.idle_s > 0)  # with 0, what was just made has been idle for long enough
    decision = decide(policy, NEW, demand, crew, starts, NOW_S)
    after = applied(crew, decision)
    again = decide(policy, NEW, replace(demand, is_woken=demand.is_woken and not decision.create), after, starts, NOW_S)

    assert not again.fence
    assert not again.delete
    assert not again.create


@given(policies(), demands(), crews(), records)
def test_a_new_pod_takes_a_name_that_is_free(
    policy: ScalingPolicy, demand: Demand, crew: tuple[Worker, ...], starts: Starts
) -> None:
    decision = decide(policy, NEW, demand, crew, starts, NOW_S)

    taken = {each.ordinal for each in crew}
    assert not taken & set(decision.create)
    assert all(ordinal in taken or ordinal in decision.create for ordinal in range(max(decision.create, default=0)))


@given(policies(), demands(), crews(), records)
def test_the_next_look_is_in_the_future(
    policy: ScalingPolicy, demand: Demand, crew: tuple[Worker, ...], starts: Starts
) -> None:
    decision = decide(policy, NEW, demand, crew, starts, NOW_S)

    assert decision.look_again_s is None or decision.look_again_s > 0
