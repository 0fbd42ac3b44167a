"""`segdream export`: converts an asset to other formats or to a mesh, and edits it."""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import chain
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli import workers
from segdream_cli.cli.next_step import after_export
from segdream_cli.cli.output import Output
from segdream_cli.cli.reading import (
    AsSplatsOption,
    FrameOption,
    StrictOption,
    parse_frame,
    parse_front,
    parse_up,
    read_assets,
)
from segdream_cli.cli.schema import Exported, FormatRow
from segdream_cli.cli.targets import MESH, TargetName, apply_target
from segdream_cli.cli.usage import example_asset, with_asset
from segdream_cli.errors import OptionProblem, OutputExists, SegdreamError, UsageProblem
from segdream_cli.runs.jobs import FileJob
from segdream_cli.util.files import free_path

PAGE = "html"
MESH_SUFFIXES = (".glb", ".obj")
OTHER_MESHES = (".fbx", ".stl", ".dae", ".3ds", ".blend")
"""Suffixes of meshes of other programs."""
EDIT_PANEL, MESH_PANEL = "Edits, applied in this order", "Mesh"
MESH_OPTIONS = ("faces", "colors", "texture_size", "opacity", "collision", "compress")
Axis = StrEnum("Axis", ["x", "y", "z"])
Unit = StrEnum("Unit", {name: name for name in ("m", "cm", "mm", "in", "ft")})  # type: ignore[misc]
METRE: Unit = Unit("m")
Pivot = StrEnum("Pivot", ["ground", "center"])
Colors = StrEnum("Colors", ["texture", "vertex"])
TEXTURE: Colors = Colors("texture")
IN_METRES = (".glb", ".usdz")
"""Suffixes of formats whose coordinates are in metres by definition, or that say so."""
LARGEST = 1e6
"""Limit of factors and lengths; the square of its inverse still fits a 32-bit float."""


def export(
    context: typer.Context,
    assets: Annotated[
        list[str] | None,
        typer.Argument(help="Assets to convert to one file, each with a place: b.spz@X,Y,Z or b.spz@X,Y,Z,DEGREES."),
    ] = None,
    outputs: Annotated[
        list[Path] | None,
        typer.Option(
            "-o", "--output", help="File to write, may hold {stem}; repeatable.", rich_help_panel=shared.OUTPUT
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="Output format, where the suffix allows several.", rich_help_panel=shared.OUTPUT),
    ] = None,
    target: Annotated[
        TargetName | None,
        typer.Option(
            "--for", help="Choose format, axes, pivot and limits for a program.", rich_help_panel=shared.OUTPUT
        ),
    ] = None,
    output_frame: Annotated[
        str | None,
        typer.Option(
            "--output-frame",
            help="Where the axes of the written files point, such as ruf.",
            show_default="as the format says",
            rich_help_panel=shared.OUTPUT,
        ),
    ] = None,
    formats: Annotated[bool, typer.Option("--formats", help="List the formats, and exit.")] = False,
    mirror: Annotated[
        Axis | None,
        typer.Option("--mirror", help="Mirror along this axis.", rich_help_panel=EDIT_PANEL),
    ] = None,
    up: Annotated[
        str,
        typer.Option("--up", help="Turn this axis up: x, y, z, -x, -y or -z.", rich_help_panel=EDIT_PANEL),
    ] = "y",
    front: Annotated[
        str,
        typer.Option(
            "--front",
            help="Turn this axis, such as -x, or azimuth in degrees to the front.",
            show_default="0: z, or -y with --up z",
            rich_help_panel=EDIT_PANEL,
        ),
    ] = "0",
    prune_opacity: Annotated[
        float | None,
        typer.Option(
            "--prune-opacity", min=0, max=1, help="Drop Gaussians below this opacity.", rich_help_panel=EDIT_PANEL
        ),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(
            "--crop",
            help="Keep Gaussians in a box x0,y0,z0,x1,y1,z1 or within a radius R of the origin; y is up, +z is front.",
            rich_help_panel=EDIT_PANEL,
        ),
    ] = None,
    remove_floaters: Annotated[
        bool,
        typer.Option("--remove-floaters", help="Drop small parts that touch nothing else.", rich_help_panel=EDIT_PANEL),
    ] = False,
    largest_cluster: Annotated[
        bool,
        typer.Option("--largest-cluster", help="Keep the largest connected part.", rich_help_panel=EDIT_PANEL),
    ] = False,
    max_gaussians: Annotated[
        int | None,
        typer.Option(
            "--max-gaussians", min=1, help="Merge neighbours down to at most N Gaussians.", rich_help_panel=EDIT_PANEL
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option("--keep", help="The same for a share of the Gaussians: 25%.", rich_help_panel=EDIT_PANEL),
    ] = None,
    polish: Annotated[
        bool,
        typer.Option("--polish", help="Fit the merged Gaussians to renders of the asset.", rich_help_panel=EDIT_PANEL),
    ] = False,
    center: Annotated[
        bool, typer.Option("--center", help="Move the asset's centre to the origin.", rich_help_panel=EDIT_PANEL)
    ] = False,
    rotate: Annotated[
        str | None,
        typer.Option("--rotate", help="Rotate by X,Y,Z degrees: about x, then y, then z.", rich_help_panel=EDIT_PANEL),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale",
            min=1 / LARGEST,
            max=LARGEST,
            help="Multiply all lengths by this factor.",
            rich_help_panel=EDIT_PANEL,
        ),
    ] = None,
    height: Annotated[
        str | None,
        typer.Option("--height", help="Scale to this height: 3.2m, 45cm, 6ft; y is up.", rich_help_panel=EDIT_PANEL),
    ] = None,
    unit: Annotated[
        Unit, typer.Option("--unit", help="Unit to write; the input is in metres.", rich_help_panel=EDIT_PANEL)
    ] = METRE,
    pivot: Annotated[
        Pivot | None,
        typer.Option(
            "--pivot", help="Origin: on the ground below the middle, or the centre.", rich_help_panel=EDIT_PANEL
        ),
    ] = None,
    sh: Annotated[
        int | None,
        typer.Option(
            "--sh", min=0, max=3, help="Drop spherical harmonics above this degree.", rich_help_panel=EDIT_PANEL
        ),
    ] = None,
    spz_bits: Annotated[
        int | None,
        typer.Option(
            "--spz-bits",
            help="Fractional bits of positions in .spz: 12, 16 or 20.",
            show_default="16, or fewer for a large asset",
            rich_help_panel=shared.OUTPUT,
        ),
    ] = None,
    faces: Annotated[
        int,
        typer.Option(
            "--faces", min=100, max=10_000_000, help="Maximum number of triangles.", rich_help_panel=MESH_PANEL
        ),
    ] = 20_000,
    colors: Annotated[
        Colors,
        typer.Option("--colors", help="Colours in a texture or one per vertex.", rich_help_panel=MESH_PANEL),
    ] = TEXTURE,
    texture_size: Annotated[
        int,
        typer.Option("--texture-size", min=64, max=8192, help="Texture side in pixels.", rich_help_panel=MESH_PANEL),
    ] = 1024,
    opacity: Annotated[
        float,
        typer.Option(
            "--opacity",
            min=0.01,
            max=0.99,
            help="Opacity of the surface; lower keeps fainter parts.",
            rich_help_panel=MESH_PANEL,
        ),
    ] = 0.5,
    collision: Annotated[
        bool,
        typer.Option(
            "--collision", help="Convex pieces for physics, in place of a coloured mesh.", rich_help_panel=MESH_PANEL
        ),
    ] = False,
    compress: Annotated[
        bool,
        typer.Option("--compress", help="Compress a .glb: Draco, and the texture as JPEG.", rich_help_panel=MESH_PANEL),
    ] = False,
    devices: shared.EachOnDevicesOption = None,
    ray: shared.RayOption = None,
    gpus_per_worker: shared.GpusPerWorkerOption = 1.0,
    cpus_per_worker: shared.CpusPerWorkerOption = 1,
    frame: FrameOption = None,
    strict: StrictOption = False,
    as_splats: AsSplatsOption = False,
    skip_existing: shared.SkipOutputOption = False,
    force: shared.ForceOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Convert an asset and edit it.

    segdream export bus.ply -o bus.splat -o bus.spz -o bus.html

    segdream export scan.spz --crop 0.8 --center --rotate 0,90,0 -o toy.glb

    segdream export bus.ply tree.spz@1,0,0 tree.spz@-1,0,0,90 -o street.sog

    segdream export bus.ply --for unity

    segdream export bus.ply --format points -o cloud.ply

    segdream export bus.ply --format mesh -o bus.glb

    segdream export bus.ply --format mesh --height 3.2m --pivot ground -o bus.glb

    segdream export bus.ply --collision -o bus-collision.glb

    segdream export assets/ --devices cpu,cpu -o "web/{stem}.sog"
    """
    from segdream_cli.splats.scene import join, parse_placed
    from segdream_cli.util.files import all_or_none, write_policy

    sink = Output(json=json, quiet=quiet)
    if formats:
        others = set(context.params) - {"formats", "json", "quiet"}
        shared.refuse_options(context, others, "can't be combined with --formats, which writes no file")
        return list_formats(sink)
    if not assets or not (outputs or target):
        raise _incomplete(context, assets or (), outputs or ())
    places = find_each(assets, sink) if workers.has_workers(context) else [parse_placed(each) for each in assets]
    asset = places[0].path
    command = None if target is None else apply_target(context, str(target), asset, sink)
    templates, format = (context.params[name] for name in ("outputs", "format"))
    outputs = [shared.fill_stem(each, asset) for each in templates or ()]
    names = choose_formats(outputs, MESH if collision and format is None else format)
    check_mesh_options(context, outputs, names)
    _check_spz_bits(spz_bits, names)
    target_frame = choose_frame(context.params["output_frame"], names)
    edits, sizing, reduction = choose_edits(context), choose_sizing(context, outputs), choose_reduction(context)
    textured = colors == TEXTURE and not collision
    if workers.has_workers(context):
        return share_out(context, [each.path for each in places], templates, names, sink, textured=textured)
    pending = [
        (path, name)
        for path, name in zip(outputs, names, strict=True)
        if not shared.is_skipped(path, sink, skip=skip_existing, force=force)
    ]
    if not pending:
        return
    outputs, names = [path for path, _ in pending], [name for _, name in pending]
    files = _plan(outputs, names, textured=textured, force=force)
    paths = [each.path for each in places]
    whole = join(read_assets(paths, sink, frame=frame, strict=strict, as_splats=as_splats), places)
    splats, cuts = _edit(whole, edits, reduction, sink)
    mesh_options = {name: context.params[name] for name in MESH_OPTIONS}
    found = []
    with write_policy(replace=force), all_or_none(list(chain(*files))):
        for path, name in zip(outputs, names, strict=True):
            options = mesh_options if name == MESH else {"fractional_bits": spz_bits} if name.startswith("spz") else {}
            found.append(_write(sink, path, splats, name, target_frame, options, sizing))
    for path, name, written, facts in zip(outputs, names, files, found, strict=True):
        if len(written) > 1:
            sink.note(f"{path} needs {' and '.join(file.name for file in written[1:])} beside it")
        line = Exported(
            output=path,
            asset=asset,
            assets=paths,
            format=name,
            files=written,
            bytes=sum(file.stat().st_size for file in written),
            gaussians_read=len(whole),
            gaussians=len(splats),
            edits=cuts,
            target=target and str(target),
            command=command,
            **facts,
        )
        sink.done(line)
    sink.suggest(after_export(outputs, names))


def _incomplete(context: typer.Context, assets: Sequence[str], outputs: Sequence[Path]) -> UsageProblem:
    """The error to raise for a command line without an asset or an output."""
    message = "give an ASSET and at least one -o"
    if not assets:
        added = [] if outputs else ["-o", _other_format(example_asset())]
        return UsageProblem(message, hint=with_asset(context, added))
    if len(assets) > 1 and not Path(assets[-1]).exists():  # as other converters have it
        return UsageProblem(message, hint=f"-o {quote(assets[-1])}", without=assets[-1:])
    return UsageProblem(message, hint=f"-o {quote(_other_format(assets[0]))}")


def _other_format(asset: str) -> str:
    """The file of an asset as SPZ, or as PLY if it is SPZ."""
    path = Path(asset)
    return str(free_path(path.with_suffix(".ply" if path.suffix == ".spz" else ".spz")))


def find_each(assets: Sequence[str], sink: Output) -> list[Any]:
    """The assets that are exported each on their own, as `Placed`; prints notes about those left out.

    Raises:
        UsageProblem: one can't be read, or has a place beside others.
    """
    from segdream_cli.evaluate.asset_files import find_assets
    from segdream_cli.splats.scene import Placed, parse_placed

    places = [parse_placed(each) for each in assets]
    placed = next((text for text, each in zip(assets, places, strict=True) if each != Placed(each.path)), None)
    if placed is not None:
        raise UsageProblem(
            f"{placed} has a place in a scene, and --devices and --ray export each asset on its own",
            without=["--devices", "--ray", *(f"--{name.replace('_', '-')}" for name in workers.PER_WORKER)],
        )
    found, notes = find_assets([each.path for each in places])
    for note in notes:
        sink.note(note)
    return [Placed(path) for path in found]


def share_out(
    context: typer.Context,
    assets: Sequence[Path],
    templates: Sequence[Path],
    names: Sequence[str],
    sink: Output,
    *,
    textured: bool,
) -> None:
    """Exports each asset on its own, on several workers; raises as `workers.share_command` and `_plan`.

    Args:
        context: of the command.
        assets: the files.
        templates: the outputs, which may hold {stem}.
        names: their formats.
        sink: shows the lines and the progress.
        textured: meshes have a texture.
    """
    from segdream_cli.evaluate.asset_files import parts_of

    jobs = []
    for asset in assets:
        outputs = [shared.fill_stem(each, asset) for each in templates]
        files = _plan(outputs, names, textured=textured, force=True)
        inputs, last = tuple(parts_of(asset)), tuple(chain(*files))
        jobs.append(FileJob("", 0, outputs[0], asset=asset, inputs=inputs, outputs=tuple(outputs), last=last))
    workers.share_command(context, export, sink, jobs)


def _check_spz_bits(bits: int | None, names: Sequence[str]) -> None:
    """Raises UsageProblem if --spz-bits has no effect."""
    if bits is not None and not any(name.startswith("spz") for name in names):
        raise UsageProblem("--spz-bits only affects .spz files, and no output is a .spz file", without=["--spz-bits"])


def _plan(outputs: Sequence[Path], names: Sequence[str], *, textured: bool, force: bool) -> list[list[Path]]:
    """The files of each output; refuses those that can't be written, before any work.

    Raises:
        UsageProblem: a folder is wrong, or two outputs have the same file.
        OutputExists: a file exists.
    """
    from segdream_cli.util.files import check_output, free_name

    files = [_files(path, name, textured=textured) for path, name in zip(outputs, names, strict=True)]
    planned = set[Path]()
    for file, given in ((file, output) for output, each in zip(outputs, files, strict=True) for file in each):
        try:
            check_output(file, force=force, given=given)
        except SegdreamError as problem:
            if problem.hint:  # else the hint would be the command without the output
                problem.without = (f"-o {given}",)
            if isinstance(problem, OutputExists):
                problem.hint = f"-o {quote(str(free_name(given, outputs)))}"
            raise
        target = file.parent.resolve() / file.name  # links are replaced, not followed
        if target in planned:
            raise UsageProblem(
                f"{file} would be written twice",
                hint=f"-o {quote(str(free_name(given, outputs)))}",
                without=[f"-o {given}"],
            )
        planned.add(target)
    return files


def _edit(splats: Any, edits: Any, reduction: Any, sink: Output) -> tuple[Any, list[dict[str, str | int]]]:
    """The `Splats` after the edits, and what each that drops Gaussians has kept, which is noted too."""
    from segdream_cli.splats.edits import apply_edits

    cuts: list[dict[str, str | int]] = []

    def count(option: str, kept: int, of: int) -> None:
        cuts.append({"option": option, "kept": kept, "of": of})
        if kept < of:
            sink.note(f"{option} keeps {kept:,} of {of:,} Gaussians")

    return apply_edits(splats, edits, count, lambda cropped: reduction.apply(cropped, count, sink.note)), cuts


def choose_reduction(context: typer.Context) -> Any:
    """The `Reduction` of the options.

    Raises:
        OptionProblem: two of them contradict each other.
        UsageProblem: --keep is not a percentage.
    """
    from segdream_cli.simplify import Reduction

    names = ("remove_floaters", "largest_cluster", "max_gaussians", "keep", "polish")
    values = {name: context.params[name] for name in names}
    if values["largest_cluster"]:
        shared.refuse_options(context, {"remove_floaters"}, "has no effect: --largest-cluster drops them too")
    if values["keep"] is not None:
        shared.refuse_options(context, {"max_gaussians"}, "contradicts --keep")
        values["keep"] = parse_share(values["keep"])
    elif values["max_gaussians"] is None:
        shared.refuse_options(context, {"polish"}, "has no effect without --keep or --max-gaussians")
    return Reduction(**values)


def choose_sizing(context: typer.Context, outputs: Sequence[Path]) -> Any:
    """The `Sizing` of --height, --unit and --pivot; None if none of them was given.

    Raises:
        OptionProblem: one of them is beside an option that it replaces.
        UsageProblem: the height is not a length, or a format has another unit.
    """
    from segdream_cli.splats.sizing import Sizing, parse_length

    height, unit, pivot = (context.params[name] for name in ("height", "unit", "pivot"))
    if height is not None:
        shared.refuse_options(context, {"scale"}, "has no effect: --height scales the asset")
    if pivot is not None:
        shared.refuse_options(context, {"center"}, "has no effect: --pivot moves the asset")
    in_metres = [path for path in outputs if path.suffix.lower() in IN_METRES]
    if unit != METRE and in_metres:
        raise OptionProblem(f"{in_metres[0].suffix} files are in metres, not in {unit}", without=["--unit"])
    if height is None and unit == METRE and pivot is None:
        return None
    return Sizing(None if height is None else parse_length(height), str(unit), pivot and str(pivot))


def list_formats(sink: Output) -> None:
    """Prints the table of formats."""
    from segdream_cli.formats import FORMATS

    for name, row in FORMATS.items():
        line = FormatRow(name=name, suffixes=[row.suffix], description=row.description, readable=row.readable)
        sink.result(line, f"{name:14} {row.suffix:15} {row.description}")
    about = "triangles with a texture, for engines and printers"
    line = FormatRow(name=MESH, suffixes=MESH_SUFFIXES, description=about, readable=False)
    sink.result(line, f"{MESH:14} {' '.join(MESH_SUFFIXES):15} {about}")


def choose_formats(outputs: Sequence[Path], format: str | None) -> list[str]:
    """The format of each output: `format` if its suffix allows it, else the default of its suffix.

    Raises:
        UsageProblem: a suffix or the format is unknown, or the format suits no output.
        EnvironmentProblem: a format other than a mesh needs a package that is missing.
    """
    from segdream_cli.formats import FORMATS, check_format, goes_with

    for path in outputs:
        if path.suffix.lower() in OTHER_MESHES and format is None:
            instead = f"--format {MESH} -o {quote(str(free_path(path.with_suffix('.glb'))))}"
            raise UsageProblem(
                f"a mesh needs a .glb or .obj file, of which Blender makes {path.suffix} files",
                hint=instead if len(outputs) == 1 else None,  # the format would be that of the others too
                without=[f"-o {path}"],
            )

    def fits(path: Path) -> bool:
        if format == MESH:
            return path.suffix.lower() in MESH_SUFFIXES
        return format is not None and format in FORMATS and goes_with(path, format)

    if format is not None and not any(map(fits, outputs)):
        if format == MESH:
            raise UsageProblem(
                f"a mesh needs a .glb or .obj file, not {outputs[0].name}",
                hint=f"-o {quote(str(outputs[0].with_suffix('.glb')))}",
            )
        check_format(outputs[0], format)  # raises the error that names the reason
    by_suffix = [MESH if path.suffix.lower() == ".obj" else check_format(path) for path in outputs]
    return [format if format and fits(path) else other for path, other in zip(outputs, by_suffix, strict=True)]


def check_mesh_options(context: typer.Context, outputs: Sequence[Path], names: Sequence[str]) -> None:
    """Checks the options of a mesh, and the libraries that it needs.

    Raises:
        OptionProblem: an option has no effect.
        UsageProblem: there is no .glb to compress.
        EnvironmentProblem: a library is missing.
    """
    if MESH not in names:
        hint = f"--format mesh -o {quote(str(outputs[0].with_suffix('.glb')))}"
        return shared.refuse_options(context, set(MESH_OPTIONS), "can't be used: no output is a mesh", hint)
    from segdream_cli.mesh import libraries

    colors, collision, compress = (context.params[name] for name in ("colors", "collision", "compress"))
    if collision:
        idle = {"faces", "colors", "texture_size"}
        shared.refuse_options(
            context, idle, "has no effect with --collision, which sets its own size and has no colours"
        )
    elif colors != TEXTURE:
        shared.refuse_options(context, {"texture_size"}, "has no effect with --colors vertex")
    meshes = [path for path, name in zip(outputs, names, strict=True) if name == MESH]
    if compress and not any(path.suffix.lower() == ".glb" for path in meshes):
        raise UsageProblem(
            "--compress only affects .glb meshes", hint=f"-o {quote(str(meshes[0].with_suffix('.glb')))}"
        )
    needed = [libraries.PIECES] if collision else [libraries.UNWRAP] if colors == TEXTURE else []
    return libraries.check_packages(*needed, *([libraries.DRACO] if compress else []))


def choose_frame(text: str | None, names: Sequence[str]) -> str | None:
    """The frame of --output-frame; None is that of each format.

    Raises:
        UsageProblem: there is no such frame, or an output is a page, or names its frame and can't name this one.
    """
    from segdream_cli.formats import FORMATS

    frame = parse_frame(text, "--output-frame")
    for name in names if frame is not None else ():
        if name == PAGE:
            raise UsageProblem(
                "--output-frame has no effect on a .html page, which holds its own viewer",
                without=["--output-frame"],
            )
        if name != MESH:
            FORMATS[name].check_frame(str(frame))
    return frame


def choose_edits(context: typer.Context) -> Any:
    """The `Edits` of a command line.

    Raises:
        UsageProblem: a value can't be read.
    """
    from segdream_cli.splats.edits import Edits

    given = context.params
    up = parse_up(given["up"])
    return Edits(
        mirror=given["mirror"] and str(given["mirror"]),
        up=up,
        front_deg=parse_front(given["front"], up),
        prune_opacity=given["prune_opacity"],
        crop=None if given["crop"] is None else parse_crop(given["crop"]),
        center=given["center"],
        rotate=None if given["rotate"] is None else parse_angles(given["rotate"]),
        scale=given["scale"],
        sh=given["sh"],
    )


def parse_crop(text: str) -> list[float]:
    """The six numbers of a box, its lower corner first, or the radius of a ball.

    Raises:
        UsageProblem: the text is neither.
    """
    values = _numbers(text)
    if len(values) == 1 and 0 < values[0] <= LARGEST:
        return values
    if len(values) == 6 and all(low <= high for low, high in zip(values[:3], values[3:], strict=True)):
        return values
    raise UsageProblem(
        f"--crop {text!r} is neither a box x0,y0,z0,x1,y1,z1 with its lower corner first nor a radius",
        hint="--crop -1,-0.5,-1,1,1,1",
    )


def parse_angles(text: str) -> list[float]:
    """Three angles in degrees.

    Raises:
        UsageProblem: the text is something else.
    """
    values = _numbers(text)
    if len(values) != 3:
        raise UsageProblem(f"--rotate {text!r} is not X,Y,Z in degrees", hint="--rotate 0,90,0")
    return values


def parse_share(text: str) -> float:
    """The share 0..1 of a percentage above 0 and up to 100.

    Raises:
        UsageProblem: the text is something else.
    """
    values = _numbers(text.removesuffix("%"))
    if len(values) == 1 and text.endswith("%") and 0 < values[0] <= 100:
        return values[0] / 100
    raise UsageProblem(f"--keep {text!r} is not a percentage above 0% and up to 100%", hint="--keep 25%")


def _numbers(text: str) -> list[float]:
    """The numbers of a comma-separated list; empty if one is not a finite number of at most `LARGEST`."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        return []
    return values if all(math.isfinite(value) and abs(value) <= LARGEST for value in values) else []


def _files(path: Path, name: str, *, textured: bool) -> list[Path]:
    """The files written for one output."""
    if name == MESH:
        beside = [".mtl", ".png"] if textured and path.suffix.lower() == ".obj" else []
    else:
        from segdream_cli.formats import FORMATS

        beside = list(filter(None, [FORMATS[name].beside]))
    return [path, *map(path.with_suffix, beside)]


def _write(
    sink: Output, path: Path, splats: Any, name: str, frame: str | None, options: Mapping[str, Any], sizing: Any
) -> dict[str, Any]:
    """Writes one output with the axes of `frame`, and returns the fields of its line that are about a mesh."""
    if name == MESH:
        return _write_mesh(sink, path, splats, frame, sizing, **options)
    from segdream_cli import formats
    from segdream_cli.formats.losses import describe_losses
    from segdream_cli.splats.sizing import resize

    sized = splats if sizing is None else resize(splats, sizing)
    if losses := describe_losses(sized, name):
        sink.note(f"{path} {losses}")
    formats.write(path, sized, name, frame=frame, **options)
    return {}


def _write_mesh(
    sink: Output,
    path: Path,
    splats: Any,
    frame: str | None,
    sizing: Any,
    *,
    collision: bool,
    compress: bool,
    opacity: float,
    **options: Any,
) -> dict[str, Any]:
    """Writes a mesh or the convex pieces of one, as `_write` does."""
    from segdream_cli import mesh
    from segdream_cli.cli.progress import StageProgress

    stages = mesh.stages(colors=options["colors"], collision=collision)
    with StageProgress(path.name, stages, sink) as progress:
        if collision:
            made = mesh.collide(splats, opacity=opacity, begin=progress.begin)
        else:
            made = mesh.extract(splats, opacity=opacity, **options, begin=progress.begin)
    made = made if sizing is None else mesh.resize(made, sizing)
    mesh.write(path, made if frame is None else mesh.to_frame(made, frame), compress=compress)
    if note := _describe_cuts(made, options["faces"], collision=collision):
        sink.note(f"{path}: {note}")
    return {
        "triangles": len(made.faces),
        "watertight": made.watertight,
        "parts": made.components,
        "parts_left_out": made.left_out,
        "grid": made.resolution,
    }


def _describe_cuts(made: Any, faces: int, *, collision: bool) -> str:
    """A note about what a mesh lacks; empty if it lacks nothing."""
    from segdream_cli.mesh import RESOLUTION

    changes = [f"{shared.count(made.left_out, 'small part')} dropped"] if made.left_out else []
    if collision:
        return "; ".join([f"{made.components} convex pieces of {len(made.faces):,} triangles", *changes])
    if made.resolution < RESOLUTION:
        changes.append(f"grid reduced from {RESOLUTION} to {made.resolution}, which closes small holes")
    if len(made.faces) > faces:
        changes.append(f"{len(made.faces):,} triangles, because no closed surface has {faces:,}")
    if not changes:
        return ""
    remedy = f"use --faces {made.enough}" if made.enough and not made.left_out else "raise --faces"
    return f"mesh simplified: {', '.join(changes)}; {remedy} to keep more"
