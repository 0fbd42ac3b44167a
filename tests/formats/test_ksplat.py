""".ksplat: files by hand, from the description of the layout, and other readers of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from closeness import opacities
from foreign_files import SIDE, ksplat_file

from segdream_cli import formats
from segdream_cli.errors import UsageProblem
from segdream_cli.formats import ksplat, ply
from segdream_cli.splats import Splats


@pytest.fixture
def small(chiral: Splats) -> Splats:
    """100 Gaussians in order, so that buckets are small; within the range of the harmonics' bytes."""
    return chiral.slice_rows(slice(100))


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("sections", [1, 3])
def test_read_is_within_rounding(tmp_path: Path, small: Splats, level: int, degree: int, sections: int) -> None:
    path = tmp_path / "a.ksplat"
    path.write_bytes(ksplat_file(small, level, degree, sections, room=7))
    for back in (ksplat.read(path), formats.read(path.rename(tmp_path / "a.splat"))):
        step = SIDE / 2 / 32767 if level else 0
        np.testing.assert_allclose(back.means, small.means, rtol=0, atol=0.51 * step)
        np.testing.assert_allclose(back.log_scales, small.log_scales, rtol=0, atol=1e-3 if level else 1e-6)
        np.testing.assert_allclose(back.quats, small.quats, rtol=0, atol=1e-3 if level else 1e-6)
        np.testing.assert_allclose(opacities(back), opacities(small), rtol=0, atol=0.5 / 255 + 1e-6)
        colors = [np.clip(0.5 + 0.28209479177387814 * each.sh0, 0, 1) for each in (back, small)]
        np.testing.assert_allclose(*colors, atol=0.5 / 255 + 1e-6)
        k = (0, 3, 8)[degree]
        assert back.shN.shape == (100, k, 3)
        tolerance = (1e-6, 1e-3, 0.51 * 2 / 255)[level]
        np.testing.assert_allclose(back.shN, small.shN[:, :k], rtol=0, atol=tolerance)
        path.write_bytes(b"")


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 1, 2])
def test_splat_transform_reads_the_same(
    tmp_path: Path, small: Splats, splat_transform: Callable[..., None], level: int
) -> None:
    path = tmp_path / "a.ksplat"
    path.write_bytes(ksplat_file(small, level, 2))
    splat_transform(path, tmp_path / "a.ply")
    theirs, ours = ply.read(tmp_path / "a.ply"), ksplat.read(path)
    for name in ("means", "quats", "log_scales", "sh0", "shN"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=2e-6, err_msg=name)
    np.testing.assert_allclose(opacities(ours), opacities(theirs), atol=1e-5)


SECTION = 4096
DAMAGE = {
    "claims 4294967295 Gaussians": (SECTION, b"\xff\xff\xff\xff"),
    "more than its bytes hold": (SECTION + 12, b"\xff\xff\xff\xff"),
    "in 7 buckets": (SECTION + 20, b"\x04"),
    "do not hold its 100": (SECTION + 32, b"\x01"),
    "do not hold its 100 Gaussians": (SECTION + 8, b"\xff\xff\xff\xff"),
    "refers to more": (SECTION + 12, b"\x05"),
    "claims SH degree 9": (SECTION + 40, b"\x09"),
    "version 0.1": (1, b"\x02"),
    "not a .ksplat": (4, b"\xff\xff"),
    ".ksplat file": (16, bytes(4)),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_read_refuses_damage(tmp_path: Path, small: Splats, reason: str) -> None:
    at, value = DAMAGE[reason]
    content = bytearray(ksplat_file(small, 1, 1))
    content[at : at + len(value)] = value
    (tmp_path / "a.ksplat").write_bytes(content)
    with pytest.raises(UsageProblem, match=reason):
        ksplat.read(tmp_path / "a.ksplat")


def test_read_refuses_truncation(tmp_path: Path, small: Splats) -> None:
    content = ksplat_file(small, 2, 2)
    for size in (0, 1, 4096, 5119, 5200, len(content) - 1):
        (tmp_path / "a.ksplat").write_bytes(content[:size])
        with pytest.raises(UsageProblem):
            ksplat.read(tmp_path / "a.ksplat")
