"""Assets moved, turned and scaled, against the functions and covariances that they stand for."""

import numpy as np
import pytest
import torch
from covariances import covariances

from segdream_cli.splats import Splats, to_ply_frame
from segdream_cli.splats.gaussians import sh_basis
from segdream_cli.splats.transform import harmonics, moved, quaternion, scale_and_rotation


def rodrigues(axis: list[float], angle: float) -> np.ndarray:
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


TURNS = [rodrigues([1, 2, 3], 1.1), rodrigues([0, 1, 0], np.pi), rodrigues([-1, 0.1, 4], 3.0), np.eye(3)]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("k", [0, 3, 8, 15])
def test_everything_moves_together(chiral: Splats, turn: np.ndarray, k: int) -> None:
    splats = Splats(chiral.means, chiral.quats, chiral.log_scales, chiral.opacity_logits, chiral.sh0, chiral.shN[:, :k])
    there = moved(splats, 2.5 * turn, np.array([1.0, -2, 3]))
    np.testing.assert_allclose(there.means, 2.5 * splats.means @ turn.T + [1, -2, 3], atol=1e-6)
    np.testing.assert_allclose(covariances(there), 2.5**2 * turn @ covariances(splats) @ turn.T, atol=1e-7)
    if k:
        directions = torch.nn.functional.normalize(torch.randn(40, 1, 3, dtype=torch.float64), dim=-1)
        before = torch.einsum("pk,nkc->pnc", sh_basis(directions, k)[:, 0], torch.from_numpy(splats.shN).double())
        turned = directions @ torch.from_numpy(turn.T)
        after = torch.einsum("pk,nkc->pnc", sh_basis(turned, k)[:, 0], torch.from_numpy(there.shN).double())
        np.testing.assert_allclose(after, before, atol=2e-6)


def test_half_a_turn_about_x_is_the_ply_frame(chiral: Splats) -> None:
    turned, expected = moved(chiral, np.diag([1.0, -1, -1]), np.zeros(3)), to_ply_frame(chiral)
    np.testing.assert_allclose(turned.means, expected.means, atol=1e-7)
    np.testing.assert_allclose(turned.shN, expected.shN, atol=1e-6)
    np.testing.assert_allclose(covariances(turned), covariances(expected), atol=1e-9)


def test_harmonics_are_the_renderers() -> None:
    directions = torch.nn.functional.normalize(torch.randn(50, 1, 3, dtype=torch.float64), dim=-1)
    np.testing.assert_allclose(harmonics(directions[:, 0].numpy(), 15), sh_basis(directions, 15)[:, 0], atol=1e-12)


@pytest.mark.parametrize("turn", TURNS)
def test_quaternion_of_a_rotation(turn: np.ndarray) -> None:
    w, *u = quaternion(turn)
    for v in np.eye(3):
        np.testing.assert_allclose(v + 2 * np.cross(u, np.cross(u, v) + w * v), turn @ v, atol=1e-9)


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        (np.diag([1.0, 1, -1]), "mirrors"),
        (np.zeros((3, 3)), "flattens"),
        (np.diag([1.0, 1, 1.01]), "stretches"),
        (np.full((3, 3), np.inf), "mirrors"),
        (np.diag([1e200, 1e200, 1e200]), "mirrors"),
    ],
)
def test_what_is_no_similarity(chiral: Splats, matrix: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        moved(chiral, matrix, np.zeros(3))


def test_scale_and_rotation() -> None:
    scale, rotation = scale_and_rotation(0.25 * TURNS[0])
    assert scale == pytest.approx(0.25)
    np.testing.assert_allclose(rotation, TURNS[0], atol=1e-12)
