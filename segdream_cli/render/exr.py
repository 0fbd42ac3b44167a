"""OpenEXR images, with the library of the Academy Software Foundation: linear light, for compositing."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdream_cli.errors import EnvironmentProblem
from segdream_cli.util.files import atomic_write

EXR_SUFFIX = ".exr"
COLOURS, DEPTH = ("R", "G", "B", "A"), "Z"


def load_openexr() -> Any:
    """The library.

    Raises:
        EnvironmentProblem: it is missing.
    """
    try:
        return import_module("OpenEXR")
    except ImportError as problem:
        raise EnvironmentProblem(
            f".exr files need the library OpenEXR, which is missing: {problem}", hint='pip install "segdream[exr]"'
        ) from problem


def write_exr(path: Path, image: NDArray[Any]) -> None:
    """Writes an image as it is: colours as half floats, depth as floats.

    Args:
        path: the file, replaced as a whole.
        image: floats [h, w, 3] or, with premultiplied alpha, [h, w, 4], of linear light; [h, w] is depth.

    Raises:
        EnvironmentProblem: the library is missing.
        SegdreamError: the disk is full.
        UsageProblem: the folder can't be written.
    """
    library = load_openexr()
    if image.ndim == 2:
        channels = {DEPTH: image.astype(np.float32)}
    else:
        planes = np.moveaxis(image.astype(np.float16), -1, 0)
        channels = {name: np.ascontiguousarray(plane) for name, plane in zip(COLOURS, planes, strict=False)}
    header = {"compression": library.ZIP_COMPRESSION, "type": library.scanlineimage}
    with atomic_write(path) as temporary:
        library.File(header, channels).write(str(temporary))


def linear(encoded: NDArray[Any]) -> NDArray[np.float32]:
    """Linear light of sRGB values in 0..1 (IEC 61966-2-1)."""
    values = np.clip(encoded, 0, 1).astype(np.float32)
    light: NDArray[np.float32] = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


def premultiply_linear(rgba: NDArray[Any]) -> NDArray[np.float32]:
    """Linear light of sRGB colours: of [h, w, 3], or of straight [h, w, 4], which become premultiplied."""
    if rgba.shape[-1] == 3:
        return linear(rgba)
    alpha = rgba[..., 3:].astype(np.float32)
    return np.concatenate([linear(rgba[..., :3]) * alpha, alpha], axis=-1)
