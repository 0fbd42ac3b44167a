"""Disparity and the regularizers against loops in numpy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from segdream_cli.optimize.losses import disparity, outside, total_variation


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference_disparity(depth: np.ndarray, alpha: np.ndarray, focal: np.ndarray) -> np.ndarray:
    """Release ceb78a6, gaussian_renderer/__init__.py lines 153-161, one view at a time."""
    views = []
    for d, a, f in zip(depth, alpha, focal, strict=True):
        transmittance = 1 - a
        values = f / (d + 10 * transmittance + 1e-5)
        covered = values[transmittance <= 0.1]
        low = covered.min() if covered.size else values.min()
        views.append(np.clip((values - low) / max(values.max() - low, 1e-5), 0, 1))
    return np.stack(views)


def scene() -> tuple[Tensor, Tensor, Tensor]:
    """Four views: partly covered, nothing covered, all covered, and one covered pixel."""
    alpha = draw(4, 5, 6, 1)
    alpha[0, :, :3] = 1 - 0.09 * alpha[0, :, :3]
    alpha[1] *= 0.8
    alpha[2] = 1 - 0.05 * alpha[2]
    alpha[3] *= 0.8
    alpha[3, 2, 2] = 1.0
    return alpha * (3 + draw(4, 5, 6, 1, seed=1)), alpha, torch.tensor([0.9, 1.6, 2.0, 3.0], dtype=torch.float64)


def test_disparity_equals_the_loop_over_views() -> None:
    depth, alpha, focal = scene()
    ours = disparity(depth, alpha, focal)
    theirs = reference_disparity(depth.numpy(), alpha.numpy(), focal.numpy())
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-10, atol=1e-12)
    assert ours.amax((1, 2, 3)).tolist() == pytest.approx([1, 1, 1, 0])  # one covered pixel is as near as it is far
    assert ours.min() == 0


def test_disparity_increases_towards_the_camera() -> None:
    depth = torch.full((1, 2, 2, 1), 4.0)
    depth[0, 0, 0], depth[0, 1, 1] = 3.0, 3.5
    values = disparity(depth, torch.ones(1, 2, 2, 1), torch.tensor([1.5]))[0, ..., 0]
    assert values[0, 0] == 1
    assert values[0, 1] == values[1, 0] == 0
    assert 0 < values[1, 1] < 1


def test_disparity_of_an_empty_image_is_finite() -> None:
    values = disparity(torch.zeros(2, 3, 3, 1), torch.zeros(2, 3, 3, 1), torch.tensor([1.0, 2.0]))
    assert torch.equal(values, torch.zeros_like(values))


def test_disparity_gradient_equals_finite_differences() -> None:
    depth, alpha, focal = (part[:1].clone().requires_grad_() for part in scene())
    assert torch.autograd.gradcheck(disparity, (depth, alpha, focal), eps=1e-7, atol=1e-5)


def test_disparity_gradient_of_an_empty_image_is_finite() -> None:
    depth, alpha = (torch.zeros(1, 3, 3, 1, requires_grad=True) for _ in range(2))
    disparity(depth, alpha, torch.tensor([1.0])).sum().backward()
    assert depth.grad is not None
    assert alpha.grad is not None
    assert torch.cat([depth.grad, alpha.grad]).isfinite().all()


def test_total_variation_equals_the_loop_over_pixels() -> None:
    images = draw(2, 4, 5, 3)
    values = images.numpy()
    down = [(values[v, y + 1, x] - values[v, y, x]) ** 2 for v in range(2) for y in range(3) for x in range(5)]
    across = [(values[v, y, x + 1] - values[v, y, x]) ** 2 for v in range(2) for y in range(4) for x in range(4)]
    assert float(total_variation(images)) == pytest.approx(2 * (np.mean(down) + np.mean(across)), rel=1e-12)


def test_total_variation_of_known_images() -> None:
    assert float(total_variation(torch.ones(1, 4, 4, 3))) == 0
    ramp = torch.arange(4.0).expand(1, 4, 4)[..., None]
    assert float(total_variation(ramp)) == 2
    assert float(total_variation(ramp.transpose(1, 2))) == 2


def test_outside_is_zero_within_the_unit_sphere() -> None:
    means = torch.tensor([[0.0, 0, 0], [0.6, 0.6, 0.5], [3, 4, 0], [0, 0, -0.9]])
    assert outside(means).tolist() == pytest.approx([0, 0, 4, 0])
    moved = means.clone().requires_grad_()
    outside(moved).mean().backward()
    assert moved.grad is not None
    assert moved.grad.isfinite().all()
    assert moved.grad.norm(dim=1).tolist() == pytest.approx([0, 0, 1 / 4, 0], abs=1e-6)
    assert not math.isnan(float(outside(torch.zeros(1, 3))))
