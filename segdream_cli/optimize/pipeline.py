"""The pipeline behind every command: prepare an asset, then optimise it step by step.

    cameras -> raster -> encode_image -> method -> losses -> backward pass -> update -> StepReport

After the distillation come the steps of the refinement, if it is enabled; see `refinement.py`.

`Pipeline.run` is a generator: its caller decides what to show, when to save and when to stop.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segdream_cli.config import Config
from segdream_cli.distill import build_method
from segdream_cli.distill.guidance import Conditions
from segdream_cli.distill.method import Gradient, Method, Shape
from segdream_cli.distill.schedule import Latents, NoiseSchedule
from segdream_cli.distill.view_prompts import (
    PromptEmbeddings,
    conditions,
    phrase_texts,
    view_weights,
)
from segdream_cli.errors import UsageProblem
from segdream_cli.optimize import beg, losses
from segdream_cli.optimize.adam import build_optimizers
from segdream_cli.optimize.batch import Batch
from segdream_cli.optimize.change import is_due, measure_changes, skip_rest
from segdream_cli.optimize.density import DensityStats
from segdream_cli.optimize.refinement import Refinement
from segdream_cli.optimize.report import DISTIL, StepReport
from segdream_cli.optimize.start import bind_cloud, cloud_text, initial_gaussians
from segdream_cli.optimize.state import AssetState, build_generators
from segdream_cli.pointe.model import PointCloud
from segdream_cli.priors.prompt import clean_prompt, read_negative
from segdream_cli.priors.protocol import Prior
from segdream_cli.render.cameras import Cameras, sample_backgrounds, sample_cameras
from segdream_cli.render.raster import Rendering
from segdream_cli.render.view import render
from segdream_cli.splats.gaussians import Gaussians
from segdream_cli.util.devices import send
from segdream_cli.util.memory import out_of_memory, peak_memory_gib


@dataclass(frozen=True, slots=True)
class _Views:
    """The views of one step: `a` assets from `v` cameras each, the `b` views asset by asset.

    Args:
        rgb: colours.
        disparity: disparity maps, where a step needs any.
        flip: which views are mirrored for the method.
        images: what the method sees: colours or disparity, mirrored or not.
    """

    cameras: Cameras
    rendering: Rendering
    rgb: Float[Tensor, "b h w 3"]
    disparity: Float[Tensor, "b h w 1"] | None
    flip: Bool[Tensor, "b 1 1 1"]
    images: Float[Tensor, "b 3 h w"]


class Pipeline:
    """Distils assets from a prior, and refines them.

    Args:
        config: all settings.
        prior: the diffusion model.
        device: where Gaussians and prior live.
        clouds: returns the Point-E cloud of a text and a seed, for a start from Point-E.
        queued: check a step's gradient in the next step instead of waiting for it; None does so on CUDA.
        note: receives what the reader of a start's file changes.

    Raises:
        UsageProblem: the settings of the method or of the refinement do not fit together.
    """

    def __init__(
        self,
        config: Config,
        prior: Prior,
        device: torch.device,
        clouds: Callable[[str, int], PointCloud] | None = None,
        *,
        queued: bool | None = None,
        note: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.config = config
        self.device = device
        self.prior = prior
        self.method: Method = build_method(config)
        self._schedule = NoiseSchedule(prior.alphas_cumprod)
        self._refinement = Refinement(config, prior, self._schedule, device)
        self._clouds = clouds
        self._note = note
        self._queued = device.type == "cuda" if queued is None else queued

    @property
    def image_size(self) -> int:
        """Side of the training renders in pixels."""
        return self.config.camera.image_size or self.prior.image_size

    def unet_rows(self, asset: AssetState) -> int:
        """Rows of the U-Net evaluated for an asset so far, with the method's average per view and step."""
        config, distilled = self.config, min(asset.step, self.config.optim.steps) - asset.skipped
        rows = distilled * config.camera.batch * self.method.rows_per_view
        branches, begin = 1 if config.refine.guidance_scale == 1 else 2, config.optim.steps
        for each in config.refine.rounds:
            rows += branches * each.views * each.steps if asset.step > begin else 0
            begin += each.iterations
        return round(rows)

    def prepare(
        self, prompt: str, seed: int, negative_prompt: str | None = None, gaussians: Gaussians | None = None
    ) -> AssetState:
        """An asset before its first step.

        Args:
            prompt: text that describes the asset.
            seed: source of all its random numbers.
            negative_prompt: replaces the prior's own.
            gaussians: the Gaussians to start from; None makes them as the settings of the start say.

        Raises:
            UsageProblem: the prompt, the start or the size of the renders can't be used.
        """
        generators = build_generators(seed)
        embeddings = self.embed(prompt, negative_prompt)
        if gaussians is None:
            text = cloud_text(self.config.init, prompt, self.prior.profile.vocabulary)
            cloud = bind_cloud(self._clouds, text, seed)
            gaussians = initial_gaussians(self.config.init, generators["init"], cloud, self._note)
        gaussians = gaussians.to(self.device)
        cap = self.config.densify.cap
        if cap is not None and len(gaussians) > cap:
            raise UsageProblem(
                f"the start has {len(gaussians):,} Gaussians, more than the limit of {cap:,}",
                hint=f"--set densify.cap={len(gaussians)}",
            )
        state = self.method.init_state(self._latent_shape, generators)
        return AssetState(
            prompt=prompt,
            seed=seed,
            embeddings=embeddings,
            gaussians=gaussians,
            optimizers=build_optimizers(gaussians),
            stats=DensityStats.empty(gaussians),
            method_state={name: send(tensor, self.device) for name, tensor in state.items()},
            generators=generators,
        )

    def restore(
        self, tensors: Mapping[str, Tensor], prompt: str, seed: int, negative_prompt: str | None = None
    ) -> AssetState:
        """An asset from the tensors of a checkpoint, as `AssetState.tensors` returned them.

        Raises:
            KeyError: a tensor is missing.
        """
        return AssetState.from_tensors(
            tensors,
            prompt=prompt,
            seed=seed,
            embeddings=self.embed(prompt, negative_prompt),
            device=self.device,
            method_state=self.method.init_state(self._latent_shape, build_generators(seed)),
        )

    def embed(self, prompt: str, negative_prompt: str | None = None) -> PromptEmbeddings:
        """Embeddings of the prompt with each view phrase, of the negative prompt and of the empty text."""
        profile = self.prior.profile
        text = clean_prompt(prompt, profile.vocabulary)
        negative = profile.negative_prompt
        if negative_prompt is not None:
            negative = read_negative(negative_prompt, profile.vocabulary).text
        encoded = self.prior.encode_text([*phrase_texts(text, profile.views), negative, ""])
        return PromptEmbeddings(phrases=encoded[:-2], uncond=encoded[-2], null=encoded[-1])

    def run(self, assets: Sequence[AssetState]) -> Iterator[StepReport]:
        """Distils and refines assets in lock step until their last step, yielding a report per step.

        Each result equals its solo run up to the rounding of batched arithmetic. After a yield the assets can be saved,
        unless `report.first_nonfinite()` finds a non-finite gradient: `Batch` rolls such a step back in the next one.

        With `optim.stop_change`, the distillation ends when the views of all assets change little; the refinement
        follows. So the number of steps of an asset depends on those that run with it.

        Raises:
            Diverged: the gradient of one asset is non-finite. All assets are as before that step, and the others can
                be run without it.
            OutOfMemory: the device's memory does not hold a step.
            ValueError: the assets are not at the same step.
        """
        batch = Batch(assets, self.config, queued=self._queued)
        while batch.step <= self.config.last_step:
            begin, refining = time.perf_counter(), batch.step > self.config.optim.steps
            stage = self._refinement.stage(batch.step) if refining else DISTIL
            with out_of_memory(self.device, "a step", self._cheaper_setting(len(batch), refining=refining)):
                if refining:
                    self._refinement.begin_round(batch)
                with batch.transaction():
                    (self._refinement.fit if refining else self._step)(batch)
                changes = self._measure_changes(batch)
            stopped = changes is not None and max(changes) < self.config.optim.stop_change
            if stopped:
                skip_rest(batch.assets, self.config.optim)
            yield StepReport(
                step=batch.last.step,
                timesteps=batch.last.timesteps,
                norms=batch.last.norms,
                n_gaussians=tuple(len(asset.gaussians) for asset in assets),
                seconds=time.perf_counter() - begin,
                memory_gib=peak_memory_gib(self.device),
                stage=stage,
                change=changes,
                stopped=stopped,
                fit_losses=batch.last.losses,
            )
        batch.check_last()

    def _measure_changes(self, batch: Batch) -> tuple[float, ...] | None:
        """How much each asset has changed since the last measurement; None if this step needs none.

        Raises:
            Diverged: the step was non-finite; it has been rolled back.
        """
        if not is_due(batch.last.step, self.config.optim):
            return None
        batch.check_last()
        return measure_changes(batch.assets)

    @torch.no_grad()
    def render(self, gaussians: Gaussians, cameras: Cameras) -> Rendering:
        """The views of Gaussians from cameras, with nothing behind them.

        Raises:
            OutOfMemory: the device's memory does not hold the images.
        """
        with out_of_memory(self.device, f"{len(cameras)} images", f"--size {cameras.size // 2}"):
            return render(gaussians, cameras.to(self.device))

    def _step(self, batch: Batch) -> None:
        """One distillation step of every asset; with SCTD this is Algorithm 1.

        Symbols: θ the Gaussians, g the rasteriser, E the encoder, L the loss of the method.
        """
        optim = self.config.optim
        draws = batch.draw(self.method, self._latent_shape)  # the method's random numbers (SCTD: t, s, e, ε*)
        posterior_noise = self._draw_posterior_noise(batch)
        gaussians = batch.stack()  # θ, [a, n, ...]
        views = self._render_views(batch, gaussians)  # x = g(θ, c) from random cameras c
        batch.check_last()  # rolls the last step back if it was non-finite; the rasteriser has already waited for it
        latents = self.prior.encode_image(views.images, posterior_noise)  # z_0 = E(x)
        gradient = self._distill(batch, latents, views.cameras, draws)  # dL / dz_0
        surrogate = (latents * gradient.latents).sum()  # its derivative with respect to z_0 is `gradient.latents`
        if gradient.rgb is not None:  # dL / dx of the colours, where L depends on them directly
            rgb = torch.where(views.flip, views.rgb.flip(2), views.rgb).permute(0, 3, 1, 2)
            surrogate = surrogate + (rgb * gradient.rgb).sum()
        (surrogate + self._regularizers(batch, gaussians, views)).backward()  # chain rule through E and g
        bright = beg.is_bright(views.rgb, len(batch), optim) if beg.is_due(batch.step, optim) else None
        batch.update(gaussians, views.rendering, bright)  # Adam and density control on θ

    def _render_views(self, batch: Batch, gaussians: Gaussians) -> _Views:
        """Draws the cameras of this step and renders the images to distill.

        Some steps show disparity instead of colours, and some mirror the images.
        """
        config, size = self.config, self.image_size
        cameras = sample_cameras(config.camera, batch.step, size, batch.generators("cameras")).to(self.device)
        backgrounds = sample_backgrounds(config.camera, size, batch.generators("backgrounds"), self.device)
        scales = gaussians.scales
        if config.camera.scale_noise:
            scales = (scales * (1 + config.camera.scale_noise * self._draw_scale_noise(batch, scales))).clamp_min(0)
        rendering = render(gaussians, cameras, scales=scales)
        rgb = rendering.over(backgrounds.unflatten(0, (len(batch), -1))).flatten(0, 1)
        uniform = torch.stack([torch.rand(2, generator=generator) for generator in batch.generators("augment")])
        limits = torch.tensor([config.distill.disparity_probability, config.distill.flip_probability])
        chosen = (uniform < limits).repeat_interleave(config.camera.batch, 0)  # [b, 2]
        distill_disparity, flip = chosen.to(self.device, non_blocking=True)[:, :, None, None, None].unbind(1)
        images, disparity = rgb, None
        if chosen[:, 0].any() or config.loss.tv_disparity:
            depth, alpha = rendering.depth.flatten(0, 1), rendering.alpha.flatten(0, 1)
            disparity = losses.disparity(depth, alpha, cameras.Ks[:, 0, 0] / cameras.size)
            images = torch.where(distill_disparity, disparity, images)
        if chosen[:, 1].any():
            images = torch.where(flip, images.flip(2), images)
        return _Views(cameras, rendering, rgb, disparity, flip, images.permute(0, 3, 1, 2))

    def _distill(self, batch: Batch, latents: Latents, cameras: Cameras, draws: Sequence[object]) -> Gradient:
        """The gradient of the method's loss, under the text of each view."""
        text = self._conditions(batch, cameras)
        return self.method.gradient(self.prior, self._schedule, latents.detach(), text, draws)

    def _conditions(self, batch: Batch, cameras: Cameras) -> Conditions:
        """The text of every row of latents."""
        views, config = self.prior.profile.views, self.config
        angles = cameras.azimuth_deg, cameras.elevation_deg
        weights = view_weights(*angles, views, config.view, perp_neg=config.distill.perp_neg)
        return conditions([asset.embeddings for asset in batch.assets], weights)

    def _regularizers(self, batch: Batch, gaussians: Gaussians, views: _Views) -> Float[Tensor, ""]:
        """The weighted terms beside the distillation, summed over the assets."""
        return losses.regularizers(
            self.config.loss,
            self.config.distill.warmup(batch.step),
            views.rgb,
            views.disparity,
            gaussians.means,
            gaussians.scales,
            gaussians.opacities,
            torch.tensor([len(asset.gaussians) for asset in batch.assets]).to(self.device, non_blocking=True),
        )

    @cached_property
    def _latent_shape(self) -> Shape:
        """Views, channels, height and width of the latents of an asset's renders.

        Raises:
            UsageProblem: the renders' size does not divide into latents.
        """
        channels, side, _ = self.prior.latent_shape
        factor = self.prior.image_size // side
        if self.image_size % factor:
            fitting = max(1, round(self.image_size / factor)) * factor
            raise UsageProblem(
                f"camera.image_size can't be {self.image_size}: each latent of the prior covers {factor} pixels",
                hint=f"--set camera.image_size={fitting}",
            )
        return self.config.camera.batch, channels, self.image_size // factor, self.image_size // factor

    def _draw_posterior_noise(self, batch: Batch) -> Float[Tensor, "b c h w"] | None:
        if not self.config.prior.sample_posterior:
            return None
        drawn = [torch.randn(self._latent_shape, generator=each) for each in batch.generators("posterior")]
        return send(torch.cat(drawn), self.device)

    def _draw_scale_noise(self, batch: Batch, scales: Float[Tensor, "a n 3"]) -> Float[Tensor, "a n 3"]:
        """Standard normal numbers for each asset's own Gaussians, and zeros in the padding."""
        noise = torch.zeros(scales.shape)
        for asset, row in zip(batch.assets, noise, strict=True):
            count = len(asset.gaussians)
            torch.randn(count, 3, generator=asset.generators["augment"], out=row[:count])
        return send(noise, self.device)

    def _cheaper_setting(self, assets: int, *, refining: bool) -> str:
        """An option that makes a step need less memory."""
        if assets > 1:
            return f"--batch {assets // 2}"
        if refining:
            return f"--set refine.fit_batch={max(1, self.config.refine.fit_batch // 2)}"
        if self.config.camera.batch > 1:
            return f"--set camera.batch={self.config.camera.batch // 2}"
        return f"--set camera.image_size={self.image_size // 2}"
