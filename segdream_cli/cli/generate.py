"""`segdream generate`: from a prompt, or a list of them, to assets."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.output import Output
from segdream_cli.cli.view import Watch
from segdream_cli.config import AUTO
from segdream_cli.errors import UsageProblem
from segdream_cli.runs.jobs import Job, jobs_of_list, jobs_of_prompt, parse_seeds
from segdream_cli.runs.load import Request
from segdream_cli.runs.processes import own_share


def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What to make, in a sentence.")] = None,
    output: shared.OutputOption = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts", help="File of prompts, one a line, or - to read them.", rich_help_panel=shared.PROMPT
        ),
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out-dir", help="Folder for the assets of a list.", rich_help_panel=shared.OUTPUT)
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=1,
            help="Assets of a list, or seeds, made at once; by default what suits the prior on CUDA, 1 on a CPU.",
            rich_help_panel=shared.HARDWARE,
        ),
    ] = None,
    seed: shared.SeedOption = 0,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            help="Several seeds, 0-3 or 1,5; -o is then a pattern with {seed} or a folder.",
            rich_help_panel=shared.PROMPT,
        ),
    ] = None,
    negative: Annotated[
        str | None,
        typer.Option(
            "--negative", help="What not to make, in place of the prior's own.", rich_help_panel=shared.PROMPT
        ),
    ] = None,
    list_words: Annotated[
        bool,
        typer.Option("--list-words", help="Show the words the prior knows and exit.", rich_help_panel=shared.PROMPT),
    ] = False,
    init: shared.InitOption = None,
    init_prompt: shared.InitPromptOption = None,
    init_color: shared.InitColorOption = None,
    init_points: shared.InitPointsOption = None,
    init_scale: shared.InitScaleOption = None,
    quality: shared.QualityOption = shared.STANDARD,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Optimisation steps.", rich_help_panel=shared.QUALITY)
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", min=0, help="Strength of the prompt.", rich_help_panel=shared.QUALITY),
    ] = None,
    perp_neg: Annotated[
        bool | None,
        typer.Option("--perp-neg/--no-perp-neg", help="Push other views away.", rich_help_panel=shared.QUALITY),
    ] = None,
    config: shared.ConfigOption = None,
    assignments: shared.SetOption = None,
    prior: shared.PriorOption = None,
    model: shared.ModelOption = None,
    device: shared.DeviceOption = AUTO,
    devices: shared.DevicesOption = None,
    dtype: shared.DtypeOption = None,
    low_vram: shared.LowVramOption = False,
    point_e_dir: shared.PointEDirOption = None,
    offline: shared.OfflineOption = False,
    preview_every: Annotated[
        int | None,
        typer.Option(
            "--preview-every", min=0, help="Steps between two pictures in the run folder.", rich_help_panel=shared.RUN
        ),
    ] = None,
    view: Annotated[
        bool, typer.Option("--view", help="Show it in the browser while it is being made.", rich_help_panel=shared.RUN)
    ] = False,
    no_browser: shared.NoBrowserOption = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Continue this run folder.", rich_help_panel=shared.RUN)
    ] = None,
    force: shared.ForceOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Make an asset from a prompt.

    segdream generate "a yellow school bus" -o bus.ply

    segdream generate --prompts prompts/quickstart.txt --out-dir assets
    """
    sink = Output(json=json, quiet=quiet)
    request = Request(
        quality=str(quality),
        options={
            "prior.name": prior and str(prior),
            "prior.model": model,
            **shared.start_settings(init, init_prompt, init_color, init_points, init_scale, point_e_dir),
            **shared.hardware_settings(dtype, low_vram),
            "optim.steps": steps,
            "distill.guidance_scale": guidance_scale,
            "distill.perp_neg": perp_neg,
            "output.preview_every": preview_every,
        },
        assignments=tuple(assignments or ()),
        file=config,
        device=device,
        offline=offline,
    )
    if list_words:
        _list_words(request, sink)
        return
    if no_browser and not view:
        raise UsageProblem("--no-browser is about the page of --view", hint="--view --no-browser")
    watching = Watch(sink, no_browser=no_browser) if view else nullcontext()
    if resume is not None:
        others, hint = set(context.params) - RESUME_TAKES, f"segdream generate --resume {quote(str(resume))}"
        shared.refuse_given(context, others, "can't be changed: --resume keeps the run's own settings", hint)
        from segdream_cli.runs.session import resume as continue_run

        with watching as watch:
            continue_run(resume, request, sink, force=force, watch=watch)
        return
    if seeds is not None:
        shared.refuse_given(context, {"seed"}, "has no place beside --seeds", "--seeds 0-3, or --seed 1")
    if seeds is None and prompts is None:
        shared.refuse_given(context, {"batch"}, "is for several assets", "--prompts list.txt, or --seeds 0-3")
    jobs = _jobs(prompt, prompts, output, out_dir, None if seeds is None else parse_seeds(seeds), seed)
    if devices is not None:
        shared.refuse_given(context, {"device"}, "has no place beside --devices", "--devices 0,1")
        if prompts == "-":
            raise UsageProblem("--devices needs a list that can be read twice", hint="--prompts list.txt")
        request, jobs = own_share(devices, request, jobs)
    from segdream_cli.runs.session import Session  # heavy: a mistake above is answered without it

    session = Session.open(request, sink, negative, batch)
    make = session.make_all if prompts is None else session.make_list
    with watching as session.watch:
        make(jobs, force=force)


def _jobs(
    prompt: str | None,
    prompts: str | None,
    output: Path | None,
    out_dir: Path | None,
    seeds: list[int] | None,
    seed: int,
) -> list[Job]:
    """The assets that the arguments ask for."""
    if prompts is not None:
        if prompt is not None or output is not None:
            raise UsageProblem(
                "--prompts takes neither a PROMPT nor -o", hint="segdream generate --prompts list.txt --out-dir assets"
            )
        return jobs_of_list(prompts, out_dir, seeds or [seed], with_seed=seeds is not None)
    if prompt is None or out_dir is not None:
        raise UsageProblem(
            "give one PROMPT, or a list with --prompts and --out-dir",
            hint='segdream generate "a yellow school bus" -o bus.ply',
        )
    return jobs_of_prompt(prompt, output, seeds, seed)


RESUME_TAKES = {"resume", "device", "offline", "preview_every", "view", "no_browser", "force", "json", "quiet"}


def _list_words(request: Request, sink: Output) -> None:
    """Prints the phrases a prior knows."""
    from segdream_cli.priors.checkpoint import profile_of
    from segdream_cli.util.devices import choose_device

    profile = profile_of(request.prior(), cuda=choose_device(request.device).type == "cuda")
    if profile.vocabulary is None:
        sink.note(f"{profile.title} takes any text")
        return
    for kind, phrases in dataclasses.asdict(profile.vocabulary).items():
        sink.result(f"{kind}: " + ", ".join(phrases))
