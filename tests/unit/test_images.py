"""Images: rounding, alpha, contact sheets, depth and normals."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdream_cli.errors import SegdreamError, UsageProblem
from segdream_cli.render import images


def test_to_uint8_rounds_to_nearest() -> None:
    steps = np.arange(256)
    np.testing.assert_array_equal(images.to_uint8(steps / 255), steps)
    np.testing.assert_array_equal(images.to_uint8((steps[:-1] + 0.51) / 255), steps[1:])
    np.testing.assert_array_equal(images.to_uint8((steps + 0.49).astype(np.float32) / 255), steps)
    np.testing.assert_array_equal(images.to_uint8(np.array([-3.0, 7.0])), [0, 255])


def test_to_uint8_refuses_nonfinite() -> None:
    with pytest.raises(SegdreamError, match="2 of 3 values"):
        images.to_uint8(np.array([0.5, np.nan, np.inf]))


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_write_png_round_trip(tmp_path: Path, channels: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, *channels), dtype=np.uint8)
    images.write_png(tmp_path / "bytes.png", pixels)
    images.write_png(tmp_path / "floats.png", pixels.astype(np.float32) / 255)
    for name in ("bytes.png", "floats.png"):
        with Image.open(tmp_path / name) as back:
            assert back.format == "PNG"
            np.testing.assert_array_equal(np.asarray(back), pixels)
    assert len(list(tmp_path.iterdir())) == 2


def test_write_png_of_16_bit_depth(tmp_path: Path) -> None:
    values = np.array([[0, 1, 255, 256], [32768, 65534, 65535, 7]], np.uint16)
    images.write_png(tmp_path / "depth.png", values)
    with Image.open(tmp_path / "depth.png") as back:
        np.testing.assert_array_equal(np.asarray(back), values)


def test_write_png_of_a_strided_view(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 4), dtype=np.uint8).transpose(2, 1, 0)
    images.write_png(tmp_path / "a.png", pixels)
    with Image.open(tmp_path / "a.png") as back:
        np.testing.assert_array_equal(np.asarray(back), pixels)


def test_write_png_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="can't be written"):
        images.write_png(tmp_path / "no" / "a.png", np.zeros((2, 2, 3)))


def test_straight_alpha_on_any_background() -> None:
    rng = np.random.default_rng(1)
    alpha = rng.random((8, 9))
    alpha[0] = 0
    premultiplied = rng.random((8, 9, 3)) * alpha[..., None]
    rgba = images.straight_alpha(premultiplied, alpha)
    for background in (0.0, 0.3, 1.0):
        over = premultiplied + (1 - alpha[..., None]) * background
        shown = rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:]) * background
        np.testing.assert_allclose(shown, over, atol=1e-6)
    assert (rgba[0] == 0).all()


def test_contact_sheet_fills_rows() -> None:
    tiles = [np.full((10, 20, 3), i / 10) for i in range(5)]
    sheet = images.contact_sheet(tiles, columns=3)
    assert sheet.shape == (20, 60, 3)
    for i, tile in enumerate(tiles):
        top, left = i // 3 * 10, i % 3 * 20
        np.testing.assert_array_equal(sheet[top : top + 10, left : left + 20], images.to_uint8(tile))
    assert (sheet[10:, 40:] == 255).all()
    assert images.contact_sheet(tiles[:2], columns=8).shape == (10, 40, 3)


def test_contact_sheet_labels_stay_in_their_tile() -> None:
    tiles = [np.zeros((64, 128, 3), np.uint8)] * 4
    labels = ["front", "left side", "back " * 30, "größer 日本\n"]
    sheet = images.contact_sheet(tiles, 2, labels)
    strip = sheet.shape[0] // 2 - 64
    assert 12 <= strip <= 32
    cells = [sheet[r * (64 + strip) :][:strip, c * 128 :][:, :128] for r in range(2) for c in range(2)]
    inked = [(cell < 128).any(axis=2) for cell in cells]
    assert all(20 < ink.sum() < ink.size / 2 for ink in inked)
    assert not any(ink[:, :2].any() or ink[:, -2:].any() for ink in inked)
    assert len({ink.tobytes() for ink in inked}) == 4
    for r in range(2):
        assert (sheet[r * (64 + strip) + strip :][:64] == 0).all()


def test_contact_sheet_refuses_wrong_label_count() -> None:
    with pytest.raises(ValueError, match="1 labels for 2 images"):
        images.contact_sheet([np.zeros((4, 4, 3))] * 2, 2, ["one"])


def test_depth_to_uint16_reads_back() -> None:
    rng = np.random.default_rng(2)
    depth = rng.uniform(1.5, 4.5, (16, 16))
    alpha = rng.random((16, 16))
    values = images.depth_to_uint16(depth, alpha, near=1.0, far=5.0)
    assert values.dtype == np.uint16
    seen = alpha > 0.5
    assert (values[~seen] == 0).all()
    back = 1.0 + (values[seen] - 1.0) / 65534 * 4.0
    np.testing.assert_allclose(back, depth[seen], atol=4.0 / 65534 / 2 + 1e-9)


def test_depth_to_uint16_at_the_planes() -> None:
    depth = np.array([[0.0, 1.0, 5.0, 9.0, np.nan]])
    alpha = np.array([[1.0, 1.0, 1.0, 1.0, 0.0]])
    np.testing.assert_array_equal(images.depth_to_uint16(depth, alpha, 1, 5), [[1, 1, 65535, 65535, 0]])
    grey = images.depth_preview(depth, alpha, 1, 5)
    np.testing.assert_array_equal(grey[0, :, 0], [255, 255, 51, 51, 0])
    assert (grey == grey[..., :1]).all()


def test_normals_to_rgb() -> None:
    normals = np.array([[[1, 0, 0], [0, -1, 0], [0, 0, 0]]], np.float32)
    np.testing.assert_array_equal(images.normals_to_rgb(normals), [[[255, 128, 128], [128, 0, 128], [128, 128, 128]]])
