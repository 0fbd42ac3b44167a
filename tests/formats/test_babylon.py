"""Our files in Babylon.js, an independent viewer: its images against the CPU rasteriser's.

Meshes are compared with the images of the Gaussians that they were made from.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import MISSING
from test_mesh import CHIRAL, LIBRARIES, SMALL, boxes
from viewers import AZIMUTHS, CONTROL, ELEVATIONS, SIZE, Viewer, check, on_white, rasterized, viewer

from segdream_cli import mesh
from segdream_cli.formats import glb, points, read, spz, usd
from segdream_cli.render.cameras import frame_sphere
from segdream_cli.splats import BANDS, SH_C0, Splats
from segdream_cli.splats.transform import transform

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
KHR = "KHR_gaussian_splatting"


@pytest.fixture(scope="module")
def babylon(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    packages = ("babylonjs", "babylonjs-loaders", "@adobe/spz")
    with viewer("babylon.html", tmp_path_factory.mktemp("served"), node_modules, packages) as opened:
        yield opened


@pytest.mark.parametrize("k", BANDS)
def test_glb_in_babylon(chiral: Splats, babylon: Viewer, k: int) -> None:
    splats = replace(chiral, shN=chiral.shN[:, :k])
    file = babylon.folder / f"{k}.glb"
    glb.write(file, splats)
    assert ["GaussianSplattingMesh", len(chiral), BANDS.index(k)] in babylon.load(file)
    check(babylon, splats)


@pytest.mark.parametrize("k", BANDS)
def test_spz_version_4_in_babylon(chiral: Splats, babylon: Viewer, k: int) -> None:
    """Decoded by the official library, from npm, which Babylon asks for files of this version."""
    file = babylon.folder / f"{k}.spz"
    spz.write(file, replace(chiral, shN=chiral.shN[:, :k]), version=4)
    assert file.read_bytes()[:4] == b"NGSP"
    assert babylon.load(file, "", True) == [["GaussianSplattingMesh", len(chiral), BANDS.index(k)]]
    check(babylon, read(file))


def test_check_rejects_another_asset(chiral: Splats, babylon: Viewer) -> None:
    """The file of an asset that is turned by ten degrees, looks the other way, or is gone by a hundredth."""
    for number, degrees, shift in ((0, 10, 0.0), (1, 180, 0.0), (2, 0, 0.01)):
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        file = babylon.folder / f"turned{number}.glb"
        glb.write(file, transform(chiral, np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]), np.full(3, shift)))
        babylon.load(file)
        with pytest.raises(AssertionError):
            check(babylon, chiral)


def test_points_in_babylon(chiral: Splats, babylon: Viewer) -> None:
    """Each drawn pixel has the position and the colour of a point, and each point has a pixel."""
    file = babylon.folder / "points.ply"
    points.write(file, chiral)
    assert babylon.load(file) == [["Mesh", len(chiral), None]]
    cameras = frame_sphere(AZIMUTHS, ELEVATIONS, SIZE)
    colours = np.clip(0.5 + SH_C0 * chiral.sh0, 0, 1)
    for view in range(2):
        image = babylon.image(cameras, view, torch.zeros(3))
        rows, columns = np.nonzero((image < 0.99).any(axis=2))
        viewmat, K = (values[view].numpy() for values in (cameras.viewmats, cameras.Ks))
        seen = (chiral.means @ viewmat[:3, :3].T + viewmat[:3, 3]) @ K.T
        seen = seen[:, :2] / seen[:, 2:]
        away = np.abs(np.stack([columns, rows], axis=1)[:, None] + 0.5 - seen).max(axis=2)
        assert away.min(axis=0).max() < 0.6
        assert away.min(axis=1).max() < 0.6
        difference = np.abs(image[rows, columns] - colours[away.argmin(axis=1)]).max(axis=1)
        assert np.quantile(difference, 0.95) < 0.6 / 255  # where two points share a pixel, the other may be nearer
        assert np.abs(columns[:, None] + 0.5 - (SIZE - seen[:, 0])).min(axis=1).max() > 10


def as_gltf(values: dict[str, np.ndarray]) -> bytes:
    """A .glb of KHR_gaussian_splatting with these attributes as they are."""
    kinds = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
    arrays = {name: np.ascontiguousarray(array, "<f4").reshape(len(array), -1) for name, array in values.items()}
    accessors, views, at = [], [], 0
    for index, array in enumerate(arrays.values()):
        views.append({"buffer": 0, "byteOffset": at, "byteLength": array.nbytes})
        accessors.append(
            {"bufferView": index, "componentType": 5126, "count": len(array), "type": kinds[array.shape[1]]}
        )
        at += array.nbytes
    low, high = (getattr(arrays["POSITION"], name)(axis=0).tolist() for name in ("min", "max"))
    accessors[list(arrays).index("POSITION")] |= {"min": low, "max": high}
    primitive = {"mode": 0, "attributes": {name: index for index, name in enumerate(arrays)}}
    primitive["extensions"] = {KHR: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}}
    document = {
        "asset": {"version": "2.0"}, "extensionsUsed": [KHR], "scene": 0, "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}], "meshes": [{"primitives": [primitive]}], "accessors": accessors,
        "bufferViews": views, "buffers": [{"byteLength": at}],
    }  # fmt: skip
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", at, b"BIN\0")
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks) + at) + chunks + b"".join(map(bytes, arrays.values()))


def of_pixars_library(file: Path) -> dict[str, np.ndarray]:
    """The values in a stage of Gaussians, under glTF's names for the same quantities."""
    stage = import_module("pxr.Usd").Stage.Open(str(file))
    prim = stage.GetDefaultPrim()
    assert prim.GetTypeName() == "ParticleField3DGaussianSplat"

    def get(name: str) -> Any:
        return prim.GetAttribute(name).Get()

    turns = [(*turn.GetImaginary(), turn.GetReal()) for turn in get("orientations")]
    values = {
        "POSITION": np.array(get("positions")), f"{KHR}:ROTATION": np.array(turns),
        f"{KHR}:SCALE": np.array(get("scales")), f"{KHR}:OPACITY": np.array(get("opacities")),
    }  # fmt: skip
    degree = get("radiance:sphericalHarmonicsDegree")
    names = [f"{KHR}:SH_DEGREE_{band}_COEF_{i}" for band in range(degree + 1) for i in range(2 * band + 1)]
    harmonics = np.array(get("radiance:sphericalHarmonicsCoefficients")).reshape(-1, len(names), 3)
    return values | {name: harmonics[:, i] for i, name in enumerate(names)}


@pytest.mark.parametrize("k", [0, 15])
def test_usdz_through_pixars_library(chiral: Splats, babylon: Viewer, k: int) -> None:
    """No browser viewer reads .usdz: Pixar's library opens it, and the test shows its values."""
    pytest.importorskip("pxr.Usd", reason='the extra "usd" is not installed')
    splats = replace(chiral, shN=chiral.shN[:, :k])
    usd.write(babylon.folder / "a.usdz", splats)
    file = babylon.folder / f"usd{k}.glb"
    file.write_bytes(as_gltf(of_pixars_library(babylon.folder / "a.usdz")))
    assert ["GaussianSplattingMesh", len(chiral), BANDS.index(k)] in babylon.load(file)
    check(babylon, splats)


@pytest.fixture(scope="module")
def letter() -> tuple[Splats, mesh.Mesh]:
    for name in LIBRARIES:
        pytest.importorskip(name, reason=f'the extra "mesh" is not installed: {name} is missing')
    splats = boxes(*CHIRAL)
    return splats, mesh.extract(splats, **SMALL)


@pytest.mark.parametrize(
    ("suffix", "colors", "compress"),
    [(".obj", "texture", False)]
    + [(".glb", colors, compress) for colors in ("texture", "vertex") for compress in (False, True)],
)
def test_meshes_in_babylon(
    letter: tuple[Splats, mesh.Mesh], babylon: Viewer, suffix: str, colors: str, compress: bool
) -> None:
    """From cameras that did not bake the colours; only the edge differs, which the Gaussians blur."""
    splats, one = letter
    if compress:
        pytest.importorskip("DracoPy")
    if colors == "vertex":
        one = mesh.extract(splats, **SMALL, colors=colors)
    file = babylon.folder / f"letter{colors}{compress}{suffix}"
    mesh.write(file, one, compress=compress)
    (found,) = [vertices for kind, vertices, _ in babylon.load(file) if kind == "Mesh" and vertices]
    assert abs(found - len(one.vertices)) <= (0.02 if compress else 0) * len(one.vertices)
    cameras = frame_sphere(torch.tensor([20.0, 130.0, 250.0]), torch.tensor([10.0, 35.0, -20.0]), SIZE, extent=0.75)
    seen = rasterized(splats, cameras)
    for view, ours in enumerate(on_white(seen)):
        theirs = babylon.image(cameras, view, torch.zeros(3))
        hit, opaque = (theirs < 0.99).any(axis=2), seen.alpha[view, ..., 0].numpy() > 0.5
        both = hit | opaque
        assert both.sum() > 20_000
        assert (hit & opaque).sum() / both.sum() > 0.96
        assert np.abs(theirs - ours)[both].mean() < 10 / 255
        for other in (ours[:, ::-1], ours[::-1]):
            assert np.abs(theirs - other)[both].mean() > CONTROL
