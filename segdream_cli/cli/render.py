"""`segdream render`: videos and images of assets."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli import workers
from segdream_cli.cli.next_step import after_render
from segdream_cli.cli.output import Output
from segdream_cli.cli.reading import AsSplatsOption, FrameOption, StrictOption, check_assets, read_assets
from segdream_cli.cli.schema import Rendered
from segdream_cli.config import AUTO
from segdream_cli.errors import UsageProblem
from segdream_cli.render import check_size
from segdream_cli.runs.jobs import FileJob
from segdream_cli.util.devices import check_device
from segdream_cli.util.text import join_names

Color = Sequence[float] | None

if TYPE_CHECKING:
    from segdream_cli.render.job import RenderJob

Channel = StrEnum("Channel", ["rgb", "alpha", "depth", "normals"])
FrameFormat = StrEnum("FrameFormat", ["png", "jpg", "exr"])
TURNTABLE, SHEET, STILL, FRAMES, CAMERA_PATH = "turntable", "contact sheet", "view", "frames", "camera path"
OPTIONS = {
    TURNTABLE: "--turntable",
    SHEET: "--contact-sheet",
    STILL: "--view",
    FRAMES: "--frames",
    CAMERA_PATH: "--camera-path",
}
UNUSED = {
    TURNTABLE: {"format"},
    FRAMES: {"fps"},
    SHEET: {"fps", "n_frames", "format"},
    STILL: {"fps", "n_frames", "elevation", "format"},
    CAMERA_PATH: {"elevation", "format"},
}
"""Parameters that have no effect on a kind of output."""

MAX_WIDTH = 16382
MAX_PLAYER_SIZE = 4096, 2304
"""Width and height in pixels of the largest H.264 frame that common hardware decodes (level 5.1)."""
JPEG = (".jpg", ".jpeg")
DEFAULT_FRAMES, FPS = 120, 30.0


def render(
    context: typer.Context,
    assets: Annotated[
        list[Path], typer.Argument(metavar="ASSET", help="Asset to render; several appear side by side.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write; may hold {stem}.", rich_help_panel=shared.OUTPUT),
    ] = None,
    turntable: Annotated[
        bool, typer.Option("--turntable", help="Video of one full turn (.mp4, .webm, .mov, .gif, .webp); the default.")
    ] = False,
    camera_path: Annotated[
        Path | None,
        typer.Option("--camera-path", help="Video along the cameras of a JSON file; with --frames, images."),
    ] = None,
    view: Annotated[
        str | None, typer.Option("--view", help="Image from AZIMUTH,ELEVATION in degrees (.png, .jpg, .exr).")
    ] = None,
    sheet: Annotated[bool, typer.Option("--contact-sheet", help="One image of eight views.")] = False,
    frames: Annotated[bool, typer.Option("--frames", help="Full turn as numbered images; -o is a folder.")] = False,
    format: Annotated[
        FrameFormat, typer.Option("--format", help="Format of the images of --frames.")
    ] = FrameFormat.png,
    channel: Annotated[Channel, typer.Option("--channel", help="Channel to render.")] = Channel.rgb,
    size: Annotated[
        str, typer.Option("--size", help="Image size per asset in pixels: SIDE or WIDTHxHEIGHT, each 16 to 4096.")
    ] = "512",
    supersample: Annotated[
        int, typer.Option("--supersample", min=1, max=4, help="Samples per pixel along each side.")
    ] = 1,
    n_frames: Annotated[
        int | None,
        typer.Option(
            "--n-frames", min=2, max=3600, show_default=f"{DEFAULT_FRAMES}, or the path's", help="Number of frames."
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option("--fps", min=1, max=120, show_default=f"{FPS:g}, or the path's", help="Frames per second."),
    ] = None,
    elevation: Annotated[
        float, typer.Option("--elevation", min=-90, max=90, help="Camera elevation in degrees.")
    ] = 15.0,
    background: Annotated[
        str,
        typer.Option("--background", help="white, black, #rrggbb, or transparent (not for .mp4, .jpg)."),
    ] = "white",
    shadow: Annotated[bool, typer.Option("--shadow", help="Studio light and a shadow on the ground.")] = False,
    caption: Annotated[
        list[str] | None,
        typer.Option("--caption", help="Caption of each asset, in order; default for several assets: their names."),
    ] = None,
    device: shared.DeviceOption = AUTO,
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
    """Render a video or images of assets.

    segdream render bus.ply --turntable -o turn.mp4

    segdream render bus.ply --view 45,20 -o bus.png

    segdream render bus.spz car.glb --background transparent -o both.webm

    segdream render bus.ply --view 35,15 --shadow --size 1600x1200 -o bus.jpg

    segdream render bus.ply --camera-path flight.json -o flight.mp4

    segdream render assets/ --devices 0,1 -o "videos/{stem}.mp4"

    A camera path is JSON. Each frame has a position; other keys are optional:

    {"fps": 30, "frames": [{"position": [0, 1, 3], "target": [0, 0, 0],
    "up": [0, 1, 0], "fov": 40, "roll": 0}], "loop": true}

    Camera files of nerfstudio, splat-transform, INRIA (cameras.json) and
    NeRF or Blender (transforms.json) also work. With --n-frames, a smooth
    curve passes through the cameras; "loop": true closes it.
    """
    on_path = camera_path is not None
    kind = choose_kind(
        {TURNTABLE: turntable, STILL: view is not None, SHEET: sheet, FRAMES: frames, CAMERA_PATH: on_path}
    )
    suffix = f".{format}" if kind == FRAMES else "" if output is None else output.suffix.lower()
    is_exr = suffix == ".exr"
    idle = idle_parameters(kind, channel, on_path=on_path, is_exr=is_exr)
    shared.refuse_options(context, idle, f"has no effect on {'' if kind == FRAMES else 'a '}{kind} of {channel}")
    angles = parse_view(view) if view is not None else (0.0, elevation)
    color, sides = parse_background(background), parse_size(size, supersample)
    if workers.has_workers(context):
        return share_out(context, assets, kind, suffix, color if channel == Channel.rgb else (0.0, 0.0, 0.0))
    captions = choose_captions(caption, assets)
    check_width(kind, sides[0] * len(assets), len(assets))
    check_assets(assets)  # before the output, which may be beside them
    path = shared.fill_stem(output, assets[0]) if output else output_path(assets, kind, transparent=color is None)
    check_transparency(path, kind, suffix, color if channel == Channel.rgb else (0.0, 0.0, 0.0))
    sink = Output(json=json, quiet=quiet)
    last = last_file(path, kind, suffix, camera_path, n_frames) if skip_existing else path
    if shared.is_skipped(path, sink, skip=skip_existing, force=force, last=last):
        return
    replace_frames = force or (skip_existing and kind == FRAMES)  # a folder without its last frame is incomplete
    check_target(path, kind, suffix, force=replace_frames)
    check_device(device)
    splats = read_assets(assets, sink, frame=frame, strict=strict, as_splats=as_splats)
    from segdream_cli.render.camera_path import read_camera_path  # slow imports, after the checks without them
    from segdream_cli.render.job import RenderJob
    from segdream_cli.util.files import write_policy

    camera_file = read_camera_path(camera_path, n_frames) if camera_path is not None else None
    job = RenderJob.of(
        splats, device, sides, str(channel), color, supersample=supersample, captions=captions, shadow=shadow
    )
    rendered = Rendered(output=path, assets=assets, kind=kind, channel=str(channel), size=sides, frames=1)
    policy = write_policy(replace=replace_frames)
    if kind == SHEET:
        with policy:
            job.write_contact_sheet(path, elevation)
        return announce(sink, rendered)
    note_sizes(sink, path, kind, sides, job)
    if camera_file is not None:
        track = job.fixed_cameras(camera_file.viewmats, camera_file.fov_rad)
    else:
        track = job.single_view(*angles) if kind == STILL else job.turntable(n_frames or DEFAULT_FRAMES, elevation)
    rendered = replace(rendered, frames=len(track[0]))
    with policy:
        if kind == STILL:
            job.write_image(path, track)
        elif kind == FRAMES:
            job.write_frames(path, track, suffix)
        else:
            rate = fps or (camera_file and camera_file.fps) or FPS
            rendered = replace(rendered, fps=rate)
            note_players(sink, path, sides, len(assets))
            job.write_video(path, track, rate)
    if channel == Channel.depth and kind in (STILL, FRAMES) and suffix not in (".exr", *JPEG):
        near, far = job.depth_range(track)
        sink.note(f"depth: grey 1 is {near:.4f} from the camera, 65535 is {far:.4f}, 0 is background")
        rendered = replace(rendered, near=near, far=far)
    announce(sink, rendered)


def announce(sink: Output, rendered: Rendered) -> None:
    """Prints the output, and on a terminal what usually comes next."""
    sink.done(rendered)
    sink.suggest(after_render(rendered.assets))


def share_out(context: typer.Context, assets: Sequence[Path], kind: str, suffix: str, color: Color) -> None:
    """Renders each asset on its own, on several workers; raises as `workers.share_command` and the checks of outputs.

    Args:
        context: of the command.
        assets: files and folders of assets.
        kind: of the outputs.
        suffix: that of their images or videos, as far as it is known.
        color: behind the assets.
    """
    from segdream_cli.evaluate.asset_files import find_assets, parts_of

    shared.refuse_options(context, {"caption"}, "can't be combined with --devices or --ray")
    given = context.params
    sink = Output(json=given["json"], quiet=given["quiet"])
    found, notes = find_assets(assets)
    for note in notes:
        sink.note(note)
    camera_path = given["camera_path"]
    extra = [] if camera_path is None else [camera_path]
    jobs = []
    for asset in found:
        output = given["output"]
        path = shared.fill_stem(output, asset) if output else output_path([asset], kind, transparent=color is None)
        check_width(kind, parse_size(given["size"])[0], 1)
        check_transparency(path, kind, suffix, color)
        check_target(path, kind, suffix, force=True)
        last = last_file(path, kind, suffix, camera_path, given["n_frames"])
        files = (*parts_of(asset), *extra)
        jobs.append(FileJob("", 0, path, asset=asset, inputs=files, outputs=(path,), last=(last,)))
    workers.share_command(context, render, sink, jobs, ["--camera-path", str(camera_path)] if extra else [])


def last_file(path: Path, kind: str, suffix: str, camera_path: Path | None, n_frames: int | None) -> Path:
    """The file of an output that is written last: where it exists, the output is complete."""
    if kind != FRAMES:
        return path
    from segdream_cli.render.images import frame_path

    count = n_frames or DEFAULT_FRAMES
    if camera_path is not None:
        from segdream_cli.render.camera_path import read_camera_path

        count = len(read_camera_path(camera_path, n_frames).viewmats)
    return frame_path(path, count - 1, suffix)


def choose_kind(asked: dict[str, bool]) -> str:
    """The kind of output to make, given the requested kinds.

    Raises:
        UsageProblem: two requested kinds exclude each other.
    """
    kinds = [kind for kind, given in asked.items() if given] or [TURNTABLE]
    if kinds == [FRAMES, CAMERA_PATH]:
        return FRAMES
    if len(kinds) > 1:
        message = f"{join_names(kinds)} exclude each other: choose one at a time"
        raise UsageProblem(message, without=[OPTIONS[kind] for kind in kinds[1:]])
    return kinds[0]


def idle_parameters(kind: str, channel: str, *, on_path: bool, is_exr: bool) -> set[str]:
    """Parameters that have no effect."""
    idle = UNUSED[kind] | ({"elevation"} if on_path else set())
    if channel != Channel.rgb:
        idle |= {"background", "shadow"}
    if (channel == Channel.depth and kind in (STILL, FRAMES)) or (channel == Channel.normals and is_exr):
        idle |= {"caption"}  # a caption would overwrite depths or normals
    return idle


def choose_captions(given: Sequence[str] | None, assets: Sequence[Path]) -> list[str]:
    """One caption per asset: those given, else the names of several assets, else none.

    Raises:
        UsageProblem: the number of captions differs from the number of assets.
    """
    if given:
        if len(given) != len(assets):
            raise UsageProblem(
                f"{shared.count(len(given), 'caption')} for {shared.count(len(assets), 'asset')}",
                without=["--caption"],
                hint=" ".join(f"--caption={quote(asset.stem)}" for asset in assets),
            )
        return list(given)
    if len(assets) == 1:
        return []
    names = [asset.stem for asset in assets]
    return names if len(set(names)) == len(names) else [str(asset) for asset in assets]


def parse_size(text: str, supersample: int = 1) -> tuple[int, int]:
    """Width and height of `SIDE` or `WIDTHxHEIGHT`.

    Raises:
        UsageProblem: the text is something else, a side is out of range, or it needs too many samples.
    """
    match = re.fullmatch(r"\s*(\d{1,6})(?:\s*[xX×]\s*(\d{1,6}))?\s*", text)
    width, height = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    check_size((width, height), supersample, f"--size {text!r}")
    return width, height


def parse_view(text: str) -> tuple[float, float]:
    """Azimuth and elevation of `AZ,EL`.

    Raises:
        UsageProblem: the text is something else, or the elevation is beyond the poles.
    """
    match = re.fullmatch(r"\s*([-+]?[\d.]+)\s*,\s*([-+]?[\d.]+)\s*", text)
    try:
        azimuth, elevation = (float(part) for part in match.groups()) if match else (math.nan, math.nan)
    except ValueError:
        azimuth = elevation = math.nan
    if not (abs(azimuth) <= 1e6 and abs(elevation) <= 90):
        raise UsageProblem(f"--view {text!r} is not AZIMUTH,ELEVATION in degrees", hint="--view 45,20")
    return azimuth, elevation


def parse_background(text: str) -> tuple[float, float, float] | None:
    """A colour in 0..1, or None for a transparent background.

    Raises:
        UsageProblem: the text is not a colour.
    """
    from PIL import ImageColor

    if text == "transparent":
        return None
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise UsageProblem(f"--background {text!r} is not a colour", hint="--background '#20c0ff'") from None
    return red / 255, green / 255, blue / 255


def output_path(assets: Sequence[Path], kind: str, *, transparent: bool) -> Path:
    """The default output: beside the first asset."""
    video = ".webm" if transparent else ".mp4"
    endings = {
        TURNTABLE: video,
        CAMERA_PATH: f"-path{video}",
        SHEET: "-sheet.png",
        STILL: "-view.png",
        FRAMES: "-frames",
    }
    others = "-side-by-side" if len(assets) > 1 else ""
    return assets[0].with_name(assets[0].stem + others + endings[kind])


def check_width(kind: str, width: int, count: int) -> None:
    """Refuses a row of images that is too wide for a video.

    Raises:
        UsageProblem: the row is wider than encoders can write.
    """
    if kind != SHEET and width > MAX_WIDTH:
        raise UsageProblem(
            f"{count} images side by side are {width} pixels wide; the maximum is {MAX_WIDTH}",
            hint=f"--size {MAX_WIDTH // count}",
        )


def check_transparency(path: Path, kind: str, suffix: str, color: Sequence[float] | None) -> None:
    """Refuses a transparent background if the file format has no alpha; `suffix` is that of the images of --frames.

    Raises:
        UsageProblem: it has none.
    """
    from segdream_cli.render.video import SUFFIXES, WITH_ALPHA

    if color is not None:
        return
    if kind == SHEET:
        raise UsageProblem(f"a {kind} has no transparency", without=[OPTIONS[SHEET]], hint="--view 45,20")
    if kind == FRAMES and suffix in JPEG:
        raise UsageProblem(f"a {suffix} image has no transparency", hint="--format png")
    suffix = path.suffix.lower()
    if kind == STILL and suffix in JPEG:
        raise UsageProblem(f"a {suffix} image has no transparency", hint=f"-o {quote(str(path.with_suffix('.png')))}")
    if kind in (TURNTABLE, CAMERA_PATH) and suffix in SUFFIXES and suffix not in WITH_ALPHA:
        raise UsageProblem(f"a {suffix} video has no transparency", hint=f"-o {quote(str(path.with_suffix('.webm')))}")


def note_players(sink: Output, path: Path, sides: tuple[int, int], count: int) -> None:
    """Notes a video that is larger than common players can show."""
    width, height = sides[0] * count, sides[1]
    if path.suffix.lower() == ".mp4" and (width > MAX_PLAYER_SIZE[0] or height > MAX_PLAYER_SIZE[1]):
        most = "x".join(str(side) for side in MAX_PLAYER_SIZE)
        sink.note(
            f"many players show at most {most} pixels, and this video has {width}x{height}: choose a smaller --size"
        )


def note_sizes(sink: Output, path: Path, kind: str, sides: tuple[int, int], job: "RenderJob") -> None:
    """Notes that images are larger than `--size` says."""
    from segdream_cli.render.video import padded_size

    width, height = job.picture_size(precise=kind in (STILL, FRAMES))
    reasons = ["with the captions"] if height != sides[1] else []
    if kind in (TURNTABLE, CAMERA_PATH) and padded_size(path, width, height) != (width, height):
        reasons.append(f"since {path.suffix} needs even sides")
        width, height = padded_size(path, width, height)
    if reasons:
        sink.note(f"{path} has {width}x{height} pixels {' and '.join(reasons)}")


def check_still(path: Path, kind: str) -> None:
    """Refuses an image at a path of another format, or one whose library is missing.

    Raises:
        UsageProblem: the suffix is not that of such an image.
        EnvironmentProblem: the library of EXR files is missing.
    """
    suffix = path.suffix.lower()
    suffixes = (".png", *JPEG, *((".exr",) if kind == STILL else ()))
    if suffix not in suffixes:
        raise UsageProblem(
            f"a {kind} is an image ({', '.join(suffixes)}), and {path} is not",
            hint=f"-o {quote(str(path.with_suffix('.png')))}",
        )
    if suffix == ".exr":
        check_openexr()


def check_openexr() -> None:
    """Raises an `EnvironmentProblem` if the library of EXR files is missing."""
    from segdream_cli.render.exr import load_openexr

    load_openexr()


def check_target(path: Path, kind: str, suffix: str, *, force: bool) -> None:
    """Refuses an output that can't be written, before any work; `suffix` is that of the images of --frames.

    Raises:
        UsageProblem: its suffix or its folder is wrong.
        OutputExists: it exists.
        EnvironmentProblem: the library of EXR files is missing.
    """
    from segdream_cli.render.images import FRAME_SUFFIXES, frames_in
    from segdream_cli.render.video import SUFFIXES, check_suffix
    from segdream_cli.util.files import check_output, is_file, other_output, write_problem

    if kind == FRAMES:
        if path.suffix.lower() in (*SUFFIXES, *FRAME_SUFFIXES, *JPEG) or is_file(path):
            wanted = path.suffix.lower().replace("jpeg", "jpg")
            images = f" --format {wanted[1:]}" if wanted in FRAME_SUFFIXES[1:] else ""
            hint = f"-o {quote(str(path.with_name(f'{path.stem}-frames')))}{images}"
            like = "a" if is_file(path) else "named like a"
            raise UsageProblem(f"--frames writes a folder, and {path} is {like} file", hint=hint)
        if suffix == ".exr":
            check_openexr()
        try:
            there = frames_in(path) if path.is_dir() else []
        except OSError as problem:
            raise write_problem(problem, path, other_output(problem, path)) from problem
        file = there[0] if there else path / "frame" if path.is_dir() else path
        check_output(file, force=force and bool(there), given=path)
        return
    if kind in (TURNTABLE, CAMERA_PATH):
        if path.suffix.lower() in (".png", *JPEG, ".exr"):
            video = f"-o {quote(str(path.with_suffix('.mp4')))}"
            raise UsageProblem(
                f"a {kind} is a video, and {path} is an image",
                without=[OPTIONS[TURNTABLE]],
                hint="--view 45,20" if kind == TURNTABLE else video,
            )
        check_suffix(path)
    else:
        check_still(path, kind)
    check_output(path, force=force)
