"""Writes files completely or not at all, never over another by accident, and locks them between processes."""

import errno
import logging
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segdream_cli.errors import OutputExists, SegdreamError, UsageProblem

STEM_LENGTH = 32
"""Number of characters of a file's name that its temporary file's name begins with."""

_unfinished: set[Path] = set()
"""Temporary files of the open blocks of `atomic_write`."""


def check_output(path: Path, *, force: bool) -> None:
    """Refuses an output that can't be written, before any work starts.

    Raises:
        OutputExists: `path` exists and `force` is false.
        UsageProblem: its folder is missing or not writable, or `path` is a folder.
    """
    folder = path.parent
    try:  # fails for a name that is too long, or a folder without access
        if path.is_dir():
            raise UsageProblem(f"{path} is a folder", hint=f"-o {shlex.quote(str(path / 'asset.ply'))}")
        if not folder.is_dir():
            raise UsageProblem(f"the folder {folder} does not exist", hint=f"mkdir -p {shlex.quote(str(folder))}")
        if path.exists() and not force:
            raise OutputExists(f"{path} exists", hint="add --force to replace it, or choose another -o")
        with tempfile.TemporaryFile(dir=folder):  # os.access misses read-only mounts and limits of root
            pass
    except OSError as problem:
        raise write_problem(problem, path) from problem


def write_problem(problem: OSError, path: Path) -> SegdreamError:
    """The error to raise for an operating-system failure while writing `path`."""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return SegdreamError(
            f"the disk is full: {path} was not written",
            hint=f"df -h {shlex.quote(str(path.parent))}  # then run the command again",
        )
    reason = problem.strerror or str(problem)
    return UsageProblem(f"{path} can't be written: {reason}", hint="choose another -o")


def read_problem(problem: OSError, path: Path, example: str) -> UsageProblem:
    """The error to raise for an operating-system failure while reading a text file.

    Args:
        problem: the failure.
        path: the file.
        example: a line that such a file may hold, for the hint to create it.
    """
    name = shlex.quote(str(path))
    hints = {errno.ENOENT: f"echo {shlex.quote(example)} > {name}", errno.EACCES: f"chmod u+r {name}"}
    reason = problem.strerror or str(problem)
    return UsageProblem(f"{path} can't be read: {reason}", hint=hints.get(problem.errno or 0, "choose another file"))


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file beside `path`, and renames it to `path` after the block.

    If the block raises, `path` stays as it was, and the temporary file is removed.

    Raises:
        SegdreamError: the disk is full.
        UsageProblem: the folder can't be written.
    """
    temporary: Path | None = None
    try:
        # a name of full length plus the characters that mkstemp adds would exceed the limit of the file system
        stem = f".{path.stem[:STEM_LENGTH]}."
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=stem, suffix=f".partial{path.suffix}")
        temporary = Path(name)
        _unfinished.add(temporary)
        os.close(handle)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp creates files that only their owner can read
        temporary.replace(path)
    except OSError as problem:
        raise write_problem(problem, path) from problem
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
            _unfinished.discard(temporary)


def is_writing() -> bool:
    """Whether a block of `atomic_write` is open: a process killed now would leave its temporary file behind."""
    return bool(_unfinished)


@contextmanager
def exclusive(path: Path, waiting: str | None = None) -> Iterator[None]:
    """Holds a lock file while the block runs, so only one process runs it at a time.

    Args:
        path: the lock file; it and its folder are created, and stay.
        waiting: a warning to log if another process holds the lock.

    Raises:
        OSError: the lock file can't be created.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting:  # without a handler Python writes it to stderr
            logging.getLogger(__name__).warning(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
