"""Gaussians: activations, spherical harmonics, learning rates, clipping, files and bounds."""

import math

import numpy as np
import pytest
import torch
from scipy.special import lpmv

from segdream_cli.config import OptimConfig
from segdream_cli.optimize.adam import adam_step, build_optimizers, clip_gradients, clip_limit, learning_rates
from segdream_cli.splats import GROUPS, Splats
from segdream_cli.splats.gaussians import Gaussians, bounds, stack
from segdream_cli.splats.sh import sh_basis


def random_gaussians(n=7, k=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    widths = {"means": (3,), "quats": (4,), "log_scales": (3,), "opacity_logits": (), "sh0": (3,), "shN": (k, 3)}
    return Gaussians({name: torch.randn(n, *width, generator=generator) for name, width in widths.items()})


def directions(n, seed=0):
    vectors = torch.randn(1, n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=-1)


def basis_of(vectors, k):
    return torch.stack(sh_basis(vectors.unbind(-1), k), -1)


def test_gaussians_activations():
    gaussians = random_gaussians()
    for row in range(len(gaussians)):
        for axis in range(3):
            assert float(gaussians.scales[row, axis].detach()) == pytest.approx(
                math.exp(float(gaussians.params["log_scales"][row, axis].detach()))
            )
        logit = float(gaussians.params["opacity_logits"][row].detach())
        assert float(gaussians.opacities[row].detach()) == pytest.approx(1 / (1 + math.exp(-logit)))


def test_gaussians_copies_to_float32_leaves():
    source = {name: value.detach().double() for name, value in random_gaussians().params.items()}
    gaussians = Gaussians(source)
    for name, parameter in gaussians.params.items():
        assert parameter.is_leaf
        assert parameter.requires_grad
        assert parameter.dtype == torch.float32
        assert parameter.shape == source[name].shape


def test_colors_are_clamped_below_only():
    gaussians = random_gaussians(3, k=0)
    with torch.no_grad():
        gaussians.params["sh0"].copy_(torch.tensor([-9.0, 0.0, 9.0])[:, None].expand(3, 3))
    colors = gaussians.colors(torch.zeros(2, 3)).detach()
    expected = torch.tensor([0.0, 0.5, 0.5 + 9 * 0.28209479177387814])
    torch.testing.assert_close(colors, expected[:, None].expand(3, 3))


def test_colors_match_a_loop_over_views():
    gaussians = random_gaussians(4, k=8)
    cameras = torch.tensor([[0.0, 0.0, 5.0], [3.0, 1.0, -2.0]])
    colors = gaussians.colors(cameras).detach()
    assert colors.shape == (2, 4, 3)
    for camera in range(2):
        for row in range(4):
            line = gaussians.means[row].detach() - cameras[camera]
            basis = [
                reference(degree, m, line.double()[None])[0] for degree in (1, 2) for m in range(-degree, degree + 1)
            ]
            value = 0.5 + 0.28209479177387814 * gaussians.params["sh0"][row].detach()
            for j in range(8):
                value = value + float(basis[j]) * gaussians.params["shN"][row, j].detach()
            torch.testing.assert_close(colors[camera, row], value.clamp_min(0), rtol=1e-4, atol=1e-5)


def reference(degree, m, vectors):
    """A real spherical harmonic from scipy's associated Legendre functions.

    scipy's P_l^m has the Condon-Shortley phase; the real functions of INRIA's code keep it for both signs of m.
    """
    x, y, z = (vectors / vectors.norm(dim=-1, keepdim=True)).unbind(-1)
    phi, order = torch.atan2(y, x), abs(m)
    norm = math.sqrt((2 * degree + 1) / (4 * math.pi) * math.factorial(degree - order) / math.factorial(degree + order))
    legendre = norm * torch.from_numpy(lpmv(order, degree, z.numpy()))
    if m == 0:
        return legendre
    return math.sqrt(2) * legendre * (torch.cos(m * phi) if m > 0 else torch.sin(-m * phi))


@pytest.mark.parametrize("k", [3, 8, 15])
def test_sh_basis_against_legendre_functions(k):
    vectors = directions(50)
    expected = [reference(degree, m, vectors[0]) for degree in (1, 2, 3) for m in range(-degree, degree + 1)]
    torch.testing.assert_close(basis_of(vectors, k)[0], torch.stack(expected[:k], -1))


def test_sh_basis_has_the_signs_of_the_field():
    """INRIA's code: -C1 y, C1 z, -C1 x first, and its table of constants for the degrees 2 and 3."""
    vectors = directions(20, seed=1)
    x, y, z = vectors[0].unbind(-1)
    c1 = 0.4886025119029199
    c2 = [1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792, 0.5462742152960396]
    c3 = [-0.5900435899266435, 2.890611442640554, -0.4570457994644658, 0.3731763325901154, -0.4570457994644658]
    c3 += [1.445305721320277, -0.5900435899266435]
    xx, yy, zz = x * x, y * y, z * z
    expected = [-c1 * y, c1 * z, -c1 * x]
    expected += [c2[0] * x * y, c2[1] * y * z, c2[2] * (2 * zz - xx - yy), c2[3] * x * z, c2[4] * (xx - yy)]
    expected += [c3[0] * y * (3 * xx - yy), c3[1] * x * y * z, c3[2] * y * (4 * zz - xx - yy)]
    expected += [c3[3] * z * (2 * zz - 3 * xx - 3 * yy), c3[4] * x * (4 * zz - xx - yy), c3[5] * z * (xx - yy)]
    expected += [c3[6] * x * (xx - 3 * yy)]
    torch.testing.assert_close(basis_of(vectors, 15)[0], torch.stack(expected, -1))


@pytest.mark.parametrize("k", [3, 8, 15])
def test_sh_basis_of_numpy_arrays_is_that_of_tensors(k):
    vectors = directions(30, seed=2)
    found = sh_basis(vectors[0].numpy().T, k)
    assert all(isinstance(values, np.ndarray) for values in found)
    np.testing.assert_array_equal(np.stack(found, -1), basis_of(vectors, k)[0].numpy())


def test_sh_basis_is_orthonormal():
    """Gauss-Legendre nodes in z and equal steps in azimuth integrate products up to degree 6 exactly."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(8))
    phi = torch.arange(16, dtype=torch.float64) * 2 * math.pi / 16
    z, ring = nodes[:, None].expand(8, 16), (1 - nodes**2).sqrt()[:, None]
    vectors = torch.stack([ring * phi.cos(), ring * phi.sin(), z], -1).reshape(1, -1, 3)
    basis = basis_of(vectors, 15)[0]
    measure = (weights[:, None] * 2 * math.pi / 16).expand(8, 16).reshape(-1, 1)
    torch.testing.assert_close(basis.T @ (measure * basis), torch.eye(15, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close((measure * basis).sum(0), torch.zeros(15, dtype=torch.float64), rtol=0, atol=1e-12)


RATES = {"means": (4.0, 1.0), "quats": (1e-3, 1e-5), "log_scales": (0.02, 0.08), "opacity_logits": (0.5, 0.5)} | {
    "sh0": (9.0, 3.0),
    "shN": (0.1, 0.01),
}
CONFIG = OptimConfig(
    steps=100,
    means_lr=RATES["means"],
    quat_lr=RATES["quats"],
    scale_lr=RATES["log_scales"],
    opacity_lr=RATES["opacity_logits"],
    sh0_lr=RATES["sh0"],
    shN_lr=RATES["shN"],
    betas=(0.8, 0.95),
    eps=1e-9,
    clip=(2.0, 8.0),
    clip_steps=10,
)


@pytest.mark.parametrize("step", [0, 25, 50, 100, 130])
def test_learning_rates_are_log_linear_between_start_and_end(step):
    rates = learning_rates(CONFIG, step)
    assert tuple(rates) == GROUPS
    for name, (start, end) in RATES.items():
        share = min(step, 100) / 100
        expected = math.exp((1 - share) * math.log(start) + share * math.log(end))
        assert rates[name] == pytest.approx(expected), name


def test_moments_are_those_of_a_new_adam():
    gaussians = random_gaussians()
    optimizers = build_optimizers(gaussians)
    assert tuple(optimizers) == GROUPS
    for name, moments in optimizers.items():
        parameter = gaussians.params[name]
        assert moments.param_groups == [{"params": [parameter]}]
        assert list(moments.state) == [parameter]
        state = moments.state[parameter]
        assert (float(state["step"]), state["step"].dim()) == (0, 0)
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[key], torch.zeros(parameter.shape))
            assert not state[key].requires_grad


def with_gradients(sets, seed):
    """The stack of sets, with a random gradient where a Gaussian is one, and the gradient of each set."""
    generator = torch.Generator().manual_seed(seed)
    stacked = stack(sets)
    own = [{name: torch.randn(value.shape, generator=generator) for name, value in one.params.items()} for one in sets]
    for name, parameter in stacked.params.items():
        parameter.grad = torch.zeros_like(parameter)
        for row, gradients in zip(parameter.grad, own, strict=True):
            row[: len(gradients[name])] = gradients[name]
    return stacked, own


@pytest.mark.parametrize("sizes", [(40,), (50, 50), (40, 33, 57), (3, 5)])
def test_stack_pads_shorter_sets(sizes):
    sets = [random_gaussians(n, seed=n) for n in sizes]
    stacked = stack(sets)
    longest = stacked.means.shape[1]
    assert longest == max(sizes) if len(sizes) == 1 else max(32, *sizes)
    for place, (n, one) in enumerate(zip(sizes, sets, strict=True)):
        for name in GROUPS:
            assert torch.equal(stacked.params[name][place, :n], one.params[name])
        assert not stacked.scales[place, n:].any()
        assert not stacked.opacities[place, n:].any()
        colors = one.colors(torch.ones(2, 3))
        positions = torch.ones(len(sizes), 2, 3)
        torch.testing.assert_close(stacked.colors(positions)[place, :, :n], colors, rtol=1e-5, atol=1e-6)
    (stacked.scales.sum() + stacked.opacities.sum() + stacked.colors(positions).square().sum()).backward()
    assert all(parameter.grad is None for one in sets for parameter in one.params.values())
    for place, n in enumerate(sizes):
        for name in ("log_scales", "opacity_logits"):
            assert not stacked.params[name].grad[place, n:].any()
            assert stacked.params[name].grad[place, :n].all()


@pytest.mark.parametrize(("step", "limit"), [(0, 2.0), (5, 5.0), (10, 8.0), (99, 8.0)])
def test_clip_gradients_per_group_and_set(step, limit):
    norms = [
        {"means": 100.0, "quats": 0.5, "log_scales": 7.9, "opacity_logits": 8.1, "sh0": 3.0, "shN": 0.0},
        {"means": 1.0, "quats": 9.0, "log_scales": 2.5, "opacity_logits": 0.1, "sh0": 0.0, "shN": 50.0},
    ]
    stacked, own = with_gradients([random_gaussians(7), random_gaussians(40)], 1)
    for place, wanted in enumerate(norms):
        for name, norm in wanted.items():
            stacked.params[name].grad[place] *= norm / own[place][name].norm()
            own[place][name] *= norm / own[place][name].norm()
    total = clip_gradients(stacked, clip_limit(CONFIG, step))
    for place, wanted in enumerate(norms):
        assert float(total[place]) == pytest.approx(math.sqrt(sum(norm**2 for norm in wanted.values())))
        for name, norm in wanted.items():
            expected = own[place][name] * (min(norm, limit) / norm if norm else 1)
            found = stacked.params[name].grad[place]
            torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-4, atol=1e-6)
            assert not found[len(expected) :].any()


def test_clip_gradients_adds_missing_gradients():
    stacked = stack([random_gaussians()])
    stacked.params["sh0"].grad = torch.full_like(stacked.params["sh0"], 0.1)
    assert clip_gradients(stacked, clip_limit(CONFIG, 1)).tolist() == pytest.approx([0.1 * math.sqrt(21)])
    assert not stacked.params["means"].grad.any()


def test_adam_step_matches_torch():
    """Against torch's own optimisers, over several steps and sizes; without harmonics there is no shN."""
    sets, alone = ([random_gaussians(n, k=0, seed=n) for n in (5, 40, 33)] for _ in range(2))
    optimizers = [build_optimizers(one) for one in sets]
    theirs = [
        {name: torch.optim.Adam([parameter], betas=(0.8, 0.95), eps=1e-9) for name, parameter in one.params.items()}
        for one in alone
    ]
    for step in (1, 2, 3):
        stacked, own = with_gradients(sets, step)
        adam_step(sets, optimizers, stacked, CONFIG, learning_rates(CONFIG, step))
        for one, each, gradients in zip(alone, theirs, own, strict=True):
            for name, optimizer in each.items():
                optimizer.param_groups[0]["lr"] = learning_rates(CONFIG, step)[name]
                one.params[name].grad = gradients[name]
                optimizer.step()
    for one, expected, own_state, their_state in zip(sets, alone, optimizers, theirs, strict=True):
        for name, parameter in one.params.items():
            torch.testing.assert_close(parameter, expected.params[name])
            if name != "shN":
                found, wanted = own_state[name].state[parameter], their_state[name].state[expected.params[name]]
                assert float(found["step"]) == float(wanted["step"]) == 3
                torch.testing.assert_close(found["exp_avg_sq"], wanted["exp_avg_sq"])


def test_adam_step_skips_unusable_gradients():
    sets = [random_gaussians(n, k=0, seed=n) for n in (5, 40)]
    optimizers = [build_optimizers(one) for one in sets]
    stacked, _ = with_gradients(sets, 1)
    adam_step(sets, optimizers, stacked, CONFIG, learning_rates(CONFIG, 1))

    def values():
        for one, own in zip(sets, optimizers, strict=True):
            for name, parameter in one.params.items():
                yield from (parameter, *(own[name].state[parameter][key] for key in ("step", "exp_avg", "exp_avg_sq")))

    before = [value.detach().clone() for value in values()]
    stacked, _ = with_gradients(sets, 2)
    stacked.params["means"].grad[0, 0] = torch.nan
    adam_step(sets, optimizers, stacked, CONFIG, learning_rates(CONFIG, 2), usable=torch.tensor(False))
    assert all(map(torch.equal, values(), before))
    stacked, _ = with_gradients(sets, 2)
    adam_step(sets, optimizers, stacked, CONFIG, learning_rates(CONFIG, 2), usable=torch.tensor(True))
    assert not torch.equal(next(values()), before[0])


@pytest.mark.parametrize("k", [0, 3, 15])
def test_gaussians_splats_round_trip(k):
    gaussians = random_gaussians(k=k)
    splats = gaussians.splats({"prompt": "a cube"})
    assert isinstance(splats, Splats)
    assert splats.provenance == {"prompt": "a cube"}
    again = Gaussians.from_splats(splats)
    for name in GROUPS:
        assert torch.equal(again.params[name], gaussians.params[name])


def test_gaussians_to_copies():
    gaussians = random_gaussians()
    copy = gaussians.to(torch.device("cpu"))
    copy.means.sum().backward()
    assert gaussians.means.grad is None
    assert torch.equal(copy.means, gaussians.means)


def cloud(means, scale=0.01, logit=3.0):
    n = len(means)
    return Gaussians(
        {
            "means": means,
            "quats": torch.tensor([1.0, 0, 0, 0]).repeat(n, 1),
            "log_scales": torch.full((n, 3), math.log(scale)),
            "opacity_logits": torch.full((n,), logit),
            "sh0": torch.zeros(n, 3),
            "shN": torch.zeros(n, 0, 3),
        }
    )


def test_bounds_ignore_strays():
    generator = torch.Generator().manual_seed(0)
    shell = torch.nn.functional.normalize(torch.randn(4000, 3, generator=generator), dim=-1)
    middle = torch.tensor([1.0, -2.0, 0.5])
    means = torch.cat([middle + 0.7 * shell, torch.full((15, 3), 50.0)])
    center, radius = bounds(cloud(means))
    torch.testing.assert_close(center, middle, rtol=0, atol=0.02)
    assert radius == pytest.approx(0.7 + 2 * 0.01, abs=0.03)


def test_bounds_ignore_invisible_gaussians():
    ball = cloud(0.5 * torch.nn.functional.normalize(directions(500)[0].float(), dim=-1))
    fog = cloud(directions(500)[0].float() * 9, logit=-6.0)
    both = Gaussians({name: torch.cat([ball.params[name], fog.params[name]]) for name in GROUPS})
    assert bounds(both)[1] == pytest.approx(bounds(ball)[1])
    assert bounds(fog)[1] > 5


def test_bounds_of_one_point():
    center, radius = bounds(cloud(torch.tensor([[1.0, 2.0, 3.0]]), scale=1e-7))
    torch.testing.assert_close(center, torch.tensor([1.0, 2.0, 3.0]))
    assert radius == pytest.approx(1e-3)
