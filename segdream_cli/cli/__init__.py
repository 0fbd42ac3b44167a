"""The command line: one file per command. Errors become messages and exit codes here."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from types import FrameType
from typing import Any, NoReturn

import typer
import typer.main

from segdream_cli.cli import (
    cache,
    doctor,
    evaluate,
    export,
    fetch,
    generate,
    info,
    init,
    lod,
    refine,
    render,
    report,
    runs,
    view,
)
from segdream_cli.cli.command_line import Command, forget_command
from segdream_cli.cli.output import Output
from segdream_cli.cli.streams import lasting_streams
from segdream_cli.cli.usage import explain
from segdream_cli.errors import EXIT_CODES, Interrupted, SegdreamError
from segdream_cli.util import compat, files
from segdream_cli.util.failures import as_failure, check_address_space

EPILOG = "Exit codes: " + ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."

_UsageError = compat.usage_error(typer.BadParameter)

app = typer.Typer(
    name="segdream",
    help="Make 3D Gaussian splats from a sentence.\n\n"
    'segdream generate "a yellow school bus" -o bus.ply\n\n'
    "segdream render bus.ply --turntable",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
IMPORTS_GIB, NETWORKS_GIB = 1.5, 4.0
"""Address space that a command needs: to import the libraries, and to run networks too."""
COMMANDS: Mapping[Callable[..., None], float] = {
    generate.generate: NETWORKS_GIB,
    view.view: IMPORTS_GIB,
    info.info: IMPORTS_GIB,
    render.render: IMPORTS_GIB,
    export.export: IMPORTS_GIB,
    lod.lod: IMPORTS_GIB,
    refine.refine: NETWORKS_GIB,
    evaluate.evaluate: NETWORKS_GIB,
    report.report: IMPORTS_GIB,
    init.init: NETWORKS_GIB,
    runs.runs: IMPORTS_GIB,
    fetch.fetch: IMPORTS_GIB,
    cache.cache: IMPORTS_GIB,
    doctor.doctor: IMPORTS_GIB,
}


def _within_address_space(command: Callable[..., None], needed_gib: float) -> Callable[..., None]:
    """The command after a check that this process may use so much address space."""

    @wraps(command)
    def checked(**options: Any) -> None:
        check_address_space(needed_gib)
        command(**options)

    return checked


for command, needed_gib in COMMANDS.items():
    checked = _within_address_space(command, needed_gib)
    app.command(cls=Command)(checked)


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Show the version and exit.", is_eager=True),
) -> None:
    if version:
        from segdream_cli import __version__

        Output().text(__version__)
        raise typer.Exit


def main() -> NoReturn:
    """Runs the command line of this process and exits."""
    # OpenMP's threads wait in a loop by default, which takes half of a busy machine's time. It reads this with torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done, and libraries that clean up would print a traceback
    gc.freeze()  # else the interpreter's last collections scan all objects of the libraries, which takes a second
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns its exit code."""
    output = Output(json="--json" in arguments)
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        with lasting_streams() as stdout:
            code = _report(arguments, output)
            stdout.flush()
            if stdout.failure is not None and code == 0:
                reason = stdout.failure.strerror
                output.error(SegdreamError(f"standard output can't be written: {reason}"))
                return 1
            return code
    finally:
        signal.signal(signal.SIGINT, before)


def _report(arguments: Sequence[str], output: Output) -> int:
    """Runs a command line, prints its error if it fails, and returns its exit code."""
    forget_command()
    try:
        return _run(list(arguments))
    except Interrupted as stop:
        return stop.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("SEGDREAM_DEBUG"):
            raise
        problem = as_failure(error)
        output.error(problem)
        return problem.exit_code


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ends the process at once on Ctrl-C, but lets the writer of a file remove its temporary file first.

    Python's own handler always raises, which prints a traceback during the import of a library.

    Raises:
        KeyboardInterrupt: a file is being written.
    """
    if files.is_writing():
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _run(arguments: list[str]) -> int:
    """Runs a command and returns its exit code; Typer's usage errors become `UsageProblem`.

    Raises:
        SegdreamError: the command failed, or its command line is wrong.
    """
    try:
        code = app(args=arguments, prog_name="segdream", standalone_mode=False, obj=arguments)
    except _UsageError as problem:
        if not problem.format_message():  # no arguments: Typer has printed the help
            return int(problem.exit_code)
        raise explain(problem, typer.main.get_command(app), arguments) from problem
    return code if isinstance(code, int) else 0
