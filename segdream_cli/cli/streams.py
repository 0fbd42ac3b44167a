"""Standard streams that outlast their readers."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)
"""Errors of a pipe without reader, and of a terminal that was closed."""


class LastingStream:
    """A text stream that ignores what is written once its reader is gone, so that a run continues without output.

    Args:
        stream: the stream, whose other attributes this one has too; None if the process began without it.

    Attributes:
        failure: the error that ended it, unless its reader left: a full disk for example.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = io.StringIO() if stream is None else stream
        self._ended = stream is None
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text."""
        try:
            return 0 if self._ended else int(self._stream.write(text))
        except OSError as problem:
            self._end(problem)
            return 0

    def flush(self) -> None:
        """Writes what is buffered."""
        try:
            if not self._ended:
                self._stream.flush()
        except OSError as problem:
            self._end(problem)

    def _end(self, problem: OSError) -> None:
        self._ended = True
        if problem.errno not in GONE:
            self.failure = problem
        with suppress(OSError, ValueError):  # the interpreter flushes what is left at its end, and must not fail
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def lasting_streams() -> Iterator[LastingStream]:
    """Makes stdout and stderr lasting while the block runs; yields stdout."""
    before = sys.stdout, sys.stderr
    out, err = map(LastingStream, before)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before
