"""KHR_gaussian_splatting: bytes by hand, foreign files, other people's readers, hostile files."""

import base64
import dataclasses
import json
import struct
import subprocess
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closeness import angles, opacities
from covariances import covariances
from hypothesis import given, settings
from hypothesis import strategies as st

from segdream_cli import formats
from segdream_cli.errors import SegdreamError, UsageProblem
from segdream_cli.formats import glb, ply
from segdream_cli.formats.common import DEFAULT, Reading
from segdream_cli.splats import Splats, to_ply_frame
from segdream_cli.splats.transform import transform

DATA = Path(__file__).parents[1] / "data"
KHR = "KHR_gaussian_splatting"
ABOUT_Y = np.diag([-1.0, 1, -1])
"""What lies between the frames of splat-transform's .glb and ours for one .ply: half a turn about Z after X."""


def taken_apart(content: bytes) -> tuple[dict[str, Any], bytes]:
    magic, version, size, length, kind = struct.unpack_from("<4sIII4s", content)
    assert (magic, version, size, kind) == (b"glTF", 2, len(content), b"JSON")
    assert length % 4 == 0
    body_length, kind = struct.unpack_from("<I4s", content, 20 + length)
    assert kind == b"BIN\0"
    assert body_length == len(content) - 28 - length
    return json.loads(content[20 : 20 + length]), content[28 + length :]


def put_together(document: Any, body: bytes) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIII4s", b"glTF", 2, 28 + len(text) + len(body), len(text), b"JSON")
    return head + text + struct.pack("<I4s", len(body), b"BIN\0") + body


def column(document: dict[str, Any], body: bytes, name: str) -> np.ndarray:
    """An attribute's values by the glTF specification."""
    primitive = document["meshes"][0]["primitives"][0]
    accessor = document["accessors"][primitive["attributes"][name]]
    view = document["bufferViews"][accessor["bufferView"]]
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
    dtype = {5126: "<f4", 5121: "u1"}[accessor["componentType"]]
    values = np.frombuffer(body, dtype, accessor["count"] * width, view["byteOffset"] + accessor.get("byteOffset", 0))
    return values.reshape(-1, width)


def check(back: Splats, splats: Splats) -> None:
    np.testing.assert_array_equal(back.means, splats.means)
    np.testing.assert_array_equal(back.sh0, splats.sh0)
    np.testing.assert_array_equal(back.shN, splats.shN)
    np.testing.assert_allclose(back.quats, splats.quats, atol=2e-7)
    np.testing.assert_allclose(back.log_scales, splats.log_scales, atol=2e-6)
    np.testing.assert_allclose(opacities(back), opacities(splats), atol=2e-7)


def test_write_keeps_provenance_valid_json(tmp_path: Path, chiral: Splats) -> None:
    path = tmp_path / "a.glb"
    glb.write(path, dataclasses.replace(chiral, provenance={"prompt": "ü\ud800\n", "loss": [float("nan"), 1.5]}))
    assert glb.read(path).provenance == {"prompt": "ü\ud800\n", "loss": [None, 1.5]}
    assert b"NaN" not in path.read_bytes()


@pytest.mark.parametrize("k", [0, 3, 8, 15])
def test_read_keeps_what_write_stores(tmp_path: Path, chiral: Splats, k: int) -> None:
    splats = dataclasses.replace(chiral, shN=chiral.shN[:, :k])
    path = tmp_path / "a.glb"
    glb.write(path, splats)
    back = glb.read(path)
    check(back, splats)
    assert back.provenance == splats.provenance
    document, body = taken_apart(path.read_bytes())
    assert len(body) == len(splats) * (60 + 12 * k)
    assert all(view["byteOffset"] % 4 == 0 for view in document["bufferViews"])


def test_write_lays_out_one_gaussian(tmp_path: Path) -> None:
    """One Gaussian by hand, from the specification's text."""
    c0 = 0.28209479177387814
    one = Splats(
        means=np.array([[0.5, -0.25, 2.0]], np.float32),
        quats=np.array([[0.1, 0.3, 0.9, -0.3]], np.float32),
        log_scales=np.log(np.array([[0.5, 0.25, 1.0]], np.float32)),
        opacity_logits=np.array([0.0], np.float32),
        sh0=np.array([[(156 / 255 - 0.5) / c0, 5.0, -0.5 / c0]], np.float32),
        shN=np.arange(9, dtype=np.float32).reshape(1, 3, 3),
    )
    path = tmp_path / "a.glb"
    glb.write(path, one)
    document, body = taken_apart(path.read_bytes())
    assert document["asset"]["version"] == "2.0"
    assert document["extensionsUsed"] == [KHR]
    primitive = document["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0
    assert primitive["extensions"] == {KHR: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}}
    assert document["accessors"][primitive["attributes"]["POSITION"]]["min"] == [0.5, -0.25, 2.0]
    assert column(document, body, "POSITION").tolist() == [[0.5, -0.25, 2.0]]
    np.testing.assert_allclose(column(document, body, f"{KHR}:ROTATION"), [[0.3, 0.9, -0.3, 0.1]], atol=1e-7)
    np.testing.assert_allclose(column(document, body, f"{KHR}:SCALE"), [[0.5, 0.25, 1]], rtol=1e-6)
    assert column(document, body, f"{KHR}:OPACITY").tolist() == [[0.5]]
    np.testing.assert_array_equal(column(document, body, f"{KHR}:SH_DEGREE_0_COEF_0"), one.sh0)
    for i in range(3):
        np.testing.assert_array_equal(column(document, body, f"{KHR}:SH_DEGREE_1_COEF_{i}"), one.shN[:, i])
    assert column(document, body, "COLOR_0").tolist() == [[85, 255, 0, 128]]  # sRGB 156 is 0.3325 in linear light


def test_write_of_extreme_values(tmp_path: Path, chiral: Splats) -> None:
    quats = chiral.quats.copy()
    quats[:3] = [[0, 0, 0, 0], [3e5, 0, 4e5, 0], [0, 0, 1e-30, 0]]
    logits = chiral.opacity_logits.copy()
    logits[:2] = [500, -500]
    log_scales = chiral.log_scales.copy()
    log_scales[:2] = [[900, 0, 0], [-900, 0, 0]]
    path = tmp_path / "a.glb"
    glb.write(path, dataclasses.replace(chiral, quats=quats, opacity_logits=logits, log_scales=log_scales))
    document, body = taken_apart(path.read_bytes())
    np.testing.assert_allclose(np.linalg.norm(column(document, body, f"{KHR}:ROTATION"), axis=1), 1, atol=1e-6)
    assert (column(document, body, f"{KHR}:SCALE") > 0).all()
    stored = column(document, body, f"{KHR}:OPACITY")
    assert stored.min() >= 0
    assert stored.max() <= 1
    np.testing.assert_allclose(glb.read(path).opacity_logits[:2], [15, -15], atol=0.2)


def test_write_refuses_unusable_assets(tmp_path: Path, chiral: Splats) -> None:
    path = tmp_path / "a.glb"
    means = chiral.means.copy()
    means[7, 1] = np.nan
    with pytest.raises(SegdreamError, match="the first is number 7"):
        glb.write(path, dataclasses.replace(chiral, means=means))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def parts(tmp_path: Path, chiral: Splats) -> tuple[dict[str, Any], bytes]:
    glb.write(tmp_path / "source.glb", chiral)
    return taken_apart((tmp_path / "source.glb").read_bytes())


def read_back(tmp_path: Path, content: bytes, reading: Reading = DEFAULT) -> Splats:
    path = tmp_path / "b.glb"
    path.write_bytes(content)
    return glb.read(path, reading)


def test_read_applies_node_transforms(tmp_path: Path, chiral: Splats, parts: tuple[dict[str, Any], bytes]) -> None:
    document, body = parts
    half = np.sqrt(0.5)
    document["nodes"] = [
        {"children": [1, 2], "translation": [1, 2, 3], "scale": [2, 2, 2]},
        {"mesh": 0, "rotation": [half, 0, 0, half]},
        {"mesh": 0, "matrix": [0, 0, -1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 4, 5, 6, 1]},
    ]
    back = read_back(tmp_path, put_together(document, body))
    about_x = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    about_y = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    placed = {
        "x": transform(chiral, 2 * about_x, np.array([1, 2, 3])),
        "y": transform(chiral, 2 * about_y, np.array([9, 12, 15])),
    }
    assert len(back) == 2 * len(chiral)
    for start, name in ((0, "x"), (400, "y")):
        rows = slice(start, start + 400)
        np.testing.assert_allclose(back.means[rows], placed[name].means, atol=1e-5)
        np.testing.assert_allclose(back.shN[rows], placed[name].shN, atol=1e-5)
        np.testing.assert_allclose(back.log_scales[rows], chiral.log_scales + np.log(2), atol=1e-5)
        assert angles(back.quats[rows], placed[name].quats).max() < 0.1


def test_read_quantized_attributes(tmp_path: Path, chiral: Splats, parts: tuple[dict[str, Any], bytes]) -> None:
    """Rows of 4 bytes a rotation, 8 a scale and 4 an opacity, in which only some belong to the value."""
    document, body = parts
    quats = np.rint(np.roll(chiral.quats, -1, axis=1) * 127).astype("i1")
    scales = np.zeros((400, 4), "<u2")
    scales[:, :3] = np.rint(np.exp(chiral.log_scales) * 65535)
    alphas = np.zeros((400, 4), "u1")
    alphas[:, 0] = np.rint(255 * opacities(chiral))
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    for name, values, kind in ((":ROTATION", quats, 5120), (":SCALE", scales, 5123), (":OPACITY", alphas, 5121)):
        accessor = document["accessors"][attributes[KHR + name]]
        document["bufferViews"][accessor["bufferView"]] = {
            "buffer": 0,
            "byteOffset": len(body),
            "byteLength": values.nbytes,
            "byteStride": values.strides[0],
        }
        accessor |= {"componentType": kind, "normalized": True}
        body += values.tobytes()
    document["buffers"][0]["byteLength"] = len(body)
    back = read_back(tmp_path, put_together(document, body))
    np.testing.assert_allclose(np.exp(back.log_scales), np.exp(chiral.log_scales), atol=0.5 / 65535 + 1e-7)
    np.testing.assert_allclose(opacities(back), opacities(chiral), atol=0.5 / 255 + 1e-6)
    assert angles(back.quats, chiral.quats).max() < np.degrees(4 * 0.5 / 127)


def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to

    return apply


PRIMITIVE = ("meshes", 0, "primitives", 0)
ATTRIBUTES = (*PRIMITIVE, "attributes")
HOSTILE = {
    "no Gaussians": change(*PRIMITIVE, "extensions", to={}),
    r"no scenes\[0\]": change("scenes", to=[]),
    r"no nodes\[7\]": change("scenes", 0, "nodes", to=[7]),
    r"no nodes\[True\]": change("scenes", 0, "nodes", to=[True]),
    "is in the scene twice": change("nodes", 0, "children", to=[0]),
    "its nodes is not an array": change("scenes", 0, "nodes", to=3),
    r"nodes\[0\] is not an object": change("nodes", 0, to="x"),
    r"no meshes\[-1\]": change("nodes", 0, "mesh", to=-1),
    "scale is not 3 numbers": change("nodes", 0, "scale", to=[1, 2]),
    "matrix is not finite": change("nodes", 0, "matrix", to=[10**400] * 16),
    "not a quaternion": change("nodes", 0, "rotation", to=[0, 0, 0, 0]),
    "node mirrors or flattens": change("nodes", 0, "scale", to=[-1, 1, 1]),
    "node mirrors": change("nodes", 0, "scale", to=[-2, 1, 1]),
    "flattens its Gaussians": change("nodes", 0, "scale", to=[0, 1, 1]),
    "'https://example.org/a.bin' is outside": change("buffers", 0, "uri", to="https://example.org/a.bin"),
    "is outside its folder": change("buffers", 0, "uri", to="..%2Fa.bin"),
    "'/etc/passwd' is outside": change("buffers", 0, "uri", to="/etc/passwd"),
    "is not base64": change("buffers", 0, "uri", to="data:application/octet-stream;base64,????"),
    "a.bin can't be read": change("buffers", 0, "uri", to="a.bin"),
    "not a finite number": change("nodes", 0, "translation", to=[1e39, 0, 0]),
    "requires EXT_meshopt_compression": change("extensionsRequired", to=["EXT_meshopt_compression", KHR]),
    "packed by KHR_spz": change(*PRIMITIVE, "extensions", KHR, "extensions", to={"KHR_spz": {}}),
    "kernel 'cube'": change(*PRIMITIVE, "extensions", KHR, "kernel", to="cube"),
    "colours in 'custom'": change(*PRIMITIVE, "extensions", KHR, "colorSpace", to="custom"),
    "mode 0": change(*PRIMITIVE, "mode", to=4),
    "lack POSITION": change(*ATTRIBUTES, to={}),
    "16 coefficients|14 coefficients": lambda document: document["meshes"][0]["primitives"][0]["attributes"].pop(
        f"{KHR}:SH_DEGREE_2_COEF_0"
    ),
    r"no accessors\[99\]": change(*ATTRIBUTES, "POSITION", to=99),
    "POSITION has a type": change("accessors", 0, "componentType", to=5123),
    "ROTATION has a type": change("accessors", 2, "componentType", to=[1]),
    "SCALE has a type": change("accessors", 3, "type", to="VEC4"),
    "POSITION is sparse": change("accessors", 0, "sparse", to={}),
    "rows, more than its bytes hold": change("accessors", 0, "count", to=1 << 60),
    "0 rows": change("accessors", 0, "count", to=0),
    "not a non-negative integer": change("accessors", 0, "count", to=-4),
    "differ in length": change("accessors", 0, "count", to=399),
    "more than its buffer holds": change("bufferViews", 0, "byteLength", to=1 << 60),
    r"bufferViews\[0\] claims": change("bufferViews", 0, "byteOffset", to=1 << 70),
    "0 bytes apart": change("bufferViews", 0, "byteStride", to=0),
    "etc/passwd' is outside its folder": change("buffers", 0, to={"uri": "../../etc/passwd", "byteLength": 10}),
    r"no buffers\[1\]": change("bufferViews", 0, "buffer", to=1),
}


@pytest.mark.parametrize("reason", HOSTILE)
def test_read_refuses_false_claims(tmp_path: Path, parts: tuple[dict[str, Any], bytes], reason: str) -> None:
    document, body = parts
    HOSTILE[reason](document)
    with pytest.raises(UsageProblem, match=reason):
        read_back(tmp_path, put_together(document, body))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * 100_000, "JSON can't be read"),
        (b"{'a'}", "JSON can't be read"),
        (b"[]  ", "no scenes"),
        (b"7", "no scenes"),
    ],
)
def test_read_refuses_text_that_is_not_a_document(tmp_path: Path, text: bytes, reason: str) -> None:
    with pytest.raises(UsageProblem, match=reason):
        read_back(tmp_path, put_together(text, b""))


def test_read_refuses_other_files(tmp_path: Path, parts: tuple[dict[str, Any], bytes]) -> None:
    whole = put_together(*parts)
    cases = {
        "is not a .glb": b"ply\n" + whole,
        "version 1": whole[:4] + struct.pack("<I", 1) + whole[8:],
        "is truncated": whole[:-100],
        "JSON chunk": whole[:12] + struct.pack("<I", 1 << 31) + whole[16:],
        "no binary chunk": put_together(*parts)[: -len(parts[1]) - 8].replace(
            struct.pack("<I", len(whole)), struct.pack("<I", len(whole) - len(parts[1]) - 8), 1
        ),
    }
    for reason, content in cases.items():
        with pytest.raises(UsageProblem, match=reason):
            read_back(tmp_path, content)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FA00000, 0xFF800000], ids=["quiet", "signalling", "infinite"])
@pytest.mark.parametrize("name", [":ROTATION", ":SCALE", ":OPACITY", ":SH_DEGREE_3_COEF_6"])
def test_read_refuses_nonfinite_values(
    tmp_path: Path, parts: tuple[dict[str, Any], bytes], name: str, bits: int
) -> None:
    document, body = parts
    accessor = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"][KHR + name]]
    at = document["bufferViews"][accessor["bufferView"]]["byteOffset"]
    broken = body[:at] + struct.pack("<I", bits) + body[at + 4 :]
    turned = {**document, "nodes": [{"mesh": 0, "rotation": [0.6, 0, 0, 0.8]}]}
    for each in (document, turned):
        with pytest.raises(
            UsageProblem, match="1 of 400 rows have a value that is not a finite number, the first is row 0"
        ):
            read_back(tmp_path, put_together(each, broken), Reading(strict=True))
        assert len(read_back(tmp_path, put_together(each, broken))) == 399


def test_read_bounds_repeated_nodes(tmp_path: Path, parts: tuple[dict[str, Any], bytes]) -> None:
    """A thousand nodes with one mesh would be 400,000 Gaussians, of 94 MB."""
    document, body = parts
    document["nodes"] = [{"mesh": 0}] * 1000
    document["scenes"] = [{"nodes": list(range(1000))}]
    content = put_together(document, body)
    tracemalloc.start()
    with pytest.raises(UsageProblem, match="repeat the Gaussians"):
        read_back(tmp_path, content)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def mutated(content: bytes, edits: list[tuple[int, int]], cut: int) -> bytes:
    changed = bytearray(content)
    for at, value in edits:
        changed[at % len(changed)] = value
    return bytes(changed[: len(changed) - cut % len(changed)])


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=8),
    cut=st.one_of(st.just(0), st.integers(0, 4000)),
)
def test_read_of_mutated_files(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.glb"
    path.write_bytes(mutated((DATA / "splat_transform.glb").read_bytes(), edits, cut))
    with suppress(UsageProblem):
        assert all(np.isfinite(getattr(glb.read(path), name)).all() for name in ("means", "quats", "shN"))


def test_read_splat_transform_file(three: Splats) -> None:
    """Its frame is half a turn about Y from ours; it was made from the .ply of `three`."""
    expected = transform(three, ABOUT_Y, np.zeros(3))
    back = glb.read(DATA / "splat_transform.glb")
    np.testing.assert_allclose(back.means, expected.means, atol=1e-6)
    np.testing.assert_allclose(back.log_scales, expected.log_scales, atol=1e-6)
    np.testing.assert_allclose(opacities(back), opacities(expected), atol=1e-6)
    np.testing.assert_allclose(back.sh0, expected.sh0, atol=1e-6)
    np.testing.assert_allclose(back.shN, expected.shN, atol=1e-5)
    np.testing.assert_allclose(covariances(back), covariances(expected), atol=1e-8)


@pytest.mark.slow
def test_splat_transform_agrees(tmp_path: Path, chiral: Splats, splat_transform: Callable[..., None]) -> None:
    """It makes a .glb of our .ply; its own rotation of quaternions and harmonics goes through `similarity` and back."""
    ply.write(tmp_path / "a.ply", chiral)
    splat_transform(tmp_path / "a.ply", tmp_path / "theirs.glb")
    back = transform(glb.read(tmp_path / "theirs.glb"), ABOUT_Y, np.zeros(3))
    np.testing.assert_allclose(back.means, chiral.means, atol=1e-6)
    np.testing.assert_allclose(back.shN, chiral.shN, atol=1e-5)
    np.testing.assert_allclose(back.log_scales, chiral.log_scales, atol=1e-5)
    np.testing.assert_allclose(covariances(back), covariances(chiral), atol=1e-8)


def reader(node_modules: Path, action: str, path: Path) -> Any:
    script = Path(__file__).with_name("glb_readers.mjs")
    command = [node_modules / ".bin" / "node", script, node_modules, action, path]
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("k", [0, 15])
def test_khronos_validator_agrees(tmp_path: Path, chiral: Splats, node_modules: Path, k: int) -> None:
    if not (node_modules / "gltf-validator").exists():
        pytest.skip("gltf-validator is missing: npm install gltf-validator")
    path = tmp_path / "a.glb"
    glb.write(path, dataclasses.replace(chiral, shN=chiral.shN[:, :k]))
    report = reader(node_modules, "validate", path)
    # It does not know the extension and refuses every name with a colon: KhronosGroup/glTF-Validator#252.
    known = [
        each["code"] == "UNSUPPORTED_EXTENSION" or f"/attributes/{KHR}:" in each["pointer"]
        for each in report["issues"]["messages"]
    ]
    assert len(known) == 1 + 4 + k
    assert all(known), report["issues"]
    assert report["info"]["totalVertexCount"] == len(chiral)


@pytest.mark.slow
def test_three_js_agrees(tmp_path: Path, chiral: Splats, node_modules: Path) -> None:
    if not (node_modules / "three").exists():
        pytest.skip("three is missing: npm install three")
    path = tmp_path / "a.glb"
    glb.write(path, chiral)
    found = reader(node_modules, "three", path)
    assert found["matrix"] == np.eye(4).ravel().tolist()
    np.testing.assert_array_equal(np.reshape(found["position"], (-1, 3)).astype("f4"), chiral.means)
    upper = covariances(chiral)[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
    np.testing.assert_allclose(np.reshape(found["covariance"], (-1, 6)), upper, atol=1e-8)
    colours = np.reshape(found["color"], (-1, 4)) / 255
    np.testing.assert_allclose(colours[:, :3], np.clip(0.5 + 0.2820948 * chiral.sh0, 0, 1), atol=0.51 / 255)
    np.testing.assert_allclose(colours[:, 3], opacities(chiral), atol=0.51 / 255)
    start = 0
    for degree, row in ((1, 12), (2, 16), (3, 24)):
        width = 2 * degree + 1
        theirs = np.reshape(found[f"sphericalHarmonics{degree}"], (-1, row))[:, : 3 * width].reshape(-1, width, 3)
        np.testing.assert_allclose((theirs - 128) / 128, chiral.shN[:, start : start + width], atol=0.51 / 128)
        start += width


def as_text(folder: Path, document: dict[str, Any], **addresses: str) -> Path:
    """A .gltf with these addresses of buffers, by their index."""
    for index, uri in addresses.items():
        document["buffers"][int(index[1:])]["uri"] = uri
    path = folder / "a.gltf"
    path.write_text(json.dumps(document))
    return path


def assert_same(found: Splats, expected: Splats) -> None:
    for name, values in expected.arrays().items():
        np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)


def test_read_of_text_with_buffers_elsewhere(tmp_path: Path, parts: tuple[dict[str, Any], bytes]) -> None:
    """A file beside it, one in a folder with an escaped name, base64, and two buffers."""
    document, body = parts
    expected = read_back(tmp_path, put_together(document, body))
    (tmp_path / "my buffers").mkdir()
    (tmp_path / "a.bin").write_bytes(body)
    (tmp_path / "my buffers" / "b.bin").write_bytes(body + b"more")
    inline = "data:application/octet-stream;base64," + base64.b64encode(body).decode()
    for uri in ("a.bin", "my%20buffers/b.bin", inline):
        assert_same(formats.read(as_text(tmp_path, document, b0=uri)), expected)
    views = document["bufferViews"]
    cut = views[3]["byteOffset"]
    for view in views[3:]:
        view |= {"buffer": 1, "byteOffset": view["byteOffset"] - cut}
    document["buffers"] = [{"byteLength": cut}, {"byteLength": len(body) - cut}]
    (tmp_path / "a.bin").write_bytes(body[:cut])
    (tmp_path / "b.bin").write_bytes(body[cut:])
    assert_same(formats.read(as_text(tmp_path, document, b0="a.bin", b1="b.bin")), expected)
    with pytest.raises(UsageProblem, match="more than its buffer holds"):
        formats.read(as_text(tmp_path, document, b0="b.bin", b1="a.bin"))


def test_read_of_text_reads_no_links_outside(tmp_path: Path, parts: tuple[dict[str, Any], bytes]) -> None:
    document, body = parts
    (tmp_path / "outside.bin").write_bytes(body)
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(UsageProblem, match="is outside its folder"):
        formats.read(as_text(tmp_path / "inside", document, b0="a.bin"))


@pytest.mark.parametrize("version", [2, 3, 4])
def test_read_of_packed_gaussians(tmp_path: Path, three: Splats, version: int) -> None:
    """KHR_gaussian_splatting_compression_spz_2: the SPZ's numbers are those of the scene, and a node moves them."""
    if version == 4:
        pytest.importorskip("zstandard", reason="SPZ version 4 needs it")
    packed = (Path(__file__).parents[1] / "data" / f"official_v{version}.spz").read_bytes()
    inner = {"KHR_gaussian_splatting_compression_spz_2": {"bufferView": 0}}
    splatting = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display", "extensions": inner}
    document: dict[str, Any] = {
        "asset": {"version": "2.0"},
        "extensionsUsed": [KHR, *inner],
        "extensionsRequired": ["KHR_materials_unlit", KHR, *inner],
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "translation": [0, 1, 0]}],
        "meshes": [{"primitives": [{"mode": 0, "attributes": {"POSITION": 0}, "extensions": {KHR: splatting}}]}],
        "accessors": [{"componentType": 5126, "count": 3, "type": "VEC3"}],
        "bufferViews": [{"buffer": 0, "byteLength": len(packed)}],
        "buffers": [{"byteLength": len(packed)}],
    }
    back = read_back(tmp_path, put_together(document, packed))
    stored = to_ply_frame(three)  # what the file has
    np.testing.assert_allclose(back.means, stored.means + np.array([0, 1, 0], np.float32), atol=1e-6)
    np.testing.assert_allclose(back.log_scales, stored.log_scales, atol=1e-6)
    np.testing.assert_allclose(back.shN, stored.shN, atol=1e-6)
    document["nodes"] = [{"mesh": 0}] * 40
    document["scenes"] = [{"nodes": list(range(40))}]
    with pytest.raises(UsageProblem, match="repeat the Gaussians"):
        read_back(tmp_path, put_together(document, packed))
    inner["KHR_gaussian_splatting_compression_spz_2"]["bufferView"] = 7
    with pytest.raises(UsageProblem, match=r"no bufferViews\[7\]"):
        read_back(tmp_path, put_together(document, packed))


def srgb(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)


def test_read_of_linear_colors(tmp_path: Path, chiral: Splats, parts: tuple[dict[str, Any], bytes]) -> None:
    document, body = parts
    plain = read_back(tmp_path, put_together(document, body))
    document["meshes"][0]["primitives"][0]["extensions"][KHR]["colorSpace"] = "lin_rec709_display"
    said: list[str] = []
    back = read_back(tmp_path, put_together(document, body), Reading(note=said.append))
    assert "its colours become sRGB" in said[0]
    c0 = 0.28209479177387814
    linear = np.maximum(0.5 + c0 * plain.sh0.astype(float), 0)
    np.testing.assert_allclose(0.5 + c0 * back.sh0, srgb(linear), atol=1e-6)
    slope = (srgb(linear + 1e-6) - srgb(np.maximum(linear - 1e-6, 0))) / 2e-6
    smooth = (np.abs(linear - 0.0031308) > 1e-5) & (linear > 1e-5)  # the curve has a corner there
    expected = plain.shN * slope[:, None]
    np.testing.assert_allclose(back.shN.transpose(0, 2, 1)[smooth], expected.transpose(0, 2, 1)[smooth], rtol=1e-4)


def test_read_of_stretching_nodes(tmp_path: Path, chiral: Splats, parts: tuple[dict[str, Any], bytes]) -> None:
    """A stretched node in a turned one, so the matrix also shears the Gaussians."""
    document, body = parts
    document["nodes"] = [
        {"children": [1], "scale": [2, 1, 0.5]},
        {"mesh": 0, "rotation": [0, 0, np.sin(0.3), np.cos(0.3)], "translation": [1, 0, 0]},
    ]
    back = read_back(tmp_path, put_together(document, body))
    c, s = np.cos(0.6), np.sin(0.6)
    stretch = np.diag([2, 1, 0.5])
    matrix = stretch @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    np.testing.assert_allclose(back.means, chiral.means @ matrix.T + [2, 0, 0], atol=1e-6)
    expected = matrix @ covariances(chiral) @ matrix.T
    np.testing.assert_allclose(covariances(back), expected, atol=2e-6 * np.abs(expected).max())
    np.testing.assert_allclose(np.linalg.norm(back.quats, axis=1), 1, atol=1e-6)
