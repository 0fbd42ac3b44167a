"""Events of a run, and who receives them: a terminal, JSON lines, another process, or a caller of the Python API.

Events are plain values: they can be pickled, and say nothing about how they are shown.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from segdream_cli.errors import SegdreamError


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person may want to know."""

    text: str


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """Bytes of a download so far."""

    name: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class DownloadEnded:
    """A download is over, however it ended."""

    name: str


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Steps are about to be taken.

    Args:
        run: names the run; the same in `Stepped` and `RunEnded`.
        title: what is made.
        steps: number of the last step.
        done: steps done before.
    """

    run: str
    title: str
    steps: int
    done: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step has been taken; tuples hold one entry per asset.

    Args:
        run: as in `RunStarted`.
        step: its number, from 1.
        n_gaussians: number of Gaussians after it.
        grad_norm: norm of the parameters' gradient; None where reading it would wait for the device.
        memory_gib: peak memory so far.
    """

    run: str
    step: int
    n_gaussians: tuple[int, ...]
    grad_norm: tuple[float, ...] | None
    memory_gib: float


@dataclass(frozen=True, slots=True)
class RunEnded:
    """No more steps are taken, however the run ended."""

    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetFinished:
    """An asset is written.

    Args:
        output: its file.
        prompt, seed, prior: what it was made from.
        gaussians: their number.
        steps: how many this program has taken.
        seconds: wall time of all assets that ran with it.
        memory_gib: peak memory so far.
        run: its run folder.
    """

    output: Path
    prompt: str
    seed: int
    prior: str
    gaussians: int
    steps: int
    seconds: float
    memory_gib: float
    run: Path


@dataclass(frozen=True, slots=True)
class JobSkipped:
    """The asset of job `number` of `count` exists already."""

    output: Path
    number: int
    count: int


@dataclass(frozen=True, slots=True)
class JobFailed:
    """A job failed; `output` names it where the error alone would not."""

    problem: SegdreamError
    output: Path | None = None


@dataclass(frozen=True, slots=True)
class RunSaved:
    """A run was saved before its last step.

    Args:
        run: its folder.
        step: the last step done.
        steps: number of the last step of the whole run.
        resume: the command that resumes it; None where it would fail in the same step again.
    """

    run: Path
    step: int
    steps: int
    resume: str | None


@dataclass(frozen=True, slots=True)
class PageServed:
    """A page that shows the asset while it is made can be opened at `url`."""

    url: str


Event: TypeAlias = (
    Note
    | DownloadProgress
    | DownloadEnded
    | RunStarted
    | Stepped
    | RunEnded
    | AssetFinished
    | JobSkipped
    | JobFailed
    | RunSaved
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
