"""A worker: holds a prior, does one task after another, and sends events and outcomes."""

import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self

from segdream_cli.errors import Interrupted, SegdreamError
from segdream_cli.runs.crew import Ended, Message, Outcome, Ready, Task
from segdream_cli.runs.reporter import Event, Stepped
from segdream_cli.runs.session import Session, page_for
from segdream_cli.runs.spec import JobSpec
from segdream_cli.runs.stopping import StopRequest
from segdream_cli.util.failures import as_failure
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


def _with_trace(problem: SegdreamError | Interrupted) -> SegdreamError | Interrupted:
    """The error with its traceback as a note, which SEGDREAM_DEBUG shows; a pickled error has no traceback."""
    problem.add_note(traceback.format_exc())
    return problem
