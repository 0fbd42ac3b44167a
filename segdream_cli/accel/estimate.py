"""Estimate of the GPU memory and the time of a run, before it starts.

The memory of the weights is counted. That of the activations is a multiple of the first layer's activation tensor; the
multiples were fitted to the memory that torch reserved on one GPU (benchmarks/RESULTS.md). Floating-point operations
are counted on shapes alone; their time follows from a timed matrix product on the device.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from segdream_cli.accel.cuda_graphs import LOW_VRAM_ROWS
from segdream_cli.config import Config
from segdream_cli.util.failures import GIB

UNET_TENSORS = 25
"""U-Net activations per row of latents, in tensors of the first layer's size."""
ENCODER_TENSORS = {"plain": 32, "fast layers": 24, "compiled, stored": 18, "compiled": 14}
"""Encoder activations per view, in tensors of the first layer's size, with CUDA graphs, which share no memory."""
WITHOUT_GRAPHS = 0.77
"""Factor of the encoder activations without CUDA graphs."""
WORKSPACES_GIB = 0.2
"""Workspaces of libraries."""
PIXEL_FLOATS = 40
"""Float32 numbers per pixel of a render: of the rasteriser, the losses and their gradients."""
GAUSSIAN_BYTES = 600
"""Bytes per Gaussian: parameters, gradients, two moments, and the rasteriser's state in four views."""
SPEED = {"plain": 0.19, "fast layers": 0.232, "compiled, stored": 0.422, "compiled": 0.454}
"""Operations per second of a step, relative to those of a large matrix product."""
DECODER = 2.25
"""Operations of Stable Diffusion's decoder, relative to those of its encoder."""
LOW_VRAM_SPEED = 0.75
"""Factor of `SPEED` in low-VRAM mode, whose calls are small."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The networks of a run, and how they compute.

    Args:
        unet, vae: diffusers' networks, or networks of the same configuration on the meta device.
        config: the run's settings.
        image_size: side of the renders in pixels.
        compiling: whether the networks are compiled.
        rows_per_view: rows of the U-Net that a step evaluates per view, on average.
        assets: assets optimised at once.
        decodes_per_view: images that a step decodes per view.
    """

    unet: Any
    vae: Any
    config: Config
    image_size: int
    compiling: bool
    rows_per_view: float
    assets: int = 1
    decodes_per_view: float = 0.0

    @property
    def implementation(self) -> str:
        """The key for `ENCODER_TENSORS` and `SPEED`."""
        prior = self.config.prior
        if self.compiling:
            return "compiled" if prior.recomputed_values else "compiled, stored"
        return "fast layers" if prior.forward_gradients else "plain"

    def memory_gib(self, gaussians: int) -> float:
        """The peak of the memory that torch reserves, for a number of Gaussians per asset.

        The CUDA context and the code of the kernels take further memory.
        """
        config, views, itemsize = self.config, self.assets * self.config.camera.batch, self.unet.dtype.itemsize
        branches = 4 if config.distill.perp_neg else 2
        rows = 2 * config.camera.batch if self.compiling else branches * views
        encoded = views
        if config.prior.low_vram:
            rows, encoded = LOW_VRAM_ROWS, 1
        pixels = self.image_size**2
        latents = pixels // 4 ** (len(self.vae.config.block_out_channels) - 1)
        unet_channels, vae_channels = (network.config.block_out_channels[0] for network in (self.unet, self.vae))
        unet = UNET_TENSORS * rows * latents * unet_channels * itemsize
        encoder = ENCODER_TENSORS[self.implementation] * encoded * pixels * vae_channels * itemsize
        if not config.prior.cuda_graphs:
            encoder *= WITHOUT_GRAPHS
        weights = sum(value.nbytes for network in (self.unet, self.vae) for value in network.parameters())
        renders = PIXEL_FLOATS * 4 * views * pixels
        total: float = weights + unet + encoder + renders + GAUSSIAN_BYTES * gaussians * self.assets
        return total / GIB + WORKSPACES_GIB

    def step_flops(self) -> float:
        """Floating-point operations of the networks in an average step."""
        views = self.assets * self.config.camera.batch
        rows = views * self.rows_per_view
        # a backward pass costs as much as a forward pass, which low-VRAM mode computes twice
        encodes = 3 if self.config.prior.low_vram else 2
        unet, encoder = self.sample_flops()
        return rows * unet + views * (encodes + DECODER * self.decodes_per_view) * encoder

    def refine_flops(self) -> float:
        """Floating-point operations of the networks in the whole refinement, of which only the repaint has any."""
        if not self.config.refine.rounds:
            return 0.0
        unet, encoder = self.sample_flops()
        own = self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)
        branches = 1 if self.config.refine.guidance_scale == 1 else 2
        total = 0.0
        for each in self.config.refine.rounds:
            area = ((each.image_size or own) / self.image_size) ** 2
            total += self.assets * each.views * area * (branches * each.steps * unet + (1 + DECODER) * encoder)
        return total

    def sample_flops(self) -> tuple[float, float]:
        """Floating-point operations of a forward pass: of the U-Net per row of latents, of the encoder per image."""
        with torch.device("meta"), torch.no_grad():
            unet, vae = (type(network).from_config(network.config) for network in (self.unet, self.vae))
            side = self.image_size // 2 ** (len(vae.config.block_out_channels) - 1)
            latents, image = (
                torch.zeros(1, unet.config.in_channels, side, side),
                torch.zeros(1, 3, self.image_size, self.image_size),
            )
            text = torch.zeros(1, 77, unet.config.cross_attention_dim)
            counts = []
            for network, inputs in ((unet, (latents, torch.zeros(1), text)), (vae.encoder, (image,))):
                with FlopCounterMode(display=False) as counter:
                    network(*inputs)
                counts.append(float(counter.get_total_flops()))
        return counts[0], counts[1]

    def seconds(self, device: torch.device) -> float:
        """Seconds of the run's networks on a device, without compilation."""
        rate = product_rate(device, self.unet.dtype) * SPEED[self.implementation]
        rate *= LOW_VRAM_SPEED if self.config.prior.low_vram else 1
        return (self.config.optim.steps * self.step_flops() + self.refine_flops()) / rate


def product_rate(device: torch.device, dtype: torch.dtype, size: int = 4096, repeats: int = 10) -> float:
    """Floating-point operations per second of a square matrix product."""
    generator = torch.Generator(device).manual_seed(0)
    factor = torch.randn(size, size, device=device, generator=generator).to(dtype)  # a GPU is faster at equal numbers

    def multiply(times: int) -> None:
        for _ in range(times):
            factor @ factor
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    multiply(2)
    begin = time.perf_counter()
    multiply(repeats)
    return repeats * 2 * size**3 / (time.perf_counter() - begin)


def forecast(needed_gib: float, free_gib: float, seconds: float, config: Config) -> list[str]:
    """The lines to announce before a run: its memory and time, and the remedy if the memory may not suffice."""
    minutes = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
    lines = [f"about {needed_gib:.1f} GiB of the GPU's memory and {minutes} for {config.last_step:,} steps"]
    if needed_gib > free_gib:
        half = f"--set camera.batch={max(1, config.camera.batch // 2)}"
        change = half if config.prior.low_vram else "--low-vram"
        lines.append(f"only {free_gib:.1f} GiB are free: if the memory runs out, start over with {change}")
    return lines
