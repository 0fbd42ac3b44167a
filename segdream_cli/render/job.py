"""`RenderJob`: assets side by side, rendered to images, videos and contact sheets."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from segdream_cli.render.cameras import Cameras, frame_sphere, turntable_azimuths
from segdream_cli.render.exr import EXR_SUFFIX, premultiply_linear
from segdream_cli.render.images import (
    JPEG_SUFFIXES,
    caption_strip,
    contact_sheet,
    depth_preview,
    depth_to_uint16,
    frame_path,
    frames_in,
    normals_to_rgb,
    straight_alpha,
    to_uint8,
    write_image,
)
from segdream_cli.render.raster import Rendering, normals_from_depth
from segdream_cli.render.studio import Ground, light
from segdream_cli.render.video import write_video
from segdream_cli.render.view import render
from segdream_cli.splats import Splats
from segdream_cli.splats.gaussians import Gaussians, bounds
from segdream_cli.util.devices import choose_device
from segdream_cli.util.files import sweep, write_problem
from segdream_cli.util.memory import out_of_memory

Image = NDArray[Any]
Color = Sequence[float]
CameraTrack = list[Cameras]
"""The cameras of a video or of one image: one batch per asset, all of the same length."""

SIDES = ("front", "front left", "left", "back left", "back", "back right", "right", "front right")
CHANNEL_BACKGROUND = {"alpha": (0.0, 0.0, 0.0), "depth": (0.0, 0.0, 0.0), "normals": (128 / 255,) * 3}
"""Colour behind captions, by channel; rgb has a background of its own."""
SOLID = 0.5
"""Alpha above which a pixel has a depth."""
NEAR_PLANE = 0.01
"""Least depth that the rasteriser draws."""


@dataclass(frozen=True, slots=True)
class FramedAsset:
    """An asset and the sphere that its views frame."""

    gaussians: Gaussians
    center: Float[Tensor, " 3"]
    extent: float
    """Radius of the sphere."""
    ground: Ground | None = None
    """The ground with its shadow, in studio light."""

    @classmethod
    def of(cls, splats: Splats, device: torch.device, *, shadow: bool = False) -> Self:
        """Moves an asset to `device`, finds its sphere and, if asked, casts its shadow."""
        gaussians = Gaussians.from_splats(splats).to(device)
        center, extent = bounds(gaussians)
        return cls(gaussians, center, extent, Ground.below(splats, gaussians, extent) if shadow else None)


@dataclass(frozen=True, slots=True)
class RenderJob:
    """Assets side by side, the size of their images, and the channel to show."""

    assets: list[FramedAsset]
    device: torch.device
    width: int
    """Width in pixels of one asset's image."""
    height: int
    """Height in pixels."""
    channel: str
    """rgb, alpha, depth or normals."""
    color: Color | None
    """RGB in 0..1 behind the asset, or None for transparency."""
    supersample: int = 1
    """Samples per pixel along each axis; a pixel is their mean."""
    captions: Sequence[str] = ()
    """One per asset, or none at all."""

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
        shadow: bool = False,
    ) -> Self:
        """Frames assets, from left to right; raises the errors of `choose_device`.

        Args:
            assets: at least one.
            device: name of the device; see `choose_device`.
            size: side of an image in pixels, or its width and height.
            channel: see the field.
            color: see the field.
            supersample: see the field.
            captions: see the field.
            shadow: show studio light and a shadow on the ground.
        """
        chosen = choose_device(device)
        width, height = (size, size) if isinstance(size, int) else size
        framed = [FramedAsset.of(splats, chosen, shadow=shadow) for splats in assets]
        return cls(framed, chosen, width, height, channel, color, supersample, captions)

    def turntable(self, n: int, elevation: float) -> CameraTrack:
        """`n` views around each asset, starting at its front; view n + 1 would be the first again."""
        return self._frame_assets(turntable_azimuths(n), elevation)

    def single_view(self, azimuth: float, elevation: float) -> CameraTrack:
        """One view of each asset, from angles in degrees."""
        return self._frame_assets(torch.tensor([float(azimuth)]), elevation)

    def _frame_assets(self, azimuth_deg: Float[Tensor, " c"], elevation: float) -> CameraTrack:
        """A view of each asset from every azimuth, far enough away to see all of it."""
        elevations = torch.full_like(azimuth_deg, elevation)
        side = min(self.width, self.height)
        return [
            self._center_axis(frame_sphere(azimuth_deg, elevations, side, center=asset.center, extent=asset.extent))
            for asset in self.assets
        ]

    def fixed_cameras(self, viewmats: Float[Tensor, "c 4 4"], fov_rad: Float[Tensor, " c"]) -> CameraTrack:
        """The same cameras for every asset; `fov_rad` is the vertical field of view."""
        Ks = torch.eye(3).repeat(len(viewmats), 1, 1)
        Ks[:, 0, 0] = Ks[:, 1, 1] = self.height / 2 / torch.tan(fov_rad / 2)
        unknown = torch.zeros(len(viewmats))
        return [self._center_axis(Cameras(viewmats, Ks, unknown, unknown, self.height))] * len(self.assets)

    def depth_range(self, track: CameraTrack) -> tuple[float, float]:
        """Depths stored as 1 and 65535 in 16 bits, the same for every image and asset of a track."""
        middles = [
            cameras.viewmats[:, 2, :3] @ asset.center + cameras.viewmats[:, 2, 3]
            for asset, cameras in zip(self.assets, track, strict=True)
        ]
        near = min(float(z.min()) - asset.extent for z, asset in zip(middles, self.assets, strict=True))
        far = max(float(z.max()) + asset.extent for z, asset in zip(middles, self.assets, strict=True))
        near = max(near, NEAR_PLANE)
        return near, max(far, near + NEAR_PLANE)

    def write_video(self, path: Path, track: CameraTrack, fps: float) -> None:
        """Writes a track as a video; raises the errors of `write_video`."""
        write_video(path, (to_uint8(image) for image in self.images(track, precise=False)), fps)

    def write_frames(self, folder: Path, track: CameraTrack, suffix: str = ".png") -> None:
        """Writes a track as numbered images as `write_image` does; removes the frames of an earlier track.

        Raises:
            EnvironmentProblem: the library of EXR files is missing.
            SegdreamError: the folder or a file can't be written.
        """
        if suffix == EXR_SUFFIX:
            moments = ([cameras.view(i) for cameras in track] for i in range(len(track[0])))
            images: Iterable[Image] = map(self.linear_image, moments)
        else:
            images = self.images(track, precise=suffix not in JPEG_SUFFIXES)
        notes = self._depth_notes(track)
        try:
            folder.mkdir(exist_ok=True)
            sweep(folder)
            earlier = frames_in(folder)  # a frame that appears from now on is not removed
            for number, image in enumerate(images):
                write_image(frame_path(folder, number, suffix), image, notes)
            for path in {*earlier} - {frame_path(folder, number, suffix) for number in range(len(track[0]))}:
                path.unlink()
        except OSError as problem:
            raise write_problem(problem, folder) from problem

    def write_image(self, path: Path, track: CameraTrack) -> None:
        """Writes a track of one view as PNG or JPEG, depth in 16 bits, or as EXR of `linear_image`."""
        if path.suffix.lower() == EXR_SUFFIX:
            return write_image(path, self.linear_image(track))
        (image,) = self.images(track, precise=path.suffix.lower() not in JPEG_SUFFIXES)
        write_image(path, image, self._depth_notes(track))

    def linear_image(self, track: CameraTrack) -> Image:
        """A view for compositing: colours of linear light, premultiplied if transparent; the values of other channels.

        Depth [h, w] is the distance along the camera's axis, and 0 where alpha is at most 1/2. Normals [h, w, 3] are
        unit vectors in the world, or 0. Only colours and alpha have captions.
        """
        if self.channel in ("rgb", "alpha"):
            (image,) = self.images(track, precise=True)
            floats = image / np.float32(255) if image.dtype == np.uint8 else image
            return premultiply_linear(floats) if self.channel == "rgb" else floats
        parts = []
        for asset, cameras in zip(self.assets, track, strict=True):
            seen = self._render(asset, cameras.view(0))
            normals, depth = seen.rgb[0].cpu().numpy(), seen.expected_depth()[0, ..., 0].cpu().numpy()
            solid = seen.alpha[0, ..., 0].cpu().numpy() > SOLID
            parts.append(normals if self.channel == "normals" else np.where(solid, depth, 0))
        return np.concatenate(parts, axis=1)

    def write_contact_sheet(self, path: Path, elevation: float) -> None:
        """Writes eight sides of one asset as one image; several assets have a row each."""
        track = self.turntable(len(SIDES), elevation)
        planes = self.depth_range(track)
        images = [
            self._image(asset, cameras.view(i), planes, precise=False)
            for asset, cameras in zip(self.assets, track, strict=True)
            for i in range(len(SIDES))
        ]
        captions = self.captions or [""] * len(self.assets)
        labels = [f"{caption}, {side}" if caption else side for caption in captions for side in SIDES]
        write_image(path, contact_sheet(images, columns=4 if len(track) == 1 else len(SIDES), labels=labels))

    def _depth_notes(self, track: CameraTrack) -> dict[str, str]:
        """PNG text with the formula from 16-bit values to depths; empty for other channels."""
        if self.channel != "depth":
            return {}
        near, far = self.depth_range(track)
        rule = "depth = near + (value - 1) / 65534 * (far - near) along the camera's axis; 0 is nothing"
        return {"near": repr(near), "far": repr(far), "Description": rule}

    def picture_size(self, *, precise: bool) -> tuple[int, int]:
        """Width and height in pixels of the images of `images`."""
        strips = self._strips(precise=precise)
        return len(self.assets) * self.width, self.height + sum(len(strip) for strip in strips)

    def _strips(self, *, precise: bool) -> list[Image]:
        """The strip of captions above the images, or none."""
        if not any(self.captions) or (precise and self.channel == "depth"):
            return []
        return [caption_strip(self.captions, self.width, CHANNEL_BACKGROUND.get(self.channel, self.color))]

    def images(self, track: CameraTrack, *, precise: bool) -> Iterator[Image]:
        """The images [h, w, channels] of a track, one at a time, with all assets and their captions.

        Args:
            track: the cameras.
            precise: depth as 16-bit values for measuring instead of grey for viewing.
        """
        planes, strips = self.depth_range(track), self._strips(precise=precise)
        for i in range(len(track[0])):
            parts = [
                self._image(asset, cameras.view(i), planes, precise=precise)
                for asset, cameras in zip(self.assets, track, strict=True)
            ]
            image = np.concatenate(parts, axis=1)
            yield np.concatenate([*strips, to_uint8(image)]) if strips else image

    def _image(self, asset: FramedAsset, camera: Cameras, planes: tuple[float, float], *, precise: bool) -> Image:
        """One asset from one camera, as an array that `write_png` takes."""
        seen = self._render(asset, camera)
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
        image: Image = rgb + (1 - alpha[..., None]) * np.array(self.color, np.float32)
        return image

    @torch.no_grad()
    def _render(self, asset: FramedAsset, view: Cameras) -> Rendering:
        """One camera's rendering, averaged over its samples; the channel `normals` puts normals in place of colours.

        In studio light, the shadow on the ground is part of it, as black.

        Raises:
            OutOfMemory: the device does not have enough memory for the image.
        """
        s, width, height = self.supersample, self.width * self.supersample, self.height * self.supersample
        camera = replace(view, Ks=view.Ks * torch.tensor([[s], [s], [1.0]])).to(self.device)
        cheaper = f"--size {min(self.width, self.height) // 2}" if s == 1 else "--supersample 1"
        with out_of_memory(self.device, f"an image of {width}x{height} pixels", cheaper):
            seen = render(asset.gaussians, camera, resolution=(width, height))
            if asset.ground is not None:
                seen = light(seen, camera)
            if self.channel == "normals":
                seen = replace(seen, rgb=normals_from_depth(seen.expected_depth(), camera.viewmats, camera.Ks))
            if s > 1:
                seen = replace(seen, **{name: _average(getattr(seen, name), s) for name in ("rgb", "alpha", "depth")})
                if self.channel == "normals":
                    seen = replace(seen, rgb=F.normalize(seen.rgb, dim=-1))
            if asset.ground is not None:
                dark = asset.ground.darkness(view, self.width, self.height)[None, ..., None]
                seen = replace(seen, alpha=seen.alpha + (1 - seen.alpha) * dark)
        return seen

    def _center_axis(self, cameras: Cameras) -> Cameras:
        """The same cameras with their axis through the middle of the image."""
        Ks = cameras.Ks.clone()
        Ks[:, 0, 2], Ks[:, 1, 2] = self.width / 2, self.height / 2
        return replace(cameras, Ks=Ks)


def _average(values: Float[Tensor, "1 h w k"], s: int) -> Float[Tensor, "1 H W k"]:
    """Means over squares of `s` by `s` samples."""
    return F.avg_pool2d(values.movedim(-1, 1), s).movedim(1, -1)
