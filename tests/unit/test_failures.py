"""Any exception becomes an error with one sentence and the right exit code."""

import errno

import pytest
import torch

from segdream_cli.errors import Diverged, Interrupted, OutOfMemory, SegdreamError
from segdream_cli.util.failures import as_failure, convert_failures


def failing_allocation() -> Exception:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    return caught.value


def caused_by_memory() -> Exception:
    problem = OSError("the library literally cannot be found")
    problem.__context__ = OSError("libllvmlite.so: failed to map segment from shared object")
    return problem


@pytest.mark.parametrize(
    ("problem", "code", "sentence"),
    [
        (MemoryError(), 5, "does not have enough memory"),
        (failing_allocation(), 5, "does not have enough memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 5, "does not have enough memory"),
        (RuntimeError("can't start new thread"), 5, "does not have enough memory"),
        (ImportError("lib.so: failed to map segment from shared object"), 5, "does not have enough memory"),
        (caused_by_memory(), 5, "does not have enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b.ply"), 1, "the disk is full: a/b.ply"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b.ply"), 1, "Permission denied: a/b.ply"),
        (ZeroDivisionError("float division\nby zero"), 1, "unexpected ZeroDivisionError: float division"),
        (KeyError("step"), 1, "unexpected KeyError: 'step'"),
        (AssertionError(), 1, "unexpected AssertionError"),
    ],
)
def test_as_failure_names_each_kind(problem: Exception, code: int, sentence: str) -> None:
    found = as_failure(problem)
    assert found.exit_code == code
    assert found.message.startswith(sentence) or sentence in found.message
    assert "\n" not in found.message
    assert type(found) is OutOfMemory or code != 5


@pytest.mark.parametrize("problem", [Diverged("x", index=1), Interrupted("x"), KeyboardInterrupt()])
def test_convert_failures_leaves_known_errors(problem: BaseException) -> None:
    with pytest.raises(type(problem)) as caught, convert_failures():
        raise problem
    assert caught.value is problem


def test_convert_failures_keeps_the_cause() -> None:
    with pytest.raises(SegdreamError) as caught, convert_failures():
        [].pop()
    assert isinstance(caught.value.__cause__, IndexError)
