"""What a run will need of a GPU, before it starts: memory and time.

Weights are counted. What the networks keep is a number of tensors of their first layer's size, fitted to what torch had
reserved on one GPU (benchmarks/RESULTS.md). The arithmetic is counted on shapes alone, and its time follows from a
matrix product on the device.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from segdream_cli.accel.cuda_graphs import LOW_VRAM_ROWS
from segdream_cli.config import Config
from segdream_cli.util.memory import GIB

UNET_TENSORS = 25
"""Those a row."""
ENCODER_TENSORS = {"plain": 32, "rewritten": 24, "compiled, stored": 18, "compiled": 14}
"""Those a view, captured: nothing else can use the memory of a graph."""
WITHOUT_GRAPHS = 0.77
"""Share of these where the encoder is not captured."""
WORKSPACES_GIB = 0.2
"""What libraries keep for themselves."""
PICTURE_FLOATS = 40
"""Numbers kept a pixel of a render, by the rasteriser, the losses and their gradients."""
GAUSSIAN_BYTES = 600
"""Bytes a Gaussian: parameters, gradients, two moments, and what the rasteriser keeps of it in four views."""
SHARE_OF_PRODUCT = {"plain": 0.18, "rewritten": 0.22, "compiled, stored": 0.4, "compiled": 0.43}
"""Rate of a step's arithmetic over that of a large matrix product."""
SHARE_IN_PIECES = 0.75
"""Share of these where memory is short and each call is small."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The networks of a run, and how they compute.

    Args:
        unet, vae: diffusers' networks, or ones of their configuration without memory.
        config: the run's settings.
        image_size: side of the renders in pixels.
        compiling: whether the networks are compiled.
        rows_per_view: rows of the U-Net that a step evaluates per view, on average.
        assets: how many are made at once.
    """

    unet: Any
    vae: Any
    config: Config
    image_size: int
    compiling: bool
    rows_per_view: float
    assets: int = 1

    @property
    def way(self) -> str:
        """The row of this file's tables."""
        prior = self.config.prior
        if self.compiling:
            return "compiled" if prior.recomputed_values else "compiled, stored"
        return "rewritten" if prior.forward_gradients else "plain"

    def memory_gib(self, gaussians: int) -> float:
        """What torch will have reserved at most with that many Gaussians an asset, which is what has to fit.

        The context of CUDA and the code of the kernels come on top.
        """
        config, views, itemsize = self.config, self.assets * self.config.camera.batch, self.unet.dtype.itemsize
        branches = 4 if config.distill.perp_neg else 2
        rows = 2 * config.camera.batch if self.compiling else branches * views
        encoded = views
        if config.prior.low_vram:
            rows, encoded = LOW_VRAM_ROWS, 1
        pixels = self.image_size**2
        latents = pixels // 4 ** (len(self.vae.config.block_out_channels) - 1)
        unet = UNET_TENSORS * rows * latents * self.unet.config.block_out_channels[0] * itemsize
        encoder = ENCODER_TENSORS[self.way] * encoded * pixels * self.vae.config.block_out_channels[0] * itemsize
        if not config.prior.cuda_graphs:
            encoder *= WITHOUT_GRAPHS
        weights = sum(value.nbytes for network in (self.unet, self.vae) for value in network.parameters())
        pictures = PICTURE_FLOATS * 4 * views * pixels
        total: float = weights + unet + encoder + pictures + GAUSSIAN_BYTES * gaussians * self.assets
        return total / GIB + WORKSPACES_GIB

    def step_flops(self) -> float:
        """Floating-point operations of the networks in an average step."""
        views = self.assets * self.config.camera.batch
        rows = views * self.rows_per_view
        encodes = 3 if self.config.prior.low_vram else 2  # the way back costs a forward pass, and is one more there
        unet, encoder = self.sample_flops()
        return rows * unet + views * encodes * encoder

    def sample_flops(self) -> tuple[float, float]:
        """Those of the U-Net for a row of latents, and of the encoder for an image, forward."""
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
        """Time of the run's steps on a device, compilation apart."""
        rate = product_rate(device, self.unet.dtype) * SHARE_OF_PRODUCT[self.way]
        rate *= SHARE_IN_PIECES if self.config.prior.low_vram else 1
        return self.config.optim.steps * self.step_flops() / rate


def product_rate(device: torch.device, dtype: torch.dtype, size: int = 4096, repeats: int = 10) -> float:
    """Floating-point operations a second of a square matrix product."""
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
    """What to say before a run: how much it takes, and what to do where that is more than there is."""
    minutes = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
    lines = [f"about {needed_gib:.1f} GiB of the GPU's memory and {minutes} for {config.optim.steps:,} steps"]
    if needed_gib > free_gib:
        half = f"--set camera.batch={max(1, config.camera.batch // 2)}"
        change = half if config.prior.low_vram else "--low-vram"
        lines.append(f"only {free_gib:.1f} GiB are free: if the memory runs out, start over with {change}")
    return lines
