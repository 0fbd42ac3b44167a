"""`.usdz` packages through Pixar's own library: its view of the values, its validators, and what is refused."""

import json
import random
import struct
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from covariances import covariances

from segdream_cli.errors import EnvironmentProblem, SegdreamError, UsageProblem
from segdream_cli.formats import read, usd, write
from segdream_cli.formats.common import Reading
from segdream_cli.splats import BANDS, Splats

pxr = pytest.importorskip("pxr.Usd", reason='the extra "usd" is not installed')
from pxr import Gf, Sdf, Usd, UsdGeom, UsdValidation, UsdVol, Vt  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("k", BANDS)
def test_read_keeps_what_write_stores(chiral: Splats, tmp_path: Path, k: int) -> None:
    splats = replace(chiral, shN=chiral.shN[:, :k])
    write(tmp_path / "a.usdz", splats)
    found = read(tmp_path / "a.usdz")
    for name in ("means", "quats", "sh0", "shN"):
        np.testing.assert_array_equal(getattr(found, name), getattr(splats, name))
    np.testing.assert_allclose(found.log_scales, splats.log_scales, atol=1e-6)
    np.testing.assert_allclose(found.opacity_logits, splats.opacity_logits, atol=1e-5)
    assert found.provenance == splats.provenance


@pytest.mark.parametrize("k", BANDS)
def test_members_begin_at_multiples_of_64_bytes(chiral: Splats, tmp_path: Path, k: int) -> None:
    """As the USDZ specification demands, so that a viewer can map them into memory; whatever the layer's size is."""
    for count in (1, 7, len(chiral)):
        usd.write(tmp_path / "a.usdz", replace(chiral, shN=chiral.shN[:, :k]).select(np.arange(count)))
        content = (tmp_path / "a.usdz").read_bytes()
        with zipfile.ZipFile(tmp_path / "a.usdz") as package:
            for member in package.infolist():
                name, extra = struct.unpack_from("<2H", content, member.header_offset + 26)
                assert (member.header_offset + 30 + name + extra) % 64 == 0
                assert member.compress_type == zipfile.ZIP_STORED


def test_write_stores_values_as_the_library_reads_them(chiral: Splats, tmp_path: Path) -> None:
    usd.write(tmp_path / "a.usdz", chiral)
    stage = Usd.Stage.Open(str(tmp_path / "a.usdz"))
    assert (UsdGeom.GetStageUpAxis(stage), UsdGeom.GetStageMetersPerUnit(stage)) == ("Y", 1)
    prim = UsdVol.ParticleField3DGaussianSplat(stage.GetDefaultPrim())
    values = {name: prim.GetPrim().GetAttribute(name).Get() for name in prim.GetPrim().GetPropertyNames()}
    harmonics = values["radiance:sphericalHarmonicsCoefficients"]
    assert (values["radiance:sphericalHarmonicsDegree"], len(harmonics)) == (3, 16 * 400)
    for i in (0, 7, 399):
        assert tuple(values["positions"][i]) == tuple(chiral.means[i].tolist())
        q = values["orientations"][i]
        np.testing.assert_allclose([q.GetReal(), *q.GetImaginary()], chiral.quats[i], atol=1e-7)
        np.testing.assert_allclose(values["scales"][i], np.exp(chiral.log_scales[i]), rtol=1e-6)
        assert values["opacities"][i] == pytest.approx(1 / (1 + np.exp(-chiral.opacity_logits[i])))
        assert tuple(harmonics[16 * i]) == tuple(chiral.sh0[i].tolist())
        assert tuple(harmonics[16 * i + 9]) == tuple(chiral.shN[i, 8].tolist())
    low, high = np.array(values["extent"])
    assert (low < chiral.means.min(axis=0)).all()
    assert (high > chiral.means.max(axis=0)).all()


def test_write_passes_the_validators(chiral: Splats, tmp_path: Path) -> None:
    usd.write(tmp_path / "a.usdz", chiral)
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    assert len(validators) >= 20
    found = UsdValidation.ValidationContext(validators).Validate(Usd.Stage.Open(str(tmp_path / "a.usdz")))
    assert [error.GetMessage() for error in found] == []
    with zipfile.ZipFile(tmp_path / "a.usdz") as package:
        assert [info.compress_type for info in package.infolist()] == [zipfile.ZIP_STORED]


def test_write_is_deterministic(chiral: Splats, tmp_path: Path) -> None:
    for name in "ab":
        usd.write(tmp_path / f"{name}.usdz", chiral)
    assert (tmp_path / "a.usdz").read_bytes() == (tmp_path / "b.usdz").read_bytes()


def packed(path: Path, stage: Any) -> Path:
    """A package of a stage in memory."""
    inner = path.with_suffix(".usdc")
    stage.GetRootLayer().Export(str(inner))
    with zipfile.ZipFile(path, "w") as package:
        info = zipfile.ZipInfo(inner.name)
        info.extra = b"\x86\x19" + (64 - (30 + len(inner.name) + 4) % 64).to_bytes(2, "little")
        info.extra += bytes(64 - (30 + len(inner.name) + 4) % 64)
        package.writestr(info, inner.read_bytes())
    return path


def of_others(chiral: Splats, tmp_path: Path) -> Any:
    """The stage of our file, in memory, to be changed."""
    usd.write(tmp_path / "ours.usdz", chiral)
    layer = Sdf.Layer.CreateAnonymous(".usda")
    layer.TransferContent(Sdf.Layer.FindOrOpen(str(tmp_path / "ours.usdz")))
    return Usd.Stage.Open(layer)


def test_read_applies_transforms_and_up_axis(chiral: Splats, tmp_path: Path) -> None:
    """A stage with z up, whose prim is turned by a quarter about z, doubled and moved."""
    stage = of_others(chiral, tmp_path)
    UsdGeom.SetStageUpAxis(stage, "Z")
    place = UsdGeom.Xformable(stage.GetDefaultPrim())
    place.AddTranslateOp().Set(Gf.Vec3d(1, 2, 3))
    place.AddRotateZOp().Set(90)
    place.AddScaleOp().Set(Gf.Vec3f(2, 2, 2))
    found = read(packed(tmp_path / "b.usdz", stage))
    x, y, z = chiral.means.T
    on_stage = np.stack([1 - 2 * y, 2 + 2 * x, 3 + 2 * z], axis=1)
    expected = np.stack([on_stage[:, 0], on_stage[:, 2], -on_stage[:, 1]], axis=1)
    np.testing.assert_allclose(found.means, expected, atol=1e-5)
    turn = np.array([[0, -1, 0], [0, 0, 1], [-1, 0, 0]])
    np.testing.assert_allclose(covariances(found), 4 * turn @ covariances(chiral) @ turn.T, atol=1e-6)


def test_read_half_precision(chiral: Splats, tmp_path: Path) -> None:
    stage = of_others(chiral, tmp_path)
    prim = stage.GetDefaultPrim()
    for name in ("positions", "orientations", "scales", "opacities", "radiance:sphericalHarmonicsCoefficients"):
        values = prim.GetAttribute(name).Get()
        half = prim.GetAttribute(f"{name}h")
        assert half.Set([Gf.Quath(value) for value in values] if name == "orientations" else values)
        prim.RemoveProperty(name)
    found = read(packed(tmp_path / "b.usdz", stage))
    np.testing.assert_allclose(found.means, chiral.means, atol=5e-4)
    np.testing.assert_allclose(found.shN, chiral.shN, atol=5e-4)
    np.testing.assert_allclose(covariances(found), covariances(chiral), atol=1e-4)


def without_positions(stage: Any) -> None:
    stage.GetDefaultPrim().RemoveProperty("positions")


def short_harmonics(stage: Any) -> None:
    stage.GetDefaultPrim().GetAttribute("radiance:sphericalHarmonicsDegree").Set(2)


def of_type(stage: Any, name: str, kind: Any, value: Any) -> None:
    """Puts a value of another type in place of an attribute."""
    spec = stage.GetRootLayer().GetPrimAtPath("/asset")
    del spec.properties[name]
    Sdf.AttributeSpec(spec, name, kind).default = value


def single_scale(stage: Any) -> None:
    of_type(stage, "scales", Sdf.ValueTypeNames.Float, 1.0)


def named_positions(stage: Any) -> None:
    of_type(stage, "positions", Sdf.ValueTypeNames.StringArray, Vt.StringArray(["a", "b", "c"]))


def spelled_degree(stage: Any) -> None:
    of_type(stage, "radiance:sphericalHarmonicsDegree", Sdf.ValueTypeNames.String, "three")


def other_files(stage: Any) -> None:
    stage.GetDefaultPrim().GetReferences().AddReference("/etc/passwd.usda")


def sublayers(stage: Any) -> None:
    stage.GetRootLayer().subLayerPaths.append("../other.usda")


def variant(stage: Any) -> None:
    prim = stage.GetDefaultPrim()
    variants = prim.GetVariantSets().AddVariantSet("look")
    variants.AddVariant("far")
    variants.SetVariantSelection("far")
    with variants.GetVariantEditContext():
        prim.GetPayloads().AddPayload("other.usda")


def clips(stage: Any) -> None:
    """Values from other files, of which the layer's composition knows nothing."""
    api = Usd.ClipsAPI(stage.GetDefaultPrim())
    api.SetClipPrimPath("/asset")
    api.SetClipAssetPaths(Sdf.AssetPathArray([Sdf.AssetPath("/tmp/other.usda")]))
    api.SetClipActive([(0, 0)])
    api.SetClipTimes([(0, 0)])


def clips_in_a_variant(stage: Any) -> None:
    variants = stage.GetDefaultPrim().GetVariantSets().AddVariantSet("look")
    variants.AddVariant("far")
    variants.SetVariantSelection("far")
    with variants.GetVariantEditContext():
        clips(stage)


def infinite(stage: Any) -> None:
    attribute = stage.GetDefaultPrim().GetAttribute("scales")
    attribute.Set([(np.inf, 1, 1), *list(attribute.Get())[1:]])


def mirrored(stage: Any) -> None:
    UsdGeom.Xformable(stage.GetDefaultPrim()).AddScaleOp().Set(Gf.Vec3f(1, -2, 1))


def no_gaussians(stage: Any) -> None:
    stage.GetDefaultPrim().SetTypeName("Xform")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_positions, "no positions"),
        (short_harmonics, "differ in length"),
        (single_scale, "is damaged: /asset has no scales"),
        (named_positions, "is damaged: positions of /asset is not rows of 3 numbers"),
        (spelled_degree, "is damaged: the degree of the spherical harmonics of /asset is not a whole number"),
        (other_files, "refers to other files"),
        (sublayers, "refers to other files"),
        (variant, "refers to other files"),
        (clips, "refers to other files"),
        (clips_in_a_variant, "refers to other files"),
        (infinite, "not a finite number"),
        (mirrored, "mirrors"),
        (no_gaussians, "holds no Particle"),
    ],
)
def test_read_refuses_other_stages(chiral: Splats, tmp_path: Path, change: Any, reason: str) -> None:
    stage = of_others(chiral, tmp_path)
    change(stage)
    file = packed(tmp_path / "b.usdz", stage)
    with pytest.raises(UsageProblem, match=reason):
        read(file, Reading(strict=True))


@pytest.mark.parametrize("suffix", [".usda", ".usdc"])
def test_read_of_layers(chiral: Splats, tmp_path: Path, suffix: str) -> None:
    """A text keeps nine digits of a number, which is all of it."""
    path = tmp_path / f"a{suffix}"
    of_others(chiral, tmp_path).GetRootLayer().Export(str(path))
    assert path.read_bytes()[:5] == (b"#usda" if suffix == ".usda" else b"PXR-U")
    found = read(path.rename(tmp_path / "a.usd"))
    for name in ("means", "quats", "sh0", "shN"):
        np.testing.assert_array_equal(getattr(found, name), getattr(chiral, name))
    assert found.provenance == chiral.provenance


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"#usda 1.0\n", b"PK\x03\x04" + bytes(500)])
def test_read_refuses_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.usdz").write_bytes(content)
    with pytest.raises(UsageProblem, match=r"a\.usdz"):
        read(tmp_path / "a.usdz")


def test_read_says_where_a_text_is_damaged(tmp_path: Path) -> None:
    """The library quotes the bytes there, which need not be UTF-8, and names its own code and the copy it was given."""
    (tmp_path / "a.usda").write_bytes(b'#usda 1.0\ndef Xform "a" {\n    float b = \xff\n}\n')
    with pytest.raises(UsageProblem, match=r"a\.usda is damaged: the text can't be parsed at line 3, column 5$"):
        read(tmp_path / "a.usda")
    layer = few(tmp_path / "a.usdz")[:-20]
    with pytest.raises(UsageProblem, match=r"damaged: Encountered: Read out-of-bounds") as refused:
        read(rezipped(tmp_path / "b.usdz", {"asset.usdc": layer}))
    assert "/" not in refused.value.message.removeprefix(str(tmp_path / "b.usdz"))


def rezipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip of these members with right checksums; the library accepts offsets that are not multiples of 64 bytes."""
    with zipfile.ZipFile(path, "w", compression) as package:
        for name, content in members.items():
            package.writestr(name, content)
    return path


def few(path: Path) -> bytes:
    """Our layer of four Gaussians."""
    rows = np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3)
    quats = np.tile(np.array([1, 0, 0, 0], np.float32), (4, 1))
    usd.write(path, Splats(rows, quats, rows, rows[:, 0], rows, np.zeros((4, 0, 3), np.float32)))
    with zipfile.ZipFile(path) as package:
        return package.read("asset.usdc")


def damaged_layer(layer: bytes, seed: int) -> bytes:
    content, rng = bytearray(layer), random.Random(seed)
    for _ in range(rng.choice([1, 1, 2, 4])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content[: rng.randrange(len(content))] if rng.random() < 0.2 else content)


ABORTS, HANGS = 54, 488
"""Seeds of damage that crashes Pixar's library 26.11, and of damage that hangs it."""


@pytest.mark.parametrize("seed", [ABORTS, HANGS, *range(12)])
def test_read_of_mutated_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(usd, "SECONDS", 3)
    layer = damaged_layer(few(tmp_path / "a.usdz"), seed)
    with suppress(UsageProblem):
        assert len(read(rezipped(tmp_path / "a.usdz", {"asset.usdc": layer}))) == 4
        assert seed not in (ABORTS, HANGS)


def test_read_checks_packages_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed byte, names that point outside, compressed members, overlapping members."""
    layer = few(tmp_path / "a.usdz")
    content = bytearray((tmp_path / "a.usdz").read_bytes())
    assert len(read(rezipped(tmp_path / "b.usdz", {"asset.usdc": layer}))) == 4
    monkeypatch.setattr(usd, "_apart", lambda *_: pytest.fail("the library was asked"))
    content[content.index(b"PXR-USDC") + 200] ^= 1
    (tmp_path / "a.usdz").write_bytes(content)
    with pytest.raises(UsageProblem, match=r"the checksum of 'asset\.usdc' is wrong"):
        read(tmp_path / "a.usdz")
    for name in ("../asset.usdc", "/etc/asset.usdc", "C:asset.usdc"):
        with pytest.raises(UsageProblem, match="points outside"):
            read(rezipped(tmp_path / "c.usdz", {name: layer}))
    with pytest.raises(UsageProblem, match="compressed"):
        read(rezipped(tmp_path / "d.usdz", {"asset.usdc": layer}, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(tmp_path / "b.usdz", "a") as package:
        package.filelist.extend([package.filelist[0]] * 5)
        package._didModify = True
    with pytest.raises(UsageProblem, match="more than it holds"):
        read(tmp_path / "b.usdz")


def test_read_ends_a_hanging_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(tmp_path / "a.usdz")
    monkeypatch.setattr(usd, "PATIENCE", 0)  # no process is there after no time at all
    with pytest.raises(UsageProblem, match="could not read it"):
        read(tmp_path / "a.usdz")


def test_write_without_the_library(chiral: Splats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(usd, "import_module", missing)
    with pytest.raises(EnvironmentProblem, match="usd-core") as refused:
        usd.write(tmp_path / "a.usdz", chiral)
    assert refused.value.hint == 'pip install "segdream[usd]"'
    with pytest.raises(EnvironmentProblem):
        usd.read(tmp_path / "a.usdz")
    assert not list(tmp_path.iterdir())


def test_write_refuses_unusable_assets(chiral: Splats, tmp_path: Path) -> None:
    with pytest.raises(SegdreamError, match="not a finite number"):
        usd.write(tmp_path / "a.usdz", replace(chiral, means=chiral.means * np.float32(np.nan)))
    with pytest.raises(UsageProblem, match="can't be written"):
        usd.write(tmp_path / "none" / "a.usdz", chiral)
    assert not list(tmp_path.iterdir())


def test_read_ignores_foreign_provenance(chiral: Splats, tmp_path: Path) -> None:
    for odd in ("no JSON", json.dumps([1]), "[" * 10_000):
        stage = of_others(chiral, tmp_path)
        stage.GetRootLayer().customLayerData = {"segdream": odd}
        assert read(packed(tmp_path / "b.usdz", stage)).provenance == {}
