"""Measures of images against closed forms and brute force, and scores of images whose verdict is known."""

import dataclasses
import math
from collections import deque

import numpy as np
import pytest
import torch
from scipy import linalg

from segdream_cli.evaluate.judge import Judge, Label, Verdict
from segdream_cli.evaluate.measures import (
    Scores,
    faint,
    floaters,
    frechet,
    score,
    sharpness,
    silhouette,
    silhouette_iou,
)

SIZE = 48
CLASSES = {
    "objects": ["duck", "cube"],
    "colors": ["red", "blue"],
    "attributes": ["", "striped"],
    "azimuths": [str(45 * k) for k in range(8)],
}


def disc(radius: float, center: tuple[float, float] = (24.0, 24.0), size: int = SIZE) -> np.ndarray:
    """1 within the radius in pixels of the center (y, x), else 0."""
    y, x = np.mgrid[:size, :size]
    return (np.hypot(y - center[0], x - center[1]) <= radius).astype(np.float32)


def paint(mask: np.ndarray, background: np.ndarray, color: tuple[float, float, float] = (0.1, 0.2, 0.9)) -> np.ndarray:
    """The color where the mask is 1, over a background [3 s s]."""
    return np.where(mask > 0, np.array(color, np.float32)[:, None, None], background).astype(np.float32)


def gradient_background(size: int = SIZE) -> np.ndarray:
    """A plane in x and y of its own slope in each channel."""
    y, x = np.mgrid[:size, :size] / (size - 1)
    return np.stack([0.6 + 0.3 * y, 0.9 - 0.2 * x, 0.7 + 0.1 * x + 0.1 * y]).astype(np.float32)


def largest_component(mask: np.ndarray, diagonal: bool) -> set[tuple[int, int]]:
    """The largest set of connected pixels, by a flood fill."""
    steps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0) and (diagonal or a * b == 0)]
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    best: set[tuple[int, int]] = set()
    while left:
        queue = deque([left.pop()])
        found = set(queue)
        while queue:
            y, x = queue.popleft()
            for a, b in steps:
                if (y + a, x + b) in left:
                    left.remove((y + a, x + b))
                    found.add((y + a, x + b))
                    queue.append((y + a, x + b))
        best = max(best, found, key=len)
    return best


def test_silhouette_iou_of_boxes_is_the_ratio_of_areas() -> None:
    one, other = np.zeros((2, 8, 8))
    one[1:5, 1:5] = 1  # 16 pixels
    other[3:7, 3:7] = 1  # 16 more, 4 of them shared
    assert silhouette_iou(one, other) == pytest.approx(4 / 28)
    assert silhouette_iou(one, one) == 1
    assert silhouette_iou(one, 1 - one) == 0


def test_silhouette_iou_of_soft_masks_by_a_loop() -> None:
    rng = np.random.default_rng(0)
    alpha, masks = rng.random((2, 3, 5, 5))
    expected = [
        sum(min(a, b) for a, b in zip(one.flat, other.flat, strict=True))
        / sum(max(a, b) for a, b in zip(one.flat, other.flat, strict=True))
        for one, other in zip(alpha, masks, strict=True)
    ]
    assert silhouette_iou(alpha, masks) == pytest.approx(expected)


def test_silhouette_iou_of_nothing_is_nan() -> None:
    assert math.isnan(silhouette_iou(np.zeros((4, 4)), np.zeros((4, 4))))


def test_floaters_and_faint_are_shares_of_the_alpha() -> None:
    alpha = np.zeros((16, 16))
    alpha[2:6, 2:6] = 0.5  # the largest component: mass 8
    alpha[6, 6] = 1.0  # touches it by a corner: mass 1
    alpha[12, 12:14] = 0.75  # apart: mass 1.5
    alpha[0, :10] = 0.05  # not covered: mass 0.5
    assert floaters(alpha) == pytest.approx(1.5 / 10.5)
    assert faint(alpha) == pytest.approx(0.5 / 11)


def test_floaters_of_random_alpha_by_a_flood_fill() -> None:
    alpha = np.random.default_rng(1).random((24, 24)) ** 4
    covered = alpha > 0.1
    left, masses = covered.copy(), []
    while left.any():
        component = largest_component(left, diagonal=True)
        index = tuple(np.array(sorted(component)).T)
        masses.append(alpha[index].sum())
        left[index] = False
    assert len(masses) > 3
    assert floaters(alpha) == pytest.approx(1 - max(masses) / sum(masses))
    assert faint(alpha) == pytest.approx(1 - alpha[covered].sum() / alpha.sum())


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_floaters_and_faint_are_1_where_nothing_is_covered(value: float) -> None:
    assert floaters(np.full((8, 8), value)) == 1
    assert faint(np.full((8, 8), value)) == 1


def test_silhouette_follows_a_background_that_is_a_plane() -> None:
    mask = disc(12)
    np.testing.assert_array_equal(silhouette(paint(mask, gradient_background())), mask > 0)
    assert not silhouette(gradient_background()).any()


def test_silhouette_keeps_an_object_at_the_border() -> None:
    mask = disc(10, center=(24, 2))
    np.testing.assert_array_equal(silhouette(paint(mask, gradient_background())), mask > 0)


def test_silhouette_fills_holes_and_drops_smaller_components() -> None:
    ring = disc(12) - disc(5)
    image = paint(np.maximum(ring, disc(3, center=(6, 42))), gradient_background())
    np.testing.assert_array_equal(silhouette(image), disc(12) > 0)


def test_silhouette_is_the_largest_component_by_a_flood_fill() -> None:
    rng = np.random.default_rng(2)
    inner = np.zeros((SIZE, SIZE))
    inner[8:40, 8:40] = rng.random((32, 32)) > 0.45
    found = silhouette(paint(inner, np.full((3, SIZE, SIZE), 0.8, np.float32)))
    component = largest_component(inner, diagonal=False)
    assert all(found[index] for index in component)
    outside = largest_component(~found, diagonal=False)  # whatever else was filled is enclosed
    assert len(outside) + found.sum() == found.size


def test_sharpness_of_a_ramp_is_its_slope() -> None:
    """Inside the silhouette every channel rises by 0.01 per pixel along x: mean and root mean square are both that."""
    mask, ramp = disc(14), np.broadcast_to(0.2 + 0.01 * np.arange(SIZE), (3, SIZE, SIZE))
    mean, root = sharpness(np.where(mask > 0, ramp, 0.95).astype(np.float32))
    assert mean == pytest.approx(0.01, rel=1e-4)
    assert root == pytest.approx(0.01, rel=1e-4)


def test_sharpness_of_an_edge_by_central_differences() -> None:
    """A step of height h inside the object is a gradient of h / 2 in two columns; the mean stays under blur."""
    mask = np.zeros((SIZE, SIZE))
    mask[10:38, 10:38] = 1  # 24 x 24 pixels are at least two from its edge
    step = np.where(np.arange(SIZE) < 24, 0.1, 0.5)
    soft = np.interp(np.arange(SIZE), [21.5, 25.5], [0.1, 0.5])
    sharp, blurred = (
        sharpness(np.where(mask > 0, np.broadcast_to(values, (3, SIZE, SIZE)), 0.95).astype(np.float32))
        for values in (step, soft)
    )
    assert sharp == pytest.approx((2 * 0.2 / 24, math.sqrt(2 * 0.2**2 / 24)), rel=1e-4)
    assert blurred[0] == pytest.approx(sharp[0], rel=1e-4)
    assert blurred[1] < 0.8 * sharp[1]


def test_sharpness_within_a_given_mask() -> None:
    """A ramp as pale as its background has no silhouette of its own."""
    ramp = np.broadcast_to(0.80 + 0.001 * np.arange(SIZE), (3, SIZE, SIZE)).astype(np.float32)
    assert all(map(math.isnan, sharpness(ramp)))
    assert sharpness(ramp, disc(14) > 0) == pytest.approx((0.001, 0.001), rel=1e-2)


def test_sharpness_without_an_object_is_nan() -> None:
    assert all(map(math.isnan, sharpness(gradient_background())))
    assert all(map(math.isnan, sharpness(paint(disc(1.5), gradient_background()))))


def exact_normal(n: int, mean: np.ndarray, covariance: np.ndarray, seed: int) -> np.ndarray:
    """n rows whose mean and covariance are exactly these."""
    rows = np.random.default_rng(seed).standard_normal((n, len(mean)))
    rows -= rows.mean(0)
    white = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T)).T)
    return mean + white @ np.linalg.cholesky(covariance).T


def test_frechet_of_diagonal_normals_is_the_sum_of_squared_differences() -> None:
    """|µ₁ - µ₂|² + Σ (σ₁ - σ₂)²."""
    means = np.array([[0.0, 1, 2], [1.0, 1, 0]])
    sigmas = np.array([[1.0, 2, 3], [2.0, 2, 0.5]])
    sets = [exact_normal(40 + 10 * i, means[i], np.diag(sigmas[i] ** 2), i) for i in range(2)]
    assert frechet(*sets) == pytest.approx(5 + 1 + 0 + 2.5**2)
    assert frechet(sets[0], sets[0]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("m", "n"), [(60, 80), (60, 5), (4, 5)])
def test_frechet_by_the_root_of_a_matrix(m: int, n: int) -> None:
    """With fewer rows than features too, where the covariances are singular."""
    rng = np.random.default_rng(3)
    one, other = (rng.standard_normal((rows, 8)) @ rng.standard_normal((8, 8)) + rng.random(8) for rows in (m, n))
    first, second = np.cov(one.T), np.cov(other.T)
    half = linalg.sqrtm(first + 1e-12 * np.eye(8)).real
    root = linalg.sqrtm(half @ second @ half + 1e-12 * np.eye(8)).real
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    assert frechet(one.astype(np.float32), other) == pytest.approx(expected, rel=1e-4)


def test_frechet_needs_two_rows() -> None:
    with pytest.raises(ValueError, match="two rows"):
        frechet(np.zeros((1, 3)), np.zeros((4, 3)))


class Reader(Judge):
    """A judge that reads what it is told, whatever it is shown."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(CLASSES)
        self.azimuth_accuracy = {"duck": 0.96, "cube": 0.94}
        self.told = verdict

    def verdict(self, images: torch.Tensor, batch: int = 512) -> Verdict:
        assert images.shape[0] == len(self.told.objects)
        return self.told


@pytest.fixture
def scores() -> Scores:
    """Of a red duck whose first two views are read as a cube, and of a striped blue cube read right from all sides."""
    objects = [1, 1, *[0] * 6, *[1] * 8]
    azimuths = [4, *range(1, 8), *range(8)]
    verdict = Verdict(
        torch.eye(2)[objects], torch.eye(2)[[0] * 8 + [1] * 8], torch.eye(2)[[1] * 16], torch.eye(8)[azimuths]
    )
    images = torch.from_numpy(np.stack([paint(disc(12), gradient_background())] * 16)).unflatten(0, (2, 8))
    alphas = torch.from_numpy(np.stack([disc(12)] * 16)).unflatten(0, (2, 8))
    labels = [Label("duck", "red", ""), Label("cube", "blue", "striped")]
    return score(images, labels, Reader(verdict), alphas)


def test_score_compares_the_verdict_with_the_labels(scores: Scores) -> None:
    assert scores.object.tolist() == [[False] * 2 + [True] * 6, [True] * 8]
    assert scores.color.all()
    assert scores.attribute.tolist() == [[False] * 8, [True] * 8]
    assert scores.azimuth.tolist() == [[False] + [True] * 7, [True] * 8]
    assert scores.sector.tolist() == [[False, True, True, True], [True] * 4]
    assert scores.readable.tolist() == [True, False]
    assert (scores.floaters == 0).all()
    assert (scores.faint == 0).all()


def test_score_without_alpha_has_no_floaters() -> None:
    verdict = Verdict(*(torch.eye(n)[[0] * 8] for n in (2, 2, 2, 8)))
    found = score(torch.rand(1, 8, 3, 32, 32), [Label("duck", "red", "")], Reader(verdict))
    assert np.isnan(found.floaters).all()
    assert np.isnan(found.faint).all()
    assert math.isnan(found.means()["floaters"])


def test_means_are_shares_of_views_over_readable_objects(scores: Scores) -> None:
    means = scores.means()
    assert means["object"] == 14 / 16
    assert means["color"] == 1
    assert means["attribute"] == 0.5
    assert means["view"] == 3 / 4
    assert means["azimuth"] == 7 / 8
    assert means["gradient"] == pytest.approx(sharpness(paint(disc(12), gradient_background()))[0])


def test_ratio_is_over_views_where_both_have_a_silhouette(scores: Scores) -> None:
    own = dataclasses.replace(scores, gradient=np.array([[1.0, 2.0, np.nan]]))
    other = dataclasses.replace(scores, gradient=np.array([[4.0, np.nan, 8.0]]))
    assert own.ratio(other, "gradient") == 0.25
    assert math.isnan(own.ratio(dataclasses.replace(scores, gradient=np.full((1, 3), np.nan)), "gradient"))
