"""Gaussians to images: `rasterize`, with two backends that follow the same rules, and depth and normals of an image.

Both backends composite as gsplat 1.5.3 does in its classic mode: 0.3 square pixels added to the projected covariance,
alpha below 1/255 skipped and capped at 0.999, a pixel closed before its transmittance falls to 1e-4.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rendering:
    """Images of `c` views of `n` Gaussians, or of each of `a` sets of them, from `rasterize`."""

    rgb: Float[Tensor, "*a c h w 3"]
    """Colour premultiplied by alpha, without a background."""
    alpha: Float[Tensor, "*a c h w 1"]
    """Opacity of a pixel, 0 to 1."""
    depth: Float[Tensor, "*a c h w 1"]
    """Accumulated depth: the sum of each Gaussian's camera-space z times its weight."""
    means2d: Float[Tensor, "*a c n 2"]
    """Projected centres in pixels, undefined where `radii` is 0; the tensor keeps its gradient for density control."""
    radii: Int[Tensor, "*a c n"]
    """Half side of the box a Gaussian reaches on the screen, in pixels; 0 where it is culled or off the screen."""

    def over(self, background: Float[Tensor, "..."]) -> Float[Tensor, "*a c h w 3"]:
        """The image composited over `background`: a colour, or images broadcastable to `*a c h w 3`."""
        return self.rgb + (1 - self.alpha) * background

    def expected_depth(self) -> Float[Tensor, "*a c h w 1"]:
        """Mean camera-space z of each pixel: depth over alpha, 0 where alpha is 0."""
        seen = self.alpha > 0
        return torch.where(seen, self.depth / torch.where(seen, self.alpha, 1), 0)


def load_backend(device: torch.device) -> None:
    """Imports the backend of a device and loads its kernels, which `rasterize` would do at its first call.

    Raises:
        EnvironmentProblem: gsplat's kernels can't be built.
        ImportError: a package is missing.
    """
    if device.type == "cuda":
        from segdream_cli.render.raster import cuda

        cuda.load_kernels()
    else:
        from segdream_cli.render.raster import cpu  # noqa: F401


def rasterize(
    means: Float[Tensor, "*a n 3"],
    quats: Float[Tensor, "*a n 4"],
    scales: Float[Tensor, "*a n 3"],
    opacities: Float[Tensor, "*a n"],
    colors: Float[Tensor, "*views n 3"],
    viewmats: Float[Tensor, "*a c 4 4"],
    Ks: Float[Tensor, "*a c 3 3"],
    width: int,
    height: int,
) -> Rendering:
    """Renders all views of the Gaussians in one call, on the device of `means`.

    A leading dimension of all tensors holds `a` sets of Gaussians, each with views of its own. A Gaussian of opacity
    0 is not drawn and gets no gradient, so it can pad a set.

    Gradients flow from `rgb`, `alpha` and `depth` to the five parameters of the Gaussians, not to the cameras.

    Args:
        means: centres, world frame.
        quats: rotations (w, x, y, z) of any norm; a zero quaternion is no rotation.
        scales: standard deviations along the Gaussian's axes, after activation.
        opacities: 0 to 1, after activation.
        colors: one colour per Gaussian, or one per view and Gaussian; any range, nothing is clamped.
        viewmats: world to camera, OpenCV axes (x right, y down, z forward).
        Ks: pinhole intrinsics in pixels; pixel centres are at half integers, skew is ignored.
        width: image width in pixels.
        height: image height in pixels.

    Raises:
        EnvironmentProblem: the tensors are on CUDA and gsplat's kernels can't be built.
    """
    gaussians = means, quats, scales, opacities, colors
    if means.is_cuda:
        from segdream_cli.render.raster import cuda

        outputs = cuda.rasterize(*gaussians, viewmats, Ks, width, height)
    else:
        from segdream_cli.render.raster import cpu

        outputs = cpu.rasterize(*gaussians, viewmats, Ks, width, height)
    rendering = Rendering(*outputs)
    if rendering.means2d.requires_grad:
        rendering.means2d.retain_grad()
    return rendering


def normals_from_depth(
    expected_depth: Float[Tensor, "c h w 1"],
    viewmats: Float[Tensor, "c 4 4"],
    Ks: Float[Tensor, "c 3 3"],
) -> Float[Tensor, "c h w 3"]:
    """World-space unit normals of the surface in a depth image, facing the camera.

    They come from central differences of the unprojected points. They are zero at the rim of the image, and wherever
    the pixel or one of its four neighbours has no depth.
    """
    height, width = expected_depth.shape[1:3]
    columns = torch.arange(width, device=Ks.device) + 0.5
    rows = torch.arange(height, device=Ks.device) + 0.5
    x = (columns - Ks[:, 0, 2, None]) / Ks[:, 0, 0, None]  # c w
    y = (rows - Ks[:, 1, 2, None]) / Ks[:, 1, 1, None]  # c h
    x, y = x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)
    rays = torch.stack([x, y, torch.ones_like(x)], dim=-1)  # c h w 3, z = 1
    points = rays * expected_depth
    right = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    normals = F.normalize(torch.linalg.cross(down, right), dim=-1)
    away = (normals * rays[:, 1:-1, 1:-1]).sum(-1, keepdim=True) > 0
    normals = torch.where(away, -normals, normals)
    seen = expected_depth > 0
    around = seen[:, 1:-1, 2:] & seen[:, 1:-1, :-2] & seen[:, 2:, 1:-1] & seen[:, :-2, 1:-1]
    normals = torch.where(around & seen[:, 1:-1, 1:-1], normals, 0)
    return F.pad(normals @ viewmats[:, None, :3, :3], (0, 0, 1, 1, 1, 1))
