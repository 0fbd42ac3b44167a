"""FID and KID against torchmetrics on random features, and the kernel distance against its definition."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from segdream_cli.errors import UsageProblem
from segdream_cli.evaluate import distances
from segdream_cli.evaluate.distances import DistanceMetric, find_references, kid
from segdream_cli.evaluate.measures import frechet
from segdream_cli.evaluate.metrics import Setup
from segdream_cli.evaluate.references import write_references


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


def test_distance_metric_compares_all_views_with_the_references(
    tmp_path: Path, pixels: tuple[torch.Tensor, torch.Tensor]
) -> None:
    views, kept = pixels[0][:30], pixels[1][:40]
    images = kept.permute(0, 2, 3, 1).numpy()
    write_references(tmp_path / "kept", (("a", 0.0, image) for image in images), {})
    said: list[str] = []
    setup = Setup(device=torch.device("cpu"), reference=tmp_path / "kept", announce=said.append)
    metric = DistanceMetric(Features(), find_references("fid", setup))
    parts = [metric.observe(None, Shown(part)) for part in views.split(8)]  # type: ignore[arg-type]
    found = metric.summarize(parts)
    assert found == {
        "frechet": frechet(features(views), features(kept)),
        "kid": kid(features(views), features(kept)),
        "images": 30,
        "references": 40,
    }
    assert found["kid"] > 0.5
    assert found.keys() == metric.set_figures.keys()
    assert math.isnan(metric.summarize([parts[0][:1]])["frechet"])
    assert "40 images" in said[0]
    with pytest.raises(UsageProblem, match="fid compares with reference images") as problem:
        find_references("fid", Setup(device=torch.device("cpu")))
    assert "--make-references" in str(problem.value.hint)


@dataclass
class Shown:
    """The images of `Views`."""

    images: torch.Tensor
