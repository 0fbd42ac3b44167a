"""The run folders below a folder: their state and size, and the removal of those that nobody needs."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from segdream_cli.errors import SegdreamError, UsageProblem
from segdream_cli.runs.ownership import OWN_NAMES, RECORD, RunLock
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.util.files import TEMPORARY, is_file, is_folder

RUNNING, STOPPED, DONE, GONE, LEFTOVER, DAMAGED = "running", "stopped", "done", "gone", "leftover", "damaged"
REMOVABLE = (DONE, GONE, LEFTOVER)
"""States of folders from which nothing can be resumed."""
FRESH_S = 60.0
"""Age in seconds below which a temporary folder may belong to a process that has not locked it yet."""
_TRIAL = re.compile(r"\.try-\d+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A run folder.

    Args:
        path: the folder.
        state: "running" (a process works on it), "stopped" (it can be resumed), "done" (its asset exists), "gone"
            (neither asset nor checkpoint exist), "leftover" (of a killed process) or "damaged" (unreadable).
        step: step of the checkpoint; None without one.
        total_steps: steps of the whole run; None if they can't be read.
        bytes: size of segdream's own files in it.
        modified: time of its last change, in seconds since 1970.
        prompt, seed: of the asset; None if they can't be read.
        output: the asset's file, which need not exist.
    """

    path: Path
    state: str
    step: int | None = None
    total_steps: int | None = None
    bytes: int
    modified: float
    prompt: str | None = None
    seed: int | None = None
    output: Path | None = None


def list_runs(folders: Sequence[Path]) -> list[RunInfo]:
    """The run folders among `folders` and below them, by path; links and hidden folders are not followed.

    Raises:
        UsageProblem: one of `folders` does not exist.
    """
    paths = sorted({path for folder in folders for path in _find(folder)})
    locked = {path for path in paths if _is_locked(path)}
    busy = {_asset_of(path) for path in locked}  # the trials of --best-of take turns
    return [_inspect(path, running=path in locked or _asset_of(path) in busy) for path in paths]


def _find(folder: Path) -> Iterator[Path]:
    """The run folders in a folder, which may be one itself."""
    if not is_folder(folder):
        raise UsageProblem(f"{folder} is not a folder", hint="segdream runs .")
    if _is_run(folder.absolute()):
        yield folder
        return
    for name, folders, _ in os.walk(folder):
        found = [each for each in folders if _is_run(Path(name, each))]
        yield from (Path(name, each) for each in found)
        folders[:] = [each for each in folders if not each.startswith(".") and each not in found]


def _is_run(path: Path) -> bool:
    """Whether a folder is that of a run, or was left by a process that was killed while it made or replaced one."""
    if path.is_symlink():
        return False
    leftover = path.suffix == ".run" and TEMPORARY.fullmatch(path.name) is not None
    return leftover or (is_file(path / RECORD) and not RunDir(path).is_foreign())


def _is_locked(path: Path) -> bool:
    """Whether a process works on a run; one whose record can't be opened counts as idle."""
    try:
        RunLock(path).release()
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _asset_of(path: Path) -> Path:
    """The run folder's name without its suffix and the number of a trial of --best-of."""
    return path.with_name(_TRIAL.sub("", path.stem))


def _inspect(path: Path, *, running: bool) -> RunInfo:
    """The state of a folder."""
    size, modified = 0, 0.0
    with suppress(OSError):
        modified = path.stat().st_mtime
        for file in path.iterdir():
            if OWN_NAMES.fullmatch(file.name):
                size += file.lstat().st_size
    state = LEFTOVER if TEMPORARY.fullmatch(path.name) else DAMAGED
    running = running or (state == LEFTOVER and time.time() - modified < FRESH_S)
    run = RunDir(path)
    try:
        record = run.record()
        config = run.config()
        resumable = run.can_resume()
        step, skipped = (run.step(), run.skipped()) if resumable else (None, 0)
    except (SegdreamError, OSError):
        return RunInfo(path=path, state=RUNNING if running else state, bytes=size, modified=modified)
    output = path.parent / record.output
    if state != LEFTOVER:
        state = STOPPED if resumable else DONE if output.exists() else GONE
    return RunInfo(
        path=path,
        state=RUNNING if running else state,
        step=None if step is None else step - skipped,
        total_steps=config.last_step - skipped,
        bytes=size,
        modified=modified,
        prompt=record.prompt,
        seed=record.seed,
        output=output,
    )
