"""What a process of `--devices` does in the tests of its parent: no networks, one behaviour each.

They stand in a file of their own because a started process imports it.
"""

import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

from segdream_cli.errors import Interrupted, OutOfMemory, OutputExists
from segdream_cli.runs import processes
from segdream_cli.runs.reporter import Note
from segdream_cli.runs.spec import JobSpec, Tally


def make_all(spec: JobSpec, pipe: Connection) -> None:
    """Reports the seeds of the share, and makes all its jobs."""
    pipe.send(Note(f"seeds {[job.seed for job in spec.jobs]} on {spec.request.device}"))
    pipe.send(Tally(made=len(spec.jobs)))


def crash_with_seed_0(spec: JobSpec, pipe: Connection) -> None:
    """Ends without a word if the share has seed 0, as a killed process does."""
    if spec.jobs[0].seed == 0:
        os._exit(9)
    make_all(spec, pipe)


def fail(spec: JobSpec, pipe: Connection) -> None:
    """Ends with an error that depends on the first seed of the share."""
    pipe.send((OutputExists("bus.ply exists"), OutOfMemory("no memory"))[spec.jobs[0].seed])


def wait_for_stop(spec: JobSpec, pipe: Connection) -> None:
    """Runs until it is asked to stop."""
    pipe.send(Note("started"))
    pipe.poll(60)
    pipe.send(Interrupted("stopped"))


def sleep_without_parent() -> None:
    """Is busy for a minute, but ends soon after its parent."""
    processes.GRACE_S = 0.1
    Thread(target=processes._end_with_parent, daemon=True).start()
    Path("busy").touch()
    time.sleep(60)
