"""`--devices`: one process per device of this host, each with its share of the jobs.

A process gets its share as a pickled `JobSpec`. Through a pipe it sends its events and at last its outcome. Any message
to the process, or the end of its parent, asks it to stop. Without a parent, it gets `GRACE_S` to save its runs.
"""

import dataclasses
import multiprocessing
import os
import re
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from threading import Thread
from typing import TypeAlias

from segdream_cli.errors import Interrupted, SegdreamError, UsageProblem
from segdream_cli.runs.reporter import Event, JobFailed, Reporter
from segdream_cli.runs.spec import JobSpec, Tally
from segdream_cli.runs.stopping import StopRequest

POLL_S = 0.1
GRACE_S = 20.0
"""Seconds that a process without a parent has to save its runs; it may be busy with something that asks no pipe."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))
Outcome: TypeAlias = Tally | SegdreamError | Interrupted


def parse_devices(text: str) -> list[str]:
    """Names of devices: `0,1` are cuda:0 and cuda:1, and full names are accepted too.

    Raises:
        UsageProblem: the text is something else.
    """
    parts = text.replace(" ", "").split(",")
    if not all(re.fullmatch(r"cpu|(cuda:)?\d+", part) for part in parts):
        raise UsageProblem(f"--devices {text!r} is not a list of devices", hint="--devices 0,1")
    return [f"cuda:{part}" if part.isdecimal() else part for part in parts]


def share(spec: JobSpec, devices: Sequence[str]) -> list[JobSpec]:
    """One spec per device, or per job if there are fewer jobs; the jobs are dealt in turn."""
    count = min(len(devices), len(spec.jobs))
    return [
        dataclasses.replace(
            spec, request=dataclasses.replace(spec.request, device=devices[i]), jobs=spec.jobs[i::count]
        )
        for i in range(count)
    ]


def run_on_devices(spec: JobSpec, devices: Sequence[str], reporter: Reporter, stop: StopRequest) -> Tally:
    """Divides the jobs of a spec among devices and does them; a failed share does not stop the others.

    Raises:
        UsageProblem, EnvironmentProblem: a device does not exist.
        Interrupted: `stop` was set; the runs have been saved.
        SegdreamError: the error with the highest exit code of those that ended a share; the others are reported.
    """
    from segdream_cli.util.devices import visible_device

    shares = share(spec, devices)
    for part in shares:
        visible_device(part.request.device, instead="--devices cpu")
    workers: list[_Worker] = []
    try:
        with stop:
            workers += [_Worker(part) for part in shares]
            _relay(workers, reporter, stop)
    finally:
        for worker in workers:
            worker.end()
    outcomes = [worker.outcome for worker in workers]
    problems = sorted((each for each in outcomes if isinstance(each, SegdreamError)), key=lambda each: each.exit_code)
    interrupted = any(isinstance(outcome, Interrupted) for outcome in outcomes)
    last = problems.pop() if problems and not interrupted else None
    for problem in problems:
        reporter(JobFailed(problem))
    if interrupted:
        raise Interrupted("stopped on all devices", exit_code=stop.exit_code)
    if last is not None:
        raise last
    return sum((each for each in outcomes if isinstance(each, Tally)), Tally())


@contextmanager
def _block_signals() -> Iterator[None]:
    """Holds signals back while the block runs; a process that it starts inherits that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    """A process that does the jobs of a spec, as seen by its parent."""

    def __init__(self, spec: JobSpec) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA can't be used in a forked process
        self.pipe, theirs = context.Pipe()
        self.device = spec.request.device
        self.outcome: Outcome | None = None
        self._process: BaseProcess = context.Process(target=_work, args=(spec, theirs))
        with _block_signals():  # a process that is importing its libraries can't save anything yet
            self._process.start()
        theirs.close()

    def receive(self, reporter: Reporter, stop: StopRequest) -> None:
        """Receives one message: reports an event, or keeps the outcome."""
        try:
            message: Event | Outcome = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            ended = f"the process of {self.device} ended with exit code {self._process.exitcode}"
            hint = f"--device {self.device}  # shows what happens in one process"
            message = Interrupted(ended) if stop.is_set() else SegdreamError(ended, hint=hint)
        if isinstance(message, Tally | SegdreamError | Interrupted):
            self.outcome = message
        else:
            reporter(message)

    def ask_to_stop(self) -> None:
        """Asks the process to save its runs and end."""
        with suppress(OSError):  # the process has just ended
            self.pipe.send(None)

    def end(self) -> None:
        """Waits for the process; kills it first if it has no outcome."""
        if self.outcome is None:
            self._process.kill()
        self._process.join()
        self.pipe.close()


def _relay(workers: Sequence[_Worker], reporter: Reporter, stop: StopRequest) -> None:
    """Receives messages until each process has an outcome, and passes a stop request on."""
    asked = False
    while pending := {worker.pipe: worker for worker in workers if worker.outcome is None}:
        if stop.is_set() and not asked:
            asked = True
            for worker in pending.values():
                worker.ask_to_stop()
        for pipe in wait(list(pending), POLL_S):
            pending[pipe].receive(reporter, stop)  # type: ignore[index]


class _StopFromParent(StopRequest):
    """Set by any message from the parent, and by its end."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def is_set(self) -> bool:
        """Whether there is a message, or the parent has ended."""
        return self._pipe.poll()


def _end_with_parent() -> None:
    """Ends this process some time after its parent has ended, whatever it does."""
    if parent := parent_process():
        parent.join()
        time.sleep(GRACE_S)
        os._exit(1)


def _work(spec: JobSpec, pipe: Connection) -> None:
    """Does the jobs of a spec, and sends events and the outcome; the main function of a worker process."""
    for number in SIGNALS:  # a terminal sends signals to every process; the parent's pipe decides
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    Thread(target=_end_with_parent, daemon=True).start()
    from segdream_cli.runs.session import run_jobs

    def send(message: Event | Outcome) -> None:
        with suppress(OSError):  # the parent has ended: save the runs anyway
            pipe.send(message)

    try:
        send(run_jobs(spec, send, _StopFromParent(pipe)))
    except (SegdreamError, Interrupted) as problem:
        problem.add_note(traceback.format_exc())  # SEGDREAM_DEBUG shows it; a pickled error has no traceback
        send(problem)
