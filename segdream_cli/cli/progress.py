"""Progress of a run: a bar on a terminal, a line every 30 s elsewhere."""

import os
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from segdream_cli.cli.output import Output
from segdream_cli.cli.streams import printable
from segdream_cli.runs.reporter import Stepped

LINE_EVERY_S = 30.0


class LiveBar:
    """A context manager that shows a bar on a terminal; elsewhere it decides when a line is due.

    Args:
        output: receives the lines; its `quiet` hides the bar too.
        columns: the columns after the title and the bar.
        bar: False shows lines only.
    """

    def __init__(self, output: Output, *columns: ProgressColumn, bar: bool = True) -> None:
        self.output = output
        self.last_line = time.monotonic()
        console = Console(stderr=True)
        shown = bar and not output.quiet and console.is_terminal and not os.environ.get("SEGDREAM_NO_PROGRESS")
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


class RunProgress(LiveBar):
    """A context manager that shows the step reports of a run of one or several assets.

    Args:
        title: the text before the bar.
        total: number of steps.
        done: steps done before this start.
        output: receives the lines; its `quiet` hides the bar too.
        bar: False shows lines only.
    """

    def __init__(self, title: str, total: int, done: int, output: Output, *, bar: bool = True) -> None:
        columns = MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[detail]}")
        super().__init__(output, *columns, bar=bar)
        self.first = done
        self.begin, self.gradient = self.last_line, ""
        self.task = self.add_task(title, total=total, completed=done, detail="")

    def update(self, report: Stepped) -> None:
        """Shows one step: its stage, the total number of Gaussians, and the largest known gradient norm."""
        if report.grad_norm is not None:
            self.gradient = f"  gradient {max(report.grad_norm):.2g}"
        detail = f"{report.stage}  {sum(report.n_gaussians):,} Gaussians{self.gradient}  {report.memory_gib:.1f} GiB"
        self.bar.update(self.task, completed=report.step, total=report.steps, detail=detail)
        if self.claim_line():
            left = (self.last_line - self.begin) / max(1, report.step - self.first) * (report.steps - report.step)
            self.output.note(f"step {report.step}/{report.steps}  {left:.0f} s left  {detail}")
