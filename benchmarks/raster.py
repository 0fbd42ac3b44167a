"""Times the rasteriser: a table of milliseconds, one view, forward and forward with backward.

python -m benchmarks.raster [--device cuda] [--repeats 10]
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from segdream_cli.render.raster import rasterize

SIZES_PX = (64, 128, 256)
COUNTS = (2_000, 10_000, 50_000)


def closed_surface(count: int, device: str) -> list[Tensor]:
    """Gaussians like those of an optimised object: flat, on a noisy sphere, of mixed opacity, no larger than needed."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(count, 3, generator=generator)
    means = F.normalize(normal, dim=-1) * (0.7 + 0.05 * torch.randn(count, 1, generator=generator))
    spacing = 0.7 * math.sqrt(4 * math.pi / count)
    scales = spacing * torch.exp(0.5 * torch.randn(count, 3, generator=generator)) * torch.tensor([1.0, 1.0, 0.3])
    opacities = torch.sigmoid(2 * torch.randn(count, generator=generator))
    tensors = (
        means,
        torch.randn(count, 4, generator=generator),
        scales,
        opacities,
        torch.rand(count, 3, generator=generator),
    )
    return [tensor.to(device).requires_grad_() for tensor in tensors]


def milliseconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """Shortest wall time of `repeats` runs, after two warm-up runs."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return min(times[2:])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()

    viewmats = torch.eye(4, device=options.device)[None].clone()
    viewmats[0, 2, 3] = 3.0
    print(
        f"{options.device}, torch {torch.__version__}, {torch.get_num_threads()} threads; forward / with backward, ms"
    )
    print("splats".rjust(8), *(f"{size} px".rjust(18) for size in SIZES_PX))
    for count in COUNTS:
        gaussians = closed_surface(count, options.device)
        cells = []
        for size in SIZES_PX:
            K = torch.tensor([[1.4 * size, 0, size / 2], [0, 1.4 * size, size / 2], [0, 0, 1]], device=options.device)

            def forward(gaussians: list[Tensor] = gaussians, K: Tensor = K, size: int = size) -> Tensor:
                view = rasterize(*gaussians, viewmats, K[None], size, size)
                return view.rgb.sum() + view.alpha.sum() + view.depth.sum()

            def both(forward: Callable[[], Tensor] = forward) -> None:
                forward().backward()

            times = [milliseconds(work, options.device, options.repeats) for work in (forward, both)]
            cells.append(f"{times[0]:.1f} / {times[1]:.1f}".rjust(18))
        print(str(count).rjust(8), *cells)


if __name__ == "__main__":
    main()
