"""Ownership of a run folder: the names that segdream writes there, the lock of a run, and the exchange of two folders.

A folder appears, complete, by one rename. Only segdream's own names are ever removed.
"""

import errno
import os
import re
import secrets
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segdream_cli.util.files import STEM_LENGTH, TEMPORARY, lock, synced_folder

RECORD = "run.json"
CHECKPOINT = "checkpoint.safetensors"
EVENTS = "events.jsonl"
TRIED = "tried.json"
OWN_NAMES = re.compile(
    rf"{re.escape(RECORD)}|{re.escape(CHECKPOINT)}|{re.escape(EVENTS)}|{re.escape(TRIED)}"
    rf"|preview-\d{{6,}}\.png|tried-\d+\.png|{TEMPORARY.pattern}",
    re.DOTALL,
)
"""Names of the files that segdream writes into a run folder."""


class RunLock:
    """The lock on the record of a run folder, until `release` or the end of this process.

    The lock follows the folder when that is renamed. A file system without locks is no obstacle.

    Raises:
        BlockingIOError: another run holds it, or has just replaced the folder.
        OSError: the record can't be opened for writing.
    """

    def __init__(self, folder: Path) -> None:
        record = folder / RECORD
        handle = os.open(record, os.O_RDWR)
        self.release = weakref.finalize(self, os.close, handle)
        free, has_locks = True, True
        try:
            free = lock(handle)
        except OSError:
            has_locks = False
        if not free or not os.path.samestat(os.fstat(handle), record.stat()):
            self.release()
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
        self._folder = folder.stat()
        if not has_locks:
            self.release()  # Windows renames no folder with an open file

    def is_at(self, folder: Path) -> bool:
        """Whether `folder` is still the one that was locked, and has a record."""
        try:
            return os.path.samestat(self._folder, folder.stat()) and (folder / RECORD).exists()
        except OSError:
            return False


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Yields an unused name beside a run folder, and removes the run folder of that name after the block."""
    path = folder.with_name(f".{folder.stem[:STEM_LENGTH]}.{secrets.token_hex(4)}.partial.run")
    try:
        yield path
    finally:
        remove_contents(path)


def exchange(folder: Path, staged: Path, removed: Path) -> None:
    """Renames a run folder away to `removed`, if there is one, and `staged` to its name; or leaves both in place.

    Raises:
        BlockingIOError: another process works in the folder, or has just created it.
        OSError: a folder can't be renamed.
    """
    old = RunLock(folder) if (folder / RECORD).exists() else None
    placed = False
    try:
        with synced_folder(folder.parent):
            if folder.exists():
                folder.rename(removed)
            staged.rename(folder)
            placed = True
    except OSError as problem:
        with suppress(OSError):
            if placed:
                folder.rename(staged)
            removed.rename(folder)
        if problem.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise BlockingIOError(problem.errno, problem.strerror) from problem
        raise
    finally:
        if old is not None:
            old.release()


def sweep_folders(folder: Path) -> None:
    """Removes what killed processes left of new and old folders of this name."""
    with suppress(OSError):
        for path in folder.parent.iterdir():
            match = TEMPORARY.fullmatch(path.name)
            if match and match["stem"] == folder.stem[:STEM_LENGTH] and path.suffix == ".run" and path.is_dir():
                held = RunLock(path) if (path / RECORD).exists() else None
                remove_contents(path)
                if held is not None:
                    held.release()


def remove_folder(folder: Path, *, resumable: bool) -> bool:
    """Removes a run folder that no process works on, as far as it holds segdream's own names.

    Args:
        folder: the folder.
        resumable: remove a run that can be resumed too.

    Returns:
        whether the folder is gone; files of others stay, and so does the folder of a run that can be resumed.

    Raises:
        BlockingIOError: a process works on the run.
        OSError: its record can't be opened for writing.
    """
    held = RunLock(folder) if (folder / RECORD).exists() else None
    try:
        if resumable or not (folder / CHECKPOINT).exists():  # it may have been started since it was listed
            remove_contents(folder)
    finally:
        if held is not None:
            held.release()
    return not folder.exists()


def remove_contents(folder: Path) -> None:
    """Removes a run folder as far as it holds segdream's own names; the record last, for it makes the folder a run."""
    with suppress(OSError):
        for path in sorted(folder.iterdir(), key=lambda path: path.name == RECORD):
            if OWN_NAMES.fullmatch(path.name) and not path.is_dir():
                path.unlink()
        folder.rmdir()
