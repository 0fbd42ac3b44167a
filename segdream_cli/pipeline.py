"""The pipeline behind every command: prepare an asset, run the distillation, render what is there.

    cameras -> raster -> encode_image -> distillation -> losses -> optimiser -> density control -> StepReport

`Pipeline.run` is a generator: whoever drives it decides what to show, when to save and when to stop.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segdream_cli import losses
from segdream_cli.asset import AssetState, build_generators
from segdream_cli.cameras import Cameras, sample_backgrounds, sample_cameras
from segdream_cli.config import Config
from segdream_cli.densify import DensityStats, control_density
from segdream_cli.distill.sctd import sctd
from segdream_cli.errors import Diverged, UsageProblem
from segdream_cli.gaussians import Gaussians, build_optimizers, clip_gradients, set_learning_rates
from segdream_cli.guidance import Conditions
from segdream_cli.initial import initial_gaussians
from segdream_cli.memory import out_of_memory, peak_memory_gib
from segdream_cli.pointe.model import PointCloud
from segdream_cli.profile import PriorProfile
from segdream_cli.raster import Rendering, rasterize
from segdream_cli.schedule import NoiseSchedule, Times, draw_times, trajectory_segments
from segdream_cli.view_prompts import PromptEmbeddings, clean_negative, clean_prompt, phrase_texts, view_weights


class Prior(Protocol):
    """A text-to-image latent diffusion model, as far as the pipeline needs it."""

    profile: PriorProfile
    alphas_cumprod: Float[Tensor, " T"]
    image_size: int
    latent_shape: tuple[int, int, int]

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "p l d"]:
        """Text embeddings."""

    def encode_image(
        self, rgb: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c hl wl"] | None
    ) -> Float[Tensor, "b c hl wl"]:
        """Latents of images in 0..1; `noise` draws them from the posterior, None takes its mean."""

    def predict_noise(
        self, latents: Float[Tensor, "b c hl wl"], timesteps: Int[Tensor, " b"], text: Float[Tensor, "b l d"]
    ) -> Float[Tensor, "b c hl wl"]:
        """Noise estimate."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimisation step did; tuples hold one entry an asset.

    Args:
        step: number of the step, from 1.
        times: (t, s, e) of the distillation.
        grad_norm: norm of the parameters' gradient before clipping.
        n_gaussians: number of Gaussians after the step.
        seconds: wall time of the step.
        memory_gib: peak memory so far, of the device or of the process on a CPU.
    """

    step: int
    times: tuple[tuple[int, int, int], ...]
    grad_norm: tuple[float, ...]
    n_gaussians: tuple[int, ...]
    seconds: float
    memory_gib: float


@dataclass(frozen=True, slots=True)
class _Views:
    """One asset's part of a step: its renders and what was drawn for them."""

    cameras: Cameras
    rendering: Rendering
    rgb: Float[Tensor, "v h w 3"]
    disparity: Float[Tensor, "v h w 1"] | None
    images: Float[Tensor, "v 3 h w"]
    times: tuple[int, int, int]


class Pipeline:
    """Distils assets from a prior.

    Args:
        config: all settings.
        prior: the diffusion model; None serves for rendering only.
        device: where Gaussians and prior live.
        clouds: makes the cloud of a prompt and a seed, for a start from Point-E.
    """

    def __init__(
        self,
        config: Config,
        prior: Prior | None,
        device: torch.device,
        clouds: Callable[[str, int], PointCloud] | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self._prior = prior
        self._clouds = clouds

    @property
    def prior(self) -> Prior:
        """The diffusion model."""
        if self._prior is None:
            raise RuntimeError("this pipeline was made without a prior")
        return self._prior

    @property
    def image_size(self) -> int:
        """Side of the training renders in pixels."""
        return self.config.camera.image_size or self.prior.image_size

    @cached_property
    def _schedule(self) -> NoiseSchedule:
        return NoiseSchedule(self.prior.alphas_cumprod)

    @cached_property
    def _edges(self) -> tuple[int, ...]:
        return trajectory_segments(self.config.distill, len(self.prior.alphas_cumprod))

    def prepare(self, prompt: str, seed: int, negative_prompt: str | None = None) -> AssetState:
        """An asset before its first step.

        Raises:
            UsageProblem: the prompt, the start or the size of the renders can't be used.
        """
        generators = build_generators(seed)
        embeddings = self.embed(prompt, negative_prompt)
        words = clean_prompt(self.config.init.prompt or prompt, self.prior.profile.vocabulary)
        cloud = None if self._clouds is None else partial(self._clouds, words, seed)
        gaussians = initial_gaussians(self.config.init, generators["init"], cloud).to(self.device)
        cap = self.config.densify.cap
        if cap is not None and len(gaussians) > cap:
            raise UsageProblem(
                f"the start has {len(gaussians):,} Gaussians, more than the limit of {cap:,}",
                hint=f"--set densify.cap={len(gaussians)}",
            )
        return AssetState(
            prompt=prompt,
            seed=seed,
            embeddings=embeddings,
            gaussians=gaussians,
            optimizers=build_optimizers(gaussians, self.config.optim),
            stats=DensityStats.empty(gaussians),
            noise=self._draw_noise(generators["noise"]),
            generators=generators,
        )

    def restore(
        self, tensors: Mapping[str, Tensor], prompt: str, seed: int, negative_prompt: str | None = None
    ) -> AssetState:
        """An asset as it was when `AssetState.tensors` was called."""
        embeddings = self.embed(prompt, negative_prompt)
        return AssetState.from_tensors(
            tensors, prompt=prompt, seed=seed, embeddings=embeddings, config=self.config, device=self.device
        )

    def embed(self, prompt: str, negative_prompt: str | None = None) -> PromptEmbeddings:
        """The prompt from every side, the negative prompt and the empty text, encoded together."""
        profile = self.prior.profile
        text = clean_prompt(prompt, profile.vocabulary)
        negative = profile.negative_prompt
        if negative_prompt is not None:
            negative = clean_negative(negative_prompt, profile.vocabulary)
        encoded = self.prior.encode_text([*phrase_texts(text, profile.views), negative, ""])
        return PromptEmbeddings(phrases=encoded[:-2], uncond=encoded[-2], null=encoded[-1])

    def run(self, assets: Sequence[AssetState]) -> Iterator[StepReport]:
        """Optimises assets in lock step until their last step, yielding once a step.

        Each asset's mathematics is its own; only the prior's calls are shared. After a yield the assets are
        in a state that can be saved.

        Raises:
            Diverged: a gradient is not finite; the assets are as they were before the step.
            OutOfMemory: the device's memory does not hold a step.
            ValueError: the assets are not at the same step.
        """
        if len({asset.step for asset in assets}) != 1:
            raise ValueError("the assets of a run must be at the same step")
        while assets[0].step < self.config.optim.steps:
            begin = time.perf_counter()
            drawn = [asset.draws() for asset in assets]
            try:
                with out_of_memory(self.device, "a step", self._cheaper()):
                    times, norms = self._step(assets)
            except BaseException:
                for asset, states in zip(assets, drawn, strict=True):
                    asset.rewind(states)
                raise
            yield StepReport(
                step=assets[0].step,
                times=times,
                grad_norm=norms,
                n_gaussians=tuple(len(asset.gaussians) for asset in assets),
                seconds=time.perf_counter() - begin,
                memory_gib=peak_memory_gib(self.device),
            )

    @torch.no_grad()
    def render(self, gaussians: Gaussians, cameras: Cameras) -> Rendering:
        """What the cameras see of Gaussians, nothing behind them.

        Raises:
            OutOfMemory: the device's memory does not hold the pictures.
        """
        with out_of_memory(self.device, f"{len(cameras)} pictures", f"--size {cameras.size // 2}"):
            return self._rasterize(gaussians, cameras.to(self.device), gaussians.scales)

    def _step(self, assets: Sequence[AssetState]) -> tuple[tuple[tuple[int, int, int], ...], tuple[float, ...]]:
        """One step of every asset; returns times and gradient norms."""
        config, v = self.config, self.config.camera.batch
        views = [self._draw_views(asset) for asset in assets]
        latents = self.prior.encode_image(torch.cat([part.images for part in views]), self._posterior_noise(assets))
        times = Times(*torch.tensor([part.times for part in views]).T).repeat(v)
        gradient = sctd(
            self.prior.predict_noise,
            self._schedule,
            latents.detach(),
            torch.cat([self._step_noise(asset) for asset in assets]),
            times,
            self._conditions(assets, views),
            config.distill,
        )
        loss = (latents * gradient).sum()
        for asset, part in zip(assets, views, strict=True):
            loss = loss + self._regularisers(asset, part)
        loss.backward()
        norms = [clip_gradients(asset.gaussians, config.optim, asset.step + 1) for asset in assets]
        values = torch.stack(norms).tolist()
        self._check_finite(assets, values, views)
        for asset, part in zip(assets, views, strict=True):
            self._update(asset, part)
        return tuple(part.times for part in views), tuple(values)

    def _draw_views(self, asset: AssetState) -> _Views:
        """Draws times and cameras for an asset's next step and renders what the prior is to judge."""
        config, step, augment = self.config, asset.step + 1, asset.generators["augment"]
        times = draw_times(config.distill, step, self._edges, asset.generators["times"])
        cameras = sample_cameras(config.camera, step, self.image_size, asset.generators["cameras"]).to(self.device)
        background = sample_backgrounds(config.camera, self.image_size, asset.generators["backgrounds"]).to(self.device)
        scales = asset.gaussians.scales
        if config.camera.scale_noise:
            noise = torch.randn(scales.shape, generator=augment).to(self.device)
            scales = (scales * (1 + config.camera.scale_noise * noise)).clamp_min(0)
        rendering = self._rasterize(asset.gaussians, cameras, scales)
        rgb = rendering.over(background)
        draw, flip = torch.rand(2, generator=augment).tolist()
        distil_disparity = draw < config.distill.disparity_probability
        disparity = None
        if distil_disparity or config.loss.tv_disparity:
            disparity = losses.disparity(rendering.depth, rendering.alpha, cameras.Ks[:, 0, 0] / cameras.size)
        images = disparity.expand(-1, -1, -1, 3) if distil_disparity and disparity is not None else rgb
        if flip < config.distill.flip_probability:
            images = images.flip(2)
        return _Views(cameras, rendering, rgb, disparity, images.permute(0, 3, 1, 2), times)

    def _rasterize(self, gaussians: Gaussians, cameras: Cameras, scales: Float[Tensor, "n 3"]) -> Rendering:
        return rasterize(
            gaussians.means,
            gaussians.quats,
            scales,
            gaussians.opacities,
            gaussians.colors(cameras.positions),
            cameras.viewmats,
            cameras.Ks,
            cameras.size,
            cameras.size,
        )

    def _conditions(self, assets: Sequence[AssetState], views: Sequence[_Views]) -> Conditions:
        """The text of every row of latents."""
        profile, config = self.prior.profile, self.config
        parts = [
            asset.embeddings.conditions(
                view_weights(
                    part.cameras.azimuth_deg,
                    part.cameras.elevation_deg,
                    profile.views,
                    config.view,
                    perp_neg=config.distill.perp_neg,
                )
            )
            for asset, part in zip(assets, views, strict=True)
        ]
        return Conditions.stack(parts)

    def _regularisers(self, asset: AssetState, views: _Views) -> Float[Tensor, ""]:
        """The weighted terms beside the distillation."""
        weights, gaussians, warmup = self.config.loss, asset.gaussians, self.config.distill.warmup_steps
        total = gaussians.means.new_zeros(())
        if weights.tv_rgb:
            total = total + weights.tv_rgb * losses.total_variation(views.rgb)
        if weights.tv_disparity and views.disparity is not None:
            total = total + weights.tv_disparity * losses.total_variation(views.disparity)
        if weights.scale:
            total = total + weights.scale * gaussians.scales.mean()
        if weights.opacity:
            ramp = min(1.0, (asset.step + 1) / warmup) if warmup else 1.0
            total = total + weights.opacity * ramp * gaussians.opacities.mean()
        if weights.outside:
            total = total + weights.outside * losses.outside(gaussians.means)
        return total

    def _check_finite(self, assets: Sequence[AssetState], norms: Sequence[float], views: Sequence[_Views]) -> None:
        """Stops before a broken gradient reaches the parameters."""
        for asset, norm, part in zip(assets, norms, views, strict=True):
            if not math.isfinite(norm):
                t, s, e = part.times
                raise Diverged(
                    f"the gradient of {asset.prompt!r} is not finite in step {asset.step + 1} (t={t}, s={s}, e={e})",
                    hint="start over with --force and a smaller --guidance-scale, or with --set prior.dtype=fp32",
                )

    def _update(self, asset: AssetState, views: _Views) -> None:
        """Moves an asset's parameters and controls its density."""
        config, gaussians, step = self.config, asset.gaussians, asset.step + 1
        set_learning_rates(asset.optimizers, config.optim, step)
        for optimizer in asset.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if config.optim.scale_range is not None:
            low, high = config.optim.scale_range
            gaussians.params["log_scales"].data.clamp_(math.log(low), math.log(high))
        rendering = views.rendering
        if step < config.densify.stop and rendering.means2d.grad is not None:
            asset.stats.gather(rendering.means2d.grad, rendering.radii, self.image_size, config.densify.views)
        asset.stats = control_density(
            gaussians, asset.optimizers, asset.stats, step, config.densify, asset.generators["densify"]
        )
        asset.step = step

    def _latent_shape(self) -> tuple[int, int, int, int]:
        """Views, channels, height and width of the latents of an asset's renders.

        Raises:
            UsageProblem: the renders' size does not divide into latents.
        """
        channels, side, _ = self.prior.latent_shape
        factor = self.prior.image_size // side
        if self.image_size % factor:
            fitting = max(1, round(self.image_size / factor)) * factor
            raise UsageProblem(
                f"camera.image_size can't be {self.image_size}: the prior's latents take {factor} pixels each",
                hint=f"--set camera.image_size={fitting}",
            )
        return self.config.camera.batch, channels, self.image_size // factor, self.image_size // factor

    def _draw_noise(self, generator: torch.Generator) -> Float[Tensor, "v c h w"]:
        """ε*: Gaussian noise for each view of a step, with a constant added to each channel (release)."""
        shape, distill = self._latent_shape(), self.config.distill
        offset = distill.noise_offset_perp_neg if distill.perp_neg else distill.noise_offset
        noise = torch.randn(shape, generator=generator)
        return (noise + offset * torch.randn(1, shape[1], 1, 1, generator=generator)).to(self.device)

    def _step_noise(self, asset: AssetState) -> Float[Tensor, "v c h w"]:
        return asset.noise if self.config.distill.fixed_noise else self._draw_noise(asset.generators["noise"])

    def _posterior_noise(self, assets: Sequence[AssetState]) -> Float[Tensor, "b c h w"] | None:
        if not self.config.prior.sample_posterior:
            return None
        shape = self._latent_shape()
        return torch.cat([torch.randn(shape, generator=asset.generators["posterior"]) for asset in assets]).to(
            self.device
        )

    def _cheaper(self) -> str:
        """The setting to change when a step does not fit."""
        if self.config.camera.batch > 1:
            return f"--set camera.batch={self.config.camera.batch // 2}"
        return f"--set camera.image_size={self.image_size // 2}"
