"""FID and KID against torchmetrics on random features, and the kernel distance against its definition."""

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from segdream_cli.evaluate import distances
from segdream_cli.evaluate.distances import kid
from segdream_cli.evaluate.measures import frechet


class Features(nn.Module):
    """Stands for Inception in torchmetrics: the features are in the pixels."""

    num_features = 12

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, : self.num_features].double() / 64


@pytest.fixture
def pixels() -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of 150 images of 2x2 pixels; the second is darker, and its channels go together."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 256, (150, 3, 2, 2), generator=generator)
    second = torch.randint(0, 128, (150, 3, 2, 2), generator=generator)
    second[:, 1] = second[:, 0] // 2 + 30
    return first.byte(), second.byte()


def features(images: torch.Tensor) -> np.ndarray:
    return Features()(images).numpy()


def test_frechet_equals_torchmetrics(pixels: tuple[torch.Tensor, torch.Tensor]) -> None:
    metric = FrechetInceptionDistance(feature=Features())
    metric.set_dtype(torch.float64)
    metric.update(pixels[0], real=True)
    metric.update(pixels[1], real=False)
    own = frechet(features(pixels[0]), features(pixels[1]))
    assert own > 5
    assert own == pytest.approx(float(metric.compute()), rel=1e-6)


def test_kid_equals_torchmetrics(pixels: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.warns(UserWarning, match="Kernel Inception Distance"):  # of the memory that it keeps
        metric = KernelInceptionDistance(feature=Features(), subsets=1, subset_size=len(pixels[0]))
    metric.update(pixels[0], real=True)
    metric.update(pixels[1], real=False)
    own = kid(features(pixels[0]), features(pixels[1]))
    assert own > 0.5
    assert own == pytest.approx(float(metric.compute()[0]), rel=1e-6)


def test_kid_equals_its_definition_for_sets_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "ROWS", 3)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 5)), rng.normal(0.5, size=(4, 5))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / 5 + 1) ** 3

    expected = sum(kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (7 * 6)
    expected += sum(kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / (4 * 3)
    expected -= 2 * sum(kernel(a, b) for a in x for b in y) / (7 * 4)
    assert kid(x, y) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="two rows"):
        kid(x[:1], y)
