"""Frames by name: against signed permutations written out, and against what a viewer in front sees."""

from pathlib import Path

import numpy as np
import pytest
from test_formats import random_splats, sh_basis

from segdream_cli import formats
from segdream_cli.errors import UsageProblem
from segdream_cli.formats.common import Reading
from segdream_cli.splats import GROUPS, Splats, from_ply_frame, to_ply_frame
from segdream_cli.splats.edits import Edits, apply_edits
from segdream_cli.splats.frames import FRAMES, axes, check_frame, from_frame, to_frame, upright_rotation
from segdream_cli.splats.transform import rotation_matrices

BLENDER, UNITY, UNREAL = "rfu", "ruf", "blu"
"""Frames of Blender, Unity and Unreal in which the front faces the viewer of their front views, -y, -z and +x."""


def ellipsoids(splats: Splats) -> np.ndarray:
    turns = rotation_matrices(splats.quats.astype(np.float64)) * np.exp(splats.log_scales.astype(np.float64))[:, None]
    return np.einsum("nij,nkj->nik", turns, turns)


def test_frames_are_all_signed_permutations() -> None:
    matrices = {tuple(axes(name).ravel()) for name in FRAMES}
    assert len(FRAMES) == len(matrices) == 48
    assert all(np.array_equal(axes(name) @ axes(name).T, np.eye(3)) for name in FRAMES)
    assert sum(np.linalg.det(axes(name)) > 0 for name in FRAMES) == 24


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rub", [1, 2, 3]),
        ("rdf", [1, -2, -3]),
        ("luf", [-1, 2, -3]),
        (BLENDER, [1, -3, 2]),
        (UNITY, [1, 2, -3]),
        (UNREAL, [3, -1, 2]),
    ],
)
def test_to_frame_of_a_point(name: str, expected: list[int]) -> None:
    """One unit to the viewer's right, two up, three towards the viewer."""
    splats = random_splats(1)
    splats.means[:] = (1, 2, 3)
    np.testing.assert_allclose(to_frame(splats, name).means, [expected], atol=1e-6)


@pytest.mark.parametrize("name", ["rdf", "luf", BLENDER, UNITY, UNREAL, "ldb", "dbl"])
def test_to_frame_moves_ellipsoids_and_colours(name: str) -> None:
    splats = random_splats(20, 15)
    there = to_frame(splats, name)
    matrix = axes(name).T
    np.testing.assert_allclose(there.means, splats.means @ matrix.T, atol=1e-6)
    np.testing.assert_allclose(ellipsoids(there), matrix @ ellipsoids(splats) @ matrix.T, atol=1e-6)
    for direction in np.random.default_rng(0).normal(size=(20, 3)):
        unit = direction / np.linalg.norm(direction)
        before = np.einsum("k,nkc->nc", sh_basis(unit), splats.shN)
        after = np.einsum("k,nkc->nc", sh_basis(matrix @ unit), there.shN)
        np.testing.assert_allclose(after, before, atol=1e-5)
    back = from_frame(there.copy(), name)
    np.testing.assert_allclose(back.means, splats.means, atol=1e-6)
    np.testing.assert_allclose(back.shN, splats.shN, atol=1e-5)
    np.testing.assert_allclose(ellipsoids(back), ellipsoids(splats), atol=1e-6)


def test_ply_frame_keeps_its_bits() -> None:
    splats = random_splats(20, 15)
    for there, expected in ((to_frame, to_ply_frame), (from_frame, from_ply_frame)):
        found, wanted = there(splats.copy(), "rdf"), expected(splats.copy())
        assert all(np.array_equal(getattr(found, each), getattr(wanted, each)) for each in GROUPS)


@pytest.mark.parametrize("text", ["", "rd", "rdx", "rrd", "rduf", "udf"])
def test_check_frame_refuses(text: str) -> None:
    with pytest.raises(UsageProblem, match="not three letters") as refused:
        check_frame(text)
    assert refused.value.hint == "--frame rdf"
    assert check_frame("RDF") == "rdf"


@pytest.mark.parametrize("format", ["ply", "glb", "sog", "spz", "spz4"])
def test_read_and_write_take_frames(tmp_path: Path, format: str) -> None:
    """A file written in a frame and read in it is the asset; read without, it is turned or mirrored unless it says."""
    splats = random_splats(60, 3)
    path = tmp_path / f"a{formats.FORMATS[format].suffix}"
    formats.write(path, splats, format, frame=UNITY)
    own = formats.FORMATS[format].frame or UNITY

    def in_order(means: np.ndarray) -> np.ndarray:
        return means[np.argsort(means[:, 1])]

    np.testing.assert_allclose(
        in_order(formats.read(path, Reading(frame=UNITY)).means), in_order(splats.means), atol=2e-3
    )
    moved = to_frame(splats, UNITY).means @ axes(own).T.astype(np.float32)
    np.testing.assert_allclose(in_order(formats.read(path).means), in_order(moved), atol=2e-3)


def test_standing_takes_up_and_front_to_y_and_z() -> None:
    for up, front, axis in (("z", 0.0, (0, -1, 0)), ("-y", 0.0, (0, 0, -1)), ("y", 90.0, (1, 0, 0))):
        turn = upright_rotation(up, front)
        np.testing.assert_allclose(turn @ axis, [0, 0, 1], atol=1e-12)
        np.testing.assert_allclose(np.linalg.det(turn), 1)


def test_apply_edits_mirrors_then_stands() -> None:
    splats = random_splats(30, 15)
    mirrored = apply_edits(splats, Edits(mirror="x"))
    np.testing.assert_allclose(mirrored.means, splats.means * [-1, 1, 1], atol=1e-6)
    flip = np.diag([-1.0, 1, 1])
    np.testing.assert_allclose(ellipsoids(mirrored), flip @ ellipsoids(splats) @ flip, atol=1e-6)
    both = apply_edits(splats, Edits(mirror="x", up="z", front_deg=90))
    turned = apply_edits(mirrored, Edits(up="z", front_deg=90))
    np.testing.assert_allclose(both.means, turned.means, atol=1e-6)
    x, y, z = mirrored.means.T  # z goes up, and +x, which azimuth 90 faces, to +z
    np.testing.assert_allclose(turned.means, np.stack([y, z, x], axis=1), atol=1e-6)
