"""SOG: images by hand, bounds from the codebooks, other people's files, hostile files; and its k-means."""

import dataclasses
import io
import json
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closeness import angles, opacities
from covariances import covariances
from foreign_files import sog_1_files
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.cluster.vq import kmeans2
from scipy.spatial import cKDTree

from segdream_cli import formats
from segdream_cli.errors import SegdreamError, UsageProblem
from segdream_cli.formats import palette, ply, sog
from segdream_cli.formats.common import Reading
from segdream_cli.formats.ordering import along_z_curve
from segdream_cli.splats import Splats, to_ply_frame

DATA = Path(__file__).parents[1] / "data"
ANGLE = 1.11
"""Degrees: half of 1/255 times sqrt(2) in each of three components moves the fourth, the largest and at least 1/2, by
up to three times as much; in all sqrt(12) of it, and twice that as an angle."""


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as bundle:
        return {name: bundle.read(name) for name in bundle.namelist()}


def bundle(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, data in content.items():
            target.writestr(name, data)
    return path


def webp(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", **{"lossless": True, "exact": True, **options})
    return stream.getvalue()


def pixels(content: dict[str, bytes], name: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content[name])).convert("RGBA")).reshape(-1, 4).astype(int)


def nearest(splats: Splats, others: Splats) -> np.ndarray:
    """For each of `splats` the row of `others` whose centre is nearest."""
    rows = cKDTree(others.means).query(splats.means)[1]
    assert len(set(rows)) == len(splats) == len(others)
    return np.asarray(rows)


def rows_of(splats: Splats, rows: np.ndarray) -> Splats:
    names = ("means", "quats", "log_scales", "opacity_logits", "sh0", "shN")
    return Splats(**{name: getattr(splats, name)[rows] for name in names})


def check(back: Splats, splats: Splats, steps: float) -> Splats:
    """`back` is `splats` in some order, to `steps` of each format's step; returns `back` in the order of `splats`."""
    back = rows_of(back, nearest(splats, back))
    extent = np.log1p(np.abs(splats.means).max(axis=0)) * 2
    tolerance = steps * extent / 65535 * (1 + np.abs(splats.means)) + 1e-6
    assert (np.abs(back.means - splats.means) <= tolerance).all()
    np.testing.assert_allclose(opacities(back), opacities(splats), rtol=0, atol=steps / 255 + 1e-6)
    assert angles(back.quats, splats.quats).max() < 2 * steps * ANGLE
    return back


def test_write_keeps_provenance_valid_json(tmp_path: Path, chiral: Splats) -> None:
    path = tmp_path / "a.sog"
    sog.write(path, dataclasses.replace(chiral, provenance={"prompt": "ü\ud800\n", "loss": [float("nan"), 1.5]}))
    assert sog.read(path).provenance == {"prompt": "ü\ud800\n", "loss": [None, 1.5]}
    assert b"NaN" not in path.read_bytes()


@pytest.mark.parametrize("k", [0, 3, 8, 15])
def test_read_is_within_quantization(tmp_path: Path, chiral: Splats, k: int) -> None:
    """With an entry of the palette for every Gaussian only the codebooks round: to their nearest value."""
    splats = dataclasses.replace(chiral, shN=chiral.shN[:, :k])
    path = tmp_path / "a.sog"
    sog.write(path, splats, palette=400)
    found = sog.read(path)
    assert found.provenance == splats.provenance
    back = check(found, splats, 0.5)
    meta = json.loads(members(path)["meta.json"])
    signs = to_ply_frame(dataclasses.replace(splats, shN=np.ones_like(splats.shN))).shN
    for name, part, sign in (("log_scales", "scales", 1), ("sh0", "sh0", 1), ("shN", "shN", signs)):
        if name == "shN" and not k:
            assert part not in meta
            continue
        codes = np.array(meta[part]["codebook"])
        stored, value = getattr(back, name) * sign, getattr(splats, name) * sign
        errors = np.abs(codes - value[..., None]).min(axis=-1)
        np.testing.assert_allclose(np.abs(stored - value), errors, rtol=0, atol=2e-6)
        assert np.sqrt(np.mean(errors**2)) < 0.01 * np.std(value)


def test_write_lays_out_the_bundle(tmp_path: Path, chiral: Splats) -> None:
    """The images decoded by the specification's formulas, in plain Python."""
    path = tmp_path / "a.sog"
    sog.write(path, chiral)
    content = members(path)
    assert {name for name in content if name.endswith(".webp")} == {
        f"{name}.webp" for name in ("means_l", "means_u", "scales", "quats", "sh0", "shN_centroids", "shN_labels")
    }
    meta = json.loads(content["meta.json"])
    assert (meta["version"], meta["count"], meta["shN"]["bands"], meta["shN"]["count"]) == (2, 400, 3, 256)
    for name, data in content.items():
        if name.endswith(".webp"):
            assert data[12:16] == b"VP8L"
            width, height = Image.open(io.BytesIO(data)).size
            assert (width, height) == ((960, 4) if name == "shN_centroids.webp" else (20, 20))
    low, high, quats, colours = (pixels(content, f"{name}.webp") for name in ("means_l", "means_u", "quats", "sh0"))
    scales, labels, sheet = (pixels(content, f"{name}.webp") for name in ("scales", "shN_labels", "shN_centroids"))
    turned = to_ply_frame(chiral)
    for i in (0, 17, 399):
        mean = []
        for axis in range(3):
            start, end = meta["means"]["mins"][axis], meta["means"]["maxs"][axis]
            value = start + (end - start) * (high[i, axis] * 256 + low[i, axis]) / 65535
            mean.append(np.sign(value) * (np.exp(abs(value)) - 1))
        row = int(np.argmin(np.linalg.norm(turned.means - mean, axis=1)))
        np.testing.assert_allclose(mean, turned.means[row], atol=2e-5)
        largest = quats[i, 3] - 252
        others = [(quats[i, j] / 255 - 0.5) * 2 / np.sqrt(2) for j in range(3)]
        quat = np.insert(others, largest, np.sqrt(1 - sum(v * v for v in others)))
        assert angles(quat[None], turned.quats[row : row + 1]).max() < ANGLE
        assert colours[i, 3] == round(255 / (1 + np.exp(-float(turned.opacity_logits[row]))))
        for j in range(3):
            assert meta["scales"]["codebook"][scales[i, j]] == pytest.approx(turned.log_scales[row, j], abs=0.02)
            assert meta["sh0"]["codebook"][colours[i, j]] == pytest.approx(turned.sh0[row, j], abs=0.02)
        label = labels[i, 0] + 256 * labels[i, 1]
        texels = sheet.reshape(4, 960, 4)[label // 64, label % 64 * 15 :][:15, :3]
        entry = np.array(meta["shN"]["codebook"])[texels]
        assert np.corrcoef(entry.ravel(), turned.shN[row].ravel())[0, 1] > 0.5


def test_write_keeps_colors_under_zero_alpha(tmp_path: Path, chiral: Splats) -> None:
    splats = dataclasses.replace(chiral, opacity_logits=np.full(400, -12, np.float32))
    sog.write(tmp_path / "a.sog", splats)
    back = sog.read(tmp_path / "a.sog")
    assert back.opacity_logits.tolist() == [-15] * 400
    np.testing.assert_allclose(back.sh0[nearest(splats, back)], splats.sh0, atol=0.05)


def test_write_sorts_by_morton_order(chiral: Splats) -> None:
    order = along_z_curve(chiral.means)
    assert sorted(order) == list(range(400))
    corners = np.array([[1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    assert along_z_curve(corners).tolist() == [1, 3, 2, 4, 0]
    grid = np.stack(np.meshgrid(*[np.arange(8)] * 3), axis=-1).reshape(-1, 3)
    steps = np.diff(grid[along_z_curve(grid.astype(np.float32))], axis=0)
    assert np.abs(steps).sum(axis=1).mean() < 2.5


@pytest.mark.parametrize("n", [1, 2, 5, 16, 17])
def test_write_of_few_and_equal_gaussians(tmp_path: Path, chiral: Splats, n: int) -> None:
    splats = rows_of(chiral, np.zeros(n, int))
    sog.write(tmp_path / "a.sog", splats)
    back = sog.read(tmp_path / "a.sog")
    np.testing.assert_allclose(back.means, splats.means, atol=1e-6)
    np.testing.assert_allclose(back.log_scales, splats.log_scales, atol=1e-6)
    np.testing.assert_allclose(back.sh0, splats.sh0, atol=1e-6)
    np.testing.assert_allclose(back.shN, splats.shN, atol=1e-6)


def test_write_of_extreme_values(tmp_path: Path, chiral: Splats) -> None:
    means, sh0, shN = chiral.means.copy(), chiral.sh0.copy(), chiral.shN.copy()
    means[3], sh0[3, 0], shN[3, 4, 1] = 1e30, 3e38, -3e38
    sog.write(tmp_path / "a.sog", dataclasses.replace(chiral, means=means, sh0=sh0, shN=shN))
    back = sog.read(tmp_path / "a.sog")
    row = int(np.argmax(back.means[:, 0]))
    np.testing.assert_allclose(back.means[row], 1e30, rtol=0.002)
    assert back.sh0[row, 0] == pytest.approx(3e38)
    assert back.shN[row, 4, 1] == pytest.approx(-3e38)


def test_write_refuses_unusable_assets(tmp_path: Path, chiral: Splats) -> None:
    path = tmp_path / "a.sog"
    broken = chiral.quats.copy()
    broken[5, 2] = np.inf
    with pytest.raises(SegdreamError, match="the first is number 5"):
        sog.write(path, dataclasses.replace(chiral, quats=broken))
    for size in (0, 65537):
        with pytest.raises(UsageProblem, match="palette"):
            sog.write(path, chiral, palette=size)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("spread", "count"), [("normal", 60_000), ("normal", 2_000_000), ("uniform", 60_000)])
def test_codebook_error_is_near_optimal(spread: str, count: int) -> None:
    """Panter and Dite's error of the best quantiser of 256 levels, for the normal and the uniform distribution."""
    rng = np.random.default_rng(0)
    values = getattr(rng, spread)(size=count).astype(np.float32)
    best = np.sqrt(np.sqrt(3) * np.pi / 2) / 256 if spread == "normal" else 1 / 256 / np.sqrt(12)
    codes = palette.codebook(values)
    indices = palette.nearest_codes(codes, values)
    assert np.sqrt(np.mean((codes[indices] - values) ** 2)) < 1.02 * best
    middles = (codes[1:].astype(float) + codes[:-1]) / 2
    np.testing.assert_array_equal(indices, np.searchsorted(middles, values))


def test_codebook_of_outliers_and_of_few_values() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(size=60_000), [1e4, -1e3]]).astype(np.float32)
    codes = palette.codebook(values)
    indices = palette.nearest_codes(codes, values)
    assert np.sqrt(np.mean((codes[indices] - values) ** 2)) < 0.0071
    few = np.tile(np.linspace(-1, 1, 256, dtype=np.float32), 3)
    codes = palette.codebook(few)
    indices = palette.nearest_codes(codes, few)
    np.testing.assert_array_equal(codes[indices], few)
    for same in (0.0, -4.5, 3e38, 1e-45):
        values = np.full((7, 3), same, np.float32)
        codes = palette.codebook(values)
        np.testing.assert_array_equal(codes[palette.nearest_codes(codes, values)], values)


@pytest.mark.parametrize("count", [16, 256, 1024])
def test_clusters_error_is_near_one_level(count: int) -> None:
    """scipy's k-means, to convergence, on data of a low dimension that lies in a high one, as an asset's does."""
    rng = np.random.default_rng(1)
    points = (np.cos(rng.normal(size=(2000, 3)) @ rng.normal(size=(3, 45))) * 0.2).astype(np.float32)
    centres, labels = palette.clusters(points, count)
    assert len(centres) <= count
    error = np.mean((centres[labels] - points) ** 2)
    start = rng.choice(points, count, replace=False).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty cluster
        reference, own = kmeans2(points.astype(float), start, iter=20, minit="matrix")
    assert error < 1.1 * np.mean((reference[own] - points) ** 2)


def test_clusters_give_equal_points_one_entry() -> None:
    points = np.repeat(np.eye(9, dtype=np.float32), 50, axis=0)
    centres, labels = palette.clusters(points, 64)
    np.testing.assert_array_equal(centres[labels], points)
    assert len(palette.clusters(np.zeros((500, 9), np.float32), 64)[0]) == 1


@pytest.fixture
def content(tmp_path: Path, chiral: Splats) -> dict[str, bytes]:
    sog.write(tmp_path / "source.sog", chiral)
    return members(tmp_path / "source.sog")


def test_read_other_writers_variants(tmp_path: Path, content: dict[str, bytes]) -> None:
    """Deflated members, extended WebP with a colour profile, a palette's count rounded up, a first code of null."""
    expected = sog.read(bundle(tmp_path / "a.sog", content))
    meta = json.loads(content["meta.json"])
    meta["shN"]["count"] = 65536
    codes = meta["scales"]["codebook"]
    codes[0] = codes[1] + (codes[1] - codes[255]) / 255
    filled = sog.read(bundle(tmp_path / "b.sog", {**content, "meta.json": json.dumps(meta).encode()}))
    codes[0] = None
    image = np.asarray(Image.open(io.BytesIO(content["sh0.webp"])))
    changed = {**content, "meta.json": json.dumps(meta).encode(), "sh0.webp": webp(image, icc_profile=b"x" * 200)}
    assert changed["sh0.webp"][12:16] == b"VP8X"
    back = sog.read(bundle(tmp_path / "c.sog", changed, zipfile.ZIP_DEFLATED))
    for name in ("means", "quats", "opacity_logits", "sh0", "shN"):
        np.testing.assert_array_equal(getattr(back, name), getattr(expected, name))
    np.testing.assert_allclose(back.log_scales, filled.log_scales, atol=1e-6)


def change(*path: str | int, to: Any) -> Callable[[dict[str, bytes]], None]:
    def apply(content: dict[str, bytes]) -> None:
        document = meta = json.loads(content["meta.json"])
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to
        content["meta.json"] = json.dumps(meta).encode()

    return apply


def put(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda content: content.update({name: data})


BLANK = np.zeros((20, 20, 4), np.uint8)
HOSTILE = {
    "'../../etc/passwd' points outside": put("../../etc/passwd", b""),
    "'/tmp/x' points outside": put("/tmp/x", b""),
    r"'C:\\\\x' points outside": put("C:\\x", b""),
    "it lacks '/etc/passwd'": change("sh0", "files", to=["/etc/passwd"]),
    "it lacks 'meta.json'": lambda content: content.pop("meta.json"),
    "it lacks 'quats.webp'": lambda content: content.pop("quats.webp"),
    "meta.json is not JSON": put("meta.json", b"[" * 100_000),
    "meta.json has no means": put("meta.json", b"{}"),
    "has SOG version 3": change("version", to=3),
    "meta.json claims 2000000 bytes": put("meta.json", b" " * 2_000_000),
    "count of meta.json is not a positive": change("count", to=0),
    "is not a positive integer": change("count", to=True),
    "count of meta.json, 1000000000, exceeds": change("count", to=1_000_000_000),
    "which do not match": change("count", to=401),
    "20 x 20 pixels": change("count", to=1_000_000),
    "meta.json has no quats": change("quats", to=[]),
    "files entry of means is not a list of 2": change("means", "files", to=["means_l.webp"]),
    "files entry of sh0 is not a list": change("sh0", "files", to=[7]),
    "mins of means is not a list of 3": change("means", "mins", to=[1, 2]),
    "maxs of means has a value": change("means", "maxs", to=[1e999, 2, 3]),
    "mins of means has a value": change("means", "mins", to=[10**400, 2, 3]),
    "not a list of 256": change("scales", "codebook", to=[1.0] * 255),
    "not a list of 255": change("scales", "codebook", to=[None] * 256),
    "not a finite number": change("means", "maxs", to=[100, 100, 100]),
    "400 of 400 rows have a value": change("sh0", "codebook", to=[1e39] * 256),
    "bands of shN, 4, exceeds the limit of 3": change("shN", "bands", to=4),
    "960 x 4 pixels": change("shN", "bands", to=2),
    "of a palette of 5": change("shN", "count", to=5),
    "count of shN, 65537, exceeds": change("shN", "count", to=65537),
    "does not say which": put("quats.webp", webp(BLANK)),
    "scales.webp is not a lossless WebP": put("scales.webp", webp(BLANK, lossless=False, exact=False)),
    "quats.webp is not a lossless WebP": put("quats.webp", webp(BLANK[..., :3], lossless=False, exact=False)),
    "sh0.webp is not a lossless WebP": put("sh0.webp", b"not a picture"),
    "sh0.webp has 16383 x 16383 pixels": put("sh0.webp", webp(BLANK)[:21] + b"\xfe\xbf\xff\x0f" + webp(BLANK)[25:]),
    "means_l.webp can't be decoded": put("means_l.webp", webp(BLANK)[:32]),
}


@pytest.mark.parametrize("reason", HOSTILE)
def test_read_refuses_false_claims(tmp_path: Path, content: dict[str, bytes], reason: str) -> None:
    HOSTILE[reason](content)
    with pytest.raises(UsageProblem, match=reason):
        sog.read(bundle(tmp_path / "a.sog", content), Reading(strict=True))


def test_read_bounds_memory_of_bombs(tmp_path: Path, content: dict[str, bytes]) -> None:
    """Images of 268 million pixels in 40 bytes, and a member that unpacks to a thousand times its size."""
    tracemalloc.start()
    bomb = webp(BLANK)[:21] + struct.pack("<I", 16382 | 16382 << 14) + webp(BLANK)[25:]
    for count in (400, 10_000_000, 268_000_000):
        change("count", to=count)(content)
        path = bundle(tmp_path / "a.sog", {**content, "means_l.webp": bomb, "means_u.webp": bomb})
        with pytest.raises(UsageProblem, match=r"which do not match|exceeds the limit of 1048576"):
            sog.read(path)
    change("count", to=400)(content)
    with zipfile.ZipFile(tmp_path / "b.sog", "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in content.items():
            target.writestr(name, bytes(1 << 26) if name == "means_l.webp" else data)
    tracemalloc.reset_peak()
    with pytest.raises(UsageProblem, match="claims 67108864 bytes, more than"):
        sog.read(tmp_path / "b.sog")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_read_refuses_other_files(tmp_path: Path, content: dict[str, bytes]) -> None:
    path = bundle(tmp_path / "a.sog", content)
    whole = path.read_bytes()
    for broken in (b"ply\n", whole[:-30], whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(UsageProblem, match=r"is not a \.sog file"):
            sog.read(path)
    path.write_bytes(whole.replace(content["sh0.webp"], content["sh0.webp"][:-1] + b"\x7f"))
    with pytest.raises(UsageProblem, match=r"sh0\.webp can't be unpacked: Bad CRC-32"):
        sog.read(path)
    bundle(path, content, zipfile.ZIP_LZMA)
    with pytest.raises(UsageProblem, match="has a compression"):
        sog.read(path)


def checked(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with suppress(UsageProblem):
        back = sog.read(path)
        assert all(np.isfinite(getattr(back, name)).all() for name in ("means", "quats", "log_scales", "sh0", "shN"))


EDITS = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=8)


def edited(content: bytes, edits: list[tuple[int, int]]) -> bytes:
    changed = bytearray(content)
    for at, value in edits:
        changed[at % len(changed)] = value
    return bytes(changed)


@settings(max_examples=300, deadline=None)
@given(edits=EDITS, cut=st.one_of(st.just(0), st.integers(0, 1600)))
def test_read_of_mutated_files(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], cut: int
) -> None:
    whole = edited((DATA / "splat_transform.sog").read_bytes(), edits)
    checked(tmp_path_factory.getbasetemp() / "mutated.sog", whole[: len(whole) - cut])


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(which=st.integers(0, 7), edits=EDITS)
def test_read_of_mutated_members(
    tmp_path_factory: pytest.TempPathFactory, which: int, edits: list[tuple[int, int]]
) -> None:
    """With checksums that fit, so that the mutation reaches the decoders."""
    content = members(DATA / "splat_transform.sog")
    name = sorted(content)[which]
    path = tmp_path_factory.getbasetemp() / "members.sog"
    bundle(path, {**content, name: edited(content[name], edits)})
    checked(path, path.read_bytes())


def test_read_splat_transform_file(three: Splats) -> None:
    """Made from the .ply of `three`, then deflated; its palette has two entries for three Gaussians."""
    back = check(sog.read(DATA / "splat_transform.sog"), three, 1)
    np.testing.assert_allclose(back.log_scales, three.log_scales, atol=1e-6)
    np.testing.assert_allclose(back.sh0, three.sh0, atol=1e-6)
    entries = np.stack([three.shN[:2].mean(axis=0), three.shN[2]])[[0, 0, 1]]
    np.testing.assert_allclose(back.shN, entries, atol=0.51 / 16)  # its codebook merges two neighbours


@pytest.mark.slow
def test_splat_transform_reads_ours(tmp_path: Path, chiral: Splats, splat_transform: Callable[..., None]) -> None:
    """Its .ply of our bundle is what our reader makes of it."""
    sog.write(tmp_path / "a.sog", chiral)
    splat_transform(tmp_path / "a.sog", tmp_path / "a.ply")
    theirs, ours = ply.read(tmp_path / "a.ply"), sog.read(tmp_path / "a.sog")
    theirs = check(theirs, chiral, 0.5)
    ours = rows_of(ours, nearest(chiral, ours))
    np.testing.assert_allclose(theirs.means, ours.means, atol=1e-6)
    np.testing.assert_allclose(theirs.log_scales, ours.log_scales, atol=1e-6)
    np.testing.assert_allclose(theirs.opacity_logits, ours.opacity_logits, atol=1e-4)
    np.testing.assert_allclose(theirs.sh0, ours.sh0, atol=1e-6)
    np.testing.assert_allclose(theirs.shN, ours.shN, atol=1e-6)
    np.testing.assert_allclose(covariances(theirs), covariances(ours), atol=1e-7)


@pytest.mark.slow
def test_read_files_that_splat_transform_writes(
    tmp_path: Path, chiral: Splats, splat_transform: Callable[..., None]
) -> None:
    """And are no further from the asset than its bundle of as many entries."""
    ply.write(tmp_path / "a.ply", chiral)
    splat_transform("-g", "cpu", tmp_path / "a.ply", tmp_path / "theirs.sog")
    sog.write(tmp_path / "ours.sog", chiral)
    theirs = check(sog.read(tmp_path / "theirs.sog"), chiral, 1)
    ours = check(sog.read(tmp_path / "ours.sog"), chiral, 0.5)
    for name in ("means", "log_scales", "sh0", "shN"):
        ours_error, their_error = (
            np.sqrt(np.mean((getattr(each, name) - getattr(chiral, name)) ** 2)) for each in (ours, theirs)
        )
        assert ours_error < 1.1 * their_error, name
    assert (tmp_path / "ours.sog").stat().st_size < 1.05 * (tmp_path / "theirs.sog").stat().st_size


def unpacked(folder: Path, content: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("k", [0, 3, 8, 15])
def test_read_sog_1_files(tmp_path: Path, chiral: Splats, k: int) -> None:
    files = sog_1_files(chiral, k)
    back = sog.read(bundle(tmp_path / "a.sog", files))
    np.testing.assert_allclose(back.means, chiral.means, rtol=0, atol=1e-4)
    np.testing.assert_allclose(back.log_scales, chiral.log_scales, rtol=0, atol=np.ptp(chiral.log_scales) / 500)
    np.testing.assert_allclose(back.sh0, chiral.sh0, rtol=0, atol=np.ptp(chiral.sh0) / 500)
    np.testing.assert_allclose(back.opacity_logits, chiral.opacity_logits, rtol=0, atol=6 / 500)
    np.testing.assert_allclose(back.shN, chiral.shN[:, :k], rtol=0, atol=1 / 250)
    assert angles(back.quats, chiral.quats).max() < 2 * ANGLE
    (tmp_path / "a.sog").unlink()
    assert_same(formats.read(unpacked(tmp_path / "a", files)), back)


def assert_same(found: Splats, expected: Splats) -> None:
    for name, values in expected.arrays().items():
        np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)


@pytest.mark.slow
def test_splat_transform_reads_version_1_and_folders_the_same(
    tmp_path: Path, chiral: Splats, splat_transform: Callable[..., None]
) -> None:
    folder = unpacked(tmp_path / "a", sog_1_files(chiral, 15))
    splat_transform(folder / "meta.json", tmp_path / "a.ply")
    theirs, ours = ply.read(tmp_path / "a.ply"), sog.read(folder / "meta.json")
    for name, values in theirs.arrays().items():
        np.testing.assert_allclose(getattr(ours, name), values, atol=3e-6, err_msg=name)


def test_read_of_folders_and_nested_bundles(tmp_path: Path, chiral: Splats) -> None:
    sog.write(tmp_path / "a.sog", chiral)
    expected, content = sog.read(tmp_path / "a.sog"), members(tmp_path / "a.sog")
    folder = unpacked(tmp_path / "folder", content)
    nested = bundle(
        tmp_path / "nested.zip", {"readme.txt": b"", **{f"bus/{name}": data for name, data in content.items()}}
    )
    for path in (folder, folder / "meta.json", nested):
        assert_same(formats.read(path), expected)
    assert_same(formats.read((folder / "meta.json").rename(folder / "other.json")), expected)


def test_read_of_folders_reads_nothing_outside(tmp_path: Path, chiral: Splats) -> None:
    sog.write(tmp_path / "a.sog", chiral)
    content = members(tmp_path / "a.sog")
    folder = unpacked(tmp_path / "folder", content)
    (folder / "sh0.webp").rename(tmp_path / "sh0.webp")
    meta = json.loads(content["meta.json"])
    for name in ("../sh0.webp", str(tmp_path / "sh0.webp"), "sub/sh0.webp", "sh0\0.webp", "", "."):
        meta["sh0"]["files"] = [name]
        (folder / "meta.json").write_text(json.dumps(meta))
        with pytest.raises(UsageProblem, match="it lacks"):
            sog.read(folder)
    (folder / "sh0.webp").symlink_to(tmp_path / "sh0.webp")
    (folder / "meta.json").write_bytes(content["meta.json"])
    with pytest.raises(UsageProblem, match="a link that points outside"):
        sog.read(folder)
