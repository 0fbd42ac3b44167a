"""EXR files, read by ffmpeg, and linear light."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from segdream_cli.errors import EnvironmentProblem
from segdream_cli.render import exr
from segdream_cli.render.exr import linear, load_openexr, premultiply_linear, write_exr


def decoded(path: Path, pix_fmt: str, channels: int, *options: str) -> np.ndarray:
    """The values [h, w, channels] of a 7 by 5 image, as ffmpeg's own decoder reads them."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *options, "-i", str(path), "-f", "rawvideo"]
    done = subprocess.run([*command, "-pix_fmt", pix_fmt, "-"], capture_output=True, check=True)
    planes = np.frombuffer(done.stdout, "<f4").reshape(channels, 5, 7)
    return np.moveaxis(planes, 0, -1)


def test_linear_is_the_srgb_curve() -> None:
    """Known values: half of the light is sRGB 188, 18 % grey is 118."""
    np.testing.assert_allclose(linear(np.array([0, 1, 188 / 255, 118 / 255])), [0, 1, 0.5029, 0.1812], atol=1e-4)
    np.testing.assert_allclose(np.diff(linear(np.array([0.04045, 0.0404501]))), 0, atol=1e-6)
    rgba = np.array([[[188 / 255, 1.0, 0.0, 0.25]]])
    np.testing.assert_allclose(premultiply_linear(rgba)[0, 0], [0.1257, 0.25, 0, 0.25], atol=1e-4)


def test_write_exr_is_read_by_ffmpeg(tmp_path: Path) -> None:
    pytest.importorskip("OpenEXR")
    image = np.random.default_rng(1).uniform(0, 1, (5, 7, 4)).astype(np.float32)
    write_exr(tmp_path / "a.exr", image)
    found = decoded(tmp_path / "a.exr", "gbrapf32le", 4)  # planes in the order G, B, R, A
    np.testing.assert_allclose(found[..., [2, 0, 1, 3]], image, atol=1e-3)
    write_exr(tmp_path / "b.exr", image[..., :3])
    np.testing.assert_allclose(decoded(tmp_path / "b.exr", "gbrpf32le", 3)[..., [2, 0, 1]], image[..., :3], atol=1e-3)


def test_write_exr_keeps_depth_in_full_precision(tmp_path: Path) -> None:
    library = pytest.importorskip("OpenEXR")
    depth = np.random.default_rng(1).uniform(1, 3, (5, 7)).astype(np.float32)
    write_exr(tmp_path / "a.exr", depth)
    with library.File(str(tmp_path / "a.exr")) as file:
        np.testing.assert_array_equal(file.channels()["Z"].pixels, depth)


def test_load_openexr_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(exr, "import_module", missing)
    with pytest.raises(EnvironmentProblem, match="OpenEXR, which is missing") as raised:
        load_openexr()
    assert raised.value.hint == 'pip install "segdream[exr]"'
