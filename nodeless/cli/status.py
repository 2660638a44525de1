"""`nodeless status`: how to reach the system, whether it is well, and what it costs.

Health is asked of each program now, with the same question that told that it was ready.
"""

import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from msgspec import Struct

from nodeless.cli.errors import DONE, FAILED
from nodeless.cli.output import age, print_json, print_rows, short_time
from nodeless.cli.target import Target
from nodeless.embedded import processes
from nodeless.embedded.home import Home, SystemState
from nodeless.embedded.program import ProgramSpec
from nodeless.embedded.readiness import is_healthy
from nodeless.embedded.supervisor import ProgramState

COMING = frozenset({"waiting", "starting"})
"""States of a program that is on its way for the first time or again: nothing to look up in its log."""
HEALTH_WITHIN_S = 3.0
SUPERVISOR, NODE = "supervisor", "node"
OF_OTHERS = frozenset({"etcd", "kube-apiserver", "kube-scheduler", "kube-controller-manager", "nats-server"})
"""Programs that are not ours; everything else of the system is, the workers of functions included."""
COMMAND_CHARACTERS = 120

COMPONENT_COLUMNS = ("component", "state", "healthy", "pid", "restarts", "memory_mb", "age")


class ProcessMemory(Struct, frozen=True, kw_only=True):
    pid: int
    component: str
    command: str
    pss_mb: float
    """Proportional: of a page that n processes share, 1/n. These add up to what the system holds."""
    rss_mb: float


class SystemMemory(Struct, frozen=True, kw_only=True):
    total_mb: float
    """Sum of `pss_mb` over every process of the system: each process and each page once."""
    own_mb: float
    """Of that, our own programs: supervisor, dispatcher, gateway, node with its reaper, parent and workers."""
    processes: tuple[ProcessMemory, ...]


def system_memory(state: SystemState) -> SystemMemory:
    """Measure the supervisor and all that descends from it: it is the sub-reaper, so nothing gets away."""
    top = state.supervisor.pid
    components = {program.pid: program.name for program in state.programs if program.pid is not None}
    components[top] = SUPERVISOR
    for process in processes.descendants(top):
        # A child that is no program was left behind by the node, to live on with its workers.
        above = NODE if process.parent == top else components[process.parent]
        components.setdefault(process.pid, above)
    measured: list[ProcessMemory] = []
    for pid, component in components.items():
        memory = processes.memory(pid)
        if memory is not None:
            command = " ".join(processes.command_line(pid))[:COMMAND_CHARACTERS]
            measured.append(
                ProcessMemory(pid=pid, component=component, command=command, pss_mb=memory.pss_mb, rss_mb=memory.rss_mb)
            )
    return SystemMemory(
        total_mb=round(sum(each.pss_mb for each in measured), 1),
        own_mb=round(sum(each.pss_mb for each in measured if each.component not in OF_OTHERS), 1),
        processes=tuple(measured),
    )


class Component(Struct, frozen=True, kw_only=True):
    """One program, as it is now."""

    component: str
    state: str
    healthy: bool
    pid: int | None
    restarts: int
    since: str
    start_s: float | None
    last_end: str
    log: str
    memory_mb: float | None


async def _components(home: Home, state: SystemState, memory: SystemMemory) -> list[Component]:
    specs = {spec.name: spec for spec in home.read_plan().programs}
    healthy: dict[str, bool] = {}

    async def ask(program: ProgramState, spec: ProgramSpec) -> None:
        is_there = program.state in {"ready", "done"}
        healthy[program.name] = is_there and (spec.ready is None or await is_healthy(spec.ready, HEALTH_WITHIN_S))

    async with anyio.create_task_group() as asking:
        for program in state.programs:
            asking.start_soon(ask, program, specs[program.name])
    return [
        Component(
            component=program.name,
            state=program.state,
            healthy=healthy[program.name],
            pid=program.pid,
            restarts=program.restarts,
            since=program.since,
            start_s=program.start_s,
            last_end=program.last_end,
            log=str(home.log(program.name)),
            memory_mb=_memory_of(program, memory),
        )
        for program in state.programs
    ]


def _memory_of(program: ProgramState, memory: SystemMemory) -> float | None:
    if program.pid is None:
        return None
    return round(sum(each.pss_mb for each in memory.processes if each.component == program.name), 1)


async def _functions(target: Target) -> tuple[list[dict[str, Any]] | None, str]:
    """Return the functions of all namespaces, or why they cannot be listed."""
    from bus.cluster.errors import ClusterError
    from nodeless.cli.functions import function_rows

    try:
        return await function_rows(target, all_namespaces=True), ""
    except ClusterError as error:
        return None, str(error)


async def _document(directory: Path) -> dict[str, Any]:
    home = Home.at(directory)
    state = home.running_or_raise()
    memory = system_memory(state)
    components = await _components(home, state, memory)
    functions, reason = await _functions(Target.of_home(directory))
    return {
        "home": str(home.directory),
        "ready": state.is_ready and all(each.healthy for each in components),
        "supervisor": {"pid": state.supervisor.pid, "since": state.started_at},
        "kubeconfig": state.endpoints.kubeconfig,
        "context": state.endpoints.context,
        "nats_url": state.endpoints.nats_url,
        "nats_credentials": state.endpoints.nats_credentials,
        "gateway_url": state.endpoints.gateway_url,
        "gateway_token_file": state.endpoints.gateway_token_file,
        "node": state.endpoints.node,
        "components": components,
        "functions": functions,
        "functions_error": reason,
        "memory": memory,
    }


def status(directory: Path, *, is_json: bool) -> int:
    """Print the status and return the exit status. Raises `NotRunning`."""
    document = anyio.run(partial(_document, directory))
    if is_json:
        print_json(document)
    else:
        _print(document)
    return DONE if document["ready"] else FAILED


def _print(document: dict[str, Any]) -> None:
    import msgspec

    from nodeless.cli.functions import COLUMNS

    context = f" (context {document['context']})" if document["context"] else ""
    memory: SystemMemory = document["memory"]
    print(f"home         {document['home']}, running since {short_time(document['supervisor']['since'])}")
    print(f"kubeconfig   {document['kubeconfig']}{context}")
    print(f"NATS         {document['nats_url']} (credentials {document['nats_credentials'] or 'none'})")
    print(f"gateway      {document['gateway_url']} (bearer token in {document['gateway_token_file']})")
    print(
        f"memory       {memory.total_mb:.0f} MB in all, {memory.own_mb:.0f} MB of it our own programs "
        "(proportional set sizes: shared pages counted once)\n"
    )
    now = datetime.now(UTC)
    rows = [msgspec.structs.asdict(each) | {"age": age(each.since, now)} for each in document["components"]]
    print_rows(rows, COMPONENT_COLUMNS, empty="")
    for each in document["components"]:
        if not each.healthy and each.state not in COMING:
            ended = f"; the last time it {each.last_end}" if each.last_end else ""
            sys.stderr.write(f"{each.component} is not well ({each.state}){ended}; its log is {each.log}\n")
    print()
    if document["functions"] is None:
        sys.stderr.write(f"functions cannot be listed: {document['functions_error']}\n")
    else:
        print_rows(document["functions"], COLUMNS, empty="no functions; deploy one with `nodeless deploy PATH`")
