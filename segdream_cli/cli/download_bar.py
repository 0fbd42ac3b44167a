"""Progress of a download: a bar on a terminal, a line every 30 s elsewhere."""

from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

from segdream_cli.cli.output import Output
from segdream_cli.cli.progress import LiveBar
from segdream_cli.util.text import format_size


class DownloadBar(LiveBar):
    """A context manager that shows one download; its `update` is a `download.Progress`.

    Args:
        title: the text before the bar.
        output: receives the lines; its `quiet` hides the bar too.
    """

    def __init__(self, title: str, output: Output) -> None:
        super().__init__(output, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self.title = title
        self.task = self.add_task(title, total=None)

    def update(self, done: int, total: int) -> None:
        """Shows that `done` of `total` bytes have arrived."""
        self.bar.update(self.task, completed=done, total=total)
        if self.claim_line():
            self.output.note(f"{self.title}: {format_size(done)} of {format_size(total)}")
