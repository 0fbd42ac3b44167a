"""Density control against written-out expectations: every row is tagged, so that a row that goes astray is seen."""

import dataclasses

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segdream_cli.config import DensifyConfig, OptimConfig
from segdream_cli.optimize.adam import adam_step, build_optimizers, learning_rates
from segdream_cli.optimize.density import DensityStats, accumulate, control_density, is_due
from segdream_cli.splats import GROUPS
from segdream_cli.splats.gaussians import Gaussians, stack

WIDTHS = {"means": (3,), "quats": (4,), "log_scales": (3,), "opacity_logits": (), "sh0": (3,), "shN": (3, 3)}
MOMENTS = ("exp_avg", "exp_avg_sq")
EVERY_TEN = DensifyConfig(
    start=0, every=10, stop=1000, grad_threshold=1.0, clone_scale=0.05, prune_scale_after=0, prune_scale=1.0,
    reset_every=0,
)  # fmt: skip


def scene(scales, opacities, device="cpu"):
    """Gaussians of which row i holds i wherever nothing else is said, with Adam moments that hold i + 1."""
    n = len(scales)
    rows = torch.arange(n, dtype=torch.float32)
    tensors = {name: rows.reshape(n, *[1] * len(width)).repeat(1, *width) for name, width in WIDTHS.items()}
    tensors["quats"] = torch.tensor([1.0, 0, 0, 0]).repeat(n, 1)
    tensors["log_scales"] = torch.tensor(scales)[:, None].repeat(1, 3).log()
    tensors["opacity_logits"] = torch.tensor(opacities).logit()
    gaussians = Gaussians(tensors).to(torch.device(device))
    optimizers = build_optimizers(gaussians)
    for name, parameter in gaussians.params.items():
        tag = (rows + 1).reshape(n, *[1] * len(WIDTHS[name])).repeat(1, *WIDTHS[name]).to(device)
        steps = torch.tensor(7.0, device=device if parameter.is_cuda else "cpu")
        optimizers[name].state[parameter] = {"step": steps, "exp_avg": tag, "exp_avg_sq": 10 * tag}
    return gaussians, optimizers


def stats_of(gradients, device="cpu"):
    """Statistics of one view with these mean gradients."""
    return DensityStats(torch.tensor(gradients, device=device), torch.ones(len(gradients), device=device))


def control(gaussians, optimizers, stats, config=EVERY_TEN, step=10, seed=0):
    return control_density(gaussians, optimizers, stats, step, config, torch.Generator().manual_seed(seed))


def take_step(gaussians, optimizers):
    """A step of Adam by gradients of 1."""
    stacked = stack([gaussians])
    sum(value.sum() for value in stacked.params.values()).backward()
    adam_step([gaussians], [optimizers], stacked, OptimConfig(), learning_rates(OptimConfig(), 1))


def check_aligned(gaussians, optimizers, parents, fresh):
    """Each row must carry its parent's values, and its parent's moments unless it is new."""
    n = len(gaussians)
    assert n == len(parents)
    new = torch.zeros(n, dtype=torch.bool)
    new[list(fresh)] = True
    for name, parameter in gaussians.params.items():
        assert parameter.requires_grad
        assert parameter.is_leaf
        assert optimizers[name].param_groups[0]["params"] == [parameter]
        assert list(optimizers[name].state) == [parameter]
        state = optimizers[name].state[parameter]
        assert float(state["step"]) == 7
        for moment, factor in zip(MOMENTS, (1, 10), strict=True):
            rows = state[moment].reshape(n, -1).cpu()
            expected = torch.where(new, 0.0, factor * (torch.tensor(parents) + 1.0))
            torch.testing.assert_close(rows, expected[:, None].expand_as(rows))
    torch.testing.assert_close(gaussians.params["sh0"][:, 0].cpu(), torch.tensor(parents, dtype=torch.float32))
    torch.testing.assert_close(gaussians.params["shN"][:, 2, 1].cpu(), torch.tensor(parents, dtype=torch.float32))


def test_control_density_keeps_parameters_and_moments_aligned():
    """Row 0 stays, 1 is cloned, 2 is split, 3 is too faint, for all its pull, and 4 too large."""
    gaussians, optimizers = scene([0.01, 0.02, 0.2, 0.02, 1.5], [0.5, 0.6, 0.7, 0.001, 0.8])
    stats = control(gaussians, optimizers, stats_of([0.5, 2.0, 3.0, 9.0, 0.1]))
    # what stays, then clones, then the two halves of each split
    check_aligned(gaussians, optimizers, parents=[0, 1, 1, 2, 2], fresh=[2, 3, 4])
    torch.testing.assert_close(gaussians.opacities, torch.tensor([0.5, 0.6, 0.6, 0.7, 0.7]))
    torch.testing.assert_close(gaussians.scales[:, 0], torch.tensor([0.01, 0.02, 0.02, 0.2 / 1.6, 0.2 / 1.6]))
    torch.testing.assert_close(gaussians.means[2], gaussians.means[1])
    assert len(stats.grad_sum) == len(stats.count) == len(gaussians)
    assert not stats.grad_sum.any()
    assert not stats.count.any()


def test_control_density_leaves_working_optimizers():
    gaussians, optimizers = scene([0.01, 0.2, 0.02], [0.5, 0.6, 0.001])
    control(gaussians, optimizers, stats_of([2.0, 2.0, 0.0]))
    before = {name: value.detach().clone() for name, value in gaussians.params.items()}
    take_step(gaussians, optimizers)
    for name, value in gaussians.params.items():
        assert (value != before[name]).all(), name


def test_control_density_gives_new_gaussians_steps():
    gaussians, _ = scene([0.01, 0.2], [0.5, 0.5])
    optimizers = build_optimizers(gaussians)
    control(gaussians, optimizers, stats_of([2.0, 2.0]))
    take_step(gaussians, optimizers)
    for name, optimizer in optimizers.items():
        assert optimizer.state[gaussians.params[name]]["exp_avg"].shape == gaussians.params[name].shape


@pytest.mark.parametrize(
    ("step", "fires"), [(29, False), (30, True), (31, False), (60, True), (90, False), (120, False)]
)
def test_reset_happens_on_schedule_and_zeroes_the_moments(step, fires):
    """90 is `stop`: nothing happens from there on."""
    config = DensifyConfig(start=1000, every=7, stop=90, reset_every=30, reset_opacity=0.2)
    gaussians, optimizers = scene([0.01, 0.01, 0.01], [0.9, 0.1, 0.3])
    untouched = {name: optimizers[name].state[gaussians.params[name]]["exp_avg"].clone() for name in GROUPS}
    control(gaussians, optimizers, stats_of([9.0, 9.0, 9.0]), config, step)
    assert is_due(step, config) is fires
    expected = [0.2, 0.1, 0.2] if fires else [0.9, 0.1, 0.3]
    torch.testing.assert_close(gaussians.opacities, torch.tensor(expected))
    assert gaussians.opacities.requires_grad
    for name, parameter in gaussians.params.items():
        state = optimizers[name].state[parameter]
        zeroed = fires and name == "opacity_logits"
        for moment, factor in zip(MOMENTS, (1, 10), strict=True):
            torch.testing.assert_close(state[moment], 0 * untouched[name] if zeroed else factor * untouched[name])


def test_reset_needs_a_period():
    config = DensifyConfig(start=0, every=1000, reset_every=0)
    gaussians, optimizers = scene([0.01], [0.9])
    for step in range(1, 700):
        control(gaussians, optimizers, stats_of([0.0]), config, step)
    torch.testing.assert_close(gaussians.opacities, torch.tensor([0.9]))


@pytest.mark.parametrize(
    ("step", "grows"), [(20, False), (21, False), (30, True), (35, False), (40, True), (50, False)]
)
def test_densification_happens_on_schedule(step, grows):
    config = dataclasses.replace(EVERY_TEN, start=20, stop=50)
    gaussians, optimizers = scene([0.01, 0.01], [0.5, 0.5])
    stats = stats_of([2.0, 2.0])
    result = control(gaussians, optimizers, stats, config, step)
    assert is_due(step, config) is grows
    assert len(gaussians) == (4 if grows else 2)
    assert (result is stats) is not grows


def test_pruning_by_scale_starts_on_schedule():
    config = dataclasses.replace(EVERY_TEN, prune_scale_after=20)
    for step, left in ((20, 2), (30, 1)):
        gaussians, optimizers = scene([1.5, 0.01], [0.5, 0.5])
        control(gaussians, optimizers, stats_of([0.0, 0.0]), config, step)
        assert len(gaussians) == left


def test_pruning_keeps_the_last_gaussians():
    gaussians, optimizers = scene([0.01, 0.02], [0.001, 0.002])
    control(gaussians, optimizers, stats_of([9.0, 9.0]))
    check_aligned(gaussians, optimizers, parents=[0, 1], fresh=[])


gaussian_rows = st.lists(
    st.tuples(
        st.sampled_from([0.01, 0.04, 0.06, 0.5, 1.5, 2.0]),
        st.sampled_from([0.001, 0.004, 0.006, 0.5, 0.99]),
        st.floats(0, 4, width=32),
    ),
    min_size=1,
    max_size=12,
)


@given(rows=gaussian_rows, cap=st.integers(1, 24), threshold=st.floats(0, 3), prune=st.sampled_from([0.0, 0.005, 0.7]))
@settings(max_examples=150)
@example(rows=[(2.0, 0.5, 2.0), (0.01, 0.001, 0.0)], cap=2, threshold=1.0, prune=0.005)  # none would be left
def test_cap_is_never_exceeded(rows, cap, threshold, prune):
    """More Gaussians than the cap are there only if they were there from the start."""
    scales, opacities, gradients = map(list, zip(*rows, strict=True))
    config = dataclasses.replace(EVERY_TEN, cap=cap, grad_threshold=threshold, prune_opacity=prune)
    gaussians, optimizers = scene(scales, opacities)
    for step in (10, 20, 30):
        before = len(gaussians)
        stats = stats_of((gradients * 8)[:before])
        control(gaussians, optimizers, stats, config, step)
        assert 1 <= len(gaussians) <= max(cap, before)
        sizes = {len(value) for value in gaussians.params.values()}
        sizes |= {len(optimizers[name].state[value]["exp_avg"]) for name, value in gaussians.params.items()}
        assert sizes == {len(gaussians)}


def test_cap_prefers_the_strongest_gradients():
    gaussians, optimizers = scene([0.01] * 5, [0.5] * 5)
    control(gaussians, optimizers, stats_of([2.0, 5.0, 3.0, 0.5, 4.0]), dataclasses.replace(EVERY_TEN, cap=7))
    assert gaussians.params["sh0"][:, 0].tolist() == [0, 1, 2, 3, 4, 1, 4]


def test_cap_counts_pruned_gaussians_as_room():
    gaussians, optimizers = scene([0.01] * 4, [0.5, 0.5, 0.001, 0.001])
    control(gaussians, optimizers, stats_of([2.0, 3.0, 0.0, 0.0]), dataclasses.replace(EVERY_TEN, cap=4))
    assert gaussians.params["sh0"][:, 0].tolist() == [0, 1, 0, 1]


def test_densification_uses_the_mean_gradient_over_views():
    gaussians, optimizers = scene([0.01, 0.01], [0.5, 0.5])
    stats = DensityStats(torch.tensor([3.0, 3.0]), torch.tensor([2.0, 4.0]))  # means 1.5 and 0.75 around 1
    control(gaussians, optimizers, stats)
    assert gaussians.params["sh0"][:, 0].tolist() == [0, 1, 0]


def test_split_samples_children_from_their_parent():
    """Each child lies at the parent's centre plus R diag(s) n with n standard normal, and is 1.6 times smaller."""
    n = 4000
    gaussians, optimizers = scene([0.1] * n, [0.5] * n)
    axes = torch.tensor([0.3, 0.1, 0.5])
    half = torch.tensor(0.5).sqrt()
    with torch.no_grad():
        gaussians.params["means"].copy_(torch.tensor([1.0, 2.0, 3.0]).expand(n, 3))
        gaussians.params["log_scales"].copy_(axes.log().expand(n, 3))
        gaussians.params["quats"].copy_(3 * torch.tensor([half, 0, 0, half]).expand(n, 4))  # a quarter turn about z
    control(gaussians, optimizers, stats_of([2.0] * n))
    assert len(gaussians) == 2 * n
    torch.testing.assert_close(gaussians.scales, (axes / 1.6).expand(2 * n, 3))
    offsets = gaussians.means.detach() - torch.tensor([1.0, 2.0, 3.0])
    spread = axes[[1, 0, 2]]  # x and y changed places
    torch.testing.assert_close(offsets.std(0), spread, rtol=0.05, atol=0)
    assert (offsets.mean(0).abs() < 4 * spread / (2 * n) ** 0.5).all()
    correlation = torch.corrcoef(offsets.T)
    assert (correlation - torch.eye(3)).abs().max() < 0.05
    assert not torch.equal(offsets[:n], offsets[n:])


def test_split_depends_on_the_generator_alone():
    def run(seed, noise):
        torch.manual_seed(noise)
        gaussians, optimizers = scene([0.2] * 3, [0.5] * 3)
        control(gaussians, optimizers, stats_of([2.0] * 3), seed=seed)
        return gaussians.means.detach()

    assert torch.equal(run(0, 1), run(0, 2))
    assert not torch.equal(run(0, 1), run(1, 1))


def test_split_restores_the_global_generator():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    gaussians, optimizers = scene([0.2] * 3, [0.5] * 3)
    control(gaussians, optimizers, stats_of([2.0] * 3))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("views", ["all", "last"])
def test_accumulate_equals_a_loop(views):
    generator = torch.Generator().manual_seed(0)
    gaussians, _ = scene([0.01] * 6, [0.5] * 6)
    stats = DensityStats.empty(gaussians)
    total, count, size = [0.0] * 6, [0] * 6, 48
    for _ in range(3):
        gradient = torch.randn(4, 6, 2, generator=generator)
        radii = torch.randint(0, 3, (4, 6), generator=generator)
        gradient[radii == 0] = torch.nan  # what was not drawn has no meaning
        accumulate([stats], gradient[None], radii[None] > 0, size, views)
        for view in range(4) if views == "all" else [3]:
            for i in range(6):
                if radii[view, i] > 0:
                    x, y = gradient[view, i].tolist()
                    total[i] += ((x * size / 2) ** 2 + (y * size / 2) ** 2) ** 0.5
                    count[i] += 1
    torch.testing.assert_close(stats.grad_sum, torch.tensor(total))
    assert stats.count.tolist() == count


def test_accumulate_serves_assets_of_different_sizes():
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(3, 2, 9, 2, generator=generator)
    radii = torch.randint(0, 2, (3, 2, 9), generator=generator)
    together, alone = ([DensityStats.empty(scene([0.01] * n, [0.5] * n)[0]) for n in (4, 9, 1)] for _ in range(2))
    accumulate(together, gradient, radii > 0, 32, "all")
    for place, (found, expected) in enumerate(zip(together, alone, strict=True)):
        n = len(expected.count)
        accumulate([expected], gradient[place : place + 1, :, :n], radii[place : place + 1, :, :n] > 0, 32, "all")
        torch.testing.assert_close(found.grad_sum, expected.grad_sum)
        assert torch.equal(found.count, expected.count)
        assert found.count.sum() == radii[place, :, :n].sum()
