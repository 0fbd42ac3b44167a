"""`segdream runs`: run folders are listed, and removed only if nobody works on them; files of others stay."""

import errno
import io
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from commands import BUS, SIX
from json_lines import check_lines
from test_cli import Interrupted

from segdream_cli.cli.output import Output
from segdream_cli.runs.ownership import RunLock, remove_folder
from segdream_cli.runs.run_dir import RunDir

STATES = {
    "bus.run": "done",
    "deep/er/moved.run": "gone",
    "stopped.run": "stopped",
    "broken.run": "damaged",
    ".bus.abcdefgh.partial.run": "leftover",
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """Holds what `runs` has made once."""
    return tmp_path_factory.mktemp("kept") / "runs"


@pytest.fixture
def runs(segdream, prior, folder, kept) -> Path:
    """A folder of each state, except running."""
    if not kept.exists():
        make_runs(segdream, prior, folder)
        shutil.copytree(folder, kept)
    else:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
    return folder


def make_runs(segdream, prior, folder) -> None:
    segdream("generate", BUS, "-o", "bus.ply", *SIX)
    prior(lambda profile: Interrupted(profile, 8, signal.SIGINT))
    assert segdream("generate", BUS, "-o", "stopped.ply", "--seed", "3", *SIX).code == 130
    for name in ("deep/er/moved.run", "broken.run", ".bus.abcdefgh.partial.run"):
        shutil.copytree("bus.run", name)
    (folder / "broken.run" / "run.json").write_text("{")
    record = json.loads(Path("bus.run/run.json").read_text()) | {"output": "moved.ply"}
    (folder / "deep/er/moved.run/run.json").write_text(json.dumps(record))
    long_ago = time.time() - 3600
    os.utime(".bus.abcdefgh.partial.run", (long_ago, long_ago))


def states(segdream, *arguments) -> dict[str, str]:
    return {line["path"]: line["state"] for line in check_lines(segdream("runs", *arguments, "--json").out)}


def test_runs_lists_the_state_and_the_size_of_each(segdream, runs):
    done = segdream("runs", "--json")
    lines = {line["path"]: line for line in check_lines(done.out)}
    assert {path: line["state"] for path, line in lines.items()} == STATES
    for path, line in lines.items():
        assert line["bytes"] == sum(file.stat().st_size for file in Path(path).iterdir())
    step = RunDir(Path("stopped.run")).step()
    assert 0 < step < 6
    stopped = lines["stopped.run"]
    assert (stopped["step"], stopped["total_steps"], stopped["prompt"], stopped["seed"]) == (step, 6, BUS, 3)
    assert lines["bus.run"]["output"] == "bus.ply"
    assert "5 run folders, " in done.err
    text = segdream("runs", "deep", "bus.run").out
    assert [line.split()[0] for line in text.splitlines()] == ["done", "gone"]


def test_clean_removes_what_cannot_be_resumed(segdream, runs):
    (runs / "bus.run" / "preview-000400.png").touch()
    done = segdream("runs", "--clean", "--yes", "--json")
    removed = [line["path"] for line in check_lines(done.out)]
    assert removed == [".bus.abcdefgh.partial.run", "bus.run", "deep/er/moved.run"]
    assert states(segdream) == {"stopped.run": "stopped", "broken.run": "damaged"}
    assert "2 stopped or damaged: not removed without --stopped" in done.err
    assert (runs / "bus.ply").exists()
    assert segdream("runs", "--clean", "--stopped", "--yes").code == 0
    assert states(segdream) == {}
    assert segdream("runs", "--clean", "--yes").err == "no run folder to remove"


def test_clean_leaves_a_live_run_and_the_other_trials_of_its_seeds(segdream, runs):
    for name in ("bus.try-1.run", "bus.try-2.run"):
        shutil.copytree("stopped.run", name)
    lock = RunLock(Path("bus.try-1.run"))
    try:
        live = {"bus.run": "running", "bus.try-1.run": "running", "bus.try-2.run": "running"}
        assert live.items() <= states(segdream).items()
        done = segdream("runs", "--clean", "--stopped", "--yes")
        assert states(segdream) == live
        assert "3 running: not removed" in done.err
        with pytest.raises(BlockingIOError):  # as if it had begun after the list was made
            remove_folder(Path("bus.try-1.run"), resumable=True)
        assert (runs / "bus.try-1.run" / "checkpoint.safetensors").exists()
    finally:
        lock.release()


def test_clean_leaves_a_run_that_was_begun_since_it_was_listed(runs):
    assert not remove_folder(Path("stopped.run"), resumable=False)
    assert RunDir(Path("stopped.run")).can_resume()


def test_clean_fails_for_a_folder_that_cannot_be_removed(segdream, runs, monkeypatch):
    def refuse(path, **options):
        if path.name == "bus.run":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return remove_folder(path, **options)

    monkeypatch.setattr("segdream_cli.runs.ownership.remove_folder", refuse)
    done = segdream("runs", "--clean", "--stopped", "--yes")
    assert (done.code, "error: bus.run stays: Permission denied" in done.err) == (1, True)
    assert (runs / "bus.run").exists()
    assert not (runs / "stopped.run").exists()


def test_clean_leaves_files_of_others(segdream, runs):
    (runs / "bus.run" / "notes.txt").write_text("mine")
    (runs / "link.run").symlink_to("stopped.run")
    done = segdream("runs", "--clean", "--stopped", "--yes")
    assert [path.name for path in Path("bus.run").iterdir()] == ["notes.txt"]
    assert "bus.run stays: it holds files of others" in done.err
    assert "removed bus.run" not in done.out
    assert (runs / "link.run").is_symlink()


def test_clean_leaves_the_run_json_of_other_programs(segdream, runs):
    Path("experiment").mkdir()
    Path("experiment/run.json").write_text('{"command": "train"}')
    assert "experiment" not in states(segdream)
    assert segdream("runs", "--clean", "--stopped", "--yes").code == 0
    assert Path("experiment/run.json").read_text() == '{"command": "train"}'


def test_clean_asks_on_a_terminal_only(segdream, runs, monkeypatch):
    before = states(segdream)
    refused = segdream("runs", "--clean", "deep")
    assert (refused.code, states(segdream)) == (2, before)
    assert "hint: segdream runs --clean deep --yes" in refused.err
    monkeypatch.setattr(Output, "can_ask", lambda _: True)
    after = {path: state for path, state in before.items() if "deep" not in path}
    for answer, left in (("\n", before), ("n\n", before), ("y\n", after)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        done = segdream("runs", "--clean", "deep")
        assert (done.code, states(segdream)) == (0, left)
        assert "remove 1 run folder, " in done.err
        assert "? [y/N]" in done.err


@pytest.mark.parametrize("option", ["--yes", "--stopped"])
def test_options_of_clean_need_it(segdream, option):
    refused = segdream("runs", option)
    assert (refused.code, f"{option} only affects --clean" in refused.err) == (2, True)
    assert segdream("runs", "none").code == 2


def test_a_setting_removes_the_folder_of_a_finished_run(segdream, folder):
    done = segdream("generate", BUS, "-o", "bus.ply", "--json", *SIX, "--set", "output.keep_run=false")
    (line,) = check_lines(done.out)
    assert (done.code, line["run"]) == (0, None)
    assert [path.name for path in folder.iterdir()] == ["bus.ply"]
    again = segdream("generate", BUS, "-o", "two.ply", *SIX)
    assert again.code == 0
    assert Path("two.ply").read_bytes() == Path("bus.ply").read_bytes()
