"""Noise that is drawn ahead of its time is the noise that would have been drawn in its time."""

from typing import Any

import pytest
import torch

from segdream_cli.asset import AssetState, ScaleNoise, build_generators
from segdream_cli.config import OptimConfig
from segdream_cli.densify import DensityStats
from segdream_cli.gaussians import GROUPS, Gaussians, build_optimizers

CPU = torch.device("cpu")
WIDTHS = {"means": (3,), "quats": (4,), "log_scales": (3,), "opacity_logits": (), "sh0": (3,), "shN": (0, 3)}


def asset(count: int, seed: int) -> AssetState:
    gaussians = Gaussians({name: torch.zeros(count, *WIDTHS[name]) for name in GROUPS})
    embeddings: Any = None
    return AssetState(
        prompt="", seed=seed, embeddings=embeddings, gaussians=gaussians,
        optimizers=build_optimizers(gaussians, OptimConfig()), stats=DensityStats.empty(gaussians),
        noise=torch.zeros(1, 4, 2, 2), generators=build_generators(seed),
    )  # fmt: skip


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("change", [0, 7])
def test_the_numbers_are_those_of_the_assets_generators(ahead: bool, change: int) -> None:
    """Also where the number of Gaussians changes between drawing ahead and taking."""
    noise, counts, seeds = ScaleNoise(CPU, ahead=ahead), (40, 25), (3, 4)
    mine = [asset(*each) for each in zip(counts, seeds, strict=True)]
    expected = [build_generators(seed)["augment"] for seed in seeds]
    for _ in range(3):
        noise.prepare(mine, torch.Size((2, 40, 3)))
        if change:
            mine[1] = asset(25 + change, 4)
            mine[1].generators["augment"].set_state(expected[1].get_state())
        found = noise.take(mine, torch.Size((2, 40, 3)))
        for row, each, generator, own in zip(found, mine, expected, mine, strict=True):
            n = len(each.gaussians)
            assert torch.equal(row[:n], torch.randn(n, 3, generator=generator))
            assert not row[n:].any()
            assert torch.equal(own.generators["augment"].get_state(), generator.get_state())


def test_drawing_ahead_leaves_the_generators_where_they_are() -> None:
    """A checkpoint between the two holds them."""
    noise, (one,) = ScaleNoise(CPU, ahead=True), [asset(33, 1)]
    before = one.draws()
    noise.prepare([one], torch.Size((1, 33, 3)))
    assert all(torch.equal(state, before[purpose]) for purpose, state in one.draws().items())


def test_a_step_taken_back_draws_its_numbers_again() -> None:
    noise, (one,), shape = ScaleNoise(CPU, ahead=True), [asset(33, 1)], torch.Size((1, 33, 3))
    before = one.draws()
    first = noise.take([one], shape).clone()
    noise.prepare([one], shape)
    one.rewind(before)
    assert torch.equal(noise.take([one], shape), first)
    assert not torch.equal(noise.take([one], shape), first)
