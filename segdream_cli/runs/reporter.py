"""Events of a run, and their receivers: a terminal, JSON lines, another process, or a caller of the Python API.

Events are plain values: they can be pickled, and do not depend on how they are shown.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from segdream_cli.errors import SegdreamError


@dataclass(frozen=True, slots=True)
class Note:
    """A message for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """Bytes of a download so far."""

    name: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class DownloadEnded:
    """A download has ended, completely or not."""

    name: str


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run is about to take steps.

    Args:
        run: identifies the run, also in `Stepped` and `RunEnded`.
        title: prompt or file of the assets.
        steps: number of the last step, without those that an early end of the distillation left out.
        done: steps done before.
        rounds: numbers of steps of the rounds of refinement, which are the last steps.
        seconds: wall time that all steps are expected to take, from an earlier run with the same settings on this
            machine; None if there was none.
    """

    run: str
    title: str
    steps: int
    done: int
    rounds: tuple[int, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Stepped:
    """A run has taken a step; tuples hold one entry per asset.

    Args:
        run: as in `RunStarted`.
        step: its number, from 1, without those that an early end of the distillation left out.
        steps: number of the last step, without those too.
        n_gaussians: number of Gaussians after it.
        grad_norm: norm of the parameters' gradient; None where reading it would wait for the device.
        memory_gib: peak memory so far.
        stage: "distil", or "refine 1/2" in the first of two rounds of refinement.
        loss: mean loss of the assets in a step of refinement; None in others, and where reading it would wait.
    """

    run: str
    step: int
    steps: int
    n_gaussians: tuple[int, ...]
    grad_norm: tuple[float, ...] | None
    memory_gib: float
    stage: str
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class RunEnded:
    """A run takes no more steps, finished or not."""

    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetFinished:
    """An asset has been written.

    Args:
        output: its file.
        prompt, seed, prior: the inputs of the asset.
        gaussians: their number.
        steps: number of steps that this program has taken.
        total_steps: number of all its steps, also those of programs that were stopped.
        seconds: wall time of all assets that ran with it.
        memory_gib: peak memory so far.
        run: its run folder; None if that was removed.
        prompt_read: the text that the prior read, if it differs from the prompt in more than case and punctuation.
    """

    output: Path
    prompt: str
    seed: int
    prior: str
    gaussians: int
    steps: int
    total_steps: int
    seconds: float
    memory_gib: float
    run: Path | None
    prompt_read: str | None = None


@dataclass(frozen=True, slots=True)
class JobFinished:
    """A `FileJob` is done.

    Args:
        output: that of the job.
        result: the value that its `Work` returned.
    """

    output: Path
    result: object


@dataclass(frozen=True, slots=True)
class AssetPlanned:
    """An asset that would be made, with the figures of the latest one with the same settings on this machine.

    Args:
        output: its file.
        prompt, seed: its inputs.
        action: "make", "resume" or "skip".
        steps: number of steps to take.
        seconds: expected wall time; None if unknown, as the others.
        gaussians: expected number.
        bytes: expected size of the file.
    """

    output: Path
    prompt: str
    seed: int
    action: str
    steps: int
    seconds: float | None
    gaussians: int | None
    bytes: int | None


@dataclass(frozen=True, slots=True)
class SeedChosen:
    """The best of several seeds was chosen, and continues.

    Args:
        output: the asset's file.
        by: the metric.
        step: the step after which they were compared.
        scores: seed -> score, higher is better; NaN where the metric has none.
        seed: the best.
    """

    output: Path
    by: str
    step: int
    scores: Mapping[int, float]
    seed: int


@dataclass(frozen=True, slots=True)
class JobSkipped:
    """The asset of job `number` of `count` exists already."""

    output: Path
    number: int
    count: int


@dataclass(frozen=True, slots=True)
class JobFailed:
    """A job failed; `output` is its file if the error does not name it."""

    problem: SegdreamError
    output: Path | None = None


@dataclass(frozen=True, slots=True)
class RunSaved:
    """A run was saved before its last step.

    Args:
        run: its folder.
        step: the last step done, without those that an early end of the distillation left out.
        steps: number of the last step of the whole run, without those too.
        resume: the command that resumes it; None if the run would fail in the same step again.
    """

    run: Path
    step: int
    steps: int
    resume: str | None


@dataclass(frozen=True, slots=True)
class WorkerProgress:
    """A worker of a list.

    Args:
        name: the worker.
        place: its device or machine.
        title: the assets that it makes; empty if it makes none.
        step: the last step done.
        steps: number of the last step.
        seconds_left: until these assets are done; None if unknown.
    """

    name: str
    place: str
    title: str
    step: int
    steps: int
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class ListProgress:
    """The state of a list that several workers make.

    Args:
        made, skipped, failed: number of assets that are done.
        count: number of assets of the list.
        workers: those that have begun.
        starting: number of workers that have not.
        seconds_left: until the list is done; None if unknown.
    """

    made: int
    skipped: int
    failed: int
    count: int
    workers: tuple[WorkerProgress, ...]
    starting: int
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class ListEnded:
    """A list that several workers made has ended, completely or not.

    Args:
        made, skipped, failed: number of assets.
        count: number of assets of the list.
        lost: number of workers that were lost.
        retried: number of attempts that were repeated.
        moved: number of assets that moved from a slow worker to a fast one.
        given_up: files of the assets that failed on every attempt.
    """

    made: int
    skipped: int
    failed: int
    count: int
    lost: int
    retried: int
    moved: int
    given_up: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """The checkpoint in a run folder was replaced, and the run continues."""

    run: Path


@dataclass(frozen=True, slots=True)
class PageServed:
    """A page at `url` shows the asset while it is made."""

    url: str


Event: TypeAlias = (
    Note
    | DownloadProgress
    | DownloadEnded
    | RunStarted
    | Stepped
    | RunEnded
    | AssetFinished
    | JobFinished
    | AssetPlanned
    | SeedChosen
    | JobSkipped
    | JobFailed
    | RunSaved
    | CheckpointSaved
    | ListProgress
    | ListEnded
    | PageServed
)
Reporter: TypeAlias = Callable[[Event], object]


def discard(event: Event) -> None:
    """Ignores an event: the reporter of callers who only want the result."""


def note_to(reporter: Reporter) -> Callable[[str], None]:
    """A function that reports a text as a `Note`."""

    def note(text: str) -> None:
        reporter(Note(text))

    return note
