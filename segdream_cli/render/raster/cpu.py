"""The rasteriser for machines without CUDA: two differentiable steps around the numba kernels.

Projection and compositing meet in `means2d`, whose gradient density control reads. The kernels release the
interpreter's lock, and this module runs them on threads of its own. That halves the compile time compared with numba's
threads, needs no OpenMP, and allows concurrent callers. The work is cut into pieces that do not depend on the number of
threads, so the results have the same bits for any number.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from segdream_cli.render.raster import kernels

SHARES = 8  # pieces of a call's work; the most threads and gradient buffers

Result = TypeVar("Result")


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="segdream-raster")


def _in_threads(work: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]) -> list[Result]:
    """Results of `work` for each tuple of arguments, in order, on as many threads as torch uses but at most SHARES."""
    threads = min(SHARES, torch.get_num_threads())
    if threads == 1:
        return [work(*piece) for piece in arguments]
    return list(_pool(threads).map(lambda piece: work(*piece), arguments))


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().to(torch.float32).contiguous().numpy()
    return array


def _ranges(count: int) -> list[tuple[int, int]]:
    """SHARES ranges (start, stop) that cover 0..count."""
    bounds = [count * share // SHARES for share in range(SHARES + 1)]
    return list(pairwise(bounds))


class _Projection(torch.autograd.Function):
    """Projects Gaussians to `means2d` (c n 2), splats (c n 10) and radii (c n).

    The splats repeat the centres; the gradient of the centres flows through `means2d` alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        colors: Tensor,
        cameras: tuple[NDArray[np.float32], NDArray[np.float32], int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = len(cameras[0]), len(means)
        arrays = _array(means), _array(quats), _array(scales)
        per_view = _array(colors) if colors.ndim == 3 else _array(colors)[None]
        inputs = *arrays, _array(opacities), per_view, *cameras
        means2d, splats = np.zeros((*shape, 2), np.float32), np.zeros((*shape, kernels.COLUMNS), np.float32)
        radii = np.zeros(shape, np.int32)
        _in_threads(kernels.project, ((*inputs, *piece, means2d, splats, radii) for piece in _ranges(len(means))))
        ctx.arrays, ctx.cameras, ctx.radii, ctx.colors = arrays, cameras, radii, (per_view.shape, colors.shape)
        outputs = torch.from_numpy(means2d), torch.from_numpy(splats), torch.from_numpy(radii)
        ctx.mark_non_differentiable(outputs[2])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_means2d: Tensor, v_splats: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        inputs = *ctx.arrays, *ctx.cameras
        given = ctx.radii, _array(v_means2d), _array(v_splats)
        count, (per_view, shape) = ctx.radii.shape[1], ctx.colors
        shapes = (count, 3), (count, 4), (count, 3), (count,), per_view
        gradients = [np.zeros(size, np.float32) for size in shapes]
        pieces = ((*inputs, *piece, *given, *gradients) for piece in _ranges(count))
        _in_threads(kernels.project_backward, pieces)
        v_means, v_quats, v_scales, v_opacities, v_colors = (torch.from_numpy(gradient) for gradient in gradients)
        return v_means, v_quats, v_scales, v_opacities, v_colors.reshape(shape), None


class _Compositing(torch.autograd.Function):
    """Composites the splats (c n 10) with a radius (c n) to images (c h w 3, 1, 1)."""

    @staticmethod
    def forward(
        ctx: Any, means2d: Tensor, splats: Tensor, radii: Tensor, width: int, height: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        records = _array(splats)
        views, bands = len(records), -(-SHARES // len(records))
        rows = _in_threads(_bin, ((*view, width, height) for view in zip(records, radii.numpy(), strict=True)))
        images = [np.empty((views, height, width, channels), np.float32) for channels in (3, 1, 1)]
        pieces = [
            (records[v], *rows[v], band, bands, *(image[v] for image in images))
            for v in range(views)
            for band in range(bands)
        ]
        _in_threads(kernels.composite, pieces)
        ctx.pieces, ctx.shape = pieces, (bands, *records.shape)
        rgb, alpha, depth = (torch.from_numpy(image) for image in images)
        return rgb, alpha, depth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_rgb: Tensor, v_alpha: Tensor, v_depth: Tensor) -> tuple[Tensor | None, ...]:
        given = _array(v_rgb), _array(v_alpha), _array(v_depth)
        bands, views, _, _ = ctx.shape
        # One buffer for each piece of a view, summed in a fixed order: no atomics, and the same bits every time.
        buffers = np.zeros(ctx.shape, np.float32)
        targets = ((*(array[v] for array in given), buffers[band, v]) for v in range(views) for band in range(bands))
        pieces = (piece + target for piece, target in zip(ctx.pieces, targets, strict=True))
        _in_threads(kernels.composite_backward, pieces)
        v_splats = buffers.sum(0)
        v_means2d = np.ascontiguousarray(v_splats[..., : kernels.SHARPNESS_X])
        return torch.from_numpy(v_means2d), torch.from_numpy(v_splats), None, None, None


def _bin(splats: NDArray[np.float32], radii: NDArray[np.int32], width: int, height: int) -> Any:
    """The spans of a view's rows, front to back: by depth and, at equal depths, by index, as in gsplat."""
    visible = np.flatnonzero(radii)
    bits = (
        splats[visible, kernels.DEPTH].view(np.int32).astype(np.int64)
    )  # bits of positive floats sort as the floats do
    keys = bits << 32 | visible
    keys.sort()
    return kernels.bin_spans(splats, keys & 0xFFFFFFFF, width, height)


def weights(
    means: Float[Tensor, "n 3"],
    quats: Float[Tensor, "n 4"],
    scales: Float[Tensor, "n 3"],
    opacities: Float[Tensor, " n"],
    viewmats: Float[Tensor, "c 4 4"],
    Ks: Float[Tensor, "c 3 3"],
    width: int,
    height: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums over all pixels and views of each Gaussian's weight [n], and of its alpha with nothing in front of it [n].

    The weights are those of `rasterize`. The alpha is the closed form 2 pi opacity sqrt(|covariance|), without limits.
    One view is held at a time.
    """
    n = len(means)
    arrays = _array(means), _array(quats), _array(scales), _array(opacities), np.zeros((1, n, 3), np.float32)
    seen, whole = np.zeros(n), np.zeros(n)
    for view, K in zip(_array(viewmats), _array(Ks), strict=True):
        means2d, splats = np.zeros((1, n, 2), np.float32), np.zeros((1, n, kernels.COLUMNS), np.float32)
        radii = np.zeros((1, n), np.int32)
        inputs = *arrays, view[None], K[None], width, height
        _in_threads(kernels.project, ((*inputs, *piece, means2d, splats, radii) for piece in _ranges(n)))
        rows = _bin(splats[0], radii[0], width, height)
        buffers = np.zeros((SHARES, n), np.float32)
        _in_threads(
            kernels.composite_weights,
            ((splats[0], *rows, share, SHARES, width, buffers[share]) for share in range(SHARES)),
        )
        seen += buffers.sum(0, dtype=np.float64)
        shown = splats[0, radii[0] > 0].astype(np.float64)
        sharpness = shown[:, kernels.SHARPNESS_X] * shown[:, kernels.SHARPNESS_Y]
        whole[radii[0] > 0] += 2 * np.pi * shown[:, kernels.OPACITY] / np.sqrt(sharpness)
    return seen, whole


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
) -> tuple[
    Float[Tensor, "*a c h w 3"],
    Float[Tensor, "*a c h w 1"],
    Float[Tensor, "*a c h w 1"],
    Float[Tensor, "*a c n 2"],
    Int[Tensor, "*a c n"],
]:
    """Colour, alpha, accumulated depth, `means2d` and `radii`; see `segdream_cli.render.raster.rasterize`."""
    project: Callable[..., tuple[Tensor, ...]] = _Projection.apply
    composite: Callable[..., tuple[Tensor, ...]] = _Compositing.apply
    if means.ndim == 2:
        means2d, splats, radii = project(
            means, quats, scales, opacities, colors, (_array(viewmats), _array(Ks), width, height)
        )
        rgb, alpha, depth = composite(means2d, splats, radii, width, height)
        return rgb, alpha, depth, means2d, radii
    projected = [
        project(*gaussians, (_array(view), _array(K), width, height))
        for *gaussians, view, K in zip(means, quats, scales, opacities, colors, viewmats, Ks, strict=True)
    ]
    means2d = torch.stack([parts[0] for parts in projected])  # images come from the stack, so that gradients reach it
    images = [
        composite(centres, splats, radii, width, height)
        for centres, (_, splats, radii) in zip(means2d, projected, strict=True)
    ]
    rgb, alpha, depth = (torch.stack(parts) for parts in zip(*images, strict=True))
    return rgb, alpha, depth, means2d, torch.stack([parts[2] for parts in projected])
