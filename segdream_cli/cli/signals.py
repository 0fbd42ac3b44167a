"""Signals: the first Ctrl-C or SIGTERM finishes the step, a second one exits at once."""

import signal
from types import FrameType, TracebackType
from typing import Self

from segdream_cli.runs.stopping import StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(StopRequest):
    """Inside its `with` block, the first signal requests the stop and a second one ends the program."""

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_set():
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.exit_code = 128 + number
        self.set()
