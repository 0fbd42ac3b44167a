"""Tasks on a machine that may not see the folder of the assets: files are made in a scratch folder and carried.

A worker that sees the folder works in it. Any other one makes its files in a scratch folder, and a porter carries them:
a checkpoint now and then, everything when a run is saved or done. An earlier checkpoint is carried to it first.
"""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from segdream_cli.errors import SegdreamError
from segdream_cli.runs.crew import Ended, Message, Task
from segdream_cli.runs.jobs import FileJob, Job
from segdream_cli.runs.ownership import OWN_NAMES, RECORD
from segdream_cli.runs.reporter import AssetFinished, CheckpointSaved, JobFailed, JobFinished, Note, RunSaved
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.runs.worker import FileWorker, Worker
from segdream_cli.util.failures import as_failure
from segdream_cli.util.files import atomic_write, scratch_file, write_policy, write_problem

PIECE = 4 * 2**20
"""Bytes of a file that travel in one message."""
SHIP_S = 60.0
"""Seconds between two checkpoints of an asset that travel."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """A piece of a file of a job, from a machine without the folder of the assets.

    Args:
        output: the job's file, which names its run folder too.
        name: path relative to the folder of `output`.
        offset: position of the piece.
        size: bytes of the whole file.
        data: the piece.
    """

    output: Path
    name: str
    offset: int
    size: int
    data: bytes


def pieces(output: Path, folder: Path, path: Path) -> Iterator[FilePart]:
    """The pieces of a file below `folder`, in their order; an empty file is one piece."""
    size, offset = path.stat().st_size, 0
    with path.open("rb") as stream:
        while data := stream.read(PIECE):
            yield FilePart(output, path.relative_to(folder).as_posix(), offset, size, data)
            offset += len(data)
    if not size:
        yield FilePart(output, path.relative_to(folder).as_posix(), 0, 0, b"")


class Porter(Protocol):
    """Carries files between scratch folders and the folder of the assets."""

    def fetch(self, job: Job, folder: Path) -> None:
        """Puts the run folder of an earlier attempt into `folder`, if there is one."""

    def deliver(self, job: Job, folder: Path, *, finished: bool) -> None:
        """Carries the run folder in `folder`, and the asset's files if it is `finished`.

        Raises:
            SegdreamError: a file can't be written where it belongs.
        """


class Carrier:
    """Does tasks in the folder of the assets, or in a scratch folder of this machine, and sends the messages.

    Args:
        send: receives the messages, with the paths of the tasks.
        porter: carries the files; None works in the folder itself.
        ship_s: seconds between two checkpoints that travel.
    """

    def __init__(
        self, send: Callable[[Message], None], porter: Porter | None, ship_s: Callable[[], float] = lambda: SHIP_S
    ) -> None:
        self._send, self._porter, self._ship_s = send, porter, ship_s
        self._jobs: dict[Path, tuple[Job, Job]] = {}
        """Run folder -> the job as it works on it, and as the dispatcher knows it."""
        self._shipped: dict[Path, float] = {}

    def do(self, worker: Worker | FileWorker, task: Task, roots: Mapping[Path, Path]) -> None:
        """Does a task with a worker whose messages go to `hear`.

        Args:
            worker: does it.
            task: the jobs.
            roots: folder of assets -> its absolute path; not used with a porter.
        """
        scratch = None
        try:
            if self._porter is None:
                here = [job.in_place(roots) for job in task.jobs]
                local = dataclasses.replace(task, jobs=tuple(here))
            else:
                scratch = Path(tempfile.mkdtemp(prefix="segdream-"))
                here = [job.in_scratch(scratch / str(index)) for index, job in enumerate(task.jobs)]
                local = Task(task.number, tuple(here), force=False, resume=True)
            self._jobs = {
                RunDir.beside(ours.output).path: (ours, job) for ours, job in zip(here, task.jobs, strict=True)
            }
            self._shipped = dict.fromkeys(self._jobs, time.monotonic())
            if self._porter is not None:
                for ours, job in self._jobs.values():
                    ours.output.parent.mkdir()
                    if task.resume or isinstance(job, FileJob):
                        self._porter.fetch(job, ours.output.parent)
        except Exception as problem:  # of this machine: the dispatcher tries another one
            self._send(Ended(task.number, as_failure(problem)))
        else:
            worker.do(local)
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    def hear(self, message: Message) -> None:
        """Passes a message on with the dispatcher's paths, behind the files that it speaks of."""
        match message:
            case CheckpointSaved():
                if time.monotonic() - self._shipped.get(message.run, 0.0) >= self._ship_s():
                    with suppress(SegdreamError):  # the next checkpoint may pass; the last files must
                        self._deliver(message.run, finished=False)
                        self._send(CheckpointSaved(self._there(message.run)))
            case RunSaved():
                with suppress(SegdreamError):
                    self._deliver(message.run, finished=False)
                saved = self._there(message.run)
                resume = None if message.resume is None else RunDir(saved).resume_command()
                self._send(dataclasses.replace(message, run=saved, resume=resume))
            case AssetFinished() | JobFinished():
                written = self._there(message.output)
                try:
                    self._deliver(RunDir.beside(message.output).path, finished=True)
                except SegdreamError as problem:
                    self._send(JobFailed(problem, written))
                    return
                if isinstance(message, AssetFinished):
                    message = dataclasses.replace(message, run=message.run and self._there(message.run))
                self._send(dataclasses.replace(message, output=written))
            case JobFailed():
                output = None if message.output is None else self._there(message.output)
                self._send(JobFailed(self._with_their_paths(message.problem), output))
            case Note():
                self._send(Note(self._translate(message.text)))
            case Ended(outcome=SegdreamError() as problem):
                self._send(Ended(message.task, self._with_their_paths(problem)))
            case _:
                self._send(message)

    def _deliver(self, run: Path, *, finished: bool) -> None:
        """Carries the files of a job; raises as `Porter.deliver`."""
        if self._porter is None or run not in self._jobs:
            return
        ours, job = self._jobs[run]
        try:
            self._porter.deliver(job, ours.output.parent, finished=finished)
        except Exception as problem:
            raise as_failure(problem) from problem
        self._shipped[run] = time.monotonic()

    def _there(self, path: Path) -> Path:
        """The dispatcher's path of a file or folder of a job."""
        for ours, job in self._jobs.values():
            if path.parent == ours.output.parent:
                return job.output.parent / path.name
        return path

    def _with_their_paths(self, problem: SegdreamError) -> SegdreamError:
        """An error whose text has the dispatcher's paths."""
        problem.message = self._translate(problem.message)
        problem.hint = problem.hint and self._translate(problem.hint)
        return problem

    def _translate(self, text: str) -> str:
        """A text with the dispatcher's paths."""
        for ours, job in self._jobs.values():
            there = "" if str(job.output.parent) == "." else f"{job.output.parent}/"
            text = text.replace(f"{ours.output.parent}/", there)
        return text


class PartPorter:
    """Sends files as pieces through the messages of a worker; earlier ones come with the task.

    Args:
        send: receives the pieces.
    """

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send
        self.earlier: Mapping[Path, Mapping[str, bytes]] = {}
        """Output of a job -> the files of its earlier run."""

    def fetch(self, job: Job, folder: Path) -> None:
        """See `Porter`."""
        for name, content in self.earlier.get(job.output, {}).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)

    def deliver(self, job: Job, folder: Path, *, finished: bool) -> None:
        """See `Porter`."""
        for path in files_of(job, folder, finished=finished):
            for part in pieces(job.output, folder, path):
                self._send(part)


def files_of(job: Job, folder: Path, *, finished: bool) -> list[Path]:
    """The files of a job to carry: those of the run, its record first, then the asset's."""
    run = RunDir.beside(folder / job.output.name).path
    own = sorted(_own(run) if run.exists() else (), key=lambda path: (path.name != RECORD, path.name))
    made = [*folder.iterdir(), *(folder / job.output.name).glob("*")] if finished else []  # a folder of frames too
    assets = [path for path in made if path.is_file() and not path.name.startswith(".")]
    return own + sorted(assets, key=lambda path: (path.name == job.output.name, path.name))


def _own(run: Path) -> list[Path]:
    """The complete files of a run folder."""
    return [path for path in run.iterdir() if OWN_NAMES.fullmatch(path.name) and not path.name.startswith(".")]


class _Dropped(Exception):
    """Ends a file of which pieces are missing."""


@dataclass(slots=True)
class _Arriving:
    """A file of which some pieces have come."""

    stack: ExitStack
    temporary: Path


class Receiver:
    """Puts together the files that come in pieces, in the folder of the assets.

    Args:
        force: replace assets and runs that exist.
    """

    def __init__(self, *, force: bool) -> None:
        self._force = force
        self._arriving: dict[tuple[str, Path, str], _Arriving] = {}
        self._runs: dict[Path, RunDir] = {}
        self._written = set[Path]()

    def earlier(self, job: Job) -> dict[str, Path]:
        """Name -> file of the run of an earlier attempt at a job, for a worker that resumes it; locks the run.

        Raises:
            OutputExists: another process works on it.
        """
        run = self._runs.get(job.output) or RunDir.beside(job.output)
        if not run.can_resume():
            return {}
        if job.output not in self._runs:
            run.acquire()
            self._runs[job.output] = run
        return {f"{run.path.name}/{path.name}": path for path in _own(run.path)}

    def take(self, worker: str, part: FilePart) -> None:
        """Adds a piece to its file, which appears with its last piece.

        Raises:
            SegdreamError: the file can't be written, or is none of a job.
        """
        folder, _, name = part.name.rpartition("/")
        path = part.output.parent / part.name
        in_run = folder == RunDir.beside(part.output).path.name and OWN_NAMES.fullmatch(name)
        if folder and not in_run and (folder != part.output.name or not name.strip(".")):
            raise SegdreamError(f"{worker} sent {part.name!r}, which is no file of a run")
        if in_run and name == RECORD:
            if part.output not in self._runs:
                run = RunDir.beside(part.output)
                run.adopt(part.data, force=self._force)
                self._runs[part.output] = run
            return
        key = worker, part.output, part.name
        if part.offset == 0:
            self._drop(key)
            stack = ExitStack()
            if folder and not in_run:
                path.parent.mkdir(exist_ok=True)
            self._arriving[key] = _Arriving(stack, stack.enter_context(scratch_file(path)))
        arriving = self._arriving.get(key)
        if arriving is None:
            return
        try:
            with arriving.temporary.open("ab") as stream:
                stream.write(part.data)
        except OSError as problem:
            self._drop(key)
            raise write_problem(problem, path) from problem
        if part.offset + len(part.data) == part.size:
            replaces = self._force or bool(folder) or path in self._written  # by an attempt that was lost
            self._written.add(path)
            with self._arriving.pop(key).stack, write_policy(replace=replaces), atomic_write(path) as temporary:
                arriving.temporary.replace(temporary)

    def _drop(self, key: tuple[str, Path, str]) -> None:
        """Removes a file of which pieces are missing."""
        if arriving := self._arriving.pop(key, None):
            with suppress(_Dropped), arriving.stack:
                raise _Dropped

    def lose(self, worker: str) -> None:
        """Removes the unfinished files of a worker that was lost."""
        for key in [key for key in self._arriving if key[0] == worker]:
            self._drop(key)

    def finish(self, output: Path, *, keep: bool) -> None:
        """Marks the run of an asset that has arrived as done; removes it unless `keep`."""
        if run := self._runs.pop(output, None):
            run.finish(keep=keep)

    def release(self, output: Path) -> None:
        """Lets a worker that sees the folder work on a run."""
        if run := self._runs.pop(output, None):
            run.release()

    def close(self) -> None:
        """Removes all unfinished files, and releases all runs."""
        for key in list(self._arriving):
            self._drop(key)
        for output in list(self._runs):
            self.release(output)
