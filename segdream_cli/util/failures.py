"""Exceptions that no code foresaw, as errors with one sentence."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segdream_cli.errors import Interrupted, OutOfMemory, SegdreamError
from segdream_cli.util.files import known_problem

NO_MEMORY = (
    "DefaultCPUAllocator",
    "bad_alloc",
    "can't start new thread",
    "Cannot allocate memory",
    "cannot allocate memory",
    "failed to map segment",
)
"""Parts of the messages of libraries that report a failed allocation as another error."""
UNLIMITED = "ulimit -v unlimited"
GIB = 2**30


def address_space_limit() -> int | None:
    """Bytes of address space that this process may have (`ulimit -v`); None without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def check_address_space(needed_gib: float) -> None:
    """Refuses a limit that is too low for libraries that abort or hang, instead of raising, once they reach it.

    Raises:
        OutOfMemory: this process may have less than `needed_gib`.
    """
    limit = address_space_limit()
    if limit is not None and limit < needed_gib * GIB:
        raise OutOfMemory(
            f"this process may use {limit / GIB:.1f} GiB of address space, and needs {needed_gib:g} GiB", hint=UNLIMITED
        )


@contextmanager
def convert_failures() -> Iterator[None]:
    """Turns each exception of the block into a `SegdreamError`; a request to stop stays as it is."""
    try:
        yield
    except (SegdreamError, Interrupted):
        raise
    except Exception as problem:
        raise as_failure(problem) from problem


def as_failure(problem: Exception) -> SegdreamError:
    """The error with the sentence for any exception."""
    if isinstance(problem, SegdreamError):
        return problem
    if lacks_memory(problem):
        hint = "--set densify.cap=5000" if address_space_limit() is None else UNLIMITED
        return OutOfMemory("this machine does not have enough memory", hint=hint)
    if isinstance(problem, OSError) and problem.strerror:
        path = problem.filename
        if path is not None and (known := known_problem(problem, Path(str(path)), "used")):
            return known
        return SegdreamError(f"{problem.strerror}: {path}" if path is not None else problem.strerror)
    text = next(iter(str(problem).strip().splitlines()), "")
    return SegdreamError(
        f"unexpected {type(problem).__name__}{': ' if text else ''}{text}",
        hint="export SEGDREAM_DEBUG=1  # then run the command again, which shows where it happened",
    )


def lacks_memory(problem: BaseException) -> bool:
    """Whether an exception, or one that led to it, of Python, a library or the system means a failed allocation."""
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        return True
    if isinstance(problem, OSError) and problem.errno == errno.ENOMEM:
        return True
    if isinstance(problem, (RuntimeError, ImportError, OSError)) and any(part in str(problem) for part in NO_MEMORY):
        return True
    before = problem.__cause__ or problem.__context__
    return before is not None and lacks_memory(before)
