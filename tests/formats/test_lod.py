"""Levels of detail: the folder's structure, splat-transform's reader, and PlayCanvas's engine in Chromium."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import MISSING
from covariances import covariances
from viewers import AZIMUTHS, ELEVATIONS, SIZE, Viewer, check, on_white, rasterized, viewer

from segdream_cli.errors import OutputExists, SegdreamError
from segdream_cli.formats import lod, read
from segdream_cli.render.cameras import frame_sphere
from segdream_cli.simplify.levels import build_levels
from segdream_cli.splats import Splats
from segdream_cli.util.files import write_policy

CHUNK = 100


@pytest.fixture
def levels(chiral: Splats) -> list[Splats]:
    """The chiral asset, and two levels that are parts of it."""
    return [chiral, chiral.select(np.arange(0, 400, 3)), chiral.select(np.arange(0, 400, 20))]


@pytest.fixture
def scene(levels: list[Splats], tmp_path: Path) -> Path:
    lod.write(tmp_path / "scene", levels, chunk=CHUNK)
    return tmp_path / "scene"


def leaves(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The leaves of a tree, after a check that a node's bound holds those of its children."""
    for child in node.get("children", ()):
        assert (np.array(child["bound"]["min"]) >= node["bound"]["min"]).all()
        assert (np.array(child["bound"]["max"]) <= node["bound"]["max"]).all()
        yield from leaves(child)
    if "children" not in node:
        yield node


def test_write_puts_every_gaussian_into_one_chunk_of_its_level(levels: list[Splats], scene: Path) -> None:
    meta = json.loads((scene / "lod-meta.json").read_text())
    assert (meta["version"], meta["lodLevels"], meta["counts"]) == (1, 3, [400, 134, 20])
    assert meta["asset"]["extras"]["segdream"]["seed"] == 3
    units = [read(scene / name) for name in meta["filenames"]]
    found = list(leaves(meta["tree"]))
    assert len(found) >= 6
    seen: dict[tuple[int, int], int] = {}
    for leaf in found:
        assert sum(each["count"] for each in leaf["lods"].values()) <= CHUNK
        for level, part in leaf["lods"].items():
            assert meta["filenames"][part["file"]].startswith(f"{level}_")
            assert seen.get((int(level), part["file"]), 0) == part["offset"]
            seen[int(level), part["file"]] = part["offset"] + part["count"]
            rows = slice(part["offset"], part["offset"] + part["count"])
            inside = units[part["file"]].means[rows] * [1, -1, -1]  # in the PLY frame
            assert (inside >= np.array(leaf["bound"]["min"]) - 1e-3).all()
            assert (inside <= np.array(leaf["bound"]["max"]) + 1e-3).all()
    assert {file: count for (_, file), count in seen.items()} == {i: len(unit) for i, unit in enumerate(units)}
    for level, splats in enumerate(levels):
        rows = [unit.means for unit, name in zip(units, meta["filenames"], strict=True) if name[0] == str(level)]
        np.testing.assert_allclose(np.sort(np.concatenate(rows), axis=0), np.sort(splats.means, axis=0), atol=1e-3)


def test_write_bounds_hold_a_standard_deviation(levels: list[Splats], scene: Path) -> None:
    bound = json.loads((scene / "lod-meta.json").read_text())["tree"]["bound"]
    reach = np.sqrt(np.diagonal(covariances(levels[0]), axis1=1, axis2=2))
    flip = np.array([1, -1, -1])
    assert (np.array(bound["min"]) <= (levels[0].means * flip - reach).min(axis=0) + 1e-5).all()
    assert (np.array(bound["max"]) >= (levels[0].means * flip + reach).max(axis=0) - 1e-5).all()


def test_write_fills_units(chiral: Splats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lod, "UNIT", 150)
    lod.write(tmp_path / "scene", [chiral], chunk=60)
    names = json.loads((tmp_path / "scene" / "lod-meta.json").read_text())["filenames"]
    assert names == ["0_0/meta.json", "0_1/meta.json", "0_2/meta.json"]
    assert sum(len(read(tmp_path / "scene" / name)) for name in names) == 400


def test_write_divides_gaussians_at_one_point(chiral: Splats, tmp_path: Path) -> None:
    lod.write(tmp_path / "scene", [replace(chiral, means=np.zeros((400, 3), np.float32))], chunk=60)
    tree = json.loads((tmp_path / "scene" / "lod-meta.json").read_text())["tree"]
    assert sum(leaf["lods"]["0"]["count"] for leaf in leaves(tree)) == 400


def test_write_replaces_a_folder_as_a_whole_or_not_at_all(levels: list[Splats], scene: Path) -> None:
    before = {path: path.read_bytes() for path in scene.rglob("*") if path.is_file()}
    with write_policy(replace=False), pytest.raises(OutputExists, match="appeared"):
        lod.write(scene, levels[:1])
    broken = replace(levels[0], means=levels[0].means * np.float32(np.nan))
    with pytest.raises(SegdreamError, match="finite"):
        lod.write(scene, [broken])
    assert {path: path.read_bytes() for path in scene.rglob("*") if path.is_file()} == before
    lod.write(scene, levels[:1])
    assert {path.name for path in scene.iterdir()} == {"lod-meta.json", "0_0"}
    assert [path.name for path in scene.parent.iterdir()] == ["scene"]


def test_build_levels_divide_by_four(chiral: Splats) -> None:
    assert [len(level) for level in build_levels(chiral, 4)] == [400, 100, 25, 7]
    assert [len(level) for level in build_levels(chiral.slice_rows(slice(2)), 5)] == [2, 1]
    assert [len(level) for level in build_levels(chiral)] == [400]


@pytest.mark.parametrize("level", [0, 1])
def test_splat_transform_reads_a_level(
    splat_transform: Callable[..., None], levels: list[Splats], scene: Path, tmp_path: Path, level: int
) -> None:
    splat_transform("-L", level, scene / "lod-meta.json", tmp_path / "theirs.ply")
    theirs = read(tmp_path / "theirs.ply")
    assert len(theirs) == len(levels[level])
    np.testing.assert_allclose(np.sort(theirs.means, axis=0), np.sort(levels[level].means, axis=0), atol=1e-3)


@pytest.fixture(scope="module")
def playcanvas(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    with viewer("playcanvas.html", tmp_path_factory.mktemp("served"), node_modules, ["playcanvas"]) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
@pytest.mark.parametrize("level", [0, 1])
def test_playcanvas_streams_a_level(levels: list[Splats], playcanvas: Viewer, level: int) -> None:
    """All chunks at the level that the page asks for, against the rasteriser's images of its Gaussians.

    PlayCanvas draws Gaussians narrower: it subtracts the value of the falloff where it ends.
    """
    lod.write(playcanvas.folder / f"scene{level}", levels, chunk=CHUNK)
    address = f"{playcanvas.address}/scene{level}/lod-meta.json"
    found = playcanvas.tab.run("return await window.load(...arguments)", address, level)
    assert (found[0], found[2]) == (3, 3)
    assert found[1] >= 6
    check(playcanvas, levels[level], mean=10 / 255, nearly_all=40 / 255)
    cameras = frame_sphere(AZIMUTHS, ELEVATIONS, SIZE)
    theirs = playcanvas.image(cameras, 0, torch.zeros(3))
    flat = replace(levels[level], shN=levels[level].shN[:, :0])
    images = [on_white(rasterized(splats, cameras.view(0)))[0] for splats in (*levels, flat)]
    differences = [np.abs(theirs - image).mean() for image in images]
    own = differences.pop(level)
    assert own < 0.8 * min(differences)
