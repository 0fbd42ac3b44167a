"""The CUDA rasteriser: gsplat, whose kernels are compiled on the user's machine at first use."""

import contextlib
import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segdream_cli.errors import EnvironmentProblem
from segdream_cli.util import compat
from segdream_cli.util.download import cache_folder
from segdream_cli.util.files import exclusive, relocation

WARP = 32
"""Threads per warp: gsplat 1.5.3's backward pass sums the gradients of a warp per index, across sets."""


@cache
def load_kernels() -> Callable[..., Any]:
    """The entry point of gsplat; compiles and loads its kernels.

    One process at a time builds them: gsplat lets a second builder delete the files of the first.

    Raises:
        EnvironmentProblem: there is no CUDA compiler, the compilation fails, or the cache can't be written.
    """
    folder = cache_folder()
    waiting = "waiting for another process that builds or loads gsplat's kernels"
    try:
        with exclusive(folder / "gsplat.lock", waiting):
            return _load()
    except OSError as problem:
        raise EnvironmentProblem(
            f"{folder} can't be written, and gsplat's kernels need a lock file there: {problem.strerror or problem}",
            hint=relocation("SEGDREAM_CACHE", folder, problem),
        ) from problem


def _load() -> Callable[..., Any]:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # gsplat reports its progress on stdout, which is for results
            from gsplat import rasterization

            kernels = compat.gsplat_kernels()
    except Exception as problem:  # the compiler, the linker and the loader each raise their own kind
        if isinstance(problem, ModuleNotFoundError) and problem.name == "gsplat":
            raise
        lines = str(problem).strip().splitlines() or [type(problem).__name__]
        raise EnvironmentProblem(
            f"gsplat's CUDA kernels can't be built or loaded: {lines[0]}",
            hint="rm -rf ~/.cache/torch_extensions/*/gsplat_cuda; MAX_JOBS=4 segdream doctor --build-kernels",
        ) from problem
    if kernels is None:
        raise EnvironmentProblem("gsplat finds no CUDA compiler (nvcc) to build its kernels with", hint=_toolkit_hint())
    found: Callable[..., Any] = rasterization
    return found


def _toolkit_hint() -> str:
    version = torch.version.cuda or "13.0"
    folder = f"nvidia/cu{version.partition('.')[0]}"
    purelib = "$(python -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))')"
    return f'pip install "cuda-toolkit[nvcc,cccl]=={version}.*" && export CUDA_HOME={purelib}/{folder}'


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
    """Colour, alpha, accumulated depth, `means2d` and `radii`; see `segdream_cli.render.raster.rasterize`.

    Raises:
        EnvironmentProblem: gsplat's kernels can't be built.
        ValueError: several sets of fewer than 32 Gaussians.
    """
    n, views = means.shape[-2], viewmats.shape[:-2]
    if n == 0:  # gsplat divides by the number of Gaussians
        nothing = colors.sum() + means.new_zeros(*views, height, width, 5)
        radii = torch.zeros(*views, 0, dtype=torch.int32, device=means.device)
        means2d = means[..., None, :, :2].expand(*views, 0, 2)
        return nothing[..., :3], nothing[..., 3:4], nothing[..., 4:], means2d, radii
    if n < WARP and math.prod(means.shape[:-2]) > 1:
        raise ValueError(f"gsplat needs at least {WARP} Gaussians in each of several sets, not {n}")
    unturned = (quats == 0).all(-1, keepdim=True)  # gsplat would divide by their norm
    identity = torch.eye(
        1, 4, device=quats.device, dtype=quats.dtype
    )  # created on the device: a copy from the host would wait
    image, alpha, info = load_kernels()(
        means,
        torch.where(unturned, identity, quats),
        scales,
        opacities,
        colors,
        viewmats,
        Ks,
        width,
        height,
        packed=False,
        render_mode="RGB+D",
    )
    return image[..., :3], alpha, image[..., 3:], info["means2d"], info["radii"].amax(-1)
