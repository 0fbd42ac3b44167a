"""Quality of spoilt assets before and after `segdream refine`, by the judge: `python -m benchmarks.refine --help`.

The assets are surfaces of the procedural world. Each is spoilt in one way, written to a file, refined with its prompt,
and read again from eight azimuths; the row "intact" is the asset before the damage.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.record import record
from segdream_cli import formats
from segdream_cli.config import AUTO, MINI
from segdream_cli.config.values import parse_assignments
from segdream_cli.evaluate.judge import Judge
from segdream_cli.evaluate.measures import Scores, score
from segdream_cli.optimize.start import neighbour_distance
from segdream_cli.render.cameras import frame_sphere, turntable_azimuths
from segdream_cli.render.view import render
from segdream_cli.runs.jobs import Job
from segdream_cli.runs.session import Session
from segdream_cli.runs.source import source_of
from segdream_cli.runs.spec import Request
from segdream_cli.splats import SH_C0, Splats
from segdream_cli.splats.gaussians import Gaussians
from segdream_cli.util.devices import choose_device
from training.assets import (
    ELEVATION_DEG,
    JUDGE,
    SIZE,
    VIEWS,
    Views,
    choose,
    keep_known,
    label,
    pale_backgrounds,
    write_sheet,
)
from training.train_judge import CLASSES
from training.world.catalog import Combination, build, combinations
from training.world.render import sample_surface

POINTS = 8000
"""Gaussians of an intact asset."""
SHOWN = ("object", "color", "attribute", "view", "azimuth", "floaters", "edges")
"""Columns of the table, beside the PSNR to the intact asset."""


def sculpt(combination: Combination, rng: np.random.Generator) -> Splats:
    """An intact asset: round Gaussians on the surface of an instance of the world."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    points, colors = (part[0] for part in sample_surface(*build([combination], rng), POINTS, generator))
    return Splats(
        means=points.numpy(),
        quats=np.tile(np.float32([1, 0, 0, 0]), (POINTS, 1)),
        log_scales=neighbour_distance(points).log()[:, None].repeat(1, 3).numpy(),
        opacity_logits=np.full(POINTS, 3, np.float32),
        sh0=((colors - 0.5) / SH_C0).numpy(),
        shN=np.zeros((POINTS, 0, 3), np.float32),
    )


def shift_centers(splats: Splats, rng: np.random.Generator) -> Splats:
    """Noise on the centres, 4 % of the radius."""
    noise = rng.normal(0, 0.04, splats.means.shape).astype(np.float32)
    return dataclasses.replace(splats, means=splats.means + noise)


def mottle(splats: Splats, rng: np.random.Generator) -> Splats:
    """Noise on the colours, with a standard deviation of 0.3 per channel."""
    noise = (rng.normal(0, 0.3, splats.sh0.shape) / SH_C0).astype(np.float32)
    return dataclasses.replace(splats, sh0=splats.sh0 + noise)


def cut_holes(splats: Splats, rng: np.random.Generator) -> Splats:
    """Eight holes, each of the nearest 4 % of the Gaussians around one of them."""
    kept = np.ones(len(splats), bool)
    for at in splats.means[rng.integers(len(splats), size=8)]:
        distance = np.linalg.norm(splats.means - at, axis=1)
        kept &= distance > np.quantile(distance, 0.04)
    return splats.select(np.flatnonzero(kept))


def thin(splats: Splats, rng: np.random.Generator) -> Splats:
    """A tenth of the Gaussians, as large as before."""
    return splats.select(np.sort(rng.permutation(len(splats))[: len(splats) // 10]))


SPOILS: dict[str, Callable[[Splats, np.random.Generator], Splats]] = {
    "centers": shift_centers,
    "colors": mottle,
    "holes": cut_holes,
    "tenth": thin,
}


def look(assets: Sequence[Splats], device: torch.device, seed: int) -> Views:
    """Images of assets from eight azimuths over pale backgrounds, the same ones for the same seed."""
    cameras = frame_sphere(turntable_azimuths(VIEWS), torch.full((VIEWS,), ELEVATION_DEG), SIZE).to(device)
    generator = torch.Generator().manual_seed(seed)
    images, alphas = [], []
    for splats in assets:
        with torch.no_grad():
            rendering = render(Gaussians.from_splats(splats).to(device), cameras)
        behind = pale_backgrounds(VIEWS, SIZE, generator).to(device)
        images.append(rendering.over(behind.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).clamp(0, 1))
        alphas.append(rendering.alpha[..., 0])
    return Views(torch.stack(images), torch.stack(alphas))


def psnr(images: Tensor, others: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB."""
    return float(-10 * (images - others).square().mean((2, 3, 4)).clamp_min(1e-10).log10().mean())


def refine_all(
    session: Session, assets: Sequence[Splats], prompts: Sequence[str], folder: Path, seed: int
) -> list[Splats]:
    """Writes assets, refines the files with their prompts, and reads the results."""
    jobs = []
    for i, (splats, prompt) in enumerate(zip(assets, prompts, strict=True)):
        path = folder / f"{i}.ply"
        formats.write(path, splats)
        jobs.append(Job(prompt, seed + i, folder / f"{i}-refined.ply", source_of(path)))
    session.generate_all(jobs, force=True)
    return [formats.read(job.output) for job in jobs]


def main(
    model: Annotated[Path | None, typer.Option(help="A checkpoint's folder in place of the embedded one.")] = None,
    judge: Annotated[Path, typer.Option(help="The judge's folder.")] = JUDGE,
    device: str = AUTO,
    count: Annotated[int, typer.Option(help="Number of prompts.")] = 32,
    quality: str = "standard",
    assignments: Annotated[list[str] | None, typer.Option("--set", help="key=value, a setting.")] = None,
    batch: Annotated[int | None, typer.Option(help="Assets refined in lock step; by default the prior's own.")] = None,
    spoils: Annotated[list[str] | None, typer.Option("--spoil", help=f"One of {', '.join(SPOILS)}.")] = None,
    seed: int = 0,
    sheet: Annotated[Path | None, typer.Option(help="WebP contact sheet to write: before and after in turn.")] = None,
    keep_figures: Annotated[bool, typer.Option("--record", help="Keep the figures in results.json.")] = False,
    smoke: Annotated[bool, typer.Option(help="One prompt that it knows, a few iterations, any judge.")] = False,
) -> None:
    """Spoils assets, refines them, judges them, and prints the table."""
    settings = parse_assignments(assignments or ())
    if smoke:
        count, spoils = 1, spoils or ["tenth"]
        rounds = {"t0": 200, "steps": 2, "views": 4, "iterations": 4, "image_size": 64, "gaussians": 0}
        settings = {f"refine.{name}": [value] for name, value in rounds.items()} | settings
    place = choose_device(device)
    request = Request(
        quality=quality,
        settings={"prior.name": MINI, "prior.model": model and str(model), **settings},
        device=str(place),
        refines=True,
    )
    session = Session.load(request, batch=batch)
    reader = Judge(CLASSES).eval().to(place) if smoke and not judge.exists() else Judge.load(judge, place)
    pool = [one for one in combinations() if not one.held_out or not smoke]
    shown = choose(keep_known(session.pipeline, pool), count, seed)
    prompts, labels = [one.caption() for one in shown], [label(one) for one in shown]
    rng = np.random.default_rng(seed)
    intact = [sculpt(one, rng) for one in shown]
    truth = look(intact, place, seed)

    def judge_views(views: Views) -> tuple[Scores, float]:
        return score(views.images, labels, reader, views.alphas), psnr(views.images, truth.images)

    print("| | " + " | ".join((*SHOWN, "PSNR")) + " |\n| --- |" + " --- |" * (len(SHOWN) + 1))
    print(row("intact", *judge_views(truth)))
    rows, seconds = [], 0.0
    for name in spoils or list(SPOILS):
        spoilt = [SPOILS[name](splats, rng) for splats in intact]
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            refined = refine_all(session, spoilt, prompts, Path(folder), seed)
        seconds += time.perf_counter() - begin
        for stage, assets in (("before", spoilt), ("after", refined)):
            views = look(assets, place, seed)
            rows.append(views.images)
            scores, similarity = judge_views(views)
            print(row(f"{name}, {stage}", scores, similarity))
            if keep_figures and not smoke:
                record_all(f"refine_{name}_{stage}", scores, similarity, str(place))
    if keep_figures and not smoke:
        record("refine_prompts", count, "1", str(place))
    print(f"\n{len(rows) // 2 * count} assets, {seconds / (len(rows) // 2 * count):.2f} s each")
    if sheet:
        write_sheet(sheet, torch.stack(rows, 1).flatten(0, 1), [one for one in prompts for _ in rows])


def row(title: str, scores: Scores, similarity: float) -> str:
    """A row of the table."""
    figures = scores.means()
    return f"| {title} | " + " | ".join(f"{figures[name]:.4f}" for name in SHOWN) + f" | {similarity:.2f} |"


def record_all(prefix: str, scores: Scores, similarity: float, device: str) -> None:
    """Keeps the figures of one row in results.json."""
    figures = scores.means()
    for name, key in (("object", "object"), ("colour", "color"), ("attribute", "attribute"), ("view", "view")):
        record(f"{prefix}_{name}", figures[key], "share", device)
    record(f"{prefix}_psnr", similarity, "dB", device)


if __name__ == "__main__":
    typer.run(main)
