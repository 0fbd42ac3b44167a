"""From options to a pipeline: the device, the prior, the configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdream_cli.cli.output import Output
from segdream_cli.config import AUTO, Config, PriorConfig, check_settings
from segdream_cli.config.values import parse_assignments, read_toml
from segdream_cli.priors.profile import PriorProfile, preset

if TYPE_CHECKING:
    import torch

    from segdream_cli.optimize.pipeline import Pipeline
    from segdream_cli.pointe.clouds import Clouds
    from segdream_cli.priors.checkpoint import Checkpoint

LOW_VRAM_CAP = 100_000


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

        Each that names another number of steps stretches the schedules of those below it. Where memory is short the
        limit on Gaussians is lower, unless the command line names one.
        """
        config = preset(profile, self.quality)
        file, line = self._overrides()
        for overrides in (file, line):
            config = config.with_steps(overrides.get("optim.steps", config.optim.steps)).set(overrides)
        if config.prior.low_vram and "densify.cap" not in line:
            config = config.set({"densify.cap": min(config.densify.cap or LOW_VRAM_CAP, LOW_VRAM_CAP)})
        return config


def open_checkpoint(request: Request, device: "torch.device", output: Output) -> "Checkpoint":
    """The prior's files on this machine, downloaded if need be.

    Raises:
        WeightsUnavailable: they can't be had.
    """
    from segdream_cli.priors import checkpoint as weights

    return weights.resolve(request.prior(), cuda=device.type == "cuda", offline=request.offline, announce=output.note)


def open_clouds(
    config: Config,
    point_e: str | None,
    checkpoint: "Callable[[], Checkpoint]",
    device: "torch.device",
    output: Output,
    *,
    offline: bool,
) -> "Clouds | None":
    """Point-E for a start from it: the prior's own or the official one, its files found and verified but not loaded.

    Args:
        config: what a run starts from, and how its networks compute.
        point_e: the prior's folder with a Point-E of its own, if it has one.
        checkpoint: finds the prior's files, which are needed only then.
        device: where Point-E runs.
        output: receives sizes, hashes and the time it takes.
        offline: never ask the network.

    Raises:
        WeightsUnavailable: a file can't be had.
    """
    from segdream_cli.optimize.start import POINT_E

    init, how = config.init, config.prior
    if init.shape != POINT_E:
        return None
    import torch

    from segdream_cli.accel.cuda_graphs import compute_dtype
    from segdream_cli.cli.download_bar import DownloadBar
    from segdream_cli.pointe.checkpoint import open_point_e, resolve_point_e
    from segdream_cli.pointe.clip import resolve_clip
    from segdream_cli.pointe.clouds import Clouds
    from segdream_cli.pointe.model import PointE
    from segdream_cli.priors.text import TextEncoder, TextVector

    dtype = compute_dtype(how.dtype, device)
    if point_e is not None and init.point_e is None:
        own = checkpoint()
        files = open_point_e(own.folder / point_e / "model.safetensors", origin=own.name)
        digest = f"{files.digest} {own.digest}"

        def text_vector() -> TextVector:
            return TextVector(TextEncoder.load(own, device, torch.float32, warn=output.note))
    else:
        folder = None if init.point_e is None else Path(init.point_e)
        with DownloadBar("point-e", output) as bar:
            files = resolve_point_e(folder, offline=offline, announce=output.note, progress=bar.update)
        clip = resolve_clip(folder, offline=offline, announce=output.note)
        digest = files.digest

        def text_vector() -> TextVector:
            return TextVector.load(clip, device, warn=output.note)

    def load() -> "tuple[PointE, Callable[[str], torch.Tensor]]":
        point_e = PointE.load(files, device, dtype)
        if device.type == "cuda":
            point_e.speed_up(output.note, graphs=how.cuda_graphs, compiling=how.compile == "on")
        return point_e, text_vector().encode

    return Clouds(digest, device, dtype, load, announce=output.note)


def open_pipeline(
    config: Config,
    checkpoint: "Checkpoint",
    device: "torch.device",
    output: Output,
    clouds: "Clouds | None" = None,
    assets: int = 1,
) -> "Pipeline":
    """The pipeline with its prior loaded, and with what makes the clouds of a start from Point-E.

    A full-size prior on CUDA is said beforehand to take so much memory and time for so many assets at once.

    Raises:
        WeightsUnavailable: the files can't be loaded.
        OutOfMemory: the device can't hold them.
    """
    from segdream_cli.accel.estimate import forecast
    from segdream_cli.optimize.pipeline import Pipeline
    from segdream_cli.priors.stable_diffusion import DiffusionPrior, full_size, workload
    from segdream_cli.util.memory import free_gib, out_of_memory

    with out_of_memory(device, "the prior", "nvidia-smi  # close what fills the GPU, or add --device cpu"):
        prior = DiffusionPrior.load(
            checkpoint, device, config.prior, warn=output.note, batch=config.camera.batch, steps=config.optim.steps
        )
    if device.type == "cuda" and full_size(prior.unet):
        work = workload(prior, config, assets)
        needed = work.memory_gib(config.densify.cap or config.init.count)
        for line in forecast(needed, free_gib(device), work.seconds(device), config):
            output.note(line)
    return Pipeline(config, prior, device, clouds)
