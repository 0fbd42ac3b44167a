"""The antialias flag through conversions, and the notes on what a format can't keep."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import KDTree

from segdream_cli.formats import FORMATS, read, spz, write
from segdream_cli.formats.losses import LIMITS, describe_losses
from segdream_cli.splats import BANDS, Splats, concat

KEEPING = ("ply", "ply-compact", "compressed-ply", "spz", "spz4", "sog", "3dtiles")


@pytest.mark.parametrize("antialiased", [True, False])
@pytest.mark.parametrize("format", KEEPING)
def test_flag_survives(tmp_path: Path, chiral: Splats, format: str, antialiased: bool) -> None:
    path = tmp_path / f"a{FORMATS[format].suffix}"
    write(path, replace(chiral, antialiased=antialiased), format)
    assert read(path).antialiased == antialiased
    assert not describe_losses(replace(chiral, antialiased=antialiased), "ply")


def test_flag_is_where_other_tools_put_it(tmp_path: Path, chiral: Splats) -> None:
    mip = replace(chiral, antialiased=True)
    for name in ("a.ply", "a.compressed.ply", "a.spz", "a.sog"):
        write(tmp_path / name, mip)
    for name in ("a.ply", "a.compressed.ply"):
        assert b"\ncomment SplatRenderMode: mip\n" in (tmp_path / name).read_bytes()
    assert gzip.decompress((tmp_path / "a.spz").read_bytes())[14] == 1
    with zipfile.ZipFile(io.BytesIO((tmp_path / "a.sog").read_bytes())) as bundle:
        assert json.loads(bundle.read("meta.json"))["model"] == "antialiased"


def test_flag_of_postshot(tmp_path: Path, chiral: Splats) -> None:
    """Of several comments, the last counts, as in splat-transform."""
    write(tmp_path / "a.ply", chiral)
    head, rest = (tmp_path / "a.ply").read_bytes().split(b"\nelement", 1)
    for comments, expected in ((b"antialiased 1", True), (b"antialiased 1\ncomment SplatRenderMode: default", False)):
        (tmp_path / "b.ply").write_bytes(head + b"\ncomment " + comments + b"\nelement" + rest)
        assert read(tmp_path / "b.ply").antialiased == expected


def test_concat_is_antialiased_if_all_parts_are(chiral: Splats) -> None:
    mip = replace(chiral, antialiased=True)
    assert concat([mip, mip], {}).antialiased
    assert not concat([mip, chiral], {}).antialiased


@pytest.mark.slow
@pytest.mark.parametrize("format", ["spz", "spz4", "sog", "ply", "compressed-ply"])
def test_splat_transform_keeps_the_flag(
    tmp_path: Path, chiral: Splats, splat_transform: Callable[..., None], format: str
) -> None:
    flat = replace(chiral, shN=chiral.shN[:, :0], antialiased=True)
    source = tmp_path / f"a{FORMATS[format].suffix}"
    write(source, flat, format)
    splat_transform(source, tmp_path / "b.spz")
    assert read(tmp_path / "b.spz").antialiased


@pytest.mark.parametrize(
    ("format", "name", "beyond", "what"),
    [
        ("spz", "sh0", 3.4, "colours"),
        ("spz4", "log_scales", -10.2, "scales"),
        ("html", "shN", -1.1, "spherical harmonics"),
        ("splat", "sh0", 1.8, "colours"),
        ("compressed-ply", "shN", 4.1, "spherical harmonics"),
    ],
)
def test_describe_losses_counts_what_is_clamped(
    tmp_path: Path, chiral: Splats, format: str, name: str, beyond: float, what: str
) -> None:
    """Values just beyond the limit change by more than the rounding inside it; one in ten is beyond."""
    if format == "splat":
        assert describe_losses(chiral, format) == "has no spherical harmonics; a .ply file keeps them"
        chiral = replace(chiral, shN=chiral.shN[:, :0])
    assert not describe_losses(chiral, format)
    values = chiral.arrays()[name].copy()
    values.reshape(-1)[::10] = beyond
    assert (
        describe_losses(replace(chiral, **{name: values}), format)
        == f"clamps 10.0% of the {what}; a .ply file keeps them"
    )


def test_limits_of_spz_are_those_of_its_bytes(tmp_path: Path, chiral: Splats) -> None:
    wide = replace(
        chiral,
        sh0=np.full_like(chiral.sh0, 9),
        log_scales=np.full_like(chiral.log_scales, 9),
        shN=-9 * np.ones_like(chiral.shN),
    )
    spz.write(tmp_path / "a.spz", wide)
    back = spz.read(tmp_path / "a.spz")
    np.testing.assert_allclose(back.sh0, LIMITS["spz"]["sh0"][1], rtol=1e-6)
    np.testing.assert_allclose(back.log_scales, LIMITS["spz"]["log_scales"][1], rtol=1e-6)
    np.testing.assert_allclose(back.shN, LIMITS["spz"]["shN"][0], rtol=1e-6)


def test_export_notes_losses(
    tmp_path: Path, chiral: Splats, segdream_export: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    values = chiral.sh0.copy()
    values[::4] = 5
    write(tmp_path / "a.ply", replace(chiral, sh0=values, antialiased=True))
    segdream_export(tmp_path / "a.ply", "-o", tmp_path / "b.spz", "-o", tmp_path / "c.glb", "-o", tmp_path / "d.sog")
    told = [" ".join(capsys.readouterr().err.split())]
    assert "b.spz clamps 25.0% of the colours; a .ply file keeps them" in told[0]
    assert "c.glb has no antialias flag; a .ply file keeps them" in told[0]
    assert "d.sog" not in told[0]


SH_ERRORS = {"compressed-ply": 0.02, "spz": 0.04, "spz4": 0.04, "sog": 0.08, "3dtiles": 0.04}
"""Root mean square errors of spherical harmonics by formats that round them; a palette of SOG rounds most."""


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_export_keeps_the_degree_that_sh_asks_for(
    tmp_path: Path, chiral: Splats, segdream_export: Callable[..., None], degree: int
) -> None:
    """In every format that is read back; .usdz has its own test, and .splat has no spherical harmonics."""
    write(tmp_path / "a.ply", chiral)
    k = BANDS[degree]
    for format, row in FORMATS.items():
        if row.readable and format != "usdz":
            path = tmp_path / f"{format}{row.suffix}"
            segdream_export(tmp_path / "a.ply", "--sh", degree, "--format", format, "-o", path)
            found = read(path)
            rows = KDTree(found.means).query(chiral.means)[1]
            assert sorted(rows) == list(range(len(chiral))), format
            assert found.shN.shape[1] == (0 if format == "splat" else k), format
            if format != "splat" and k:
                errors = found.shN[rows] - chiral.shN[:, :k]
                assert np.sqrt(np.square(errors).mean()) <= SH_ERRORS.get(format, 1e-6), format
