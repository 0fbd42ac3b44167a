"""Pictures of the procedural world: sphere tracing, one scalar program compiled for the CPU and for CUDA.

A ray keeps the primitives whose bounding balls it meets as bits of one integer and steps by their joint distance.
What it passes within half a pixel of counts as partly covered, and a pixel averages several rays, so pictures are
antialiased. Shading is soft: sky light that fades only a little downwards, a weak sun without shadows, and mild
occlusion, so that colours stay the colours of the prompt.

Shapes: m pictures, n instances, k primitives of each, s pixels square.
"""

from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from training.world.tracer import pixel

Floats = NDArray[np.float32]


def draw(primitives: Floats, looks: Floats, views: Floats, size: int, device: torch.device) -> UInt8[Tensor, "m s s 4"]:
    """Pictures of the scenes, premultiplied RGBA bytes, on the device that drew them.

    Args:
        primitives: what `Sculptor.finish` returns, [n k 26].
        looks: how each instance is painted, [n 13].
        views: instance, camera and light of each picture, [m 20].
        size: side of the pictures in pixels.
        device: where to draw.
    """
    pictures = torch.empty(len(views), size, size, 4, dtype=torch.uint8, device=device)
    arrays = primitives, looks, views
    if device.type == "cpu":
        _cpu_kernel()(*arrays, pictures.numpy())
        return pictures
    from numba import cuda

    threads = 128
    with cuda.gpus[device.index or 0]:
        on_device = [cuda.as_cuda_array(torch.from_numpy(array).to(device)) for array in arrays]
        torch.cuda.synchronize(device)
        _cuda_kernel()[-(-len(views) * size * size // threads), threads](*on_device, cuda.as_cuda_array(pictures))
        cuda.synchronize()
    return pictures


@cache
def _cpu_kernel() -> Any:
    @numba.njit(parallel=True, error_model="numpy")
    def kernel(primitives: Any, looks: Any, views: Any, pictures: Any) -> None:
        size = pictures.shape[1]
        for row in numba.prange(len(views) * size):
            for x in range(size):
                pixel(primitives, looks, views, row // size, row % size, x, pictures)

    return kernel


@cache
def _cuda_kernel() -> Any:
    from numba import cuda

    @cuda.jit(fastmath=True)
    def kernel(primitives: Any, looks: Any, views: Any, pictures: Any) -> None:
        size = pictures.shape[1]
        i = cuda.grid(1)
        if i < len(views) * size * size:
            pixel(primitives, looks, views, i // (size * size), i // size % size, i % size, pictures)

    return kernel
