"""How every file of the project is written: whole or not at all, and never over another by accident."""

import errno
import logging
import os
import shlex
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segdream_cli.errors import OutputExists, SegdreamError, UsageProblem

STEM_LENGTH = 32
"""Characters of a file's name that its temporary twin takes over."""


def check_output(path: Path, *, force: bool) -> None:
    """Refuses an output that could not be written at the end, before any work starts.

    Raises:
        OutputExists: `path` is there and `force` is false.
        UsageProblem: its folder is missing or can't be written, or `path` is a folder.
    """
    folder = path.parent
    try:  # a name too long, or a folder that can't be entered, fails in the first look already
        if path.is_dir():
            raise UsageProblem(f"{path} is a folder", hint=f"name a file in it, such as -o {path / 'asset.ply'}")
        if not folder.is_dir():
            raise UsageProblem(f"the folder {folder} does not exist", hint=f"mkdir -p {shlex.quote(str(folder))}")
        if path.exists() and not force:
            raise OutputExists(f"{path} exists", hint="add --force to replace it, or choose another -o")
        with tempfile.TemporaryFile(dir=folder):  # os.access knows neither read-only mounts nor a superuser's limits
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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary file's path beside `path`, and renames it to `path` once the block ends well.

    A block that raises leaves neither a new `path` nor the temporary file behind.

    Raises:
        SegdreamError: the disk is full; UsageProblem: the folder can't be written.
    """
    temporary: Path | None = None
    interruptible = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    if interruptible:  # the command line's way to leave at once would leave the temporary file behind
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        # a name of full length plus what mkstemp adds would be too long for the file system
        stem = f".{path.stem[:STEM_LENGTH]}."
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=stem, suffix=f".partial{path.suffix}")
        temporary = Path(name)
        os.close(handle)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's private mode is for secrets, not for results
        temporary.replace(path)
    except OSError as problem:
        raise write_problem(problem, path) from problem
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        if interruptible:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def exclusive(path: Path, waiting: str | None = None) -> Iterator[None]:
    """Holds a lock file while the block runs, so that of several processes only one runs it at a time.

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
