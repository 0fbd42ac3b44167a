"""The steps of a run after its distillation: rounds that repaint views of each asset and fit its Gaussians to them.

begin of a round:  prune -> split -> cameras -> raster -> repaint -> targets -> shrink
each step:         some views -> raster -> fit_loss -> backward pass -> update
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from segdream_cli.config import Config
from segdream_cli.config.refine import Round
from segdream_cli.distill.guidance import Conditions
from segdream_cli.distill.schedule import NoiseSchedule
from segdream_cli.distill.view_prompts import conditions, view_weights
from segdream_cli.errors import UsageProblem
from segdream_cli.optimize.adam import build_optimizers
from segdream_cli.optimize.batch import Batch
from segdream_cli.optimize.density import DensityStats
from segdream_cli.optimize.start import neighbour_distance
from segdream_cli.optimize.state import AssetState, Targets
from segdream_cli.priors.protocol import Prior
from segdream_cli.refine.losses import WINDOW, coarse, fit_loss
from segdream_cli.refine.repaint import repaint, sharpen
from segdream_cli.refine.split import prune, shrink, split
from segdream_cli.refine.views import draw_backgrounds, round_cameras
from segdream_cli.render.cameras import Cameras
from segdream_cli.render.view import render
from segdream_cli.splats import GROUPS
from segdream_cli.splats.gaussians import Gaussians
from segdream_cli.util.devices import send

REPAINT_PIXELS = {"cpu": 2**16, "cuda": 2**20}
"""Pixels of the views that are repainted at once: on a CPU 4 views of 128 pixels, on CUDA 64, or 4 of 512."""
COVERING = 0.5
"""Axis over the distance to their neighbours from which Gaussians cover a surface."""
LAST_RATE = 0.1
"""Learning rates at the end of a round over those at its start."""


class Refinement:
    """Refines assets in lock step.

    A round begins outside the steps: it changes an asset as a whole or not at all, and the asset then holds the
    round's targets. A step that fails or is repeated later finds them there.

    Args:
        config: all settings.
        prior: repaints the views.
        schedule: its noise schedule.
        device: where Gaussians and prior live.

    Raises:
        UsageProblem: the size of the views does not divide into latents, or is smaller than the window of SSIM.
    """

    def __init__(self, config: Config, prior: Prior, schedule: NoiseSchedule, device: torch.device) -> None:
        self._config, self._prior, self._schedule, self._device = config, prior, schedule, device
        self._pixels_per_latent = prior.image_size // prior.latent_shape[1]
        for each in config.refine.rounds:
            if each.image_size % self._pixels_per_latent or 0 < each.image_size < WINDOW:
                fitting = max(
                    math.ceil(WINDOW / self._pixels_per_latent), round(each.image_size / self._pixels_per_latent)
                )
                fitting *= self._pixels_per_latent
                sizes = ",".join(str(fitting if size == each.image_size else size) for size in config.refine.image_size)
                raise UsageProblem(
                    f"refine.image_size can't be {each.image_size}: "
                    f"each latent of the prior covers {self._pixels_per_latent} pixels, and a view needs {WINDOW}",
                    hint=f"--set refine.image_size=[{sizes}]",
                )

    def stage(self, step: int) -> str:
        """Title of the round of a step of the run, "refine 1/2"."""
        index, _ = self._locate(step)
        return f"refine {index + 1}/{len(self._config.refine.rounds)}"

    def begin_round(self, batch: Batch) -> None:
        """Gives the assets the targets of the round of the next step, unless they have them.

        Raises:
            Diverged: the last step was non-finite, or a repainted view is; that step has been rolled back.
        """
        index, _ = self._locate(batch.step)
        late = [asset for asset in batch.assets if asset.targets is None or asset.targets.round != index]
        if not late:
            return
        with batch.transaction():
            batch.check_last()
            changes = self._prepare(batch, late, index)
        for asset, (gaussians, targets) in zip(late, changes, strict=True):
            asset.gaussians, asset.targets = gaussians, targets
            asset.optimizers = build_optimizers(gaussians)
            asset.stats = DensityStats.empty(gaussians)

    def fit(self, batch: Batch) -> None:
        """One step of Adam towards the targets, from some of the views in turn."""
        index, number = self._locate(batch.step)
        now = self._config.refine.rounds[index]
        batch.describe([{"t0": now.t0}] * len(batch))
        count = min(self._config.refine.fit_batch, now.views)
        views = (number * count + torch.arange(count)) % now.views
        gaussians = batch.stack()
        cameras = self._cameras(index, views.repeat(len(batch)))
        rendering = render(gaussians, cameras)  # [a, v, h, w, ...]
        batch.check_last()  # the rasteriser has already waited for the device
        targets, backgrounds = self._targets(batch.assets, views)
        images = rendering.over(backgrounds[:, :, None, None])
        renders, alpha, wanted = (part.flatten(0, 1).permute(0, 3, 1, 2) for part in (images, rendering.alpha, targets))
        # the loss is a mean over all assets: times their number, it is the sum of the loss of each
        anchors = self._anchors(batch.assets, views)
        loss = fit_loss(self._config.refine, renders, alpha, wanted, anchors)
        (len(batch) * loss).backward()
        batch.fit(gaussians, self._rates(number / now.iterations), self._config.refine.scale_range, loss)

    def _locate(self, step: int) -> tuple[int, int]:
        """Index of the round of a step of the run (the first step is 1), and the step's index within the round."""
        return self._config.refine.locate(step - self._config.optim.steps - 1)

    def _rates(self, progress: float) -> dict[str, float]:
        """Learning rate of each group, falling linearly over the round."""
        config = self._config.refine
        rates = (config.means_lr, config.quat_lr, config.scale_lr, config.opacity_lr, config.sh0_lr, config.shN_lr)
        return {name: rate * (1 - (1 - LAST_RATE) * progress) for name, rate in zip(GROUPS, rates, strict=True)}

    def _cameras(self, index: int, views: Tensor) -> Cameras:
        """Cameras of views of a round, on the device."""
        size = self._config.refine.rounds[index].image_size or self._prior.image_size
        return round_cameras(self._config.refine, index, views, size).to(self._device)

    def _targets(
        self, assets: Sequence[AssetState], views: Tensor
    ) -> tuple[Float[Tensor, "a v h w 3"], Float[Tensor, "a v 3"]]:
        """Repainted views of each asset, in 0..1, and the colours behind them."""
        chosen = send(views, self._device)
        found = [asset.targets for asset in assets if asset.targets is not None]
        images = torch.stack([each.images[chosen] for each in found])
        return images.float() / 255, torch.stack([each.backgrounds[chosen] for each in found])

    def _anchors(self, assets: Sequence[AssetState], views: Tensor) -> Float[Tensor, "b 3 g g"] | None:
        """Coarse views of the assets that were given; None if there are none."""
        found = [asset.targets.anchors for asset in assets if asset.targets is not None]
        chosen = send(views, self._device)
        coarse_views = [each[chosen] for each in found if each is not None]
        return torch.cat(coarse_views).permute(0, 3, 1, 2).float() / 255 if coarse_views else None

    def _draw_anchors(
        self, asset: AssetState, cameras: Cameras, backgrounds: Float[Tensor, "v 3"]
    ) -> UInt8[Tensor, "v g g 3"] | None:
        """Coarse views of the asset that was given, one at a time: it may have many more Gaussians than the result."""
        if asset.anchor is None or not self._config.refine.anchor:
            return None
        views = []
        for i, behind in enumerate(backgrounds):
            image = render(asset.anchor, cameras.view(i)).over(behind[None, None, None]).permute(0, 3, 1, 2)
            views.append((255 * coarse(image.clamp(0, 1))).round().to(torch.uint8).permute(0, 2, 3, 1))
        return torch.cat(views).contiguous()

    @torch.no_grad()
    def _prepare(self, batch: Batch, assets: Sequence[AssetState], index: int) -> list[tuple[Gaussians, Targets]]:
        """The Gaussians and the targets with which each asset begins a round."""
        config, now = self._config.refine, self._config.refine.rounds[index]
        sets = [split(prune(asset.gaussians, config.prune_opacity), now.gaussians) for asset in assets]
        cameras = self._cameras(index, torch.arange(now.views))
        backgrounds, images = [], []
        for asset, gaussians in zip(assets, sets, strict=True):
            behind = draw_backgrounds(config, now.views, asset.generators["refine"]).to(self._device)
            backgrounds.append(behind)
            images.append(render(gaussians, cameras).over(behind[:, None, None]).permute(0, 3, 1, 2))
        noise = [self._draw_noise(asset, now, cameras.size) for asset in assets]
        repainted = self._repaint(torch.cat(images), torch.cat(noise), self._conditions(assets, cameras), now)
        for asset, finite in zip(assets, repainted.isfinite().reshape(len(assets), -1).all(1).tolist(), strict=True):
            if not finite:
                message = f"a view of {asset.prompt!r} that the prior repainted is not finite"
                batch.diverge(next(i for i, each in enumerate(batch.assets) if each is asset), message)
        quantized = (255 * repainted).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        views = quantized.split(now.views)
        anchors = [
            self._draw_anchors(asset, cameras, behind) for asset, behind in zip(assets, backgrounds, strict=True)
        ]
        if config.start_scale is not None:  # not before: the prior would repaint the gaps
            sets = [self._shrink(each, config.start_scale) for each in sets]
        parts = zip(sets, views, backgrounds, anchors, strict=True)
        return [(gaussians, Targets(index, *each)) for gaussians, *each in parts]

    def _shrink(self, gaussians: Gaussians, start_scale: float) -> Gaussians:
        """Gaussians of at most `start_scale`, or as large as they must be to leave no holes."""
        spacing = neighbour_distance(gaussians.params["means"].detach().cpu())
        return shrink(gaussians, send((COVERING * spacing).clamp_min(start_scale), self._device))

    def _draw_noise(self, asset: AssetState, now: Round, size: int) -> Float[Tensor, "v c h w"]:
        """ε of each view of an asset, on the CPU."""
        side, count = size // self._pixels_per_latent, 1 if self._config.refine.share_noise else now.views
        shape = count, self._prior.latent_shape[0], side, side
        return torch.randn(shape, generator=asset.generators["refine"]).expand(now.views, -1, -1, -1)

    def _conditions(self, assets: Sequence[AssetState], cameras: Cameras) -> Conditions:
        """The text of each view of each asset."""
        angles = cameras.azimuth_deg.repeat(len(assets)), cameras.elevation_deg.repeat(len(assets))
        weights = view_weights(*angles, self._prior.profile.views, self._config.view, perp_neg=False)
        return conditions([asset.embeddings for asset in assets], weights)

    def _repaint(
        self, images: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c hl wl"], text: Conditions, now: Round
    ) -> Float[Tensor, "b 3 h w"]:
        """The images repainted and sharpened, as many at once as `REPAINT_PIXELS` allows, in low-VRAM mode one."""
        rows = 1 if self._config.prior.low_vram else max(1, REPAINT_PIXELS[self._device.type] // images.shape[-1] ** 2)
        guidance = self._config.refine.guidance_scale
        parts = []
        for start in range(0, len(images), rows):
            chosen = slice(start, start + rows)
            drawn = send(noise[chosen], self._device)
            shown = images[chosen].clamp(0, 1)
            painted = repaint(self._prior, self._schedule, shown, drawn, text.rows(chosen), now.t0, now.steps, guidance)
            parts.append(sharpen(painted, self._config.refine.sharpen))
        return torch.cat(parts)
