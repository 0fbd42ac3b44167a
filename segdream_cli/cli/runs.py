"""`segdream runs`: lists run folders, and removes those that nobody needs."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.output import Output
from segdream_cli.cli.schema import Removed, RunRow
from segdream_cli.errors import SegdreamError
from segdream_cli.util.text import format_size

if TYPE_CHECKING:
    from segdream_cli.runs.listing import RunInfo


def runs(
    context: typer.Context,
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER", help="Folder to search, with those below; default: here.")
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove run folders from which nothing can be resumed.")
    ] = False,
    stopped: Annotated[
        bool, typer.Option("--stopped", help="With --clean, also those of stopped and damaged runs.")
    ] = False,
    yes: shared.YesOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """List run folders, or remove them.

    segdream runs assets/

    segdream runs --clean

    States: running, stopped (can be resumed), done, gone (its asset too),
    leftover (of a killed process), damaged.

    Assets stay, and so do files that segdream did not write.
    """
    from segdream_cli.runs.listing import REMOVABLE, RUNNING, list_runs

    sink = Output(json=json, quiet=quiet)
    if not clean:
        shared.refuse_options(context, {"stopped", "yes"}, "only affects --clean", "segdream runs --clean --yes")
    found = list_runs(folders or [Path()])
    if not clean:
        _list(found, sink)
        if any(run.state in REMOVABLE for run in found):
            sink.suggest(["segdream", "runs", *map(str, folders or ()), "--clean"])
        return
    chosen = [run for run in found if run.state in REMOVABLE or (stopped and run.state != RUNNING)]
    busy = sum(run.state == RUNNING for run in found)
    kept = len(found) - len(chosen) - busy
    if busy:
        sink.note(f"{busy} running: not removed")
    if kept:
        sink.note(f"{kept} stopped or damaged: not removed without --stopped")
    if not chosen:
        sink.note("no run folder to remove")
        return
    for run in chosen:
        sink.note(_describe(run))
    size = format_size(sum(run.bytes for run in chosen))
    shared.confirm(sink, f"remove {shared.count(len(chosen), 'run folder')}, {size}?", yes=yes)
    _remove(chosen, sink, resumable=stopped)


def _list(found: "Sequence[RunInfo]", sink: Output) -> None:
    """Prints the runs, and notes their number per state."""
    for run in found:
        line = RunRow(
            path=run.path,
            state=run.state,
            step=run.step,
            total_steps=run.total_steps,
            bytes=run.bytes,
            modified=datetime.fromtimestamp(run.modified, UTC).isoformat(timespec="seconds"),
            prompt=run.prompt,
            seed=run.seed,
            output=run.output,
        )
        sink.result(line, _describe(run))
    states = Counter(run.state for run in found)
    parts = ", ".join(f"{number} {state}" for state, number in states.items())
    size = format_size(sum(run.bytes for run in found))
    sink.note(f"{shared.count(len(found), 'run folder')}, {size}: {parts}" if found else "no run folder here")


def _describe(run: "RunInfo") -> str:
    """A line about a run."""
    step = "" if run.step is None else f"{run.step}/{run.total_steps}"
    about = "" if run.prompt is None else f"  {run.prompt}, seed {run.seed}"
    return f"{run.state:8} {step:>11} {format_size(run.bytes):>9}  {run.path}{about}"


def _remove(chosen: "Sequence[RunInfo]", sink: Output, *, resumable: bool) -> None:
    """Removes the run folders; one that a process works on by now stays.

    Raises:
        SegdreamError: a folder can't be removed; the others are gone.
    """
    from segdream_cli.runs.ownership import remove_folder

    kept = []
    for run in chosen:
        try:
            gone = remove_folder(run.path, resumable=resumable)
        except BlockingIOError:
            sink.note(f"{run.path} stays: a process works on it")
        except OSError as problem:
            kept.append(f"{run.path} stays: {problem.strerror or problem}")
        else:
            if gone:
                sink.result(Removed(path=run.path, bytes=run.bytes), f"removed {run.path}")
            else:
                sink.note(f"{run.path} stays: it holds files of others, or a run that can be resumed by now")
    if kept:
        raise SegdreamError("; ".join(kept))
