"""`segdream render` on CUDA: each kind of image against the CPU's."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdream_cli import formats
from segdream_cli.cli import run
from segdream_cli.splats import Splats

pytestmark = pytest.mark.gpu

VIEW = ("--view", "30,20")
KINDS = {
    "sheet": ("--contact-sheet",),
    "view": VIEW,
    "transparent": (*VIEW, "--background", "transparent"),
    "supersampled": (*VIEW, "--supersample", "2"),
    "alpha": (*VIEW, "--channel", "alpha"),
    "depth": (*VIEW, "--channel", "depth"),
    "normals": (*VIEW, "--channel", "normals"),
    "frames": ("--frames", "--n-frames", "5"),
}


@pytest.fixture
def asset(tmp_path: Path) -> Path:
    """An opaque ellipsoid with view-dependent colours, and as many faint Gaussians about it."""
    rng, n = np.random.default_rng(1), 600
    means = rng.normal(size=(n, 3))
    means *= np.array([0.3, 0.5, 0.8]) / np.linalg.norm(means, axis=1, keepdims=True)
    means[::2] *= 1.15
    values = {
        "means": means, "quats": rng.normal(size=(n, 4)), "log_scales": rng.uniform(-4, -2.5, (n, 3)),
        "opacity_logits": np.where(np.arange(n) % 2, 4.0, -2.0), "sh0": rng.uniform(-1.7, 1.7, (n, 3)),
        "shN": rng.normal(0, 0.1, (n, 15, 3)),
    }  # fmt: skip
    path = tmp_path / "asset.ply"
    formats.write(path, Splats(**{name: value.astype(np.float32) for name, value in values.items()}))
    return path


def images(asset: Path, kind: str, device: str) -> np.ndarray:
    """All samples of the written files, [images, h, w, channels], in 0..1."""
    output = asset.with_name(device if kind == "frames" else f"{device}.png")
    assert run(["render", str(asset), *KINDS[kind], "--size", "128", "--device", device, "-o", str(output)]) == 0
    files = sorted(output.iterdir()) if kind == "frames" else [output]
    shown = np.stack([np.atleast_3d(np.asarray(Image.open(file))) for file in files])
    return shown / (65535 if kind == "depth" else 255)


@pytest.mark.parametrize("kind", KINDS)
def test_render_matches_the_cpu(asset: Path, kind: str) -> None:
    """Colours agree to a step except at rims; depth and normals of a pixel depend on the order of Gaussians."""
    found, expected = images(asset, kind, "cuda"), images(asset, kind, "cpu")
    assert found.shape == expected.shape
    assert np.ptp(expected) > 0.5
    difference = np.abs(found - expected)
    assert difference.mean() < 1e-3
    assert np.quantile(difference, 0.999) < (0.05 if kind in ("depth", "normals") else 2.5 / 255)
    assert np.abs(found[:, :, ::-1] - expected).mean() > 10 * difference.mean()
