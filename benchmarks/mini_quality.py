"""How good the embedded prior's assets are, read by the judge: `python -m benchmarks.mini_quality --help`.

Assets of prompts that the prior never saw are distilled, seen from eight azimuths, and compared with the prior's own
samples of the same prompts and views. `training/judge.py` trains the judge.

Shapes: p prompts, v views of each, m pictures, s pixels square.
"""

import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from jaxtyping import Bool, Float
from PIL import Image
from scipy import ndimage
from torch import Tensor

from benchmarks.pipelines import pipeline_of
from benchmarks.record import record
from segdream_cli import formats
from segdream_cli.config import AUTO, MINI
from segdream_cli.distill.schedule import NoiseSchedule
from segdream_cli.distill.view_prompts import clean_prompt, conditions, view_weights
from segdream_cli.errors import UsageProblem
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.optimize.state import AssetState
from segdream_cli.priors.stable_diffusion import DiffusionPrior
from segdream_cli.render.cameras import turntable_azimuths, viewing
from segdream_cli.render.images import contact_sheet
from segdream_cli.runs.load import Request
from segdream_cli.util.devices import choose_device
from segdream_cli.util.files import replacing
from training.judge import NAMES, Judge
from training.world.catalog import Combination, combinations

Array = np.ndarray  # NDArray[Any] is a type alias from NumPy 2.5 on, which jaxtyping does not take

JUDGE = Path(__file__).with_name("judge")
VIEWS, ELEVATION_DEG, SIZE = 8, 15.0, 128
SECTOR_OF_AXIS = np.array([0, 1, 2, 1])
"""Place in `judge.SECTORS` of the azimuths 0, 90, 180 and 270."""
READABLE = 0.95
"""The views of an object count where the judge reads at least this share of its held-out renders' azimuths."""
DDIM_STEPS = 50
ROWS = 100
"""Most rows of the contact sheet: WebP pictures are at most 16383 pixels high."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What was measured on pictures of p prompts from v azimuths; shares are of views.

    Args:
        combinations: what each prompt names.
        object, color, attribute, azimuth: whether the judge read the right class; of the azimuth, one of eight.
        sector: whether it read front, side or back right, in the views along the axes.
        readable: whether the views of the prompt's object count.
        gradient: mean gradient magnitude inside the silhouette; NaN where none was found. Blur hardly lowers it, since
            it spreads an edge without changing its height.
        edges: root mean square of the same, which blur does lower.
        floaters: share of the alpha above 0.1 outside its largest connected piece; NaN for pictures without alpha.
        faint: share of the alpha that is not above 0.1; NaN likewise.
    """

    combinations: list[Combination]
    object: Bool[Array, "p v"]
    color: Bool[Array, "p v"]
    attribute: Bool[Array, "p v"]
    azimuth: Bool[Array, "p v"]
    sector: Bool[Array, "p a"]
    readable: Bool[Array, " p"]
    gradient: Float[Array, "p v"]
    edges: Float[Array, "p v"]
    floaters: Float[Array, "p v"]
    faint: Float[Array, "p v"]

    def figures(self) -> dict[str, float]:
        """The mean of each measure; those of views over readable objects only, NaN if there are none."""
        views = {
            "view": self.sector[self.readable].mean() if self.readable.any() else np.nan,
            "azimuth": self.azimuth[self.readable].mean() if self.readable.any() else np.nan,
        }
        shares = {name: getattr(self, name).mean() for name in ("object", "color", "attribute")}
        means = {name: _mean(getattr(self, name)) for name in ("floaters", "faint", "gradient", "edges")}
        return {name: float(value) for name, value in (shares | views | means).items()}

    def ratio(self, samples: "Scores", name: Literal["gradient", "edges"]) -> float:
        """A measure of sharpness over that of samples, in the views where both have a silhouette."""
        own, other = getattr(self, name), getattr(samples, name)
        both = np.isfinite(own) & np.isfinite(other)
        return float(own[both].mean() / other[both].mean()) if both.any() else float("nan")


@dataclass(frozen=True, slots=True)
class Photographs:
    """Assets from all around, over pale backgrounds."""

    pictures: Float[Tensor, "p v 3 s s"]
    alphas: Float[Tensor, "p v s s"]


def choose(pool: Iterable[Combination], count: int, seed: int) -> list[Combination]:
    """`count` combinations, every object as often as any other, attributes and colours as evenly as can be."""
    rng = random.Random(seed)
    left = sorted(pool)
    rng.shuffle(left)
    objects = sorted({one.object for one in left})
    rng.shuffle(objects)
    used: Counter[str] = Counter()
    chosen: list[Combination] = []
    while left and len(chosen) < count:
        for name in objects[: count - len(chosen)]:
            own = [one for one in left if one.object == name]
            if not own:
                continue
            best = min(own, key=lambda one: (used[one.attribute], used[one.color]))
            used.update((best.attribute, best.color))
            left.remove(best)
            chosen.append(best)
    return chosen


def opened(quality: str, assignments: Sequence[str], place: torch.device, model: Path | None = None) -> Pipeline:
    """The embedded prior, or a checkpoint like it, with a preset and changes to it."""
    options = {"prior.name": MINI, "prior.model": model and str(model)}
    request = Request(quality=quality, options=options, assignments=tuple(assignments), device=str(place))
    return pipeline_of(request)


def distil(pipeline: Pipeline, prompts: Sequence[str], seed: int, batch: int = 24) -> list[AssetState]:
    """An asset for each prompt, `batch` at a time in lock step; the seeds are `seed`, `seed` + 1, ..."""
    assets: list[AssetState] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        together = [pipeline.prepare(prompt, seed + start + i) for i, prompt in enumerate(part)]
        for _ in pipeline.run(together):
            pass
        assets += together
    return assets


def photograph(pipeline: Pipeline, assets: Sequence[AssetState], seed: int, size: int = SIZE) -> Photographs:
    """The assets from eight azimuths."""
    generator = torch.Generator().manual_seed(seed)
    cameras = viewing(turntable_azimuths(VIEWS), torch.full((VIEWS,), ELEVATION_DEG), size)
    pictures, alphas = [], []
    for asset in assets:
        rendering = pipeline.render(asset.gaussians, cameras)
        behind = pale_backgrounds(VIEWS, size, generator).to(rendering.rgb.device)
        pictures.append(rendering.over(behind.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).clamp(0, 1))
        alphas.append(rendering.alpha[..., 0])
    return Photographs(torch.stack(pictures), torch.stack(alphas))


def pale_backgrounds(m: int, size: int, generator: torch.Generator) -> Float[Tensor, "m 3 s s"]:
    """Pale colours, the odd ones running into another from top to bottom."""
    ends = 0.75 + 0.25 * torch.rand(m, 3, 2, 1, generator=generator)
    ends[::2, :, 1] = ends[::2, :, 0]
    return torch.nn.functional.interpolate(ends, (size, 1), mode="bilinear", align_corners=True).repeat(1, 1, 1, size)


@torch.no_grad()
def sample(
    pipeline: Pipeline, prompts: Sequence[str], seed: int, guidance_scale: float, prompts_at_once: int = 16
) -> Float[Tensor, "p v 3 s s"]:
    """The prior's own pictures of the prompts with the view phrases of eight azimuths: 50 steps of DDIM."""
    prior, config = pipeline.prior, pipeline.config
    if not isinstance(prior, DiffusionPrior):
        raise TypeError("only a diffusion prior can be sampled")
    schedule = NoiseSchedule(prior.alphas_cumprod)
    generator = torch.Generator().manual_seed(seed)
    azimuths, elevations = turntable_azimuths(VIEWS), torch.full((VIEWS,), ELEVATION_DEG)
    pictures: list[Tensor] = []
    for start in range(0, len(prompts), prompts_at_once):
        part = prompts[start : start + prompts_at_once]
        seen = azimuths.repeat(len(part)), elevations.repeat(len(part))
        weights = view_weights(*seen, prior.profile.views, config.view, perp_neg=False)
        texts = conditions([pipeline.embed(prompt) for prompt in part], weights)
        text = torch.cat([texts.positive, texts.uncond])
        b = len(part) * VIEWS
        latents = torch.randn(b, *prior.latent_shape, generator=generator).to(pipeline.device)
        stride = len(prior.alphas_cumprod) // DDIM_STEPS
        for t in range((DDIM_STEPS - 1) * stride + 1, 0, -stride):
            now, then = torch.full((b,), t), torch.full((b,), max(t - stride, 0))
            positive, negative = prior.predict_noise(latents.repeat(2, 1, 1, 1), now.repeat(2), text).chunk(2)
            latents = schedule.step(latents, negative + guidance_scale * (positive - negative), now, then)
        drawn = torch.nn.functional.interpolate(prior.decode(latents), (SIZE, SIZE), mode="bilinear")
        pictures += drawn.clamp(0, 1).unflatten(0, (len(part), VIEWS))
    return torch.stack(pictures)


def measure(
    pictures: Float[Tensor, "p v 3 s s"],
    shown: Sequence[Combination],
    judge: Judge,
    alphas: Float[Tensor, "p v s s"] | None = None,
) -> Scores:
    """What the judge and the pixels say about pictures from the azimuths 0, 45, ..., and the alpha if there is one."""
    p, v = pictures.shape[:2]
    verdict = judge.verdict(pictures.flatten(0, 1))

    def read(values: Tensor) -> Array:
        return values.cpu().numpy().reshape(p, v)

    def wanted(head: str, field: str) -> Array:
        return np.array([NAMES[head].index(getattr(one, field)) for one in shown])[:, None]

    pixels = pictures.flatten(0, 1).cpu().numpy()
    gradients = np.array([sharpness(picture) for picture in pixels]).reshape(p, v, 2)
    masses = np.full((p, v, 2), np.nan)
    if alphas is not None:
        flat = alphas.flatten(0, 1).cpu().numpy()
        masses = np.array([stray_alpha(alpha) for alpha in flat]).reshape(p, v, 2)
    return Scores(
        combinations=list(shown),
        object=read(verdict.object) == wanted("objects", "object"),
        color=read(verdict.color) == wanted("colors", "color"),
        attribute=read(verdict.attribute) == wanted("attributes", "attribute"),
        azimuth=read(verdict.azimuth) == np.arange(v),
        sector=read(verdict.sector)[:, ::2] == SECTOR_OF_AXIS,
        readable=np.array([judge.azimuth_accuracy.get(one.object, 0) >= READABLE for one in shown]),
        gradient=gradients[..., 0],
        edges=gradients[..., 1],
        floaters=masses[..., 0],
        faint=masses[..., 1],
    )


def stray_alpha(alpha: Float[Array, "s s"]) -> tuple[float, float]:
    """Share of the alpha above 0.1 outside its largest connected piece, and share of all alpha that is below."""
    seen = alpha > 0.1
    pieces, count = ndimage.label(seen, np.ones((3, 3)))
    if not count:
        return 1.0, 1.0
    masses = ndimage.sum_labels(alpha, pieces, np.arange(1, count + 1))
    return 1 - float(masses.max() / masses.sum()), 1 - float(masses.sum() / alpha.sum())


def silhouette(picture: Float[Array, "3 s s"]) -> Bool[Array, "s s"]:
    """The largest thing that differs from the background, a plane through the border's colours.

    The plane follows gradients; it is fitted twice, the second time without what the first fits worst, which is where
    the object reaches the border.
    """
    size = picture.shape[-1]
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    places = np.stack([np.ones_like(x), x, y], -1)  # [s, s, 3]
    border = np.maximum(abs(x), abs(y)) > 0.5 - 3 / size
    ring, colors = places[border], picture[:, border].T
    residual = np.abs(colors - ring @ np.linalg.lstsq(ring, colors)[0]).max(-1)
    kept = residual <= np.quantile(residual, 0.7)
    plane = places @ np.linalg.lstsq(ring[kept], colors[kept])[0]
    differs: Array = np.abs(picture - plane.transpose(2, 0, 1)).max(0) > 0.1
    pieces, count = ndimage.label(differs)
    if not count:
        return differs
    largest = 1 + np.argmax(ndimage.sum_labels(differs, pieces, np.arange(1, count + 1)))
    return np.asarray(ndimage.binary_fill_holes(pieces == largest), bool)


def sharpness(picture: Float[Array, "3 s s"]) -> tuple[float, float]:
    """Mean and root mean square of the gradient magnitude two pixels inside the silhouette; NaN if that is nothing."""
    inside = ndimage.binary_erosion(silhouette(picture), iterations=2)
    if not inside.any():
        return float("nan"), float("nan")
    magnitude = np.hypot(*np.gradient(picture, axis=(1, 2)))[:, inside]
    return float(magnitude.mean()), float(np.sqrt((magnitude**2).mean()))


def table(assets: Scores, samples: Scores | None, worst: int) -> str:
    """The figures of both, and the worst prompts."""
    names = ("object", "color", "attribute", "view", "azimuth", "floaters", "faint", "gradient", "edges")
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for title, scores in (("assets", assets), ("samples", samples)):
        if scores is not None:
            figures = scores.figures()
            lines.append(f"| {title} | " + " | ".join(f"{figures[name]:.4f}" for name in names) + " |")
    lines.append(
        f"\nview (front, side, back) and azimuth (of 8) of {sum(assets.readable)} prompts with readable ones\n"
    )
    lines += ["| worst prompts | object | color | attribute | view | floaters |", "| --- |" + " --- |" * 5]
    columns = [getattr(assets, name).mean(1) for name in ("object", "color", "attribute", "sector")]
    ranks = np.sum(columns[:3], axis=0) + np.where(assets.readable, columns[3], 1) - assets.floaters.mean(1)
    for i in np.argsort(ranks, kind="stable")[:worst]:
        view = f"{columns[3][i]:.2f}" if assets.readable[i] else "-"
        shares = " | ".join(f"{column[i]:.2f}" for column in columns[:3])
        lines.append(f"| {assets.combinations[i].caption()} | {shares} | {view} | {assets.floaters[i].mean():.4f} |")
    return "\n".join(lines)


def write_sheet(path: Path, pictures: Float[Tensor, "p v 3 s s"], prompts: Sequence[str]) -> None:
    """Writes a contact sheet, eight pictures of a prompt beside each other."""
    columns = -(-len(prompts) // ROWS)
    tiles = pictures.permute(0, 1, 3, 4, 2).flatten(0, 1).cpu().numpy()
    labels = [line for prompt in prompts for line in [*wrap(prompt, 20), *[""] * VIEWS][:VIEWS]]
    with replacing(path) as temporary:
        Image.fromarray(contact_sheet(list(tiles), VIEWS * columns, labels)).save(temporary, format="WebP", quality=85)


def known_to(pipeline: Pipeline, pool: Iterable[Combination]) -> list[Combination]:
    """The combinations whose words the prior knows."""

    def known(one: Combination) -> bool:
        try:
            clean_prompt(one.caption(), pipeline.prior.profile.vocabulary)
        except UsageProblem:
            return False
        return True

    return [one for one in pool if known(one)]


def _mean(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def main(
    model: Annotated[Path | None, typer.Option(help="A checkpoint's folder in place of the embedded one.")] = None,
    judge: Annotated[Path, typer.Option(help="The judge's folder.")] = JUDGE,
    device: str = AUTO,
    count: Annotated[int, typer.Option(help="Number of prompts.")] = 64,
    combos: Annotated[
        Literal["heldout", "training"], typer.Option(help="What the prior never saw, or did.")
    ] = "heldout",
    quality: str = "standard",
    assignments: Annotated[list[str] | None, typer.Option("--set", help="key=value, a setting.")] = None,
    batch: Annotated[int, typer.Option(help="Assets distilled in lock step.")] = 24,
    seed: int = 0,
    sample_guidance: Annotated[float, typer.Option(help="Guidance of the prior's own samples; 0: no samples.")] = 3.0,
    sheet: Annotated[Path | None, typer.Option(help="WebP contact sheet of the assets to write.")] = None,
    sample_sheet: Annotated[Path | None, typer.Option(help="The same of the samples.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder for the assets' PLY files.")] = None,
    worst: Annotated[int, typer.Option(help="Number of worst prompts in the table.")] = 12,
    keep_figures: Annotated[bool, typer.Option("--record", help="Keep the figures in results.json.")] = False,
    smoke: Annotated[bool, typer.Option(help="Two prompts it knows, a few steps, any judge.")] = False,
) -> None:
    """Distils assets, judges them, and prints the tables."""
    if smoke:
        count, quality, assignments = 2, "draft", ["optim.steps=5", *(assignments or [])]
    place = choose_device(device)
    pipeline = opened(quality, assignments or (), place, model)
    reader = Judge().eval().to(place) if smoke and not judge.exists() else Judge.load(judge, place)
    pool = [one for one in combinations() if one.held_out == (combos != "training")]
    shown = choose(known_to(pipeline, pool) if smoke else pool, count, seed)
    prompts = [one.caption() for one in shown]
    begin = time.perf_counter()
    assets = distil(pipeline, prompts, seed, batch)
    photographs = photograph(pipeline, assets, seed)
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    seconds = (time.perf_counter() - begin) / len(assets)
    scores = measure(photographs.pictures, shown, reader, photographs.alphas)
    samples = None
    if sample_guidance:
        own = sample(pipeline, prompts, seed, sample_guidance)
        samples = measure(own, shown, reader)
        if sample_sheet:
            write_sheet(sample_sheet, own, prompts)
    print(table(scores, samples, worst))
    print(f"\n{len(assets)} assets, {seconds:.2f} s each in batches of {batch}")
    if samples is not None:
        ratios = [f"{name} {scores.ratio(samples, name):.3f}" for name in ("gradient", "edges")]
        print(f"over those of the samples: {', '.join(ratios)}")
    if sheet:
        write_sheet(sheet, photographs.pictures, prompts)
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
    figures = scores.figures()
    for name, key in (("object", "object"), ("colour", "color"), ("attribute", "attribute"), ("view", "view")):
        record(f"mini_heldout_{name}", figures[key], "share", device)
    record("mini_heldout_floaters", figures["floaters"], "share", device)
    if samples is not None:
        record("mini_heldout_gradient", scores.ratio(samples, "gradient"), "ratio", device)


if __name__ == "__main__":
    typer.run(main)
