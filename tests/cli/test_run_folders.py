"""What happens to a run's folder and its output while it runs, and between two runs."""

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from commands import BUS, SIX, TESTS, TINY
from fakes import AnalyticPrior
from safetensors.torch import load_file, save_file

from benchmarks.faults import Fault, run_forked
from segdream_cli import cli
from segdream_cli.errors import UsageProblem
from segdream_cli.runs.ownership import RunLock
from segdream_cli.runs.reporter import discard
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.runs.session import resume_run
from segdream_cli.runs.spec import Request
from segdream_cli.runs.stopping import StopRequest
from segdream_cli.util import files

WHOLE = ("generate", BUS, "-o", "whole.ply", *SIX)
EACH = ("--set", "output.checkpoint_every=1")


def generate(*arguments):
    return ("generate", BUS, "-o", "bus.ply", *SIX, *arguments)


class Meddling(AnalyticPrior):
    """Does something in step 3, and is stopped by a signal in step 4 if there is one."""

    def __init__(self, profile, meddle, number=None):
        super().__init__(profile=profile)
        self.views, self.meddle, self.number = 0, meddle, number

    def encode_image(self, rgb, noise):
        self.views += 1
        if self.views == 3:
            self.meddle()
        if self.views == 4 and self.number:
            os.kill(os.getpid(), self.number)
        return super().encode_image(rgb, noise)


def hint(done):
    """The arguments of the command in a hint, without the program."""
    program, *words = shlex.split(done.err.partition("hint: ")[2])
    assert program == "segdream"
    return words


def test_output_that_appears_is_kept_and_the_state_saved(segdream, prior, folder):
    segdream(*WHOLE)
    prior(lambda profile: Meddling(profile, lambda: Path("bus.ply").write_text("mine")))
    done = segdream(*generate())
    assert (done.code, done.out) == (6, "")
    assert "bus.ply appeared while its content was computed" in done.err
    assert "stopped after step 6 of 6" in done.err
    assert Path("bus.ply").read_text() == "mine"
    prior()
    again = segdream(*hint(done))
    assert (again.code, again.out) == (0, "bus-2.ply\n")
    assert Path("bus-2.ply").read_bytes() == Path("whole.ply").read_bytes()
    assert Path("bus.ply").read_text() == "mine"
    assert not RunDir(Path("bus.run")).can_resume()


def test_temporary_of_a_worker_killed_during_the_run_is_removed(segdream, prior, folder):
    left = Path(".bus.abcd1234.partial.ply")
    prior(lambda profile: Meddling(profile, left.touch))
    assert segdream(*generate()).code == 0
    assert not left.exists()


@pytest.fixture
def ctrl_c_while_named(monkeypatch):
    """Presses Ctrl-C once when an asset is written, but does not have its name yet."""
    real, pressed = os.link, []

    def link(source, target):
        if str(target).endswith(".ply") and not pressed:
            pressed.append(target)
            os.kill(os.getpid(), signal.SIGINT)
        real(source, target)

    return lambda: monkeypatch.setattr(os, "link", link)


def test_ctrl_c_while_the_asset_is_written_keeps_it(segdream, folder, ctrl_c_while_named):
    segdream(*WHOLE)
    ctrl_c_while_named()
    done = segdream(*generate())
    assert (done.code, done.out) == (0, "bus.ply\n")
    assert "stopping once the asset is written; a second Ctrl-C exits at once, without saving" in done.err
    assert Path("bus.ply").read_bytes() == Path("whole.ply").read_bytes()
    assert not [path for path in folder.rglob("*") if "partial" in path.name or "checkpoint" in path.name]


@pytest.mark.parametrize(("steps", "code", "when"), [(4, 130, "after this step"), (3, 0, "once the asset is written")])
def test_ctrl_c_tells_when_the_run_stops(segdream, prior, steps, code, when):
    """It comes in step 3, which is the last one of three."""
    prior(lambda profile: Meddling(profile, lambda: os.kill(os.getpid(), signal.SIGINT)))
    done = segdream("generate", BUS, "-o", "bus.ply", *TINY, "--steps", steps)
    assert done.code == code
    assert f"stopping {when}; a second Ctrl-C" in done.err
    assert Path("bus.ply").exists() == (code == 0)
    assert RunDir(Path("bus.run")).can_resume() == (code != 0)


def test_ctrl_c_while_an_asset_is_written_ends_the_list_after_it(segdream, folder, ctrl_c_while_named):
    Path("list.txt").write_text("a red ball\na blue ball\na green ball\n")
    command = ("generate", "--prompts", "list.txt", "--out-dir", ".", *SIX)
    ctrl_c_while_named()
    done = segdream(*command)
    assert (done.code, done.out) == (130, "a_red_ball.ply\n")
    assert "repeat the command to resume the whole list" in done.err
    assert [path.name for path in folder.glob("*.ply")] == ["a_red_ball.ply"]
    again = segdream(*command)
    assert again.code == 0
    assert "2 made, 1 skipped, 0 failed" in again.err
    assert not [path for path in folder.rglob("*") if "partial" in path.name]


def test_output_that_appears_is_replaced_with_force(segdream, prior, folder):
    segdream(*WHOLE)
    prior(lambda profile: Meddling(profile, lambda: Path("bus.ply").write_text("mine")))
    assert segdream(*generate("--force")).code == 0
    assert Path("bus.ply").read_bytes() == Path("whole.ply").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (("init", BUS, *SIX[:6], "-o", "new.ply"), "new.ply"),
        (("export", "whole.ply", "-o", "new.splat"), "new.splat"),
        (("render", "whole.ply", "--view", "0,0", "--size", "32", "-o", "new.png"), "new.png"),
        (("render", "whole.ply", "--contact-sheet", "--size", "32", "-o", "new.png"), "new.png"),
        (("render", "whole.ply", "--n-frames", "2", "--size", "16", "-o", "new.gif"), "new.gif"),
        (("render", "whole.ply", "--frames", "--n-frames", "2", "--size", "16", "-o", "new"), "new/frame-0001.png"),
    ],
)
def test_file_that_appears_is_kept_by_every_command(segdream, folder, monkeypatch, arguments, file):
    segdream(*WHOLE)
    Path(file).parent.mkdir(exist_ok=True)

    def check_output(path, *, force, given=None):
        Path(file).write_text("mine")  # right after the check

    monkeypatch.setattr("segdream_cli.util.files.check_output", check_output)
    done = segdream(*arguments)
    assert (done.code, done.out) == (6, "")
    assert f"{file} appeared" in done.err
    assert Path(file).read_text() == "mine"
    assert segdream(*arguments, "--force").code == 0
    assert Path(file).read_bytes() != b"mine"
    assert not [path for path in folder.rglob("*") if "partial" in path.name]


@pytest.mark.parametrize("kept", [None, "kept.run"])
def test_run_whose_folder_goes_away_continues(segdream, prior, folder, kept):
    def meddle():
        if kept:
            Path("bus.run").rename(kept)
        else:
            shutil.rmtree("bus.run")

    segdream(*WHOLE)
    prior(lambda profile: Meddling(profile, meddle))
    done = segdream(*generate(*EACH))
    assert (done.code, done.out) == (0, "bus.ply\n")
    assert "bus.run was removed or renamed during the run" in done.err
    assert Path("bus.ply").read_bytes() == Path("whole.ply").read_bytes()
    assert not kept or RunDir(Path(kept)).step() == 2
    Path("bus.ply").unlink()
    shutil.rmtree("bus.run")
    shutil.rmtree("kept.run", ignore_errors=True)
    prior(lambda profile: Meddling(profile, meddle, signal.SIGTERM))
    stopped = segdream(*generate())
    assert stopped.code == 143
    prior()
    assert segdream("generate", "--resume", "bus.run").code == 0
    assert Path("bus.ply").read_bytes() == Path("whole.ply").read_bytes()


def test_run_whose_whole_folder_is_moved_continues_where_it_was(segdream, prior, folder):
    segdream(*WHOLE)
    Path("deep/er").mkdir(parents=True)
    prior(lambda profile: Meddling(profile, lambda: Path("deep").rename("moved")))
    done = segdream("generate", BUS, "-o", "deep/er/bus.ply", *SIX, *EACH)
    assert done.code == 0, done.err
    assert "deep/er/bus.run was removed or renamed during the run" in done.err
    assert Path("deep/er/bus.ply").read_bytes() == Path("whole.ply").read_bytes()
    assert RunDir(Path("moved/er/bus.run")).step() == 2


@pytest.fixture
def stopped(segdream, prior, folder):
    """The record of a run that was stopped after some steps."""
    prior(lambda profile: Meddling(profile, lambda: None, signal.SIGTERM))
    assert segdream(*generate()).code == 143
    prior()
    return folder / "bus.run" / "run.json"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda record: record.update(prompt="a red ball"), "prompt is 'a red ball' and was 'a yellow school bus'"),
        (lambda record: record.update(seed=7), "seed is 7 and was 0"),
        (lambda record: record["config"].update({"optim.steps": 9}), "optim.steps is 9 and was 6"),
        (lambda record: record["config"].update({"optim.steps": "few"}), "optim.steps is 'few' and was 6"),
        (lambda record: record["config"].pop("optim.steps"), "optim.steps is None and was 6"),
        (lambda record: record["config"].update({"optim.stepz": 6}), "optim.stepz is 6 and was None"),
        (lambda record: record["prior"].update(digest="0"), "prior.digest is '0' and was"),
        (lambda record: record.update(prompt_read="a ball"), "prompt_read is 'a ball' and was None"),
        (lambda record: record.update(device="cuda"), "device is 'cuda' and was 'cpu'"),
    ],
)
def test_resume_refuses_an_edited_record(segdream, stopped, edit, words):
    record = json.loads(stopped.read_text())
    edit(record)
    stopped.write_text(json.dumps(record))
    done = segdream("generate", "--resume", "bus.run")
    assert (done.code, done.out) == (2, "")
    assert f"bus.run/run.json was edited during the run: {words}" in done.err
    assert not Path("bus.ply").exists()
    move, resume = done.err.partition("hint: ")[2].partition(" # ")[0].split(" && ")
    assert move.split() == ["mv", "bus.run/run.json", "bus.run.json"]
    stopped.rename("bus.run.json")
    again = segdream(*shlex.split(resume)[1:])
    assert again.code == 0
    assert "bus.run/run.json was missing, and is restored from the checkpoint" in again.err
    segdream(*WHOLE)
    assert Path("bus.ply").read_bytes() == Path("whole.ply").read_bytes()


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 200, b"{half", '"output": "../bus.ply"'])
def test_resume_restores_a_damaged_record(segdream, stopped, content):
    before = stopped.read_text()
    if isinstance(content, str):
        stopped.write_text(before.replace('"output": "bus.ply"', content))
    else:
        stopped.write_bytes(content)
    done = segdream("generate", "--resume", "bus.run")
    assert (done.code, done.out) == (0, "bus.ply\n"), done.err
    assert "bus.run/run.json was damaged, and is restored from the checkpoint" in done.err
    assert stopped.read_text() == before
    segdream(*WHOLE)
    assert Path("bus.ply").read_bytes() == Path("whole.ply").read_bytes()


def test_skip_existing_restores_a_damaged_record(segdream, stopped):
    stopped.write_text("{")
    done = segdream(*generate("--skip-existing"))
    assert (done.code, done.out) == (0, "bus.ply\n"), done.err
    assert "is restored from the checkpoint" in done.err
    assert "resuming bus.run after step" in done.err


def test_resume_takes_a_run_of_the_last_release(segdream, stopped):
    checkpoint = stopped.with_name("checkpoint.safetensors")
    save_file(load_file(checkpoint), checkpoint)  # version 0.1.0 wrote no metadata
    segdream(*WHOLE)
    assert segdream("generate", "--resume", "bus.run").code == 0
    assert Path("bus.ply").read_bytes() == Path("whole.ply").read_bytes()


def test_resume_writes_only_beside_the_folder(segdream, stopped, folder):
    record = json.loads(stopped.read_text())
    stopped.write_text(json.dumps(record | {"output": "../bus.ply"}))
    checkpoint = stopped.with_name("checkpoint.safetensors")
    save_file(load_file(checkpoint), checkpoint)  # without its copy of the record
    done = segdream("generate", "--resume", "bus.run")
    assert done.code == 2
    assert "output '../bus.ply' is not a file beside the folder" in done.err
    assert not (folder.parent / "bus.ply").exists()


def test_resume_that_fails_unlocks_the_run(segdream, stopped):
    """Even while somebody holds the exception, and with it the run."""
    stopped.with_name("checkpoint.safetensors").write_bytes(b"")
    with pytest.raises(UsageProblem) as caught:
        resume_run(stopped.parent, Request(), discard, StopRequest(), force=False)
    assert "checkpoint.safetensors is damaged" in caught.value.message
    RunLock(stopped.parent).release()


def test_run_in_use_is_refused(segdream, stopped):
    other = RunDir(Path("bus.run"))
    other.acquire()
    for command in (("generate", "--resume", "bus.run"), generate(), generate("--force")):
        done = segdream(*command)
        assert done.code == 6
        assert "another process works on bus.run" in done.err
    stopped.with_name("checkpoint.safetensors").rename("kept")  # as before the first one
    done = segdream("generate", "--resume", "bus.run")
    assert (done.code, "another process works on bus.run" in done.err) == (6, True)
    Path("kept").rename(stopped.with_name("checkpoint.safetensors"))
    other.release()
    assert segdream("generate", "--resume", "bus.run").code == 0


def limit_space(monkeypatch, code, *where):
    """Lets files in the folders `where` fail with an error of the system."""
    real = tempfile.mkstemp

    def mkstemp(dir=None, prefix="", suffix=""):
        if Path(dir or ".").name in where and not suffix.endswith(".json"):
            raise OSError(code, os.strerror(code))
        return real(dir=dir, prefix=prefix, suffix=suffix)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)


def test_asset_is_written_elsewhere_where_the_disk_has_no_space_for_its_state_either(segdream, folder, monkeypatch):
    segdream(*WHOLE)
    Path("full").mkdir()
    limit_space(monkeypatch, errno.ENOSPC, "full", "bus.run")
    monkeypatch.setattr(files, "_other_folders", lambda *_, **__: iter([folder]))
    done = segdream("generate", BUS, *SIX, "-o", "full/bus.ply")
    assert (done.code, done.out) == (1, "")
    assert f"the disk is full: full/bus.ply was not written; the asset is {folder}/bus.ply instead" in done.err
    assert "hint" not in done.err
    assert Path("bus.ply").read_bytes() == Path("whole.ply").read_bytes()


def test_hint_for_a_limit_of_the_shell_names_no_other_folder(segdream, folder, monkeypatch):
    Path("full").mkdir()
    with monkeypatch.context() as patch:
        limit_space(patch, errno.EFBIG, "full")
        done = segdream("generate", BUS, *SIX, "-o", "full/bus.ply")
    assert done.code == 1
    assert "hint: ulimit -f unlimited" in done.err
    assert "resume with: segdream generate --resume full/bus.run" in done.err
    assert segdream("generate", "--resume", "full/bus.run").code == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_at_a_checkpoint_names_the_step_that_is_saved(segdream, folder, monkeypatch):
    saves, real = [], tempfile.mkstemp

    def mkstemp(dir=None, prefix="", suffix=""):
        if suffix.endswith(".safetensors"):
            saves.append(suffix)
        if len(saves) < 2:
            return real(dir=dir, prefix=prefix, suffix=suffix)
        name = Path(dir) / f"{prefix}full{suffix}"
        name.symlink_to("/dev/full")
        return os.open("/dev/null", os.O_RDONLY), str(name)

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", mkstemp)
        done = segdream(*generate(*EACH))
    assert done.code == 1
    assert "the disk is full: bus.run/checkpoint.safetensors was not written" in done.err
    assert "stopped after step 1 of 6" in done.err
    assert "stopped after step 2" not in done.err
    segdream(*WHOLE)
    assert segdream("generate", "--resume", "bus.run").code == 0
    assert Path("bus.ply").read_bytes() == Path("whole.ply").read_bytes()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_checkpoint_is_removed_after_the_asset_is_on_disk(prior, folder):
    done = run_forked(cli.run, generate(*EACH), folder, Fault())
    assert done.code == 0, done.err
    calls = [call.replace(f"{folder}/", "").removeprefix("./") for call in done.calls]
    named = next(i for i, call in enumerate(calls) if call.startswith("link") and call.endswith(".partial.ply"))
    synced = calls.index(f"fsync {folder}", named)
    removed = calls.index("unlink bus.run/checkpoint.safetensors")
    assert calls[named - 1].startswith(("chmod", "open"))
    assert named < synced < removed
    content = [i for i, call in enumerate(calls) if call.startswith("fsync") and call.endswith(".partial.ply")]
    assert content[-1] < named


def test_worker_ends_with_its_parent(tmp_path):
    """A worker that is busy with something else than steps."""
    script = """
import sys, time
from multiprocessing import get_context
import workers
if __name__ == "__main__":
    process = get_context("spawn").Process(target=workers.sleep_without_parent)
    process.start()
    print(process.pid, flush=True)
    time.sleep(60)
"""
    (tmp_path / "parent.py").write_text(script)
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS / "cli")])
    parent = subprocess.Popen(
        [sys.executable, "parent.py"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE
    )
    worker = int(parent.stdout.readline())
    end = time.monotonic() + 60
    while not (tmp_path / "busy").exists() and time.monotonic() < end:
        time.sleep(0.05)
    parent.kill()
    parent.communicate()
    while is_alive(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert (tmp_path / "busy").exists()
    assert not is_alive(worker)


def is_alive(pid):
    """Whether a process runs; a container may have nobody who buries the others."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
