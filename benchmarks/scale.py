"""Lists on 1 to 1,000 GPUs, simulated with the real dispatcher and measured times; writes the plot of docs/cluster.md.

    python -m benchmarks.scale                      # the table, and docs/scale.svg
    python -m benchmarks.scale --gpus 8 --assets 20 # one size

A machine has eight GPUs. Its times are those of Stable Diffusion 2.1-base on an H100 in RESULTS.md. Preemption takes a
machine away after two hours on average, and another one joins five minutes later.
"""

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet import Machine, SimulatedCrew, Times
from segdream_cli.runs.cluster import BYTES_PER_S, CHECKPOINT, PORTIONS_PER_S
from segdream_cli.runs.dispatcher import Dispatcher
from segdream_cli.runs.jobs import Job
from segdream_cli.runs.reporter import discard
from segdream_cli.runs.spec import JobSpec, Request
from segdream_cli.runs.stopping import StopRequest
from segdream_cli.runs.survey import Surveyed

PLOT = Path(__file__).parents[1] / "docs" / "scale.svg"
SIZES = (1, 8, 64, 512)
GPUS_PER_MACHINE = 8
STEPS, STEP_S = 5000, 0.0731
START_S, LOAD_S, COMPILE_S = 12.0, 34.0, 180.0
SAVE_S, DETECT_S = 60.0, 10.0
LIFE_S, REPLACE_S = 7200.0, 300.0
KINDS = {
    "steady": (False, True, True),
    "preemption": (True, True, True),
    "preemption, files travel": (True, False, True),
    "preemption, each machine compiles": (True, True, False),
}
"""Name -> whether machines are taken away, whether they share a folder, and whether they share compiled code."""


@dataclass(frozen=True)
class Result:
    """A simulated list.

    Args:
        hours: from its start to its end.
        efficiency: GPU time of the steps that assets need, over that of all GPUs until the end.
        repeated: share of the steps that were computed again.
        tail: share of the time in which a GPU had nothing to do although the list had not ended.
        messages: per second, to the driver.
        driver: share of a core that the dispatcher needs.
        lost: number of workers lost.
    """

    hours: float
    efficiency: float
    repeated: float
    tail: float
    messages: float
    driver: float
    lost: int


def machines_of(gpus: int, draw: random.Random, *, preempted: bool) -> list[Machine]:
    """The machines of a list, and those that replace them."""
    found = []
    for number in range(-(-gpus // GPUS_PER_MACHINE)):
        workers = min(GPUS_PER_MACHINE, gpus - number * GPUS_PER_MACHINE)
        joins = 0.0
        for life in range(200 if preempted else 1):
            dies = joins + draw.expovariate(1 / LIFE_S) if preempted else float("inf")
            found.append(Machine(f"machine {number}.{life}", workers, joins=joins, dies=dies))
            joins = dies + REPLACE_S
            if joins > 20 * 3600:
                break
    return found


def simulate(gpus: int, assets: int, kind: str, seed: int = 0) -> Result:
    """A list of so many assets per GPU."""
    preempted, shares_folder, shares_code = KINDS[kind]
    travel = 0.0 if shares_folder else gpus * CHECKPOINT / BYTES_PER_S
    times = Times(
        start=START_S,
        load=LOAD_S,
        compile=COMPILE_S,
        step=STEP_S,
        save_every=max(SAVE_S, travel),
        detect=DETECT_S,
        report_every=max(1.0, gpus / PORTIONS_PER_S),
    )
    machines = machines_of(gpus, random.Random(seed), preempted=preempted)
    compiled = {machine.host for machine in machines} if shares_code else set()
    crew = SimulatedCrew(machines, times, steps=STEPS, compiled=compiled)
    jobs = tuple(Job(f"asset {number}", number, Path(f"/nowhere/{number}.ply")) for number in range(gpus * assets))
    found = [Surveyed(job.seed + 1, job, "", STEPS, STEPS) for job in jobs]
    lost: list[int] = []
    spec = JobSpec(request=Request(), jobs=jobs, as_list=True)
    begin = time.process_time()
    Dispatcher(
        spec,
        found,
        crew,
        lambda event: lost.append(event.lost) if hasattr(event, "lost") else discard(event),
        StopRequest(),
    ).run()
    needed = len(jobs) * STEPS * STEP_S
    idle = sum(crew.clock - end for end in crew.idle_since.values())
    return Result(
        hours=crew.clock / 3600,
        efficiency=needed / (crew.clock * gpus),
        repeated=crew.steps_done / (len(jobs) * STEPS) - 1,
        tail=idle / (crew.clock * gpus),
        messages=crew.messages / crew.clock,
        driver=(time.process_time() - begin) / crew.clock,
        lost=lost[-1],
    )


def plot(results: dict[str, list[Result]], sizes: Sequence[int]) -> str:
    """The efficiency over the number of GPUs as SVG."""
    width, height, left, top = 720, 380, 60, 20
    colors = ("#1b6ca8", "#d1495b", "#edae49", "#3c6e47")

    def x(index: int) -> float:
        return left + index * (width - left - 20) / max(1, len(sizes) - 1)

    def y(value: float) -> float:
        return top + (1 - value) * (height - 130)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line x1="{left}" y1="{y(value):.1f}" x2="{width - 20}" y2="{y(value):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.0%}</text>')
    for index, size in enumerate(sizes):
        parts.append(f'<text x="{x(index):.1f}" y="{y(0) + 18:.1f}" text-anchor="middle">{size:,}</text>')
    parts.append(f'<text x="{(left + width) / 2}" y="{y(0) + 36:.1f}" text-anchor="middle">GPUs</text>')
    for index, (kind, line) in enumerate(results.items()):
        points = " ".join(f"{x(i):.1f},{y(result.efficiency):.1f}" for i, result in enumerate(line))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colors[index]}" stroke-width="2"/>')
        legend = y(0) + 56 + 14 * index
        parts.append(f'<rect x="{left}" y="{legend - 8:.1f}" width="18" height="4" fill="{colors[index]}"/>')
        parts.append(f'<text x="{left + 26}" y="{legend:.1f}">{kind}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Simulates, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--assets", type=int, default=5, help="assets per GPU")
    parser.add_argument("--no-plot", action="store_true")
    options = parser.parse_args()
    results: dict[str, list[Result]] = {}
    print("| list | GPUs | hours | efficiency | repeated | idle at the end | workers lost | messages per s | driver |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind in KINDS:
        for gpus in options.gpus:
            result = simulate(gpus, options.assets, kind)
            results.setdefault(kind, []).append(result)
            print(
                f"| {kind} | {gpus:,} | {result.hours:.2f} | {result.efficiency:.1%} | {result.repeated:.1%} "
                f"| {result.tail:.1%} | {result.lost} | {result.messages:.1f} | {result.driver:.1%} |",
                flush=True,
            )
    if not options.no_plot:
        PLOT.write_text(plot(results, options.gpus), encoding="utf-8")


if __name__ == "__main__":
    main()
