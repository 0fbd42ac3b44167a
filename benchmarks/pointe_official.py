"""The official Point-E with given weights and noise, where `point_e` is importable: tests/parity-requirements.txt.

The official sampler needs a CLIP object even if it gets the features, so this module passes one without weights.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from segdream_cli.pointe.model import PointCloud, to_inner_frame
from segdream_cli.pointe.transformer import PointTransformerConfig

NAMES = ("base40M-textvec", "upsample")
State = dict[str, Tensor]


class NoClip(torch.nn.Module):
    """The methods of CLIP that the official sampler calls."""

    dtype = torch.float32


def importable() -> bool:
    """Whether the official package can be imported."""
    stub: Any = ModuleType("clip")
    stub.load, stub.tokenize = lambda *_, **__: (NoClip(), None), None
    sys.modules["clip"] = stub
    if importlib.util.find_spec("requests") is None:  # it downloads checkpoints with it
        sys.modules["requests"] = ModuleType("requests")
    try:
        part("models.configs"), part("diffusion.sampler"), part("diffusion.configs")
    except ImportError as problem:
        print(f"the official sampler is left out: {problem}", flush=True)
        return False
    return True


def part(name: str) -> Any:
    """A module of the official package."""
    return importlib.import_module(f"point_e.{name}")


def official_sampler(
    configs: Sequence[PointTransformerConfig], states: Sequence[State], device: torch.device
) -> Callable[[Tensor, Sequence[Tensor]], PointCloud]:
    """A function from a text vector [d] and the noise of each stage, [draws, n, 6], to a cloud, all on the device."""
    models, schedules = part("models.configs"), part("diffusion.configs")
    networks = []
    for name, config, state in zip(NAMES, configs, states, strict=True):
        size = {"n_ctx": config.points, "width": config.width, "layers": config.layers, "heads": config.heads}
        size |= {"cond_ctx": config.low_points} if config.low_points else {}
        network = models.model_from_config(models.MODEL_CONFIGS[name] | size, device)
        network.load_state_dict(state)
        networks.append(network.eval().requires_grad_(False))
    samplings = [config.sampling for config in configs]
    sampler = part("diffusion.sampler").PointCloudSampler(
        device=device,
        models=networks,
        diffusions=[schedules.diffusion_from_config(schedules.DIFFUSION_CONFIGS[name]) for name in NAMES],
        num_points=[config.points for config in configs],
        aux_channels=["R", "G", "B"],
        guidance_scale=[sampling.guidance_scale for sampling in samplings],
        model_kwargs_key_filter=("embeddings", ""),
        karras_steps=[sampling.steps for sampling in samplings],
        sigma_max=[sampling.sigma_max for sampling in samplings],
        s_churn=[sampling.churn for sampling in samplings],
    )

    def sample(text: Tensor, noise: Sequence[Tensor]) -> PointCloud:
        numbers = []
        for drawn, sampling in zip(noise, samplings, strict=True):  # it draws for each step, and may use none of it
            numbers += [*drawn, *[drawn[0]] * (1 + sampling.steps - len(drawn))]
        feed = iter(numbers)
        given = {
            "randn": lambda *_, **__: next(feed).mT[None],
            "randn_like": lambda x: next(feed).mT[None].expand_as(x),
        }
        part("diffusion.k_diffusion").th = SimpleNamespace(**{**vars(torch), **given})
        world = sampler.sample_batch(1, {"embeddings": text[None]})[0].mT.float().cpu()
        xyz, rgb = world.split(3, dim=-1)
        return PointCloud(to_inner_frame(xyz), (rgb / 255).clamp(0, 1))

    return sample
