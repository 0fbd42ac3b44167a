"""The request that stops a run."""

from types import TracebackType
from typing import Self


class StopRequest:
    """Asks a run to save itself and stop after the present step.

    A run enters it as a context while it takes steps, so that a subclass can handle signals during that time.
    """

    exit_code = 130
    """Exit code of a command that this request stopped."""

    def __init__(self) -> None:
        self._asked = False
        self.when = "after this step"
        """When a request that is made now takes effect; the run keeps it up to date."""

    def set(self) -> None:
        """Requests the stop; any thread may call this."""
        self._asked = True

    def is_set(self) -> bool:
        """Whether the request was made."""
        return self._asked

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Does nothing."""
