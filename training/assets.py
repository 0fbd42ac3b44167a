"""Assets of the world's prompts and the prior's own samples, seen from eight azimuths for the judge to read.

Shapes: p prompts, v views of each, m images, s pixels square.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import wrap

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from segdream_cli import load
from segdream_cli.config import MINI
from segdream_cli.config.values import parse_assignments
from segdream_cli.errors import UsageProblem
from segdream_cli.evaluate.health import SILHOUETTE, Health, examine
from segdream_cli.evaluate.judge import EMBEDDED, Judge, Label
from segdream_cli.evaluate.measures import Array, Scores, frechet, score, sharpness
from segdream_cli.evaluate.references import sample_images
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.optimize.state import AssetState
from segdream_cli.priors.prompt import clean_prompt
from segdream_cli.render.cameras import VIEW_FILL, VIEW_FOV_DEG, frame_sphere, turntable_azimuths
from segdream_cli.render.images import contact_sheet
from segdream_cli.render.view import render
from segdream_cli.splats.gaussians import Gaussians
from segdream_cli.util.files import atomic_write
from training.world.camera import look_at
from training.world.catalog import Combination, build, combinations
from training.world.render import draw

ROOT = Path(__file__).resolve().parents[1]
JUDGE, HELD_OUT = EMBEDDED, ROOT / "prompts" / "heldout.txt"
NEW_KINDS = 40
"""Prompts of `new_words` about objects that `HELD_OUT` does not have."""
VIEWS, ELEVATION_DEG, SIZE = 8, 15.0, 128
FINE_SIZE = 256
"""Side of the images whose edges are compared with the world's."""
INSTANCES = 4
"""World renders per prompt and view for the Frechet distance."""
DDIM_STEPS = 50
SMOKE = (
    "optim.steps=3",
    "refine.t0=[200]",
    "refine.steps=[1]",
    "refine.views=[2]",
    "refine.iterations=[2]",
    "refine.image_size=[0]",
    "refine.gaussians=[0]",
)
"""Settings of runs that only show that a script works; one round of refinement, if it is enabled."""
ROWS = 100
"""Maximum rows of the contact sheet: WebP images are at most 16383 pixels high."""


@dataclass(frozen=True, slots=True)
class Views:
    """Images of assets from eight azimuths, over pale backgrounds."""

    images: Float[Tensor, "p v 3 s s"]
    alphas: Float[Tensor, "p v s s"]


def choose(pool: Iterable[Combination], count: int, seed: int) -> list[Combination]:
    """Chooses `count` combinations: objects equally often, attributes and colours as evenly as possible."""
    rng = random.Random(seed)
    left = sorted(pool)
    rng.shuffle(left)
    objects = sorted({one.object for one in left})
    rng.shuffle(objects)
    used: Counter[str] = Counter()
    chosen: list[Combination] = []
    while left and len(chosen) < count:
        objects = [name for name in objects if any(one.object == name for one in left)]
        for name in objects[: count - len(chosen)]:
            own = [one for one in left if one.object == name]
            best = min(own, key=lambda one: (used[one.attribute], used[one.color]))
            used.update((best.attribute, best.color))
            left.remove(best)
            chosen.append(best)
    return chosen


def held_out() -> list[Combination]:
    """The combinations of `HELD_OUT`, a fixed list that does not follow the catalog.

    Raises:
        KeyError: the catalog has no such combination.
    """
    by_caption = {one.caption(): one for one in combinations() if one.held_out}
    lines = HELD_OUT.read_text(encoding="utf-8").splitlines()
    return [by_caption[line] for line in lines if line and not line.startswith("#")]


def new_words(count: int = 64) -> list[Combination]:
    """Held-out combinations of words that `held_out` lacks: new objects, then older ones with a new attribute."""
    old = held_out()
    objects, attributes = {one.object for one in old}, {one.attribute for one in old}
    pool = [one for one in combinations() if one.held_out]
    chosen = choose([one for one in pool if one.object not in objects], min(NEW_KINDS, count), 0)
    rest = [one for one in pool if one.object in objects and one.attribute not in attributes]
    return chosen + choose(rest, count - len(chosen), 0)


def label(combination: Combination) -> Label:
    """The label that the judge should read in images of a combination."""
    return Label(combination.object, combination.color, combination.attribute)


def load_mini(quality: str, assignments: Sequence[str], device: torch.device, model: Path | None = None) -> Pipeline:
    """The pipeline of the embedded prior, or of another checkpoint of its kind, with a preset and changed settings."""
    path = None if model is None else str(model)
    settings = parse_assignments(assignments)
    return load(quality=quality, prior=MINI, model=path, settings=settings, device=str(device)).pipeline


def distill(pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], batch: int = 24) -> list[AssetState]:
    """Makes an asset per prompt and seed, `batch` at a time in lock step."""
    assets: list[AssetState] = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        together = [pipeline.prepare(*each) for each in zip(prompts[part], seeds[part], strict=True)]
        for _ in pipeline.run(together):
            pass
        assets += together
    return assets


@torch.no_grad()
def render_views(assets: Sequence[Gaussians], seed: int, size: int = SIZE) -> Views:
    """Renders assets from eight azimuths."""
    generator = torch.Generator().manual_seed(seed)
    cameras = frame_sphere(turntable_azimuths(VIEWS), torch.full((VIEWS,), ELEVATION_DEG), size)
    images, alphas = [], []
    for gaussians in assets:
        rendering = render(gaussians, cameras.to(gaussians.device))
        behind = pale_backgrounds(VIEWS, size, generator).to(gaussians.device)
        images.append(rendering.over(behind.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).clamp(0, 1))
        alphas.append(rendering.alpha[..., 0])
    return Views(torch.stack(images), torch.stack(alphas))


def world_views(shown: Sequence[Combination], seed: int, size: int = SIZE, instances: int = 1) -> Views:
    """Draws random instances of combinations by the cameras and over the backgrounds of `render_views`, on the CPU.

    The v views are `instances` times eight azimuths.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    v = VIEWS * instances
    half = np.full(v, np.radians(VIEW_FOV_DEG / 2))
    azimuths = np.tile(turntable_azimuths(VIEWS).numpy(), instances)
    which = np.repeat(np.arange(instances), VIEWS)
    cameras = look_at(which, azimuths, np.full(v, ELEVATION_DEG), np.tan(half), 1 / (VIEW_FILL * np.sin(half)))
    images, alphas = [], []
    for one in shown:
        rgba = draw(*build([one] * instances, rng), cameras, size, torch.device("cpu")).permute(0, 3, 1, 2) / 255
        images.append(rgba[:, :3] + (1 - rgba[:, 3:]) * pale_backgrounds(v, size, generator))
        alphas.append(rgba[:, 3])
    return Views(torch.stack(images), torch.stack(alphas))


@dataclass(frozen=True, slots=True)
class Reference:
    """World renders of prompts, as `assess` compares assets with them."""

    features: Float[Array, "m 640"]
    """The judge's features of all renders."""
    edges: dict[int, Float[Array, "p v"]]
    """Root mean square of the gradient inside the silhouette by side of the image; NaN where there is none."""


def world_reference(shown: Sequence[Combination], judge: Judge, seed: int) -> Reference:
    """Draws and measures the world's renders of combinations."""
    sharp = {size: edges(world_views(shown, seed, size)) for size in (SIZE, FINE_SIZE)}
    return Reference(judge_features(world_views(shown, seed, SIZE, INSTANCES), judge), sharp)


def judge_features(views: Views, judge: Judge) -> Float[Array, "m 640"]:
    """The judge's features of all images."""
    return judge.features(views.images.flatten(0, 1)).cpu().numpy()


def edges(views: Views) -> Float[Array, "p v"]:
    """Root mean square of the gradient inside the silhouette of each image."""
    images, alphas = (each.flatten(0, 1).cpu().numpy() for each in (views.images, views.alphas))
    roots = [sharpness(image, alpha >= SILHOUETTE)[1] for image, alpha in zip(images, alphas, strict=True)]
    return np.array(roots).reshape(views.alphas.shape[:2])


@dataclass(frozen=True, slots=True)
class Assessment:
    """The measures of assets of p prompts."""

    views: Views
    scores: Scores
    health: list[Health]
    edges: dict[int, float]
    """Root mean square gradient inside the silhouette by side of the image, over that of the world's renders."""
    frechet: float
    """Frechet distance between the renders of the assets and of the world in the judge's features."""

    def figures(self) -> dict[str, float]:
        """All means by name; widths are medians over the assets."""
        scores, each = self.scores.means(), [asdict(health) for health in self.health]
        health = {
            name: float((np.median if name.endswith("_px") else np.nanmean)([one[name] for one in each]))
            for name in each[0]
        }
        names = ("object", "color", "attribute", "view", "azimuth", "floaters")
        return {
            **health,
            **{name: scores[name] for name in names},
            **{f"edges_{size}": ratio for size, ratio in self.edges.items()},
            "frechet": self.frechet,
        }


def assess(
    assets: Sequence[Gaussians], shown: Sequence[Combination], judge: Judge, reference: Reference, seed: int
) -> Assessment:
    """Measures assets of combinations, which `reference` shows as the world has them."""
    views = render_views(assets, seed)
    scores = score(views.images, [label(one) for one in shown], judge, views.alphas)
    ratios = {SIZE: edge_ratio(edges(views), reference.edges[SIZE])}
    ratios[FINE_SIZE] = edge_ratio(edges(render_views(assets, seed, FINE_SIZE)), reference.edges[FINE_SIZE])
    distance = frechet(judge_features(views, judge), reference.features)
    return Assessment(views, scores, [examine(gaussians) for gaussians in assets], ratios, distance)


def edge_ratio(own: Float[Array, "p v"], world: Float[Array, "p v"]) -> float:
    """The mean over that of the world, in the views where both are finite; NaN if there are none."""
    both = np.isfinite(own) & np.isfinite(world)
    return float(own[both].mean() / world[both].mean()) if both.any() else float("nan")


def pale_backgrounds(m: int, size: int, generator: torch.Generator) -> Float[Tensor, "m 3 s s"]:
    """Pale backgrounds; every second one is a gradient from top to bottom."""
    ends = 0.75 + 0.25 * torch.rand(m, 3, 2, 1, generator=generator)
    ends[::2, :, 1] = ends[::2, :, 0]
    return torch.nn.functional.interpolate(ends, (size, 1), mode="bilinear", align_corners=True).repeat(1, 1, 1, size)


@torch.no_grad()
def sample_views(
    pipeline: Pipeline, prompts: Sequence[str], seed: int, guidance_scale: float, prompts_at_once: int = 16
) -> Float[Tensor, "p v 3 s s"]:
    """The prior's own images of the prompts with the view phrases of eight azimuths: 50 steps of DDIM."""
    generator = torch.Generator().manual_seed(seed)
    azimuths, elevations = turntable_azimuths(VIEWS), torch.full((VIEWS,), ELEVATION_DEG)
    images: list[Tensor] = []
    for start in range(0, len(prompts), prompts_at_once):
        part = prompts[start : start + prompts_at_once]
        drawn = sample_images(pipeline, part, azimuths, elevations, generator, guidance_scale)
        small = torch.nn.functional.interpolate(drawn.flatten(0, 1), (SIZE, SIZE), mode="bilinear")
        images += small.unflatten(0, drawn.shape[:2])
    return torch.stack(images)


def write_sheet(path: Path, images: Float[Tensor, "p v 3 s s"], prompts: Sequence[str]) -> None:
    """Writes a contact sheet, eight images of a prompt beside each other."""
    columns = -(-len(prompts) // ROWS)
    tiles = images.permute(0, 1, 3, 4, 2).flatten(0, 1).cpu().numpy()
    labels = [line for prompt in prompts for line in [*wrap(prompt, 20), *[""] * VIEWS][:VIEWS]]
    with atomic_write(path) as temporary:
        Image.fromarray(contact_sheet(list(tiles), VIEWS * columns, labels)).save(temporary, format="WebP", quality=85)


def keep_known(pipeline: Pipeline, pool: Iterable[Combination]) -> list[Combination]:
    """The combinations of which the prior knows every word."""

    def known(one: Combination) -> bool:
        try:
            clean_prompt(one.caption(), pipeline.prior.profile.vocabulary)
        except UsageProblem:
            return False
        return True

    return [one for one in pool if known(one)]
