"""Tasks, messages, and the interface of a crew: the workers of a backend, as the dispatcher sees them.

All of them are plain values, which can be pickled and sent to another process or machine.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from segdream_cli.errors import Interrupted, SegdreamError
from segdream_cli.runs.jobs import Job
from segdream_cli.runs.reporter import Event
from segdream_cli.runs.spec import Tally

Outcome: TypeAlias = Tally | SegdreamError | Interrupted


@dataclass(frozen=True, slots=True)
class Task:
    """Jobs that a worker makes together.

    Args:
        number: identifies the task.
        jobs: the assets.
        force: replace what exists.
        resume: resume the runs of an earlier attempt.
    """

    number: int
    jobs: tuple[Job, ...]
    force: bool = False
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has found its prior, and takes tasks.

    Args:
        batch: how many assets it optimises at once.
        device: its device.
        host: identifies the device or machine whose faults it shares.
        place: name of that device or machine, for messages.
        detail: a remark on how it works, if there is one.
    """

    batch: int
    device: str
    host: str = ""
    place: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker has ended a task."""

    task: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Unfit:
    """A worker can't begin, and has ended; `host` as in `Ready`."""

    problem: SegdreamError
    host: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker was killed, or its machine is gone.

    Args:
        reason: a sentence without a full stop.
        host: as in `Ready`; empty if unknown.
        hint: as in `SegdreamError`.
        machine_gone: its machine is gone too, so its faults matter no more.
    """

    reason: str
    host: str = ""
    hint: str | None = None
    machine_gone: bool = False


Message: TypeAlias = Ready | Ended | Unfit | Lost | Event


class Crew(Protocol):
    """The workers of a backend. A worker has at most one task at a time."""

    def hire(self, wanted: int, unfit: Collection[str]) -> Sequence[str]:
        """Starts workers until there are `wanted`, as far as the backend has room.

        Args:
            wanted: number of workers, those that are busy included.
            unfit: hosts that get no more workers.

        Returns:
            the names of those that were started.
        """

    def has_room(self, unfit: Collection[str]) -> bool:
        """Whether a worker can be started now or later on a host that is not `unfit`."""

    def assign(self, worker: str, task: Task) -> None:
        """Gives an idle worker a task."""

    def recall(self, worker: str, task: int) -> None:
        """Asks a worker to save a task and end it; has no effect if the task has ended."""

    def receive(self, timeout_s: float) -> Sequence[tuple[str, Message]]:
        """The messages of the workers, each with the worker's name; waits for the first one."""

    def dismiss(self, worker: str) -> None:
        """Ends an idle worker, which may have been lost just now; nothing is heard of it any more."""

    def close(self) -> None:
        """Ends all workers, and those with a task at once."""

    def now(self) -> float:
        """Seconds of a clock that never goes back."""
