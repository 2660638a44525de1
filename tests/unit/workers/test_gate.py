"""Who may run beside whom."""

import anyio

from workers.gate import Gate


async def test_nobody_is_let_in_while_one_waits_to_be_alone_or_is() -> None:
    gate, seen = Gate(), []
    leave, alone_leaves = anyio.Event(), anyio.Event()

    async def ordinary() -> None:
        async with gate.enter(alone=False, on_alone=lambda: None) as is_inside:
            seen.append(("ordinary", is_inside))
            await leave.wait()

    async def alone() -> None:
        async with gate.enter(alone=True, on_alone=lambda: seen.append(("free", gate.is_free))) as is_inside:
            seen.append(("alone", is_inside))
            await alone_leaves.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(ordinary)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(alone)
        await anyio.wait_all_tasks_blocked()
        async with gate.enter(alone=False, on_alone=lambda: None) as is_inside:
            assert not is_inside
        leave.set()
        await anyio.wait_all_tasks_blocked()
        async with gate.enter(alone=True, on_alone=lambda: None) as is_inside:
            assert not is_inside
        alone_leaves.set()
    async with gate.enter(alone=False, on_alone=lambda: None) as is_inside:
        assert is_inside

    assert seen == [("ordinary", True), ("free", False), ("alone", True), ("free", True)]
