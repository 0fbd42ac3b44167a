"""`segdream init`: the initial Gaussians of a run as a file to inspect, edit or start from."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.next_step import after_init
from segdream_cli.cli.output import Output
from segdream_cli.cli.reporter import TerminalReporter
from segdream_cli.cli.schema import Started
from segdream_cli.config import AUTO, Config
from segdream_cli.runs.jobs import Job, fill_template, make_folders
from segdream_cli.runs.spec import Request

if TYPE_CHECKING:
    import torch

    from segdream_cli.priors.checkpoint import Checkpoint
    from segdream_cli.priors.profile import PriorProfile
    from segdream_cli.splats import Splats


def init(
    prompt: Annotated[str, typer.Argument(help="The object to make, in a sentence.")],
    output: shared.AssetOutputOption = None,
    preview: Annotated[
        bool,
        typer.Option("--preview", help="Also write an image of eight views.", rich_help_panel=shared.OUTPUT),
    ] = False,
    init: shared.InitOption = None,
    init_prompt: shared.InitPromptOption = None,
    init_color: shared.InitColorOption = None,
    init_points: shared.InitPointsOption = None,
    init_scale: shared.InitScaleOption = None,
    frame: shared.InitFrameOption = None,
    strict: shared.InitStrictOption = False,
    as_splats: shared.InitAsSplatsOption = False,
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            min=1,
            max=10_000_000,
            help="Number of Gaussians of a sphere or box.",
            rich_help_panel=shared.START,
        ),
    ] = None,
    seed: shared.SeedOption = 0,
    quality: shared.QualityOption = shared.STANDARD,
    prior: shared.PriorOption = None,
    model: shared.ModelOption = None,
    point_e_dir: shared.PointEDirOption = None,
    device: shared.DeviceOption = AUTO,
    offline: shared.OfflineOption = False,
    config: shared.ConfigOption = None,
    assignments: shared.SetOption = None,
    skip_existing: shared.SkipOutputOption = False,
    force: shared.ForceOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Write the initial Gaussians to a PLY file.

    Option --init of segdream generate takes the file.

    segdream init "a yellow school bus" --init point-e --preview -o cloud.ply
    """
    from segdream_cli import __version__
    from segdream_cli.priors.checkpoint import profile_of
    from segdream_cli.priors.prompt import describe_prompt
    from segdream_cli.runs.checks import check_request
    from segdream_cli.util.devices import choose_device

    request = shared.request(
        {
            **shared.prior_options(prior, model),
            **shared.start_options(init, init_prompt, init_color, init_points, init_scale, point_e_dir),
            **shared.reading_options(frame, strict, as_splats),
            "init.count": ("--count", count),
        },
        assignments,
        quality=quality,
        file=config,
        device=device,
        offline=offline,
    )
    check_request(request, [prompt])
    path, sink = _file(request, prompt, seed, output), Output(json=json, quiet=quiet)
    picture = path.with_suffix(".png") if preview else None
    if shared.is_skipped(path, sink, skip=skip_existing, force=force):
        return
    _check_files(path, picture, force=force)
    from segdream_cli.optimize.start import bind_cloud, cloud_text, initial_gaussians  # slow imports, after the checks
    from segdream_cli.optimize.state import build_generators
    from segdream_cli.runs.load import load_checkpoint, load_clouds

    hardware, reporter = choose_device(device), TerminalReporter(sink)
    profile = profile_of(request.prior(), cuda=hardware.type == "cuda")
    resolved = request.resolve(profile)
    described = describe_prompt(prompt, profile.vocabulary, sink.note)
    phrase = cloud_text(resolved.init, prompt, profile.vocabulary)
    _note_idle(request, profile, hardware, sink)

    def checkpoint() -> "Checkpoint":
        return load_checkpoint(request, hardware, reporter)

    clouds = load_clouds(resolved, profile.point_e, checkpoint, hardware, reporter, offline=offline)
    gaussians = initial_gaussians(
        resolved.init, build_generators(seed)["init"], bind_cloud(clouds, phrase, seed), sink.note
    )
    origin = resolved.init.shape if clouds is None else f"Point-E's cloud of {phrase!r}"
    splats = gaussians.splats({"generator": f"segdream {__version__}", **described, "seed": seed, "init": origin})
    _write(path, splats, picture, device, force=force)
    sink.note(f"{len(gaussians):,} Gaussians from {origin}" + (f"; preview: {picture}" if picture else ""))
    sink.done(
        Started(
            output=path,
            prompt=prompt,
            prompt_read=described.get("prompt_read"),
            seed=seed,
            gaussians=len(gaussians),
            init=resolved.init.shape,
            preview=picture,
        )
    )
    sink.suggest(after_init(path, prompt))


def _check_files(path: Path, picture: Path | None, *, force: bool) -> None:
    """Refuses files that can't be written; raises as `check_format` and `check_output`."""
    from segdream_cli.formats import check_format
    from segdream_cli.util.files import check_output

    check_format(path, None)
    for file in (path, picture):
        if file is not None:
            check_output(file, force=force, given=path)


def _write(path: Path, splats: "Splats", picture: Path | None, device: str, *, force: bool) -> None:
    """Writes the Gaussians and, if it has a path, an image of eight views."""
    from segdream_cli import write
    from segdream_cli.render.job import RenderJob
    from segdream_cli.util.files import write_policy

    with write_policy(replace=force):
        write(path, splats)
        if picture is not None:
            job = RenderJob.of([splats], device, size=256, channel="rgb", color=(1.0, 1.0, 1.0))
            job.write_contact_sheet(picture, elevation=15.0)


def _note_idle(request: Request, profile: "PriorProfile", device: "torch.device", sink: Output) -> None:
    """Notes what has no effect on the initial Gaussians.

    Raises:
        OptionProblem: an option of the start has none.
    """
    from segdream_cli.config.start import POINT_E
    from segdream_cli.runs.load import needs_network

    config = request.resolve(profile)
    for line in request.notes_on_idle(config):
        sink.note(line)
    if unused := [key for key in request.settings if not key.startswith(("init.", "prior."))]:
        sink.note(f"{', '.join(unused)} can't change the initial Gaussians")

    def start(config: Config) -> dict[str, Any]:
        """The settings of the start that have an effect."""
        values = {key: value for key, value in config.flat().items() if key.startswith("init.")}
        return {key: value for key, value in values.items() if key not in config.idle(values)}

    standard = str(shared.STANDARD)
    if request.quality != standard and start(replace(request, quality=standard).resolve(profile)) == start(config):
        sink.note(f"--quality has no effect: {request.quality} changes none of these initial Gaussians")
    if request.offline and not (config.init.shape == POINT_E and needs_network(config, profile.point_e, device)):
        sink.note("--offline has no effect: the start needs no download")


def _file(request: Request, prompt: str, seed: int, output: Path | None) -> Path:
    """The file to write; its folder is created if `output` is a template."""
    template = output or Path("{prompt}-init.ply")
    path = fill_template(template, Job(prompt, seed, template), labels=shared.labels(request, template))
    if output is not None and path != output:
        make_folders([Job(prompt, seed, path)], "-o", output)
    return path
