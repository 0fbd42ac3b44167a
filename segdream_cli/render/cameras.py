"""Cameras on an orbit about the object, and the backgrounds behind it.

World: right-handed, y up, the object faces +Z and fits the unit sphere. Camera: x right, y down, z forward
(OpenCV). Azimuth 0 looks at the front and grows towards the object's left (+X); elevation 0 is the horizon.
Random numbers and matrices are computed on the CPU; `Cameras.to` moves what the rasteriser needs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from segdream_cli.config import CameraConfig, Range


@dataclass(frozen=True, slots=True)
class Cameras:
    """A batch of square pinhole cameras.

    Args:
        viewmats: world to camera.
        Ks: intrinsics in pixels; pixel centres lie at half-integers.
        azimuth_deg: azimuth of each camera, 0 in front of the object, growing towards its left.
        elevation_deg: elevation above the horizon.
        size: side of the image in pixels.
        rigid: whether the rows of `viewmats` are orthonormal, that is, whether no camera shears its image.
    """

    viewmats: Float[Tensor, "c 4 4"]
    Ks: Float[Tensor, "c 3 3"]
    azimuth_deg: Float[Tensor, " c"]
    elevation_deg: Float[Tensor, " c"]
    size: int
    rigid: bool = True

    def __len__(self) -> int:
        return len(self.viewmats)

    def view(self, i: int) -> "Cameras":
        """Camera `i` as a batch of one."""
        return self.slice(i, i + 1)

    def slice(self, start: int, stop: int) -> "Cameras":
        """Cameras `start` to `stop` - 1, or fewer where the batch ends."""
        part = slice(start, stop)
        return replace(
            self,
            viewmats=self.viewmats[part],
            Ks=self.Ks[part],
            azimuth_deg=self.azimuth_deg[part],
            elevation_deg=self.elevation_deg[part],
        )

    def to(self, device: torch.device) -> "Cameras":
        """The same cameras with their matrices on `device`; the angles stay on the CPU."""
        return replace(
            self, viewmats=self.viewmats.to(device, non_blocking=True), Ks=self.Ks.to(device, non_blocking=True)
        )

    @property
    def positions(self) -> Float[Tensor, "c 3"]:
        """Camera centres in the world."""
        rotation, translation = self.viewmats[:, :3, :3], self.viewmats[:, :3, 3]
        inverse = rotation.mT if self.rigid else torch.linalg.inv_ex(rotation).inverse  # does not wait for the device
        return -(inverse @ translation[..., None])[..., 0]


def orbit(
    azimuth_deg: Float[Tensor, " c"],
    elevation_deg: Float[Tensor, " c"],
    radius: Float[Tensor, " c"],
    fov_rad: Float[Tensor, " c"],
    size: int,
    *,
    shift: Float[Tensor, "c 3"] | None = None,
    target: Float[Tensor, "c 3"] | None = None,
    up_tilt: Float[Tensor, "c 3"] | None = None,
    rigid: bool = True,
) -> Cameras:
    """Cameras on a sphere about the origin.

    Args:
        azimuth_deg: 0 in front of the object, growing towards its left.
        elevation_deg: elevation above the horizon.
        radius: distance from the origin.
        fov_rad: vertical (and horizontal) field of view.
        size: side of the image in pixels.
        shift: added to the camera's position.
        target: the point that the camera looks at; the origin if None.
        up_tilt: added to the up vector before it is normalised.
        rigid: turn the right vector with the up vector; false keeps it, so that a tilt shears the image.
    """
    azimuth, elevation = torch.deg2rad(azimuth_deg), torch.deg2rad(elevation_deg)
    flat = elevation.cos()
    direction = torch.stack([flat * azimuth.sin(), elevation.sin(), flat * azimuth.cos()], -1)
    position = radius[:, None] * direction + (0 if shift is None else shift)
    forward = torch.nn.functional.normalize((0 if target is None else target) - position, dim=-1)
    # at a pole, up is the limit of the views along the same azimuth
    pole = torch.stack([-azimuth.sin(), torch.zeros_like(azimuth), -azimuth.cos()], -1)
    world_up = torch.tensor([0.0, 1.0, 0.0]).expand_as(forward)
    up = torch.where((forward[:, 1:2].abs() > 0.9999), pole * -forward[:, 1:2].sign(), world_up)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    up = torch.linalg.cross(right, forward)
    if up_tilt is not None:
        up = torch.nn.functional.normalize(up + up_tilt, dim=-1)
        if rigid:
            right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
            up = torch.linalg.cross(right, forward)
    rotation = torch.stack([right, -up, forward], 1)  # [c, 3, 3], rows are the camera's axes
    if not rigid:
        rotation = torch.linalg.inv(rotation.mT)  # its inverse has the axes as columns, which are not orthogonal
    viewmats = torch.eye(4).repeat(len(position), 1, 1)
    viewmats[:, :3, :3] = rotation
    viewmats[:, :3, 3] = -(rotation @ position[..., None])[..., 0]
    Ks = torch.zeros(len(position), 3, 3)
    Ks[:, 0, 0] = Ks[:, 1, 1] = size / 2 / torch.tan(fov_rad / 2)
    Ks[:, :2, 2] = size / 2
    Ks[:, 2, 2] = 1
    return Cameras(viewmats, Ks, azimuth_deg, elevation_deg, size, rigid)


VIEW_FOV_DEG = 40.0
VIEW_FILL = 0.85
"""Share of the image's side that the framed sphere takes."""


def frame_sphere(
    azimuth_deg: Float[Tensor, " c"],
    elevation_deg: Float[Tensor, " c"],
    size: int,
    *,
    center: Float[Tensor, " 3"] | None = None,
    extent: float = 1.0,
) -> Cameras:
    """Cameras from which a sphere of radius `extent` about `center` fills most of the image.

    Args:
        azimuth_deg: 0 in front of the object, growing towards its left.
        elevation_deg: elevation above the horizon.
        size: side of the image in pixels.
        center: centre of the sphere; the origin if None.
        extent: radius of the sphere.
    """
    c = len(azimuth_deg)
    target = (torch.zeros(3) if center is None else center).expand(c, 3)
    fov = math.radians(VIEW_FOV_DEG)
    radius = extent / (VIEW_FILL * math.sin(fov / 2))
    return orbit(
        azimuth_deg, elevation_deg, torch.full((c,), radius), torch.full((c,), fov), size, shift=target, target=target
    )


def turntable_azimuths(n: int) -> Float[Tensor, " n"]:
    """`n` azimuths in degrees, evenly spaced around a circle from the front; the first is not repeated."""
    return torch.arange(n) * (360 / n)


@dataclass(frozen=True, slots=True)
class CameraRanges:
    """Ranges of a step's random cameras: distances, fields of view, and the largest azimuth."""

    radius: Range
    fov_rad: Range
    azimuth_deg: float


def camera_ranges(config: CameraConfig, step: int) -> CameraRanges:
    """The ranges at optimisation step `step` (1, 2, ...), which widen every `widen_every` steps."""
    n = step // config.widen_every if config.widen_every else 0
    narrow, wide = config.fov_factors
    low, high = config.fov_rad
    floor, ceiling = config.fov_limit_rad
    near, far = (
        max(start * config.radius_factor**n, least)
        for start, least in zip(config.radius, config.radius_floor, strict=True)
    )
    return CameraRanges(
        radius=(near, far),
        fov_rad=(max(low * narrow**n, floor), min(high * wide**n, ceiling)),
        azimuth_deg=min(config.azimuth_deg * config.azimuth_factor**n, 180.0),
    )


def sample_cameras(config: CameraConfig, step: int, size: int, generators: Sequence[torch.Generator]) -> Cameras:
    """Draws the `config.batch` views of one step for each generator; views of the same asset are adjacent.

    All views of an asset have the same field of view, as in the release.

    Args:
        config: the ranges.
        step: optimisation step, from 1.
        size: side of the image in pixels.
        generators: one per asset.
    """
    c, ranges = config.batch, camera_ranges(config, step)
    middle = sum(config.elevation_deg) / 2
    reach = (config.elevation_deg[1] - config.elevation_deg[0]) / 2
    azimuth = ranges.azimuth_deg * _signed_power(c, config.gamma, generators)
    if config.stratified:
        sector = (torch.arange(c).repeat(len(generators)) + _rand(c, generators)) / c
        azimuth = ranges.azimuth_deg * (2 * sector - 1)
    elevation = middle + reach * _signed_power(c, config.gamma, generators)
    fov = _uniform(1, ranges.fov_rad, generators).repeat_interleave(c)
    radius = _uniform(c, ranges.radius, generators)
    if config.fill is not None:
        radius = 1 / (_uniform(c, config.fill, generators) * torch.tan(fov / 2))
    shift = torch.cat([torch.rand(c, 3, generator=generator) for generator in generators])
    target, tilt = (torch.cat([torch.randn(c, 3, generator=generator) for generator in generators]) for _ in range(2))
    return orbit(
        azimuth,
        elevation,
        radius,
        fov,
        size,
        shift=config.position_jitter * (2 * shift - 1),
        target=config.target_jitter * target,
        up_tilt=config.up_jitter * tilt,
        rigid=not config.shear,
    )


def sample_backgrounds(
    config: CameraConfig, size: int, generators: Sequence[torch.Generator], device: torch.device
) -> Float[Tensor, "b h w 3"]:
    """Draws the background of each view of a step, for each generator; RGB in 0..1, on `device`.

    A background is a linear gradient between two colours, which are usually equal.
    """
    kinds = list(config.backgrounds)
    weights = torch.tensor([float(config.backgrounds[kind]) for kind in kinds])
    drawn = [
        BACKGROUNDS[kinds[i]](generator)
        for generator in generators
        for i in torch.multinomial(weights, config.batch, replacement=True, generator=generator).tolist()
    ]
    first, second, choice = torch.stack(drawn).unbind(1)  # [b, 3] each
    gray, ramp, angle = choice[..., None].unbind(1)  # [b, 1] each
    first = torch.where(gray < 0.4, 0.6 * first.mean(-1, keepdim=True) + 0.4, first)
    second = torch.where(ramp < 0.5, first, second)
    x, y = torch.cos(2 * math.pi * angle).expand(-1, 3), torch.sin(2 * math.pi * angle).expand(-1, 3)
    sent = torch.stack([first, second, x, y])[..., None, None, :].to(
        device, non_blocking=True
    )  # one transfer for all of them
    first, second, x, y = sent  # [b, 1, 1, 3] each
    axis = torch.linspace(-1, 1, size, device=device)[:, None]
    along = 0.5 + 0.35 * (axis * x + axis[:, None] * y)
    backgrounds: Tensor = first + (second - first) * 0.5 * along
    return backgrounds


def _plain(value: float | None, generator: torch.Generator) -> Float[Tensor, "3 3"]:
    """One colour throughout: grey of `value`, or a random one."""
    color = torch.rand(3, generator=generator) if value is None else torch.full((3,), value)
    return torch.stack([color, color, torch.ones(3)])


BACKGROUNDS: Mapping[str, Callable[[torch.Generator], Tensor]] = {
    "black": partial(_plain, 0.0),
    "white": partial(_plain, 1.0),
    "random": partial(_plain, None),
    "gradient": lambda generator: torch.rand(3, 3, generator=generator),
}
"""Kind of background -> a function that draws two colours and three numbers in 0..1, [3, 3].

Below 0.4, the first number turns the first colour into a light grey. Below 0.5, the second number makes the second
colour equal to the first. The third number is the direction of the gradient in turns.
"""


def _rand(n: int, generators: Sequence[torch.Generator]) -> Float[Tensor, " b"]:
    """`n` numbers in 0..1 from each generator."""
    return torch.cat([torch.rand(n, generator=generator) for generator in generators])


def _uniform(n: int, bounds: Range, generators: Sequence[torch.Generator]) -> Float[Tensor, " b"]:
    """`n` numbers within `bounds` from each generator."""
    low, high = bounds
    return low + (high - low) * _rand(n, generators)


def _signed_power(n: int, gamma: float, generators: Sequence[torch.Generator]) -> Float[Tensor, " b"]:
    """±U^γ: uniform in -1..1 at γ = 1, and more often near 0 above."""
    size = _rand(n, generators) ** gamma
    sign = torch.cat([torch.randint(0, 2, (n,), generator=generator) for generator in generators])
    return size * (2 * sign - 1)
