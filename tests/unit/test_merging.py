"""Thinning by merging, against quadrature, brute force and renders."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from segdream_cli.render.cameras import frame_sphere
from segdream_cli.render.raster import cpu, rasterize
from segdream_cli.render.view import render
from segdream_cli.simplify import Reduction, kernels, merging
from segdream_cli.simplify import polish as polishing
from segdream_cli.simplify.visibility import around, visibility
from segdream_cli.splats import GROUPS, SH_C0, Splats
from segdream_cli.splats.gaussians import Gaussians

SIX = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def cloud(n: int, k: int = 3, seed: int = 0) -> Splats:
    """Gaussians about the origin, of different sizes."""
    rng = np.random.default_rng(seed)
    values = {
        "means": rng.normal(0, 0.4, (n, 3)),
        "quats": Rotation.random(n, random_state=seed).as_quat(),
        "log_scales": rng.normal(-2.5, 0.5, (n, 3)),
        "opacity_logits": rng.normal(0, 1, n),
        "sh0": rng.normal(0, 1, (n, 3)),
        "shN": rng.normal(0, 0.1, (n, k, 3)),
    }
    return Splats(**{name: value.astype(np.float32) for name, value in values.items()}, provenance={"seed": 1})


def covariances(splats: Splats) -> np.ndarray:
    turns = Rotation.from_quat(splats.quats[:, [1, 2, 3, 0]].astype(np.float64)).as_matrix()
    return np.einsum("nij,nj,nkj->nik", turns, np.exp(2 * splats.log_scales.astype(np.float64)), turns)


def random_clusters(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.empty((n, kernels.COLUMNS))
    rows[:, 1:4] = rng.normal(0, 0.3, (n, 3))
    factors = rng.normal(0, 0.25, (n, 3, 3))
    rows[:, 4:10] = np.stack([(factors @ factors.mT)[:, i, j] for i, j in SIX], axis=1)
    rows[:, 0] = rng.uniform(0.1, 0.8, n) * merging.areas(rows[:, 4:10])
    rows[:, 10:14] = rng.uniform(0.1, 1, (n, 4))
    return rows


def matrix(row: np.ndarray) -> np.ndarray:
    full = np.empty((3, 3))
    for value, (i, j) in zip(row[4:10], SIX, strict=True):
        full[i, j] = full[j, i] = value
    return full


def cost(a: np.ndarray, b: np.ndarray, blur: float = 0.0) -> float:
    return float(kernels._cost(a, b, blur, np.empty(kernels.COLUMNS)))


def test_cost_is_the_integral_of_the_squared_difference() -> None:
    a, b = random_clusters(2, seed=3)
    union = np.empty(kernels.COLUMNS)
    found, blur = kernels._cost(a, b, 0.01, union), 0.01
    grid = np.linspace(-4, 4, 201)
    points = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
    total = 0.0
    for plane in ((0, 1), (0, 2), (1, 2)):
        image = 0.0
        for row, sign in ((a, 1), (b, 1), (union, -1)):
            covariance = matrix(row)[np.ix_(plane, plane)] + blur * np.eye(2)
            offsets = points - row[1:4][list(plane)]
            exponent = np.einsum("xyi,ij,xyj->xy", offsets, np.linalg.inv(covariance), offsets)
            minors = sum(np.linalg.det(np.delete(np.delete(matrix(row), i, 0), i, 1)) for i in range(3))
            alpha = min(row[0] / np.sqrt(minors / 3), 0.999) * row[13]
            color = np.append(row[10:13], np.sqrt(3.0))
            image = image + sign * alpha * np.exp(-exponent / 2)[..., None] * color
        total += np.square(image).sum() * (grid[1] - grid[0]) ** 2 / (2 * np.pi)
    contrast = 0.3 * np.square(a[10:13] - b[10:13]).sum() * a[0] * b[0] / (a[0] + b[0])
    assert found == pytest.approx(total + contrast, rel=1e-6)


def test_areas_are_those_of_the_cross_sections() -> None:
    a, b, c = 0.5, 2.0, 3.0
    turn = Rotation.random(random_state=1).as_matrix()
    covariance = turn @ np.diag([a**2, b**2, c**2]) @ turn.T
    expected = np.sqrt(((a * b) ** 2 + (a * c) ** 2 + (b * c) ** 2) / 3)
    assert merging.areas(np.array([[covariance[i, j] for i, j in SIX]])) == pytest.approx(expected)


def test_greedy_merges_the_cheapest_pair_each_time() -> None:
    """Against a search of all pairs after each merge; everybody is everybody's neighbour."""
    rows = random_clusters(9, seed=7)
    clusters = {i: (row.copy(), {i}) for i, row in enumerate(rows)}
    while len(clusters) > 3:
        pairs = itertools.combinations(sorted(clusters), 2)
        i, j = min(pairs, key=lambda pair: cost(clusters[pair[0]][0], clusters[pair[1]][0]))
        union = np.empty(kernels.COLUMNS)
        kernels._unite(clusters[i][0], clusters[j][0], union)
        clusters[i] = (union, clusters[i][1] | clusters.pop(j)[1])
    neighbors = np.array([[j for j in range(9) if j != i] for i in range(9)], np.int32)
    parents = kernels.greedy(rows.copy(), neighbors, 3, 0.0)
    assert {frozenset(np.flatnonzero(parents == root).tolist()) for root in set(parents.tolist())} == {
        frozenset(members) for _, members in clusters.values()
    }
    assert all(parents[i] == min(np.flatnonzero(parents == parents[i])) for i in range(9))


def test_weights_are_the_derivatives_of_the_image_by_the_colors() -> None:
    splats = cloud(300, k=0)
    gaussians = Gaussians.from_splats(splats)
    shape = tuple(value.detach() for value in (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities))
    cameras = around(splats, 3, 64)
    colors = torch.zeros(300, 3, requires_grad=True)
    rasterize(*shape, colors, cameras.viewmats, cameras.Ks, 64, 64).rgb[..., 0].sum().backward()
    seen, whole = cpu.weights(*shape, cameras.viewmats, cameras.Ks, 64, 64)
    assert colors.grad is not None
    np.testing.assert_allclose(seen, colors.grad[:, 0].numpy(), rtol=1e-4, atol=1e-5)
    assert (seen <= 1.02 * whole + 0.05).all()
    alone = cpu.weights(*(value[:1] for value in shape), cameras.viewmats, cameras.Ks, 64, 64)
    assert alone[0] == pytest.approx(alone[1], rel=0.03)  # alpha below 1/255 is not drawn


def test_visibility_of_a_shell_and_of_its_inside() -> None:
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(2000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    means = directions * np.repeat([0.9, 0.5], [1600, 400])[:, None]
    base = cloud(2000, k=0)
    splats = replace(
        base,
        means=means.astype(np.float32),
        log_scales=np.full((2000, 3), -2.5, np.float32),
        opacity_logits=np.full(2000, 4, np.float32),
    )
    found = visibility(splats)
    assert found[:1600].min() > 0.02  # the shell hides parts of itself
    assert found[1600:].max() < 0.001


def test_merge_to_one_keeps_the_moments() -> None:
    splats = cloud(40)
    merged = merging.merge(splats, 1)
    full = covariances(splats)
    alphas = 1 / (1 + np.exp(-splats.opacity_logits.astype(np.float64)))
    minors = [sum(np.linalg.det(np.delete(np.delete(c, i, 0), i, 1)) for i in range(3)) for c in full]
    weights = alphas * np.sqrt(np.array(minors) / 3) * (0.05 + 0.95 * visibility(splats))
    weights /= weights.sum()
    mean = weights @ splats.means
    offsets = splats.means - mean
    spread = np.einsum("n,nij->ij", weights, full + offsets[:, :, None] * offsets[:, None])
    np.testing.assert_allclose(merged.means[0], mean, atol=1e-5)
    np.testing.assert_allclose(covariances(merged)[0], spread, atol=1e-5)
    np.testing.assert_allclose(merged.sh0[0], weights @ splats.sh0, atol=1e-5)
    np.testing.assert_allclose(merged.shN[0], np.einsum("n,nkc->kc", weights, splats.shN), atol=1e-5)
    assert merged.provenance == splats.provenance


def test_merge_undoes_a_split() -> None:
    """Each Gaussian twice, with half the opacity: the pairs are found, and the others keep their bits."""
    base = cloud(60)
    halves = 0.5 / (1 + np.exp(-base.opacity_logits[:40].astype(np.float64)))
    logits = np.log(halves / (1 - halves)).astype(np.float32)
    twice = Splats(
        **{name: np.concatenate([base.arrays()[name], base.arrays()[name][:40]]) for name in GROUPS}
        | {"opacity_logits": np.concatenate([logits, base.opacity_logits[40:], logits])}
    )
    merged = merging.merge(twice, 60)
    for name in ("means", "opacity_logits", "sh0", "shN"):
        np.testing.assert_allclose(merged.arrays()[name], base.arrays()[name], rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(covariances(merged), covariances(base), rtol=1e-3, atol=1e-6)
    for name in GROUPS:
        np.testing.assert_array_equal(merged.arrays()[name][40:], base.arrays()[name][40:])


@pytest.mark.parametrize("count", [1, 7, 99, 299, 300, 1000])
def test_merge_leaves_exactly_as_many(count: int) -> None:
    """Also of Gaussians of which many stand at the same point."""
    base = cloud(300, k=0)
    splats = replace(base, means=np.concatenate([np.zeros((100, 3), np.float32), base.means[100:]]))
    merged = merging.merge(splats, count)
    assert len(merged) == min(count, 300)
    assert all(np.isfinite(values).all() for values in merged.arrays().values())


def psnr(splats: Splats, other: Splats) -> float:
    cameras = frame_sphere(torch.tensor([10.0, 160.0]), torch.tensor([20.0, -30.0]), 128)
    with torch.no_grad():
        one, two = (render(Gaussians.from_splats(each), cameras).over(torch.ones(3)) for each in (splats, other))
    return float(-10 * torch.log10((one - two).square().mean()))


def test_merge_keeps_images_better_than_dropping() -> None:
    n = 3000
    splats = ball(n)
    size = splats.opacity_logits + np.sort(splats.log_scales, axis=1)[:, 1:].sum(axis=1)
    dropped = splats.select(np.argsort(-size)[: n // 4])
    assert psnr(merging.merge(splats, n // 4), splats) > max(30.0, psnr(dropped, splats) + 8)


def ball(n: int) -> Splats:
    """A coloured ball of small Gaussians."""
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(n, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    base = cloud(n, k=0)
    colors = 0.5 + 0.3 * np.sin(3 * directions)
    return replace(
        base,
        means=(0.8 * directions).astype(np.float32),
        log_scales=base.log_scales - 1,
        sh0=((colors - 0.5) / SH_C0).astype(np.float32),
    )


def test_polish_comes_closer_in_other_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `psnr`, whose views and size are others; twice the same bits, and the input is not changed."""
    monkeypatch.setattr(polishing, "SIZE", 64)
    whole = ball(1500)
    thin = merging.merge(whole, 300)
    start = thin.copy()
    polished = polishing.polish(whole, thin, steps=40)
    assert psnr(polished, whole) > psnr(thin, whole) + 0.5
    for name in GROUPS:
        np.testing.assert_array_equal(thin.arrays()[name], start.arrays()[name])
        np.testing.assert_array_equal(polished.arrays()[name], polishing.polish(whole, thin, steps=40).arrays()[name])


def test_polish_takes_small_steps_from_a_good_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rates of a poor start, it would get worse."""
    monkeypatch.setattr(polishing, "SIZE", 64)
    whole = ball(1500)
    thin = merging.merge(whole, 1350)
    careful = polishing.polish(whole, thin, steps=15)
    monkeypatch.setattr(polishing, "ERROR", 1e-9)
    careless = polishing.polish(whole, thin, steps=15)
    assert psnr(careful, whole) > psnr(thin, whole) - 0.1
    assert psnr(careful, whole) > psnr(careless, whole) + 1


def test_reduction_keeps_what_a_polish_would_spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(whole: Splats, thin: Splats) -> Splats:
        return replace(thin, sh0=-thin.sh0)

    monkeypatch.setattr(polishing, "SIZE", 64)
    monkeypatch.setattr(polishing, "polish", spoil)
    whole, notes = ball(300), list[str]()
    found = Reduction(max_gaussians=100, polish=True).apply(whole, lambda *facts: None, notes.append)
    np.testing.assert_array_equal(found.sh0, merging.merge(whole, 100).sh0)
    assert notes[0].startswith("--polish has no effect: the PSNR of renders would fall from ")


def test_similarity_is_the_mean_psnr() -> None:
    whole = ball(500)
    other = replace(whole, sh0=whole.sh0 * np.float32(0.9))
    cameras = around(whole, 4, polishing.SIZE)
    images = []
    for splats in (whole, other):
        with torch.no_grad():
            rendering = render(Gaussians.from_splats(splats), cameras)
        images.append((rendering.rgb + 1 - rendering.alpha).clamp(0, 1).double())
    expected = -10 * torch.log10(((images[0] - images[1]) ** 2).mean(dim=(1, 2, 3))).mean()
    assert polishing.similarity(whole, other) == pytest.approx(float(expected), rel=1e-4)


def test_quaternions_match_scipy() -> None:
    turns = Rotation.concatenate([Rotation.random(50, random_state=2), Rotation.from_rotvec(np.pi * np.eye(3))])
    found = merging._quaternions(turns.as_matrix())
    np.testing.assert_allclose(Rotation.from_quat(found[:, [1, 2, 3, 0]]).as_matrix(), turns.as_matrix(), atol=1e-12)


def test_reduction_tells_what_is_left() -> None:
    told: list[tuple[str, int, int]] = []
    splats = cloud(50, k=0)
    assert len(Reduction(keep=0.25).apply(splats, lambda *facts: told.append(facts))) == 13
    assert Reduction().apply(splats, lambda *facts: told.append(facts)) is splats
    assert Reduction(max_gaussians=90).apply(splats, lambda *facts: told.append(facts)) is splats
    assert told == [("--keep", 13, 50), ("--max-gaussians", 50, 50)]
    notes: list[str] = []
    Reduction(max_gaussians=90, polish=True).apply(splats, lambda *facts: None, notes.append)
    assert notes == ["--polish has no effect: nothing was merged"]
