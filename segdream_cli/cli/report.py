"""`segdream report`: a page about a run or an asset."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli import reading
from segdream_cli.cli.output import Output
from segdream_cli.cli.schema import RunReported
from segdream_cli.errors import UsageProblem


def report(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or an asset.")],
    output: shared.OutputOption = None,
    frame: reading.FrameOption = None,
    strict: reading.StrictOption = False,
    as_splats: reading.AsSplatsOption = False,
    skip_existing: shared.SkipOutputOption = False,
    force: shared.ForceOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Write a page about a run or an asset.

    segdream report bus.run -o bus.html

    segdream report bus.ply

    It shows the asset, the curves of the run, its previews, settings, times
    and machine, in one file. Of an asset without its run folder, it shows
    the facts that the file holds.
    """
    from segdream_cli.runs.report import read_story, write_report
    from segdream_cli.util.files import check_output, write_policy

    path = output or Path(f"{source.stem}-report.html")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageProblem(f"{path} is not an .html file", hint=f"-o {quote(str(path.with_suffix('.html')))}")
    sink = Output(json=json, quiet=quiet)
    if shared.is_skipped(path, sink, skip=skip_existing, force=force):
        return
    check_output(path, force=force)
    files = [source] if source.is_file() else []
    how = reading.choose_reading(files, sink, frame=frame, strict=strict, as_splats=as_splats)
    story = read_story(source, how)
    with write_policy(replace=force):
        shown = write_report(path, story)
    sink.done(RunReported(output=path, source=source, **shown))
