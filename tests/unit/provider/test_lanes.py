"""Serial work for each key, with requests to look again merged."""

import anyio
import pytest

from bus.cluster.errors import ClusterUnavailable
from provider.node.lanes import Lanes


async def test_requests_during_work_become_one_more_look() -> None:
    looks: list[str] = []
    release = anyio.Event()

    async def work(key: str) -> None:
        looks.append(key)
        if len(looks) == 1:
            await release.wait()

    async with anyio.create_task_group() as group:
        lanes = Lanes(group, work)
        lanes.look("a")
        await anyio.wait_all_tasks_blocked()
        for _ in range(5):
            lanes.look("a")
        release.set()

    assert looks == ["a", "a"]


async def test_one_key_is_never_worked_on_twice_at_once_and_others_do_not_wait_for_it() -> None:
    at_once: dict[str, int] = {"slow": 0, "fast": 0}
    done = anyio.Event()

    async def work(key: str) -> None:
        at_once[key] += 1
        assert at_once[key] == 1
        if key == "slow":
            await done.wait()
        else:
            done.set()
        at_once[key] -= 1

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            lanes = Lanes(group, work)
            lanes.look("slow")
            await anyio.wait_all_tasks_blocked()
            lanes.look("slow")
            lanes.look("fast")


async def test_a_lane_looks_again_by_itself_when_its_work_says_so_and_sooner_when_asked() -> None:
    delays: list[float | None] = [0.01, 1000.0, None]
    looks = 0

    async def work(key: str) -> float | None:
        nonlocal looks
        looks += 1
        return delays[looks - 1]

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            lanes = Lanes(group, work)
            lanes.look("a")
            while looks < 2:
                await anyio.sleep(0.005)
            await anyio.wait_all_tasks_blocked()
            lanes.look("a")

    assert looks == 3


async def test_a_failure_is_tried_again_and_does_not_reach_other_lanes(caplog: pytest.LogCaptureFixture) -> None:
    attempts = {"broken": 0, "well": 0}

    async def work(key: str) -> None:
        attempts[key] += 1
        if key == "broken" and attempts[key] == 1:
            raise ClusterUnavailable("PATCH status", "no answer")
        if key == "broken" and attempts[key] == 2:
            raise AssertionError("a bug")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            lanes = Lanes(group, work)
            lanes.look("broken")
            lanes.look("well")

    assert attempts == {"broken": 3, "well": 1}
    assert lanes.failures == 2
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"]
