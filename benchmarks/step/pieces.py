"""Encoder and U-Net alone, with one speed-up more in each row, against plain arithmetic in single precision."""

import copy
import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.step.random_prior import EAGER, FIXED, networks, random_prior
from benchmarks.step.stages import wall_seconds
from segdream_cli.config import Config
from segdream_cli.priors.stable_diffusion import DiffusionPrior

REPEATS = 9
Row = dict[str, float]
GRAPHS = EAGER | {"prior.cuda_graphs": True}
ATTENTION = GRAPHS | {"prior.written_attention": True}
GRADIENTS = ATTENTION | {"prior.forward_gradients": True}
FUSED = GRADIENTS | {"prior.fused_projections": True}
COMPILED = FUSED | {"prior.compile": "on"}
WITHOUT = "compiled without"
VARIANTS = {
    "eager": EAGER,
    "graphs": GRAPHS,
    "+ written attention": ATTENTION,
    "+ forward gradients": GRADIENTS,
    "+ fused projections": FUSED,
    "+ compiled, channel norms": COMPILED,
    f"{WITHOUT} recomputed values": COMPILED | {"prior.recomputed_values": False},
    f"{WITHOUT} channel norms": COMPILED | {"prior.channel_norms": False},
}


def relative(found: Tensor, expected: Tensor) -> float:
    """Distance over length."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """Median time of a call on the device, after two to warm up."""
    return 1e3 * statistics.median([wall_seconds(device, work) for _ in range(2 + REPEATS)][2:])


class Inputs:
    """What every variant is given."""

    def __init__(self, prior: DiffusionPrior, views: int) -> None:
        generator = torch.Generator().manual_seed(1)
        side = prior.image_size
        self.rgb = torch.rand(views, side, side, 3, generator=generator).permute(0, 3, 1, 2).to(prior.device)
        self.noise, self.weights = (
            torch.randn(views, *prior.latent_shape, generator=generator).to(prior.device) for _ in range(2)
        )
        self.latents = torch.randn(2 * views, *prior.latent_shape, generator=generator).to(prior.device)
        self.times = torch.randint(20, 980, (2 * views,), generator=generator).to(prior.device)
        self.text = prior.encode_text([str(row) for row in range(2 * views)])

    def encode(self, prior: DiffusionPrior) -> tuple[Tensor, Tensor]:
        """Latents, and the gradient of the images."""
        rgb = self.rgb.clone().requires_grad_()
        latents = prior.encode_image(rgb, self.noise)
        (gradient,) = torch.autograd.grad((latents * self.weights).sum(), rgb)
        return latents.detach(), gradient

    def predict(self, prior: DiffusionPrior, rows: int) -> Tensor:
        """The noise in some of the latents."""
        return prior.predict_noise(self.latents[:rows], self.times[:rows], self.text[:rows].to(prior.dtype))


def measure_pieces(device: torch.device, keep: Callable[[dict[str, Row]], object], *, small: bool) -> dict[str, Row]:
    """Rows of milliseconds and relative errors by name, handed to `keep` after each variant."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    config = Config().set(FIXED)
    views = config.camera.batch
    made = networks(device, torch.float16 if device.type == "cuda" else torch.float32, small=small)

    def prior(settings: dict[str, Any], *, single: bool = False) -> DiffusionPrior:
        changed = dataclasses.replace(config, prior=config.set(settings).prior)
        copies = tuple(copy.deepcopy(network) for network in made)
        return random_prior(changed, device, tuple(network.float() for network in copies) if single else copies)

    exact = prior(EAGER, single=True)
    inputs = Inputs(exact, views)
    latents, gradient = inputs.encode(exact)
    noise = {rows: inputs.predict(exact, rows) for rows in (views, 2 * views)}
    del exact
    found: dict[str, Row] = {}
    for name, settings in VARIANTS.items():
        variant = prior(settings)
        ours = inputs.encode(variant)
        found[f"encoder, {name}"] = {
            "ms": milliseconds(lambda variant=variant: inputs.encode(variant), device),
            "error": relative(ours[0], latents),
            "gradient_error": relative(ours[1], gradient),
        }
        for rows in noise if WITHOUT not in name else [views]:  # to save compilations
            error = relative(inputs.predict(variant, rows), noise[rows])
            took = milliseconds(lambda variant=variant, rows=rows: inputs.predict(variant, rows), device)
            found[f"U-Net, {rows} rows, {name}"] = {"ms": took, "error": error}
        keep(found)
        print(name, flush=True)
        del variant
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found
