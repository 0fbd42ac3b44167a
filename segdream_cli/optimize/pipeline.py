"""The pipeline behind every command: prepare an asset, run the distillation, render what is there.

    cameras -> raster -> encode_image -> distillation -> losses -> optimiser -> density control -> StepReport

`Pipeline.run` is a generator: whoever drives it decides what to show, when to save and when to stop.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segdream_cli.config import Config
from segdream_cli.distill.guidance import Conditions
from segdream_cli.distill.schedule import NoiseSchedule, Times, draw_times, trajectory_segments
from segdream_cli.distill.sctd import sctd
from segdream_cli.distill.view_prompts import (
    PromptEmbeddings,
    clean_negative,
    clean_prompt,
    conditions,
    phrase_texts,
    view_weights,
)
from segdream_cli.errors import Diverged, UsageProblem
from segdream_cli.optimize import losses
from segdream_cli.optimize.adam import adam_step, build_optimizers, clip_gradients
from segdream_cli.optimize.density import DensityStats, control_density, due, gather
from segdream_cli.optimize.report import Arriving, StepReport, Taken
from segdream_cli.optimize.start import cloud_words, initial_gaussians
from segdream_cli.optimize.state import AssetState, build_generators
from segdream_cli.pointe.model import PointCloud
from segdream_cli.priors.protocol import Prior
from segdream_cli.render.cameras import Cameras, sample_backgrounds, sample_cameras
from segdream_cli.render.raster import Rendering
from segdream_cli.render.view import render
from segdream_cli.splats.gaussians import Gaussians, stack
from segdream_cli.util.memory import out_of_memory, peak_memory_gib


@dataclass(frozen=True, slots=True)
class _Views:
    """What is seen in a step: `a` assets from `v` cameras each, the `b` views of one asset after those of the other."""

    cameras: Cameras
    rendering: Rendering
    rgb: Float[Tensor, "b h w 3"]
    disparity: Float[Tensor, "b h w 1"] | None
    images: Float[Tensor, "b 3 h w"]


class Pipeline:
    """Distils assets from a prior.

    Args:
        config: all settings.
        prior: the diffusion model; None serves for rendering only.
        device: where Gaussians and prior live.
        clouds: makes the cloud of a prompt and a seed, for a start from Point-E.
        queued: look at a step's gradient in the next step instead of waiting for it; None does so on CUDA.
    """

    def __init__(
        self,
        config: Config,
        prior: Prior | None,
        device: torch.device,
        clouds: Callable[[str, int], PointCloud] | None = None,
        *,
        queued: bool | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self._prior = prior
        self._clouds = clouds
        self._queued = device.type == "cuda" if queued is None else queued

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
        words = cloud_words(self.config.init, prompt, self.prior.profile.vocabulary)
        cloud = None if self._clouds is None or words is None else partial(self._clouds, words, seed)
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
            noise=self._draw_noise([generators["noise"]]),
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

        They share the work, not the result: each has random numbers of its own, and comes out as it would alone but for
        the rounding of batched arithmetic. After a yield the assets are in a state that can be saved, unless the step
        is broken, as `report.taken.broken()` tells: then it is about to be taken back, since queued steps are looked at
        in the next one, when the rasteriser has waited for the device.

        Raises:
            Diverged: the gradient of one asset is not finite; all are as they were before that step, and the others can
                go on without it.
            OutOfMemory: the device's memory does not hold a step.
            ValueError: the assets are not at the same step.
        """
        if len({asset.step for asset in assets}) != 1:
            raise ValueError("the assets of a run must be at the same step")
        last: Taken | None = None
        while assets[0].step < self.config.optim.steps:
            begin = time.perf_counter()
            draws = [asset.draws() for asset in assets]
            try:
                with out_of_memory(self.device, "a step", self._cheaper(len(assets))):
                    last = self._step(assets, draws, last)
            except Diverged:
                raise
            except BaseException:
                if last is not None and last.broken() is not None:
                    _take_back(assets, last.step, last.draws)
                else:
                    _take_back(assets, assets[0].step + 1, draws)
                raise
            yield StepReport(
                taken=last,
                n_gaussians=tuple(len(asset.gaussians) for asset in assets),
                seconds=time.perf_counter() - begin,
                memory_gib=peak_memory_gib(self.device),
            )
        if last is not None:
            _check_finite(assets, last)

    @torch.no_grad()
    def render(self, gaussians: Gaussians, cameras: Cameras) -> Rendering:
        """What the cameras see of Gaussians, nothing behind them.

        Raises:
            OutOfMemory: the device's memory does not hold the pictures.
        """
        with out_of_memory(self.device, f"{len(cameras)} pictures", f"--size {cameras.size // 2}"):
            return render(gaussians, cameras.to(self.device))

    def _step(self, assets: Sequence[AssetState], draws: Sequence[Mapping[str, Tensor]], last: Taken | None) -> Taken:
        """One step of every asset, from where their random generators stand; `last` is the one before it."""
        config, step = self.config, assets[0].step + 1
        times = tuple(draw_times(config.distill, step, self._edges, asset.generators["times"]) for asset in assets)
        gaussians = stack([asset.gaussians for asset in assets])  # [a, n, ...]
        noise, posterior_noise = self._step_noise(assets), self._posterior_noise(assets)
        views = self._draw_views(assets, gaussians)  # waits for the device: what is drawn before costs no time
        if last is not None:
            _check_finite(assets, last)
        latents = self.prior.encode_image(views.images, posterior_noise)
        gradient = sctd(
            self.prior.predict_noise,
            self._schedule,
            latents.detach(),
            noise,
            Times(*torch.tensor(times).T).repeat(config.camera.batch),
            self._conditions(assets, views.cameras),
            config.distill,
        )
        loss = (latents * gradient).sum() + self._regularisers(assets, gaussians, views)
        loss.backward()
        norms = clip_gradients(gaussians, config.optim, step)
        taken = Taken(step, times, Arriving(norms), draws)
        if self._queued and not due(step, config.densify):
            self._update(assets, gaussians, views.rendering, usable=norms.isfinite().all())
        else:
            _check_finite(assets, taken)
            self._update(assets, gaussians, views.rendering)
        return taken

    def _draw_views(self, assets: Sequence[AssetState], gaussians: Gaussians) -> _Views:
        """Draws the cameras of the next step and renders what the prior is to judge."""
        config, step, size = self.config, assets[0].step + 1, self.image_size
        cameras = sample_cameras(config.camera, step, size, _generators(assets, "cameras")).to(self.device)
        backgrounds = sample_backgrounds(config.camera, size, _generators(assets, "backgrounds"), self.device)
        scales = gaussians.scales
        if config.camera.scale_noise:
            scales = (scales * (1 + config.camera.scale_noise * self._scale_noise(assets, scales))).clamp_min(0)
        rendering = render(gaussians, cameras, scales=scales)
        rgb = rendering.over(backgrounds.unflatten(0, (len(assets), -1))).flatten(0, 1)
        draws = torch.stack([torch.rand(2, generator=generator) for generator in _generators(assets, "augment")])
        limits = torch.tensor([config.distill.disparity_probability, config.distill.flip_probability])
        chosen = (draws < limits).repeat_interleave(config.camera.batch, 0)  # [b, 2]
        distil_disparity, flip = chosen.to(self.device, non_blocking=True)[:, :, None, None, None].unbind(1)
        images, disparity = rgb, None
        if chosen[:, 0].any() or config.loss.tv_disparity:
            depth, alpha = rendering.depth.flatten(0, 1), rendering.alpha.flatten(0, 1)
            disparity = losses.disparity(depth, alpha, cameras.Ks[:, 0, 0] / cameras.size)
            images = torch.where(distil_disparity, disparity, images)
        if chosen[:, 1].any():
            images = torch.where(flip, images.flip(2), images)
        return _Views(cameras, rendering, rgb, disparity, images.permute(0, 3, 1, 2))

    def _conditions(self, assets: Sequence[AssetState], cameras: Cameras) -> Conditions:
        """The text of every row of latents."""
        views, config = self.prior.profile.views, self.config
        angles = cameras.azimuth_deg, cameras.elevation_deg
        weights = view_weights(*angles, views, config.view, perp_neg=config.distill.perp_neg)
        return conditions([asset.embeddings for asset in assets], weights)

    def _regularisers(self, assets: Sequence[AssetState], gaussians: Gaussians, views: _Views) -> Float[Tensor, ""]:
        """The weighted terms beside the distillation, summed over the assets."""
        warmup = self.config.distill.warmup_steps
        return losses.regularisers(
            self.config.loss,
            min(1.0, (assets[0].step + 1) / warmup) if warmup else 1.0,
            views.rgb,
            views.disparity,
            gaussians.means,
            gaussians.scales,
            gaussians.opacities,
            torch.tensor([len(asset.gaussians) for asset in assets]).to(self.device, non_blocking=True),
        )

    def _update(
        self,
        assets: Sequence[AssetState],
        stacked: Gaussians,
        rendering: Rendering,
        usable: Bool[Tensor, ""] | None = None,
    ) -> None:
        """Moves the assets' parameters by the gradients of their stack and controls their density.

        Nothing but the number of the step changes where `usable` is false; None is true.
        """
        config, step = self.config, assets[0].step + 1
        sets = [asset.gaussians for asset in assets]
        adam_step(sets, [asset.optimizers for asset in assets], stacked, config.optim, step, usable)
        if config.optim.scale_range is not None:
            low, high = map(math.log, config.optim.scale_range)
            for values in (gaussians.params["log_scales"].data for gaussians in sets):
                kept = values.clamp(low, high)
                values.copy_(kept if usable is None else torch.where(usable, kept, values))
        if step < config.densify.stop and rendering.means2d.grad is not None:
            stats = [asset.stats for asset in assets]
            seen = rendering.radii > 0 if usable is None else (rendering.radii > 0) & usable
            gather(stats, rendering.means2d.grad, seen, self.image_size, config.densify.views)
        for asset in assets:
            asset.stats = control_density(
                asset.gaussians, asset.optimizers, asset.stats, step, config.densify, asset.generators["densify"]
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

    def _draw_noise(self, generators: Sequence[torch.Generator]) -> Float[Tensor, "b c h w"]:
        """ε*: Gaussian noise for each view of a step, with a constant added to each channel of an asset (release)."""
        shape, distill = self._latent_shape(), self.config.distill
        offset = distill.noise_offset_perp_neg if distill.perp_neg else distill.noise_offset
        noise = torch.stack([torch.randn(shape, generator=each) for each in generators])  # [a, v, c, h, w]
        constants = torch.stack([torch.randn(1, shape[1], 1, 1, generator=each) for each in generators])
        return self._send((noise + offset * constants).flatten(0, 1))

    def _step_noise(self, assets: Sequence[AssetState]) -> Float[Tensor, "b c h w"]:
        if self.config.distill.fixed_noise:
            return torch.cat([asset.noise for asset in assets])
        return self._draw_noise(_generators(assets, "noise"))

    def _posterior_noise(self, assets: Sequence[AssetState]) -> Float[Tensor, "b c h w"] | None:
        if not self.config.prior.sample_posterior:
            return None
        shape = self._latent_shape()
        drawn = [torch.randn(shape, generator=generator) for generator in _generators(assets, "posterior")]
        return self._send(torch.cat(drawn))

    def _scale_noise(self, assets: Sequence[AssetState], scales: Float[Tensor, "a n 3"]) -> Float[Tensor, "a n 3"]:
        """Standard normal numbers for each asset's own Gaussians, and zeros beyond its last."""
        noise = torch.zeros(scales.shape)
        for asset, row in zip(assets, noise, strict=True):
            count = len(asset.gaussians)
            torch.randn(count, 3, generator=asset.generators["augment"], out=row[:count])
        return self._send(noise)

    def _send(self, drawn: Tensor) -> Tensor:
        """Numbers from the processor, so that a run is the same everywhere, sent without waiting for the device."""
        pinned = drawn.pin_memory() if self.device.type == "cuda" else drawn
        return pinned.to(self.device, non_blocking=True)

    def _cheaper(self, assets: int) -> str:
        """What to change when a step does not fit."""
        if assets > 1:
            return f"--batch {assets // 2}"
        if self.config.camera.batch > 1:
            return f"--set camera.batch={self.config.camera.batch // 2}"
        return f"--set camera.image_size={self.image_size // 2}"


def _check_finite(assets: Sequence[AssetState], taken: Taken) -> None:
    """Takes back a step with a broken gradient, which has not reached the parameters."""
    place = taken.broken()
    if place is not None:
        _take_back(assets, taken.step, taken.draws)
        t, s, e = taken.times[place]
        raise Diverged(
            f"the gradient of {assets[place].prompt!r} is not finite in step {taken.step} (t={t}, s={s}, e={e})",
            hint="start over with --force and a smaller --guidance-scale, or with --set prior.dtype=fp32",
            place=place,
        )


def _take_back(assets: Sequence[AssetState], step: int, draws: Sequence[Mapping[str, Tensor]]) -> None:
    """Puts assets back before a step that has not moved their parameters."""
    for asset, states in zip(assets, draws, strict=True):
        asset.rewind(step, states)


def _generators(assets: Sequence[AssetState], purpose: str) -> list[torch.Generator]:
    return [asset.generators[purpose] for asset in assets]
