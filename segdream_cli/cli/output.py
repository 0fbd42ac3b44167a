"""The one place that prints: results to stdout, everything else to stderr."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdream_cli.errors import SegdreamError

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command's words go.

    Args:
        json: results and errors as one JSON object a line on stdout; its fields only ever grow.
        quiet: say nothing but results and errors.
    """

    json: bool = False
    quiet: bool = False

    def result(self, result: str | Path, **fields: Any) -> None:
        """A result: its path or text, or with `json` an object with more about it."""
        if self.json:
            self._line(event="done", output=str(result), **fields)
        else:
            try:
                sys.stdout.write(f"{result}\n")
            except UnicodeEncodeError:  # a path beyond the terminal's encoding goes out as the bytes it has on disk
                sys.stdout.buffer.write(os.fsencode(f"{result}\n"))
            sys.stdout.flush()

    def note(self, message: str) -> None:
        """Something a person may want to know."""
        if not self.quiet:
            sys.stderr.write(f"{message}\n")
            sys.stderr.flush()

    def skipped(self, output: Path, message: str) -> None:
        """A result that is there already: a note, or with `json` an object."""
        if self.json:
            self._line(event="skipped", output=str(output))
        self.note(message)

    def stopped(self, run: Path, step: int, message: str) -> None:
        """A run that was saved before its end: a note, and with `json` an object."""
        if self.json:
            self._line(event="stopped", run=str(run), step=step)
        self.note(message)

    def error(self, problem: SegdreamError, output: Path | None = None) -> None:
        """Why a command, or the item of a list that goes to `output`, failed, and what to do next."""
        if self.json:
            item = {} if output is None else {"output": str(output)}
            self._line(event="error", message=problem.message, hint=problem.hint, exit_code=problem.exit_code, **item)
        sys.stderr.write(f"error: {problem.message}\n")
        if problem.hint:
            sys.stderr.write(f"hint:  {problem.hint}\n")
        sys.stderr.flush()

    def _line(self, **fields: Any) -> None:
        sys.stdout.write(json.dumps({"schema": SCHEMA, **fields}) + "\n")
        sys.stdout.flush()
