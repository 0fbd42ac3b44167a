"""Parts of an asset that do not touch, against a search of all pairs."""

from dataclasses import replace

import numpy as np
import pytest

from segdream_cli.simplify import Reduction
from segdream_cli.simplify.cleaning import find_parts, largest_part, without_floaters
from segdream_cli.splats import Splats


def balls(sizes: list[int], seed: int = 0) -> Splats:
    """Clusters of round Gaussians about points 3 apart along x; the first has its centre at 0."""
    rng, n = np.random.default_rng(seed), sum(sizes)
    means = rng.normal(0, 0.1, (n, 3))
    means[:, 0] += np.repeat(3.0 * np.arange(len(sizes)), sizes)
    return Splats(
        means=means.astype(np.float32),
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (n, 1)),
        log_scales=np.full((n, 3), np.log(0.06), np.float32),
        opacity_logits=np.full(n, 2, np.float32),
        sh0=np.zeros((n, 3), np.float32),
        shN=np.zeros((n, 0, 3), np.float32),
        provenance={"seed": 1},
    )


def brute_force(splats: Splats) -> set[frozenset[int]]:
    """Components of the graph in which centres closer than four standard deviations are linked."""
    distances = np.linalg.norm(splats.means[:, None] - splats.means[None], axis=2)
    groups, left = set(), set(range(len(splats)))
    while left:
        group, edge = set(), {left.pop()}
        while edge:
            group |= edge
            edge = {j for i in edge for j in np.flatnonzero(distances[i] <= 4 * 0.06).tolist()} - group
        groups.add(frozenset(group))
        left -= group
    return groups


def test_find_parts_matches_all_pairs() -> None:
    splats = balls([60, 25, 40], seed=4)
    labels, masses = find_parts(splats)
    expected = brute_force(splats)
    assert len(expected) >= 3
    assert {frozenset(np.flatnonzero(labels == part).tolist()) for part in range(len(masses))} == expected
    area = 0.06**2 / (1 + np.exp(-2))
    np.testing.assert_allclose(masses, [area * (labels == part).sum() for part in range(len(masses))], rtol=1e-5)


def test_find_parts_links_more_than_sixteen_in_one_place() -> None:
    """Two heaps of 40 equal centres, which are each other's neighbours only beyond the sixteenth."""
    splats = balls([80])
    means = np.zeros((80, 3), np.float32)
    means[40:, 0] = 0.05
    assert len(find_parts(replace(splats, means=means))[1]) == 1
    means[40:, 0] = 0.5
    assert len(find_parts(replace(splats, means=means))[1]) == 2


def test_largest_part_and_floaters() -> None:
    splats = balls([400, 120, 3])
    splats = replace(splats, means=(splats.means * [1, 0.5, 0.5]).astype(np.float32))
    np.testing.assert_array_equal(largest_part(splats).means, splats.means[:400])
    kept = without_floaters(splats)
    np.testing.assert_array_equal(kept.means, splats.means[:520])
    assert kept.provenance == splats.provenance


def test_faint_gaussians_belong_to_what_they_touch() -> None:
    splats = balls([100, 2])
    splats.opacity_logits[[0, 100, 101]] = -4
    assert find_parts(splats)[0].tolist() == [0] * 100 + [-1, -1]
    assert len(without_floaters(splats)) == 100
    splats.opacity_logits[:] = -5  # all are faint: they are compared with the highest
    assert find_parts(splats)[0].min() == 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_gaussians(n: int) -> None:
    splats = balls([n])
    assert len(without_floaters(splats)) >= 1
    assert len(largest_part(splats)) >= 1


def test_reduction_counts() -> None:
    told: list[tuple[str, int, int]] = []
    splats = balls([300, 100, 2])
    splats = replace(splats, means=(splats.means * [1, 0.5, 0.5]).astype(np.float32))
    Reduction(remove_floaters=True, keep=0.5).apply(splats, lambda *facts: told.append(facts))
    Reduction(largest_cluster=True).apply(splats, lambda *facts: told.append(facts))
    assert told == [("--remove-floaters", 400, 402), ("--keep", 200, 400), ("--largest-cluster", 300, 402)]
