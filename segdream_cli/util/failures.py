"""Exceptions that no code foresaw, as errors with one sentence."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segdream_cli.errors import Interrupted, OutOfMemory, SegdreamError
from segdream_cli.util.files import known_problem

NO_MEMORY = ("DefaultCPUAllocator", "bad_alloc", "can't start new thread", "Cannot allocate memory")
"""Parts of the messages of libraries that report a failed allocation as a RuntimeError."""


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
        return OutOfMemory("this machine does not have enough memory", hint="--set densify.cap=5000")
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
    """Whether an exception of Python, numpy, torch or the operating system means a failed allocation."""
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        return True
    if isinstance(problem, OSError):
        return problem.errno == errno.ENOMEM
    return isinstance(problem, RuntimeError) and any(part in str(problem) for part in NO_MEMORY)
