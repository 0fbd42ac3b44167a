"""Writes of complete files, checks of outputs, and locks. A full disk is /dev/full, where the kernel reports it."""

import errno
import json
import os
import shlex
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
from commands import is_command
from filelock import FileLock, Timeout

from segdream_cli.errors import OutputExists, SegdreamError, UsageProblem
from segdream_cli.render.images import write_png
from segdream_cli.util import files
from segdream_cli.util.files import (
    atomic_write,
    cache_write,
    check_output,
    exclusive,
    read_problem,
    sweep,
    write_policy,
    write_problem,
    write_together,
)

needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@pytest.fixture
def full_disk(monkeypatch):
    """Every temporary file is a link to /dev/full."""

    def mkstemp(dir=None, prefix="", suffix=""):
        name = Path(dir) / f"{prefix}full{suffix}"
        name.symlink_to("/dev/full")
        return os.open("/dev/null", os.O_RDONLY), str(name)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)


def test_atomic_write_creates_a_file(tmp_path):
    path = tmp_path / "asset.ply"
    with atomic_write(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".ply"
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_cache_write_removes_what_killed_processes_left(tmp_path):
    path = tmp_path / "cache" / "timings" / "0123.json"
    path.parent.mkdir(parents=True)
    for name in (".0123.abcdefgh.partial.json", ".4567.abcdefgh.partial.json"):
        (path.parent / name).write_text("{")
    with cache_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert {each.name for each in path.parent.iterdir()} == {"0123.json", ".4567.abcdefgh.partial.json"}
    with cache_write(tmp_path / "other" / "1.json") as temporary:
        temporary.write_text("1")
    assert (tmp_path / "other" / "1.json").read_text() == "1"


def test_atomic_write_replaces_an_old_file_at_the_end(tmp_path):
    path = tmp_path / "asset.ply"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("problem", [ValueError("bad"), KeyboardInterrupt(), OSError(errno.ENODEV, "broken")])
def test_atomic_write_keeps_the_old_file_on_an_exception(tmp_path, problem):
    path = tmp_path / "asset.ply"
    path.write_text("old")

    def fail():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise problem

    with pytest.raises((type(problem), UsageProblem)):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_sets_the_permissions_of_a_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "asset.ply") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "asset.ply").stat().st_mode) == 0o640


def test_atomic_write_accepts_the_longest_file_names(tmp_path):
    for stem in ("x" * 251, "日" * 83):  # 255 and 253 bytes with the suffix
        with atomic_write(tmp_path / f"{stem}.ply") as temporary:
            temporary.write_text("new")
        assert (tmp_path / f"{stem}.ply").read_text() == "new"


def test_atomic_write_refuses_a_missing_folder(tmp_path):
    with pytest.raises(UsageProblem, match=r"none/asset\.ply"), atomic_write(tmp_path / "none" / "asset.ply"):
        pytest.fail("there is nowhere to write to")


@needs_dev_full
def test_atomic_write_leaves_nothing_on_a_full_disk(tmp_path, full_disk):
    text, image = tmp_path / "run.json", tmp_path / "picture.png"
    image.write_bytes(b"old")
    with pytest.raises(SegdreamError, match=r"disk is full.*run\.json") as caught, atomic_write(text) as temporary:
        temporary.write_text(json.dumps(list(range(9999))))
    assert caught.value.exit_code == 1
    assert str(tmp_path) in caught.value.hint
    with pytest.raises(SegdreamError, match=r"disk is full.*picture\.png"):
        write_png(image, np.zeros((300, 300, 3), np.float32))
    assert image.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [image]


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOSPC, 1, "disk is full"),
        (errno.EDQUOT, 1, "disk is full"),
        (errno.EACCES, 2, "Permission denied"),
        (errno.EROFS, 2, "read-only"),
        (errno.EIO, 1, "the disk failed"),
        (errno.EFBIG, 1, "too large"),
        (errno.EMFILE, 3, "too many open files"),
        (errno.ENFILE, 3, "too many open files"),
    ],
)
def test_write_problem_depends_on_the_error_number(number, code, words):
    instead = "-o 'other assets/bus.ply'"
    problem = write_problem(OSError(number, os.strerror(number)), Path("my assets/bus.ply"), instead)
    assert problem.exit_code == code
    assert words in problem.message
    assert "my assets/bus.ply" in problem.message
    assert (problem.hint == instead) == (number in (errno.EACCES, errno.EROFS, errno.EIO))
    assert is_command(problem.hint)


@pytest.mark.parametrize("links", [True, False])
def test_write_policy_keeps_a_file_that_appears(tmp_path, monkeypatch, links):
    path = tmp_path / "asset.ply"

    def refuse(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:  # as on a FAT disk
        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "asset-2.ply").write_text("")

    def write():
        with write_policy(replace=False), atomic_write(path) as temporary:
            temporary.write_text("new")
            path.write_text("mine")

    with pytest.raises(OutputExists, match=r"asset\.ply appeared") as caught:
        write()
    assert path.read_text() == "mine"
    assert caught.value.hint == f"-o {tmp_path}/asset-3.ply"
    path.unlink()
    with write_policy(replace=False), atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExists, match="appeared"), write_policy(replace=False), atomic_write(path) as temporary:
        temporary.write_text("new")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["asset-2.ply", "asset.ply"]
    with pytest.raises(OutputExists, match=r"asset\.ply exists"):
        check_output(path, force=False)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("taken", ["a", "b", "c"])
def test_write_together_writes_all_files_or_none(tmp_path, taken, replace):
    contents = {tmp_path / name: name.encode() for name in "abc"}
    (tmp_path / taken).write_bytes(b"mine")
    with write_policy(replace=replace):
        if replace:
            write_together(contents)
        else:
            with pytest.raises(OutputExists, match=f"{taken} appeared"):
                write_together(contents)
    expected = {name: name.encode() for name in "abc"} if replace else {taken: b"mine"}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == expected


@needs_dev_full
def test_write_together_leaves_nothing_on_a_full_disk(tmp_path, full_disk):
    with pytest.raises(SegdreamError, match=r"the disk is full: .*a was not written"):
        write_together({tmp_path / name: b"content" for name in "ab"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("together", [False, True])
def test_file_whose_folder_can_not_be_synced_is_said_to_be_written(tmp_path, monkeypatch, together):
    real = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "my bus.ply"

    def write():
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"whole")

    with pytest.raises(SegdreamError) as caught:
        write_together({path: b"whole"}) if together else write()
    assert path.read_bytes() == b"whole"
    assert caught.value.message == f"{path} was written, but a power failure could still lose it: Input/output error"
    assert caught.value.hint == f"sync {tmp_path}"
    assert list(tmp_path.iterdir()) == [path]


def test_sweep_removes_only_temporaries_of_its_stem(tmp_path):
    kept = [".bus.partial.ply", ".bus.abcdefgh.ply", ".car.abcdefgh.partial.ply", "bus.abcdefgh.partial.ply"]
    for name in (*kept, ".bus.abcdefgh.partial.ply", ".bus.a_cd3f9h.partial.nut", ".bus.abcdefgh.partial"):
        (tmp_path / name).write_text("")
    (tmp_path / ".bus.folder12.partial.ply").mkdir()
    (tmp_path / ".bus.link1234.partial.ply").symlink_to(tmp_path / kept[0])
    sweep(tmp_path, "bus")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*kept, ".bus.folder12.partial.ply", ".bus.link1234.partial.ply"]
    )
    sweep(tmp_path)
    assert not (tmp_path / ".car.abcdefgh.partial.ply").exists()


def test_read_problem_tells_a_limit_from_a_missing_file():
    path = Path("list.txt")
    limit = read_problem(OSError(errno.EMFILE, os.strerror(errno.EMFILE)), path, "a bus")
    assert (limit.exit_code, limit.hint) == (3, "ulimit -n 4096")
    disk = read_problem(OSError(errno.EIO, os.strerror(errno.EIO)), path, "a bus")
    assert (disk.exit_code, disk.message, disk.hint) == (1, "the disk failed: list.txt was not read", None)
    assert read_problem(OSError(errno.ENOENT, "no"), path, "a bus").hint == "echo 'a bus' > list.txt"


def test_check_output_leaves_no_file(tmp_path):
    check_output(tmp_path / "asset.ply", force=False)
    assert not list(tmp_path.iterdir())


def test_check_output_needs_force_for_an_existing_file(tmp_path):
    path = tmp_path / "asset.ply"
    path.write_text("old")
    with pytest.raises(OutputExists, match=r"asset\.ply exists") as caught:
        check_output(path, force=False)
    assert caught.value.hint == f"-o {tmp_path / 'asset-2.ply'}"
    check_output(path, force=True)
    assert path.read_text() == "old"


@pytest.mark.parametrize("force", [True, False])
def test_check_output_refuses_paths_that_can_not_be_written(tmp_path, force):
    (tmp_path / "file").write_text("")
    cases = {
        tmp_path: "is a folder",
        tmp_path / "no such folder" / "asset.ply": "no such folder does not exist",
        tmp_path / "file" / "asset.ply": "file is a file, not a folder",
        tmp_path / ("x" * 300 + ".ply"): "File name too long",
    }
    for path, words in cases.items():
        with pytest.raises(UsageProblem, match=words) as caught:
            check_output(path, force=force)
        assert caught.value.hint
    with pytest.raises(UsageProblem) as caught:
        check_output(tmp_path / "no such folder" / "asset.ply", force=force)
    assert caught.value.hint == f"mkdir -p '{tmp_path}/no such folder'"


def test_check_output_tries_to_create_a_file(tmp_path, monkeypatch):
    """The tests may run as root, whom permission bits do not stop, so the attempt itself is refused."""

    def refuse(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UsageProblem, match=r"asset\.ply can't be written: Permission denied"):
        check_output(tmp_path / "asset.ply", force=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_check_output_refuses_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageProblem, match="Permission denied"):
            check_output(tmp_path / "asset.ply", force=False)
    finally:
        tmp_path.chmod(0o700)


def test_exclusive_holds_the_lock_while_the_block_runs(tmp_path):
    path = tmp_path / "new" / "lock"
    with exclusive(path), pytest.raises(Timeout):
        FileLock(path).acquire(timeout=0)
    FileLock(path).acquire(timeout=0)


def test_exclusive_releases_the_lock_after_an_error(tmp_path):
    with pytest.raises(KeyError), exclusive(tmp_path / "lock"):
        raise KeyError
    FileLock(tmp_path / "lock").acquire(timeout=0)


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOENT, "echo 'optim.steps = 9' > 'my settings.toml'"),
        (errno.EACCES, "chmod u+r 'my settings.toml'"),
        (errno.EISDIR, None),
    ],
)
def test_read_problem_has_a_command_that_cures(number: int, hint: str | None) -> None:
    problem = files.read_problem(OSError(number, "no luck"), Path("my settings.toml"), "optim.steps = 9")
    assert (problem.message, problem.hint) == ("my settings.toml can't be read: no luck", hint)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[" * 100_000, "nested too deeply"), (b"[" * 100_000, "nested too deeply"), ("{", "line 1"), (b"\xff", "utf-8")],
)
def test_parse_json_raises_a_value_error_for_all_damage(content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        files.parse_json(content)


def test_all_or_none_names_no_file_if_one_fails(tmp_path: Path) -> None:
    def work(fail: bool) -> None:
        with files.all_or_none([tmp_path / name for name in "abc"]):
            with files.atomic_write(tmp_path / "a") as temporary:
                temporary.write_text("a")
            files.write_together({tmp_path / "b": b"b", tmp_path / "c": b"c"})
            with files.scratch_space() as folder, files.atomic_write(folder / "a") as temporary:
                temporary.write_text("another a")
            assert not (tmp_path / "a").exists()
            if fail:
                raise UsageProblem("the third can't be written")

    with pytest.raises(UsageProblem):
        work(fail=True)
    assert not list(tmp_path.iterdir())
    work(fail=False)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "a", "b": "b", "c": "c"}


def test_all_or_none_names_no_file_if_one_has_appeared(tmp_path: Path) -> None:
    def work() -> None:
        with files.write_policy(replace=False), files.all_or_none([tmp_path / "a", tmp_path / "b"]):
            for name in "ab":
                with files.atomic_write(tmp_path / name) as temporary:
                    temporary.write_text("ours")
            (tmp_path / "b").write_text("theirs")

    with pytest.raises(OutputExists, match="b appeared"):
        work()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b": "theirs"}


def test_relocation_names_a_folder_that_works_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_other_folders", lambda *_, **__: iter([tmp_path]))
    words = shlex.split(files.relocation("TMPDIR", Path("/full")), comments=True)
    assert words == ["export", f"TMPDIR={tmp_path}"]  # Python ignores a TMPDIR that does not exist
    words = shlex.split(files.relocation("SEGDREAM_CACHE", Path("/full")), comments=True)
    assert words == ["export", f"SEGDREAM_CACHE={tmp_path / 'segdream-cache'}"]
    monkeypatch.setattr(files, "_other_folders", lambda *_, **__: iter([]))
    assert files.relocation("TMPDIR", Path("/full")) is None
