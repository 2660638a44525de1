"""Cold start: publish -> the handler's first instruction, with the function at zero workers before each run.

Through the real API server and the real scheduler, the broker syncing before it acknowledges, the bundle already on
the node.
"""

import asyncio
import statistics
import sys
import time
import uuid

from rich.progress import Progress

from bus.core.event import Event
from nodeless.cli.target import Target
from scripts.benches.report import Report, Row, machine, quantile
from scripts.benches.system import deployed, running_system
from scripts.observe import STEPS, Observer, observe

RUNS = 30
WARM_UPS = 2
RESULT_WAIT_S = 20.0
ZERO_WAIT_S = 60.0
SETTLE_S = 0.5
FUNCTION = "cold"
SOURCE = """
from nodeless import Event, function

@function(subject="events.bench.cold", idle="0s")
def cold(event: Event) -> str:
    return "done"
"""


async def run(runs: int, progress: Progress) -> Report:
    task = progress.add_task("cold start", total=runs + WARM_UPS)
    samples: list[dict[str, float]] = []
    interpreters_s: list[float] = []
    with running_system() as home, deployed(home, SOURCE):
        target = Target.of_home(home)
        async with observe(target, FUNCTION) as observer:
            for index in range(runs + WARM_UPS):
                sample = await one_cold_start(observer)
                interpreter_s = await fresh_interpreter()
                if index >= WARM_UPS:
                    samples.append(sample)
                    interpreters_s.append(interpreter_s)
                progress.advance(task)
    medians = {name: statistics.median(sample[name] for sample in samples) for name in ("total", *STEPS)}
    rows: list[Row] = []
    for name in ("total", *STEPS):
        values = [sample[name] * 1000 for sample in samples]
        rows += [
            Row(f"{name}_p50_ms", round(statistics.median(values), 2), "ms", runs),
            Row(f"{name}_p95_ms", round(quantile(values, 0.95), 2), "ms", runs),
        ]
    return Report(
        bench="cold-start",
        machine=machine(),
        rows=(*rows, Row("interpreter_p50_ms", round(statistics.median(interpreters_s) * 1000, 2), "ms", runs)),
        ratios={
            "total_to_fresh_interpreter": round(medians["total"] / statistics.median(interpreters_s), 3),
            "kubernetes_share": round((medians["created"] + medians["bound"]) / medians["total"], 3),
        },
        notes=(
            "total: publish called -> handler entered; each other row: from the step before it.",
            "interpreter: a fresh Python that imports the worker and does nothing else, started between the runs.",
            "kubernetes_share: creating and binding the pod, of the total.",
            "Broker: sync_interval always. created and bound are as seen by a watch of the API server.",
        ),
    )


async def fresh_interpreter() -> float:
    """Return the seconds that a worker's interpreter takes to start and import, as one that is not forked would."""
    started_s = time.monotonic()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import workers.runtime")
    await process.wait()
    return time.monotonic() - started_s


async def one_cold_start(observer: Observer) -> dict[str, float]:
    """Publish to a sleeping function and return the seconds of each step; waits until it sleeps again."""
    await no_pods(observer)
    await asyncio.sleep(SETTLE_S)
    event = Event(subject="events.bench.cold", id=str(uuid.uuid4()), source="bench", type="bench.cold", data=b"{}")
    published_s = time.time()
    await observer.connection.publish(event)
    stored_s = time.time()
    result = await observer.result_of(event.digest, RESULT_WAIT_S)
    moments = observer.steps(stored_s, result)
    sample = {"total": moments["handler"] - published_s}
    before_s = published_s
    for name in STEPS:
        sample[name] = moments[name] - before_s
        before_s = moments[name]
    return sample


async def no_pods(observer: Observer) -> None:
    deadline_s = time.monotonic() + ZERO_WAIT_S
    while observer.live_pods:
        if time.monotonic() > deadline_s:
            raise TimeoutError(
                f"{FUNCTION} still has workers {ZERO_WAIT_S:.0f} s after its last event: {observer.live_pods}"
            )
        await asyncio.sleep(0.02)
