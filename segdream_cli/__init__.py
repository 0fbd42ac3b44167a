"""segdream makes 3D Gaussian-splat assets from a sentence.

    import segdream_cli as segdream

    session = segdream.load(quality="draft")
    splats = session.generate("a yellow school bus", seed=0)
    segdream.write("bus.ply", splats)
    image = segdream.render_image(splats, azimuth=45, elevation=20)

Importing it is cheap: each name imports what it needs when it is used.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

from segdream_cli.errors import Interrupted, SegdreamError, UsageProblem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from segdream_cli.config import Config
    from segdream_cli.optimize.report import StepReport
    from segdream_cli.render.job import RenderJob
    from segdream_cli.runs.reporter import Event
    from segdream_cli.runs.session import Generation, Session
    from segdream_cli.splats import Splats

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Generation",
    "Interrupted",
    "SegdreamError",
    "Session",
    "Splats",
    "StepReport",
    "__version__",
    "load",
    "read",
    "render_image",
    "render_turntable",
    "write",
]
_CLASSES = {
    "Config": "config",
    "Generation": "runs.session",
    "Session": "runs.session",
    "Splats": "splats",
    "StepReport": "optimize.report",
}
"""The file of each class, which is imported when the class is first used."""
WHITE = (1.0, 1.0, 1.0)


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_CLASSES[name]}"), name)


def __dir__() -> list[str]:
    return __all__


def load(
    *,
    quality: str = "standard",
    prior: str | None = None,
    model: str | None = None,
    method: str | None = None,
    settings: Mapping[str, Any] | None = None,
    config: "str | PathLike[str] | None" = None,
    negative_prompt: str | None = None,
    device: str = "auto",
    offline: bool = False,
    reporter: "Callable[[Event], object] | None" = None,
) -> "Session":
    """Finds the weights and checks the settings; the session loads the networks when it first needs them.

    Args:
        quality: preset: draft, standard, high or paper.
        prior: auto, sd21 or mini.
        model: Hub id or folder of a Stable Diffusion checkpoint, in place of the prior's.
        method: distillation method, as `segdream generate --method` takes it.
        settings: dotted settings, such as `{"optim.steps": 500}`; they win over everything else.
        config: TOML file of settings, or a `run.json`.
        negative_prompt: replaces the prior's own negative prompt.
        device: auto, cpu, cuda or cuda:N.
        offline: use cached weights only.
        reporter: called with each event of the session; see `segdream_cli.runs.reporter`.

    Raises:
        SegdreamError: a setting, the device or the weights can't be used.
    """
    from pathlib import Path

    from segdream_cli.runs.reporter import discard
    from segdream_cli.runs.session import Session
    from segdream_cli.runs.spec import Request

    request = Request(
        quality=quality,
        settings={"prior.name": prior, "prior.model": model, "distill.method": method, **(settings or {})},
        file=None if config is None else Path(config),
        device=device,
        offline=offline,
    )
    return Session.load(request, negative_prompt, reporter=reporter or discard)


def read(
    path: "str | PathLike[str]",
    *,
    strict: bool = False,
    as_splats: bool = False,
    frame: str | None = None,
    note: "Callable[[str], object] | None" = None,
) -> "Splats":
    """The asset in a file of any readable format, in the inner frame: right-handed, y up, the object faces +Z.

    Args:
        path: the file; its bytes say what it is.
        strict: refuse a file with rows that are not finite, which are dropped otherwise.
        as_splats: read a plain point cloud as small Gaussians.
        frame: where the axes of the file point, such as "rdf"; None is what the file or its format says.
        note: called with a message about each change that the reader makes.

    Raises:
        SegdreamError: the file can't be read.
    """
    from pathlib import Path

    from segdream_cli import formats
    from segdream_cli.formats.common import DEFAULT, Reading

    how = Reading(strict=strict, as_splats=as_splats, frame=frame, note=note or DEFAULT.note)
    return formats.read(Path(path), how)


def write(path: "str | PathLike[str]", splats: "Splats", format: str | None = None, **options: Any) -> None:
    """Writes an asset, and replaces an existing file.

    Args:
        path: the file; its suffix chooses the format.
        splats: the asset, in the inner frame.
        format: one of `segdream export --formats`; needed only where several formats share the suffix.
        options: keyword arguments of that format's writer, such as `fractional_bits` for SPZ.

    Raises:
        SegdreamError: the format does not exist or does not go with the suffix, or the file can't be written.
    """
    from pathlib import Path

    from segdream_cli import formats

    formats.write(Path(path), splats, format, **options)


def render_image(
    splats: "Splats",
    *,
    azimuth: float = 0.0,
    elevation: float = 15.0,
    size: int | tuple[int, int] = 512,
    background: tuple[float, float, float] | None = WHITE,
    supersample: int = 1,
    device: str = "auto",
) -> "NDArray[np.uint8]":
    """An image that shows a whole asset.

    Args:
        splats: the asset.
        azimuth: degrees around it: 0 is its front, 90 its left side.
        elevation: degrees above the horizon.
        size: side in pixels, or width and height; 16 to 4096.
        background: RGB in 0..1, or None for transparency.
        supersample: side of the square of samples per pixel.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        [height, width, 3], or with transparency [height, width, 4] with straight alpha.

    Raises:
        SegdreamError: an argument is out of range, or the device does not have enough memory for the image.
    """
    _check_angles(azimuth, elevation)
    job = _job(splats, size, background, supersample, device)
    (image,) = _images(job, job.single_view(azimuth, elevation))
    return image


def render_turntable(
    splats: "Splats",
    *,
    n_frames: int = 120,
    elevation: float = 15.0,
    size: int | tuple[int, int] = 512,
    background: tuple[float, float, float] | None = WHITE,
    supersample: int = 1,
    device: str = "auto",
) -> "Iterator[NDArray[np.uint8]]":
    """Images of an asset from `n_frames` equally spaced azimuths, one at a time; arguments: see `render_image`."""
    _check_angles(0.0, elevation)
    if not isinstance(n_frames, int) or n_frames < 1:
        raise UsageProblem(f"n_frames can't be {n_frames}", hint="n_frames=120")
    job = _job(splats, size, background, supersample, device)
    return _images(job, job.turntable(n_frames, elevation))


def _check_angles(azimuth: float, elevation: float) -> None:
    if not abs(azimuth) < float("inf"):
        raise UsageProblem(f"the azimuth {azimuth} is not a number of degrees", hint="azimuth=0")
    if not abs(elevation) <= 90:
        raise UsageProblem(f"the elevation {elevation} is not in -90 to 90 degrees", hint="elevation=15")


def _job(
    splats: "Splats",
    size: int | tuple[int, int],
    background: tuple[float, float, float] | None,
    supersample: int,
    device: str,
) -> "RenderJob":
    from segdream_cli.render import check_size
    from segdream_cli.render.job import RenderJob

    check_size(size, supersample)
    if background is not None and not (len(background) == 3 and all(0 <= part <= 1 for part in background)):
        raise UsageProblem(f"the background {background} is not RGB in 0..1", hint="background=(1, 1, 1)")
    if not len(splats):
        raise UsageProblem("the asset has no Gaussians", hint='segdream.read("bus.ply")')
    return RenderJob.of([splats], device, size, "rgb", background, supersample=supersample)


def _images(job: "RenderJob", track: Any) -> "Iterator[NDArray[np.uint8]]":
    from segdream_cli.render.images import to_uint8

    return (to_uint8(image) for image in job.images(track, precise=True))
