"""`segdream evaluate`: measures assets, and compares two folders of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, cast

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli import reading, references, workers
from segdream_cli.cli.evaluate_results import Files, show_comparison, show_evaluation, show_votes
from segdream_cli.cli.output import Output
from segdream_cli.cli.reporter import TerminalReporter
from segdream_cli.cli.schema import MetricRow
from segdream_cli.cli.signals import StopOnSignal
from segdream_cli.cli.usage import with_asset
from segdream_cli.config import AUTO
from segdream_cli.errors import Interrupted, UsageProblem
from segdream_cli.runs.jobs import FileJob, match_prompts, read_prompts
from segdream_cli.util.devices import check_device, choose_device
from segdream_cli.util.home import expand

if TYPE_CHECKING:
    from segdream_cli.evaluate.assets import Entry
    from segdream_cli.evaluate.comparison import Pair
    from segdream_cli.evaluate.evaluation import Evaluation, Measurement
    from segdream_cli.evaluate.metrics import Metric, Setup
    from segdream_cli.evaluate.views import ViewProtocol
    from segdream_cli.formats.common import Reading
    from segdream_cli.runs.reporter import Event

LIST_TAKES = {"list_metrics", "json", "quiet"}
REFERENCES_TAKE = {
    "make_references", "assets", "prompts", "count", "prior", "seed", "device", "offline", "json", "quiet"
}  # fmt: skip
VOTES_TAKE = {"assets", "compare", "votes", "prompts", "seed", "json", "quiet"}
METRICS_PANEL, VIEWS_PANEL, REFERENCES, COMPARISON = "Metrics", "Views", "Reference images", "Comparison"
MAX_ELEVATIONS = 10


def evaluate(
    context: typer.Context,
    assets: Annotated[
        list[Path] | None, typer.Argument(metavar="ASSET", help="Asset to measure, or a folder of assets.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            help="File of prompts, matched by file name or position; - reads stdin.",
            rich_help_panel=shared.PROMPT,
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", help="Metrics to use, such as judge,health.", rich_help_panel=METRICS_PANEL),
    ] = None,
    list_metrics: Annotated[
        bool, typer.Option("--list-metrics", help="List the metrics, and exit.", rich_help_panel=METRICS_PANEL)
    ] = False,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", help="METRIC=FOLDER or METRIC=HUB_ID; repeatable.", rich_help_panel=METRICS_PANEL),
    ] = None,
    n_views: Annotated[
        int, typer.Option("--views", min=1, max=3600, help="Number of azimuths.", rich_help_panel=VIEWS_PANEL)
    ] = 120,
    elevations: Annotated[
        str, typer.Option("--elevations", help="Elevations in degrees, such as 0,15,30.", rich_help_panel=VIEWS_PANEL)
    ] = "0",
    size: Annotated[
        int, typer.Option("--size", min=64, max=4096, help="Side of a view in pixels.", rich_help_panel=VIEWS_PANEL)
    ] = 512,
    frame: reading.FrameOption = None,
    strict: reading.StrictOption = False,
    as_splats: reading.AsSplatsOption = False,
    fit: Annotated[
        bool | None,
        typer.Option(
            "--fit/--no-fit",
            help="Move and scale assets to fill the views.",
            show_default="only those cut off or small",
            rich_help_panel=VIEWS_PANEL,
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="Folder of images for fid and frechet.", rich_help_panel=REFERENCES),
    ] = None,
    make_references: Annotated[
        Path | None,
        typer.Option("--make-references", help="Draw images of --prompts, and exit.", rich_help_panel=REFERENCES),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", min=1, max=360, help="Images to draw per prompt.", rich_help_panel=REFERENCES)
    ] = 8,
    prior: Annotated[
        shared.PriorName | None,
        typer.Option("--prior", help="Prior to draw from; auto by default.", rich_help_panel=REFERENCES),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Compare two ASSETs, A and B, by prompt.", rich_help_panel=COMPARISON),
    ] = False,
    blind: Annotated[
        Path | None,
        typer.Option("--blind", help="With --compare, page to write for people's votes.", rich_help_panel=COMPARISON),
    ] = None,
    votes: Annotated[
        list[Path] | None,
        typer.Option(
            "--votes", help="With --compare, count a saved file of votes; repeatable.", rich_help_panel=COMPARISON
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", min=0, help="Seed of intervals, drawings and shuffling.", rich_help_panel=METRICS_PANEL),
    ] = 0,
    csv: Annotated[Path | None, typer.Option("--csv", help="CSV file to write.", rich_help_panel=shared.OUTPUT)] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Report with pictures to write.", rich_help_panel=shared.OUTPUT)
    ] = None,
    force: shared.ForceOption = False,
    device: shared.DeviceOption = AUTO,
    devices: shared.AssetsOnDevicesOption = None,
    ray: shared.RayOption = None,
    gpus_per_worker: shared.GpusPerWorkerOption = 1.0,
    cpus_per_worker: shared.CpusPerWorkerOption = 1,
    offline: shared.OfflineOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Measure assets.

    segdream evaluate bus.ply

    segdream evaluate assets/ --metrics judge,health --html report.html

    segdream evaluate --compare old/ new/ --blind vote.html
    """
    from segdream_cli.evaluate.asset_files import find_assets
    from segdream_cli.evaluate.metrics import Setup, choose_metrics

    sink = Output(json=json, quiet=quiet)
    files = Files(csv, html, blind)
    _refuse_idle(context, assets, files)
    if list_metrics:
        return _list_metrics(sink)
    if make_references is not None:
        return references.make_references(
            make_references,
            prompts,
            count=count,
            prior=prior and str(prior),
            seed=seed,
            device=device,
            offline=offline,
            sink=sink,
        )
    if not assets:
        raise UsageProblem("give an ASSET or a folder of assets", hint=with_asset(context))
    _check_files(files, force=force)
    _check_comparison(context, assets, compare=compare)
    names = choose_metrics(metrics)
    _check_reference(reference, names)
    angles, given = parse_elevations(elevations), parse_weights(weights or [], names)
    check_device(device)
    files_found = [find_assets(group) for group in ([[path] for path in assets] if compare else [assets])]
    lines = None if prompts is None else read_prompts(prompts)
    from segdream_cli.evaluate.blind import count_votes  # slow imports, after the checks that do not need them
    from segdream_cli.evaluate.evaluation import Evaluation
    from segdream_cli.evaluate.views import ViewProtocol

    protocol = ViewProtocol(n=n_views, elevations_deg=angles, size=size)
    chosen = choose_device(device)
    paths = [path for found, _ in files_found for path in found]
    how = reading.choose_reading(paths, sink, frame=frame, strict=strict, as_splats=as_splats)
    sides = _read(files_found, fit, how, prompts, lines, sink)
    pairs = _pair(sides, sink) if compare else []
    if votes:
        _note_seed(context, [one.a[0] for one in pairs], files, sink)
        return show_votes(count_votes(votes, pairs, seed), sink)
    entries = [entry for side in sides for entry in side]
    if metrics is not None:
        _check_prompts(entries, names)
    texts = tuple(dict.fromkeys(entry.prompt for entry in entries if entry.prompt))
    setup = Setup(device=chosen, prompts=texts, weights=given, reference=reference, offline=offline, announce=sink.note)
    _note_fitted(entries, fit, sink)
    _note_seed(context, entries, files, sink)
    _note_offline(context, names, given, sink)
    loaded = _load(names, setup)
    _note_views(context, loaded, protocol, files, sink)
    evaluations = [Evaluation(loaded, protocol, chosen, _n_pictures(files)) for _ in sides]
    exit_code = _measure_all(context, list(zip(evaluations, sides, strict=True)), setup, sink)
    if not exit_code and compare:
        titles = [f"{side}: {path}" for side, path in zip("AB", assets, strict=True)]
        show_comparison(dict(zip(titles, evaluations, strict=True)), pairs, seed, files, sink)
    elif not compare:
        show_evaluation(evaluations[0], seed, files, sink)
    raise typer.Exit(exit_code)


def _refuse_idle(context: typer.Context, assets: Sequence[Path] | None, files: Files) -> None:
    """Refuses options that have no effect on what is asked for, which may be no measurement at all."""
    given, every = context.params, set(context.params)
    if given["list_metrics"]:
        reason = "can't be combined with --list-metrics, which measures nothing"
        return shared.refuse_options(context, every - LIST_TAKES, reason)
    folder, votes = given["make_references"], given["votes"]
    if folder is not None:
        _refuse_assets(assets)
        return shared.refuse_options(context, every - REFERENCES_TAKE, "has no effect with --make-references")
    shared.refuse_options(context, {"count", "prior"}, "has no effect without --make-references")
    workers.has_workers(context)
    if votes and given["compare"]:
        shared.refuse_options(context, every - VOTES_TAKE, "has no effect with --votes")
    elif not files.given:
        shared.refuse_options(context, {"force"}, "has no effect without --csv, --html or --blind")


def _refuse_assets(assets: Sequence[Path] | None) -> None:
    """Refuses assets where reference images are to be drawn, since nothing would be measured."""
    if assets:
        raise UsageProblem("--make-references draws images and measures no ASSET", without=["ASSET"])


def _check_reference(reference: Path | None, names: Sequence[str]) -> None:
    """Refuses reference images that no chosen metric compares with."""
    from segdream_cli.evaluate.metrics import METRICS

    comparing = [name for name, entry in METRICS.items() if entry.needs_reference]
    if reference is not None and not set(comparing) & set(names):
        raise UsageProblem(
            f"--reference has no effect without one of the metrics {', '.join(comparing)}",
            hint=f"--metrics {','.join([*names, comparing[0]])}",
        )


def _list_metrics(sink: Output) -> None:
    from segdream_cli.evaluate.metrics import METRICS

    for name, entry in METRICS.items():
        row = MetricRow(name=name, description=entry.description, default=entry.embedded)
        sink.result(row, f"{name:12} {entry.description}")


def parse_elevations(text: str) -> tuple[float, ...]:
    """The elevations of a comma-separated list in degrees, each once.

    Raises:
        UsageProblem: the text is something else, or an elevation is beyond the poles.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not 0 < len(values) <= MAX_ELEVATIONS or not all(abs(value) <= 90 for value in values):
        raise UsageProblem(
            f"--elevations {text!r} is not a list of 1 to {MAX_ELEVATIONS} elevations of -90 to 90 degrees",
            hint="--elevations 0,15,30",
        )
    return tuple(dict.fromkeys(values))


def parse_weights(assignments: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Metric -> folder or Hub id, of `METRIC=FOLDER` entries.

    Args:
        assignments: the entries.
        names: the chosen metrics.

    Raises:
        UsageProblem: an entry is something else, or its metric is unknown or not chosen.
    """
    from segdream_cli.evaluate.metrics import METRICS

    found = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not value or name not in METRICS:
            raise UsageProblem(
                f"--weights {text!r} is not METRIC=FOLDER with one of {', '.join(METRICS)}",
                without=[f"--weights {text}"],
            )
        if name not in names:
            raise UsageProblem(
                f"--weights {name}=... has no effect without the metric {name}",
                without=[f"--weights {text}"],
            )
        found[name] = value
    return found


def _check_files(files: Files, *, force: bool) -> None:
    """Refuses files that can't be written, before any work.

    Raises:
        UsageProblem: a suffix or a folder is wrong, or two files are the same.
        OutputExists: a file exists.
        EnvironmentProblem: a package can't write the pictures of a page.
    """
    from segdream_cli.formats.common import check_webp
    from segdream_cli.util.files import check_output

    taken: dict[Path, str] = {}
    for option, path in files.given.items():
        suffix = ".csv" if option == "--csv" else ".html"
        if path.suffix.lower() != suffix:
            raise UsageProblem(
                f"{option} writes a {suffix} file, and {path} is not", hint=f"{option} {quote(f'{path}{suffix}')}"
            )
        check_output(path, force=force, option=option)
        other = taken.setdefault(path.parent.resolve() / path.name, option)
        if other != option:
            raise UsageProblem(
                f"{other} and {option} both write {path}",
                hint=f"{option} {quote(str(path.with_stem(path.stem + '-2')))}",
            )
    if files.html or files.blind:
        check_webp()


def _check_comparison(context: typer.Context, assets: Sequence[Path], *, compare: bool) -> None:
    """Refuses a comparison of other than two sets, and its options without it."""
    if not compare:
        shared.refuse_options(context, {"blind", "votes"}, "can't be used without --compare")
    elif len(assets) != 2:
        raise UsageProblem(
            f"--compare takes two assets or folders, A and B, not {len(assets)}",
            without=["--compare", "--blind", "--votes"],
        )


def _read(
    groups: Sequence[tuple[Sequence[Path], Sequence[str]]],
    fit: bool | None,
    how: "Reading",
    prompts: str | None,
    lines: Sequence[str] | None,
    sink: Output,
) -> "list[list[Entry]]":
    """The assets of each group of files, read once, with their prompts; prints the notes of each group."""
    from segdream_cli.evaluate.asset_files import stem_of
    from segdream_cli.evaluate.assets import list_assets, with_prompts

    groups_read = []
    for found, notes in groups:
        entries = list_assets(found, fit=fit, reading=how)
        if prompts is not None and lines is not None:
            entries = with_prompts(entries, match_prompts(lines, [stem_of(path) for path in found], prompts))
        for note in notes:
            sink.note(note)
        groups_read.append(entries)
    return groups_read


def _pair(sides: "list[list[Entry]]", sink: Output) -> "list[Pair]":
    """The pairs of both sides by prompt; `sides` keep the paired assets only."""
    from segdream_cli.evaluate.comparison import pair

    pairs, notes = pair(*sides)
    for note in notes:
        sink.note(note)
    sides[:] = [entry for one in pairs for entry in one.a], [entry for one in pairs for entry in one.b]
    return pairs


def _n_pictures(files: Files) -> int:
    """Pictures per asset that the files need."""
    from segdream_cli.evaluate import blind, report

    return blind.N_PICTURES if files.blind else report.N_PICTURES if files.html else 0


def _check_prompts(entries: "Sequence[Entry]", names: Sequence[str]) -> None:
    """Refuses an asset without a prompt if a metric that was asked for needs one."""
    from segdream_cli.evaluate.metrics import METRICS
    from segdream_cli.runs.jobs import NEW_LIST
    from segdream_cli.util.files import free_path

    needing = [name for name in names if METRICS[name].needs_prompt]
    without = next((entry for entry in entries if not entry.prompt), None)
    if needing and without:
        message = f"{without.path} has no prompt in its file, and the metric {needing[0]} needs one"
        if len(entries) == 1:
            new = free_path(NEW_LIST)
            raise UsageProblem(message, hint=f"echo 'a yellow school bus' > {new} && --prompts {new}")
        others = [name for name in names if name not in needing]
        raise UsageProblem(message, without=["--metrics"], hint=f"--metrics {','.join(others)}" if others else None)


def _note_fitted(entries: "Sequence[Entry]", fit: bool | None, sink: Output) -> None:
    moved = [entry.name for entry in entries if entry.fitted]
    if moved and fit is None:
        more = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
        sink.note(f"moved and scaled to fill the views: {moved[0]}{more}; --no-fit keeps all as they are")


def _note_seed(context: typer.Context, entries: "Sequence[Entry]", files: Files, sink: Output) -> None:
    """Notes a seed from which nothing is drawn."""
    if shared.is_given(context, "seed") and not files.blind and len({entry.key for entry in entries}) < 2:
        sink.note("--seed has no effect: an interval needs two prompts")


def _note_offline(context: typer.Context, names: Sequence[str], weights: Mapping[str, str], sink: Output) -> None:
    """Notes an --offline beside metrics that never go online."""
    from segdream_cli.evaluate.metrics import METRICS

    local = {name for name, place in weights.items() if expand(place).is_dir()}
    if context.params["offline"] and not any(METRICS[name].downloads for name in {*names} - local):
        sink.note("--offline has no effect: the metrics need no download")


def _note_views(
    context: typer.Context, metrics: "Mapping[str, Metric]", protocol: "ViewProtocol", files: Files, sink: Output
) -> None:
    """Notes options of views that nobody looks at: metrics may have their own, and pages show the first elevation."""
    if any(metric.reads_views for metric in metrics.values()):
        return
    has_page, usual = bool(files.html or files.blind), type(protocol)()
    idle = {
        "n_views": True,
        "elevations": not has_page or protocol.elevations_deg[0] == usual.elevations_deg[0],
        "size": not has_page,
    }
    for each in context.command.params:
        if idle.get(str(each.name)) and shared.is_given(context, str(each.name)):
            sink.note(f"{each.opts[-1]} has no effect: the metrics have views of their own, or need none")


def _load(names: Sequence[str], setup: "Setup") -> "dict[str, Metric]":
    """Loads all metrics and the rasteriser, so that a missing package or file is found before the first render."""
    from segdream_cli.evaluate.metrics import METRICS
    from segdream_cli.render.raster import load_backend

    metrics = {name: METRICS[name].load(setup) for name in names}
    load_backend(setup.device)
    return metrics


def _measure_all(
    context: typer.Context, sides: "Sequence[tuple[Evaluation, Sequence[Entry]]]", setup: "Setup", sink: Output
) -> int:
    """Measures the assets of each side, here or on several workers; returns the exit code of the command."""
    return _share_out(context, sides, setup, sink) if workers.has_workers(context) else _measure(sides, sink)


def _measure(sides: "Sequence[tuple[Evaluation, Sequence[Entry]]]", sink: Output) -> int:
    """Measures the assets of each side one after the other, with a progress bar; returns the exit code of the command.

    After a signal, the asset in progress is the last.
    """
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    from segdream_cli.cli.progress import LiveBar

    jobs = [(evaluation, entry) for evaluation, entries in sides for entry in entries]
    with (
        StopOnSignal(sink.note, "stopping after this asset; a second Ctrl-C exits at once, without results") as stop,
        LiveBar(sink, MofNCompleteColumn(), TimeRemainingColumn()) as live,
    ):
        task = live.add_task("measuring", total=len(jobs))
        for done, (evaluation, entry) in enumerate(jobs):
            if live.claim_line():
                sink.note(f"measured {done} of {len(jobs)} assets")
            evaluation.measure(entry)
            live.bar.advance(task)
            if stop.is_set() and done + 1 < len(jobs):
                sink.note(f"stopped after {done + 1} of {len(jobs)} assets")
                return stop.exit_code
    return 0


def _share_out(
    context: typer.Context,
    sides: "Sequence[tuple[Evaluation, Sequence[Entry]]]",
    setup: "Setup",
    sink: Output,
) -> int:
    """Measures the assets of both sides on several workers; returns the exit code of the command.

    Raises:
        typer.Exit: no asset was measured.
        SegdreamError: see `Dispatcher.run`.
    """
    from segdream_cli.evaluate.asset_files import parts_of
    from segdream_cli.evaluate.measuring import Measuring, run_events
    from segdream_cli.runs.reporter import JobFinished
    from segdream_cli.runs.spec import JobSpec, Request

    entries = {entry.path: entry for _, some in sides for entry in some}
    work = Measuring.of(sides[0][0], setup, entries)
    jobs = tuple(FileJob("", 0, path, asset=path, inputs=(*parts_of(path), *run_events(path))) for path in entries)
    found: dict[Path, Measurement] = {}
    terminal = TerminalReporter(sink)

    def report(event: "Event") -> None:
        if isinstance(event, JobFinished):
            found[event.output] = cast("Measurement", event.result)
        else:
            terminal(event)

    spec = JobSpec(request=Request(), jobs=jobs, as_list=True, work=work)
    try:
        exit_code = 1 if workers.run_on_workers(context, spec, report, workers.stop_request(sink)).failed else 0
    except Interrupted as stop:
        sink.note(f"stopped after {len(found)} of {len(jobs)} assets")
        exit_code = stop.exit_code
    if not found:
        raise typer.Exit(exit_code)
    for evaluation, some in sides:
        for entry in some:
            if entry.path in found:
                evaluation.add(entry, found[entry.path])
    return exit_code
