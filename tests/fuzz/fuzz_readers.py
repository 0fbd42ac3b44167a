"""Reads damaged files of every format: each must be read, or refused as `UsageProblem`, in little time and memory.

    PYTHONPATH=. python tests/fuzz/fuzz_readers.py [--formats ply spz ...] [--count 100000] [--first 0] [--record]

File number n of a format is made from files that local libraries write: it is the same on every machine that has the
same versions of them. A file that ends the process, exceeds the time limit or raises anything else is printed by its
number and kept in --keep; the next process continues after it. Each file of .usdz is read in a process of its own, as
the reader always does; here that process is forked from one that has loaded Pixar's library.
"""

import argparse
import faulthandler
import mmap
import os
import random
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
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


def read_in_fork(path: Path, target: Path, memory: int, seconds: int) -> str:
    """Replaces `usd._apart`: the same in a child of this process."""
    del seconds
    child = os.fork()
    if not child:
        code = 1
        signal.alarm(usd.PATIENCE * USD_SECONDS)  # ends a deadlock, which takes no processor time
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)  # the library's own messages
            said = usd._read_here(path, target, memory, USD_SECONDS)
            target.with_suffix(".txt").write_text(said)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    text = target.with_suffix(".txt")
    if status or not text.exists():
        return usd.UNREADABLE
    return text.read_text()


def work(name: str, first: int, end: int, folder: Path, shared: mmap.mmap) -> None:
    """Reads files `first` to `end` and counts the results in shared memory."""
    warnings.simplefilter("error")  # a reader must not leak warnings of its libraries
    sources, reading, tally = seeds(name), reading_of(name), Tally()
    tally.at, tally.read, tally.refused, tally.library, tally.slowest_s, tally.growth_kib = SHARED.unpack(shared[:])
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
    usd._apart = read_in_fork
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
