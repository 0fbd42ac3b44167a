"""Assets in front of a camera, and what `segdream render` makes of the pictures."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from segdream_cli.render.cameras import Cameras, turntable_azimuths, viewing
from segdream_cli.render.images import (
    caption_strip,
    contact_sheet,
    depth_preview,
    depth_to_uint16,
    normals_to_rgb,
    straight_alpha,
    to_uint8,
    write_png,
)
from segdream_cli.render.raster import Rendering, normals_from_depth, rasterize
from segdream_cli.render.video import write_video
from segdream_cli.splats import Splats
from segdream_cli.splats.gaussians import Gaussians, bounds
from segdream_cli.util.devices import choose_device
from segdream_cli.util.memory import out_of_memory

Picture = NDArray[Any]
Color = Sequence[float]
Move = list[Cameras]
"""The cameras of a film or of one picture, a batch an asset."""

SIDES = ("front", "front left", "left", "back left", "back", "back right", "right", "front right")
BEHIND = {"alpha": (0.0, 0.0, 0.0), "depth": (0.0, 0.0, 0.0), "normals": (128 / 255,) * 3}
NEAREST = 0.01
"""The rasteriser's near plane."""


@dataclass(frozen=True, slots=True)
class Subject:
    """An asset and the sphere that holds it."""

    gaussians: Gaussians
    center: Float[Tensor, " 3"]
    extent: float

    @classmethod
    def of(cls, splats: Splats, device: torch.device) -> Self:
        """An asset on its device."""
        gaussians = Gaussians.from_splats(splats).to(device)
        return cls(gaussians, *bounds(gaussians))


@dataclass(frozen=True, slots=True)
class Shot:
    """Assets side by side, how they are framed, and what is shown of them."""

    subjects: list[Subject]
    device: torch.device
    width: int
    """Of one asset's picture in pixels, as the height."""
    height: int
    channel: str
    """What is shown: rgb, alpha, depth or normals."""
    color: Color | None
    """What is behind it, or None for transparency."""
    supersample: int = 1
    """Side of the square of samples whose mean is a pixel."""
    captions: Sequence[str] = ()
    """One an asset, or none at all."""

    @classmethod
    def of(
        cls,
        assets: Sequence[Splats],
        device: str,
        size: int | tuple[int, int],
        channel: str,
        color: Color | None,
        *,
        supersample: int = 1,
        captions: Sequence[str] = (),
    ) -> Self:
        """A shot of assets, from left to right.

        Args:
            assets: what is shown.
            device: value of `--device`.
            size: side of a picture in pixels, or its width and height.
            channel: as the field.
            color: as the field.
            supersample: as the field.
            captions: as the field.
        """
        chosen = choose_device(device)
        width, height = (size, size) if isinstance(size, int) else size
        subjects = [Subject.of(splats, chosen) for splats in assets]
        return cls(subjects, chosen, width, height, channel, color, supersample, captions)

    def turn(self, n: int, elevation: float) -> Move:
        """`n` views all around each asset, from its front on, so that the next would be the first again."""
        return self._orbit(turntable_azimuths(n), elevation)

    def view(self, azimuth: float, elevation: float) -> Move:
        """One view of each asset, from angles in degrees."""
        return self._orbit(torch.tensor([azimuth]), elevation)

    def _orbit(self, azimuth_deg: Float[Tensor, " c"], elevation: float) -> Move:
        """A view of each asset from every azimuth, far enough away to see it whole."""
        elevations = torch.full_like(azimuth_deg, elevation)
        side = min(self.width, self.height)
        return [
            self._centered(viewing(azimuth_deg, elevations, side, center=subject.center, extent=subject.extent))
            for subject in self.subjects
        ]

    def follow(self, viewmats: Float[Tensor, "c 4 4"], fov_rad: Float[Tensor, " c"]) -> Move:
        """The same cameras for every asset; `fov_rad` is the angle from the lower to the upper rim."""
        Ks = torch.eye(3).repeat(len(viewmats), 1, 1)
        Ks[:, 0, 0] = Ks[:, 1, 1] = self.height / 2 / torch.tan(fov_rad / 2)
        unknown = torch.zeros(len(viewmats))
        return [self._centered(Cameras(viewmats, Ks, unknown, unknown, self.height))] * len(self.subjects)

    def depth_range(self, move: Move) -> tuple[float, float]:
        """Depths that 1 and 65535 stand for in 16 bits, the same for every picture of a move and every asset."""
        middles = [
            cameras.viewmats[:, 2, :3] @ subject.center + cameras.viewmats[:, 2, 3]
            for subject, cameras in zip(self.subjects, move, strict=True)
        ]
        near = min(float(z.min()) - subject.extent for z, subject in zip(middles, self.subjects, strict=True))
        far = max(float(z.max()) + subject.extent for z, subject in zip(middles, self.subjects, strict=True))
        near = max(near, NEAREST)
        return near, max(far, near + NEAREST)

    def film(self, path: Path, move: Move, fps: float) -> None:
        """Writes a move as a film."""
        write_video(path, (to_uint8(picture) for picture in self.pictures(move, precise=False)), fps)

    def frames(self, folder: Path, move: Move) -> None:
        """Writes a move as numbered pictures, depth in 16 bits; of an earlier, longer move none is left."""
        folder.mkdir(exist_ok=True)
        for number, picture in enumerate(self.pictures(move, precise=True)):
            write_png(folder / f"frame-{number:04d}.png", picture, self._about(move))
        kept = {f"frame-{number:04d}.png" for number in range(len(move[0]))}
        for path in folder.glob("frame-*.png"):
            if re.fullmatch(r"frame-([0-9]{4}|[1-9][0-9]{4,})\.png", path.name) and path.name not in kept:
                path.unlink()

    def still(self, path: Path, move: Move) -> None:
        """Writes a move of one view as a picture, depth in 16 bits."""
        (picture,) = self.pictures(move, precise=True)
        write_png(path, picture, self._about(move))

    def sheet(self, path: Path, elevation: float) -> None:
        """Writes eight sides of one asset as one picture, or those of several with a row for each."""
        move = self.turn(len(SIDES), elevation)
        planes = self.depth_range(move)
        pictures = [
            self._picture(subject, cameras, i, planes, precise=False)
            for subject, cameras in zip(self.subjects, move, strict=True)
            for i in range(len(SIDES))
        ]
        captions = self.captions or [""] * len(self.subjects)
        labels = [f"{caption}, {side}" if caption else side for caption in captions for side in SIDES]
        write_png(path, contact_sheet(pictures, columns=4 if len(move) == 1 else len(SIDES), labels=labels))

    def _about(self, move: Move) -> dict[str, str]:
        """What a reader of 16-bit depth needs to know."""
        if self.channel != "depth":
            return {}
        near, far = self.depth_range(move)
        rule = "depth = near + (value - 1) / 65534 * (far - near) along the camera's axis; 0 is nothing"
        return {"near": repr(near), "far": repr(far), "Description": rule}

    def pictures(self, move: Move, *, precise: bool) -> Iterator[Picture]:
        """The pictures of a move, one at a time, with all assets and their captions."""
        planes = self.depth_range(move)
        strips = []
        if any(self.captions) and not (precise and self.channel == "depth"):
            strips = [caption_strip(self.captions, self.width, BEHIND.get(self.channel, self.color))]
        for i in range(len(move[0])):
            parts = [
                self._picture(subject, cameras, i, planes, precise=precise)
                for subject, cameras in zip(self.subjects, move, strict=True)
            ]
            picture = np.concatenate(parts, axis=1)
            yield np.concatenate([*strips, to_uint8(picture)]) if strips else picture

    def _picture(
        self, subject: Subject, cameras: Cameras, i: int, planes: tuple[float, float], *, precise: bool
    ) -> Picture:
        """What camera `i` sees, as an array that `write_png` takes; depth in 16 bits if `precise`, else to look at."""
        seen = self._seen(subject.gaussians, cameras, i)
        rgb, alpha = seen.rgb[0].cpu().numpy(), seen.alpha[0, ..., 0].cpu().numpy()
        if self.channel == "alpha":
            return np.repeat(alpha[..., None], 3, axis=2)
        if self.channel == "depth":
            depth = seen.expected_depth()[0, ..., 0].cpu().numpy()
            return (depth_to_uint16 if precise else depth_preview)(depth, alpha, *planes)
        if self.channel == "normals":
            return normals_to_rgb(rgb)
        if self.color is None:
            return straight_alpha(rgb, alpha)
        picture: Picture = rgb + (1 - alpha[..., None]) * np.array(self.color, np.float32)
        return picture

    @torch.no_grad()
    def _seen(self, gaussians: Gaussians, cameras: Cameras, i: int) -> Rendering:
        """What camera `i` sees, the means of its samples; normals take the place of colours where they are asked for.

        Raises:
            OutOfMemory: the device's memory does not hold the picture.
        """
        s, width, height = self.supersample, self.width * self.supersample, self.height * self.supersample
        viewmats = cameras.viewmats[i : i + 1].to(self.device)
        Ks = (cameras.Ks[i : i + 1] * torch.tensor([[s], [s], [1.0]])).to(self.device)
        cheaper = f"--size {min(self.width, self.height) // 2}" if s == 1 else "--supersample 1"
        with out_of_memory(self.device, f"a picture of {width}x{height} pixels", cheaper):
            colors = gaussians.colors(cameras.positions[i : i + 1].to(self.device))
            shape = gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities
            seen = rasterize(*shape, colors, viewmats, Ks, width, height)
            if self.channel == "normals":
                seen = replace(seen, rgb=normals_from_depth(seen.expected_depth(), viewmats, Ks))
            if s > 1:
                seen = replace(seen, **{name: _averaged(getattr(seen, name), s) for name in ("rgb", "alpha", "depth")})
                if self.channel == "normals":
                    seen = replace(seen, rgb=F.normalize(seen.rgb, dim=-1))
        return seen

    def _centered(self, cameras: Cameras) -> Cameras:
        """The same cameras with the middle of the picture on their axis."""
        Ks = cameras.Ks.clone()
        Ks[:, 0, 2], Ks[:, 1, 2] = self.width / 2, self.height / 2
        return replace(cameras, Ks=Ks)


def _averaged(values: Float[Tensor, "1 h w k"], s: int) -> Float[Tensor, "1 H W k"]:
    """Means over squares of `s` by `s` samples."""
    return F.avg_pool2d(values.movedim(-1, 1), s).movedim(1, -1)
