"""Every setting of a run, and the one way to change a setting.

`sections`, `distill` and `refine` hold the dataclasses, with the source of each default; `values` reads settings.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Self

from segdream_cli.config.distill import METHOD_NAMES, DistillConfig
from segdream_cli.config.refine import RefineConfig
from segdream_cli.config.sections import (
    AUTO,
    MINI,
    SD21,
    SD21_MODEL,
    CameraConfig,
    DensifyConfig,
    InitConfig,
    LossConfig,
    OptimConfig,
    OutputConfig,
    PriorConfig,
    ViewConfig,
)
from segdream_cli.config.start import POINT_E, is_file
from segdream_cli.config.values import Range, assignment, convert, counts_steps, nearest, plain
from segdream_cli.errors import UsageProblem

__all__ = [
    "AUTO",
    "MINI",
    "SD21",
    "SD21_MODEL",
    "CameraConfig",
    "Config",
    "DensifyConfig",
    "DistillConfig",
    "InitConfig",
    "LossConfig",
    "OptimConfig",
    "OutputConfig",
    "PriorConfig",
    "Range",
    "RefineConfig",
    "ViewConfig",
    "check_settings",
    "flatten",
]

LOW_T = 300
"""Largest timestep of the distillation steps of a refinement: the asset's coarse shape and colours stay."""
REFINED_CAP = 100_000
"""Largest number of Gaussians in a refinement."""
REFINED_SCALES = (1e-3, 0.2)
"""Limits of the scales in a refinement, in the working frame: assets from other tools have finer ones than ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of a run."""

    prior: PriorConfig = field(default_factory=PriorConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    init: InitConfig = field(default_factory=InitConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    densify: DensifyConfig = field(default_factory=DensifyConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    @property
    def last_step(self) -> int:
        """Number of the last step of a run: its distillation steps, then the iterations of its refinement."""
        return self.optim.steps + self.refine.total

    def set(self, overrides: Mapping[str, Any]) -> Self:
        """This configuration with dotted keys replaced, `{"distill.sctd.segments": 4}`.

        `distill.NAME` stands for `distill.METHOD.NAME` of the chosen method where the method has such a setting.

        Raises:
            UsageProblem: an unknown key (with the nearest known one), or a value of the wrong kind or out of range.
        """
        config: Self = _replace(self, check_settings(overrides, self.distill.method))
        _check_together(config)
        return config

    def with_steps(self, steps: int) -> Self:
        """This configuration for a run of `steps` steps, with every schedule scaled alike; 0 steps need no schedule."""
        factor = steps / self.optim.steps if steps and self.optim.steps else 1.0
        scaled = {
            key: max(1, round(value * factor)) if value else 0
            for key, value in self.flat().items()
            if counts_steps(_annotations()[key])
        }
        return self.set(scaled | {"optim.steps": steps})

    def for_refinement(self) -> Self:
        """This configuration for the refinement of a given asset, whose distillation steps should change little.

        Their learning rates start at the geometric mean of start and end, their timesteps are low, and their first half
        adds no Gaussians. Neither stage changes higher spherical harmonics or limits scales as the preset does: large
        Gaussians may cover much of the asset. Views are not sharpened, as the asset may be sharp.
        """
        rates = {key: value for key, value in self.flat().items() if key.startswith("optim.") and key.endswith("_lr")}
        return self.set(
            {
                **{key: [math.sqrt(start * end), end] for key, (start, end) in rates.items()},
                "optim.shN_lr": [1e-12, 1e-12],
                "optim.scale_range": list(REFINED_SCALES),
                "distill.sctd.t_high": min(self.distill.sctd.t_high, LOW_T),
                "distill.sctd.warmup_shift": 0,
                "distill.sds.t_max": min(self.distill.sds.t_max, LOW_T),
                "distill.ism.t_high": min(self.distill.ism.t_high, LOW_T),
                "distill.ism.warmup_shift": 0,
                "distill.cds.t_max": min(self.distill.cds.t_max, LOW_T),
                "distill.csd.t_max": min(self.distill.csd.t_max, LOW_T),
                "distill.csd.t_max_start": None,
                "distill.gcs.t_high": min(self.distill.gcs.t_high, LOW_T),
                "distill.gcs.warmup_shift": 0,
                "densify.start": self.optim.steps // 2,
                "densify.cap": REFINED_CAP,
                "refine.enabled": True,
                "refine.sharpen": 0.0,
                "refine.shN_lr": 0.0,
                "refine.scale_range": list(REFINED_SCALES),
            }
        )

    def idle(self, keys: Collection[str]) -> dict[str, str]:
        """The reason why each of some settings has no effect beside the others; nothing for the rest."""
        start, method, optim = self.init.shape, self.distill.method, self.optim
        point_e = (
            "init.prompt init.color init.points init.fill_gaps init.copies init.spread init.scale init.lift"
            " init.point_e"
        )
        rules = (
            (self.prior.model is not None, "prior.name", f"prior.model is {self.prior.model}"),
            (self.prior.model is None and self.prior.name == MINI, "prior.revision", f"prior.name is {MINI}"),
            (start != POINT_E, point_e, f"the start is {start}"),
            (start == POINT_E or is_file(start), "init.count init.radius", f"the start is {start}"),
            (not is_file(start), "init.frame init.strict init.as_splats", f"the start is {start}, not a file"),
            (not optim.steps, "distill.* optim.beg* optim.stop_* loss.*", "optim.steps is 0"),
            *((name != method, f"distill.{name}.*", f"distill.method is {method}") for name in METHOD_NAMES),
            (not self.refine.enabled, "refine.[!e]*", "refine.enabled is false"),
            (not optim.beg, "optim.beg_*", "optim.beg is false"),
            (not optim.stop_change, "optim.stop_every", "optim.stop_change is 0"),
            (not self.output.preview_every, "output.preview_size", "output.preview_every is 0"),
        )
        reasons: dict[str, str] = {}
        for idle, patterns, reason in rules:
            if idle:
                found = (key for key in keys if any(fnmatchcase(key, pattern) for pattern in patterns.split()))
                reasons = dict.fromkeys(found, reason) | reasons
        return reasons

    def flat(self) -> dict[str, Any]:
        """Dotted key to value, as `set` takes them and JSON holds them."""
        return {key: plain(functools.reduce(getattr, key.split("."), self)) for key in _annotations()}


def _replace(part: Any, values: Mapping[str, Any]) -> Any:
    """The dataclass `part` with values replaced, by names relative to it; `a.b` is b of its section a."""
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name, _, rest = key.partition(".")
        changes[name] = _replace(changes.get(name, getattr(part, name)), {rest: value}) if rest else value
    return dataclasses.replace(part, **changes)


@cache
def _annotations() -> dict[str, Any]:
    """The annotation of every setting by its dotted key."""
    return dict(_walk(Config))


def _walk(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and annotation of every setting of a section and of the sections within it."""
    for name, annotation in typing.get_type_hints(section, include_extras=True).items():
        if dataclasses.is_dataclass(annotation):
            yield from _walk(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", annotation


def flatten(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key to value of nested tables, down to the settings, of which some are tables themselves."""
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        key = prefix + name
        nested = isinstance(value, Mapping) and key not in _annotations()
        flat |= flatten(value, f"{key}.") if nested else {key: value}
    return flat


def check_settings(overrides: Mapping[str, Any], method: str = DistillConfig().method) -> dict[str, Any]:
    """Full keys and typed values of dotted settings, each checked by itself.

    Args:
        overrides: dotted key to value, as `Config.set` takes them.
        method: whose settings the short keys mean, unless `overrides` chooses another.

    Raises:
        UsageProblem: an unknown key (with the nearest known one), or a value of the wrong kind or out of range.
    """
    known, found = _annotations(), {}
    if overrides.get("distill.method") in METHOD_NAMES:
        method = overrides["distill.method"]
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        full = f"distill.{method}.{name}" if section == "distill" and key not in known else key
        if full not in known:
            close = nearest(key, known)
            raise UsageProblem(
                f"there is no setting {key!r}; the nearest is {close}",
                without=[f"--set {key}"],
                hint=f"--set {assignment(close, value)}",
            )
        found[full] = convert(full, value, known[full], functools.reduce(getattr, full.split("."), Config()))
    return found


def _check_together(config: Config) -> None:
    """Refuses settings that are each within their limits but leave nothing to draw from.

    Raises:
        UsageProblem: naming them.
    """
    for method in METHOD_NAMES:
        getattr(config.distill, method).check()
    config.refine.check()
    weights = config.camera.backgrounds.values()
    if min(weights, default=0) < 0 or not sum(weights):
        raise UsageProblem(
            f"camera.backgrounds needs positive weights, not {dict(config.camera.backgrounds)}",
            hint=f"--set {assignment('camera.backgrounds', CameraConfig().backgrounds)}",
        )
