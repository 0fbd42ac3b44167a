"""Transformed assets against scipy, and against their functions and covariances."""

import numpy as np
import pytest
from covariances import covariances
from scipy.spatial.transform import Rotation

from segdream_cli.render.raster import kernels
from segdream_cli.splats import Splats, to_ply_frame
from segdream_cli.splats.sh import sh_basis
from segdream_cli.splats.transform import quaternion, rotation_matrices, scale_and_rotation, transform


def rodrigues(axis: list[float], angle: float) -> np.ndarray:
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


TURNS = [rodrigues([1, 2, 3], 1.1), rodrigues([0, 1, 0], np.pi), rodrigues([-1, 0.1, 4], 3.0), np.eye(3)]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("k", [0, 3, 8, 15])
def test_transform_moves_everything_together(chiral: Splats, turn: np.ndarray, k: int) -> None:
    splats = Splats(chiral.means, chiral.quats, chiral.log_scales, chiral.opacity_logits, chiral.sh0, chiral.shN[:, :k])
    there = transform(splats, 2.5 * turn, np.array([1.0, -2, 3]))
    np.testing.assert_allclose(there.means, 2.5 * splats.means @ turn.T + [1, -2, 3], atol=1e-6)
    np.testing.assert_allclose(covariances(there), 2.5**2 * turn @ covariances(splats) @ turn.T, atol=1e-7)
    if k:
        directions = np.random.default_rng(0).normal(size=(40, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        before = np.einsum("kp,nkc->pnc", sh_basis(directions.T, k), splats.shN.astype(np.float64))
        after = np.einsum("kp,nkc->pnc", sh_basis((directions @ turn.T).T, k), there.shN.astype(np.float64))
        np.testing.assert_allclose(after, before, atol=2e-6)


def test_transform_of_half_a_turn_is_to_ply_frame(chiral: Splats) -> None:
    turned, expected = transform(chiral, np.diag([1.0, -1, -1]), np.zeros(3)), to_ply_frame(chiral)
    np.testing.assert_allclose(turned.means, expected.means, atol=1e-7)
    np.testing.assert_allclose(turned.shN, expected.shN, atol=1e-6)
    np.testing.assert_allclose(covariances(turned), covariances(expected), atol=1e-9)


@pytest.mark.parametrize("turn", TURNS)
def test_quaternion_of_rotations(turn: np.ndarray) -> None:
    w, *u = quaternion(turn)
    for v in np.eye(3):
        np.testing.assert_allclose(v + 2 * np.cross(u, np.cross(u, v) + w * v), turn @ v, atol=1e-9)


def test_rotation_matrices_match_scipy() -> None:
    turns = Rotation.random(20, random_state=0)
    quats = turns.as_quat(scalar_first=True)
    np.testing.assert_allclose(rotation_matrices(quats), turns.as_matrix(), atol=1e-14)
    assert rotation_matrices(quats.astype(np.float32)).dtype == np.float32


def test_rotation_matrices_match_the_kernels() -> None:
    """numba compiles a separate formula into the kernels."""
    quats = Rotation.random(20, random_state=1).as_quat(scalar_first=True).astype(np.float32)
    found = np.empty((20, 3, 3))
    for quat, matrix in zip(quats, found, strict=True):
        kernels._rotation(quat, matrix)
    np.testing.assert_allclose(found, rotation_matrices(quats.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize(
    "matrix",
    [
        np.diag([1.0, 1, 1.01]),
        np.diag([1e-3, 5, 1]),
        np.array([[1.0, 0.5, 0], [0, 1, 0], [0, -0.2, 2]]),
        TURNS[0] @ TURNS[2] * 3 + 0.1,
    ],
)
def test_transform_of_any_matrix_moves_the_ellipsoids(chiral: Splats, matrix: np.ndarray) -> None:
    """A covariance C becomes A C A^T; a Gaussian of no size keeps none."""
    chiral.log_scales[3, :2] = -np.inf
    there = transform(chiral, matrix, np.ones(3))
    expected = matrix @ covariances(chiral) @ matrix.T
    np.testing.assert_allclose(covariances(there), expected, atol=3e-6 * np.abs(expected).max())
    np.testing.assert_allclose(there.means, chiral.means @ matrix.T + 1, atol=1e-5)
    assert there.log_scales.dtype == there.quats.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(there.quats, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        (np.diag([1.0, 1, -1]), "mirrors"),
        (np.zeros((3, 3)), "flattens"),
        (np.diag([2.0, 1, -1]), "mirrors"),
        (np.full((3, 3), np.inf), "mirrors"),
        (np.diag([1e200, 1e200, 1e200]), "mirrors"),
    ],
)
def test_transform_refuses_other_matrices(chiral: Splats, matrix: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        transform(chiral, matrix, np.zeros(3))


def test_scale_and_rotation() -> None:
    scale, rotation = scale_and_rotation(0.25 * TURNS[0])
    assert scale == pytest.approx(0.25)
    np.testing.assert_allclose(rotation, TURNS[0], atol=1e-12)
