"""Shared fixtures of the format tests."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segdream_cli.splats import Splats

SIZE = 400
"""Gaussians of the chiral asset: more than one chunk of 256, and not a multiple of it."""


@pytest.fixture
def chiral() -> Splats:
    """A right-handed helix about +y with a spike towards +Z, degree-3 spherical harmonics, inside the unit sphere.

    Mirrored or turned it is another object: red grows along x, green along y, blue along z, each Gaussian lies along
    the tangent, and its higher harmonics are noise of their own, which no sign error leaves as they are.
    """
    rng = np.random.default_rng(20261122)
    along = np.linspace(0, 1, SIZE)
    angle = 5 * np.pi * along
    radius = 0.3 + 0.4 * along
    centres = np.stack([radius * np.cos(angle), 1.2 * along - 0.6, -radius * np.sin(angle)], axis=1)
    spike = slice(SIZE - 40, SIZE)
    centres[spike] = np.stack([np.full(40, 0.05), np.full(40, 0.2), np.linspace(0.1, 0.9, 40)], axis=1)
    tangent = np.gradient(centres, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    half = tangent + np.array([1, 0, 0])  # the turn that takes x to the tangent is half a turn about the middle of both
    half /= np.linalg.norm(half, axis=1, keepdims=True) + 1e-9
    roll = rng.uniform(-np.pi, np.pi, SIZE) / 2
    quats = np.concatenate([np.zeros((SIZE, 1)), half], axis=1)
    # times a roll about x, (cos, sin, 0, 0), on the right
    w, x, y, z = quats.T
    c, s = np.cos(roll), np.sin(roll)
    quats = np.stack([w * c - x * s, w * s + x * c, y * c + z * s, z * c - y * s], axis=1)
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    return Splats(
        means=centres.astype(np.float32),
        quats=quats.astype(np.float32),
        log_scales=(np.log([0.05, 0.02, 0.01]) + rng.normal(0, 0.2, (SIZE, 3))).astype(np.float32),
        opacity_logits=rng.uniform(-2, 4, SIZE).astype(np.float32),
        sh0=(centres / 0.9 * 1.5).astype(np.float32),
        shN=np.clip(rng.normal(0, 0.15, (SIZE, 15, 3)), -0.9, 0.9).astype(np.float32),
        provenance={"prompt": "a helix, “chiral”", "seed": 3},
    )


@pytest.fixture
def three() -> Splats:
    """The content of the files in tests/data that other tools wrote; their rounding keeps most of these values."""
    return Splats(
        means=np.array([[0.25, 0.5, -0.75], [-0.125, 0.0, 0.625], [0.0, -0.5, 0.375]], np.float32),
        quats=np.array([[0.5, 0.5, -0.5, 0.5], [0.8, 0.0, 0.6, 0.0], [0.0, 0.28, 0.0, -0.96]], np.float32),
        log_scales=np.array([[-3.0, -4.0, -5.0], [-2.5, -3.5, -4.5], [-6.0, -2.0, -4.0]], np.float32),
        opacity_logits=np.array([2.0, -1.0, 0.5], np.float32),
        sh0=np.array([[1.0, 0.5, -1.0], [-0.25, 0.75, 0.0], [0.1, -0.6, 1.2]], np.float32),
        shN=((np.arange(27).reshape(3, 3, 3) - 13) / 16).astype(np.float32),
    )


NODE_MODULES = "SEGDREAM_NODE_MODULES"
"""Environment variable with the folder of npm's tools; `.ci/run` uses the default."""


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The folder of other projects' readers and writers; skips the test without it."""
    ours = Path(__file__).resolve().parents[2] / ".node" / "node_modules"
    folder = Path(os.environ.get(NODE_MODULES, ours)).resolve()
    if not (folder / ".bin" / "node").exists():
        pytest.skip(
            f"{folder / '.bin' / 'node'} is missing: mkdir -p .node && cp .ci/package.json .node/ && "
            f"npm install --prefix .node, or name another folder in {NODE_MODULES}"
        )
    return folder


@pytest.fixture(scope="session")
def splat_transform(node_modules: Path) -> Callable[..., None]:
    """Runs PlayCanvas's converter: `splat_transform(*options, source, target)`."""
    program = node_modules / "@playcanvas" / "splat-transform" / "bin" / "cli.mjs"
    if not program.exists():
        pytest.skip(f"{program} is missing: npm install @playcanvas/splat-transform")

    def run(*arguments: object) -> None:
        command = [node_modules / ".bin" / "node", program, "-w", *arguments]
        done = subprocess.run([str(each) for each in command], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.fixture
def segdream_export() -> Callable[..., None]:
    """Runs `segdream export` in this process."""
    from segdream_cli.cli import run

    def export(*arguments: object) -> None:
        assert run(["export", "--force", *map(str, arguments)]) == 0

    return export
