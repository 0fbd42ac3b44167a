"""Commands in forked processes, whose file-system calls are counted, fail or kill them.

Python's functions are wrapped, so calls that a library makes by itself (ffmpeg, safetensors) are neither counted nor
stopped. Only calls below the working directory count.
"""

import builtins
import ctypes
import errno
import io
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("open", "rename", "replace", "link", "symlink", "unlink", "mkdir", "rmdir", "chmod", "listdir", "scandir")
NAMES += ("fsync",)
"""Functions of `os` that are wrapped; `open` of Python and the writes of its files are too."""
KILL = "kill"
LIMIT_S = 300.0
"""Seconds after which a process counts as hung; it may share the machine."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens in a process.

    Args:
        action: `KILL`, or the name of an error number such as "EIO".
        call: number of the call before which it happens, from 1; 0 for none.
        match: regular expression; only calls count in whose description, such as "open bus.ply", it is found.
    """

    action: str = KILL
    call: int = 0
    match: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """An ended process: its exit code (negative for a signal), its output, and the counted calls in order.

    `hung` says that it, or a process that it left, had to be killed at the end of its time.
    """

    code: int
    out: str
    err: str
    calls: Sequence[str]
    hung: bool = False


class _Counter:
    """Counts calls, writes them to a file, and carries out a fault."""

    def __init__(self, log: int, fault: Fault, folder: Path) -> None:
        self._log, self._fault, self._folder = log, fault, str(folder)
        self._number = 0

    def is_inside(self, path: Any) -> bool:
        """Whether a path or an open file counts."""
        if isinstance(path, int):
            return True
        return os.path.abspath(os.fsdecode(path)).startswith(self._folder)  # noqa: PTH100 - pathlib calls os

    def count(self, name: str, path: Any) -> None:
        """Counts a call; raises OSError or ends the process if its turn has come."""
        if isinstance(path, int) and os.path.exists(f"/proc/self/fd/{path}"):  # noqa: PTH110
            path = os.readlink(f"/proc/self/fd/{path}")  # noqa: PTH115
        description = f"{name} {path}"
        if not re.search(self._fault.match, description):
            return
        self._number += 1
        os.write(self._log, description.encode() + b"\n")
        if self._number != self._fault.call:
            return
        if self._fault.action == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, self._fault.action)
        raise OSError(code, os.strerror(code))


def _install(counter: _Counter) -> None:
    """Wraps the functions of this process, for good."""

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            written = arguments[0] if name == "symlink" else path
            if options.get("dir_fd") is None and counter.is_inside(written):
                counter.count(name, written)
            return real(path, *arguments, **options)

        return call

    class File(io.FileIO):
        def write(self, data: Any) -> int:
            counter.count("write", self.name)
            return super().write(data)

    real_open = io.open

    def open_file(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if isinstance(file, int) or not counter.is_inside(file):
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        counter.count("open", file)
        if not set(mode) & set("wax+"):
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = File(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)

    for name in NAMES:
        setattr(os, name, wrap(name, getattr(os, name)))
    io.open = builtins.open = open_file  # type: ignore[assignment]


def run_forked(
    command: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    folder: Path,
    fault: Fault | None = None,
    kill_after_s: float | None = None,
    limit_s: float = LIMIT_S,
) -> Ended:
    """Runs a command line in a forked process.

    Args:
        command: the function to call in the process.
        arguments: its arguments.
        folder: working directory of the process.
        fault: what happens in it; None also leaves the calls uncounted.
        kill_after_s: kill the process after so many seconds.
        limit_s: seconds after which it counts as hung, and is killed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as log:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            code = 99
            try:
                os.setpgid(0, 0)  # so that the processes that it leaves are known
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = (open(fd, "w", encoding="utf-8", closefd=False) for fd in (1, 2))  # noqa: SIM115
                os.chdir(folder)
                if fault is not None:
                    _install(_Counter(log.fileno(), fault, folder))
                code = command(arguments)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(child, signal.SIGKILL)  # not yet waited for, so the number is still its own
        status, hung = _await_all(child, limit_s)
        texts = []
        for stream in (out, err, log):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
    return Ended(os.waitstatus_to_exitcode(status), texts[0], texts[1], texts[2].splitlines(), hung)


def adopt_orphans() -> None:
    """Makes this process the parent of those whose parent ends, so that `run_forked` waits for them too."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def _await_all(child: int, limit_s: float) -> tuple[int, bool]:
    """Waits for a process, and for those of its group that are or become children of this one.

    Returns:
        the status of the process, and whether one of them had to be killed.
    """
    end, hung, status = time.monotonic() + limit_s, False, None
    while True:
        try:
            pid, ended = os.waitpid(-child if status is not None else child, os.WNOHANG)
        except ChildProcessError:
            return status or 0, hung
        if pid == child:
            status = ended
        elif not pid:
            if time.monotonic() > end:
                hung = True
                with suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
            time.sleep(0.002)


def contents(folder: Path) -> Mapping[str, bytes]:
    """Relative name -> content of each file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
