"""Quality of the embedded prior's assets, by the judge: `python -m benchmarks.mini_quality --help`.

    python -m benchmarks.mini_quality --device cuda --assets out/assets --json out/heldout.json --times --record
    python -m benchmarks.mini_quality --device cuda --prompts new --assets out/new --json out/new.json --record
    python -m benchmarks.mini_quality --smoke

Assets of prompts that the prior never saw are distilled and seen from eight azimuths. They are compared with renders of
the same prompts by the procedural world, and with the prior's own samples. `training/train_judge.py` trains the judge.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from benchmarks import batch as batches
from benchmarks.record import record
from segdream_cli import formats
from segdream_cli.config import AUTO
from segdream_cli.evaluate.judge import Judge
from segdream_cli.evaluate.measures import COLUMNS, Scores, score
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.splats.gaussians import Gaussians
from segdream_cli.util.devices import choose_device
from segdream_cli.util.files import atomic_write
from training.assets import (
    JUDGE,
    SMOKE,
    Assessment,
    assess,
    choose,
    distill,
    held_out,
    keep_known,
    label,
    load_mini,
    new_words,
    sample_views,
    world_reference,
    write_sheet,
)
from training.train_judge import CLASSES
from training.world.catalog import Combination, combinations

RECORDED = {
    "object": ("mini_heldout_object", "share"),
    "color": ("mini_heldout_colour", "share"),
    "attribute": ("mini_heldout_attribute", "share"),
    "view": ("mini_heldout_view", "share"),
    "azimuth": ("mini_heldout_azimuth", "share"),
    "floaters": ("mini_heldout_floaters", "share"),
    "gradient_samples": ("mini_heldout_gradient", "ratio"),
    "edges_256": ("mini_edges_ratio", "ratio"),
    "solid": ("mini_solid", "share"),
    "roof_px": ("mini_roof_px", "px"),
    "side_px": ("mini_side_px", "px"),
    "frechet": ("mini_frechet", "1"),
    "gaussians": ("mini_gaussians", "1"),
    "ply_bytes": ("mini_ply_bytes", "bytes"),
    "spz_bytes": ("mini_spz_bytes", "bytes"),
    **{metric: (metric, "s") for metric in batches.METRICS.values()},
}
"""Figure of the held-out list -> metric of results.json and its unit."""
RECORDED_NEW = {
    name: (metric.replace("heldout", "new"), unit)
    for name, (metric, unit) in RECORDED.items()
    if metric.startswith("mini_heldout")
}
"""The same for the list of new words."""


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


def choose_prompts(prompts: str, count: int, seed: int) -> list[Combination]:
    """The combinations of a list: fixed lists of held-out ones, or a choice by `seed` among those of the training."""
    if prompts == "training":
        return choose([one for one in combinations() if not one.held_out], count, seed)
    chosen = held_out() if prompts == "heldout" else new_words()
    if not chosen:
        raise typer.BadParameter("the catalog has no words beyond prompts/heldout.txt")
    return chosen[:count]


def asset_path(folder: Path, prompt: str) -> Path:
    """The asset's file in a folder, named after its prompt."""
    return folder / f"{prompt.replace(' ', '-')}.ply"


def make_assets(
    pipeline: Pipeline, prompts: Sequence[str], seed: int, batch: int, folder: Path | None
) -> tuple[list[Gaussians], float]:
    """An asset per prompt, with the seeds `seed`, `seed` + 1, ...; and the seconds for each that was made.

    Files of the folder are read, and missing ones are made and written. Seconds are NaN if no asset was made.
    """
    stored = {prompt: path for prompt in prompts if folder and (path := asset_path(folder, prompt)).exists()}
    left = {prompt: seed + i for i, prompt in enumerate(prompts) if prompt not in stored}
    begin = batches.now(pipeline.device)
    made = distill(pipeline, list(left), list(left.values()), batch)
    seconds = (batches.now(pipeline.device) - begin) / len(left) if left else math.nan
    assets = {asset.prompt: asset.gaussians for asset in made}
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for prompt, gaussians in assets.items():
            splats = gaussians.splats({"prompt": prompt, "seed": left[prompt]})
            formats.write(asset_path(folder, prompt), splats, "ply-compact")
    for prompt, path in stored.items():
        assets[prompt] = Gaussians.from_splats(formats.read(path)).to(pipeline.device)
    return [assets[prompt] for prompt in prompts], seconds


def report(prompts: Sequence[str], found: Assessment, figures: Mapping[str, float], settings: Sequence[str]) -> Any:
    """All figures as JSON values, in total and per prompt; null for those that are not finite."""
    columns = {name: getattr(found.scores, name).mean(1) for name in ("object", "color", "attribute", "azimuth")}
    columns |= {"view": found.scores.sector.mean(1), "floaters": found.scores.floaters.mean(1)}
    each = [
        asdict(health) | {name: float(values[i]) for name, values in columns.items()}
        for i, health in enumerate(found.health)
    ]

    def finite(values: Mapping[str, float]) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    rows = [{"prompt": prompt, **finite(values)} for prompt, values in zip(prompts, each, strict=True)]
    return {"settings": list(settings), "figures": finite(figures), "prompts": rows}


def main(
    model: Annotated[Path | None, typer.Option(help="A checkpoint's folder in place of the embedded one.")] = None,
    judge: Annotated[Path, typer.Option(help="The judge's folder.")] = JUDGE,
    device: str = AUTO,
    count: Annotated[int, typer.Option(help="Number of prompts.")] = 64,
    prompts: Annotated[
        Literal["heldout", "new", "training"], typer.Option(help="Held-out prompts, those of new words, or others.")
    ] = "heldout",
    quality: str = "standard",
    assignments: Annotated[list[str] | None, typer.Option("--set", help="key=value, a setting.")] = None,
    batch: Annotated[int, typer.Option(help="Assets distilled in lock step.")] = 24,
    seed: int = 0,
    assets: Annotated[Path | None, typer.Option(help="Folder of PLY files to read, and to write if missing.")] = None,
    sample_guidance: Annotated[float, typer.Option(help="Guidance of the prior's own samples; 0: no samples.")] = 3.0,
    sheet: Annotated[Path | None, typer.Option(help="WebP contact sheet of the assets to write.")] = None,
    sample_sheet: Annotated[Path | None, typer.Option(help="WebP contact sheet of the samples to write.")] = None,
    worst: Annotated[int, typer.Option(help="Number of worst prompts in the table.")] = 12,
    out: Annotated[Path | None, typer.Option("--json", help="JSON file of all figures to write.")] = None,
    times: Annotated[bool, typer.Option("--times", help="Measure the time of 1 and 24 assets at once.")] = False,
    keep_figures: Annotated[bool, typer.Option("--record", help="Keep the figures in results.json.")] = False,
    smoke: Annotated[bool, typer.Option(help="Two prompts, a few steps, any judge.")] = False,
) -> None:
    """Makes or reads assets, measures them, and prints the tables."""
    if smoke:
        count, quality, assignments = 2, "draft", [*SMOKE, *(assignments or [])]
    place, settings = choose_device(device), assignments or []
    pipeline = load_mini(quality, settings, place, model)
    reader = Judge(CLASSES).eval().to(place) if smoke and not judge.exists() else Judge.load(judge, place)
    shown = choose_prompts(prompts, count, seed)
    if len(keep_known(pipeline, shown)) < len(shown):
        raise typer.BadParameter("the prior does not know all words of these prompts")
    texts = [one.caption() for one in shown]
    made, seconds = make_assets(pipeline, texts, seed, batch, assets)
    found = assess(made, shown, reader, world_reference(shown, reader, seed), seed)
    figures = {**found.figures(), "seconds": seconds}
    samples = None
    if sample_guidance:
        own = sample_views(pipeline, texts, seed, sample_guidance)
        samples = score(own, [label(one) for one in shown], reader)
        figures |= {f"{name}_samples": found.scores.ratio(samples, name) for name in ("gradient", "edges")}
        if sample_sheet:
            write_sheet(sample_sheet, own, texts)
    if times:
        for assets_at_once, metric in batches.METRICS.items():
            figures[metric] = batches.measure(pipeline, 2 if smoke else assets_at_once)[0]
    print(table(texts, found.scores, samples, worst) + "\n\n| figure | |\n| --- | --- |")
    print("\n".join(f"| {name} | {value:.4f} |" for name, value in figures.items()))
    if sheet:
        write_sheet(sheet, found.views.images, texts)
    if out:
        with atomic_write(out) as temporary:
            temporary.write_text(json.dumps(report(texts, found, figures, settings), indent=1) + "\n", encoding="utf-8")
    if keep_figures and not smoke and prompts != "training":
        record_all(figures, RECORDED if prompts == "heldout" else RECORDED_NEW, str(place))


def record_all(figures: Mapping[str, float], metrics: Mapping[str, tuple[str, str]], device: str) -> None:
    """Keeps the finite figures in results.json."""
    for name, (metric, unit) in metrics.items():
        if math.isfinite(figures.get(name, math.nan)):
            record(metric, figures[name], unit, device)


if __name__ == "__main__":
    typer.run(main)
