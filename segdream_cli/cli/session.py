"""From options to a pipeline: the device, the prior, the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdream_cli.cli.output import Output
from segdream_cli.config import AUTO, Config, PriorConfig, check_settings
from segdream_cli.errors import EnvironmentProblem, UsageProblem
from segdream_cli.profile import PriorProfile, preset
from segdream_cli.settings import parse_assignments, read_toml

if TYPE_CHECKING:
    import torch

    from segdream_cli.pipeline import Pipeline
    from segdream_cli.weights import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line says about settings and hardware.

    Args:
        quality: the preset.
        options: dotted settings that have an option of their own.
        assignments: the `--set` entries, which win.
        file: the `--config` file, which the options override.
        device: auto, cpu, cuda or cuda:N.
        offline: never ask the network.
    """

    quality: str
    options: Mapping[str, Any]
    assignments: tuple[str, ...] = ()
    file: Path | None = None
    device: str = AUTO
    offline: bool = False

    def _overrides(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings of the file, and those of the command line, where assignments win over options.

        Raises:
            UsageProblem: an unknown setting or a value that does not fit.
        """
        given = {key: value for key, value in self.options.items() if value is not None}
        file = read_toml(self.file) if self.file else {}
        return check_settings(file), check_settings(given | parse_assignments(self.assignments))

    def prior(self) -> PriorConfig:
        """Which prior is asked for."""
        file, line = self._overrides()
        return PriorConfig(
            **{key.removeprefix("prior."): value for key, value in (file | line).items() if key.startswith("prior.")}
        )

    def resolve(self, profile: PriorProfile) -> Config:
        """The configuration for a prior: preset < file < command line.

        Each that names another number of steps stretches the schedules of those below it.
        """
        config = preset(profile, self.quality)
        for overrides in self._overrides():
            config = config.with_steps(overrides.get("optim.steps", config.optim.steps)).set(overrides)
        return config


def choose_device(name: str) -> "torch.device":
    """The device of a `--device` value.

    Raises:
        UsageProblem: not the name of a device that segdream computes on.
        EnvironmentProblem: CUDA was asked for and is not there.
    """
    import torch

    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise UsageProblem(f"there is no device {name!r}", hint="--device cpu, --device cuda or --device cuda:1")
    if kind == "cuda" and not torch.cuda.is_available():
        built = "no CUDA device is visible" if torch.version.cuda else "this build of torch has no CUDA"
        raise EnvironmentProblem(f"CUDA was asked for, but {built}", hint="--device cpu, or see: segdream doctor")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise EnvironmentProblem(
            f"there is no {name}, only {torch.cuda.device_count()} CUDA devices", hint="nvidia-smi -L"
        )
    device = torch.device(name)
    if kind == "cuda" and index:
        torch.cuda.set_device(device)  # streams, graphs and libraries take the current device, not the tensors'
    return device


def open_checkpoint(request: Request, device: "torch.device", output: Output) -> "Checkpoint":
    """The prior's files on this machine, downloaded if need be.

    Raises:
        WeightsUnavailable: they can't be had.
    """
    from segdream_cli import weights

    return weights.resolve(request.prior(), cuda=device.type == "cuda", offline=request.offline, announce=output.note)


def open_pipeline(config: Config, checkpoint: "Checkpoint", device: "torch.device", output: Output) -> "Pipeline":
    """The pipeline with its prior loaded.

    Raises:
        WeightsUnavailable: the files can't be loaded.
        OutOfMemory: the device can't hold them.
    """
    from segdream_cli.diffusion import DiffusionPrior
    from segdream_cli.memory import out_of_memory
    from segdream_cli.pipeline import Pipeline

    with out_of_memory(device, "the prior", "nvidia-smi  # close what fills the GPU, or add --device cpu"):
        prior = DiffusionPrior.load(
            checkpoint, device, config.prior.dtype, warn=output.note, cuda_graphs=config.prior.cuda_graphs
        )
    return Pipeline(config, prior, device)
