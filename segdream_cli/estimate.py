"""What a run will need of a GPU, before it starts: memory and time.

Weights are counted. What the networks keep is a number of tensors of their first layer's size, fitted to what torch had
reserved or handed out on one GPU (benchmarks/RESULTS.md) where that was measured. The arithmetic is counted on shapes
alone, and its time follows from a matrix product on the device.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from segdream_cli.config import Config
from segdream_cli.memory import GIB

UNET_TENSORS = 25
ENCODER_TENSORS = {"plain": 22, "rewritten": 16, "compiled": 9, "one view": 23}
"""Those a view. With `UNET_TENSORS`, "plain" was fitted to 8.0 GiB handed out; "one view", computed again on the way
back, to the 3.43 GiB reserved with --low-vram, so that it holds all workspaces. "rewritten" and "compiled" were
expected, and what "compiled" lacks in the measurement is part of `GRAPHED`."""
GRAPHED = 1.9
"""Memory that torch reserves for networks that are captured over what they keep, since nothing else can use the pool of
a graph: fitted, for "compiled", to 7.31 GiB reserved with classifier-free guidance and 7.00 with Perp-Neg. For the ways
without the compiler it is carried over, not measured."""
PICTURE_FLOATS = 40
"""Numbers kept a pixel of a render, by the rasteriser, the losses and their gradients."""
GAUSSIAN_BYTES = 600
"""Bytes a Gaussian: parameters, gradients, two moments, and what the rasteriser keeps of it in four views."""
UPWARD = 1.4
"""U-Net rows a view for the walk up to t, on average: two from t_tau on, one below."""
SHARE_OF_PRODUCT = {"plain": 0.2, "rewritten": 0.25, "compiled": 0.4}
"""Rate of a step's arithmetic over that of a large matrix product."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The networks of a run, and how they compute.

    Args:
        unet, vae: diffusers' networks, or ones of their configuration without memory.
        config: the run's settings.
        image_size: side of the renders in pixels.
        compiling: whether the networks are compiled.
    """

    unet: Any
    vae: Any
    config: Config
    image_size: int
    compiling: bool

    @property
    def way(self) -> str:
        """The row of this file's tables."""
        return "compiled" if self.compiling else "rewritten" if self.config.prior.forward_gradients else "plain"

    def memory_gib(self, gaussians: int) -> float:
        """What torch will have reserved at most with that many Gaussians, which is what has to fit.

        The context of CUDA and the code of the kernels come on top.
        """
        config, views = self.config, self.config.camera.batch
        low, itemsize = config.prior.low_vram, self.unet.dtype.itemsize
        branches = 4 if config.distill.perp_neg and not self.compiling else 2
        rows = 2 if low else branches * views
        latents = (self.image_size // 2 ** (len(self.vae.config.block_out_channels) - 1)) ** 2
        unet = UNET_TENSORS * rows * latents * self.unet.config.block_out_channels[0] * itemsize
        pixels = self.image_size**2
        encoder = ENCODER_TENSORS["one view" if low else self.way] * (1 if low else views) * pixels
        encoder *= self.vae.config.block_out_channels[0] * itemsize
        graphs = config.prior.cuda_graphs and not low  # a graph keeps its memory, so that the two never share
        networks = GRAPHED * (unet + encoder) if graphs else max(unet, encoder)
        weights = sum(value.nbytes for network in (self.unet, self.vae) for value in network.parameters())
        total: float = weights + networks + PICTURE_FLOATS * 4 * views * pixels + GAUSSIAN_BYTES * gaussians
        return total / GIB

    def step_flops(self) -> float:
        """Floating-point operations of the networks in an average step."""
        views = self.config.camera.batch
        rows = views * (UPWARD + 3 + (1.5 if self.config.distill.perp_neg else 0))
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
