"""Writes files completely or not at all, never over another by accident, and locks them between processes."""

import errno
import json
import logging
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from segdream_cli.errors import EnvironmentProblem, OutputExists, SegdreamError, UsageProblem
from segdream_cli.util.home import expand

STEM_LENGTH = 32
"""Number of characters of a file's name that its temporary file's name begins with."""
TEMPORARY = re.compile(r"\.(?P<stem>.*)\.[a-z0-9_]{8}\.partial(\.[^.]*)?", re.DOTALL)
"""Names of temporary files and folders."""
WITHOUT_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""Errors of file systems that have no hard links."""

_unfinished: set[Path] = set()
"""Temporary files of the open blocks of `scratch_file`."""
_staged: ContextVar["_Staged | None"] = ContextVar("_staged", default=None)
"""Finished files that wait for the end of a block of `all_or_none`."""
_replaces: ContextVar[bool] = ContextVar("_replaces", default=True)
"""Whether `atomic_write` may replace a file."""


def check_output(path: Path, *, force: bool, option: str = "-o", given: Path | None = None) -> None:
    """Refuses an output that can't be written, before any work starts, and removes its temporaries of killed processes.

    Args:
        path: the output.
        force: whether it may be replaced.
        option: the option that names it, for the hints.
        given: the value of that option, if `path` is another file that follows from it.

    Raises:
        OutputExists: `path` exists and `force` is false.
        UsageProblem: its folder is missing or not writable, or `path` is a folder.
    """
    folder, given = path.parent, given or path
    try:  # fails for a name that is too long, or a folder without access
        if path.is_dir():
            inside = shlex.quote(str(free_path(path / f"asset{path.suffix or '.ply'}")))
            raise UsageProblem(f"{path} is a folder", hint=f"{option} {inside}")
        if not folder.is_dir() and not _first_existing(folder).is_dir():
            other = shlex.quote(str(free_path(Path(path.name))))
            raise UsageProblem(f"{_first_existing(folder)} is a file, not a folder", hint=f"{option} {other}")
        if not folder.is_dir():
            raise UsageProblem(f"the folder {folder} does not exist", hint=f"mkdir -p {shlex.quote(str(folder))}")
        if lexists(path) and not force:
            free = shlex.quote(str(free_name(given)))
            raise OutputExists(f"{path} exists; --force replaces it", hint=f"{option} {free}")
        with tempfile.TemporaryFile(dir=folder):  # os.access misses read-only mounts and limits of root
            pass
    except OSError as problem:
        raise write_problem(problem, path, other_output(problem, given, option)) from problem
    sweep(folder, path.stem)


def existing_folder(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())


def _first_existing(folder: Path) -> Path:
    """The folder or, if it does not exist, the nearest of its parents that does."""
    return next(each for each in (folder, *folder.parents) if lexists(each))


def lexists(path: Path) -> bool:
    """Whether a name is taken, be it by a link that leads nowhere; false where nobody can tell, as in `is_folder`."""
    return os.path.lexists(path)


def is_folder(path: Path) -> bool:
    """Whether a folder is there; unlike `Path.is_dir`, false where nobody can tell, such as for a name too long."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: Path) -> bool:
    """Whether a file is there; false where nobody can tell."""
    return os.path.isfile(path)  # noqa: PTH113


def free_path(path: Path) -> Path:
    """The path or, if that is taken, the first of `free_name`."""
    return free_name(path) if lexists(path) else path


def free_name(path: Path, others: Collection[Path] = ()) -> Path:
    """The first of `bus-2.ply`, `bus-3.ply`, ... that is not taken, and is none of `others`."""
    number = 2
    while lexists(other := path.with_stem(f"{path.stem}-{number}")) or other in others:
        number += 1
    return other


def other_output(problem: OSError, path: Path, option: str = "-o") -> str | None:
    """An option that names the path of `other_path`; None if there is none."""
    other = other_path(problem, path)
    return None if other is None else f"{option} {shlex.quote(str(other))}"


def other_path(problem: OSError, path: Path) -> Path | None:
    """A path for an output in another folder or, if a disk failed, on another disk; None if no other path helps."""
    if problem.errno in LIMITS:
        return None
    folder = next(_other_folders(path.parent, other_disk=problem.errno in DISK_ERRORS), None)
    return None if folder is None else free_path(folder / f"{path.stem[:STEM_LENGTH]}{path.suffix}")


def relocation(variable: str, folder: Path, problem: OSError | None = None, size: int = 0) -> str | None:
    """The command that names another folder for a cache or for temporary files; None if there is none.

    Args:
        variable: the environment variable with the folder.
        folder: the folder that can't be used.
        problem: the reason, if it is not too little space.
        size: bytes that are needed.
    """
    other_disk = problem is None or problem.errno in DISK_ERRORS
    found = next(_other_folders(folder, other_disk=other_disk, size=size), None)
    if found is None:
        return None
    new = found.resolve() if variable == "TMPDIR" else found.resolve() / "segdream-cache"  # TMPDIR must exist
    return f"export {variable}={shlex.quote(str(new))}  # then run the command again"


def _other_folders(folder: Path, *, other_disk: bool, size: int = 0) -> Iterator[Path]:
    """Folders that can be written instead of `folder`: this one, the user's home, and that for temporary files."""
    existing = existing_folder(folder)
    for other in (Path(), expand("~"), _temporary_folder()):
        with suppress(OSError):
            same = other.stat().st_dev == existing.stat().st_dev if other_disk else other.resolve() == folder.resolve()
            if not same and shutil.disk_usage(other).free >= size:
                with tempfile.TemporaryFile(dir=other):
                    pass
                yield other


def _temporary_folder() -> Path:
    """The folder for temporary files, be it that none can be written."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return Path("/tmp")


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
"""Errors that other folders of the same disk have too."""
LIMITS = (errno.EFBIG, errno.EMFILE, errno.ENFILE)
"""Errors that all folders have."""
_CAUSES: Mapping[int, tuple[type[SegdreamError], str, str | None]] = {
    errno.ENOSPC: (SegdreamError, "the disk is full", "df -h {folder}  # then run the command again"),
    errno.EDQUOT: (SegdreamError, "the disk is full", "df -h {folder}  # then run the command again"),
    errno.EIO: (SegdreamError, "the disk failed", None),
    errno.EFBIG: (SegdreamError, "the file is too large for its disk or for the shell's limit", "ulimit -f unlimited"),
    errno.EMFILE: (EnvironmentProblem, "this process has too many open files", "ulimit -n 4096"),
    errno.ENFILE: (EnvironmentProblem, "this machine has too many open files", "sudo sysctl fs.file-max=2097152"),
    errno.EROFS: (UsageProblem, "the disk is read-only", None),
}
"""Number of an operating-system error -> error to raise, cause and hint."""


def write_problem(problem: OSError, path: Path, instead: str | None = None) -> SegdreamError:
    """The error to raise for an operating-system failure while writing `path`.

    Args:
        problem: the failure.
        path: the file.
        instead: the hint where only another file helps.
    """
    return known_problem(problem, path, "written", instead) or UsageProblem(
        f"{path} can't be written: {problem.strerror or problem}", hint=instead
    )


def known_problem(problem: OSError, path: Path, verb: str, instead: str | None = None) -> SegdreamError | None:
    """The error to raise for a failure of the disk or of a limit; None for others.

    Args:
        problem: the failure.
        path: the file.
        verb: what did not happen to it: "written" or "read".
        instead: the hint where no command helps this file.
    """
    if problem.errno is None or problem.errno not in _CAUSES:
        return None
    kind, cause, hint = _CAUSES[problem.errno]
    cured = hint and (verb == "written" or kind is EnvironmentProblem)  # space and limits of size do not help to read
    return kind(
        f"{cause}: {path} was not {verb}",
        hint=hint.format(folder=shlex.quote(str(path.parent))) if hint and cured else instead,
    )


def read_problem(problem: OSError, path: Path, example: str) -> SegdreamError:
    """The error to raise for an operating-system failure while reading a text file.

    Args:
        problem: the failure.
        path: the file.
        example: a line that such a file may hold, for the hint to create it.
    """
    if known := known_problem(problem, path, "read"):
        return known
    name = shlex.quote(str(path))
    hints = {errno.ENOENT: f"echo {shlex.quote(example)} > {name}", errno.EACCES: f"chmod u+r {name}"}
    reason = problem.strerror or str(problem)
    return UsageProblem(f"{path} can't be read: {reason}", hint=hints.get(problem.errno or 0))


def parse_json(content: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or nested too deeply, for which `json.loads` raises a RecursionError.
    """
    try:
        return json.loads(content)
    except RecursionError as problem:
        raise ValueError("it is nested too deeply") from problem


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file beside `path`, and renames it to `path` after the block.

    If the block raises, `path` stays as it was, and the temporary file is removed. After the block, the file and its
    folder entry are on disk.

    Raises:
        OutputExists: `path` exists, and the block is within a `write_policy` that forbids to replace it.
        SegdreamError: the disk is full or fails.
        EnvironmentProblem: too many files are open.
        UsageProblem: the folder can't be written.
    """
    named = False
    staged = _staged.get()
    try:
        if staged is not None and path in staged.paths:
            with staged.add(path) as temporary:
                yield temporary
            return
        with scratch_file(path) as temporary:
            yield temporary
            _complete(temporary)
            with synced_folder(path.parent):
                _name(temporary, path)
                named = True
    except OSError as problem:
        raise (_unsynced(problem, path) if named else write_problem(problem, path)) from problem


@contextmanager
def cache_write(path: Path) -> Iterator[Path]:
    """`atomic_write` of a file of a cache: creates its folder, and removes its temporaries of killed processes.

    Raises: as `atomic_write`; OSError: the folder can't be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path.stem)
    with atomic_write(path) as temporary:
        yield temporary


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Writes files of one folder, in their order; if one can't be written, none of the new ones stays.

    Raises: as `atomic_write`.
    """
    staged = _staged.get()
    if staged is not None and staged.paths.issuperset(contents):
        for path, content in contents.items():
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
        return
    named: list[Path] = []
    path = next(iter(contents))
    try:
        with ExitStack() as stack:
            temporaries = {}
            for path, content in contents.items():
                temporaries[path] = stack.enter_context(scratch_file(path))
                temporaries[path].write_bytes(content)
                _complete(temporaries[path])
            with synced_folder(path.parent):
                for path, temporary in temporaries.items():
                    _name(temporary, path)
                    named.append(path)
    except BaseException as problem:
        complete = len(named) == len(contents)
        if not complete and not _replaces.get():  # what was replaced is gone already
            for each in named:
                each.unlink(missing_ok=True)
        if isinstance(problem, OSError):
            raise (_unsynced(problem, path) if complete else write_problem(problem, path)) from problem
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`, and renames it to `path` after the block.

    If the block raises, `path` stays as it was, and the new folder is removed. After the block, the files are on disk.

    Raises: as `atomic_write`.
    """
    prefix = f".{path.name[:STEM_LENGTH]}."
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix, suffix=".partial") as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            yield new
            for file in new.rglob("*"):
                if file.is_file():
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
            with synced_folder(path.parent):
                if lexists(path):
                    if not _replaces.get():
                        raise _exists_problem(path)
                    path.rename(Path(scratch) / "old")
                new.rename(path)
    except OSError as problem:
        raise write_problem(problem, path) from problem


class _Staged:
    """Finished files without their names yet."""

    def __init__(self, stack: ExitStack, paths: Collection[Path]) -> None:
        self._stack = stack
        self.paths = frozenset(paths)
        self.files: list[tuple[Path, Path]] = []
        """Temporary file and path."""

    @contextmanager
    def add(self, path: Path) -> Iterator[Path]:
        """Yields the path of a temporary file, which stays until the names are given."""
        temporary = self._stack.enter_context(scratch_file(path))
        yield temporary
        _complete(temporary)
        self.files.append((temporary, path))


@contextmanager
def all_or_none(paths: Collection[Path]) -> Iterator[None]:
    """Gives the files that `atomic_write` and `write_together` write to `paths` their names after the block.

    None of them gets its name if the block raises. Other files, such as those in a scratch folder, are not affected.

    Raises:
        OutputExists: a file exists, within a `write_policy` that forbids to replace it; no file has got its name then,
            unless another program creates it in the same moment.
        SegdreamError, UsageProblem: as `atomic_write`.
    """
    with ExitStack() as stack:
        staged = _Staged(stack, paths)
        token = _staged.set(staged)
        try:
            yield
        finally:
            _staged.reset(token)
        if not _replaces.get():
            for _, path in staged.files:
                if lexists(path):
                    raise _exists_problem(path)
        for temporary, path in staged.files:
            named = False
            try:
                with synced_folder(path.parent):
                    _name(temporary, path)
                    named = True
            except OSError as problem:
                raise (_unsynced(problem, path) if named else write_problem(problem, path)) from problem


def _complete(temporary: Path) -> None:
    """Writes a finished temporary file to disk, and gives it the permissions of a new file."""
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.chmod(0o666 & ~_umask())  # mkstemp creates files that only their owner can read


def _name(temporary: Path, path: Path) -> None:
    """Renames a finished file to `path`, as the `write_policy` says; raises OutputExists and OSError."""
    if _replaces.get():
        temporary.replace(path)
    else:
        _publish(temporary, path)


def _unsynced(problem: OSError, path: Path) -> SegdreamError:
    """The error to raise if the folder entry of a file that was written can't be forced to disk."""
    return SegdreamError(
        f"{path} was written, but a power failure could still lose it: {problem.strerror or problem}",
        hint=f"sync {shlex.quote(str(path.parent))}",
    )


@contextmanager
def write_policy(*, replace: bool) -> Iterator[None]:
    """Says whether `atomic_write` may replace a file while the block runs; `check_output` can't see the future."""
    before = _replaces.set(replace)
    try:
        yield
    finally:
        _replaces.reset(before)


def _publish(temporary: Path, path: Path) -> None:
    """Gives a finished file its name, unless that is taken.

    Raises:
        OutputExists: it is.
    """
    try:
        try:
            os.link(temporary, path)  # fails if `path` exists, unlike a rename
        except OSError as problem:
            if problem.errno not in WITHOUT_LINKS:
                raise
            if lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from problem
            temporary.replace(path)
    except FileExistsError as problem:
        raise _exists_problem(path) from problem


def _exists_problem(path: Path) -> OutputExists:
    """The error to raise if a file was created since `check_output`."""
    return OutputExists(
        f"{path} appeared while its content was computed, and was not replaced",
        hint=f"-o {shlex.quote(str(free_name(path)))}",
    )


@contextmanager
def scratch_file(path: Path, suffix: str | None = None) -> Iterator[Path]:
    """Yields the path of an empty file beside `path`, with its suffix or another one, and removes it after the block.

    This process locks the file, so that `sweep` knows it from those of killed processes.

    Raises:
        OSError: the folder can't be written.
    """
    # a name of full length plus the characters that mkstemp adds would exceed the limit of the file system
    stem, ending = f".{path.stem[:STEM_LENGTH]}.", f".partial{path.suffix if suffix is None else suffix}"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=stem, suffix=ending)
    while not (_locks(handle) and lexists(Path(name))):  # another process swept it before it was locked
        os.close(handle)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=stem, suffix=ending)
    temporary = Path(name)
    _unfinished.add(temporary)
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink()
        _unfinished.discard(temporary)
        os.close(handle)


@contextmanager
def scratch_space() -> Iterator[Path]:
    """Yields an empty folder for files that are no output, and removes it after the block.

    Raises:
        SegdreamError: it can't be created.
    """
    try:
        space = tempfile.TemporaryDirectory(prefix="segdream-", ignore_cleanup_errors=True)
    except OSError as problem:
        raise SegdreamError(
            f"no temporary folder can be created: {problem.strerror or problem}",
            hint=relocation("TMPDIR", _temporary_folder(), problem),
        ) from problem
    with space as folder:
        yield Path(folder)


def is_writing() -> bool:
    """Whether a block of `atomic_write` is open: a process killed now would leave its temporary file behind."""
    return bool(_unfinished)


def sweep(folder: Path, stem: str | None = None) -> None:
    """Removes the temporary files that killed processes left in a folder.

    Args:
        folder: the folder.
        stem: only remove temporaries of files with this stem.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            match = TEMPORARY.fullmatch(path.name)
            if match and (stem is None or match["stem"] == stem[:STEM_LENGTH]):
                _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    """Removes a file that no process holds."""
    with suppress(OSError):
        if path.is_symlink() or not path.is_file():
            return
        handle = os.open(path, os.O_RDWR)
        try:
            if lock(handle):
                path.unlink()
        finally:
            os.close(handle)


def lock(handle: int) -> bool:
    """Locks an open file for this process; returns whether no other holds it. The kernel unlocks what a process leaves.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        import fcntl
    except ImportError as problem:  # Windows
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from problem
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _locks(handle: int) -> bool:
    """Locks a file where that is possible; returns whether no other process holds it."""
    try:
        return lock(handle)
    except OSError:
        return True


@contextmanager
def synced_folder(folder: Path) -> Iterator[None]:
    """Writes the entries of a folder to disk after the block, so that a rename in it outlasts a power failure."""
    try:
        handle = os.open(folder, os.O_RDONLY)  # before the block: afterwards it would be too late to fail
    except PermissionError:  # it may be written but not read; Windows opens no folders
        yield
        return
    try:
        yield
        try:
            os.fsync(handle)
        except OSError as problem:
            if problem.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # this file system can't
                raise
    finally:
        os.close(handle)


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
