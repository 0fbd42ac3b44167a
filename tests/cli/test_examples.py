"""The programs in `examples/`: each runs as it is, with a prior in closed form; Blender's where Blender is."""

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_options import random_splats

import segdream_cli
from segdream_cli import formats
from segdream_cli.splats.transform import rotation_matrices

EXAMPLES = Path(__file__).parents[2] / "examples"
BPY = os.environ.get("SEGDREAM_BPY_PYTHON", sys.executable if importlib.util.find_spec("bpy") else "")
"""A Python with Blender as the module bpy."""
TO_BLENDER = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])
"""From y up to z up, as Blender's importer of glTF has it: (x, y, z) becomes (x, -z, y)."""


@pytest.fixture
def small(prior, folder, monkeypatch):
    """Lets the examples make few Gaussians in few steps, from a sphere."""
    real = segdream_cli.load

    def load(*, settings=None, **options):
        few = {"init.shape": "sphere", "init.count": 300, "optim.steps": 20, "camera.batch": 1}
        return real(settings={"refine.enabled": False, **few, **(settings or {})}, device="cpu", **options)

    monkeypatch.setattr(segdream_cli, "load", load)
    return folder


@pytest.fixture(scope="module")
def blender_import():
    spec = importlib.util.spec_from_file_location("blender_import", EXAMPLES / "blender_import.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_notebook_makes_shows_and_exports(small, capsys):
    names = runpy.run_path(str(EXAMPLES / "notebook.py"))
    assert {path.name for path in small.iterdir()} == {"bus.ply", "bus.spz", "bus.html", "bus.png", "bus.webp"}
    assert len(formats.read(small / "bus.ply")) == len(names["splats"])
    with Image.open(small / "bus.webp") as video:
        assert video.n_frames == 24
    told = capsys.readouterr().out
    assert f"step 20, distil: {len(names['splats']):,} Gaussians" in told
    assert "'a yellow school bus'" in told


def test_notebook_has_cells():
    cells = (EXAMPLES / "notebook.py").read_text().split("# %%")[1:]
    assert sum(cell.startswith(" [markdown]") for cell in cells) == 4
    assert len(cells) == 9


def test_program_makes_an_asset(small, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["generate.py", "a red ball", "ball.ply", "--steps", "4"])
    runpy.run_path(str(EXAMPLES / "generate.py"), run_name="__main__")
    assert formats.read(small / "ball.ply").provenance["steps"] == 4
    assert (small / "ball.png").exists()


def test_blender_import_has_the_axes_of_blenders_own_importer(blender_import, tmp_path):
    splats = random_splats()
    formats.write(tmp_path / "a.ply", splats)
    found = blender_import.read_ply(tmp_path / "a.ply")
    np.testing.assert_allclose(found["position"], splats.means @ TO_BLENDER.T, atol=1e-6)
    quats = splats.quats / np.linalg.norm(splats.quats, axis=1, keepdims=True)
    axes = rotation_matrices(quats.astype(np.float64)) * np.exp(splats.log_scales)[:, None, :]
    turned = rotation_matrices(found["rotation"].astype(np.float64)) * found["scale"][:, None, :]
    expected = TO_BLENDER @ (axes @ axes.mT) @ TO_BLENDER.T
    np.testing.assert_allclose(turned @ turned.mT, expected, rtol=1e-3, atol=1e-7)
    encoded = np.clip(0.5 + 0.2820948 * splats.sh0, 0, 1)
    light = found["color"][:, :3]
    back = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clip(1e-9) ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(back, encoded, atol=1e-4)
    np.testing.assert_allclose(found["color"][:, 3], 1 / (1 + np.exp(-splats.opacity_logits)), atol=1e-6)


@pytest.mark.parametrize("name", ["compressed-ply", "ply-compact", "points"])
def test_blender_import_refuses_other_files(blender_import, tmp_path, name):
    path = tmp_path / f"a{formats.FORMATS[name].suffix}"
    formats.write(path, random_splats(), name)
    if name == "ply-compact":
        return np.testing.assert_equal(len(blender_import.read_ply(path)["position"]), 200)
    with pytest.raises(ValueError, match="holds no Gaussians in 32-bit floats"):
        blender_import.read_ply(path)


@pytest.mark.slow
@pytest.mark.skipif(not BPY, reason="needs Blender as a module: pip install bpy, or SEGDREAM_BPY_PYTHON")
def test_blender_imports_splats_and_writes_fbx(tmp_path):
    """The saved scene is read again by Blender: corners of the points, and of a mesh after a trip through FBX."""
    splats = random_splats()
    formats.write(tmp_path / "a.ply", splats)
    triangle = np.array([[0, 0, 0], [0.5, 0, 0], [0, 2, 0.25]], np.float32)
    _write_glb(tmp_path / "b.glb", triangle)
    look = tmp_path / "look.py"
    look.write_text(
        "import bpy, sys\n"
        "if sys.argv[-1].endswith('.fbx'):\n"
        "    bpy.ops.wm.read_factory_settings(use_empty=True)\n"
        "    bpy.ops.import_scene.fbx(filepath=sys.argv[-1])\n"
        "else:\n"
        "    bpy.ops.wm.open_mainfile(filepath=sys.argv[-1])\n"
        "for each in bpy.data.objects:\n"
        "    points = [each.matrix_world @ vertex.co for vertex in each.data.vertices]\n"
        "    print('found', *[f(p[i] for p in points) for f in (min, max) for i in range(3)])\n"
    )
    for source, output, expected in (
        ("a.ply", "a.blend", splats.means @ TO_BLENDER.T),
        ("b.glb", "b.fbx", triangle @ TO_BLENDER.T),
    ):
        script = [BPY, str(EXAMPLES / "blender_import.py"), "--", source, "-o", output]
        subprocess.run(script, cwd=tmp_path, check=True, capture_output=True, env={"PATH": os.environ["PATH"]})
        done = subprocess.run([BPY, str(look), output], cwd=tmp_path, check=True, capture_output=True, text=True)
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("found")]
        corners = np.array(line.split()[1:], float)
        np.testing.assert_allclose(corners, [*expected.min(axis=0), *expected.max(axis=0)], atol=1e-4)


def _write_glb(path, vertices):
    import trimesh

    trimesh.Trimesh(vertices, [[0, 1, 2]], process=False).export(path)
