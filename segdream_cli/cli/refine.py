"""`segdream refine`: polishes a splat or a mesh from any tool."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli import reading
from segdream_cli.cli.output import Output
from segdream_cli.cli.reporter import TerminalReporter, restart_hints
from segdream_cli.cli.signals import StopOnSignal
from segdream_cli.config import AUTO
from segdream_cli.config.values import MAX_STEPS
from segdream_cli.errors import UsageProblem
from segdream_cli.runs.jobs import Job, fill_template, make_folders
from segdream_cli.runs.spec import JobSpec
from segdream_cli.util.files import is_file, lexists

ASSET = "Asset"


def refine(
    asset: Annotated[Path, typer.Argument(help="Splat or mesh (.glb, .obj) to refine.")],
    prompt: Annotated[str, typer.Argument(help="The object that the asset shows, in a sentence.")],
    output: shared.AssetOutputOption = None,
    frame: reading.FrameOption = None,
    strict: reading.StrictOption = False,
    as_splats: reading.AsSplatsOption = False,
    front: Annotated[
        str,
        typer.Option(
            "--front",
            help="Axis that the front faces, such as -x, or its azimuth in degrees.",
            show_default="0: z, or -y with --up z",
            rich_help_panel=ASSET,
        ),
    ] = "0",
    up: Annotated[
        str,
        typer.Option("--up", help="Axis that points up: x, y, z, -x, -y or -z.", rich_help_panel=ASSET),
    ] = "y",
    sh: Annotated[
        int,
        typer.Option("--sh", min=0, max=3, help="Drop spherical harmonics above this degree.", rich_help_panel=ASSET),
    ] = 3,
    max_gaussians: Annotated[
        int | None,
        typer.Option(
            "--max-gaussians",
            min=100,
            help="Merge down to at most N Gaussians; the default is 100,000.",
            rich_help_panel=ASSET,
        ),
    ] = None,
    seed: shared.SeedOption = 0,
    negative: shared.NegativeOption = None,
    strength: Annotated[
        float | None,
        typer.Option(
            "--strength",
            min=0.001,
            max=0.999,
            help="Highest noise level of the repaint, 0 to 1; lower changes less.",
            rich_help_panel=shared.QUALITY,
        ),
    ] = None,
    distil: Annotated[
        int | None,
        typer.Option(
            "--distil",
            min=0,
            max=MAX_STEPS,
            help="Distillation steps before the refinement.",
            show_default="0",
            rich_help_panel=shared.QUALITY,
        ),
    ] = None,
    split: Annotated[
        bool | None,
        typer.Option(
            "--split/--no-split",
            help="Split Gaussians for finer detail.",
            show_default="split",
            rich_help_panel=shared.QUALITY,
        ),
    ] = None,
    quality: shared.QualityOption = shared.STANDARD,
    config: shared.ConfigOption = None,
    assignments: shared.SetOption = None,
    prior: shared.PriorOption = None,
    model: shared.ModelOption = None,
    device: shared.DeviceOption = AUTO,
    dtype: shared.DtypeOption = None,
    low_vram: shared.LowVramOption = False,
    offline: shared.OfflineOption = False,
    preview_every: shared.PreviewEveryOption = None,
    view: shared.ViewOption = False,
    no_browser: shared.NoBrowserOption = False,
    skip_existing: shared.SkipExistingOption = False,
    dry_run: shared.DryRunOption = False,
    force: shared.ForceOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Polish a splat or a mesh from any tool.

    segdream refine scan.ply "a red car" -o car.ply

    segdream refine toy.glb "a yellow duck" --up z --front -x --strength 0.2 -o duck.spz

    The result keeps the frame and the scale of the asset. segdream generate --resume resumes a stopped run.
    """
    from segdream_cli.evaluate.asset_files import stem_of
    from segdream_cli.runs.checks import check_asset, check_spec

    request = shared.request(
        {
            **shared.prior_options(prior, model),
            **shared.hardware_options(dtype, low_vram),
            "optim.steps": ("--distil", distil),
            "densify.cap": ("--max-gaussians", max_gaussians),
            "refine.cap": ("--max-gaussians", max_gaussians),
            "refine.strength": ("--strength", strength),
            "refine.split": ("--split", split),
            "output.preview_every": ("--preview-every", preview_every),
        },
        assignments,
        quality=quality,
        file=config,
        device=device,
        offline=offline,
        refines=True,
    )
    if dry_run and view:
        raise UsageProblem("--view can't be combined with --dry-run", without=["--view", "--no-browser"])
    if no_browser and not view:
        raise UsageProblem("--no-browser only affects --view", hint="--view --no-browser")
    reporter = TerminalReporter(Output(json=json, quiet=quiet), browser=not no_browser)
    axis = reading.parse_up(up)
    azimuth = reading.parse_front(front, axis)
    shared.refuse_skip_and_force(skip_existing=skip_existing, force=force)
    if not lexists(asset) and is_file(Path(prompt)):
        raise UsageProblem("the asset comes before its prompt", words={str(asset): prompt, prompt: str(asset)})
    check_asset(asset)
    splat_files = [] if asset.suffix.lower() == ".obj" else [asset]
    how = reading.choose_reading(splat_files, reporter.output, frame=frame, strict=strict, as_splats=as_splats)
    job = Job(prompt, seed, Path(f"{asset.stem}-refined.ply"))
    if output is not None:
        labels = shared.labels(request, output) | {"stem": stem_of(asset)}
        job = replace(job, output=fill_template(output, job, labels=labels))
    makes_folder = output is not None and job.output != output
    spec = JobSpec(
        request=request, jobs=(job,), negative_prompt=negative, skip_existing=skip_existing, force=force, live=view
    )
    check_spec(spec, makes_folders=makes_folder)
    from segdream_cli.runs.session import run_jobs  # slow imports, after the checks that do not need them
    from segdream_cli.runs.source import source_of

    spec = replace(spec, jobs=(replace(job, source=source_of(asset, azimuth, sh, axis, how)),))
    if output is not None and makes_folder and not dry_run:
        make_folders([job], "-o", output)
    if dry_run:
        from segdream_cli.runs.dry_run import plan_jobs

        plan_jobs(spec, reporter, makes_folders=makes_folder)
        return
    with restart_hints(spec.jobs[0].output.with_suffix(".run")):
        run_jobs(spec, reporter, StopOnSignal(reporter.output.note))
    reporter.suggest()
