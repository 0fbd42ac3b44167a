"""Options that say how to read an asset and how it stands, on the command line."""

from pathlib import Path

import numpy as np
import pytest
from commands import BUS
from test_options import random_splats

from segdream_cli import formats
from segdream_cli.config import MINI
from segdream_cli.errors import UsageProblem
from segdream_cli.formats import spz
from segdream_cli.formats.common import Reading
from segdream_cli.formats.ply import read_vertices, save
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
    assert source_of(Path("there.ply"), reading=Reading(frame="RUF")).frame == "ruf"
    Path("mesh.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    with pytest.raises(UsageProblem, match=r"mesh\.obj is a mesh"):
        source_of(Path("mesh.obj"), reading=Reading(frame="ruf"))


READING = (
    ("info",),
    ("view", "--no-browser"),
    ("render", "--view", "0,0", "--size", "16"),
    ("export", "-o", "out.sog"),
    ("lod", "-o", "out"),
    ("evaluate", "--views", "1", "--size", "64", "--metrics", "health", "--device", "cpu"),
    ("report",),
    ("refine", BUS, "--prior", MINI, "--device", "cpu"),
)
"""The commands that read an asset; `view` and `refine` get no further here than reading."""


@pytest.mark.parametrize("command", READING, ids=[command[0] for command in READING])
def test_every_command_that_reads_takes_strict(segdream, folder, command):
    formats.write(Path("there.ply"), random_splats())
    rows = read_vertices(Path("there.ply")).rows.copy()
    rows["x"][5] = np.nan
    save(Path("nan.ply"), rows, [])
    said = segdream(command[0], "nan.ply", *command[1:], "--strict")
    assert said.code == 2
    assert "1 of 200 rows have a value that is not a finite number, the first is row 5, and --strict" in said.err


@pytest.mark.parametrize("command", READING, ids=[command[0] for command in READING])
def test_every_command_that_reads_takes_as_splats(segdream, folder, command):
    """A point that is not finite is found only by a reader of points."""
    rows = np.zeros(300, [(name, "<f4") for name in "xyz"])
    rows["x"][7] = np.nan
    save(Path("cloud.ply"), rows, [])
    name, *others = command
    assert "holds points, not Gaussians" in segdream(name, "cloud.ply", *others).err
    said = segdream(name, "cloud.ply", *others, "--as-splats", "--strict")
    assert said.code == 2
    assert "1 of 300 rows have a value that is not a finite number, the first is row 7, and --strict" in said.err


@pytest.mark.parametrize("command", READING, ids=[command[0] for command in READING])
def test_every_command_that_reads_takes_a_frame(segdream, folder, command):
    formats.write(folder / "there.ply", random_splats())
    said = segdream(command[0], "there.ply", *command[1:], "--frame", "rux")
    assert (said.code, "--frame 'rux' is not three letters" in said.err) == (2, True)
