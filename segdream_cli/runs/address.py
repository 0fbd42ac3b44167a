"""`--out-dir s3://bucket/folder`: assets in an object store. This is the only file that knows fsspec.

Assets are made in a staging folder of the cache, and each file goes to the store when it is whole: checkpoints now and
then, so that another machine can resume the list, an asset at its end. Then the staging folder forgets it.
"""

import dataclasses
import hashlib
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segdream_cli.errors import EnvironmentProblem, SegdreamError, UsageProblem
from segdream_cli.runs.jobs import Job
from segdream_cli.runs.ownership import CHECKPOINT, OWN_NAMES
from segdream_cli.runs.reporter import (
    AssetFinished,
    CheckpointSaved,
    Event,
    JobFailed,
    JobSkipped,
    ListEnded,
    Note,
    Reporter,
    RunSaved,
)
from segdream_cli.util.download import cache_folder

SHIP_S = 60.0
"""Seconds between two checkpoints of an asset that go to the store."""
EXTRA = 'pip install "segdream[cluster]"'


def is_address(text: str) -> bool:
    """Whether an `--out-dir` is the address of an object store."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text) is not None


class AddressPath(type(Path())):  # type: ignore[misc]
    """A file of a store: a path that is printed with both slashes of `s3://`."""

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)  # type: ignore[no-any-return]


class Store:
    """A folder in an object store, and its staging folder.

    Args:
        address: such as s3://bucket/folder.

    Raises:
        UsageProblem: no library knows the address, or it can't be listed.
        EnvironmentProblem: the library of the address is not installed.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.staging = cache_folder() / "staging" / hashlib.sha256(self.address.encode()).hexdigest()[:16]
        self._system, self._root = _connect(self.address)
        with self._errors("read"):
            self._system.invalidate_cache()
            self._names = {path.removeprefix(f"{self._root}/") for path in self._system.find(self._root)}

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        """Turns the errors of the store's library into one sentence."""
        try:
            yield
        except (SegdreamError, KeyboardInterrupt):
            raise
        except Exception as problem:
            text = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
            raise SegdreamError(f"{self.address} can't be {verb}: {text}") from problem

    def prepare(self, jobs: Sequence[Job], *, force: bool) -> tuple[list[Job], list[Job]]:
        """Gets the runs of jobs that were stopped, and puts assets into the store that an earlier command could not.

        Returns:
            the jobs to make, and those whose assets exist.
        """
        left, done = [], []
        for job in jobs:
            if job.output.is_file() and not force:
                self.put(job.output)
            if job.output.name in self._names and not force:
                done.append(job)
                continue
            left.append(job)
            run = job.output.with_suffix(".run")
            names = [name for name in self._names if name.startswith(f"{run.name}/")]
            if f"{run.name}/{CHECKPOINT}" in names and not run.exists() and not force:
                run.mkdir(parents=True)
                with self._errors("read"):
                    for name in names:
                        if OWN_NAMES.fullmatch(name.rpartition("/")[2]):
                            self._system.get_file(f"{self._root}/{name}", str(self.staging / name))
        return left, done

    def put(self, output: Path) -> None:
        """Puts an asset and its run into the store, and removes them from the staging folder."""
        self.put_run(output.with_suffix(".run"))
        others = [path for path in self.staging.glob(f"{output.stem}.*") if path.is_file() and path != output]
        for path in [*others, output]:  # the asset last: it says that all is there
            self._put(path)
        checkpoint = f"{output.stem}.run/{CHECKPOINT}"
        if checkpoint in self._names:
            with self._errors("written"):
                self._system.rm_file(f"{self._root}/{checkpoint}")
        for path in [*others, output]:
            path.unlink()
        shutil.rmtree(output.with_suffix(".run"), ignore_errors=True)

    def put_run(self, run: Path) -> None:
        """Puts the files of a run into the store, the checkpoint last."""
        found = [path for path in run.glob("*") if OWN_NAMES.fullmatch(path.name) and not path.name.startswith(".")]
        for path in sorted(found, key=lambda path: path.name == CHECKPOINT):
            self._put(path)

    def _put(self, path: Path) -> None:
        name = path.relative_to(self.staging).as_posix()
        with self._errors("written"):
            self._system.put_file(str(path), f"{self._root}/{name}")
        self._names.add(name)

    def at(self, path: Path) -> Path:
        """The address of a file in the staging folder."""
        return AddressPath(f"{self.address}/{path.relative_to(self.staging).as_posix()}")

    def reporter(self, reporter: Reporter) -> Reporter:
        """A reporter that puts files into the store, and passes events on with their addresses."""
        put_at: dict[Path, float] = {}

        def report(event: Event) -> None:
            match event:
                case CheckpointSaved():
                    if time.monotonic() - put_at.setdefault(event.run, time.monotonic()) >= SHIP_S:
                        put_at[event.run] = time.monotonic()
                        self.put_run(event.run)
                case RunSaved():
                    self.put_run(event.run)
                    text = f"{self.at(event.run)} was saved after step {event.step} of {event.steps}"
                    reporter(Note(f"{text}; repeat the command to resume it"))
                case AssetFinished():
                    self.put(event.output)
                    run = None if event.run is None else self.at(event.run)
                    reporter(dataclasses.replace(event, output=self.at(event.output), run=run))
                case JobSkipped():
                    reporter(dataclasses.replace(event, output=self.at(event.output)))
                case JobFailed():
                    problem = event.problem
                    problem.message = problem.message.replace(str(self.staging), self.address)
                    reporter(JobFailed(problem, event.output and self.at(event.output)))
                case ListEnded():
                    reporter(dataclasses.replace(event, given_up=tuple(map(self.at, event.given_up))))
                case Note():
                    reporter(Note(event.text.replace(str(self.staging), self.address)))
                case _:
                    reporter(event)

        return report


def _connect(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    try:
        import fsspec
    except ImportError as problem:
        raise EnvironmentProblem(f"{address} needs the package fsspec, which is missing", hint=EXTRA) from problem
    protocol = address.partition("://")[0]
    if protocol in ("file", "local"):
        raise UsageProblem(f"{address} is a folder of this machine", hint=f"--out-dir {address.partition('://')[2]}")
    try:
        system, root = fsspec.core.url_to_fs(address)
    except ImportError as problem:
        hint = EXTRA if protocol == "s3" else f"pip install {'gcsfs' if protocol in ('gs', 'gcs') else protocol}"
        raise EnvironmentProblem(f"{address} needs a package that is missing: {problem}", hint=hint) from problem
    except ValueError as problem:
        raise UsageProblem(f"there is no kind of address {protocol}://", hint="--out-dir assets") from problem
    return system, root.rstrip("/")
