"""How a run is asked to stop."""

from types import TracebackType
from typing import Self


class StopRequest:
    """Asks a run to save itself and stop after the present step.

    A run enters it as a context while it takes steps, so that a subclass can watch for a signal meanwhile.
    """

    exit_code = 130
    """What a command that was stopped so ends with."""

    def __init__(self) -> None:
        self._asked = False

    def set(self) -> None:
        """Asks for the stop; may be called from any thread."""
        self._asked = True

    def is_set(self) -> bool:
        """Whether the stop has been asked for."""
        return self._asked

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the request as it is."""
