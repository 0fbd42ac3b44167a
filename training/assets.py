"""Assets of the world's prompts and the prior's own samples, seen from eight azimuths for the judge to read.

Shapes: p prompts, v views of each, m images, s pixels square.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from segdream_cli import load
from segdream_cli.config import MINI
from segdream_cli.config.values import parse_assignments
from segdream_cli.distill.schedule import NoiseSchedule
from segdream_cli.distill.view_prompts import clean_prompt, conditions, view_weights
from segdream_cli.errors import UsageProblem
from segdream_cli.evaluate.judge import Label
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.optimize.state import AssetState
from segdream_cli.priors.stable_diffusion import DiffusionPrior
from segdream_cli.render.cameras import frame_sphere, turntable_azimuths
from segdream_cli.render.images import contact_sheet
from segdream_cli.util.files import atomic_write
from training.world.catalog import Combination

JUDGE = Path(__file__).resolve().parents[1] / "benchmarks" / "judge"
VIEWS, ELEVATION_DEG, SIZE = 8, 15.0, 128
DDIM_STEPS = 50
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
        for name in objects[: count - len(chosen)]:
            own = [one for one in left if one.object == name]
            if not own:
                continue
            best = min(own, key=lambda one: (used[one.attribute], used[one.color]))
            used.update((best.attribute, best.color))
            left.remove(best)
            chosen.append(best)
    return chosen


def label(combination: Combination) -> Label:
    """The label that the judge should read in images of a combination."""
    return Label(combination.object, combination.color, combination.attribute)


def load_mini(quality: str, assignments: Sequence[str], device: torch.device, model: Path | None = None) -> Pipeline:
    """The pipeline of the embedded prior, or of another checkpoint of its kind, with a preset and changed settings."""
    path = None if model is None else str(model)
    settings = parse_assignments(assignments)
    return load(quality=quality, prior=MINI, model=path, settings=settings, device=str(device)).pipeline


def distill(pipeline: Pipeline, prompts: Sequence[str], seed: int, batch: int = 24) -> list[AssetState]:
    """Makes an asset per prompt, `batch` at a time in lock step; the seeds are `seed`, `seed` + 1, ..."""
    assets: list[AssetState] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        together = [pipeline.prepare(prompt, seed + start + i) for i, prompt in enumerate(part)]
        for _ in pipeline.run(together):
            pass
        assets += together
    return assets


def render_views(pipeline: Pipeline, assets: Sequence[AssetState], seed: int, size: int = SIZE) -> Views:
    """Renders assets from eight azimuths."""
    generator = torch.Generator().manual_seed(seed)
    cameras = frame_sphere(turntable_azimuths(VIEWS), torch.full((VIEWS,), ELEVATION_DEG), size)
    images, alphas = [], []
    for asset in assets:
        rendering = pipeline.render(asset.gaussians, cameras)
        behind = pale_backgrounds(VIEWS, size, generator).to(rendering.rgb.device)
        images.append(rendering.over(behind.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).clamp(0, 1))
        alphas.append(rendering.alpha[..., 0])
    return Views(torch.stack(images), torch.stack(alphas))


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
    prior, config = pipeline.prior, pipeline.config
    if not isinstance(prior, DiffusionPrior):
        raise TypeError("only a diffusion prior can be sampled")
    schedule = NoiseSchedule(prior.alphas_cumprod)
    generator = torch.Generator().manual_seed(seed)
    azimuths, elevations = turntable_azimuths(VIEWS), torch.full((VIEWS,), ELEVATION_DEG)
    images: list[Tensor] = []
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
        images += drawn.clamp(0, 1).unflatten(0, (len(part), VIEWS))
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
