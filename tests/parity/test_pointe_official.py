"""The networks and the sampler of Point-E against the official package at full size, on shared random weights.

It runs where `point_e` is importable: see tests/parity-requirements.txt.
"""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from segdream_cli.pointe.model import PointE, to_inner_frame
from segdream_cli.pointe.schedule import alphas_cumprod, noise_levels, timestep
from segdream_cli.pointe.transformer import BASE, UPSAMPLE, PointTransformer, infer_config

pytest.importorskip("point_e")

NAMES = ("base40M-textvec", "upsample")
CONFIGS = (BASE, UPSAMPLE)


class _NoClip(torch.nn.Module):
    """In place of CLIP, whose 0.9 GB the networks ask for even if they are handed the features themselves."""

    dtype = torch.float32


@pytest.fixture(scope="module", autouse=True)
def _clip() -> Iterator[None]:
    stub: Any = ModuleType("clip")
    stub.load = lambda *_, **__: (_NoClip(), None)
    stub.tokenize = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "clip", stub)
        yield


def official(part: str) -> Any:
    return importlib.import_module(f"point_e.{part}")


@pytest.fixture(scope="module")
def networks() -> list[Any]:
    """The official networks with random weights in all places, also where training starts from zero."""
    configs = official("models.configs")
    made = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in NAMES:
            network = configs.model_from_config(configs.MODEL_CONFIGS[name], torch.device("cpu")).eval()
            for key, parameter in network.named_parameters():
                if key.endswith("bias") or ".ln_" in key or key.startswith("ln_"):
                    torch.nn.init.normal_(parameter, mean=float("ln" in key and key.endswith("weight")), std=0.1)
            # a prediction's rounding grows with it, and is multiplied by the noise level, up to 160
            torch.nn.init.normal_(network.output_proj.weight, std=0.01)
            made.append(network.requires_grad_(False))
    return made


@pytest.fixture(scope="module")
def ours(networks: list[Any]) -> list[PointTransformer]:
    states = [network.state_dict() for network in networks]
    return [PointTransformer.from_state(infer_config(state), state) for state in states]


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(vector: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vector, dim=-1)


def test_infer_config_recognises_official_state_dicts(networks: list[Any]) -> None:
    assert [infer_config(network.state_dict()) for network in networks] == [BASE, UPSAMPLE]


@pytest.mark.parametrize("stage", [0, 1], ids=NAMES)
def test_point_transformer_matches_the_official_network(
    networks: list[Any], ours: list[PointTransformer], stage: int, record_property: Any
) -> None:
    config, count = CONFIGS[stage], 2 - stage
    noisy, timesteps = normal(count, config.points, 6), torch.tensor([700, 3])[:count]
    if stage == 0:
        given = torch.stack([unit(normal(768)), torch.zeros(768)])
        expected = networks[0](noisy.mT, timesteps, embeddings=list(given)).mT
    else:
        given = torch.cat([normal(1, 1024, 3) / 6, 255 * normal(1, 1024, 3).sigmoid()], dim=-1)
        expected = networks[1](noisy.mT, timesteps, low_res=given.mT).mT
    difference = (ours[stage](noisy, timesteps, ours[stage].embed(given)) - expected).abs().max().item()
    record_property("difference", difference)
    assert expected.std() > 0.1
    assert difference < 1e-5


@pytest.mark.parametrize("stage", [0, 1], ids=NAMES)
def test_schedule_matches_the_official_one(stage: int) -> None:
    configs, karras = official("diffusion.configs"), official("diffusion.k_diffusion")
    diffusion = configs.diffusion_from_config(configs.DIFFUSION_CONFIGS[NAMES[stage]])
    sampling, alphas = CONFIGS[stage].sampling, alphas_cumprod(CONFIGS[stage].schedule)
    assert abs(alphas.numpy() - diffusion.alphas_cumprod).max() < 1e-15
    expected = karras.get_sigmas_karras(64, 1e-3, (120, 160)[stage])
    torch.testing.assert_close(noise_levels(sampling).float(), expected, rtol=2e-5, atol=0)
    steps = karras.GaussianToKarrasDenoiser(None, diffusion)
    raised = expected[:-1] * (1 + sampling.gamma)
    for sigma in torch.cat([expected[:-1], raised]).numpy():
        assert timestep(float(sigma), alphas) == int(steps.sigma_to_t(sigma))


@pytest.mark.slow
def test_sample_matches_the_official_sampler(
    networks: list[Any], ours: list[PointTransformer], monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """Few steps, for time, but with the churn, the guidance and the noise levels of the release."""
    steps = (8, 4)
    text = unit(normal(768))
    generator = torch.Generator().manual_seed(5)
    numbers: list[Tensor] = []
    for network, count in zip(ours, steps, strict=True):
        sampling = replace(network.config.sampling, steps=count)
        network.config = replace(network.config, sampling=sampling)
        drawn = torch.randn(sampling.draws, network.config.points, 6, generator=generator)
        numbers += [*drawn, *torch.zeros(1 + count - sampling.draws, 1, 6)]  # what is drawn without churn is not used
    feed = iter(numbers)
    shared = {"randn": lambda *_, **__: next(feed).mT[None], "randn_like": lambda x: next(feed).mT[None].expand_as(x)}
    monkeypatch.setattr(official("diffusion.k_diffusion"), "th", SimpleNamespace(**{**vars(torch), **shared}))
    configs = official("diffusion.configs")
    sampler = official("diffusion.sampler").PointCloudSampler(
        device=torch.device("cpu"),
        models=networks,
        diffusions=[configs.diffusion_from_config(configs.DIFFUSION_CONFIGS[name]) for name in NAMES],
        num_points=[1024, 3072],
        aux_channels=["R", "G", "B"],
        guidance_scale=[3.0, 0.0],
        model_kwargs_key_filter=("embeddings", ""),
        karras_steps=steps,
    )
    expected = sampler.sample_batch(1, {"embeddings": text[None]})[0].mT
    assert next(feed, None) is None
    cloud = PointE(*ours).sample(text, generator.manual_seed(5))
    xyz, rgb = expected.split(3, dim=-1)
    assert xyz.std(0).min() > 0.1
    differences = [
        (cloud.points - to_inner_frame(xyz)).abs().max().item(),
        (cloud.colors - rgb.clamp(0, 255) / 255).abs().max().item(),
    ]
    record_property("differences", differences)
    assert max(differences) < 1e-4
