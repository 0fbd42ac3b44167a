"""The only module that prints: results to stdout, other messages to stderr."""

import json
import math
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdream_cli.cli.streams import printable
from segdream_cli.errors import SegdreamError

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Output:
    """The streams that a command writes to.

    Args:
        json: print results and errors to stdout as JSON, one object per line; fields are only ever added.
        quiet: print only results and errors.
    """

    json: bool = False
    quiet: bool = False

    def result(self, result: str | Path, **fields: Any) -> None:
        """Prints a result: its path or text, or with `json` an object with all fields."""
        if self.json:
            self._line(event="done", output=str(result), **fields)
        else:
            raw = isinstance(result, Path) and not sys.stdout.isatty()  # programs get paths as they are
            text = str(result) if raw else printable(str(result))
            try:
                sys.stdout.write(f"{text}\n")
            except UnicodeEncodeError:  # the terminal can't encode this path: print its bytes on disk
                sys.stdout.buffer.write(os.fsencode(f"{text}\n"))
            sys.stdout.flush()

    def plan(self, output: Path, text: str, **fields: Any) -> None:
        """Prints an asset of a dry run: a text, or with `json` an object."""
        if self.json:
            self._line(event="planned", output=str(output), **fields)
        else:
            self.result(text)

    def tables(self, tables: Sequence[Any], **summary: Any) -> None:
        """Prints rich tables as a result, or with `json` one object with the summary's fields."""
        if self.json:
            self._line(event="summary", **summary)
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
        if not self.quiet:
            sys.stderr.write(f"{printable(message)}\n")
            sys.stderr.flush()

    def choice(self, output: Path, message: str, *, scores: Mapping[int, float], **fields: Any) -> None:
        """Reports which seed was chosen by its score: a note, and with `json` an object."""
        if self.json:
            table = [{"seed": seed, "score": score if math.isfinite(score) else None} for seed, score in scores.items()]
            self._line(event="chosen", output=str(output), seeds=table, **fields)
        self.note(message)

    def skip(self, output: Path, message: str) -> None:
        """Reports a result that exists already: a note, and with `json` an object."""
        if self.json:
            self._line(event="skipped", output=str(output))
        self.note(message)

    def stop(self, run: Path, step: int, message: str) -> None:
        """Reports a run that was saved before its end: a note, and with `json` an object."""
        if self.json:
            self._line(event="stopped", run=str(run), step=step)
        self.note(message)

    def error(self, problem: SegdreamError, output: Path | None = None) -> None:
        """Prints the error and the hint of a command, or of the item of a list with this `output`."""
        if self.json:
            item = {} if output is None else {"output": str(output)}
            self._line(event="error", message=problem.message, hint=problem.hint, exit_code=problem.exit_code, **item)
        sys.stderr.write(f"error: {printable(problem.message)}\n")
        if problem.hint:
            sys.stderr.write(f"hint:  {printable(problem.hint)}\n")
        if output is not None and os.environ.get("SEGDREAM_DEBUG"):
            traceback.print_exception(problem, file=sys.stderr)
        sys.stderr.flush()

    def _line(self, **fields: Any) -> None:
        sys.stdout.write(json.dumps({"schema": SCHEMA, **fields}) + "\n")
        sys.stdout.flush()
