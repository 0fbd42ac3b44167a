"""Options that several commands share, each declared once."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from segdream_cli.config import AUTO, MINI, SD21
from segdream_cli.errors import UsageProblem
from segdream_cli.priors.profile import QUALITIES
from segdream_cli.runs.jobs import MAX_SEED

Quality = StrEnum("Quality", {name: name for name in QUALITIES})  # type: ignore[misc]
STANDARD: Quality = Quality("standard")
PriorName = StrEnum("PriorName", {name: name for name in (AUTO, SD21, MINI)})  # type: ignore[misc]

PROMPT, START, QUALITY, RUN, HARDWARE, OUTPUT = "Prompt", "Start", "Quality", "Run", "Hardware and weights", "Output"


def refuse_given(context: typer.Context, names: set[str], reason: str, hint: str) -> None:
    """Refuses options that would change nothing.

    Args:
        context: the command's.
        names: the parameters to look for.
        reason: why they have no place, as the end of a sentence that begins with their names.
        hint: what to type instead.

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


def start_settings(
    shape: str | None,
    prompt: str | None,
    color: str | None,
    points: int | None,
    scale: float | None,
    folder: Path | None,
) -> dict[str, object]:
    """The settings that the options of a run's start stand for."""
    return {
        "init.shape": shape,
        "init.prompt": prompt,
        "init.color": color and str(color),
        "init.points": points,
        "init.scale": scale,
        "init.point_e": folder and str(folder.expanduser().resolve()),
    }


def hardware_settings(dtype: str | None, low_vram: bool) -> dict[str, object]:
    """The settings that the options about a small or an unusual card stand for."""
    return {"prior.dtype": dtype and str(dtype), "prior.low_vram": low_vram or None}


OutputOption = Annotated[Path | None, typer.Option("-o", "--output", help="File to write.", rich_help_panel=OUTPUT)]
ForceOption = Annotated[bool, typer.Option("-f", "--force", help="Replace what is there.", rich_help_panel=OUTPUT)]
JsonOption = Annotated[bool, typer.Option("--json", help="Results as JSON, one a line.", rich_help_panel=OUTPUT)]
QuietOption = Annotated[
    bool, typer.Option("-q", "--quiet", help="Print results and errors only.", rich_help_panel=OUTPUT)
]
NoBrowserOption = Annotated[
    bool, typer.Option("--no-browser", help="Print the page's address only.", rich_help_panel=OUTPUT)
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of all random numbers.", rich_help_panel=PROMPT)
]
QualityOption = Annotated[Quality, typer.Option("--quality", help="Preset.", rich_help_panel=QUALITY)]
PriorOption = Annotated[
    PriorName | None,
    typer.Option("--prior", help="Diffusion prior; auto, the default, looks for CUDA.", rich_help_panel=HARDWARE),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="Hub id or folder of a Stable Diffusion 1.x or 2.x checkpoint.", rich_help_panel=HARDWARE
    ),
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Use cached weights only.", rich_help_panel=HARDWARE)]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.", envvar="SEGDREAM_DEVICE", rich_help_panel=HARDWARE)
]
InitOption = Annotated[
    str | None, typer.Option("--init", help="Start: point-e, sphere, box or a .ply file.", rich_help_panel=START)
]
InitPromptOption = Annotated[
    str | None,
    typer.Option("--init-prompt", help="Simpler words for Point-E than the prompt's.", rich_help_panel=START),
]
InitColor = StrEnum("InitColor", {name: name for name in ("gray", "points")})  # type: ignore[misc]
InitColorOption = Annotated[
    InitColor | None,
    typer.Option("--init-color", help="Grey, or the colours of Point-E's points.", rich_help_panel=START),
]
InitPointsOption = Annotated[
    int | None, typer.Option("--init-points", min=1, help="How many of Point-E's points to use.", rich_help_panel=START)
]
InitScaleOption = Annotated[
    float | None, typer.Option("--init-scale", min=0.001, help="Factor on Point-E's cloud.", rich_help_panel=START)
]
PointEDirOption = Annotated[
    Path | None,
    typer.Option("--point-e-dir", help="Folder with Point-E's official checkpoints.", rich_help_panel=HARDWARE),
]
DevicesOption = Annotated[
    str | None,
    typer.Option("--devices", help="Share a list or several seeds among GPUs: 0,1.", rich_help_panel=HARDWARE),
]
Dtype = StrEnum("Dtype", {name: name for name in ("auto", "fp32", "bf16", "fp16")})  # type: ignore[misc]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option("--dtype", help="Arithmetic of the prior; auto is fp16 on CUDA, else fp32.", rich_help_panel=HARDWARE),
]
LowVramOption = Annotated[
    bool,
    typer.Option(
        "--low-vram", help="For small cards: slower, and at most 100,000 Gaussians.", rich_help_panel=HARDWARE
    ),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file of settings, or a run.json.", rich_help_panel=QUALITY)
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="One setting, key=value; repeatable.", rich_help_panel=QUALITY)
]
