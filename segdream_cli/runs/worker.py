"""A worker: holds a prior, or does the work of other files; it does one task after another, and sends the outcomes."""

import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self

import torch

from segdream_cli.errors import Interrupted, SegdreamError
from segdream_cli.runs.crew import Ended, Message, Outcome, Ready, Task
from segdream_cli.runs.jobs import FileJob
from segdream_cli.runs.reporter import Event, JobFinished, Note, Stepped
from segdream_cli.runs.session import Session, page_for
from segdream_cli.runs.spec import JobSpec, Tally, Work
from segdream_cli.runs.stopping import StopRequest
from segdream_cli.util.devices import choose_device
from segdream_cli.util.failures import as_failure, convert_failures
from segdream_cli.viewer.live import LivePage

STEP_EVERY_S = 1.0
"""Seconds between two step reports; a dispatcher of many workers needs no more."""


class Worker(AbstractContextManager["Worker"]):
    """A session that does tasks.

    Args:
        spec: the settings; its jobs do not count.
        send: receives the messages.
        stop: asks it to save its runs and end the present task.
        step_every_s: seconds between two step reports.
    """

    def __init__(
        self,
        spec: JobSpec,
        send: Callable[[Message], None],
        stop: StopRequest,
        step_every_s: Callable[[], float] = lambda: STEP_EVERY_S,
    ) -> None:
        self._spec, self._send, self._stop, self._step_every_s = spec, send, stop, step_every_s
        self._page: AbstractContextManager[LivePage | None] = page_for(self._tell) if spec.live else nullcontext()
        self._told_at = 0.0

    def __enter__(self) -> Self:
        """Finds the prior, and sends `Ready`; raises as `Session.load`."""
        page = self._page.__enter__()
        try:
            self.session = Session.load(
                self._spec.request,
                self._spec.negative_prompt,
                self._spec.batch,
                reporter=self._tell,
                stop=self._stop,
                page=page,
            )
        except Exception as problem:
            self._page.__exit__(None, None, None)
            raise as_failure(problem) from problem
        self._send(Ready(self.session.batch, str(self.session.device)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._page.__exit__(kind, value, trace)

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self.session.device

    def do(self, task: Task) -> None:
        """Does a task, and sends `Ended`; no error leaves it."""
        outcome: Outcome
        try:
            outcome = self.session.generate_share(task.jobs, force=task.force, resume=task.resume)
        except (SegdreamError, Interrupted) as problem:
            outcome = _with_trace(problem)
        except Exception as problem:  # a bug ends the task, not the worker
            outcome = _with_trace(as_failure(problem))
        self._send(Ended(task.number, outcome))

    def _tell(self, event: Event) -> None:
        """Sends an event; of the step reports, only as many as a person can read."""
        if isinstance(event, Stepped) and event.step < event.steps:
            now = time.monotonic()
            if now - self._told_at < self._step_every_s():
                return
            self._told_at = now
        self._send(event)


class FileWorker(AbstractContextManager["FileWorker"]):
    """A device that does tasks of `FileJob`s, which end before it stops.

    Args:
        work: does a job.
        device: its name.
        send: receives the messages.
    """

    def __init__(self, work: Work, device: str, send: Callable[[Message], None]) -> None:
        self._work, self._name, self._send = work, device, send

    def __enter__(self) -> Self:
        """Finds the device, and sends `Ready`; raises as `choose_device`."""
        with convert_failures():
            self.device = choose_device(self._name)
        self._send(Ready(1, str(self.device)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Does nothing."""

    def do(self, task: Task) -> None:
        """Does a task, and sends `Ended`; no error leaves it."""
        outcome: Outcome = Tally(made=len(task.jobs))
        try:
            for job in task.jobs:
                assert isinstance(job, FileJob)
                self._do_job(job)
        except SegdreamError as problem:
            outcome = _with_trace(problem)
        self._send(Ended(task.number, outcome))

    def _do_job(self, job: FileJob) -> None:
        """Does a job; its messages have the paths as they were given."""

        def note(text: str) -> None:
            self._send(Note(job.translate(text)))

        try:
            with convert_failures():
                result = self._work(job, str(self.device), note)
        except SegdreamError as problem:
            problem.message = job.translate(problem.message)
            problem.hint = problem.hint and job.translate(problem.hint)
            raise
        self._send(JobFinished(job.output, result))


def worker_for(
    spec: JobSpec,
    send: Callable[[Message], None],
    stop: StopRequest,
    step_every_s: Callable[[], float] = lambda: STEP_EVERY_S,
) -> Worker | FileWorker:
    """The worker for the jobs of a spec; see `Worker` for the arguments."""
    if spec.work is not None:
        return FileWorker(spec.work, spec.request.device, send)
    return Worker(spec, send, stop, step_every_s)


def _with_trace(problem: SegdreamError | Interrupted) -> SegdreamError | Interrupted:
    """The error with its traceback as a note, which SEGDREAM_DEBUG shows; a pickled error has no traceback."""
    problem.add_note(traceback.format_exc())
    return problem
