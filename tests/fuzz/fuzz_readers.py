"""Reads damaged files of every format: each must be read, or refused as `UsageProblem`, in little time and memory.

    PYTHONPATH=. python tests/fuzz/fuzz_readers.py [--formats ply spz ...] [--count 100000] [--first 0] [--record]

File number n of a format is made from files that local libraries write: it is the same on every machine that has the
same versions of them. A file that ends the process, exceeds the time limit or raises anything else is printed by its
number and kept in --keep; the next process continues after it. The reader opens each OpenUSD file in a process of its
own. Here a process forked from one that has loaded Pixar's library reads up to 200 files, and a fresh one reads a file
that ended it.
"""

import argparse
import faulthandler
import mmap
import multiprocessing
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from mutations import READABLE, mutate, reading_of, seeds, suffix_of

from segdream_cli import formats
from segdream_cli.errors import UsageProblem
from segdream_cli.formats import usd

LIMIT_S = 60
"""A file that takes longer counts as a hang."""
USD_SECONDS = 3
"""Processor time for Pixar's library, which the reader gives thirty."""
FILES_PER_FORK = 200
"""Files that Pixar's library reads in one process."""
SHARED = struct.Struct("<qqqqdq")
"""Index of the current file; files read, refused, refused by a library's crash; longest seconds; growth in KiB."""


@dataclass
class Tally:
    """Results of the files so far."""

    at: int = 0
    read: int = 0
    refused: int = 0
    library: int = 0
    slowest_s: float = 0.0
    growth_kib: int = 0
    failures: list[int] = field(default_factory=list)


class Forks:
    """Stands in for `usd._apart`: processes that are forked from this one read many files each, one after another.

    A file that ends a process is read again in a fresh one, since limits count for all files of a process and a file
    may suffer from those before it.
    """

    def __init__(self) -> None:
        self.left = 0
        self.process: BaseProcess | None = None
        self.connection: Connection | None = None

    def __call__(self, path: Path, target: Path, memory: int, seconds: int) -> str:
        """The problem of a file, or an empty text."""
        del memory, seconds  # a process can't raise its limits for a larger file
        fresh = not self.left
        said = self._ask(path, target)
        if said is None and not fresh:
            said = self._ask(path, target)
        return usd.UNREADABLE if said is None else said

    def _ask(self, path: Path, target: Path) -> str | None:
        """The problem of a file, or an empty text; None if the file ended the process."""
        if not self.left:
            self._start()
        assert self.connection is not None
        self.left -= 1
        try:
            self.connection.send((path, target))
            said, error = self.connection.recv()
        except (EOFError, OSError):
            self.left = 0
            return None
        if error:
            raise RuntimeError(error)
        return str(said)

    def _start(self) -> None:
        """Starts a process in place of the former one."""
        self.close()
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.connection), daemon=True)
        self.process.start()
        theirs.close()
        self.left = FILES_PER_FORK

    def close(self) -> None:
        """Ends the process."""
        if self.connection and self.process:
            self.connection.close()
            self.process.join()


def _serve(connection: Connection, parents: Connection) -> None:
    """Reads the files that a connection names until it closes."""
    parents.close()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the library's own messages
    while True:
        try:
            path, target = connection.recv()
        except EOFError:
            return
        signal.alarm(usd.PATIENCE * USD_SECONDS)  # ends a deadlock, which takes no processor time
        said, error = "", ""
        try:
            said = usd._read_here(path, target, usd.MEMORY, USD_SECONDS)
        except Exception:
            error = traceback.format_exc()
        connection.send((said, error))


def work(name: str, first: int, end: int, folder: Path, shared: mmap.mmap) -> None:
    """Reads files `first` to `end` and counts the results in shared memory."""
    warnings.simplefilter("error")  # a reader must not leak warnings of its libraries
    sources, reading, tally = seeds(name), reading_of(name), Tally()
    tally.at, tally.read, tally.refused, tally.library, tally.slowest_s, tally.growth_kib = SHARED.unpack(shared[:])
    usd._apart = Forks()
    tempfile.tempdir = str(folder)
    path = folder / f"fuzzed{suffix_of(name)}"
    path.write_bytes(sources[-1])
    with suppress(UsageProblem):  # Pixar's library may deadlock on any file and is then ended
        formats.read(path, reading)  # memory that is loaded once does not count
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(first, end):
        tally.at = number
        shared[:] = SHARED.pack(*_numbers(tally))
        path.write_bytes(mutate(name, random.Random(f"{name}-{number}"), sources))
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        start = time.perf_counter()
        try:
            formats.read(path, reading)
            tally.read += 1
        except UsageProblem as problem:
            tally.refused += 1
            tally.library += problem.message.endswith(usd.UNREADABLE)
        tally.slowest_s = max(tally.slowest_s, time.perf_counter() - start)
        faulthandler.cancel_dump_traceback_later()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        tally.growth_kib = max(tally.growth_kib, grown)
    tally.at = end
    shared[:] = SHARED.pack(*_numbers(tally))


def _numbers(tally: Tally) -> tuple[int, int, int, int, float, int]:
    return tally.at, tally.read, tally.refused, tally.library, tally.slowest_s, tally.growth_kib


def fuzz(name: str, first: int, count: int, keep: Path) -> Tally:
    """Reads `count` files of a format, by as many processes as it takes."""
    shared = mmap.mmap(-1, SHARED.size)
    failures: list[int] = []
    end = first + count
    while first < end:
        with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            child = os.fork()
            if not child:
                code = 1
                try:
                    work(name, first, end, Path(folder), shared)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            if status:
                at = SHARED.unpack(shared[:])[0]
                failures.append(at)
                kept = keep / f"{name}-{at}{suffix_of(name)}"
                kept.write_bytes(mutate(name, random.Random(f"{name}-{at}"), seeds(name)))
                print(f"{name} file {at}: status {status}, kept as {kept}", file=sys.stderr, flush=True)
                first = at + 1
            else:
                first = end
    return Tally(*SHARED.unpack(shared[:]), failures=failures)


def main() -> None:
    """Prints one row per format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", choices=READABLE, nargs="*", default=READABLE)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path.cwd(), help="folder for files that fail")
    parser.add_argument("--record", action="store_true", help="into results.json")
    options = parser.parse_args()
    print("format              files     read  refused  library  failed  slowest ms  growth MiB  seconds")
    for name in options.formats:
        start = time.perf_counter()
        tally = fuzz(name, options.first, options.count, options.keep)
        figures = {
            "files": (tally.read + tally.refused + len(tally.failures), "1"),
            "failures": (len(tally.failures), "1"),
            "slowest_ms": (1000 * tally.slowest_s, "ms"),
            "growth_mib": (tally.growth_kib / 1024, "MiB"),
        }
        row = f"{name:16} {figures['files'][0]:8,} {tally.read:8,} {tally.refused:8,} {tally.library:8,}"
        row += f" {len(tally.failures):7,} {figures['slowest_ms'][0]:11.1f} {figures['growth_mib'][0]:11.1f}"
        print(f"{row} {time.perf_counter() - start:8.0f}", flush=True)
        if options.record:
            from benchmarks.record import record

            for metric, (value, unit) in figures.items():
                record(f"fuzz_{name}_{metric}", value, unit, "cpu")


if __name__ == "__main__":
    main()
