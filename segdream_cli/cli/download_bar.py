"""What a person sees while weights are downloaded: a bar on a terminal, a line now and then elsewhere."""

import os
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from segdream_cli.cli.output import Output
from segdream_cli.cli.progress import LINE_EVERY_S
from segdream_cli.download import size_in_words


class DownloadBar:
    """Shows one download, as a context manager; its `update` is a `download.Progress`.

    Args:
        title: what is downloaded.
        output: where lines go; its `quiet` silences the bar too.
    """

    def __init__(self, title: str, output: Output) -> None:
        self.title, self.output = title, output
        self.last_line = time.monotonic()
        console = Console(stderr=True)
        self.lines = not output.quiet and not console.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=output.quiet or not console.is_terminal or bool(os.environ.get("SEGDREAM_NO_PROGRESS")),
            transient=True,
        )
        self.task = self.bar.add_task(title, total=None)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, done: int, total: int) -> None:
        """Shows how many bytes of how many have come."""
        self.bar.update(self.task, completed=done, total=total)
        now = time.monotonic()
        if self.lines and now - self.last_line >= LINE_EVERY_S:
            self.last_line = now
            self.output.note(f"{self.title}: {size_in_words(done)} of {size_in_words(total)}")
