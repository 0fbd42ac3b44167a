"""Options that say how an asset stands, on the command line."""

from pathlib import Path

import numpy as np
import pytest
from test_options import random_splats

from segdream_cli import formats
from segdream_cli.errors import UsageProblem
from segdream_cli.formats import spz
from segdream_cli.runs.source import source_of

OFFICIAL = Path(__file__).parents[1] / "data" / "official_v3.spz"
NOTE = f"{OFFICIAL} does not name its frame; read as RUB, as SPZ specifies; if it is upside down, add --frame rdf"


@pytest.mark.parametrize(
    "command", [("export", "-o", "a.ply"), ("render", "-o", "a.png", "--size", "16", "--view", "0,0")]
)
def test_note_on_a_file_without_a_frame(segdream, folder, command):
    name, *options = command
    assert NOTE in segdream(name, OFFICIAL, *options).err
    assert "does not name its frame" not in segdream(name, OFFICIAL, *options, "--force", "--frame", "rdf").err


def test_frame_turns_the_asset(segdream, folder):
    assert segdream("export", OFFICIAL, "-o", "a.ply", "--frame", "RDF").code == 0
    official = spz.read(OFFICIAL).means
    np.testing.assert_allclose(formats.read(Path("a.ply")).means, official * [1, -1, -1])
    assert segdream("export", "a.ply", "-o", "b.spz", "--output-frame", "ruf").code == 0
    assert b"frame ruf" in Path("b.spz").read_bytes()[:30]
    assert "does not name its frame" not in segdream("export", "b.spz", "-o", "c.ply").err
    np.testing.assert_allclose(formats.read(Path("c.ply")).means, official * [1, -1, -1], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (("-o", "a.ply", "--frame", "rux"), "--frame 'rux' is not three letters", "--frame rdf"),
        (("-o", "a.ply", "--output-frame", "z"), "--output-frame 'z' is not three", "--output-frame rdf"),
        (
            ("-o", "a.html", "--output-frame", "ruf"),
            "has no effect on a .html page",
            "there.ply -o a.html",
        ),
        (("-o", "a.spz", "--output-frame", "fru"), "SPZ can't name the frame fru", "--output-frame rub"),
        (("-o", "a.ply", "--up", "w"), "--up w is not one of", "--up z"),
        (("-o", "a.ply", "--up", "z", "--front", "-z"), "--front -z is not x, y, -x, -y or an azimuth", "--front x"),
    ],
)
def test_export_refuses_frames(segdream, folder, options, message, hint):
    formats.write(folder / "there.ply", random_splats())
    said = segdream("export", "there.ply", *options)
    assert said.code == 2
    assert message in said.err
    assert said.err.endswith(hint)
    assert [path.name for path in folder.iterdir()] == ["there.ply"]


def test_a_source_keeps_its_frame(folder):
    formats.write(folder / "there.ply", random_splats())
    assert source_of(Path("there.ply"), frame="RUF").frame == "ruf"
    Path("mesh.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    with pytest.raises(UsageProblem, match=r"mesh\.obj is a mesh"):
        source_of(Path("mesh.obj"), frame="ruf")
