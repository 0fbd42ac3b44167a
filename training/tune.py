"""Tries settings of the embedded prior's presets: `python -m training.tune VARIANTS OUT`.

VARIANTS holds a line for each: a name, a bar, and settings as `--set` takes them. Every variant makes assets of the
same training combinations, which the judge reads; OUT receives a table, a contact sheet of each, and one of the prior's
own samples.
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

from benchmarks.mini_quality import JUDGE, Scores, choose, distil, known_to, measure, opened, photograph, sample
from benchmarks.mini_quality import write_sheet as write
from segdream_cli.config import AUTO
from segdream_cli.util.devices import choose_device
from training.judge import Judge
from training.world.catalog import Combination, combinations

COLUMNS = ("object", "color", "attribute", "view", "azimuth", "floaters", "faint", "gradient", "edges")
SAMPLE_GUIDANCE = 3.0


@dataclass(frozen=True, slots=True)
class Trial:
    """A variant and what all of them share."""

    name: str
    assignments: tuple[str, ...]
    quality: str
    count: int
    seed: int
    device: str
    out: Path


@cache
def reader(device: str) -> Judge:
    """The judge, loaded once a process."""
    return Judge.load(JUDGE, torch.device(device))


def chosen(trial: Trial) -> list[Combination]:
    """The training combinations that every variant makes."""
    place = torch.device(trial.device)
    pool = known_to(opened(trial.quality, (), place), [one for one in combinations() if not one.held_out])
    return choose(pool, trial.count, trial.seed)


@cache
def sampled(quality: str, count: int, seed: int, device: str, out: Path) -> Scores:
    """The prior's own samples of the same combinations, which every process draws once."""
    place = torch.device(device)
    shown = chosen(Trial("", (), quality, count, seed, device, out))
    prompts = [one.caption() for one in shown]
    pictures = sample(opened(quality, (), place), prompts, seed, SAMPLE_GUIDANCE)
    write(out / "samples.webp", pictures, prompts)
    return measure(pictures, shown, reader(device))


def score(trial: Trial) -> str:
    """Makes and judges the assets of a variant; a row of the table."""
    begin, place = time.perf_counter(), torch.device(trial.device)
    samples = sampled(trial.quality, trial.count, trial.seed, trial.device, trial.out)
    shown, pipeline = samples.combinations, opened(trial.quality, trial.assignments, place)
    prompts = [one.caption() for one in shown]
    photographs = photograph(pipeline, distil(pipeline, prompts, trial.seed), trial.seed)
    scores = measure(photographs.pictures, shown, reader(trial.device), photographs.alphas)
    write(trial.out / f"{trial.name}.webp", photographs.pictures, prompts)
    figures = scores.figures() | {name: scores.ratio(samples, name) for name in ("gradient", "edges")}
    values = " | ".join(f"{figures[name]:.4f}" for name in COLUMNS)
    seconds = time.perf_counter() - begin
    return f"| {trial.name} | {values} | {seconds:.0f} | {' '.join(trial.assignments)} |"


def read_variants(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names and settings of the lines that are no comments."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, settings = line.partition("|")
            yield name.strip(), tuple(settings.split())


def main(
    variants: Path,
    out: Path,
    workers: Annotated[int, typer.Option(help="Processes that share the device.")] = 4,
    count: Annotated[int, typer.Option(help="Assets of each variant.")] = 24,
    minutes: Annotated[float, typer.Option(help="Time after which no further result is waited for.")] = 5.0,
    quality: str = "standard",
    seed: int = 7,
    device: str = AUTO,
    smoke: Annotated[bool, typer.Option(help="Two assets and three steps of each.")] = False,
) -> None:
    """Scores the variants, the first ones first, and prints the table as it grows."""
    begin, place = time.monotonic(), str(choose_device(device))
    out.mkdir(parents=True, exist_ok=True)
    extra = ("optim.steps=3",) if smoke else ()
    trials = [
        Trial(name, settings + extra, quality, 2 if smoke else count, seed, place, out)
        for name, settings in read_variants(variants)
    ]
    header = f"| variant | {' | '.join(COLUMNS)} | s | settings |\n|{' --- |' * (len(COLUMNS) + 3)}"
    print(header, flush=True)
    with get_context("spawn").Pool(workers) as pool, (out / "table.md").open("w", encoding="utf-8") as table:
        table.write(header + "\n")
        results = [pool.apply_async(score, (trial,)) for trial in trials]
        for trial, result in zip(trials, results, strict=True):
            left = begin + 60 * minutes - time.monotonic()
            try:
                row = result.get(max(left, 0))
            except TimeoutError:
                continue
            except Exception as problem:  # a variant that can't be made is no reason to lose the others
                row = f"| {trial.name} | {problem} |"
            print(row, flush=True)
            table.write(row + "\n")
            table.flush()


if __name__ == "__main__":
    typer.run(main)
