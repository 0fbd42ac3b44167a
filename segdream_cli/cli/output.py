"""The only module that prints: results to stdout, other messages to stderr."""

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdream_cli.cli.command_line import complete_hint
from segdream_cli.cli.schema import Done, Failed, Line
from segdream_cli.errors import SegdreamError
from segdream_cli.util.text import printable, printable_command

Said = tuple[Line, str | None]
"""A line, and the message of an event; None for a result."""
_relay: ContextVar[tuple[list[Said], Callable[[str], None]] | None] = ContextVar("_relay", default=None)


@contextmanager
def relay(lines: list[Said], note: Callable[[str], None]) -> Iterator[None]:
    """Gives the lines and notes of the commands in this block to `lines` and `note` in place of the streams."""
    token = _relay.set((lines, note))
    try:
        yield
    finally:
        _relay.reset(token)


def has_relay() -> bool:
    """Whether a worker runs this command for another one."""
    return _relay.get() is not None


@dataclass(frozen=True, slots=True)
class Output:
    """The streams that a command writes to.

    Args:
        json: print results and errors to stdout as JSON, one object per line, as `schema.py` has them.
        quiet: print only results and errors.
    """

    json: bool = False
    quiet: bool = False

    def done(self, line: Done) -> None:
        """Prints the path of what was written, or with `json` its line."""
        self._print(line, line.output)

    def result(self, line: Line, *texts: str) -> None:
        """Prints a result: texts, or with `json` its line."""
        self._print(line, *texts)

    def text(self, text: str) -> None:
        """Prints a text to stdout, also with `json`."""
        self._write(printable(text))

    def _print(self, line: Line, *texts: str | Path) -> None:
        if relayed := _relay.get():
            relayed[0].append((line, None))
        elif self.json:
            self._write(line.encode())
        for each in () if relayed or self.json else texts:
            raw = isinstance(each, Path) and not sys.stdout.isatty()  # programs get paths as they are
            self._write(str(each) if raw else printable(str(each)))

    def _write(self, text: str) -> None:
        try:
            sys.stdout.write(f"{text}\n")
        except UnicodeEncodeError:  # the terminal can't encode this path: print its bytes on disk
            sys.stdout.buffer.write(os.fsencode(f"{text}\n"))
        sys.stdout.flush()

    def tables(self, line: Line, tables: Sequence[Any]) -> None:
        """Prints rich tables as a result, or with `json` their line."""
        if self.json:
            self._write(line.encode())
            return
        from rich.console import Console

        console = Console(file=sys.stdout)
        if not console.is_terminal:
            console = Console(file=sys.stdout, width=10_000)  # no terminal limits the columns of a file or pipe
        with console.capture() as capture:
            for table in tables:
                console.print(table)
        text = "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()

    def note(self, message: str) -> None:
        """Prints a message for a person to stderr."""
        if relayed := _relay.get():
            relayed[1](message)
        elif not self.quiet:
            sys.stderr.write(f"{printable(message)}\n")
            sys.stderr.flush()

    def suggest(self, command: Sequence[str]) -> None:
        """Shows the command that usually comes next to a person at a terminal; an empty one is none."""
        if command and not self.json and not has_relay() and sys.stderr.isatty():
            self.note(f"next: {printable_command(shlex.join(command))}")

    def can_ask(self) -> bool:
        """Whether a person can be asked."""
        return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()

    def ask(self, question: str) -> bool:
        """Asks a person on stderr, and returns whether the answer is yes."""
        sys.stderr.write(f"{printable(question)} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def report(self, line: Line, message: str) -> None:
        """Reports an event: a note, and with `json` its line too."""
        if relayed := _relay.get():
            relayed[0].append((line, message))
            return
        if self.json:
            self._write(line.encode())
        self.note(message)

    def error(self, problem: SegdreamError, output: Path | None = None) -> None:
        """Prints the error and the hint of a command, or of the item of a list with this `output`."""
        hint = complete_hint(problem)
        if self.json:
            code = problem.exit_code
            line = Failed(message=problem.message, hint=hint, exit_code=code, output=output)
            self._write(line.encode())
        sys.stderr.write(f"error: {printable(problem.message)}\n")
        if hint:
            sys.stderr.write(f"hint:  {printable_command(hint)}\n")
        if output is not None and os.environ.get("SEGDREAM_DEBUG"):
            traceback.print_exception(problem, file=sys.stderr)
        sys.stderr.flush()
