"""Options that several commands share, each declared once."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from segdream_cli.cli.command_line import remember_settings
from segdream_cli.cli.output import Output
from segdream_cli.cli.schema import Skipped
from segdream_cli.config import AUTO, MINI, SD21
from segdream_cli.config.distill import METHOD_NAMES
from segdream_cli.config.sections import MAX_POINTS
from segdream_cli.config.values import parse_assignments
from segdream_cli.errors import OptionProblem, UsageProblem
from segdream_cli.priors.profile import QUALITIES
from segdream_cli.runs.jobs import MAX_SEED, Job, fill_fields, has_field, make_folders
from segdream_cli.runs.spec import Request
from segdream_cli.util.home import abbreviate, expand
from segdream_cli.util.text import join_names

Quality = StrEnum("Quality", {name: name for name in QUALITIES})  # type: ignore[misc]
STANDARD: Quality = Quality("standard")
Method = StrEnum("Method", {name: name for name in METHOD_NAMES})  # type: ignore[misc]
PriorName = StrEnum("PriorName", {name: name for name in (AUTO, SD21, MINI)})  # type: ignore[misc]

Options = Mapping[str, tuple[str, Any]]
"""Setting -> the option that stands for it, and its value; None if it was not given."""

PROMPT, START, QUALITY, RUN, HARDWARE, OUTPUT = "Prompt", "Start", "Quality", "Run", "Hardware and weights", "Output"


def refuse_options(context: typer.Context, names: set[str], reason: str, hint: str | None = None) -> None:
    """Refuses options that have no effect.

    Args:
        context: the command's.
        names: parameters of the refused options.
        reason: end of the message, which begins with the options' names, as it is said of one of them.
        hint: options with which they have an effect; without, the hint leaves them out.

    Raises:
        OptionProblem: one of them was given on the command line.
    """
    given = [item for item in context.command.params if item.name in names and is_given(context, str(item.name))]
    if given:
        titles = [item.opts[-1] if item.opts[0].startswith("-") else str(item.metavar) for item in given]
        raise OptionProblem(
            f"{join_names(titles)} {_agree(reason, len(titles))}", without=() if hint else titles, hint=hint
        )


def _agree(reason: str, number: int) -> str:
    """What is said of one option, said of a number of them."""
    if number == 1:
        return reason
    first, space, rest = reason.partition(" ")
    return {"has": "have", "needs": "need"}.get(first, first) + space + rest.replace("affects", "affect")


def is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def settings(options: Options, assignments: Sequence[str] | None) -> dict[str, Any]:
    """The settings that options and `--set` entries stand for.

    Raises:
        OptionProblem: an option and an entry give a setting different values.
        UsageProblem: an entry is not key=value.
    """
    assigned = parse_assignments(assignments or ())
    for key, (name, value) in options.items():
        if value is not None and key in assigned and assigned[key] != value:
            text = next(text for text in assignments or () if text.partition("=")[0].strip() == key)
            raise OptionProblem(f"{name} {value} and --set {text} contradict each other", without=[name])
    return assigned | {key: value for key, (_, value) in options.items() if value is not None}


def request(
    options: Options,
    assignments: Sequence[str] | None,
    *,
    quality: Quality,
    file: Path | None,
    device: str,
    offline: bool,
    refines: bool = False,
) -> Request:
    """The request of a command line, from its named options, its `--set` entries and the values of `Request`.

    Raises:
        UsageProblem: see `settings`.
    """
    remember_settings({key: name for key, (name, _) in options.items()})
    return Request(
        quality=str(quality),
        settings=settings(options, assignments),
        options={key: name for key, (name, value) in options.items() if value is not None},
        file=file,
        device=device,
        offline=offline,
        refines=refines,
    )


def prior_options(prior: str | None, model: str | None) -> Options:
    """The options that choose the prior.

    Raises:
        OptionProblem: both are given, and one would have no effect.
    """
    if prior is not None and model is not None:
        raise OptionProblem("--prior can't be combined with --model, which takes its place", without=["--prior"])
    return {"prior.name": ("--prior", prior and str(prior)), "prior.model": ("--model", model)}


def labels(request: Request, template: Path | None) -> dict[str, str]:
    """Values of the fields `{method}` and `{prior}` of an -o; empty if it has neither.

    Raises:
        UsageProblem, WeightsUnavailable: a setting or the prior's profile can't be used.
    """
    if not has_field(template, "method", "prior"):
        return {}
    from segdream_cli.runs.load import template_labels  # a slow import

    return template_labels(request)


def fill_stem(output: Path, asset: Path) -> Path:
    """An -o with `{stem}`, the name of the asset without its suffix, filled in; its folder is then created.

    Raises:
        UsageProblem: it has another field, or the folder can't be created.
    """
    from segdream_cli.evaluate.asset_files import stem_of

    path = fill_fields(output, {"stem": stem_of(asset)})
    if path != output:
        make_folders([Job("", 0, path)], "-o", output)
    return path


def refuse_skip_and_force(*, skip_existing: bool, force: bool) -> None:
    """Refuses --skip-existing beside --force.

    Raises:
        OptionProblem: both were given.
    """
    if skip_existing and force:
        raise OptionProblem("--skip-existing and --force contradict each other", without=["--force"])


def is_skipped(path: Path, sink: Output, *, skip: bool, force: bool, last: Path | None = None) -> bool:
    """Whether --skip-existing leaves out an output, which is then reported.

    Args:
        path: the output.
        sink: receives the report.
        skip: whether the option was given.
        force: whether --force was given.
        last: the file of the output that is written last; by default the output itself.

    Raises:
        OptionProblem: both options were given.
    """
    from segdream_cli.util.files import lexists

    refuse_skip_and_force(skip_existing=skip, force=force)
    if not skip or not lexists(last or path):
        return False
    sink.report(Skipped(output=path), f"{path} exists, skipped")
    return True


def confirm(sink: Output, question: str, *, yes: bool) -> None:
    """Returns if the user agrees; ends the command if not.

    Raises:
        UsageProblem: there is no terminal to ask on, and no --yes.
        typer.Exit: the user does not agree.
    """
    if yes:
        return
    if not sink.can_ask():
        raise UsageProblem("--clean asks before it removes anything, and there is no terminal", hint="--yes")
    if not sink.ask(question):
        sink.note("nothing removed")
        raise typer.Exit


def count(number: int, noun: str) -> str:
    """A number with its noun, in the plural if that is due."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def start_options(
    shape: str | None,
    prompt: str | None,
    color: str | None,
    points: int | None,
    scale: float | None,
    folder: Path | None,
) -> Options:
    """The options of the initial Gaussians."""
    return {
        "init.shape": ("--init", shape),
        "init.prompt": ("--init-prompt", prompt),
        "init.color": ("--init-color", color and str(color)),
        "init.points": ("--init-points", points),
        "init.scale": ("--init-scale", scale),
        "init.point_e": ("--point-e-dir", folder and abbreviate(expand(folder))),
    }


def reading_options(frame: str | None, strict: bool, as_splats: bool) -> Options:
    """The options of how the file of a start is read."""
    return {
        "init.frame": ("--frame", frame),
        "init.strict": ("--strict", strict or None),
        "init.as_splats": ("--as-splats", as_splats or None),
    }


def hardware_options(dtype: str | None, low_vram: bool) -> Options:
    """The options about the GPU."""
    return {"prior.dtype": ("--dtype", dtype and str(dtype)), "prior.low_vram": ("--low-vram", low_vram or None)}


OutputOption = Annotated[Path | None, typer.Option("-o", "--output", help="File to write.", rich_help_panel=OUTPUT)]
AssetOutputOption = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        help="File to write; may hold {prompt}, {seed}, {index}, {method}, {prior}.",
        rich_help_panel=OUTPUT,
    ),
]
SkipExistingOption = Annotated[
    bool,
    typer.Option("--skip-existing", help="Skip assets that exist; resume stopped runs.", rich_help_panel=OUTPUT),
]
SkipOutputOption = Annotated[
    bool, typer.Option("--skip-existing", help="Skip output that exists.", rich_help_panel=OUTPUT)
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="List what would be made, with times and sizes, and make nothing.", rich_help_panel=OUTPUT
    ),
]
ForceOption = Annotated[bool, typer.Option("-f", "--force", help="Overwrite existing output.", rich_help_panel=OUTPUT)]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print results as JSON, one object per line.", rich_help_panel=OUTPUT)
]
QuietOption = Annotated[
    bool, typer.Option("-q", "--quiet", help="Print only results and errors.", rich_help_panel=OUTPUT)
]
YesOption = Annotated[bool, typer.Option("-y", "--yes", help="With --clean, do not ask.")]
NoBrowserOption = Annotated[
    bool,
    typer.Option(
        "--no-browser", help="Print the page's address in place of opening a browser.", rich_help_panel=OUTPUT
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="Random seed.", rich_help_panel=PROMPT)]
NegativeOption = Annotated[
    str | None,
    typer.Option("--negative", help="Negative prompt; replaces the prior's own.", rich_help_panel=PROMPT),
]
PreviewEveryOption = Annotated[
    int | None,
    typer.Option("--preview-every", min=0, help="Save a preview image every N steps; 0: never.", rich_help_panel=RUN),
]
ViewOption = Annotated[
    bool, typer.Option("--view", help="Show the asset in the browser as it grows.", rich_help_panel=RUN)
]
QualityOption = Annotated[Quality, typer.Option("--quality", help="Quality preset.", rich_help_panel=QUALITY)]
PriorOption = Annotated[
    PriorName | None,
    typer.Option("--prior", help=f"Diffusion prior; auto is {SD21} on CUDA, else {MINI}.", rich_help_panel=HARDWARE),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="Hub id or folder of a Stable Diffusion 1.x or 2.x checkpoint.", rich_help_panel=HARDWARE
    ),
]
OfflineOption = Annotated[
    bool, typer.Option("--offline", help="Use cached weights; never go online.", rich_help_panel=HARDWARE)
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device", help="Device: auto, cpu, cuda or cuda:1.", envvar="SEGDREAM_DEVICE", rich_help_panel=HARDWARE
    ),
]
InitOption = Annotated[
    str | None,
    typer.Option(
        "--init", help="Initial Gaussians: point-e, sphere, box, polar-sphere or a file.", rich_help_panel=START
    ),
]
InitPromptOption = Annotated[
    str | None,
    typer.Option("--init-prompt", help="Simpler prompt for Point-E.", rich_help_panel=START),
]
InitColor = StrEnum("InitColor", {name: name for name in ("gray", "points")})  # type: ignore[misc]
InitColorOption = Annotated[
    InitColor | None,
    typer.Option("--init-color", help="Initial colours: gray, or those of Point-E's points.", rich_help_panel=START),
]
InitPointsOption = Annotated[
    int | None,
    typer.Option(
        "--init-points", min=1, max=MAX_POINTS, help="Number of Point-E's points to use.", rich_help_panel=START
    ),
]
InitScaleOption = Annotated[
    float | None,
    typer.Option("--init-scale", min=0.001, max=100, help="Scale factor of Point-E's cloud.", rich_help_panel=START),
]
InitFrameOption = Annotated[
    str | None,
    typer.Option(
        "--frame", help="Axes of the file of --init, such as rdf: right, down, forward.", rich_help_panel=START
    ),
]
InitStrictOption = Annotated[
    bool,
    typer.Option("--strict", help="Refuse a file of --init with non-finite rows.", rich_help_panel=START),
]
InitAsSplatsOption = Annotated[
    bool,
    typer.Option("--as-splats", help="Read a point cloud of --init as small, opaque Gaussians.", rich_help_panel=START),
]
PointEDirOption = Annotated[
    Path | None,
    typer.Option("--point-e-dir", help="Folder of the official Point-E checkpoints.", rich_help_panel=HARDWARE),
]
DevicesOption = Annotated[
    str | None,
    typer.Option(
        "--devices", help="Split a list or several seeds across devices: 0,1 or cpu,cpu.", rich_help_panel=HARDWARE
    ),
]
EachOnDevicesOption = Annotated[
    str | None,
    typer.Option(
        "--devices", help="One output per ASSET, on several devices: 0,1 or cpu,cpu.", rich_help_panel=HARDWARE
    ),
]
AssetsOnDevicesOption = Annotated[
    str | None,
    typer.Option("--devices", help="Share ASSETs among devices: 0,1 or cpu,cpu.", rich_help_panel=HARDWARE),
]
RayOption = Annotated[
    str | None,
    typer.Option("--ray", help="Use a Ray cluster: local, auto or HOST:PORT of its head.", rich_help_panel=HARDWARE),
]
GpusPerWorkerOption = Annotated[
    float,
    typer.Option(
        "--gpus-per-worker",
        min=0,
        max=1,
        help="GPUs per worker of --ray; 0 computes on CPUs.",
        rich_help_panel=HARDWARE,
    ),
]
CpusPerWorkerOption = Annotated[
    int,
    typer.Option("--cpus-per-worker", min=1, help="CPUs, and threads, per worker of --ray.", rich_help_panel=HARDWARE),
]
Dtype = StrEnum("Dtype", {name: name for name in ("auto", "fp32", "bf16", "fp16")})  # type: ignore[misc]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype",
        help="Precision of the prior; auto: fp16 on CUDA, bf16 on CPUs that have it, or fp32.",
        rich_help_panel=HARDWARE,
    ),
]
LowVramOption = Annotated[
    bool,
    typer.Option(
        "--low-vram", help="Use less GPU memory: slower, at most 100,000 Gaussians.", rich_help_panel=HARDWARE
    ),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Read settings from a TOML file or a run.json.", rich_help_panel=QUALITY)
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Set one setting, key=value; repeatable.", rich_help_panel=QUALITY)
]
