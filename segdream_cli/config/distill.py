"""Settings of the distillation: what every method shares, and one section per method.

Sources in brackets as in `sections`; a method's section has the defaults that its authors published.
"""

import typing
from dataclasses import dataclass
from typing import Annotated, Literal

from segdream_cli.config.values import Amount, Count, Guidance, Natural, Range, Share, Steps, Within
from segdream_cli.errors import UsageProblem

MethodName = Literal["sctd", "sds", "ism", "cds", "csd", "gcs"]
METHOD_NAMES: tuple[MethodName, ...] = typing.get_args(MethodName)


@dataclass(frozen=True, slots=True, kw_only=True)
class FallingTimes:
    """Timesteps that fall over a run, for methods that draw t from a range (ours, after DreamTime, ICLR 2024)."""

    t_schedule: Literal["random", "annealed", "falling"] = "random"
    """Draw t from the method's range; or from one whose upper end falls linearly to t_end; or take that end as t."""
    t_end: Annotated[int, Within(1, 999)] = 200
    """Upper end of the range of t in the last step, unless t_schedule is random (ours)."""

    def t_range(self, low: int, high: int, progress: float) -> tuple[int, int]:
        """Smallest and largest t of a step whose method has the range `low` to `high`, both included.

        Args:
            low: the method's own smallest t.
            high: the method's own largest t.
            progress: share of the run that is done, 0..1.
        """
        if self.t_schedule == "random":
            return low, high
        end = min(max(self.t_end, low), high)
        upper = round(high + (end - high) * progress)
        return (upper if self.t_schedule == "falling" else low), upper


@dataclass(frozen=True, slots=True, kw_only=True)
class SctdConfig(FallingTimes):
    """Segmented Consistency Trajectory Distillation (SegmentDreamer, ICCV 2025)."""

    loss: Literal["released", "eq10"] = "released"
    """The release's residual (Eq. 9 without its last term, the generative prior), or the gradient of Eq. 10."""
    approximate: bool = True
    """Take z_e for G(z_t, t, e, null) (paper 4.4); false differentiates through the U-Net."""
    double_guidance: bool = True
    """Use the guided noise inside G(z_t, t, e, y) as well (release); false uses the conditional one (paper)."""
    guidance_scale: Guidance = 7.5
    """Omega of classifier-free guidance (release, paper)."""
    cross_weight: Annotated[float | None, Within(0)] = None
    """Weight of the cross-consistency term; none is omega + 1 (Eq. 9)."""
    prior_weight: Amount = 0.0
    """Weight of the generative prior, the last term of Eq. 9 (release, Eq. 10: left out)."""
    reuse_noise: bool = False
    """Take the last noise estimate of the inversion for that of the self-consistency term; a U-Net row less (ours)."""
    weight: Literal["sigma_over_alpha", "b_t", "none"] = "sigma_over_alpha"
    """Weight over t: sigma_t / alpha_t (release), or b(t) of Eq. 8 with omega(t) = sigma_t^2."""
    grad_scale: Amount = 0.1
    """Factor on the gradient of the latents (release: lambda_guidance)."""
    segments: Annotated[int, Within(1, 1000)] = 5
    """Number of sub-trajectories N_s (release, paper)."""
    segmentation: Literal["uniform", "full", "mono"] = "uniform"
    """Equal parts of [t_min, t_max] (release), of [0, T] (paper), or monotonically increasing ones."""
    t_min: Annotated[int, Within(0, 999)] = 20
    """Smallest timestep (release)."""
    t_max: Annotated[int, Within(1, 1000)] = 980
    """Largest timestep (release)."""
    t_tau: Annotated[int, Within(0, 1000)] = 150
    """From this t on the inversion takes two steps instead of one (release); 1000 is always one, a U-Net row less."""
    window: Literal["sliding", "lower_fixed"] = "sliding"
    """Draw t from [t_min + shift, t_high + shift) (release) or from [t_min, t_high + shift) (paper 5.1)."""
    t_high: Annotated[int, Within(1, 1000)] = 500
    """Upper end of the window after the warm-up (release, paper)."""
    warmup_shift: Natural = 480
    """How far the window starts above its final place (release, paper)."""
    min_gap: Natural = 80
    """Smallest t - e (release: delta_t); 0 lets t lie on an edge, where the gradient is 0 (Algorithm 1)."""
    s_margin: Natural = 10
    """Smallest s - e, and t - s but one (release: t_eps)."""
    fixed_noise: bool = True
    """Keep one eps* for the whole run (release, paper); false draws it anew each step."""
    noise_offset: Amount = 0.1
    """Standard deviation of the per-channel constant added to eps* (release, classifier-free guidance)."""
    noise_offset_perp_neg: Amount = 0.05
    """The same under Perp-Neg (release)."""
    noise_offset_perp_neg_fresh: Amount = 0.05
    """The same under Perp-Neg without `fixed_noise` (release: 0.1)."""

    def check(self) -> None:
        """Refuses limits of t that leave nothing to draw from.

        Raises:
            UsageProblem: naming them.
        """
        if not self.t_min + 1 < self.t_high <= self.t_max:
            raise UsageProblem(
                "distill.sctd.t_min, t_high and t_max must increase, "
                f"but they are {self.t_min}, {self.t_high} and {self.t_max}",
                hint="--set distill.sctd.t_min=20 --set distill.sctd.t_high=500 --set distill.sctd.t_max=980",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SdsConfig(FallingTimes):
    """Score Distillation Sampling (DreamFusion, ICLR 2023); "threestudio" is its Stable Diffusion configuration."""

    guidance_scale: Guidance = 101.0
    """Omega of classifier-free guidance, eps_u + omega (eps_c - eps_u) (threestudio: 100, which it adds to 1)."""
    weight: Literal["sigma_squared", "sigma_over_alpha", "none"] = "sigma_squared"
    """Weight over t: sigma_t^2 (threestudio), sigma_t / alpha_t (ours, as SCTD has it), or 1."""
    grad_scale: Amount = 1.0
    """Factor on the gradient of the latents, which is divided by the number of views (threestudio)."""
    t_min: Annotated[int, Within(0, 999)] = 20
    """Smallest timestep (threestudio)."""
    t_max: Annotated[int, Within(0, 999)] = 980
    """Largest timestep, itself included (threestudio)."""

    def check(self) -> None:
        """Refuses limits of t that leave nothing to draw from.

        Raises:
            UsageProblem: naming them.
        """
        if self.t_min > self.t_max:
            raise UsageProblem(
                f"distill.sds.t_min must not exceed t_max, but they are {self.t_min} and {self.t_max}",
                hint="--set distill.sds.t_min=20 --set distill.sds.t_max=980",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class IsmConfig(FallingTimes):
    """Interval Score Matching (LucidDreamer, CVPR 2024); "LucidDreamer" is its authors' code."""

    guidance_scale: Guidance = 7.5
    """Omega of classifier-free guidance, eps_u + omega (eps_c - eps_u) (LucidDreamer)."""
    weight: Literal["sigma_over_alpha", "none"] = "sigma_over_alpha"
    """Weight over t: sigma_t / alpha_t (LucidDreamer) or 1; the paper leaves it open."""
    grad_scale: Amount = 0.1
    """Factor on the gradient of the latents, which is not divided by the number of views (LucidDreamer)."""
    t_min: Annotated[int, Within(0, 998)] = 20
    """t is drawn above it (LucidDreamer)."""
    t_high: Annotated[int, Within(1, 999)] = 500
    """Largest t after the warm-up (LucidDreamer)."""
    t_max: Annotated[int, Within(1, 999)] = 980
    """Largest t of all (LucidDreamer)."""
    warmup_shift: Natural = 480
    """How much higher the largest t starts (LucidDreamer)."""
    interval: Count = 80
    """t - s after the warm-up (LucidDreamer: 80, 50 or 25, depending on the prompt)."""
    interval_start: Count = 100
    """t - s at the start of the warm-up (LucidDreamer)."""
    inversion_stride: Count = 200
    """Length of a step of the inversion to s; 1000 makes it a single step, as its authors advise for speed."""
    inversion_steps: Count = 5
    """Largest number of these steps; the inversion starts as far below s, at timestep 1 at least (LucidDreamer)."""
    fixed_noise: bool = False
    """Keep one eps for the whole run; false draws it anew each step (LucidDreamer)."""
    noise_offset: Amount = 0.1
    """Standard deviation of the per-channel constant added to eps (LucidDreamer)."""

    def check(self) -> None:
        """Refuses limits of t that leave nothing to draw from.

        Raises:
            UsageProblem: naming them.
        """
        if not self.t_min < self.t_high <= self.t_max:
            raise UsageProblem(
                "distill.ism.t_min must be below t_high, and t_high must not exceed t_max, "
                f"but they are {self.t_min}, {self.t_high} and {self.t_max}",
                hint="--set distill.ism.t_min=20 --set distill.ism.t_high=500 --set distill.ism.t_max=980",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CdsConfig:
    """Consistency Distillation Sampling (Consistent3D, CVPR 2024).

    "Consistent3D" is the first stage of its authors' code in the long configuration, whose schedules over 5,000 steps
    span the run here. It writes the guidance as eps_c + s (eps_c - eps_u), where s is omega - 1.
    """

    loss: Literal["released", "printed"] = "released"
    """The gradient of the code, or the slope of the printed loss, which has the opposite sign (for ablations)."""
    guidance_scale: Guidance = 51.0
    """Omega of classifier-free guidance at the start, eps_u + omega (eps_c - eps_u) (Consistent3D: s = 50)."""
    guidance_end: Amount = 21 / 51
    """Factor on omega at the end, reached linearly (Consistent3D: from s = 50 to 20); 1 keeps omega."""
    weight: Literal["none", "sigma_squared"] = "none"
    """Weight over t: 1 (Consistent3D) or sigma_t^2 (its later stages)."""
    grad_scale: Amount = 1.0
    """Factor on the gradient of the latents, which is divided by the number of views (Consistent3D)."""
    clip: Annotated[Range, Within(1e-6)] = (2.0, 8.0)
    """Limit of each element of the weighted gradient at start and end of the run, in between linear (Consistent3D)."""
    t_first: Annotated[int, Within(0, 999)] = 700
    """Lower timestep t' at the start (Consistent3D)."""
    t_last: Annotated[int, Within(0, 999)] = 100
    """Lower timestep t' at the end, reached as the square root of the share of the run that is done (Consistent3D)."""
    t_min: Annotated[int, Within(0, 999)] = 100
    """Smallest timestep (Consistent3D)."""
    t_max: Annotated[int, Within(0, 999)] = 980
    """Largest timestep (Consistent3D)."""
    min_gap: Count = 100
    """Smallest t - t' (Consistent3D)."""
    max_gap: Count = 299
    """Largest t - t' (Consistent3D)."""

    def check(self) -> None:
        """Refuses limits of t that leave nothing to draw from.

        Raises:
            UsageProblem: naming them.
        """
        hint = " ".join(
            f"--set distill.cds.{name}={value}"
            for name, value in (("t_min", 100), ("t_max", 980), ("min_gap", 100), ("max_gap", 299))
        )
        if self.min_gap > self.max_gap:
            raise UsageProblem(
                f"distill.cds.min_gap must not exceed max_gap, but they are {self.min_gap} and {self.max_gap}",
                hint=hint,
            )
        if self.t_min + self.min_gap > self.t_max:
            raise UsageProblem(
                f"distill.cds.t_max must be at least t_min + min_gap, but it is {self.t_max}, "
                f"and they are {self.t_min} and {self.min_gap}",
                hint=hint,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CsdConfig(FallingTimes):
    """Classifier Score Distillation (ICLR 2024); "refinement" and "coarse" are the stages of its authors' code."""

    guidance_scale: Guidance = 1.0
    """Factor on the gradient of the latents, which is divided by the number of views (refinement, coarse)."""
    negative_weight: Range = (-1.0, -0.5)
    """Weight u of the negative prompt at start and end (refinement; coarse: 0 to -1).

    That of the prompt is 1, that of the empty text -1 - u.
    """
    anneal: Share = 1.0
    """Share of the run over which u changes (refinement; coarse: 0.5)."""
    weight: Literal["sigma_squared", "none"] = "sigma_squared"
    """Weight over t: sigma_t^2 (refinement) or 1 (coarse)."""
    normalize: bool = False
    """Divide an asset's gradient by its norm over all views (refinement: false; coarse: true)."""
    perp_neg_scale: Amount = 3.0
    """Factor on the negative views of Perp-Neg (coarse)."""
    t_min: Annotated[int, Within(0, 999)] = 20
    """Smallest timestep (refinement, coarse)."""
    t_max: Annotated[int, Within(0, 999)] = 500
    """Largest timestep (refinement; coarse: in its second half)."""
    t_max_start: Annotated[int | None, Within(0, 999)] = None
    """Largest timestep while u changes (coarse: 980); none is t_max (refinement)."""

    def check(self) -> None:
        """Refuses limits of t that leave nothing to draw from.

        Raises:
            UsageProblem: naming them.
        """
        limits = {"t_max": self.t_max, "t_max_start": self.t_max if self.t_max_start is None else self.t_max_start}
        name = min(limits, key=limits.__getitem__)
        if self.t_min > limits[name]:
            raise UsageProblem(
                f"distill.csd.t_min must not exceed {name}, but they are {self.t_min} and {limits[name]}",
                hint=f"--set distill.csd.t_min={limits[name]}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsConfig(FallingTimes):
    """Guided Consistency Sampling (Connect3D, ECCV 2024); "Connect3D" is its authors' code."""

    guidance_scale: Guidance = 7.5
    """Omega of classifier-free guidance, eps_u + omega (eps_c - eps_u) (Connect3D)."""
    grad_scale: Amount = 0.1
    """Factor on all gradients, which are divided by the number of views (Connect3D: lambda_guidance)."""
    compact_weight: Amount = 1.0
    """Weight of the compact consistency, between t and s without text (Connect3D: w_cc)."""
    guidance_weight: Amount = 0.5
    """Weight of the conditional guidance, towards the guided estimate of z_0 (Connect3D: w_gc)."""
    pixel_weight: Amount = 0.5
    """Weight of the constraint on pixels, the same in decoded images (Connect3D: w_cp)."""
    t_min: Annotated[int, Within(0, 998)] = 20
    """t is drawn above it (Connect3D)."""
    t_high: Annotated[int, Within(1, 999)] = 500
    """Largest t after the warm-up (Connect3D)."""
    t_max: Annotated[int, Within(3, 999)] = 980
    """Largest t of all (Connect3D)."""
    warmup_shift: Natural = 480
    """How far the window of t starts above its final place (Connect3D)."""
    interval: Count = 80
    """t - s after the warm-up, and largest s - e (Connect3D: delta_t)."""
    interval_start: Count = 100
    """The same at the start of the warm-up (Connect3D: delta_t_start)."""
    margin: Natural = 10
    """s - e is larger, but where e would be below 2 (Connect3D)."""
    fixed_noise: Literal["auto", "on", "off"] = "auto"
    """Keep one eps for the whole run; "auto" does so with Perp-Neg only (Connect3D)."""
    noise_offset: Amount = 0.1
    """Standard deviation of the per-channel constant added to eps (Connect3D)."""

    def check(self) -> None:
        """Refuses limits of t, s or e that leave nothing to draw from.

        Raises:
            UsageProblem: naming them.
        """
        if not self.t_min < self.t_high <= self.t_max:
            raise UsageProblem(
                "distill.gcs.t_min must be below t_high, and t_high must not exceed t_max, "
                f"but they are {self.t_min}, {self.t_high} and {self.t_max}",
                hint="--set distill.gcs.t_min=20 --set distill.gcs.t_high=500 --set distill.gcs.t_max=980",
            )
        if not self.margin < min(self.interval, self.interval_start):
            raise UsageProblem(
                "distill.gcs.margin must be below interval and interval_start, "
                f"but they are {self.margin}, {self.interval} and {self.interval_start}",
                hint="--set distill.gcs.margin=0",
            )
        longest = self.t_max - 2
        if max(self.interval, self.interval_start) > longest:
            raise UsageProblem(
                f"distill.gcs.interval and interval_start must not exceed t_max - 2 = {longest}, "
                f"but they are {self.interval} and {self.interval_start}",
                hint=f"--set distill.gcs.interval={min(self.interval, longest)} "
                f"--set distill.gcs.interval_start={min(self.interval_start, longest)}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """The distillation. `distill.NAME` is short for `distill.METHOD.NAME` of the chosen method."""

    method: MethodName = "sctd"
    """Which method turns latents into a gradient (ours)."""
    perp_neg: bool = False
    """Perp-Neg in place of classifier-free guidance (release: per prompt)."""
    warmup_steps: Steps = 1500
    """Steps over which the shift falls to zero (release, paper)."""
    disparity_probability: Share = 0.2
    """Probability that a step distils the disparity map in place of the colours (release)."""
    flip_probability: Share = 0.5
    """Probability that a step's images are mirrored (release)."""
    sctd: SctdConfig = SctdConfig()
    sds: SdsConfig = SdsConfig()
    ism: IsmConfig = IsmConfig()
    cds: CdsConfig = CdsConfig()
    csd: CsdConfig = CsdConfig()
    gcs: GcsConfig = GcsConfig()

    def warmup(self, step: int) -> float:
        """Share of the warm-up that is done in a step (1, 2, ...), 0..1."""
        return min(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
