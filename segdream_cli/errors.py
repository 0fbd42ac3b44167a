"""Every error a user can meet, and the exit code it ends with.

    SegdreamError            1  the work failed
    +-- UsageProblem         2  a prompt, option, configuration or input file that can't be used
    +-- EnvironmentProblem   3  something the machine lacks: CUDA, a compiler, ffmpeg
    +-- WeightsUnavailable   4  a checkpoint that is missing, incomplete or of the wrong kind
    +-- OutOfMemory          5  the device's memory does not hold the run
    +-- OutputExists         6  the result is there already and --force was not given
    +-- Diverged             7  a gradient is no longer a finite number

They are raised anywhere and turned into words by the command line only.
"""


class SegdreamError(Exception):
    """An error with one clear sentence, and a hint that is a command to type.

    Args:
        message: what is wrong, naming the thing and its value; no trailing full stop.
        hint: what to type or change next.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageProblem(SegdreamError):
    """What the user gave can't be used."""

    exit_code = 2


class EnvironmentProblem(SegdreamError):
    """The machine lacks something the command needs."""

    exit_code = 3


class WeightsUnavailable(SegdreamError):
    """A checkpoint can't be found, fetched, read or trusted."""

    exit_code = 4


class OutOfMemory(SegdreamError):
    """The run does not fit the device's memory."""

    exit_code = 5


class OutputExists(SegdreamError):
    """Writing would replace something that is there already."""

    exit_code = 6


class Diverged(SegdreamError):
    """The optimisation of an asset produced a number that is not finite.

    Args:
        message: as of every error.
        hint: as of every error.
        place: which of the assets of the run it is, from 0.
    """

    exit_code = 7

    def __init__(self, message: str, *, hint: str | None = None, place: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.place = place
