"""What a process of `--devices` does in the tests of its parent: no networks, one behaviour each.

They stand in a file of their own because a started process imports it.
"""

import os
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

from segdream_cli.errors import Interrupted, OutOfMemory, OutputExists, WeightsUnavailable
from segdream_cli.runs import processes
from segdream_cli.runs.crew import Ended, Ready, Task, Unfit
from segdream_cli.runs.jobs import Job
from segdream_cli.runs.reporter import AssetFinished, JobFailed, Note
from segdream_cli.runs.spec import JobSpec, Tally


def tasks(spec: JobSpec, pipe: Connection) -> Iterator[Task]:
    """Says that the worker is ready, and yields the tasks that come."""
    pipe.send(Ready(1, spec.request.device))
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        if task is not None:
            yield task


def finish(pipe: Connection, task: Task) -> None:
    """Reports all jobs of a task as made."""
    for job in task.jobs:
        pipe.send(made(job))
    pipe.send(Ended(task.number, Tally(made=len(task.jobs))))


def made(job: Job) -> AssetFinished:
    return AssetFinished(
        output=job.output, prompt=job.prompt, seed=job.seed, prior="p", gaussians=1, steps=1, total_steps=1,
        seconds=1.0, memory_gib=1.0, run=job.output.with_suffix(".run"),
    )  # fmt: skip


def make_all(spec: JobSpec, pipe: Connection) -> None:
    """Makes all jobs, and says where."""
    for task in tasks(spec, pipe):
        pipe.send(Note(f"seed {task.jobs[0].seed} in {os.getpid()}"))
        finish(pipe, task)


def crash_once_with_seed_0(spec: JobSpec, pipe: Connection) -> None:
    """Ends without a word at the first attempt at seed 0, as a killed process does."""
    for task in tasks(spec, pipe):
        if task.jobs[0].seed == 0 and not Path("crashed").exists():
            Path("crashed").touch()
            os._exit(9)
        finish(pipe, task)


def crash_with_seed_0(spec: JobSpec, pipe: Connection) -> None:
    """Ends without a word at each attempt at seed 0."""
    for task in tasks(spec, pipe):
        if task.jobs[0].seed == 0:
            os._exit(9)
        finish(pipe, task)


def fail(spec: JobSpec, pipe: Connection) -> None:
    """Fails every job with an error that depends on its seed."""
    for task in tasks(spec, pipe):
        job = task.jobs[0]
        pipe.send(JobFailed((OutputExists("bus.ply exists"), OutOfMemory("no memory"))[job.seed % 2], job.output))
        pipe.send(Ended(task.number, Tally(failed=1)))


def lack_weights(spec: JobSpec, pipe: Connection) -> None:
    """Does not begin."""
    pipe.send(Unfit(WeightsUnavailable("no weights", hint="segdream fetch")))


def wait_for_stop(spec: JobSpec, pipe: Connection) -> None:
    """Runs until it is asked to stop."""
    for task in tasks(spec, pipe):
        pipe.send(Note("started"))
        pipe.poll(60)
        pipe.send(Ended(task.number, Interrupted("stopped")))


def sleep_without_parent() -> None:
    """Is busy for a minute, but ends soon after its parent."""
    processes.GRACE_S = 0.1
    Thread(target=processes._end_with_parent, daemon=True).start()
    Path("busy").touch()
    time.sleep(60)
