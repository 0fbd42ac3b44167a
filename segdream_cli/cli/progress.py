"""What a person sees while an asset grows: a bar on a terminal, a line now and then elsewhere."""

import os
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segdream_cli.cli.output import Output

if TYPE_CHECKING:
    from segdream_cli.pipeline import StepReport

LINE_EVERY_S = 30.0


class RunProgress:
    """Shows the reports of one asset's run, as a context manager.

    Args:
        title: what is being made.
        total: number of steps.
        done: steps done before this start.
        output: where lines go; its `quiet` silences the bar too.
    """

    def __init__(self, title: str, total: int, done: int, output: Output) -> None:
        self.total, self.done, self.output = total, done, output
        self.begin = self.last_line = time.monotonic()
        self.first = done
        console = Console(stderr=True)
        hidden = output.quiet or not console.is_terminal or bool(os.environ.get("SEGDREAM_NO_PROGRESS"))
        self.lines = not output.quiet and not console.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=hidden,
            transient=True,
        )
        self.task = self.bar.add_task(title, total=total, completed=done, detail="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, report: "StepReport") -> None:
        """Shows one step."""
        detail = f"{report.n_gaussians[0]:,} Gaussians  gradient {report.grad_norm[0]:.2g}  {report.memory_gib:.1f} GiB"
        self.bar.update(self.task, completed=report.step, detail=detail)
        now = time.monotonic()
        if self.lines and now - self.last_line >= LINE_EVERY_S:
            self.last_line = now
            left = (now - self.begin) / max(1, report.step - self.first) * (self.total - report.step)
            self.output.note(f"step {report.step}/{self.total}  {left:.0f} s left  {detail}")
