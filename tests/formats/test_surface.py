"""Meshes to Gaussians: where they lie, how they face, their colours by hand, and files that can't be used."""

import io
import json
import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from foreign_files import glb_file
from PIL import Image
from scipy.spatial import KDTree

from segdream_cli import formats
from segdream_cli.errors import UsageProblem
from segdream_cli.mesh import surface
from segdream_cli.render.cameras import frame_sphere, turntable_azimuths
from segdream_cli.render.view import render
from segdream_cli.splats import SH_C0
from segdream_cli.splats.gaussians import Gaussians
from segdream_cli.splats.transform import rotation_matrices

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
PAINTED = "v 0 0 0 1 0.5 0\nv 1 0 0 1 0.5 0\nv 1 1 0 1 0.5 0\nv 0 1 0 1 0.5 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
HALVES = np.zeros((8, 8, 3), np.uint8)
HALVES[:, :4], HALVES[:, 4:] = (200, 30, 30), (30, 30, 200)
"""A texture, red on the left and blue on the right."""


def colors(splats):
    """sRGB in 0..1 [n, 3]."""
    return 0.5 + SH_C0 * splats.sh0


def decode(srgb):
    """Linear light of sRGB in 0..1, by the standard's formula."""
    return np.where(np.asarray(srgb) <= 0.04045, np.asarray(srgb) / 12.92, ((np.asarray(srgb) + 0.055) / 1.055) ** 2.4)


def sphere(radius=30.0, at=(100.0, 5.0, 0.0), **material):
    """A sphere with the texture `HALVES` around it."""
    made = trimesh.creation.uv_sphere(radius=radius, count=[64, 64])
    x, y, z = (made.vertices / radius).T
    uv = np.stack([np.arctan2(y, x) / 2 / np.pi + 0.5, np.arccos(z) / np.pi], axis=1)
    texture = material.pop("baseColorTexture", Image.fromarray(HALVES))
    pbr = trimesh.visual.material.PBRMaterial(baseColorTexture=texture, **material)
    made.visual = trimesh.visual.TextureVisuals(uv=uv, material=pbr)
    made.apply_translation(at)
    return made


def exported(path, *meshes, matrix=None):
    scene = trimesh.Scene()
    for mesh in meshes:
        scene.add_geometry(mesh, transform=matrix)
    path.write_bytes(scene.export(file_type="glb"))
    return path


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return surface.read(exported(tmp_path_factory.mktemp("ball") / "ball.glb", sphere()), 4000)


def test_read_spreads_gaussians_evenly_over_the_surface(ball):
    """Random points have a spread of nearest distances of half their mean (1 / sqrt(pi) in the plane: 0.52)."""
    assert 3950 <= len(ball) <= 4000
    offsets = ball.means - [100, 5, 0]
    assert np.abs(np.linalg.norm(offsets, axis=1) - 30).max() < 0.15
    nearest = KDTree(ball.means).query(ball.means, 2)[0][:, 1]
    assert nearest.std() / nearest.mean() < 0.25
    spacing = np.sqrt(4 * np.pi * 900 / len(ball))
    assert np.exp(ball.log_scales[0]) == pytest.approx(
        spacing * np.array([surface.WIDTH, surface.WIDTH, surface.THICKNESS]), rel=0.02
    )


def test_read_lays_discs_along_the_surface(ball):
    axes = rotation_matrices(ball.quats)[:, :, 2]
    offsets = (ball.means - [100, 5, 0]) / 30
    assert np.abs((axes * offsets).sum(1)).min() > 0.98


def test_read_makes_a_solid_surface(ball):
    cameras = frame_sphere(
        turntable_azimuths(3), torch.full((3,), 20.0), 128, center=torch.tensor([100.0, 5, 0]), extent=30.0
    )
    alpha = render(Gaussians.from_splats(ball), cameras).alpha[..., 0]
    y, x = torch.meshgrid(*2 * [torch.arange(128) - 63.5], indexing="ij")
    inside = x.square() + y.square() < 48**2  # the sphere's outline has a radius of 54 pixels
    assert (alpha[:, inside] >= 0.97).float().mean() > 0.99


def test_read_takes_the_colors_of_the_texture(ball):
    """u is below 1/2, red, where y is negative."""
    y = ball.means[:, 1] - 5
    assert colors(ball)[y < -3] == pytest.approx(np.tile([200, 30, 30], ((y < -3).sum(), 1)) / 255, abs=0.01)
    assert colors(ball)[y > 3] == pytest.approx(np.tile([30, 30, 200], ((y > 3).sum(), 1)) / 255, abs=0.01)


def test_read_gives_the_same_gaussians_again(tmp_path):
    path = exported(tmp_path / "a.glb", sphere(), trimesh.creation.box())
    first, second = surface.read(path, 500), surface.read(path, 500)
    for name, values in first.arrays().items():
        assert np.array_equal(values, second.arrays()[name])


def test_read_places_nodes_and_multiplies_factors_in_linear_light(tmp_path):
    """glTF: base colour = texture * factor, both linear; the bytes of the factor are linear already."""
    turn = trimesh.transformations.rotation_matrix(np.pi / 2, [0, 1, 0])
    turn[:3, 3] = 0, 7, 0
    made = sphere(radius=1, at=(0, 0, 0), baseColorFactor=[128, 255, 64, 255])
    splats = surface.read(exported(tmp_path / "a.glb", made, matrix=turn), 600)
    assert splats.means.mean(0) == pytest.approx([0, 7, 0], abs=0.03)
    red = splats.means[:, 1] - 7 < -0.2
    expected = decode(np.array([200, 30, 30]) / 255) * np.array([128, 255, 64]) / 255
    assert decode(colors(splats)[red]) == pytest.approx(np.tile(expected, (red.sum(), 1)), abs=0.01)


def test_read_takes_vertex_colors_of_a_glb_as_linear(tmp_path):
    box = trimesh.creation.box()
    box.visual.vertex_colors = np.tile([255, 55, 0, 255], (8, 1))
    splats = surface.read(exported(tmp_path / "a.glb", box), 200)
    assert decode(colors(splats)) == pytest.approx(np.tile([1, 55 / 255, 0], (len(splats), 1)), abs=2e-3)


@pytest.mark.parametrize(("mode", "share"), [("MASK", 1.0), ("OPAQUE", 0.5)])
def test_read_drops_what_is_clear(tmp_path, mode, share):
    texture = np.dstack([HALVES, np.repeat([[255] * 4 + [20] * 4], 8, axis=0).astype(np.uint8)])
    made = sphere(radius=1, at=(0, 0, 0), baseColorTexture=Image.fromarray(texture), alphaMode=mode)
    splats = surface.read(exported(tmp_path / "a.glb", made), 800)
    # the faces across the seam of the texture take colours of both halves
    assert (splats.means[:, 1] < 0.02).mean() == pytest.approx(share, abs=0.05)


def test_read_keeps_the_opacity_of_a_blend(tmp_path):
    made = sphere(radius=1, at=(0, 0, 0), baseColorFactor=[255, 255, 255, 102], alphaMode="BLEND")
    splats = surface.read(exported(tmp_path / "a.glb", made), 100)
    assert 1 / (1 + np.exp(-splats.opacity_logits)) == pytest.approx(
        np.full(len(splats), 0.4 * surface.OPACITY), abs=0.01
    )


def test_read_keeps_the_sides_of_a_thin_sheet_apart(tmp_path):
    """Two sheets, a hundredth of the spacing from each other, red above and blue below."""
    top, below = (trimesh.creation.box(extents=[1, 1, 1e-9]) for _ in range(2))
    for sheet, height, normal, color in ((top, 1e-4, 1, [255, 0, 0]), (below, -1e-4, -1, [0, 0, 255])):
        sheet.update_faces(sheet.face_normals[:, 2] * normal > 0.9)
        sheet.apply_translation([0, 0, height])
        sheet.visual.vertex_colors = np.tile([*color, 255], (len(sheet.vertices), 1))
    splats = surface.read(exported(tmp_path / "a.glb", top, below), 2000)
    found = colors(splats)
    assert np.minimum(found[:, 0], found[:, 2]).max() < 0.01
    assert (found[:, 0] > 0.5).mean() == pytest.approx(0.5, abs=0.05)


def write_obj(folder, *, faces="f 1/1 2/2 3/3\nf 1/1 3/3 4/4\n", head="", mtl="", texture=True, vertices=SQUARE):
    (folder / "a.obj").write_text(f"{head}{vertices}{faces}")
    (folder / "a.mtl").write_text(mtl)
    if texture:
        Image.fromarray(HALVES).save(folder / "t.png")
    return folder / "a.obj"


USES = "mtllib a.mtl\nusemtl one\n"


@pytest.mark.parametrize("name", ["t.png", "-s 1 1 1 t.png", ".\\t.png"])
def test_read_takes_the_texture_of_an_obj(tmp_path, name):
    splats = surface.read(write_obj(tmp_path, head=USES, mtl=f"newmtl one\nKd 0.1 0.9 0.1\nmap_Kd {name}\n"), 400)
    left, right = splats.means[:, 0] < 0.45, splats.means[:, 0] > 0.55
    assert colors(splats)[left] == pytest.approx(np.tile([200, 30, 30], (left.sum(), 1)) / 255, abs=0.01)
    assert colors(splats)[right] == pytest.approx(np.tile([30, 30, 200], (right.sum(), 1)) / 255, abs=0.01)


@pytest.mark.parametrize(
    ("head", "mtl", "vertices", "expected"),
    [
        (USES, "newmtl one\nKd 0.2 0.6 0.4\n", SQUARE, (0.2, 0.6, 0.4)),
        (USES, "newmtl one\nNs 10\n", SQUARE, (surface.GRAY,) * 3),
        ("", "", SQUARE, (surface.GRAY,) * 3),
        ("", "", PAINTED, (1, 0.5, 0)),
    ],
    ids=["Kd", "no Kd", "no material", "vertex colours"],
)
def test_read_takes_the_colors_of_an_obj(tmp_path, head, mtl, vertices, expected):
    splats = surface.read(write_obj(tmp_path, head=head, mtl=mtl, vertices=vertices), 50)
    assert colors(splats) == pytest.approx(np.tile(expected, (len(splats), 1)), abs=4e-3)


def test_is_mesh_knows_a_glb_of_gaussians(tmp_path, ball):
    formats.write(tmp_path / "splats.glb", ball)
    assert not surface.is_mesh(tmp_path / "splats.glb")
    assert surface.is_mesh(exported(tmp_path / "mesh.glb", trimesh.creation.box()))
    assert surface.is_mesh(tmp_path / "any.OBJ")
    assert surface.is_mesh((tmp_path / "mesh.glb").rename(tmp_path / "mesh.bin"))
    assert len(surface.read(tmp_path / "mesh.bin", 50)) == 50
    formats.write(tmp_path / "any.ply", ball)
    assert not surface.is_mesh(tmp_path / "any.ply")


TRANSFORM = "KHR_texture_transform"


def square_glb(path, *, quantized, color=(1, 128 / 255, 4 / 255, 1), info=None, textured=True, change=None):
    """A square from -2 to 2 by -1 to 1, `HALVES` over it, and one linear colour; mirrored second coordinates."""
    u = np.array([0, 65535, 65535, 0], "<u2")
    v = np.array([65535, 65535, 0, 0], "<u2")
    columns = {
        "POSITION": np.array([[-32767, -16384, 0], [32767, -16384, 0], [32767, 16384, 0], [-32767, 16384, 0]], "<i2"),
        "TEXCOORD_0": np.stack([u, v], axis=1),
        "TEXCOORD_1": np.stack([65535 - u, v], axis=1),
        "COLOR_0": np.tile(np.rint(255 * np.nan_to_num(color)).astype(np.uint8), (4, 1)),
    }
    if not quantized:
        columns = {name: (column / np.iinfo(column.dtype).max).astype("<f4") for name, column in columns.items()}
        columns["COLOR_0"] = np.tile(np.array(color, "<f4"), (4, 1))
    stream = io.BytesIO()
    Image.fromarray(HALVES).save(stream, "png")
    body, views, accessors = stream.getvalue(), [{"buffer": 0, "byteLength": stream.tell()}], []
    for column in (*columns.values(), np.array([[0], [1], [2], [0], [2], [3]], "<u2")):
        row = np.ascontiguousarray(column).view(np.uint8).reshape(len(column), -1)
        row = np.pad(row, [(0, 0), (0, -row.shape[1] % 4 if column.shape[1] > 1 else 0)])
        body += bytes(-len(body) % 4)
        view = {"buffer": 0, "byteOffset": len(body), "byteLength": row.size}
        views.append(view | ({"byteStride": row.shape[1]} if column.shape[1] > 1 else {}))
        kind = {"i2": 5122, "u2": 5123, "u1": 5121, "f4": 5126}[column.dtype.str[1:]]
        shape = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}[column.shape[1]]
        accessors.append({"bufferView": len(views) - 1, "componentType": kind, "type": shape, "count": len(column)})
        accessors[-1]["normalized"] = quantized and column.shape[1] > 1
        body += row.tobytes()
    primitive = {"attributes": {name: i for i, name in enumerate(columns)}, "indices": len(columns)}
    material = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0, **(info or {})}}}
    document = {
        "asset": {"version": "2.0"},
        "extensionsRequired": [TRANSFORM, *(["KHR_mesh_quantization"] if quantized else [])],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "scale": [2, 2, 2]}],
        "meshes": [{"primitives": [primitive | ({"material": 0} if textured else {})]}],
        "materials": [material],
        "textures": [{"source": 0}],
        "images": [{"bufferView": 0, "mimeType": "image/png"}],
        "buffers": [{"byteLength": len(body)}],
        "bufferViews": views,
        "accessors": accessors,
    }
    if change:
        change(document)
    path.write_bytes(glb_file(document, body))
    return path


def test_read_takes_normalized_integers_as_the_floats_that_they_stand_for(tmp_path):
    found, exact = (surface.read(square_glb(tmp_path / "a.glb", quantized=each), 400) for each in (True, False))
    np.testing.assert_allclose(found.means, exact.means, atol=1e-6)
    np.testing.assert_allclose(found.sh0, exact.sh0, atol=1e-5)
    assert np.abs(found.means).max(0) == pytest.approx([2, 1, 0], abs=0.1)
    red = found.means[:, 0] < -0.2
    expected = decode(np.array([200, 30, 30]) / 255) * np.array([255, 128, 4]) / 255
    assert decode(colors(found)[red]) == pytest.approx(np.tile(expected, (red.sum(), 1)), abs=1e-4)


@pytest.mark.parametrize(
    ("info", "toward_red"),
    [
        ({}, (-1, 0, 0)),
        ({"texCoord": 1}, (1, 0, 0)),
        ({"extensions": {TRANSFORM: {"texCoord": 1}}}, (1, 0, 0)),
        ({"extensions": {TRANSFORM: {"offset": [1, 0], "scale": [-1, 1]}}}, (1, 0, 0)),
        ({"extensions": {TRANSFORM: {"offset": [0, 1], "rotation": np.pi / 2}}}, (0, 1, 0)),
        ({"extensions": {TRANSFORM: {"offset": [1, 0], "rotation": -np.pi / 2}}}, (0, -1, 0)),
    ],
    ids=["plain", "second", "second by transform", "mirrored", "quarter turn", "quarter turn back"],
)
def test_read_takes_the_texture_coordinates_of_the_base_color(tmp_path, info, toward_red):
    """A turn by the rotation, counter-clockwise where v goes down: (u, v) becomes (v, -u) at a quarter."""
    splats = surface.read(square_glb(tmp_path / "a.glb", quantized=True, info=info), 200)
    along = splats.means @ np.array(toward_red)
    found = colors(splats)
    assert (found[along > 0.1, 0] > 0.7).all()
    assert (found[along < -0.1, 0] < 0.2).all()


def test_read_refuses_colors_that_are_not_finite(tmp_path):
    path = square_glb(tmp_path / "a.glb", quantized=False, color=(np.nan, 0, 0, 1))
    refused(path, "2 of 2 faces have a corner, texture coordinate or colour that is not a finite number")


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document: document["accessors"][1].update(count=2), "different numbers of rows"),
        (lambda document: document["accessors"][3].update(count=3), "different numbers of rows"),
        (lambda document: document["accessors"][3].update(type="VEC2"), "COLOR_0 has a type"),
        (lambda document: document["meshes"][0]["primitives"][0]["attributes"].update(TEXCOORD_0=0), "TEXCOORD_0 has"),
        (lambda document: document["accessors"][4].update(sparse={}), "indices of its faces are sparse"),
        (lambda document: document["textures"][0].pop("source"), "a texture that segdream can't read"),
        (lambda document: document["textures"].pop(), "it has no textures[0]"),
        (
            lambda document: document["images"].append({"uri": "data:image/png;base64,AAAA"}),
            "its image 1 can't",
        ),
    ],
    ids=[
        *("few coordinates", "few colors", "wide colors", "positions as coordinates", "sparse indices"),
        *("texture without image", "no texture", "damaged image"),
    ],
)
def test_read_refuses_attributes_that_do_not_fit(tmp_path, quantized, change, words):
    refused(square_glb(tmp_path / "a.glb", quantized=quantized, change=change), words)


def test_read_refuses_texture_coordinates_that_a_transform_makes_infinite(tmp_path):
    info = {"extensions": {TRANSFORM: {"scale": [1e39, 1]}}}
    refused(square_glb(tmp_path / "a.glb", quantized=True, info=info), "not a finite number")


def test_read_keeps_dark_vertex_colors(tmp_path):
    """A linear value of 0.0015 is 0.019 in sRGB, and nothing once it is a byte."""
    path = square_glb(tmp_path / "a.glb", quantized=False, color=(0.0015, 0.0015, 0.0015, 1), textured=False)
    assert decode(colors(surface.read(path, 50))) == pytest.approx(0.0015, abs=1e-5)


def glb_with(path, change):
    """The .glb of a textured sphere after a change of its JSON."""
    data = exported(path, sphere()).read_bytes()
    size = struct.unpack("<I", data[12:16])[0]
    document = json.loads(data[20 : 20 + size])
    change(document)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + size :]
    path.write_bytes(struct.pack("<5I", 0x46546C67, 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest)
    return path


def refused(path, words):
    with pytest.raises(UsageProblem) as caught:
        surface.read(path, 100)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("head", "mtl", "name"),
    [
        ("mtllib it's gone.mtl\nusemtl one\n", "", "it's gone.mtl"),
        ("mtllib sub\\gone.mtl\nusemtl one\n", "", "sub\\gone.mtl"),
        (USES, 'newmtl one\nmap_Kd it\'s a "texture".JPG\n', 'it\'s a "texture".JPG'),
        (USES, "newmtl one\nKd 1 0 0\nmap_Kd -s 1 1 1 no/such/folder/t.tga\n", "no/such/folder/t.tga"),
        (USES, "newmtl one\nmap_Kd t.png\n", "t.png"),
    ],
)
@pytest.mark.parametrize("broken", [False, True], ids=["missing", "broken"])
def test_hint_for_a_missing_file_lets_the_mesh_be_read(tmp_path, head, mtl, name, broken):
    """A broken file is kept under another name."""
    path = write_obj(tmp_path, head=head, mtl=mtl, texture=False)
    file = tmp_path / name.replace("\\", "/")
    if broken:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("not an image") if file.suffix != ".mtl" else file.symlink_to("nowhere")
    with pytest.raises(UsageProblem, match=re.escape(f"names the file {name}, which can't be read")) as caught:
        surface.read(path, 50)
    python = f"{shlex.quote(sys.executable)} -c"
    subprocess.run(caught.value.hint.replace("python -c", python), shell=True, check=True)
    assert colors(surface.read(path, 50)) == pytest.approx(surface.GRAY, abs=0.01)
    assert not broken or file.suffix == ".mtl" or Path(f"{file}.bak").read_text() == "not an image"


@pytest.mark.parametrize("name", [".", "t.bin", 300 * "t" + ".png"])
def test_hint_for_a_file_that_cannot_be_replaced_names_another_asset(tmp_path, name):
    path = write_obj(tmp_path, head=USES, mtl=f"newmtl one\nmap_Kd {name}\n", texture=False)
    with pytest.raises(UsageProblem, match=r"names the file .*, which can't be read") as caught:
        surface.read(path, 50)
    assert caught.value.hint is None


@pytest.mark.parametrize(
    ("head", "mtl", "words"),
    [
        (USES, "newmtl one\nmap_Kd missing.png\n", "names the file missing.png, which can't be read"),
        ("mtllib other.mtl\nusemtl one\n", "", "names the file other.mtl, which can't be read"),
    ],
)
def test_read_refuses_an_obj_without_its_files(tmp_path, head, mtl, words):
    refused(write_obj(tmp_path, head=head, mtl=mtl), words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (SQUARE, "has no faces"),
        ("", "is empty"),
        ("hello\n", "has no faces"),
        (
            "v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",
            "1 of 1 faces have a corner, texture coordinate or colour that is not a finite number",
        ),
        ("v 1e39 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "1 of 1 faces have a corner"),
        ("v 0 0 0\nv 1 0 0\nf 1 2 9\n", "is damaged"),
        ("v 1 0 0\nv 1 0 0\nv 1 0 0\nf 1 2 3\n", "no visible surface"),
    ],
)
def test_read_refuses_an_obj_without_a_surface(tmp_path, content, words):
    (tmp_path / "a.obj").write_text(content)
    refused(tmp_path / "a.obj", words)


def test_read_refuses_a_broken_texture(tmp_path):
    (tmp_path / "t.png").write_bytes(b"not an image")
    refused(write_obj(tmp_path, head=USES, mtl="newmtl one\nmap_Kd t.png\n", texture=False), "t.png")


def test_read_refuses_a_glb_that_it_would_read_wrongly(tmp_path):
    def compress(document):
        document["extensionsUsed"] = ["EXT_meshopt_compression"]

    def require(document):
        document["extensionsRequired"] = ["KHR_materials_unlit", "KHR_meshopt_compression"]

    def cut_image(document):
        document["bufferViews"][document["images"][0]["bufferView"]]["byteLength"] = 40

    def thin_out(document):
        document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]["sparse"] = {}

    def fan_out(document):
        document["meshes"][0]["primitives"][0]["mode"] = 6

    def cut_faces(document):
        document["meshes"][0]["primitives"][0]["attributes"] = {}

    refused(glb_with(tmp_path / "a.glb", compress), "uses EXT_meshopt_compression, which segdream can't read")
    refused(glb_with(tmp_path / "e.glb", require), "uses KHR_meshopt_compression, which segdream can't read")
    refused(glb_with(tmp_path / "b.glb", cut_image), "its image 0 can't be read")
    refused(glb_with(tmp_path / "c.glb", cut_faces), "is damaged")
    refused(glb_with(tmp_path / "f.glb", thin_out), "POSITION is sparse, which segdream can't read")
    refused(glb_with(tmp_path / "g.glb", fan_out), "has a triangle fan, which segdream can't read")
    path = exported(tmp_path / "d.glb", sphere())
    path.write_bytes(path.read_bytes()[:-5000])
    refused(path, "is truncated")
    refused(tmp_path / "missing.glb", "can't be read")


def test_read_refuses_points(tmp_path):
    cloud = trimesh.PointCloud(np.random.default_rng(0).random((20, 3)))
    refused(exported(tmp_path / "a.glb", cloud), "has no faces")


def test_read_keeps_the_provenance_of_a_glb(tmp_path):
    def add(document):
        document["asset"]["extras"] = {"segdream": {"prompt": "a ball"}}

    assert surface.read(glb_with(tmp_path / "a.glb", add), 50).provenance == {"prompt": "a ball"}
