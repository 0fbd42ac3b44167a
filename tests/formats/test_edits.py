"""Edits of assets between files, checked by numbers and by renders."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from covariances import covariances
from scipy.spatial.transform import Rotation

from segdream_cli import formats
from segdream_cli.errors import UsageProblem
from segdream_cli.formats import FORMATS
from segdream_cli.render.cameras import Cameras, frame_sphere
from segdream_cli.render.view import render
from segdream_cli.splats import GROUPS, Splats
from segdream_cli.splats.bounds import bounds
from segdream_cli.splats.edits import Edits, apply_edits
from segdream_cli.splats.gaussians import Gaussians
from segdream_cli.splats.transform import rotation_xyz

SIZE = 128


def same(splats: Splats, other: Splats) -> None:
    for name in GROUPS:
        np.testing.assert_array_equal(getattr(splats, name), getattr(other, name))


def test_apply_edits_without_edits(chiral: Splats) -> None:
    same(apply_edits(chiral, Edits()), chiral)
    assert apply_edits(chiral, Edits()).provenance == chiral.provenance


@pytest.mark.parametrize("degrees", [(90, 0, 0), (0, 90, 0), (0, 0, 90), (20, -130, 250)])
def test_rotation_xyz_matches_scipy(degrees: tuple[float, float, float]) -> None:
    expected = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    np.testing.assert_allclose(rotation_xyz(degrees), expected, atol=1e-12)


def test_apply_edits_rotates_front_to_left(chiral: Splats) -> None:
    """About y, the front +Z goes where the object's left, +X, was; about x, it goes down."""
    tip = chiral.means[-1]
    assert tip[2] == pytest.approx(0.9)
    np.testing.assert_allclose(
        apply_edits(chiral, Edits(rotate=(0, 90, 0))).means[-1], [tip[2], tip[1], -tip[0]], atol=1e-6
    )
    np.testing.assert_allclose(
        apply_edits(chiral, Edits(rotate=(90, 0, 0))).means[-1], [tip[0], -tip[2], tip[1]], atol=1e-6
    )


def test_apply_edits_centers_then_rotates_then_scales(chiral: Splats) -> None:
    turn = Rotation.from_euler("xyz", (10, 20, 30), degrees=True).as_matrix()
    there = apply_edits(chiral, Edits(center=True, rotate=(10, 20, 30), scale=3))
    middle = bounds(chiral)[0]
    np.testing.assert_allclose(there.means, 3 * (chiral.means - middle) @ turn.T, atol=1e-5)
    np.testing.assert_allclose(covariances(there), 9 * turn @ covariances(chiral) @ turn.T, atol=1e-6)
    np.testing.assert_allclose(bounds(apply_edits(chiral, Edits(center=True)))[0], 0, atol=1e-6)


def test_apply_edits_crops_to_box_and_ball(chiral: Splats) -> None:
    box = (-0.2, -0.5, 0.0, 0.7, 0.3, 0.8)
    rows = [i for i, (x, y, z) in enumerate(chiral.means) if -0.2 <= x <= 0.7 and -0.5 <= y <= 0.3 and 0 <= z <= 0.8]
    assert 20 < len(rows) < 300
    same(apply_edits(chiral, Edits(crop=box)), chiral.select(np.array(rows)))
    rows = [i for i, (x, y, z) in enumerate(chiral.means.astype(float)) if x * x + y * y + z * z <= 0.36]
    assert 20 < len(rows) < 300
    same(apply_edits(chiral, Edits(crop=(0.6,))), chiral.select(np.array(rows)))


def test_apply_edits_crops_before_transforming(chiral: Splats) -> None:
    whole = apply_edits(chiral, Edits(crop=(0.5,), scale=10, center=True))
    assert len(whole) == len(apply_edits(chiral, Edits(crop=(0.5,))))


def test_apply_edits_prunes_by_opacity(chiral: Splats) -> None:
    opacities = torch.sigmoid(torch.from_numpy(chiral.opacity_logits)).numpy()
    same(apply_edits(chiral, Edits(prune_opacity=0.5)), chiral.select(np.flatnonzero(opacities >= 0.5)))


def test_apply_edits_reduces_after_the_crop_and_before_the_placement(chiral: Splats) -> None:
    seen: list[Splats] = []
    found = apply_edits(
        chiral, Edits(crop=(0.5,), scale=2), reduce=lambda splats: seen.append(splats) or splats.slice_rows(slice(9))
    )
    same(seen[0], apply_edits(chiral, Edits(crop=(0.5,))))
    np.testing.assert_allclose(found.means, 2 * seen[0].means[:9], rtol=1e-6)


@pytest.mark.parametrize(("degree", "k"), [(0, 0), (1, 3), (2, 8), (3, 15)])
def test_apply_edits_truncates_harmonics(chiral: Splats, degree: int, k: int) -> None:
    np.testing.assert_array_equal(apply_edits(chiral, Edits(sh=degree)).shN, chiral.shN[:, :k])
    bare = replace(chiral, shN=chiral.shN[:, :0])
    assert apply_edits(bare, Edits(sh=degree)).shN.shape == (400, 0, 3)  # what is not there is not made up


@pytest.mark.parametrize(
    ("edits", "reason", "hint"),
    [
        (Edits(prune_opacity=0.999), "no Gaussian has an opacity of 0.999", "--prune-opacity 0.49"),
        (Edits(crop=(5, 5, 5, 6, 6, 6)), "in the box of --crop", "--crop -0.541,-0.6"),
        (Edits(crop=(0.001,)), "in the ball of --crop", "--crop 0."),
    ],
)
def test_apply_edits_refuses_an_empty_result(chiral: Splats, edits: Edits, reason: str, hint: str) -> None:
    with pytest.raises(UsageProblem, match=reason) as refused:
        apply_edits(chiral, edits)
    assert str(refused.value.hint).startswith(hint)


def image(splats: Splats, cameras: Cameras) -> np.ndarray:
    with torch.no_grad():
        seen = render(Gaussians.from_splats(splats), cameras)
    return np.concatenate([seen.rgb[0].numpy(), seen.alpha[0].numpy()], axis=-1)


TURN, FACTOR = (20.0, -130.0, 250.0), 2.5
LOSS = {"3dtiles": 0.02, "splat": 0.05, "sog": 0.02, "spz": 0.02, "spz4": 0.02, "compressed-ply": 0.005}
"""Mean difference of images due to a format's rounding; other formats keep every value."""


@pytest.mark.parametrize("format", [name for name, row in FORMATS.items() if row.readable])
def test_formats_keep_renders_of_a_transformed_asset(chiral: Splats, tmp_path: Path, format: str) -> None:
    """A camera that moves with the transformed asset sees the same image, with the same view-dependent colours."""
    path = tmp_path / f"a{FORMATS[format].suffix}"
    formats.write(path, apply_edits(chiral, Edits(rotate=TURN, scale=FACTOR)), format)
    there = formats.read(path)
    cameras = frame_sphere(torch.tensor([40.0]), torch.tensor([25.0]), SIZE)
    matrix = torch.from_numpy(Rotation.from_euler("xyz", TURN, degrees=True).as_matrix()).float()
    back = torch.eye(4)
    back[:3, :3] = matrix.T
    viewmats = cameras.viewmats @ back
    viewmats[:, :3, 3] *= FACTOR
    moved = replace(cameras, viewmats=viewmats)
    flat = replace(chiral, shN=chiral.shN[:, :0]) if not there.shN.shape[1] else chiral
    expected, found = image(flat, cameras), image(there, moved)
    covered = expected[..., 3] > 0.01
    assert covered.sum() > 1000
    assert np.abs(found - expected)[covered].mean() < LOSS.get(format, 1e-4)
    still = image(apply_edits(flat, Edits(scale=FACTOR)), replace(cameras, viewmats=viewmats))
    assert np.abs(still - expected)[covered].mean() > 0.1


READABLE = [
    pytest.param(name, marks=pytest.mark.slow) if name == "usdz" else name  # its reader is a process of its own
    for name, row in FORMATS.items()
    if row.readable
]


@pytest.mark.parametrize("source", READABLE)
@pytest.mark.parametrize("target", READABLE)
def test_export_converts_any_format_to_any_other(
    segdream_export: Callable[..., None], chiral: Splats, tmp_path: Path, source: str, target: str
) -> None:
    first, second = tmp_path / f"a{FORMATS[source].suffix}", tmp_path / f"b{FORMATS[target].suffix}"
    formats.write(first, chiral, source)
    segdream_export(first, "-o", second, "--format", target, "--rotate", "0,90,0")
    start, found = formats.read(first), formats.read(second)
    # the order of rows differs from format to format
    turned = start.means @ np.array([[0, 0, -1], [0, 1, 0], [1, 0, 0]], np.float32)
    distances = np.linalg.norm(turned[:, None] - found.means[None], axis=2)
    nearest = distances.argmin(axis=1)
    assert distances.min(axis=1).max() < 5e-3
    assert len(set(nearest.tolist())) > 390
    np.testing.assert_allclose(found.sh0[nearest].mean(axis=0), start.sh0.mean(axis=0), atol=0.02)
    assert found.shN.shape[1] == (0 if "splat" in (source, target) else 15)


@pytest.mark.parametrize("format", [name for name in READABLE if name != "splat"])  # a .splat is rows and nothing else
def test_export_keeps_provenance(
    segdream_export: Callable[..., None], chiral: Splats, tmp_path: Path, format: str
) -> None:
    about = {"prompt": "a “bus”, 東京\n<b>", "seed": 3, "prior": "some", "source": {"file": "a", "comments": ["scan"]}}
    first, second = tmp_path / "a.ply", tmp_path / f"b{FORMATS[format].suffix}"
    formats.write(first, replace(chiral, provenance=about))
    segdream_export(first, "-o", second, "--format", format, "--scale", "2", "--sh", "0")
    assert formats.read(second).provenance == about
    segdream_export(second, "-o", tmp_path / "c.html")
    told = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "<dt>Seed</dt>" in told
    assert "a “bus”, 東京 &lt;b&gt;" in told
