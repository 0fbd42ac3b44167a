"""`segdream generate`: makes assets from a prompt or a list of prompts."""

import shlex
from contextlib import nullcontext
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli import workers
from segdream_cli.cli.command_line import rewrite
from segdream_cli.cli.output import Output
from segdream_cli.cli.reporter import TerminalReporter, restart_hints
from segdream_cli.cli.schema import Words
from segdream_cli.cli.signals import StopOnSignal
from segdream_cli.config import AUTO
from segdream_cli.config.values import MAX_GUIDANCE, MAX_STEPS
from segdream_cli.errors import UsageProblem
from segdream_cli.priors.prompt import EXAMPLE
from segdream_cli.runs.jobs import Job, has_field, jobs_of_list, jobs_of_prompt, make_folders, parse_seeds
from segdream_cli.runs.reporter import JobSkipped, Reporter
from segdream_cli.runs.spec import JobSpec, Request, Tally
from segdream_cli.util.devices import check_device

if TYPE_CHECKING:
    from segdream_cli.priors.profile import Vocabulary
    from segdream_cli.runs.address import Store

BestBy = StrEnum("BestBy", {name: name for name in ("judge", "clip")})  # type: ignore[misc]


def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="The object to make, in a sentence.")] = None,
    output: shared.AssetOutputOption = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", help="File of prompts, one per line; - reads stdin.", rich_help_panel=shared.PROMPT),
    ] = None,
    out_dir: Annotated[
        str | None,
        typer.Option(
            "--out-dir",
            help="Folder for the assets of --prompts, or s3://bucket/folder.",
            rich_help_panel=shared.OUTPUT,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=1,
            help="Assets optimised at once on CUDA; by default the prior's own number.",
            rich_help_panel=shared.HARDWARE,
        ),
    ] = None,
    seed: shared.SeedOption = 0,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            help="Several seeds, 0-3 or 1,5; -o is then a folder, or holds {seed}.",
            rich_help_panel=shared.PROMPT,
        ),
    ] = None,
    best_of: Annotated[
        int | None,
        typer.Option(
            "--best-of",
            min=2,
            max=100,
            help="Start this many seeds, and finish the best.",
            rich_help_panel=shared.PROMPT,
        ),
    ] = None,
    best_by: Annotated[
        BestBy | None,
        typer.Option(
            "--best-by",
            help="Metric of --best-of; judge if it knows the prompt, else clip.",
            rich_help_panel=shared.PROMPT,
        ),
    ] = None,
    negative: shared.NegativeOption = None,
    list_words: Annotated[
        bool,
        typer.Option("--list-words", help="List the words the prior knows, and exit.", rich_help_panel=shared.PROMPT),
    ] = False,
    init: shared.InitOption = None,
    init_prompt: shared.InitPromptOption = None,
    init_color: shared.InitColorOption = None,
    init_points: shared.InitPointsOption = None,
    init_scale: shared.InitScaleOption = None,
    frame: shared.InitFrameOption = None,
    strict: shared.InitStrictOption = False,
    as_splats: shared.InitAsSplatsOption = False,
    quality: shared.QualityOption = shared.STANDARD,
    method: Annotated[
        shared.Method | None,
        typer.Option("--method", help="Distillation method; the default is sctd.", rich_help_panel=shared.QUALITY),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", min=0, max=MAX_STEPS, help="Number of distillation steps.", rich_help_panel=shared.QUALITY
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            "--guidance-scale",
            min=0,
            max=MAX_GUIDANCE,
            help="Guidance scale: strength of the prompt.",
            rich_help_panel=shared.QUALITY,
        ),
    ] = None,
    perp_neg: Annotated[
        bool | None,
        typer.Option(
            "--perp-neg/--no-perp-neg",
            help="Use Perp-Neg against multi-face artifacts.",
            rich_help_panel=shared.QUALITY,
        ),
    ] = None,
    refine: Annotated[
        bool | None,
        typer.Option(
            "--refine/--no-refine",
            help="Refine the asset after distillation; the default is the preset's.",
            rich_help_panel=shared.QUALITY,
        ),
    ] = None,
    beg: Annotated[
        bool | None,
        typer.Option(
            "--beg/--no-beg", help="Fade colours that become too bright (BEG).", rich_help_panel=shared.QUALITY
        ),
    ] = None,
    config: shared.ConfigOption = None,
    assignments: shared.SetOption = None,
    prior: shared.PriorOption = None,
    model: shared.ModelOption = None,
    device: shared.DeviceOption = AUTO,
    devices: shared.DevicesOption = None,
    ray: shared.RayOption = None,
    gpus_per_worker: shared.GpusPerWorkerOption = 1.0,
    cpus_per_worker: shared.CpusPerWorkerOption = 1,
    dtype: shared.DtypeOption = None,
    low_vram: shared.LowVramOption = False,
    point_e_dir: shared.PointEDirOption = None,
    offline: shared.OfflineOption = False,
    preview_every: shared.PreviewEveryOption = None,
    view: shared.ViewOption = False,
    no_browser: shared.NoBrowserOption = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Resume the run in this folder.", rich_help_panel=shared.RUN)
    ] = None,
    skip_existing: shared.SkipExistingOption = False,
    dry_run: shared.DryRunOption = False,
    force: shared.ForceOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Make an asset from a prompt.

    segdream generate "a yellow school bus" -o bus.ply

    segdream generate --prompts prompts/quickstart.txt --out-dir assets
    """
    sink = Output(json=json, quiet=quiet)
    if list_words:
        others = set(context.params) - LIST_TAKES
        shared.refuse_options(context, others, "can't be combined with --list-words, which makes no asset")
    request = shared.request(
        {
            **shared.prior_options(prior, model),
            **shared.start_options(init, init_prompt, init_color, init_points, init_scale, point_e_dir),
            **shared.reading_options(frame, strict, as_splats),
            **shared.hardware_options(dtype, low_vram),
            "optim.steps": ("--steps", steps),
            "distill.method": ("--method", method and str(method)),
            "distill.guidance_scale": ("--guidance-scale", guidance_scale),
            "distill.perp_neg": ("--perp-neg", perp_neg),
            "refine.enabled": ("--refine", refine),
            "optim.beg": ("--beg", beg),
            "output.preview_every": ("--preview-every", preview_every),
        },
        assignments,
        quality=quality,
        file=config,
        device=device,
        offline=offline,
    )
    if list_words:
        return _list_words(request, sink)
    if no_browser and not view:
        raise UsageProblem("--no-browser only affects --view", hint="--view --no-browser")
    reporter = TerminalReporter(sink, browser=not no_browser, prompts=prompts)
    if resume is not None:
        return _resume(context, resume, request, reporter, output, force=force, view=view)
    _refuse_mixtures(context, prompts, seeds, best_of, best_by)
    _check_files(context, sink, output, best_of)
    chosen, labels = None if seeds is None else parse_seeds(seeds), shared.labels(request, output)
    store, folder = _place(context, out_dir)
    jobs = _jobs(context, prompt, prompts, output, folder, chosen, seed, labels)
    makes_folders = prompts is not None or seeds is not None or jobs[0].output != (output or jobs[0].output)
    spec = JobSpec(
        request=request,
        jobs=tuple(jobs),
        negative_prompt=negative,
        batch=batch,
        force=force,
        as_list=prompts is not None,
        skip_existing=skip_existing,
        live=view,
    )
    _check(spec, ray, makes_folders=makes_folders)
    if makes_folders and not dry_run:
        make_folders(jobs, "-o" if out_dir is None else "--out-dir", Path(out_dir or output or ""))
    if dry_run:
        _end(_plan(spec, reporter, makes_folders=makes_folders))
    elif best_of is not None:
        from segdream_cli.runs.best_of import make_best

        make_best(spec, best_of, best_by and str(best_by), reporter, StopOnSignal(reporter.output.note))
    else:
        _end(_make(context, spec, reporter, store))
    reporter.suggest()


def _resume(
    context: typer.Context,
    folder: Path,
    request: Request,
    reporter: TerminalReporter,
    output: Path | None,
    *,
    force: bool,
    view: bool,
) -> None:
    """Resumes a run, with the few options that may differ from its own."""
    others = set(context.params) - RESUME_TAKES
    shared.refuse_options(context, others, "can't be changed: --resume keeps the run's own settings")
    check_device(request.device)
    from segdream_cli.runs.run_dir import RunDir

    if not RunDir(folder).checkpoint.exists():  # which has a copy of the record
        RunDir(folder).record()
    from segdream_cli.runs.session import resume_run  # a slow import, after the checks that do not need it

    with restart_hints(folder, repeat=True):
        resume_run(folder, request, reporter, StopOnSignal(reporter.output.note), output, force=force, live=view)
    reporter.suggest()


def _plan(spec: JobSpec, reporter: TerminalReporter, *, makes_folders: bool) -> Tally:
    """Reports what would be made."""
    from segdream_cli.runs.dry_run import plan_jobs  # a slow import

    return plan_jobs(spec, reporter, makes_folders=makes_folders)


def _make(
    context: typer.Context,
    spec: JobSpec,
    terminal: TerminalReporter,
    store: "Store | None",
) -> Tally:
    """Does the jobs in this process, in one per device, or in a cluster."""
    reporter: Reporter = terminal
    if store is not None:
        left, done = store.prepare(spec.jobs, force=spec.force)
        spec, reporter = replace(spec, jobs=tuple(left)), store.reporter(terminal)
        for job in done:
            reporter(JobSkipped(job.output, 1, 1))
        if not left:
            return Tally(skipped=len(done))
    if workers.has_workers(context):
        if context.params["ray"] is not None:
            shared.refuse_options(context, {"view", "no_browser"}, "can't be combined with --ray")
        stop = StopOnSignal(terminal.output.note, workers.STOPPING_RUNS)
        return workers.run_on_workers(context, spec, reporter, stop)
    from segdream_cli.runs.session import run_jobs

    alone = len(spec.jobs) == 1 and not spec.as_list
    with restart_hints(spec.jobs[0].output.with_suffix(".run")) if alone else nullcontext():
        return run_jobs(spec, reporter, StopOnSignal(terminal.output.note))


def _end(tally: Tally) -> None:
    """Ends with exit code 1 if a job failed; each failure has been reported."""
    if tally.failed:
        raise typer.Exit(1)


def _place(context: typer.Context, out_dir: str | None) -> "tuple[Store | None, Path | None]":
    """The store at the address of an --out-dir, and the folder in which assets are made; None without."""
    from segdream_cli.runs.address import Store, is_address

    if out_dir is None or not is_address(out_dir):
        return None, None if out_dir is None else Path(out_dir)
    shared.refuse_options(context, {"dry_run"}, f"can't be combined with --out-dir {out_dir}")
    store = Store(out_dir)
    return store, store.staging


def _check(spec: JobSpec, ray: str | None, *, makes_folders: bool) -> None:
    """Refuses jobs that can't end well; with --ray, whose machines may have another prior, its survey does that."""
    if ray is None:
        from segdream_cli.runs.checks import check_spec

        check_spec(spec, makes_folders=makes_folders)


def _check_files(context: typer.Context, sink: Output, output: Path | None, best_of: int | None) -> None:
    """Refuses options about files that contradict each other, and notes one without effect."""
    if context.params["skip_existing"] and context.params["prompts"] is not None:
        sink.note("--skip-existing has no effect: --prompts always skips assets that exist")
    shared.refuse_skip_and_force(skip_existing=context.params["skip_existing"], force=context.params["force"])
    if context.params["dry_run"]:
        others = {"view", "no_browser", "devices", "ray"}
        shared.refuse_options(context, others, "can't be combined with --dry-run")
    if best_of is not None and has_field(output, "seed"):
        raise UsageProblem(
            "the seed of --best-of is not known before it is chosen, so -o can't hold {seed}",
            hint=f"-o {quote(str(output).replace('{seed}', 'best'))}",
        )


def _refuse_mixtures(
    context: typer.Context, prompts: str | None, seeds: str | None, best_of: int | None, best_by: str | None
) -> None:
    """Refuses options about seeds that exclude each other, and those about several assets or workers without them."""
    workers.has_workers(context)
    if seeds is not None:
        shared.refuse_options(context, {"seed"}, "can't be combined with --seeds")
    if best_of is not None:
        if prompts is not None:
            shared.refuse_options(context, {"best_of", "best_by"}, "can't be combined with --prompts")
        others = {"seeds", "prompts", "out_dir", "devices", "ray", "dry_run"}
        shared.refuse_options(context, others, "can't be combined with --best-of")
    elif best_by is not None:
        raise UsageProblem("--best-by only affects --best-of", hint=f"--best-of 4 --best-by {best_by}")
    elif seeds is None and prompts is None:
        shared.refuse_options(context, {"batch"}, "needs several assets, from --prompts or --seeds")


def _jobs(
    context: typer.Context,
    prompt: str | None,
    prompts: str | None,
    output: Path | None,
    out_dir: Path | None,
    seeds: list[int] | None,
    seed: int,
    labels: dict[str, str],
) -> list[Job]:
    """The jobs that the arguments ask for."""
    if prompts is not None:
        if prompt is not None:
            raise UsageProblem("--prompts takes no PROMPT", without=["PROMPT"])
        if output is not None:
            from segdream_cli.formats import check_format

            check_format(output)  # that of all assets
        return jobs_of_list(prompts, out_dir, seeds or [seed], output, labels, with_seed=seeds is not None)
    if prompt is not None and out_dir is not None:
        inside = quote(str(out_dir / "{prompt}.ply"))
        raise UsageProblem(
            "--out-dir is the folder of a list; the file of one PROMPT is that of -o",
            without=["--out-dir"],
            hint=f"-o {inside}" if output is None else None,
        )
    if prompt is None:
        whole = shlex.join(rewrite(context, (), [EXAMPLE]))
        raise UsageProblem(
            "give one PROMPT, or a list with --prompts and --out-dir",
            hint=whole if out_dir is None else "--prompts prompts.txt",
        )
    return jobs_of_prompt(prompt, output, seeds, seed, labels)


LIST_TAKES = {"list_words", "prior", "model", "device", "config", "assignments", "json", "quiet"}
SYNONYMS_SHOWN = 8
"""Examples of synonyms that --list-words prints."""
RESUME_TAKES = {
    "resume", "output", "device", "offline", "preview_every", "view", "no_browser", "force", "json", "quiet",
}  # fmt: skip


def _list_words(request: Request, sink: Output) -> None:
    """Prints the phrases that a prior knows."""
    from segdream_cli.priors.checkpoint import profile_of
    from segdream_cli.util.devices import choose_device

    profile = profile_of(request.prior(), cuda=choose_device(request.device).type == "cuda")
    words = profile.vocabulary
    if words is None:
        sink.report(Words(prior=profile.title, any_text=True), f"{profile.title} takes any text")
        return
    line = Words(
        prior=profile.title,
        any_text=False,
        objects=words.objects,
        colors=words.colors,
        attributes=words.attributes,
        fillers=words.fillers,
        excluded=[{"color": color, "attribute": attribute} for color, attribute in words.excluded],
        synonyms={phrase: list(others) for phrase, others in words.synonyms},
        ignored=words.ignored,
    )
    sink.result(line, *_describe_words(words))


def _describe_words(words: "Vocabulary") -> list[str]:
    """The phrases that a person can use; of the synonyms, only some examples."""
    texts = [f"{kind}: {', '.join(getattr(words, kind))}" for kind in ("objects", "colors", "attributes", "fillers")]
    for attribute in words.attributes:
        if colors := [color for color, other in words.excluded if other == attribute]:
            listed = "all" if {*colors} == {*words.colors} else ", ".join(colors)
            texts.append(f'colors excluded by "{attribute}": {listed}')
    if words.synonyms:
        number = sum(len(others) for _, others in words.synonyms)
        examples = ", ".join(f"{others[0]} ({phrase})" for phrase, others in words.synonyms[:SYNONYMS_SHOWN])
        texts.append(f"synonyms: {number:,}, such as {examples}; --json lists all")
    if words.ignored:
        texts.append(f"ignored: {len(words.ignored)} words such as {', '.join(words.ignored[:SYNONYMS_SHOWN])}")
    return texts
