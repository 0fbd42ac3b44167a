"""Signals: the first Ctrl-C, SIGTERM or SIGHUP finishes the step, a second one exits at once."""

import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

from segdream_cli.runs.stopping import StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))

STOPPING = "stopping {when}; a second Ctrl-C exits at once, without saving"


class StopOnSignal(StopRequest):
    """Inside its `with` block, the first signal requests the stop and a second one ends the program.

    Args:
        note: prints a message for a person at the first signal, since a step or a repaint may take many seconds.
        message: what it says, with {when} for when the run stops.
    """

    def __init__(self, note: Callable[[str], None] | None = None, message: str = STOPPING) -> None:
        super().__init__()
        self._note, self._message = note, message
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._before = {
            number: signal.signal(number, self._handle)
            for number in SIGNALS
            if number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) != signal.SIG_IGN  # `nohup`
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number not in (signal.SIGINT, signal.SIGTERM) and self.is_set():
            return  # a closing terminal sends SIGHUP, and its shell does so again
        if self.is_set():
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.exit_code = 128 + number
        self.set()
        if self._note is not None:
            with suppress(RuntimeError, OSError):  # the signal interrupted a write to the same stream, or it is closed
                self._note(self._message.format(when=self.when))
