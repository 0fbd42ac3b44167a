"""Dense float64 rendering of Gaussians with autograd: slow, plain, and sharing no code with the package."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Reference(NamedTuple):
    rgb: Tensor  # c h w 3
    alpha: Tensor  # c h w 1
    depth: Tensor  # c h w 1
    means2d: Tensor  # c n 2


def covariances(quats: Tensor, scales: Tensor) -> Tensor:
    """World-space covariances, the rotation by Rodrigues' formula."""
    unit = quats / quats.norm(dim=-1, keepdim=True)
    w, v = unit[:, :1, None], unit[:, 1:]
    zero = torch.zeros_like(v[:, 0])
    cross = torch.stack(
        [
            torch.stack([zero, -v[:, 2], v[:, 1]], -1),
            torch.stack([v[:, 2], zero, -v[:, 0]], -1),
            torch.stack([-v[:, 1], v[:, 0], zero], -1),
        ],
        -2,
    )
    rotation = torch.eye(3, dtype=quats.dtype) + 2 * w * cross + 2 * cross @ cross
    return rotation @ torch.diag_embed(scales**2) @ rotation.transpose(-1, -2)


def in_camera(means: Tensor, viewmat: Tensor) -> tuple[Tensor, Tensor]:
    """Centres by the camera's axes, harmless ones where they are out of range, and which are in range."""
    camera = means @ viewmat[:3, :3].T + viewmat[:3, 3]
    in_range = (camera[:, 2] >= 0.01) & (camera[:, 2] <= 1e10)
    return torch.where(in_range[:, None], camera, torch.tensor([0.0, 0.0, 1.0], dtype=camera.dtype)), in_range


def screen_covariances(camera: Tensor, covars: Tensor, rotation: Tensor, K: Tensor, width: int, height: int) -> Tensor:
    x, y, z = camera.unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = 0.3 * 0.5 * width / fx, 0.3 * 0.5 * height / fy
    tx = z * torch.clamp(x / z, -cx / fx - margin_x, (width - cx) / fx + margin_x)
    ty = z * torch.clamp(y / z, -cy / fy - margin_y, (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [torch.stack([fx / z, zero, -fx * tx / z**2], -1), torch.stack([zero, fy / z, -fy * ty / z**2], -1)], -2
    )
    to_screen = jacobian @ rotation
    return to_screen @ covars @ to_screen.transpose(-1, -2) + 0.3 * torch.eye(2, dtype=z.dtype)


def composite(
    means2d: Tensor, covars2d: Tensor, opacities: Tensor, features: Tensor, z: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    """Sums of weight times feature (p k), and of weight (p 1), over all pixels."""
    order = torch.argsort(z.detach(), stable=True)
    grid_y, grid_x = torch.meshgrid(
        torch.arange(height, dtype=z.dtype) + 0.5, torch.arange(width, dtype=z.dtype) + 0.5, indexing="ij"
    )
    pixels = torch.stack([grid_x, grid_y], -1).reshape(-1, 2)
    offsets = pixels[None] - means2d[order][:, None]  # n p 2
    sigma = 0.5 * torch.einsum("npi,nij,npj->np", offsets, torch.linalg.inv(covars2d)[order], offsets)
    alpha = (opacities[order][:, None] * torch.exp(-sigma)).clamp(max=0.999)
    alpha = torch.where(alpha >= 1 / 255, alpha, 0)
    after = torch.cumprod(1 - alpha, 0)
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    weights = torch.where(after > 1e-4, alpha * before, 0)  # n p
    return weights.T @ features[order], weights.sum(0)[:, None]


def render(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
) -> Reference:
    """All views; arguments as `segdream_cli.render.raster.rasterize`, in float64."""
    covars = covariances(quats, scales)
    cameras = [in_camera(means, viewmat) for viewmat in viewmats]
    means2d = torch.stack(
        [
            camera[:, :2] / camera[:, 2:] * K.diagonal()[:2] + K[:2, 2]
            for (camera, _), K in zip(cameras, Ks, strict=True)
        ]
    )
    images = []
    for v, (camera, in_range) in enumerate(cameras):
        covars2d = screen_covariances(camera, covars, viewmats[v, :3, :3], Ks[v], width, height)
        features = torch.cat([colors.expand(len(viewmats), -1, -1)[v], camera[:, 2:]], -1)
        seen = opacities * in_range
        sums, alpha = composite(means2d[v], covars2d, seen, features, camera[:, 2], width, height)
        images.append(torch.cat([sums, alpha], -1).reshape(height, width, 5))
    image = torch.stack(images)
    return Reference(image[..., :3], image[..., 4:], image[..., 3:4], means2d)


NAMES = ("means", "quats", "scales", "opacities", "colors")


class Scene(NamedTuple):
    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    viewmats: Tensor
    Ks: Tensor
    width: int
    height: int

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return self[: len(NAMES)]


def orbit(views: int, distance: float) -> Tensor:
    """World-to-camera matrices of cameras around the y axis that look at the origin, y up."""
    angles = torch.arange(views) * (2 * torch.pi / max(views, 1)) + 0.3
    backward = torch.stack([angles.sin(), torch.full_like(angles, 0.4), angles.cos()], -1)
    backward = backward / backward.norm(dim=-1, keepdim=True)
    right = torch.linalg.cross(-backward, torch.tensor([0.0, 1.0, 0.0]).expand_as(backward))
    right = right / right.norm(dim=-1, keepdim=True)
    rotation = torch.stack([right, torch.linalg.cross(-backward, right), -backward], 1)
    viewmats = torch.eye(4).repeat(views, 1, 1)
    viewmats[:, :3, :3] = rotation
    viewmats[:, :3, 3] = -(rotation @ (backward * distance)[..., None])[..., 0]
    return viewmats


def scene(
    count: int,
    views: int,
    size: int,
    *,
    opacity: float = 0.5,
    distance: float = 2.5,
    scale: float = 0.08,
    per_view_colors: bool = False,
    seed: int = 0,
) -> Scene:
    """Random flat and long Gaussians in a unit ball, opacities around `opacity`, colours from -0.3 to 1.5."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    directions = normal(count, 3)
    radii = 0.8 * torch.rand(count, 1, generator=generator) ** (1 / 3)
    means = directions / directions.norm(dim=-1, keepdim=True) * radii
    opacities = torch.sigmoid(torch.logit(torch.tensor(opacity)) + normal(count))
    colors = torch.rand((views, count, 3) if per_view_colors else (count, 3), generator=generator) * 1.8 - 0.3
    width, height = size, size - 3
    K = torch.tensor([[1.3 * size, 0.0, width / 2 + 0.7], [0.0, 1.2 * size, height / 2], [0.0, 0.0, 1.0]])
    scales = scale * torch.exp(0.6 * normal(count, 3))
    return Scene(
        means, normal(count, 4), scales, opacities, colors, orbit(views, distance), K.repeat(views, 1, 1), width, height
    )


def loss_weights(of: Scene) -> dict[str, Tensor]:
    """Random weights of the pixels, so that a loss reaches every output."""
    generator = torch.Generator().manual_seed(99)
    shape = len(of.viewmats), of.height, of.width
    channels = {"rgb": 3, "alpha": 1, "depth": 1}
    return {name: torch.randn(*shape, count, generator=generator) for name, count in channels.items()}


def stacked(scenes: Sequence[Scene], longest: int) -> list[Tensor]:
    """The parameters of scenes with as many views, filled up to one length with Gaussians of opacity 0."""
    whole = []
    for value, parts in zip(
        (0.3, 0.5, 0.2, 0.0, 0.7), zip(*(one.parameters for one in scenes), strict=True), strict=True
    ):
        at = -1 if parts[0].ndim == 1 else -2  # colours may have views in front
        rows = []
        for part in parts:
            shape = list(part.shape)
            shape[at] = longest - shape[at]
            rows.append(torch.cat([part, part.new_full(shape, value)], at))
        whole.append(torch.stack(rows))
    return whole


def split(gradient: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Splits values into those of a set's `n` Gaussians and those of its padding."""
    at = -1 if gradient.ndim == 1 else -2
    return gradient.narrow(at, 0, n), gradient.narrow(at, n, gradient.shape[at] - n)
