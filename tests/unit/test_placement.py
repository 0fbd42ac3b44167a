"""The working frame: where an object of any size, position and facing stands in it, and the way back."""

import numpy as np
import pytest

from segdream_cli.splats import Splats
from segdream_cli.splats.placement import WORKING_RADIUS, place
from segdream_cli.splats.sh import sh_basis


def ball(n: int = 2000, radius: float = 1.0, at: tuple[float, float, float] = (0, 0, 0), k: int = 0) -> Splats:
    """Small Gaussians evenly over a sphere (Fibonacci's spiral)."""
    height = 1 - (np.arange(n) + 0.5) * 2 / n
    turn, flat = np.arange(n) * np.pi * (3 - np.sqrt(5)), np.sqrt(1 - height**2)
    directions = np.stack([flat * np.cos(turn), height, flat * np.sin(turn)], axis=1)
    rng = np.random.default_rng(0)
    quats = rng.normal(size=(n, 4))
    return Splats(
        means=(radius * directions + at).astype(np.float32),
        quats=(quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        log_scales=np.log(radius * rng.uniform(0.001, 0.003, (n, 3))).astype(np.float32),
        opacity_logits=np.full(n, 2, np.float32),
        sh0=rng.normal(size=(n, 3)).astype(np.float32),
        shN=rng.normal(size=(n, k, 3)).astype(np.float32),
    )


def joined(*parts: Splats) -> Splats:
    return Splats(**{name: np.concatenate([part.arrays()[name] for part in parts]) for name in parts[0].arrays()})


@pytest.mark.parametrize(("radius", "at"), [(1.0, (0, 0, 0)), (250.0, (900, -80, 3)), (2e-4, (0.001, 0, 0))])
def test_place_centers_and_scales_the_object(radius, at):
    asset = ball(radius=radius, at=at)
    placed = place(asset).apply(asset)
    distances = np.linalg.norm(placed.means, axis=1)
    assert distances.min() == pytest.approx(distances.max(), rel=0.02)
    assert distances.max() == pytest.approx(WORKING_RADIUS, rel=0.02)


def test_place_ignores_stray_gaussians():
    """A share of 4 % scattered a hundred radii away, and a sky of huge ones."""
    asset = ball()
    stray = ball(80, radius=100.0, at=(300, 40, 0))
    sky = Splats(**{**ball(40, radius=1.5).arrays(), "log_scales": np.full((40, 3), 5, np.float32)})
    found, clean = place(joined(asset, stray, sky)), place(asset)
    assert found.matrix == pytest.approx(clean.matrix, rel=0.03)
    assert found.offset == pytest.approx(clean.offset, abs=0.03)


def test_place_counts_faint_gaussians_only_if_all_are():
    faint = Splats(**{**ball(300, radius=5.0).arrays(), "opacity_logits": np.full(300, -4, np.float32)})
    asset = ball()
    assert place(joined(asset, faint)).matrix == pytest.approx(place(asset).matrix)
    assert place(faint).matrix == pytest.approx(place(ball(300, radius=5.0)).matrix)


@pytest.mark.parametrize(
    ("front_deg", "front"), [(0, (0, 0, 1)), (90, (1, 0, 0)), (180, (0, 0, -1)), (270, (-1, 0, 0)), (45, (1, 0, 1))]
)
def test_place_turns_the_front_to_plus_z(front_deg, front):
    matrix = place(ball(), front_deg).matrix
    turned = matrix @ np.array(front) / np.linalg.norm(front)
    assert turned / np.linalg.norm(turned) == pytest.approx([0, 0, 1], abs=1e-12)
    assert np.linalg.det(matrix) > 0
    assert matrix @ [0, 1, 0] == pytest.approx([0, np.cbrt(np.linalg.det(matrix)), 0])


def test_undo_returns_the_asset():
    """All parameters; the view-dependent colour is compared in directions, as a viewer evaluates it."""
    asset = ball(radius=40, at=(10, 0, -70), k=8)
    placement = place(asset, 130.0)
    back = placement.undo(placement.apply(asset))
    for name, values in asset.arrays().items():
        if name != "quats":
            assert back.arrays()[name] == pytest.approx(values, rel=1e-5, abs=2e-5), name
    assert np.abs((back.quats * asset.quats).sum(1)) == pytest.approx(np.ones(len(asset)), abs=1e-6)
    direction = np.array([0.6, 0.0, 0.8])
    turned = placement.matrix @ direction / np.linalg.norm(placement.matrix @ direction)
    seen = np.einsum("k,nkd->nd", np.array(sh_basis(direction, 8)), asset.shN)
    seen_there = np.einsum("k,nkd->nd", np.array(sh_basis(turned, 8)), placement.apply(asset).shN)
    assert seen_there == pytest.approx(seen, abs=1e-4)


def test_place_refuses_a_point():
    asset = ball()
    point = Splats(
        **{**asset.arrays(), "means": np.zeros_like(asset.means), "log_scales": np.full((2000, 3), -60, np.float32)}
    )
    with pytest.raises(ValueError, match="radius"):
        place(point)
