"""`segdream lod`: levels of detail for streaming."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.output import Output
from segdream_cli.cli.reading import AsSplatsOption, FrameOption, StrictOption, read_assets
from segdream_cli.cli.schema import Leveled
from segdream_cli.errors import OutputExists, UsageProblem


def lod(
    asset: Annotated[Path, typer.Argument(help="Asset to make levels of.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write.", rich_help_panel=shared.OUTPUT)
    ] = None,
    levels: Annotated[
        int | None,
        typer.Option(
            "--levels",
            min=1,
            max=8,
            help="Number of levels, each with a quarter of the one before.",
            show_default="up to 5, of 10,000 Gaussians and more",
        ),
    ] = None,
    frame: FrameOption = None,
    strict: StrictOption = False,
    as_splats: AsSplatsOption = False,
    skip_existing: shared.SkipOutputOption = False,
    force: shared.ForceOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Write levels of detail for streaming.

    segdream lod scan.ply -o scan

    The folder holds lod-meta.json and chunks of SOG, which PlayCanvas and SuperSplat stream.
    """
    from segdream_cli.formats.lod import LOD_META, write
    from segdream_cli.simplify.levels import build_levels
    from segdream_cli.util.files import write_policy

    sink = Output(json=json, quiet=quiet)
    folder = Path(f"{asset.stem}-lod") if output is None else output
    if shared.is_skipped(folder, sink, skip=skip_existing, force=force, last=folder / LOD_META):
        return
    check_folder(folder, force=force)
    (splats,) = read_assets([asset], sink, frame=frame, strict=strict, as_splats=as_splats)
    made = build_levels(splats, levels)
    sink.note(f"levels of {', '.join(f'{len(level):,}' for level in made)} Gaussians")
    with write_policy(replace=force):
        write(folder, made)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    sink.done(
        Leveled(
            output=folder,
            asset=asset,
            files=len(files),
            bytes=sum(file.stat().st_size for file in files),
            gaussians=[len(level) for level in made],
        )
    )


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuses a folder that can't be written, before any work; only one with levels of detail may be replaced.

    Raises:
        OutputExists: it exists, and `force` is false.
        UsageProblem: it is something else than levels of detail, or the folder around it is missing or not writable.
    """
    from segdream_cli.formats.lod import LOD_META
    from segdream_cli.util.files import check_output, free_name, is_folder, lexists

    other = f"-o {quote(str(folder.with_name(f'{folder.name}-lod')))}" if folder.name else "-o scan-lod"
    if not folder.name:
        raise UsageProblem(f"{folder} can't be replaced as a whole", hint=other)
    if is_folder(folder) and not folder.is_symlink():
        if not (folder / LOD_META).is_file():
            raise UsageProblem(f"{folder} is a folder without {LOD_META}, and is not replaced", hint=other)
        if not force:
            raise OutputExists(f"{folder} exists; --force replaces it", hint=f"-o {quote(str(free_name(folder)))}")
    elif lexists(folder):
        raise UsageProblem(f"{folder} is not a folder", hint=other)
    else:
        check_output(folder, force=force)
