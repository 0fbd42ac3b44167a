"""What a person is told around a success: the expected time, the next command, and the stages of a mesh."""

import io
import json
import shlex
import signal
import sys
from pathlib import Path

import pytest
from commands import BUS, SIX, TINY
from test_cli import Interrupted

from segdream_cli import cli, mesh
from segdream_cli.cli import next_step, progress
from segdream_cli.cli.output import Output
from segdream_cli.formats import FORMATS
from segdream_cli.runs import session, timings
from segdream_cli.runs.address import AddressPath
from segdream_cli.runs.run_dir import RunDir


@pytest.fixture
def on_terminal(segdream, monkeypatch):
    """Runs a command whose messages go to a terminal, and returns the line that names the next command."""
    said = io.StringIO()
    monkeypatch.setattr(said, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("SEGDREAM_NO_PROGRESS", "1")

    def run(*arguments):
        said.truncate(0)
        said.seek(0)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", said)
            code = cli.run([str(argument) for argument in arguments])
        assert code == 0, said.getvalue()
        lines = [line for line in said.getvalue().splitlines() if line.startswith("next: ")]
        assert len(lines) <= 1
        return lines[0].removeprefix("next: ") if lines else None

    return run


def test_next_command_fits_what_was_made(on_terminal, segdream, folder):
    one = on_terminal("generate", BUS, "-o", "my bus.ply", *TINY, "--steps", "1")
    assert one == "segdream render 'my bus.ply' --turntable"
    assert segdream(*shlex.split(one)[1:], "--n-frames", "2", "--size", "16").code == 0
    two = on_terminal("generate", BUS, "--seeds", "0-1", "-o", "{seed}.ply", *TINY, "--steps", "1")
    assert two == "segdream render 0.ply 1.ply --turntable"
    assert on_terminal("generate", BUS, "-o", "b.html", *TINY, "--steps", "1") is None
    share = on_terminal("render", "0.ply", "--n-frames", "2", "--size", "16")
    assert share == "segdream export 0.ply -o 0.html"
    assert segdream(*shlex.split(share)[1:]).code == 0
    assert on_terminal("render", "0.ply", "--view", "0,0", "--size", "16") is None
    assert on_terminal("export", "0.ply", "-o", "a.html", "-o", "a.spz") == "segdream view a.spz"
    assert on_terminal("export", "0.ply", "--format", "points", "-o", "points.ply") is None
    start = on_terminal("init", BUS, "--init", "box", "--count", "9", "-o", "s.ply", *TINY[:2])
    assert start == f"segdream generate '{BUS}' --init s.ply"
    assert segdream(*shlex.split(start)[1:], "-o", "from.ply", *TINY[:4], "--no-refine", "--steps", "1").code == 0
    assert on_terminal("runs") == "segdream runs --clean"
    assert on_terminal("doctor") == "segdream generate 'a yellow school bus' -o bus.ply"
    assert on_terminal("export", "0.ply", "-o", "b.spz", "--quiet") is None
    assert on_terminal("export", "0.ply", "-o", "c.spz", "--json") is None
    assert "next:" not in segdream("export", "0.ply", "-o", "d.spz").err


def test_after_assets_of_many_is_the_table_of_their_folder():
    many = [Path(f"assets/{number}.spz") for number in range(next_step.MOST_BESIDE + 1)]
    assert next_step.after_assets(many) == ["segdream", "evaluate", "assets"]
    assert next_step.after_assets(many[1:])[:3] == ["segdream", "render", "assets/1.spz"]
    assert next_step.after_assets([AddressPath("s3://bucket/bus.ply")]) == []
    unreadable = [name for name, row in FORMATS.items() if not row.readable]
    assert next_step.after_export([Path("a")] * len(unreadable), unreadable) == []


@pytest.fixture
def known(folder, monkeypatch):
    """A machine on which an asset takes 60 s, and one of two together 30 s."""
    monkeypatch.setenv("SEGDREAM_CACHE", str(folder / "cache"))
    seconds = {1: 60.0, 2: 30.0}
    monkeypatch.setattr(timings.Timings, "recall", lambda _, together: timings.Timing(seconds[together], 10))


def expected(outcome) -> list[str]:
    return [part.split(", as the latest")[0] for part in outcome.err.split("about ")[1:]]


@pytest.mark.usefixtures("known")
def test_expected_time_is_that_of_the_steps_that_are_left(segdream, prior, folder):
    assert expected(segdream("generate", BUS, "-o", "a.ply", *SIX)) == ["60 s"]
    seeds = ("generate", BUS, "--seeds", "0-2", "-o", "{seed}.ply", "--skip-existing", *SIX)
    prior(lambda profile: Interrupted(profile, 8, signal.SIGINT))
    assert expected(segdream(*seeds)) == ["3 min for 3 assets"]
    step = RunDir(folder / "0.run").step()
    assert 0 < step < 6
    prior()
    again = segdream(*seeds)
    assert expected(again) == ["3 min for 3 assets" if step < 3 else "2 min for 3 assets"]
    (folder / "list.txt").write_text("a red ball\na gryphon\na blue ball\n")
    listed = segdream("generate", "--prompts", "list.txt", "--out-dir", ".", *SIX)
    assert expected(listed) == ["2 min for 2 assets"]
    assert "about" not in segdream("generate", "--prompts", "list.txt", "--out-dir", ".", *SIX).err


@pytest.mark.usefixtures("known")
def test_expected_time_of_a_resumed_run(segdream, prior, folder):
    prior(lambda profile: Interrupted(profile, 8, signal.SIGINT))
    segdream("generate", BUS, "-o", "a.ply", *SIX)
    left = 6 - RunDir(folder / "a.run").step()
    prior()
    assert expected(segdream("generate", "--resume", "a.run")) == [f"{10 * left} s"]


@pytest.mark.usefixtures("known", "lockstep")
def test_expected_time_of_assets_that_are_made_together(segdream):
    done = segdream("generate", BUS, "--seeds", "0-1", "--batch", "2", "-o", "{seed}.ply", *SIX)
    assert expected(done) == ["60 s for 2 assets"]


def test_short_and_unknown_times_are_not_told(segdream, folder, monkeypatch):
    monkeypatch.setenv("SEGDREAM_CACHE", str(folder / "cache"))
    for name in ("a.ply", "b.ply"):
        assert "about" not in segdream("generate", BUS, "-o", name, *SIX).err
    assert len(list((folder / "cache" / "timings").iterdir())) == 1
    monkeypatch.setattr(session, "LEAST_TOLD_S", 0.0)
    (record,) = (folder / "cache" / "timings").iterdir()
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seconds": 33.0}))
    assert expected(segdream("generate", BUS, "-o", "c.ply", *SIX)) == ["33 s"]


def test_stages_of_a_mesh_are_told(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with progress.StageProgress("bus.glb", mesh.stages(), Output()) as shown:
        for stage in mesh.stages():
            shown.begin(stage)
    lines = capsys.readouterr().err.strip().splitlines()  # old versions of rich end with an empty one
    assert lines[0] == "bus.glb: surface, 1 of 4"
    assert lines[-1] == "bus.glb: texture, 4 of 4"
