"""`segdream export --for`: files as the importers of engines place them, and in CesiumJS as it shows them."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import MISSING
from covariances import covariances
from plyfile import PlyData
from test_mesh import CHIRAL, LIBRARIES, SMALL, boxes
from viewers import Viewer, check, viewer

from segdream_cli import formats, mesh
from segdream_cli.cli import run
from segdream_cli.cli.targets import TARGETS, list_options
from segdream_cli.errors import UsageProblem
from segdream_cli.formats import spz, tiles
from segdream_cli.formats.common import Reading
from segdream_cli.splats import Splats
from segdream_cli.splats.sizing import extents

ROOT = Path(__file__).parents[2]
EVERY = [(name, each.suffix, each.format) for name, several in TARGETS.items() for each in several]
IMPORTERS = {
    # (world axis of each of the file's numbers, and in the world: right of a viewer in front, up, towards the viewer)
    "unity.ply": (("x", "y", "z"), ("-x", "y", "z")),
    "unreal.ply": (("y", "-z", "x"), ("-y", "z", "x")),
    "godot.ply": (("-x", "-y", "z"), ("x", "y", "z")),
    "blender.ply": (("x", "y", "z"), ("x", "z", "-y")),
    "visionos.spz": (("-x", "y", "-z"), ("x", "y", "z")),
    "quest.spz": (("x", "y", "z"), ("x", "y", "z")),
}
"""As the importers' sources say: GaussianFileReader.cs of UnityGaussianSplatting and KIRI's add-on take numbers as they
are, PLYFileReader.cpp of NanoGS swaps axes, the nodes of gdgs begin with half a turn about z, and MetalSplatter's
sample app does the same after its reader has turned SPZ about x. Meta's reader is closed; SPZ's specification says
RUB. An engine's objects face +z in Unity and Godot, +x in Unreal, -y in Blender."""


def columns(axes: tuple[str, str, str]) -> np.ndarray:
    """The unit vectors [3, 3] of axes such as "-x", as columns."""
    return np.stack([np.eye(3)["xyz".index(axis[-1])] * (-1 if axis[0] == "-" else 1) for axis in axes], axis=1)


def numbers(path: Path) -> Splats:
    """The numbers of a file as they are: those of a PLY through plyfile."""
    if path.suffix == ".spz":
        return spz.read(path, Reading(frame="rub"))
    rows = PlyData.read(str(path))["vertex"].data

    def some(*names: str) -> np.ndarray:
        return np.stack([rows[name] for name in names], axis=1)

    return Splats(
        means=some("x", "y", "z"),
        quats=some("rot_0", "rot_1", "rot_2", "rot_3"),
        log_scales=some("scale_0", "scale_1", "scale_2"),
        opacity_logits=rows["opacity"],
        sh0=some("f_dc_0", "f_dc_1", "f_dc_2"),
        shN=np.stack([some(*(f"f_rest_{15 * rgb + i}" for i in range(15))) for rgb in range(3)], axis=2),
    )


@pytest.mark.parametrize("name", IMPORTERS)
def test_importers_place_it_upright(
    tmp_path: Path, chiral: Splats, segdream_export: Callable[..., None], name: str
) -> None:
    target, suffix = name.split(".")
    formats.write(tmp_path / "a.ply", chiral)
    segdream_export(tmp_path / "a.ply", "--for", target, "-o", tmp_path / f"b.{suffix}")
    file, world = map(columns, IMPORTERS[name])
    found = numbers(tmp_path / f"b.{suffix}")
    rounding = suffix == "spz"
    there = found.means @ file.T
    expected = chiral.means @ world.T
    np.testing.assert_allclose(there - there[0], expected - expected[0], atol=4e-5 if rounding else 1e-6)
    shapes = file @ covariances(found) @ file.T
    true = world @ covariances(chiral) @ world.T
    np.testing.assert_allclose(shapes, true, atol=(0.07 if rounding else 1e-5) * np.abs(true).max())
    if "pivot" in next(each for each in TARGETS[target] if each.suffix == f".{suffix}").options:
        low, high = extents(replace(chiral, means=(there @ world).astype(np.float32)))
        np.testing.assert_allclose([low[1], low[0] + high[0], low[2] + high[2]], 0, atol=1e-4)


BPY = os.environ.get("SEGDREAM_BPY_PYTHON", sys.executable if importlib.util.find_spec("bpy") else "")
"""A Python with Blender as the module bpy."""
IN_BLENDER = """
import json, sys, bpy
bpy.ops.wm.read_factory_settings(use_empty=True)
load = bpy.ops.import_scene.gltf if sys.argv[1].endswith("glb") else bpy.ops.wm.ply_import
load(filepath=sys.argv[1])
(found,) = bpy.data.objects
print("\\n" + json.dumps([list(found.matrix_world @ each.co) for each in found.data.vertices]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not BPY, reason="needs Blender as a module: pip install bpy, or SEGDREAM_BPY_PYTHON")
@pytest.mark.parametrize("suffix", [".glb", ".ply"])
def test_blender_places_it_upright(
    tmp_path: Path,
    chiral: Splats,
    segdream_export: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    """A letter F with a foot at its front, and the helix: the front is at -y, and the ground at 0."""
    letter = mesh.extract(boxes(*CHIRAL), **SMALL) if suffix == ".glb" else None
    monkeypatch.setattr(mesh, "extract", lambda *_, **__: letter)
    formats.write(tmp_path / "a.ply", chiral)
    segdream_export(tmp_path / "a.ply", "--for", "blender", "-o", tmp_path / f"b{suffix}")
    command = [BPY, "-c", IN_BLENDER, str(tmp_path / f"b{suffix}")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    there = np.array(json.loads(done.stdout.splitlines()[-1]))
    if letter is None:
        x, y, z = (chiral.means - chiral.means[0]).T
        np.testing.assert_allclose(there - there[0], np.stack([x, -z, y], axis=1), atol=1e-5)
        return
    low, high = there.min(axis=0), there.max(axis=0)
    np.testing.assert_allclose(high - low - 0.06, [0.7, 0.59, 1.2], atol=0.03)  # a Gaussian reaches 0.03 beyond it
    assert abs(low[2]) < 1e-3
    assert np.median(there[:, 1]) > 0.1  # the foot is at -y
    assert np.median(there[:, 0]) < -0.05  # and the arms of the letter point to +x


@pytest.mark.parametrize(("name", "suffix", "format"), EVERY)
def test_target_is_short_for_its_command(
    tmp_path: Path,
    chiral: Splats,
    segdream_export: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    suffix: str,
    format: str,
) -> None:
    """The files are equal bit for bit, an option of the user counts, and the note and --json name the command."""
    if format == "mesh":
        for each in LIBRARIES:
            pytest.importorskip(each, reason=f'the extra "mesh" is not installed: {each} is missing')
        small = mesh.extract(boxes(*CHIRAL), **SMALL)
        monkeypatch.setattr(mesh, "extract", lambda *_, **__: small)
    monkeypatch.chdir(tmp_path)
    formats.write(Path("a.ply"), chiral)
    segdream_export("a.ply", "--for", name, "-o", f"b{suffix}", "--pivot", "center", "--json")
    said = capsys.readouterr()
    line = json.loads(said.out.splitlines()[-1])
    assert (line["target"], line["format"], line["command"][:3]) == (name, format, ["segdream", "export", "--force"])
    assert f"is short for: {shlex.join(line['command'])}\n" in said.err
    files = [Path(each) for each in line["files"]]
    before = [each.read_bytes() for each in files]
    words = line["command"][3:]
    assert "--for" not in words
    assert words.count("--pivot") == 1
    segdream_export(*words)
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (again["target"], again["command"], again["files"]) == (None, None, line["files"])
    assert [each.read_bytes() for each in files] == before


def test_target_names_its_file(
    tmp_path: Path, chiral: Splats, segdream_export: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    formats.write(Path("a.compressed.ply"), chiral)
    segdream_export("a.compressed.ply", "--for", "cesium")
    assert sorted(path.name for path in Path().iterdir()) == [
        "a-cesium.glb", "a-cesium.tileset.json", "a.compressed.ply",
    ]  # fmt: skip


def test_target_refuses_other_suffixes(tmp_path: Path, chiral: Splats, capsys: pytest.CaptureFixture[str]) -> None:
    formats.write(tmp_path / "a.ply", chiral)
    command = ["export", str(tmp_path / "a.ply"), "--for", "blender", "-o"]
    assert run([*command, "b.sog"]) == 2
    said = capsys.readouterr().err
    assert "--for blender writes .glb or .ply files, not b.sog\n" in said
    assert said.endswith("/a.ply --for blender -o b.glb\n")
    assert run([*command, "b.glb", "-o", "b.ply"]) == 2


def test_target_limits_the_gaussians_unless_told(
    tmp_path: Path, chiral: Splats, segdream_export: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(TARGETS["quest"][0], options={"max_gaussians": 100, "sh": 0})
    monkeypatch.setattr("segdream_cli.cli.targets.TARGETS", {"quest": [small]})
    formats.write(tmp_path / "a.ply", chiral)
    for options, count, bands in (((), 100, 0), (("--keep", "50%", "--sh", "1"), 200, 3)):
        segdream_export(tmp_path / "a.ply", "--for", "quest", "-o", tmp_path / "b.spz", *options)
        back = formats.read(tmp_path / "b.spz")
        assert (len(back), back.shN.shape[1]) == (count, bands)


def test_engines_page_has_the_targets() -> None:
    rows = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8").splitlines()
    written = [[cell.strip() for cell in row.split("|")[1:4]] for row in rows if row.startswith("| `")][1:]
    assert written == [
        [f"`{name}`", target.importer, f"`{shlex.join(list_options(target))}`"]
        for name, several in TARGETS.items()
        for target in several
    ]


@pytest.mark.parametrize("k", [0, 3, 15])
def test_packed_tile_has_the_values_of_spz(tmp_path: Path, chiral: Splats, k: int) -> None:
    """The tile's box, in Cesium's axes, holds all centres, and no side is far from them."""
    splats = replace(chiral, shN=chiral.shN[:, :k])
    tiles.write(tmp_path / "a b.glb", splats)
    spz.write(tmp_path / "a.spz", splats)
    one, other = formats.read(tmp_path / "a b.glb"), formats.read(tmp_path / "a.spz")
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, other.arrays()[name])
    assert one.provenance == splats.provenance
    tileset = json.loads((tmp_path / "a b.tileset.json").read_text())
    assert tileset["root"]["content"]["uri"] == "a%20b.glb"
    center, *sides = np.reshape(tileset["root"]["boundingVolume"]["box"], (4, 3))
    away = np.abs(splats.means @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]) - center)
    room = np.abs(sides).sum(axis=0) - away.max(axis=0)
    assert (room > 0).all()
    assert (room < 0.5).all()


@pytest.mark.parametrize(("suffix", "format"), [(".spz", "spz"), (".glb", "3dtiles"), (".html", "html")])
def test_files_with_spz_inside_refuse_far_centers(tmp_path: Path, chiral: Splats, suffix: str, format: str) -> None:
    """The hint names a file beside the output, not one of a scratch folder."""
    far = chiral.means.copy()
    far[0] = 7e8
    with pytest.raises(UsageProblem, match="the centres reach 7e\\+08 units") as refused:
        formats.write(tmp_path / f"a{suffix}", replace(chiral, means=far), format)
    assert refused.value.hint == f"-o {tmp_path / 'a.ply'}"
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def cesium(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    with viewer("cesium.html", tmp_path_factory.mktemp("served"), node_modules, ["cesium"]) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
@pytest.mark.parametrize("k", [0, 15])
def test_cesium_shows_it(chiral: Splats, cesium: Viewer, segdream_export: Callable[..., None], k: int) -> None:
    formats.write(cesium.folder / f"{k}.ply", replace(chiral, shN=chiral.shN[:, :k]))
    file = cesium.folder / f"{k}.glb"
    segdream_export(cesium.folder / f"{k}.ply", "--for", "cesium", "-o", file)
    cesium.load(file.with_suffix(tiles.BESIDE))
    check(cesium, formats.read(file))
