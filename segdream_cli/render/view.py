"""Gaussians + Cameras -> Rendering."""

from jaxtyping import Float
from torch import Tensor

from segdream_cli.render.cameras import Cameras
from segdream_cli.render.raster import Rendering, rasterize
from segdream_cli.splats.gaussians import Gaussians


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    scales: Float[Tensor, "*a n 3"] | None = None,
    resolution: tuple[int, int] | None = None,
) -> Rendering:
    """Renders Gaussians from every camera, without a background.

    Args:
        gaussians: one set, or a stack of `a` sets, which share the cameras: the first c / a see the first set.
        cameras: `c` cameras on the device of the Gaussians.
        scales: standard deviations in place of the Gaussians' own.
        resolution: width and height in pixels, to which the cameras' intrinsics belong; a square of `cameras.size`
            by default.

    Returns:
        Images [c, h, w, ...] of one set, [a, c / a, h, w, ...] of a stack.

    Raises:
        EnvironmentProblem: the tensors are on CUDA and gsplat's kernels can't be built.
    """
    views = (*gaussians.means.shape[:-2], -1)
    width, height = resolution or (cameras.size, cameras.size)
    return rasterize(
        gaussians.means,
        gaussians.quats,
        gaussians.scales if scales is None else scales,
        gaussians.opacities,
        gaussians.colors(cameras.positions.reshape(*views, 3)),
        cameras.viewmats.reshape(*views, 4, 4),
        cameras.Ks.reshape(*views, 3, 3),
        width,
        height,
    )
