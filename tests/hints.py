"""Follows hints as a person would: types each into a shell, and expects that the error does not come back."""

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, SimpleNamespace

import pytest
import typer.main

from segdream_cli.cli import app
from segdream_cli.util.files import is_writing

CPU_S, WALL_S = 1.0, 20.0
"""A command that has run for so long without its error has been cured: seconds of this process, and by the clock."""
ERROR = re.compile(r"^error: (.*)\nhint:  (.*)$", re.MULTILINE)
DETAIL = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[\d/.]\S*")
"""Parts of errors that differ between errors of a kind: quoted texts, numbers and paths."""
PLACEHOLDER = re.compile(r"\.\.\.|/path/to|\b(NAME|FILE|FOLDER|PATH|HOST)\b| # ")
LOOKS = ("df", "export SEGDREAM_DEBUG", "flock", "ls", "ray", "segdream doctor", "sync", "unset HF_HUB_OFFLINE")
"""Beginnings of commands that show the cause or wait for its end. A process reads HF_HUB_OFFLINE only once."""
INSTALLS = ("pip", "uv", "sudo", "ulimit", "python", "npx", "hf")
"""Programs that change the machine, or that a test can't run."""
ELSEWHERE = ("--ray", "--devices")
"""Options that start other processes, which would outlive the test."""


@dataclass(frozen=True)
class Hint:
    """An error with its hint, and the command line that it came from, without the program."""

    arguments: tuple[str, ...]
    message: str
    text: str


class Enough(BaseException):
    """The time of a command is over."""


def find_hints(arguments: Sequence[str], err: str) -> list[Hint]:
    """The errors with hints that a command printed."""
    return [Hint(tuple(arguments), *found) for found in ERROR.findall(err)]


def parse(words: Sequence[str]) -> None:
    """Parses the words after `segdream`; raises typer's usage error if the command does not have these options."""
    group = typer.main.get_command(app)
    with group.make_context("segdream", list(words)) as context:
        name, command, rest = group.resolve_command(context, list(words))
        with command.make_context(name, rest, parent=context):
            pass


def check(text: str) -> None:
    """A hint is commands of a shell, without placeholders, and those of segdream have their options."""
    assert not PLACEHOLDER.search(text), f"the hint can't be pasted: {text}"
    for command in text.split(" && "):
        words = shlex.split(command)
        assert not words[0].startswith("-"), f"the hint is no command: {text}"
        if words[0] == "segdream" and not {"--help", "--version"} & {*words}:
            parse(words[1:])


@contextmanager
def limited() -> Iterator[None]:
    """Ends the block after a time, but not amid an import, a compilation or the writing of a file, which end whole.

    A video is ended between two frames: rendering all of them takes a minute.
    """
    report = sys.unraisablehook

    def report_others(unraisable: "sys.UnraisableHookArgs") -> None:
        if not isinstance(unraisable.exc_value, Enough):
            report(unraisable)

    def ring(number: int, frame: FrameType | None) -> None:
        calls = set[str]()
        while frame is not None:
            calls.add(f"{frame.f_code.co_filename} {frame.f_code.co_name}")
            frame = frame.f_back
        writes = is_writing() and not any(call.endswith("job.py images") for call in calls)
        if writes or any(part in call for call in calls for part in ("importlib", "numba", "_inductor")):
            signal.setitimer(signal.ITIMER_PROF, 0.1)
        else:
            signal.setitimer(signal.ITIMER_PROF, CPU_S)  # again: a callback of the garbage collector swallows the error
            raise Enough

    sys.unraisablehook = report_others
    timers = {signal.ITIMER_PROF: (signal.SIGPROF, CPU_S), signal.ITIMER_REAL: (signal.SIGALRM, WALL_S)}
    before = {number: signal.signal(number, ring) for number, _ in timers.values()}
    try:
        for timer, (_, seconds) in timers.items():
            signal.setitimer(timer, seconds)
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = report


def follow(hint: Hint, run: Callable[..., str | None], folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Types a hint, and for one that only prepares, then the command that failed; its error must not come back.

    Args:
        hint: what to follow.
        run: runs the words after `segdream` and returns the error that they end in.
        folder: where the shell is; nothing outside is removed.
        patch: changes the environment.
    """
    check(hint.text)
    if hint.text.startswith(LOOKS) or shlex.split(hint.text)[0] in INSTALLS:
        return
    again = True
    for command in hint.text.split(" && "):
        words = shlex.split(command)
        if words[0] == "segdream":
            again = words[1] in ("fetch", "cache") and hint.arguments[0] != words[1]
            error = None if set(words) & set(ELSEWHERE) else run(*words[1:])
            assert error != hint.message, f"{hint.text} ends in the error that it should cure: {error}"
            if error is not None:  # of another kind, such as a network that a test does not have
                return
        elif words[0] == "export":
            patch.setenv(*words[1].split("=", 1))
        elif words[0] == "unset":
            patch.delenv(words[1], raising=False)
        else:
            outside = [
                word for word in words[1:] if word.startswith(("/", "~")) and not Path(word).is_relative_to(folder)
            ]
            assert words[0] != "rm" or not outside, f"{command} removes what is not the test's"
            subprocess.run(command, shell=True, cwd=folder, check=True, timeout=20, capture_output=True)
    if again and not set(hint.arguments) & set(ELSEWHERE):
        error = run(*hint.arguments)
        assert error != hint.message, f"after {hint.text}, the same error comes back: {error}"


_followed = set[tuple[str, str]]()
"""The kinds of errors that this process has followed: the command, and the message without details."""


def follow_all(hints: Sequence[Hint], run: Callable[..., str], folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Follows hints, once for each kind of error; `run` returns what a command prints to stderr in one line."""
    ended = SimpleNamespace(is_set=lambda: True, exit_code=0)
    patch.setattr("segdream_cli.cli.view.StopOnSignal", lambda: nullcontext(ended))  # or a page waits for Ctrl-C

    def end(*words: str) -> str | None:
        try:
            with limited():
                said = run(*words)
        except Enough:
            return None
        return next(iter(re.findall(r"error: (.*?)(?: hint: |$)", said)), None)

    for hint in hints:
        if "$'" in hint.text:  # which bash and zsh can split, and shlex can't
            continue
        kind = hint.arguments[0], DETAIL.sub("", hint.message)
        if kind in _followed:
            check(hint.text)
            continue
        _followed.add(kind)
        follow(hint, end, folder, patch)
