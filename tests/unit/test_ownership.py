"""Run folders and published files, while each of their file-system calls in turn kills the process or fails.

A forked process makes a trial cheap, so every call has its turn.
"""

import dataclasses
import errno
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from test_run_dir import RECORD, asset

from benchmarks.faults import KILL, Fault, contents, run_forked
from segdream_cli.errors import OutputExists, SegdreamError, UsageProblem
from segdream_cli.runs import run_dir
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.util import files
from segdream_cli.util.files import atomic_write, check_output, write_policy

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
ACTIONS = (KILL, "EIO", "ENOSPC", "EMFILE")
CODES = {"EIO": 1, "ENOSPC": 1, "EMFILE": 3}
NEW = dataclasses.replace(RECORD, seed=99)


def in_process(function):
    """A command that ends with the exit code of a function's error, as the command line does."""

    def command(_):
        try:
            function()
        except SegdreamError as problem:
            sys.stderr.write(problem.message)
            return problem.exit_code
        return 0

    return command


def each_call(folder, before, function, action):
    """For each call of `function` in turn: a folder in which that call went wrong, and how the process ended."""
    call = 0
    while True:
        call += 1
        trial = folder / f"{action}-{call}"
        trial.mkdir()
        before(trial)
        ended = run_forked(in_process(function), [], trial, Fault(action, call))
        if len(ended.calls) < call:  # the last one was the call before
            assert ended.code == 0, ended.err
            assert call > 5  # so that something was tried
            return
        assert "Traceback" not in ended.err
        yield trial, ended
        shutil.rmtree(trial)


def nothing(folder):
    """No run folder."""


def finished(folder):
    run = RunDir(folder / "bus.run")
    run.create(RECORD)
    run.append_event({"step": 1})
    run.release()


def unfinished(folder):
    finished(folder)
    run = RunDir(folder / "bus.run")
    run.acquire()
    run.save(asset(step=3))
    run.release()


def without_record(folder):
    """As version 0.1.0 left it, if it was killed at the wrong moment."""
    (folder / "bus.run").mkdir()
    (folder / "bus.run" / "events.jsonl").write_text("{}\n")
    (folder / "bus.run" / ".run.abcdefgh.partial.json").write_text("{")


def create():
    RunDir(Path("bus.run")).create(NEW, force=True)


@pytest.mark.parametrize(
    ("before", "action"),
    [(before, action) for before in (nothing, finished, without_record) for action in (KILL, "EIO")]
    + [(unfinished, action) for action in ACTIONS],
)
def test_create_leaves_the_old_run_or_the_new_one(tmp_path, before, action):
    for folder, ended in each_call(tmp_path, before, create, action):
        run = RunDir(folder / "bus.run")
        if run.exists():
            assert run.record() in (RECORD, NEW)
        else:
            assert before in (nothing, without_record) or action == KILL
        if action != KILL and ended.code:
            assert ended.code == CODES[action]
            assert [path.name for path in folder.iterdir()] == (["bus.run"] if before is not nothing else [])
            if before is unfinished:
                assert (run.record(), run.step()) == (RECORD, 3)
        run.create(RECORD, force=True)  # whatever was left, the name is free for the next command
        assert contents(folder).keys() == {"bus.run/run.json"}
        assert run.record() == RECORD


@pytest.mark.parametrize("action", ACTIONS)
def test_save_keeps_the_old_checkpoint_or_the_new_one(tmp_path, action):
    def save():
        run = RunDir(Path("bus.run"))
        run.acquire()
        run.save(asset(step=4))

    for folder, ended in each_call(tmp_path, unfinished, save, action):
        run = RunDir(folder / "bus.run")
        assert run.step() in (3, 4)
        assert torch.equal(run.load()["a"], asset().values["a"])
        assert action == KILL or ended.code in (0, CODES[action]) or "power failure" in ended.err
        run.acquire()  # the next process that resumes the run removes what a killed one left
        assert {path.name for path in run.path.iterdir()} == {"run.json", "checkpoint.safetensors", "events.jsonl"}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("replace", [True, False])
def test_atomic_write_writes_all_or_nothing(tmp_path, replace, action):
    def before(folder):
        (folder / "other.ply").write_text("mine")
        if replace:
            (folder / "bus.ply").write_text("old")

    def write():
        check_output(Path("bus.ply"), force=replace)
        with write_policy(replace=replace), atomic_write(Path("bus.ply")) as temporary:
            temporary.write_text("new" * 9999)

    for folder, ended in each_call(tmp_path, before, write, action):
        path = folder / "bus.ply"
        assert not path.exists() if not (replace or path.exists()) else path.read_text() in ("old", "new" * 9999)
        assert action == KILL or ended.code in (0, CODES[action]) or "power failure" in ended.err
        assert ended.code or path.read_text() == "new" * 9999
        check_output(path, force=True)
        assert set(contents(folder)) - {"bus.ply"} == {"other.ply"}


def test_check_output_keeps_the_temporary_of_a_live_process(tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with atomic_write(tmp_path / "bus.ply"):
            os.write(writing, b"1")
            time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    check_output(tmp_path / "bus.ply", force=False)
    check_output(tmp_path / "bu.ply", force=False)
    assert len(list(tmp_path.iterdir())) == 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    check_output(tmp_path / "bu.ply", force=False)  # not its name
    assert len(list(tmp_path.iterdir())) == 1
    check_output(tmp_path / "bus.ply", force=False)
    assert not list(tmp_path.iterdir())


def test_run_belongs_to_one_process_until_that_ends(tmp_path):
    path = tmp_path / "bus.run"
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        run = RunDir(path)
        run.create(RECORD)
        os.write(writing, b"1")
        time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    other = RunDir(path)
    for refused in (
        other.acquire,
        lambda: other.check_free(force=False),
        lambda: other.check_free(force=True),
        lambda: other.create(NEW, force=True),
    ):
        with pytest.raises(OutputExists, match=r"another process works on .*bus\.run"):
            refused()
    path.rename(tmp_path / "moved.run")  # the lock goes with the folder
    with pytest.raises(OutputExists, match="another process works on"):
        RunDir(tmp_path / "moved.run").acquire()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    RunDir(tmp_path / "moved.run").acquire()
    other.create(NEW)


def test_run_that_is_dropped_is_unlocked(tmp_path):
    run = RunDir(tmp_path / "bus.run")
    run.create(RECORD)
    with pytest.raises(OutputExists, match="another process"):
        RunDir(run.path).acquire()
    del run
    RunDir(tmp_path / "bus.run").acquire()


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize(
    "files", [{"thesis.txt": "mine"}, {"run.json": "{}", "thesis.txt": "mine"}, {"run.json": "{}", ".hidden": "mine"}]
)
def test_check_free_refuses_files_of_others(tmp_path, files, force):
    for name, text in files.items():
        (tmp_path / "bus.run").mkdir(exist_ok=True)
        (tmp_path / "bus.run" / name).write_text(text)
    with pytest.raises(OutputExists, match="is not a run folder: it holds"):
        RunDir(tmp_path / "bus.run").check_free(force=force)
    with pytest.raises(OutputExists, match="is not a run folder"):
        RunDir(tmp_path / "bus.run").create(RECORD, force=force)
    assert set(contents(tmp_path)) == {f"bus.run/{name}" for name in files}


@pytest.mark.parametrize("text", ["", '{"format": 1', '{"format": 1}'])
def test_create_replaces_a_damaged_record_only_by_force(tmp_path, text):
    run = RunDir(tmp_path / "bus.run")
    run.path.mkdir()
    (run.path / "run.json").write_text(text)
    with pytest.raises(UsageProblem, match="damaged"):
        run.create(RECORD)
    assert (run.path / "run.json").read_text() == text
    run.create(RECORD, force=True)
    assert run.record() == RECORD


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("text", ['{"scripts": {"test": "jest"}}', "{}", "[1]"])
def test_create_refuses_the_run_json_of_another_program(tmp_path, text, force):
    run = RunDir(tmp_path / "bus.run")
    run.path.mkdir()
    (run.path / "run.json").write_text(text)
    with pytest.raises(OutputExists, match=r"run\.json is another program's") as caught:
        run.create(RECORD, force=force)
    assert caught.value.hint.startswith(f"mv {run.path} ")
    assert (run.path / "run.json").read_text() == text


@pytest.mark.parametrize("force", [False, True])
def test_check_free_refuses_what_is_no_folder_with_a_file(tmp_path, force):
    (tmp_path / "bus.run" / "run.json").mkdir(parents=True)
    (tmp_path / "loop.run").symlink_to(tmp_path / "loop.run")
    (tmp_path / "file.run").touch()
    for name in ("bus.run", "loop.run", "file.run"):
        with pytest.raises(OutputExists, match="is not a run folder") as caught:
            RunDir(tmp_path / name).check_free(force=force)
        assert caught.value.hint.startswith(f"mv {tmp_path / name} ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"scripts": 1}', "is not a run folder: its run.json is another program's"),
        ("[1]", "is not a run folder: its run.json is another program's"),
        ('{"format": 1}', "is damaged: it lacks 'prompt'"),
        ('{"format": 2}', "another version of segdream"),
        ('{"format": 1, "seed"', "is damaged: Expecting ':' delimiter"),
        (json.dumps(dataclasses.asdict(RECORD) | {"sEed": 0}), "is damaged: it has the unknown entry 'sEed'"),
    ],
)
def test_record_says_what_is_wrong_with_it(tmp_path, text, words):
    (tmp_path / "bus.run").mkdir()
    (tmp_path / "bus.run" / "run.json").write_text(text)
    with pytest.raises(UsageProblem) as caught:
        RunDir(tmp_path / "bus.run").record()
    assert words in caught.value.message


def test_create_follows_a_link_to_another_disk(tmp_path):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "bus.run").symlink_to(tmp_path / "large disk" / "bus")
    with pytest.raises(OutputExists, match="is not a run folder"):  # the link leads nowhere
        RunDir(tmp_path / "bus.run").create(RECORD)
    (tmp_path / "large disk" / "bus").mkdir()
    RunDir(tmp_path / "bus.run").create(RECORD)
    assert (tmp_path / "bus.run").is_symlink()
    assert set(contents(tmp_path / "large disk")) == {"bus/run.json"}


@pytest.mark.parametrize("output", ["../bus.ply", "/home/you/.bashrc", "a/b.ply", "..", ""])
def test_record_refuses_an_output_that_is_not_beside_the_folder(tmp_path, output):
    run = RunDir(tmp_path / "bus.run")
    run.create(dataclasses.replace(RECORD, output=output))
    with pytest.raises(UsageProblem, match="is not a file beside the folder"):
        run.record()


def test_append_event_follows_no_link(tmp_path):
    run = RunDir(tmp_path / "bus.run")
    run.create(RECORD)
    (tmp_path / "mine.txt").write_text("mine")
    (run.path / "events.jsonl").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(UsageProblem, match=r"events\.jsonl can't be written"):
        run.append_event({"step": 1})
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_restore_creates_a_folder_that_went_away(tmp_path):
    run = RunDir(tmp_path / "bus.run")
    run.create(RECORD)
    assert run.restore() is None
    shutil.rmtree(run.path)
    assert "was removed or renamed" in run.restore()
    assert run.record() == RECORD
    run.path.rename(tmp_path / "kept.run")
    (tmp_path / "bus.run").mkdir()
    (tmp_path / "bus.run" / "thesis.txt").write_text("mine")
    run.restore()
    assert run.path == tmp_path / "bus-2.run"
    run.save(asset(step=2))
    assert set(contents(tmp_path)) == {
        "kept.run/run.json", "bus.run/thesis.txt", "bus-2.run/run.json", "bus-2.run/checkpoint.safetensors",
    }  # fmt: skip


def test_acquire_names_a_copy_where_the_disk_is_read_only(tmp_path, monkeypatch):
    RunDir(tmp_path / "bus.run").create(RECORD)
    monkeypatch.chdir(tmp_path)

    def refuse(folder):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(run_dir, "RunLock", refuse)
    monkeypatch.setattr(files, "_other_folders", lambda *_, **__: iter([tmp_path / "other disk"]))
    with pytest.raises(UsageProblem, match="the disk is read-only") as caught:
        RunDir(Path("bus.run")).acquire()
    copy = f"'{tmp_path}/other disk/bus.run'"
    assert caught.value.hint == f"cp -r bus.run {copy} && segdream generate --resume {copy}"


def test_restore_creates_the_current_folder_that_went_away(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run = RunDir(Path("bus.run"))
    run.create(RECORD)
    shutil.rmtree(tmp_path / "here")
    assert "bus.run was removed or renamed" in run.restore()
    run.save(asset(step=2))
    assert set(contents(tmp_path)) == {"here/bus.run/run.json", "here/bus.run/checkpoint.safetensors"}
    assert Path.cwd() == tmp_path / "here"


def test_check_edits_blames_a_damaged_checkpoint_and_not_the_record(tmp_path):
    run = RunDir(tmp_path / "bus.run")
    run.create(RECORD)
    run.save(asset())
    run.check_edits()
    content = run.checkpoint.read_bytes()
    for old, new in ((b"a folder", b"a foldeR"), (b"negative_prompt", b"negative_prompT")):
        assert old in content
        run.checkpoint.write_bytes(content.replace(old, new))
        with pytest.raises(UsageProblem, match=r"checkpoint\.safetensors is damaged"):
            run.check_edits()


def test_edits_names_what_differs_from_the_checkpoint(tmp_path):
    run = RunDir(tmp_path / "bus.run")
    run.create(RECORD)
    run.save(asset())
    assert run.edits() == []
    config = {**RECORD.config, "optim.steps": 9}
    edited = dataclasses.replace(RECORD, prompt="a duck", config=config, prior={"name": "a folder", "digest": "4567"})
    RunDir(tmp_path / "other.run").create(edited)
    shutil.copy(tmp_path / "other.run" / "run.json", run.path)
    assert run.edits() == [
        "prompt is 'a duck' and was 'ein süßer Bus, 日本'",
        "optim.steps is 9 and was 7",
        "prior.digest is '4567' and was '0123'",
    ]


def test_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("segdream_cli.runs.ownership.lock", refuse)
    monkeypatch.setattr("segdream_cli.util.files.lock", refuse)
    run = RunDir(tmp_path / "bus.run")
    run.create(RECORD)
    run.save(asset(step=2))
    run.create(NEW, force=True)
    assert run.record() == NEW
    assert set(contents(tmp_path)) == {"bus.run/run.json"}
