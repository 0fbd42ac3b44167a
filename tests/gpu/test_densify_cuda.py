"""Density control on CUDA: the same rows, the same moments, and a working fused Adam."""

import pytest
import torch

from segdream_cli.config import DensifyConfig, OptimConfig
from segdream_cli.optimize.adam import adam_step, build_optimizers, learning_rates
from segdream_cli.optimize.density import DensityStats, control_density
from segdream_cli.splats.gaussians import Gaussians, stack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CONFIG = DensifyConfig(
    start=0, every=10, grad_threshold=1.0, clone_scale=0.05, prune_scale_after=0, prune_scale=1.0, reset_every=10,
    reset_opacity=0.2,
)  # fmt: skip


def tagged(device):
    """Five Gaussians after a step of Adam, with gradients that differ per row."""
    rows = torch.arange(1.0, 6.0)
    gaussians = Gaussians(
        {
            "means": rows[:, None].repeat(1, 3),
            "quats": torch.tensor([1.0, 0, 0, 0]).repeat(5, 1),
            "log_scales": torch.tensor([0.01, 0.02, 0.2, 0.02, 1.5]).log()[:, None].repeat(1, 3),
            "opacity_logits": torch.tensor([0.5, 0.6, 0.7, 0.001, 0.8]).logit(),
            "sh0": rows[:, None].repeat(1, 3),
            "shN": rows[:, None, None].repeat(1, 3, 3),
        }
    ).to(torch.device(device))
    optimizers = build_optimizers(gaussians)
    take_step(gaussians, optimizers, rows.to(device))
    return gaussians, optimizers


def take_step(gaussians, optimizers, gradients):
    """A step of Adam by the same gradient in all components of a row, which hardly moves centres and scales."""
    config, stacked = OptimConfig(means_lr=(1e-6, 1e-6), scale_lr=(1e-6, 1e-6)), stack([gaussians])
    for parameter in stacked.params.values():
        shape = (1, len(gradients), *[1] * (parameter.dim() - 2))
        parameter.grad = gradients.reshape(shape).expand_as(parameter).contiguous()
    adam_step([gaussians], [optimizers], stacked, config, learning_rates(config, 1))


def controlled(device):
    gaussians, optimizers = tagged(device)
    stats = DensityStats(torch.tensor([0.5, 2.0, 3.0, 9.0, 0.1], device=device), torch.ones(5, device=device))
    control_density(gaussians, optimizers, stats, 10, CONFIG, torch.Generator().manual_seed(0))
    return gaussians, optimizers


def test_densify_matches_the_cpu():
    (here, here_optimizers), (there, there_optimizers) = controlled("cpu"), controlled("cuda")
    assert len(there) == len(here) == 5
    for name, expected in here.params.items():
        if name != "means":  # the two devices draw different random numbers
            torch.testing.assert_close(there.params[name].cpu(), expected)
        for moment in ("exp_avg", "exp_avg_sq"):
            wanted = here_optimizers[name].state[expected][moment]
            torch.testing.assert_close(there_optimizers[name].state[there.params[name]][moment].cpu(), wanted)
    torch.testing.assert_close(there.opacities.cpu(), torch.full((5,), 0.2))


def test_densify_splits_depend_on_the_generator_alone():
    before = torch.cuda.get_rng_state()
    first = controlled("cuda")[0].means
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.cuda.manual_seed(99)
    assert torch.equal(controlled("cuda")[0].means, first)


def test_densify_keeps_optimizers_working():
    gaussians, optimizers = controlled("cuda")
    before = {name: value.detach().clone() for name, value in gaussians.params.items()}
    take_step(gaussians, optimizers, torch.ones(len(gaussians), device="cuda"))
    for name, value in gaussians.params.items():
        assert (value != before[name]).all(), name
