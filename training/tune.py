"""Tries settings of the embedded prior's presets: `python -m training.tune VARIANTS OUT`.

VARIANTS has a line per variant: a name, a bar, and settings as for `--set`. Every variant makes assets of the
same training combinations, which `training.assets.assess` measures. OUT receives a table, and a contact sheet per
variant and of the world.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing import Queue, TimeoutError, get_context
from pathlib import Path
from typing import Annotated

import torch
import typer

from segdream_cli.config import AUTO
from segdream_cli.evaluate.judge import Judge
from segdream_cli.util.devices import choose_device
from training.assets import (
    JUDGE,
    SMOKE,
    Reference,
    assess,
    choose,
    distill,
    keep_known,
    load_mini,
    world_reference,
    world_views,
    write_sheet,
)
from training.world.catalog import Combination, combinations

COLUMNS = {
    "object": ".4f",
    "color": ".4f",
    "attribute": ".4f",
    "view": ".4f",
    "azimuth": ".4f",
    "floaters": ".4f",
    "edges_256": ".3f",
    "solid": ".4f",
    "solid_lowest": ".4f",
    "roof_px": ".2f",
    "side_px": ".2f",
    "needles": ".4f",
    "frechet": ".3f",
    "gaussians": ".0f",
}
"""Figures of the table and their formats."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The inputs that all variants share."""

    quality: str
    seed: int
    judge: Path
    out: Path
    chosen: list[Combination]
    reference: Reference


device = torch.device("cpu")
"""The device of this process: a worker takes its own from the queue when it starts."""


def take_device(devices: "Queue[str]") -> None:
    """Gives this worker the next device of the queue."""
    global device
    device = torch.device(devices.get())


@cache
def load_judge(folder: Path) -> Judge:
    """The judge, loaded once per process."""
    return Judge.load(folder, device)


def try_variant(name: str, assignments: tuple[str, ...], setup: Setup) -> str:
    """Makes and measures the assets of a variant; returns a row of the table."""
    prompts = [one.caption() for one in setup.chosen]
    pipeline = load_mini(setup.quality, assignments, device)
    begin = time.perf_counter()
    seeds = range(setup.seed, setup.seed + len(prompts))
    assets = [asset.gaussians for asset in distill(pipeline, prompts, seeds)]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - begin) / len(assets)
    found = assess(assets, setup.chosen, load_judge(setup.judge), setup.reference, setup.seed)
    write_sheet(setup.out / f"{name}.webp", found.views.images, prompts)
    figures = found.figures()
    values = " | ".join(f"{figures[key]:{form}}" for key, form in COLUMNS.items())
    return f"| {name} | {values} | {seconds:.2f} | {' '.join(assignments)} |"


def read_variants(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names and settings of the lines that are not comments."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, settings = line.partition("|")
            yield name.strip(), tuple(settings.split())


def main(
    variants: Path,
    out: Path,
    workers: Annotated[int, typer.Option(help="Processes per device.")] = 4,
    count: Annotated[int, typer.Option(help="Assets of each variant.")] = 24,
    minutes: Annotated[float, typer.Option(help="Time after which the command stops waiting for results.")] = 5.0,
    quality: str = "standard",
    seed: int = 7,
    devices: Annotated[str, typer.Option(help="Devices, separated by commas: cuda:0,cuda:1.")] = AUTO,
    judge: Annotated[Path, typer.Option(help="The judge's folder.")] = JUDGE,
    extra: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, a setting of all variants, which a variant may change."),
    ] = None,
    smoke: Annotated[bool, typer.Option(help="Two assets and three steps of each.")] = False,
) -> None:
    """Scores the variants in order, and prints the table as it grows."""
    begin = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    common, last = tuple(extra or ()), SMOKE if smoke else ()
    places = [str(choose_device(name)) for name in devices.split(",")]
    known = keep_known(
        load_mini(quality, common + last, torch.device("cpu")), [one for one in combinations() if not one.held_out]
    )
    chosen = choose(known, 2 if smoke else count, seed)
    write_sheet(out / "world.webp", world_views(chosen, seed).images, [one.caption() for one in chosen])
    reference = world_reference(chosen, Judge.load(judge, places[0]), seed)
    setup = Setup(quality, seed, judge, out, chosen, reference)
    print(f"{time.monotonic() - begin:.0f} s to draw the world", flush=True)
    trials = [(name, common + settings + last, setup) for name, settings in read_variants(variants)]
    header = f"| variant | {' | '.join(COLUMNS)} | s each | settings |\n|{' --- |' * (len(COLUMNS) + 3)}"
    print(header, flush=True)
    context = get_context("spawn")
    queue = context.Queue()
    for place in places * workers:
        queue.put(place)
    with (
        context.Pool(workers * len(places), take_device, (queue,)) as pool,
        (out / "table.md").open("w", encoding="utf-8") as table,
    ):
        table.write(header + "\n")
        results = [pool.apply_async(try_variant, trial) for trial in trials]
        for (name, *_), result in zip(trials, results, strict=True):
            left = begin + 60 * minutes - time.monotonic()
            try:
                row = result.get(max(left, 0))
            except TimeoutError:
                continue
            except Exception as problem:  # a variant that fails must not lose the others
                row = f"| {name} | {problem} |"
            print(row, flush=True)
            table.write(row + "\n")
            table.flush()


if __name__ == "__main__":
    typer.run(main)
