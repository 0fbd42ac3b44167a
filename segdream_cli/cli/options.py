"""Options that several commands share, each declared once."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from segdream_cli.config import AUTO, MINI, SD21
from segdream_cli.config.distill import METHOD_NAMES
from segdream_cli.config.values import parse_assignments
from segdream_cli.errors import UsageProblem
from segdream_cli.priors.profile import QUALITIES
from segdream_cli.runs.jobs import MAX_SEED
from segdream_cli.util.home import abbreviate, expand

Quality = StrEnum("Quality", {name: name for name in QUALITIES})  # type: ignore[misc]
STANDARD: Quality = Quality("standard")
Method = StrEnum("Method", {name: name for name in METHOD_NAMES})  # type: ignore[misc]
PriorName = StrEnum("PriorName", {name: name for name in (AUTO, SD21, MINI)})  # type: ignore[misc]

PROMPT, START, QUALITY, RUN, HARDWARE, OUTPUT = "Prompt", "Start", "Quality", "Run", "Hardware and weights", "Output"


def refuse_options(context: typer.Context, names: set[str], reason: str, hint: str) -> None:
    """Refuses options that have no effect.

    Args:
        context: the command's.
        names: parameters of the refused options.
        reason: end of the message, which begins with the options' names.
        hint: a command to use instead.

    Raises:
        UsageProblem: one of them was given on the command line.
    """
    given = []
    for item in context.command.params:
        source = context.get_parameter_source(str(item.name))
        if item.name in names and source is not None and source.name == "COMMANDLINE":
            given.append(item.opts[-1] if item.opts[0].startswith("-") else "PROMPT")
    if given:
        raise UsageProblem(f"{', '.join(given)} {reason}", hint=hint)


def settings(options: Mapping[str, Any], assignments: Sequence[str] | None) -> dict[str, Any]:
    """The settings that options stand for, and the `--set` entries, which win over them.

    Raises:
        UsageProblem: an entry is not key=value.
    """
    assigned = parse_assignments(assignments or ())
    given = {key: value for key, value in options.items() if value is not None and key not in assigned}
    return given | assigned  # in order: of a short and a full key of one setting, the last wins


def start_settings(
    shape: str | None,
    prompt: str | None,
    color: str | None,
    points: int | None,
    scale: float | None,
    folder: Path | None,
) -> dict[str, object]:
    """The settings set by the options of the initial Gaussians."""
    return {
        "init.shape": shape,
        "init.prompt": prompt,
        "init.color": color and str(color),
        "init.points": points,
        "init.scale": scale,
        "init.point_e": folder and abbreviate(expand(folder)),
    }


def hardware_settings(dtype: str | None, low_vram: bool) -> dict[str, object]:
    """The settings set by the options about the GPU."""
    return {"prior.dtype": dtype and str(dtype), "prior.low_vram": low_vram or None}


OutputOption = Annotated[Path | None, typer.Option("-o", "--output", help="File to write.", rich_help_panel=OUTPUT)]
ForceOption = Annotated[bool, typer.Option("-f", "--force", help="Overwrite existing output.", rich_help_panel=OUTPUT)]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print results as JSON, one object per line.", rich_help_panel=OUTPUT)
]
QuietOption = Annotated[
    bool, typer.Option("-q", "--quiet", help="Print only results and errors.", rich_help_panel=OUTPUT)
]
NoBrowserOption = Annotated[
    bool, typer.Option("--no-browser", help="Print the page's address; open no browser.", rich_help_panel=OUTPUT)
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
        "--init", help="Initial Gaussians: point-e, sphere, box, polar-sphere or a .ply file.", rich_help_panel=START
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
    int | None, typer.Option("--init-points", min=1, help="Number of Point-E's points to use.", rich_help_panel=START)
]
InitScaleOption = Annotated[
    float | None,
    typer.Option("--init-scale", min=0.001, help="Scale factor of Point-E's cloud.", rich_help_panel=START),
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
Dtype = StrEnum("Dtype", {name: name for name in ("auto", "fp32", "bf16", "fp16")})  # type: ignore[misc]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option("--dtype", help="Precision of the prior; auto is fp16 on CUDA, else fp32.", rich_help_panel=HARDWARE),
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
