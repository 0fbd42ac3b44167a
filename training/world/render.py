"""Images of the procedural world: sphere tracing, one scalar program compiled for the CPU and for CUDA.

A ray keeps the primitives whose bounding balls it meets as bits of one integer and steps by their joint distance.
A surface within half a pixel of a ray counts as partly covered, and a pixel averages several rays, so images are
antialiased. Shading is soft: sky light that fades only a little downwards, a weak sun without shadows, and mild
occlusion, so colours stay those of the prompt.

Shapes: m images, n instances, k primitives of each, s pixels square.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from training.world.tracer import pixel, touch

Floats = NDArray[np.float32]
BLOCK = 128
"""CUDA threads of a block."""


def draw(primitives: Floats, looks: Floats, views: Floats, size: int, device: torch.device) -> UInt8[Tensor, "m s s 4"]:
    """Images of the scenes, premultiplied RGBA bytes, on the device that drew them.

    Args:
        primitives: the result of `Sculptor.finish`, [n k 26].
        looks: paint of each instance, [n 13].
        views: instance, camera and light of each image, [m 20].
        size: side of the images in pixels.
        device: where to draw.
    """
    images = torch.empty(len(views), size, size, 4, dtype=torch.uint8, device=device)
    _launch(_pixels_cpu, _pixels_cuda, images[..., 0].numel(), (primitives, looks, views), images)
    return images


def sample_surface(
    primitives: Floats, looks: Floats, n: int, generator: torch.Generator
) -> tuple[Float[Tensor, "i n 3"], Float[Tensor, "i n 3"]]:
    """Points spread evenly over the outwardly visible surface of each instance, and their unlit colours in 0..1.

    Args:
        primitives: the result of `Sculptor.finish`, [i k 26].
        looks: paint of each instance, [i 13].
        n: points per instance.
        generator: source of the chords; its device follows them and keeps the points.
    """
    chords = 16 * n
    chances = torch.rand(len(primitives), chords, 4, generator=generator, device=generator.device)
    found = torch.empty(len(primitives), chords, 7, device=generator.device)
    _launch(_chords_cpu, _chords_cuda, found[..., 0].numel(), (primitives, looks), chances, found)
    # The first n hits; an instance so thin that fewer chords meet it gives some of its points twice.
    order = found[..., 0].argsort(dim=1, descending=True, stable=True)[:, :n]
    hits = found[..., 0].sum(1, keepdim=True).long().clamp(1, n)
    order = order.gather(1, torch.arange(n, device=order.device) % hits)
    points = found.gather(1, order[..., None].expand(-1, -1, 7))
    return points[..., 1:4], points[..., 4:7]


def _launch(
    on_cpu: Callable[[], Any], on_cuda: Callable[[], Any], threads: int, scene: tuple[Floats, ...], *tensors: Tensor
) -> None:
    """Runs a kernel over the scene's arrays and the tensors, on the tensors' device."""
    device = tensors[0].device
    if device.type == "cpu":
        on_cpu()(*scene, *(tensor.numpy() for tensor in tensors))
        return
    from numba import cuda

    with cuda.gpus[device.index or 0]:
        arrays = [cuda.as_cuda_array(torch.from_numpy(array).to(device)) for array in scene]
        torch.cuda.synchronize(device)
        on_cuda()[-(-threads // BLOCK), BLOCK](*arrays, *map(cuda.as_cuda_array, tensors))
        cuda.synchronize()


@cache
def _pixels_cpu() -> Any:
    @numba.njit(parallel=True, error_model="numpy")
    def kernel(primitives: Any, looks: Any, views: Any, images: Any) -> None:
        size = images.shape[1]
        for row in numba.prange(len(views) * size):
            for x in range(size):
                pixel(primitives, looks, views, row // size, row % size, x, images)

    return kernel


@cache
def _pixels_cuda() -> Any:
    from numba import cuda

    @cuda.jit(fastmath=True)
    def kernel(primitives: Any, looks: Any, views: Any, images: Any) -> None:
        size = images.shape[1]
        i = cuda.grid(1)
        if i < len(views) * size * size:
            pixel(primitives, looks, views, i // (size * size), i // size % size, i % size, images)

    return kernel


@cache
def _chords_cpu() -> Any:
    @numba.njit(parallel=True, error_model="numpy")
    def kernel(primitives: Any, looks: Any, chances: Any, found: Any) -> None:
        n = chances.shape[1]
        for i in numba.prange(len(primitives) * n):
            touch(primitives, looks, chances[i // n, i % n], i // n, found[i // n, i % n])

    return kernel


@cache
def _chords_cuda() -> Any:
    from numba import cuda

    @cuda.jit(fastmath=True)
    def kernel(primitives: Any, looks: Any, chances: Any, found: Any) -> None:
        n = chances.shape[1]
        i = cuda.grid(1)
        if i < len(primitives) * n:
            touch(primitives, looks, chances[i // n, i % n], i // n, found[i // n, i % n])

    return kernel
