"""The errors that a user can meet, with their exit codes.

    SegdreamError            1  the work failed
    +-- UsageProblem         2  a prompt, option, setting or input file can't be used
    |   +-- PromptProblem    2  a prompt can't be used; the hint may have another one
    |   +-- OptionProblem    2  an option has no effect beside the others, or contradicts them
    +-- EnvironmentProblem   3  the machine lacks CUDA, a compiler or ffmpeg
    +-- WeightsUnavailable   4  a checkpoint is missing, incomplete, damaged or of the wrong kind
    |   +-- WeightsAbsent    4  it is not on this machine, and offline mode is on
    +-- OutOfMemory          5  the run does not fit the device's memory
    +-- OutputExists         6  the output exists and --force was not given
    +-- Diverged             7  a gradient is not finite
    Interrupted        128 + n  signal n, or the caller, stopped a run, which has been saved

Any module may raise them; only the command line prints them.
"""

import shlex
from collections.abc import Collection, Mapping
from types import MappingProxyType

EXIT_CODES = {
    0: "done",
    1: "failed",
    2: "usage",
    3: "environment",
    4: "weights",
    5: "out of memory",
    6: "output exists",
    7: "diverged",
    129: "hung up",
    130: "interrupted",
    143: "terminated",
}
"""Each exit code with its meaning, as `segdream --help` prints them."""


class SegdreamError(Exception):
    """An error with a one-sentence message and a hint.

    Libraries do not know the command line, so they name its correction, and the command line makes a whole command of
    it: with the options of `hint`, without those of `without`, and with other `words`.

    Args:
        message: what is wrong and with which input; no full stop at the end.
        hint: one command to type that cures it; or options, quoted for a shell, for the command that failed.
        without: what to leave out of it: an option such as "--fps", one use of it such as "--set optim.steps" or
            "-o bus.mp4", an argument such as "PROMPT", or the value of one.
        words: argument of it -> one to use in its place.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        without: Collection[str] = (),
        words: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.without = tuple(without)
        self.words = dict(words)


class UsageProblem(SegdreamError):
    """A prompt, option, setting or input file can't be used."""

    exit_code = 2


class PromptProblem(UsageProblem):
    """A prompt can't be used.

    Args:
        message: see `SegdreamError`.
        prompt: the text as given.
        instead: the text to use; None if no text is near.
        hint: see `SegdreamError`; with `instead`, the command that uses it.
    """

    def __init__(self, message: str, *, prompt: str = "", instead: str | None = None, hint: str | None = None) -> None:
        if instead is None:
            super().__init__(message, hint=hint)
        else:
            super().__init__(message, hint=shlex.join(["segdream", "generate", instead]), words={prompt: instead})
        self.prompt, self.instead = prompt, instead


class OptionProblem(UsageProblem):
    """Options have no effect beside the others, or contradict them."""


class EnvironmentProblem(SegdreamError):
    """The machine lacks something that the command needs."""

    exit_code = 3


class WeightsUnavailable(SegdreamError):
    """A checkpoint can't be found, fetched, read or trusted."""

    exit_code = 4


class WeightsAbsent(WeightsUnavailable):
    """A checkpoint is not on this machine, and offline mode is on."""


class OutOfMemory(SegdreamError):
    """The run does not fit the device's memory."""

    exit_code = 5


class OutputExists(SegdreamError):
    """The output exists and --force was not given."""

    exit_code = 6


class Diverged(SegdreamError):
    """The optimisation of an asset produced a number that is not finite.

    Args:
        message: see `SegdreamError`.
        hint: see `SegdreamError`.
        index: which asset of the batch diverged, from 0.
    """

    exit_code = 7

    def __init__(self, message: str, *, hint: str | None = None, index: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.index = index


class Interrupted(Exception):
    """A run stopped on request before its end, and its progress is saved.

    It is not a `SegdreamError`, so code that continues a list after a failed item does not continue after this.

    Args:
        message: names the run that stopped.
        exit_code: exit code of the command.
    """

    def __init__(self, message: str, *, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code
