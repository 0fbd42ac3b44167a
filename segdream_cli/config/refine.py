"""Settings of the refinement: rounds that repaint views of an asset and fit the asset to them (ours)."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from segdream_cli.config.values import Amount, Guidance, Range, Share, Within
from segdream_cli.errors import UsageProblem

Integers = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """The settings of one round; see `RefineConfig`."""

    t0: int
    steps: int
    views: int
    iterations: int
    image_size: int
    gaussians: int


PER_ROUND = tuple(field.name for field in dataclasses.fields(Round))


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineConfig:
    """Refinement (ours). The settings `t0` to `gaussians` have one number per round.

    The defaults are for Stable Diffusion, and nobody has looked at their results yet.
    """

    enabled: bool = False
    """Refine the asset after the distillation."""
    t0: Annotated[Integers, Within(1, 999)] = (300, 200)
    """Timestep to which the views are noised: t0 / 1000 is the strength of the repaint."""
    steps: Annotated[Integers, Within(1, 999)] = (12, 8)
    """DDIM steps from t0 to 0, at most t0."""
    views: Annotated[Integers, Within(1, 1000)] = (24, 24)
    """Number of repainted views."""
    iterations: Annotated[Integers, Within(1)] = (300, 300)
    """Steps of Adam that fit the asset to the views."""
    image_size: Annotated[Integers, Within(0)] = (0, 0)
    """Side of the views in pixels; 0 is the image size of the prior."""
    gaussians: Annotated[Integers, Within(0)] = (0, 0)
    """Number of Gaussians after the splits that begin a round, which at most double it; 0 splits none."""
    guidance_scale: Guidance = 7.5
    """Omega of classifier-free guidance in the repaint."""
    elevations_deg: Annotated[tuple[float, ...], Within(-90, 90)] = (-10.0, 15.0, 40.0, 0.0, 25.0, 60.0)
    """Elevations above the horizon; the views cycle through them."""
    background: Annotated[Range, Within(0, 1, increasing=True)] = (0.75, 1.0)
    """Range of red, green and blue of the random colour behind a view."""
    sharpen: Amount = 0.0
    """Weight of the unsharp mask of repainted views, which makes up for the blur of the prior's decoder and of the
    fit; its Gaussian has a standard deviation of 3/256 of the side. Colour differences have half the weight."""
    share_noise: bool = False
    """Repaint all views of a round from the same noise; false draws noise for each."""
    fit_batch: Annotated[int, Within(1, 1000)] = 4
    """Views per step of Adam, at most those of the round."""
    l1: Amount = 0.8
    """Weight of the mean absolute difference from the repainted views (3DGS)."""
    ssim: Amount = 0.2
    """Weight of 1 - SSIM, in windows at every second pixel (3DGS: at every pixel)."""
    opacity: Amount = 0.0
    """Weight of mean alpha (1 - alpha), which makes surfaces solid."""
    means_lr: Amount = 2e-3
    """Learning rate of the centres at the start of a round. All rates fall linearly to a tenth within the round."""
    quat_lr: Amount = 1e-2
    """Learning rate of the quaternions."""
    scale_lr: Amount = 1e-2
    """Learning rate of the log scales."""
    opacity_lr: Amount = 0.03
    """Learning rate of the opacity logits."""
    sh0_lr: Amount = 0.02
    """Learning rate of the base colour."""
    shN_lr: Amount = 1e-3
    """Learning rate of the higher spherical harmonics."""
    anchor: Amount = 0.5
    """Weight of the mean absolute difference from the views of the asset that `segdream refine` was given; both are
    averaged over squares of 1/32 of the side."""
    strength: Annotated[float | None, Within(0.001, 0.999)] = None
    """If given, upper limit of t0 / 1000 in every round."""
    split: bool = True
    """Split Gaussians before a round; false ignores `gaussians`."""
    cap: Annotated[int | None, Within(1)] = None
    """If given, upper limit of `gaussians`; `densify.cap` limits the distillation only."""
    surface: Annotated[int, Within(100, 10_000_000)] = 20_000
    """Number of Gaussians on the surface of a mesh that `segdream refine` was given."""
    scale_range: Annotated[Range, Within(1e-8, increasing=True)] = (1e-3, 0.1)
    """Scales are clamped to this range."""
    start_scale: Annotated[float | None, Within(1e-8)] = None
    """If given, Gaussians with a longer axis shrink to it before the fit of a round: the fit finds sharper edges from
    small Gaussians with gaps than from large ones that overlap. It is at least half the distance to
    the neighbours, so that they still cover the object."""
    prune_opacity: Share = 0.02
    """Gaussians below this opacity are removed before a round."""

    @property
    def rounds(self) -> list[Round]:
        """The rounds in order; none if the refinement is disabled."""
        if not self.enabled:
            return []
        rounds = [Round(*values) for values in zip(*(getattr(self, name) for name in PER_ROUND), strict=True)]
        if not self.split:
            rounds = [dataclasses.replace(each, gaussians=0) for each in rounds]
        if self.cap is not None:
            rounds = [dataclasses.replace(each, gaussians=min(each.gaussians, self.cap)) for each in rounds]
        if self.strength is not None:
            rounds = [dataclasses.replace(each, t0=min(each.t0, round(1000 * self.strength))) for each in rounds]
        return [dataclasses.replace(each, steps=min(each.steps, each.t0)) for each in rounds]

    @property
    def total(self) -> int:
        """Number of steps of all rounds."""
        return sum(each.iterations for each in self.rounds)

    def locate(self, step: int) -> tuple[int, int]:
        """Index of the round of a step of the refinement, 0 to `total` - 1, and the step's index within the round."""
        for index, each in enumerate(self.rounds):
            if step < each.iterations:
                return index, step
            step -= each.iterations
        raise IndexError(step)

    def check(self) -> None:
        """Refuses lists of different lengths.

        Raises:
            UsageProblem: naming them.
        """
        lists = {name: getattr(self, name) for name in PER_ROUND}
        if len({len(values) for values in lists.values()}) > 1:
            counts = ", ".join(f"{name} has {len(values)}" for name, values in lists.items())
            count = len(self.t0)
            fitting = [(*values, *count * values[-1:])[:count] for values in lists.values()]
            hint = " ".join(
                f"--set refine.{name}=[{','.join(map(str, values))}]"
                for name, values in zip(lists, fitting, strict=True)
            )
            raise UsageProblem(f"the refinement needs one number per round, but {counts}", hint=hint)
