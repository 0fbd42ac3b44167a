"""Quality of the embedded prior's assets, by the judge: `python -m benchmarks.mini_quality --help`.

Assets of prompts that the prior never saw are distilled, seen from eight azimuths, and compared with the prior's own
samples of the same prompts and views. `training/train_judge.py` trains the judge.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer

from benchmarks.record import record
from segdream_cli import formats
from segdream_cli.config import AUTO
from segdream_cli.evaluate.judge import Judge
from segdream_cli.evaluate.measures import COLUMNS, Scores, score
from segdream_cli.optimize.state import AssetState
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
from training.train_judge import CLASSES
from training.world.catalog import combinations


def table(prompts: Sequence[str], assets: Scores, samples: Scores | None, worst: int) -> str:
    """The means of assets and samples, and the prompts with the worst assets."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    for title, scores in (("assets", assets), ("samples", samples)):
        if scores is not None:
            figures = scores.means()
            lines.append(f"| {title} | " + " | ".join(f"{figures[name]:.4f}" for name in COLUMNS) + " |")
    lines.append(
        f"\nview (front, side, back) and azimuth (of 8) of {sum(assets.readable)} prompts with readable ones\n"
    )
    lines += ["| worst prompts | object | color | attribute | view | floaters |", "| --- |" + " --- |" * 5]
    columns = [getattr(assets, name).mean(1) for name in ("object", "color", "attribute", "sector")]
    ranks = np.sum(columns[:3], axis=0) + np.where(assets.readable, columns[3], 1) - assets.floaters.mean(1)
    for i in np.argsort(ranks, kind="stable")[:worst]:
        view = f"{columns[3][i]:.2f}" if assets.readable[i] else "-"
        shares = " | ".join(f"{column[i]:.2f}" for column in columns[:3])
        lines.append(f"| {prompts[i]} | {shares} | {view} | {assets.floaters[i].mean():.4f} |")
    return "\n".join(lines)


def main(
    model: Annotated[Path | None, typer.Option(help="A checkpoint's folder in place of the embedded one.")] = None,
    judge: Annotated[Path, typer.Option(help="The judge's folder.")] = JUDGE,
    device: str = AUTO,
    count: Annotated[int, typer.Option(help="Number of prompts.")] = 64,
    combos: Annotated[
        Literal["heldout", "training"], typer.Option(help="Held-out prompts, or those of the training.")
    ] = "heldout",
    quality: str = "standard",
    assignments: Annotated[list[str] | None, typer.Option("--set", help="key=value, a setting.")] = None,
    batch: Annotated[int, typer.Option(help="Assets distilled in lock step.")] = 24,
    seed: int = 0,
    sample_guidance: Annotated[float, typer.Option(help="Guidance of the prior's own samples; 0: no samples.")] = 3.0,
    sheet: Annotated[Path | None, typer.Option(help="WebP contact sheet of the assets to write.")] = None,
    sample_sheet: Annotated[Path | None, typer.Option(help="WebP contact sheet of the samples to write.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder for the assets' PLY files.")] = None,
    worst: Annotated[int, typer.Option(help="Number of worst prompts in the table.")] = 12,
    keep_figures: Annotated[bool, typer.Option("--record", help="Keep the figures in results.json.")] = False,
    smoke: Annotated[bool, typer.Option(help="Two prompts it knows, a few steps, any judge.")] = False,
) -> None:
    """Distils assets, judges them, and prints the tables."""
    if smoke:
        count, quality, assignments = 2, "draft", ["optim.steps=5", *(assignments or [])]
    place = choose_device(device)
    pipeline = load_mini(quality, assignments or (), place, model)
    reader = Judge(CLASSES).eval().to(place) if smoke and not judge.exists() else Judge.load(judge, place)
    pool = [one for one in combinations() if one.held_out == (combos != "training")]
    shown = choose(keep_known(pipeline, pool) if smoke else pool, count, seed)
    prompts, labels = [one.caption() for one in shown], [label(one) for one in shown]
    begin = time.perf_counter()
    assets = distill(pipeline, prompts, seed, batch)
    views = render_views(pipeline, assets, seed)
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    seconds = (time.perf_counter() - begin) / len(assets)
    scores = score(views.images, labels, reader, views.alphas)
    samples = None
    if sample_guidance:
        own = sample_views(pipeline, prompts, seed, sample_guidance)
        samples = score(own, labels, reader)
        if sample_sheet:
            write_sheet(sample_sheet, own, prompts)
    print(table(prompts, scores, samples, worst))
    print(f"\n{len(assets)} assets, {seconds:.2f} s each in batches of {batch}")
    if samples is not None:
        ratios = [f"{name} {scores.ratio(samples, name):.3f}" for name in ("gradient", "edges")]
        print(f"over those of the samples: {', '.join(ratios)}")
    if sheet:
        write_sheet(sheet, views.images, prompts)
    if keep:
        save_assets(keep, assets)
    if keep_figures and not smoke:
        record_all(scores, samples, device=str(place))


def save_assets(folder: Path, assets: Sequence[AssetState]) -> None:
    """Writes each asset as a PLY file named after its prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    for asset in assets:
        splats = asset.gaussians.splats({"prompt": asset.prompt, "seed": asset.seed})
        formats.write(folder / f"{asset.prompt.replace(' ', '-')}.ply", splats)


def record_all(scores: Scores, samples: Scores | None, device: str) -> None:
    """Keeps the figures in results.json."""
    figures = scores.means()
    for name, key in (("object", "object"), ("colour", "color"), ("attribute", "attribute"), ("view", "view")):
        record(f"mini_heldout_{name}", figures[key], "share", device)
    record("mini_heldout_floaters", figures["floaters"], "share", device)
    if samples is not None:
        record("mini_heldout_gradient", scores.ratio(samples, "gradient"), "ratio", device)


if __name__ == "__main__":
    typer.run(main)
