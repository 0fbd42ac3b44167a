"""`segdream export`: an asset in another format, or as a mesh."""

from pathlib import Path
from typing import Annotated

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.output import Output
from segdream_cli.errors import UsageProblem

MESH = "mesh"
MESH_PANEL = "Mesh"


def export(
    asset: Annotated[Path | None, typer.Argument(help="Asset to convert.")] = None,
    outputs: Annotated[
        list[Path] | None,
        typer.Option("-o", "--output", help="File to write; repeatable.", rich_help_panel=shared.OUTPUT),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="Format where the suffix leaves a choice.", rich_help_panel=shared.OUTPUT),
    ] = None,
    formats: Annotated[bool, typer.Option("--formats", help="Show the known formats and exit.")] = False,
    faces: Annotated[
        int, typer.Option("--faces", min=100, max=10_000_000, help="Triangles of a mesh.", rich_help_panel=MESH_PANEL)
    ] = 20_000,
    texture_size: Annotated[
        int,
        typer.Option(
            "--texture-size", min=64, max=8192, help="Side of its texture in pixels.", rich_help_panel=MESH_PANEL
        ),
    ] = 1024,
    opacity: Annotated[
        float,
        typer.Option(
            "--opacity", min=0.01, max=0.99, help="Less keeps fainter parts of a mesh.", rich_help_panel=MESH_PANEL
        ),
    ] = 0.5,
    force: shared.ForceOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Convert an asset.

    segdream export bus.ply -o bus.splat

    segdream export bus.ply --format points -o cloud.ply

    segdream export bus.ply --format mesh -o bus.glb
    """
    from segdream_cli.files import check_output
    from segdream_cli.formats import FORMATS, read, write

    sink = Output(json=json, quiet=quiet)
    if formats:
        for name, row in FORMATS.items():
            sink.result(f"{name:14} {row.suffix:15} {row.description}")
        sink.result(f"{MESH:14} {'.glb .obj':15} triangles with a texture, for engines and printers")
        return
    if asset is None or not outputs:
        raise UsageProblem("give an ASSET and at least one -o", hint="segdream export bus.ply -o bus.splat")
    files = {path: _files(path, format) for path in outputs}
    for path in outputs:
        for file in files[path]:
            check_output(file, force=force)
    splats = read(asset)
    if any(_is_mesh(path, format) for path in outputs):
        from segdream_cli import mesh
    for path in outputs:
        facts: dict[str, object]
        if _is_mesh(path, format):
            made = mesh.extract(splats, faces=faces, texture_size=texture_size, opacity=opacity)
            mesh.write(path, made)
            facts = {"triangles": len(made.faces), "watertight": made.watertight}
        else:
            write(path, splats, format)
            facts = {"gaussians": len(splats)}
        sink.result(path, asset=str(asset), bytes=sum(file.stat().st_size for file in files[path]), **facts)


def _is_mesh(path: Path, format: str | None) -> bool:
    return format == MESH or (format is None and path.suffix.lower() == ".obj")


def _files(path: Path, format: str | None) -> list[Path]:
    """What will be written for an output.

    Raises:
        UsageProblem: the format is not known, or does not go with the suffix.
    """
    from segdream_cli.formats import check_format

    if not _is_mesh(path, format):
        check_format(path, format)
        return [path]
    suffix = path.suffix.lower()
    if suffix not in (".glb", ".obj"):
        raise UsageProblem(f"a mesh is written to .glb or .obj files, not to {path.name}", hint=f"-o {path.stem}.glb")
    return [path, path.with_suffix(".mtl"), path.with_suffix(".png")] if suffix == ".obj" else [path]
