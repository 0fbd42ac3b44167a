"""Tries settings of the embedded prior's presets: `python -m training.tune VARIANTS OUT`.

VARIANTS has a line per variant: a name, a bar, and settings as for `--set`. Every variant makes assets of the
same training combinations, which the judge reads. OUT receives a table, a contact sheet per variant, and one of the
prior's own samples.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing import TimeoutError, get_context
from pathlib import Path
from typing import Annotated

import torch
import typer

from segdream_cli.config import AUTO
from segdream_cli.evaluate.judge import Judge
from segdream_cli.evaluate.measures import COLUMNS, Scores, score
from segdream_cli.util.devices import choose_device
from training.assets import (
    JUDGE,
    choose,
    distill,
    keep_known,
    label,
    load_mini,
    render_views,
    sample_views,
    write_sheet,
)
from training.world.catalog import Combination, combinations

SAMPLE_GUIDANCE = 3.0


@dataclass(frozen=True, slots=True)
class Setup:
    """The inputs that all variants share."""

    quality: str
    count: int
    seed: int
    device: str
    judge: Path
    out: Path


@cache
def load_judge(setup: Setup) -> Judge:
    """The judge, loaded once per process."""
    return Judge.load(setup.judge, setup.device)


@cache
def prepare(setup: Setup) -> tuple[list[Combination], Scores]:
    """The training combinations that every variant makes, and the scores of the prior's own samples of them.

    Every process draws the samples once.
    """
    pipeline = load_mini(setup.quality, (), torch.device(setup.device))
    pool = keep_known(pipeline, [one for one in combinations() if not one.held_out])
    chosen = choose(pool, setup.count, setup.seed)
    prompts = [one.caption() for one in chosen]
    images = sample_views(pipeline, prompts, setup.seed, SAMPLE_GUIDANCE)
    write_sheet(setup.out / "samples.webp", images, prompts)
    return chosen, score(images, [label(one) for one in chosen], load_judge(setup))


def try_variant(name: str, assignments: tuple[str, ...], setup: Setup) -> str:
    """Makes and scores the assets of a variant; returns a row of the table."""
    begin = time.perf_counter()
    chosen, samples = prepare(setup)
    prompts = [one.caption() for one in chosen]
    pipeline = load_mini(setup.quality, assignments, torch.device(setup.device))
    views = render_views(pipeline, distill(pipeline, prompts, setup.seed), setup.seed)
    scores = score(views.images, [label(one) for one in chosen], load_judge(setup), views.alphas)
    write_sheet(setup.out / f"{name}.webp", views.images, prompts)
    figures = scores.means() | {key: scores.ratio(samples, key) for key in ("gradient", "edges")}
    values = " | ".join(f"{figures[key]:.4f}" for key in COLUMNS)
    return f"| {name} | {values} | {time.perf_counter() - begin:.0f} | {' '.join(assignments)} |"


def read_variants(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names and settings of the lines that are not comments."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, settings = line.partition("|")
            yield name.strip(), tuple(settings.split())


def main(
    variants: Path,
    out: Path,
    workers: Annotated[int, typer.Option(help="Processes that share the device.")] = 4,
    count: Annotated[int, typer.Option(help="Assets of each variant.")] = 24,
    minutes: Annotated[float, typer.Option(help="Time after which the command stops waiting for results.")] = 5.0,
    quality: str = "standard",
    seed: int = 7,
    device: str = AUTO,
    judge: Annotated[Path, typer.Option(help="The judge's folder.")] = JUDGE,
    smoke: Annotated[bool, typer.Option(help="Two assets and three steps of each.")] = False,
) -> None:
    """Scores the variants in order, and prints the table as it grows."""
    begin, setup = time.monotonic(), Setup(quality, 2 if smoke else count, seed, str(choose_device(device)), judge, out)
    out.mkdir(parents=True, exist_ok=True)
    extra = ("optim.steps=3",) if smoke else ()
    trials = [(name, settings + extra, setup) for name, settings in read_variants(variants)]
    header = f"| variant | {' | '.join(COLUMNS)} | s | settings |\n|{' --- |' * (len(COLUMNS) + 3)}"
    print(header, flush=True)
    with get_context("spawn").Pool(workers) as pool, (out / "table.md").open("w", encoding="utf-8") as table:
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
