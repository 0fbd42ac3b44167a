"""Programs that `segdream export --for` writes for: the options that suit the importer of each.

docs/engines.md names the importers, their versions, and what was seen in which. Lengths stay in metres for all.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.command_line import rewrite
from segdream_cli.cli.output import Output, has_relay
from segdream_cli.errors import UsageProblem

MESH = "mesh"


@dataclass(frozen=True, slots=True)
class Target:
    """What one importer needs."""

    importer: str
    """The program that opens the file."""
    suffix: str
    format: str
    """A key of `FORMATS`, or "mesh"."""
    options: Mapping[str, Any]
    """Parameter of `export` -> its value."""


GROUND: Mapping[str, Any] = {"pivot": "ground"}
TARGETS: Mapping[str, Sequence[Target]] = MappingProxyType(
    {
        "unity": [Target("UnityGaussianSplatting", ".ply", "ply", {"output_frame": "lub", **GROUND})],
        "unreal": [Target("NanoGS", ".ply", "ply", {"output_frame": "ldb", **GROUND})],
        "godot": [Target("gdgs", ".ply", "ply", {"output_frame": "ldb", "sh": 0})],
        "blender": [
            Target("Blender's glTF importer", ".glb", MESH, GROUND),
            Target("3DGS Render by KIRI", ".ply", "ply", {"output_frame": "rfu", **GROUND}),
        ],
        "web": [
            Target("SuperSplat, PlayCanvas, Spark", ".sog", "sog", {"max_gaussians": 1_000_000}),
            Target("three.js, Spark", ".spz", "spz", {"max_gaussians": 1_000_000}),
        ],
        "cesium": [Target("CesiumJS", ".glb", "3dtiles", GROUND)],
        "visionos": [Target("MetalSplatter", ".spz", "spz", {"output_frame": "luf", "max_gaussians": 400_000})],
        "quest": [Target("Meta Spatial SDK", ".spz", "spz", {"max_gaussians": 150_000, "sh": 0, **GROUND})],
    }
)
"""Name -> its importers, the default first; the suffix of -o chooses another."""
IN_PLACE_OF: Mapping[str, str] = {"pivot": "center", "max_gaussians": "keep"}
"""Option of a target -> the option that a user may give in its place."""
TargetName = StrEnum("TargetName", {name: name for name in TARGETS})  # type: ignore[misc]


def apply_target(context: typer.Context, name: str, asset: Path, sink: Output) -> list[str]:
    """Puts the options of a target into the parameters of `export`, unless the user gave them; an -o may hold {stem}.

    Returns:
        The words of the command that does the same without the target, which are noted too.

    Raises:
        UsageProblem: the target has no file with the suffix of an -o.
    """
    target = _choose(name, context.params["outputs"], context.params["format"])
    added: list[str] = []
    for parameter, value in {"format": target.format, **target.options}.items():
        if not any(shared.is_given(context, each) for each in (parameter, IN_PLACE_OF.get(parameter, parameter))):
            context.params[parameter] = value
            added += _words(parameter, value)
    if not context.params["outputs"]:
        template = Path(f"{{stem}}-{name}{target.suffix}")
        context.params["outputs"] = [template]
        added += ["-o", str(shared.fill_stem(template, asset))]
    command = rewrite(context, ["--for"], added)
    if not has_relay():
        sink.note(f"--for {name} suits {target.importer}, and is short for: {shlex.join(command)}")
    return command


def list_options(target: Target) -> list[str]:
    """The words of the options that a target stands for."""
    return [word for item in {"format": target.format, **target.options}.items() for word in _words(*item)]


def _words(parameter: str, value: Any) -> list[str]:
    return [f"--{parameter.replace('_', '-')}", str(value)]


def _choose(name: str, outputs: Sequence[Path] | None, format: str | None) -> Target:
    """The target for the format that the user gave, else for the suffix of the outputs, else the default."""
    choices = TARGETS[name]
    if format is not None:
        return next((each for each in choices if each.format == format), choices[0])
    for target in choices:
        if all(path.name.lower().endswith(target.suffix) for path in outputs or ()):
            return target
    others = [path for path in outputs or () if not path.name.lower().endswith(choices[0].suffix)]
    suffixes = " or ".join(each.suffix for each in choices)
    raise UsageProblem(
        f"--for {name} writes {suffixes} files, not {others[0].name}",
        hint=f"-o {shlex.quote(str(others[0].with_suffix(choices[0].suffix)))}",
    )
