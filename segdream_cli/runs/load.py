"""Loads the prior's files, Point-E and the pipeline for a request.

The model libraries take seconds to import, so each function imports only those that it needs.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from segdream_cli.config import MINI, Config
from segdream_cli.config.start import POINT_E
from segdream_cli.distill import build_method
from segdream_cli.priors import checkpoint as weights
from segdream_cli.priors.checkpoint import Checkpoint
from segdream_cli.runs.jobs import slug
from segdream_cli.runs.reporter import DownloadEnded, DownloadProgress, Note, Reporter, note_to
from segdream_cli.runs.spec import Request
from segdream_cli.util.devices import choose_device
from segdream_cli.util.home import expand
from segdream_cli.util.memory import free_gib, out_of_memory, without_collection

if TYPE_CHECKING:
    from segdream_cli.optimize.pipeline import Pipeline
    from segdream_cli.pointe.clouds import Clouds


def load_checkpoint(request: Request, device: torch.device, reporter: Reporter) -> Checkpoint:
    """The prior's files on this machine; downloads them if they are missing.

    Raises:
        WeightsUnavailable: they are unavailable.
    """
    cuda = device.type == "cuda"
    return weights.resolve(request.prior(), cuda=cuda, offline=request.offline, announce=note_to(reporter))


def needs_network(config: Config, point_e: str | None, device: torch.device) -> bool:
    """Whether the prior or the start has weights to download; `point_e` is the prior's own Point-E."""
    folder = config.prior.model or weights.PRIORS[weights.choose(config.prior.name, cuda=device.type == "cuda")]
    official = config.init.shape == POINT_E and config.init.point_e is None and point_e is None
    return official or not expand(folder).is_dir()


def template_labels(request: Request) -> dict[str, str]:
    """Values of the fields `{method}` and `{prior}` of a template of files.

    Raises:
        UsageProblem, WeightsUnavailable: a setting or the prior's profile can't be used.
    """
    cuda, prior = choose_device(request.device).type == "cuda", request.prior()
    config = request.resolve(weights.profile_of(prior, cuda=cuda))
    name = weights.choose(prior.name, cuda=cuda) if prior.model is None else slug(expand(prior.model).resolve().name)
    return {"method": config.distill.method, "prior": name}


@without_collection()
def load_clouds(
    config: Config,
    point_e: str | None,
    checkpoint: Callable[[], Checkpoint],
    device: torch.device,
    reporter: Reporter,
    *,
    offline: bool,
) -> "Clouds | None":
    """Finds and verifies Point-E, the prior's own or the official one, for a start from it; loads nothing yet.

    Args:
        config: the start of a run, and how its networks compute.
        point_e: the prior's folder with a Point-E of its own, if it has one.
        checkpoint: finds the prior's files; called only for a start from Point-E.
        device: where Point-E runs.
        reporter: receives sizes, hashes and times.
        offline: never ask the network.

    Raises:
        WeightsUnavailable: a file is unavailable.
    """
    init, networks = config.init, config.prior
    if init.shape != POINT_E:
        return None
    from segdream_cli.accel.cuda_graphs import compute_dtype
    from segdream_cli.accel.openvino_engine import computes_bf16
    from segdream_cli.pointe.checkpoint import open_point_e, resolve_point_e
    from segdream_cli.pointe.clip import resolve_clip
    from segdream_cli.pointe.clouds import Clouds
    from segdream_cli.pointe.model import PointE
    from segdream_cli.priors.text import TextEncoder, TextVector

    note = note_to(reporter)
    dtype = compute_dtype(networks.dtype, device)

    def download_progress(done: int, total: int) -> None:
        reporter(DownloadProgress(POINT_E, done, total))

    if point_e is not None and init.point_e is None:
        own = checkpoint()
        dtype = torch.bfloat16 if computes_bf16(networks, device) else dtype
        files = open_point_e(own.folder / point_e / "model.safetensors", origin=own.name)
        digest = f"{files.digest} {own.digest}"

        def text_vector() -> TextVector:
            return TextVector(TextEncoder.load(own, device, torch.float32, warn=note))
    else:
        folder = None if init.point_e is None else expand(init.point_e)
        try:
            files = resolve_point_e(folder, offline=offline, announce=note, progress=download_progress)
        finally:
            reporter(DownloadEnded(POINT_E))
        clip = resolve_clip(folder, offline=offline, announce=note)
        digest = files.digest

        def text_vector() -> TextVector:
            return TextVector.load(clip, device, warn=note)

    def load() -> tuple[PointE, Callable[[str], torch.Tensor]]:
        point_e = PointE.load(files, device, dtype)
        if device.type == "cuda":
            point_e.speed_up(note, graphs=networks.cuda_graphs, compiling=networks.compile == "on")
        return point_e, text_vector().encode

    return Clouds(digest, device, dtype, load, announce=note)


@without_collection()
def load_pipeline(
    config: Config,
    checkpoint: Checkpoint,
    device: torch.device,
    reporter: Reporter,
    clouds: "Clouds | None" = None,
    assets: int = 1,
) -> "Pipeline":
    """Loads the prior and returns the pipeline.

    For a full-size prior on CUDA, memory and time of `assets` at once are estimated and reported first.

    Raises:
        WeightsUnavailable: the files can't be loaded.
        OutOfMemory: the device can't hold them.
    """
    from segdream_cli.accel.estimate import forecast
    from segdream_cli.optimize.pipeline import Pipeline
    from segdream_cli.priors.stable_diffusion import DiffusionPrior, full_size, workload

    method = build_method(config)
    with out_of_memory(device, "the prior", "--device cpu" if device.type == "cuda" else f"--prior {MINI}"):
        prior = DiffusionPrior.load(
            checkpoint,
            device,
            config.prior,
            warn=note_to(reporter),
            batch=config.camera.batch,
            steps=config.optim.steps,
            decodes=method.decodes_per_view,
        )
    if device.type == "cuda" and full_size(prior.unet):
        work = workload(prior, config, method.rows_per_view, assets, decodes_per_view=method.decodes_per_view)
        needed = work.memory_gib(config.densify.cap or config.init.count)
        for line in forecast(needed, free_gib(device), work.seconds(device), config):
            reporter(Note(line))
    return Pipeline(config, prior, device, clouds, note=note_to(reporter))
