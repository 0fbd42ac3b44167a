"""`segdream info`: its facts against values that the test knows."""

import json
from pathlib import Path

import numpy as np
import pytest
from foreign_files import ksplat_file, old_spz, sog_1_files

from segdream_cli import formats
from segdream_cli.cli.info import bars
from segdream_cli.formats import gltf, ply, spz
from segdream_cli.splats import Splats


@pytest.fixture
def asset(folder: Path) -> Splats:
    """Ten Gaussians with opacities in three ranges and two sizes, one of them not finite in its file."""
    n = 10
    logits = np.array([-9, -9, 0, 0, 0, 0, 9, 9, 9, 9], np.float32)
    sizes = np.where(np.arange(n) < 4, 0.003, 0.2).astype(np.float32)
    rng = np.random.default_rng(3)
    return Splats(
        means=np.stack([np.linspace(-1, 2, n), np.zeros(n), np.zeros(n)], axis=1).astype(np.float32),
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (n, 1)),
        log_scales=np.log(np.stack([sizes, sizes / 2, sizes / 2], axis=1)),
        opacity_logits=logits,
        sh0=rng.normal(size=(n, 3)).astype(np.float32),
        shN=rng.normal(size=(n, 3, 3)).astype(np.float32),
        provenance={"prompt": "a bus\x1b[2J", "seed": 3, "source": {"file": "scan.ply"}},
    )


def test_info_tells_the_facts_of_an_asset(segdream, asset):
    ply.write(Path("a.ply"), asset, pad_sh=False)
    content = bytearray(Path("a.ply").read_bytes())
    content[-104:-100] = np.array(np.nan, "<f4").tobytes()  # x of the last row, of 26 numbers
    Path("a.ply").write_bytes(content)
    done = segdream("info", "a.ply", "--json")
    (line,) = map(json.loads, done.out.splitlines())
    assert "1 of 10 rows" in done.err
    expected = {
        "event": "info",
        "asset": "a.ply",
        "format": "ply",
        "version": "1.0, binary_little_endian",
        "frame": "y down, z away",
        "antialiased": None,
        "bytes": len(content),
        "bytes_per_gaussian": len(content) / 9,
        "gaussians": 9,
        "left_out": 1,
        "sh": 1,
        "opacities": [2, 0, 0, 0, 0, 4, 0, 0, 0, 3],
        "memory": 9 * 4 * (3 + 4 + 3 + 1 + 3 + 9),
        "provenance": {"prompt": "a bus\x1b[2J", "seed": 3, "source": "scan.ply"},
    }
    assert {key: line[key] for key in expected} == expected
    np.testing.assert_allclose(line["low"], [-1, 0, 0])
    np.testing.assert_allclose(line["high"], [2 - 1 / 3, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(line["opacity_edges"], np.linspace(0, 1, 11))
    edges = np.array(line["scale_edges"])
    assert dict(zip([*np.searchsorted(edges, [0.003, 0.2]) - 1], [4, 5], strict=True)) == {
        i: count for i, count in enumerate(line["scales"]) if count
    }
    assert sum(line["scales"]) == 9
    table = segdream("info", "a.ply")
    assert "9, 1 not finite and left out" in table.out
    assert "\x1b" not in table.out
    assert r"a bus\x1b[2J" in table.out
    assert segdream("info", "a.ply", "--strict").code == 2


def test_info_continues_after_a_file_that_cannot_be_read(segdream, asset):
    formats.write(Path("a.spz"), asset)
    Path("b.ply").write_text("a scan")
    done = segdream("info", "b.ply", "a.spz", "--json")
    assert done.code == 2
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [(line["event"], line.get("asset") or line["output"]) for line in lines] == [
        ("error", "b.ply"),
        ("info", "a.spz"),
    ]
    assert segdream("info", "b.ply").code == 2


def kinds(asset: Splats):
    """Files of each kind, with format, version, frame and antialias flag."""
    formats.write(Path("a.spz"), asset)
    flagged = bytearray(old_spz(asset, 2))
    flagged[14] |= 1
    Path("b.spz").write_bytes(flagged)
    formats.write(Path("a.sog"), asset)
    Path("old").mkdir()
    for name, content in sog_1_files(asset, 3).items():
        (Path("old") / name).write_bytes(content)
    formats.write(Path("a.glb"), asset)
    formats.write(Path("a.splat"), asset)
    Path("a.ksplat").write_bytes(ksplat_file(asset, 0, 1))
    formats.write(Path("a.compressed.ply"), asset)
    ply.write(Path("mip.ply"), asset)
    text = Path("mip.ply").read_bytes().replace(b"element", b"comment SplatRenderMode: mip\nelement", 1)
    Path("mip.ply").write_bytes(text)
    yield "a.spz", "spz", "3", None, False
    yield "b.spz", "spz", "2", None, True
    yield "a.sog", "sog", "2", "y down, z away", None
    yield "old", "sog", "1", "y down, z away", None
    yield "a.glb", "glb", "2.0", "y up, z front", None
    yield "a.splat", "splat", None, "y down, z away", None
    yield "a.ksplat", "ksplat", "0.1", "y down, z away", None
    yield "a.compressed.ply", "compressed-ply", "1.0, binary_little_endian", "y down, z away", None
    yield "mip.ply", "ply", "1.0, binary_little_endian", "y down, z away", True


def test_info_names_kind_version_and_frame(segdream, asset):
    for path, kind, version, frame, antialiased in kinds(asset):
        (line,) = map(json.loads, segdream("info", path, "--json").out.splitlines())
        found = line["format"], line["version"], line["frame"] if frame else None, line["antialiased"]
        assert found == (kind, version, frame, antialiased), path
        assert line["bytes"] > 0
    assert gltf.load(Path("a.glb")).version() == "2.0"
    assert spz.read_declaration(Path("b.spz"))[:2] == (2, True)


def test_bars_show_every_count():
    assert bars([0, 1, 500, 1000]) == " ▁▄█"
    assert bars([]) == ""
    assert bars([0]) == " "


@pytest.mark.slow
def test_info_shows_a_picture(segdream, asset):
    formats.write(Path("a.ply"), asset)
    plain, shown = segdream("info", "a.ply").out, segdream("info", "a.ply", "--picture").out
    assert shown.startswith(plain.rstrip("\n"))
    drawn = shown[len(plain.rstrip("\n")) :]
    assert set(drawn) - set(" \n")
