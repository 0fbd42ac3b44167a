"""Progress of a run, or of a list on many workers: a bar or a table on a terminal, a line every 30 s elsewhere."""

import os
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from segdream_cli.cli.output import Output
from segdream_cli.cli.schema import ListState
from segdream_cli.runs.reporter import ListProgress, RunStarted, Stepped
from segdream_cli.util.download import format_time
from segdream_cli.util.text import printable

LINE_EVERY_S = 30.0
MAX_ROWS = 20
"""Workers that a table shows."""
WARM_UP_STEPS, FEWEST_STEPS, PACE_STEPS = 2, 5, 50
"""Steps of a stage that do not count for its pace, the fewest that do, and the most."""


class LiveBar:
    """A context manager that shows a bar on a terminal; elsewhere it decides when a line is due.

    Args:
        output: receives the lines; its `quiet` hides the bar too.
        columns: the columns after the title and the bar.
    """

    def __init__(self, output: Output, *columns: ProgressColumn) -> None:
        self.output = output
        self.last_line = time.monotonic()
        console = Console(stderr=True)
        shown = not output.quiet and console.is_terminal and not os.environ.get("SEGDREAM_NO_PROGRESS")
        self.lines = not output.quiet and not console.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            *columns,
            console=console,
            disable=not shown,
            transient=True,
        )

    def start(self) -> None:
        """Shows the bar."""
        self.bar.start()

    def stop(self) -> None:
        """Removes the bar."""
        self.bar.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def add_task(self, title: str, *, total: int | None, completed: int = 0, **fields: Any) -> TaskID:
        """Adds a line with a title, the number of its parts and the fields of the columns to the bar."""
        return self.bar.add_task(printable(title), total=total, completed=completed, **fields)

    def claim_line(self) -> bool:
        """Whether a line is due; if so, restarts the interval."""
        now = time.monotonic()
        due = self.lines and now - self.last_line >= LINE_EVERY_S
        if due:
            self.last_line = now
        return due


class TimeLeft:
    """The time that a run still takes.

    It follows from the pace of the latest steps. The first steps of a stage do not count, since they wait for
    compilers, caches and repainted views. Until there are enough, an earlier run with the same settings tells.

    Args:
        total: number of the last step.
        expected_s: wall time of all steps of that earlier run; None if there was none.
    """

    def __init__(self, total: int, expected_s: float | None) -> None:
        self.total, self.expected_s = total, expected_s
        self.stage, self.passed = "", 0
        self.times: deque[float] = deque(maxlen=PACE_STEPS + 1)

    def update(self, step: int, stage: str, now: float) -> float | None:
        """Seconds from the end of a step at the time `now` in seconds to that of the last one; None if unknown."""
        if stage != self.stage:
            self.stage, self.passed = stage, 0
            self.times.clear()
        self.passed += 1
        if self.passed > WARM_UP_STEPS:
            self.times.append(now)
        if len(self.times) > FEWEST_STEPS:
            return (self.times[-1] - self.times[0]) / (len(self.times) - 1) * (self.total - step)
        return None if self.expected_s is None else self.expected_s * (self.total - step) / self.total


class RunProgress(LiveBar):
    """A context manager that shows the step reports of a run of one or several assets.

    Args:
        started: the run.
        output: receives the lines; its `quiet` hides the bar too.
    """

    def __init__(self, started: RunStarted, output: Output) -> None:
        super().__init__(output, MofNCompleteColumn(), TextColumn("{task.fields[detail]}", markup=False))
        self.rounds, self.gradient = started.rounds, ""
        self.time_left = TimeLeft(started.steps, started.seconds)
        self.task = self.add_task(started.title, total=started.steps, completed=started.done, detail="")

    def update(self, report: Stepped) -> None:
        """Shows one step: stage, time left, number of Gaussians, and the loss or the largest gradient norm."""
        if report.loss is not None:
            self.gradient = f"  loss {report.loss:.3g}"
        elif report.grad_norm is not None:
            self.gradient = f"  gradient {max(report.grad_norm):.2g}"
        left = self.time_left.update(report.step, report.stage, time.monotonic())
        parts = [describe_stage(report, self.rounds)]
        parts += [] if left is None else [f"about {format_time(left)} left"]
        detail = "  ".join([*parts, f"{sum(report.n_gaussians):,} Gaussians{self.gradient}"])
        detail += f"  {report.memory_gib:.1f} GiB"
        self.bar.update(self.task, completed=report.step, total=report.steps, detail=detail)
        if self.claim_line():
            self.output.note(f"step {report.step}/{report.steps}  {detail}")


def describe_stage(report: Stepped, rounds: Sequence[int]) -> str:
    """The stage of a step with its own count, such as "distil 12/30" or "refine 1/2: 5/300"."""
    distil = report.steps - sum(rounds)
    if report.step <= distil or not rounds:
        return f"distil {report.step}/{distil}"
    step, index = report.step - distil, 0
    while step > rounds[index]:
        step, index = step - rounds[index], index + 1
    return f"refine {index + 1}/{len(rounds)}: {step}/{rounds[index]}"


def describe_steps(started: RunStarted) -> str | None:
    """What the steps of a run are for; None if all of them distil."""
    refine = sum(started.rounds)
    if not refine:
        return None
    count = f"{len(started.rounds)} rounds" if len(started.rounds) > 1 else "one round"
    distil = started.steps - refine
    parts = [f"{distil:,} of distillation"] if distil else []
    return f"{started.steps:,} steps: {' and '.join([*parts, f'{refine:,} of refinement in {count}'])}"


class ListTable:
    """The state of a list on many workers: a table on a terminal; elsewhere, and with `json`, a report every 30 s.

    Args:
        output: receives the reports; its `quiet` hides the table too.
    """

    def __init__(self, output: Output) -> None:
        self.output = output
        self.last_line = time.monotonic()
        console = Console(stderr=True)
        self.shown = not output.quiet and console.is_terminal and not os.environ.get("SEGDREAM_NO_PROGRESS")
        self._live = Live(console=console, transient=True, auto_refresh=False)

    def start(self) -> None:
        """Shows the table, on a terminal."""
        if self.shown:
            self._live.start()

    def stop(self) -> None:
        """Removes the table."""
        self._live.stop()

    def update(self, state: ListProgress) -> None:
        """Shows the state of the list."""
        if self.shown:
            self._live.update(_table(state), refresh=True)
        now = time.monotonic()
        if (self.output.json or not self.shown) and now - self.last_line >= LINE_EVERY_S:
            self.last_line = now
            self.output.report(_line(state), _summary(state))


def _line(state: ListProgress) -> ListState:
    """The line of `--json` for the state of a list."""
    running = [
        {
            "worker": worker.name,
            "place": worker.place,
            "asset": worker.title,
            "step": worker.step,
            "total_steps": worker.steps,
            "seconds_left": _round(worker.seconds_left),
        }
        for worker in state.workers
        if worker.title
    ]
    return ListState(
        made=state.made,
        skipped=state.skipped,
        failed=state.failed,
        count=state.count,
        workers=len(state.workers),
        starting=state.starting,
        seconds_left=_round(state.seconds_left),
        running=running,
    )


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _summary(state: ListProgress) -> str:
    """A line about a list."""
    busy = sum(bool(worker.title) for worker in state.workers)
    done = state.made + state.skipped + state.failed
    parts = [f"{done}/{state.count} done", f"{busy} of {len(state.workers)} workers busy"]
    parts += [f"{state.failed} failed"] if state.failed else []
    parts += [f"{state.starting} starting"] if state.starting else []
    parts += [f"about {format_time(state.seconds_left)} left"] if state.seconds_left is not None else []
    return ", ".join(parts)


def _table(state: ListProgress) -> Table:
    """A row per worker, those that end last first, under a line about the list."""
    table = Table(box=None, title=_summary(state), title_justify="left", title_style="")
    for name in ("worker", "asset", "step", "left"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    rows = sorted(state.workers, key=lambda worker: -(worker.seconds_left or 0))
    for worker in rows[:MAX_ROWS]:
        left = "" if worker.seconds_left is None else format_time(worker.seconds_left)
        step = f"{worker.step}/{worker.steps}" if worker.title and worker.steps else ""
        table.add_row(*(Text(printable(text)) for text in (worker.place, worker.title, step, left)))
    if len(rows) > MAX_ROWS:
        table.add_row(f"and {len(rows) - MAX_ROWS} more")
    return table


class StageProgress(LiveBar):
    """A context manager that shows which stage of a work has begun.

    Args:
        title: the text before the bar.
        stages: the names of the stages, in order.
        output: receives the lines; its `quiet` hides the bar too.
    """

    def __init__(self, title: str, stages: Sequence[str], output: Output) -> None:
        super().__init__(output, MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[stage]}"))
        self.title, self.stages = title, stages
        self.task = self.add_task(title, total=len(stages), stage="")

    def begin(self, stage: str) -> None:
        """Shows that a stage begins."""
        number = self.stages.index(stage)
        self.bar.update(self.task, completed=number, stage=stage)
        if self.claim_line():
            self.output.note(f"{self.title}: {stage}, {number + 1} of {len(self.stages)}")
