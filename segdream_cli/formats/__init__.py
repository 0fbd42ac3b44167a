"""Asset files: what they hold, which there are, and the frame of the PLY family.

`Splats` is one asset in numpy, in the inner frame: right-handed, y up, the object faces +Z. Viewers expect files of
the PLY family half a turn about X away from it (x right, y down, z away), so their writers apply `to_ply_frame` and
their readers `from_ply_frame`.

A new format is a file here with `read(path)` and `write(path, splats)`, and a row of `FORMATS`.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from os.path import isdir
from pathlib import Path
from shlex import quote
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdream_cli.errors import UsageProblem

Float32s = NDArray[np.float32]

SH_C0 = 0.28209479177387814
"""Value of the degree-0 spherical harmonic: a colour is 0.5 + SH_C0 * sh0."""
BANDS = (0, 3, 8, 15)
"""Coefficients beyond the first, up to each degree of spherical harmonics."""
LOG_SCALE_LIMIT = 20.0
OPACITY_LOGIT_LIMIT = 15.0

# How each basis function of degree 1 to 3 (m = -l..l) answers to (x, y, z) -> (x, -y, -z).
_HALF_TURN_SIGNS = np.array([-1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1], np.float32)


@dataclass(frozen=True, slots=True)
class Splats:
    """Gaussians before their activations, float32, in the inner frame (y up, facing +Z).

    Raises:
        ValueError: the shapes do not fit together.
    """

    means: Float32s
    """Centres, [n, 3]."""
    quats: Float32s
    """Unit rotations wxyz, [n, 4]."""
    log_scales: Float32s
    """Natural logarithm of the standard deviations, [n, 3]."""
    opacity_logits: Float32s
    """Opacity before the sigmoid, [n]."""
    sh0: Float32s
    """Spherical harmonics of degree 0, [n, 3] RGB."""
    shN: Float32s
    """The higher ones, [n, k, 3] with k = 0, 3, 8 or 15: l = 1..3, m = -l..l, RGB innermost."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Prompt, seed, prior, method, version and the like, as JSON values; may be empty."""

    def __post_init__(self) -> None:
        n, k = len(self.means), self.shN.shape[1]
        shapes = [getattr(self, item.name).shape for item in dataclasses.fields(self)[:6]]
        if shapes != [(n, 3), (n, 4), (n, 3), (n,), (n, 3), (n, k, 3)] or k not in BANDS:
            raise ValueError(f"shapes that do not make Gaussians: {shapes}")

    def __len__(self) -> int:
        return len(self.means)

    def taken(self, rows: NDArray[np.intp]) -> "Splats":
        """The Gaussians with these indices, in their order."""
        return self._each(lambda values: values.take(rows, axis=0))

    def part(self, rows: slice) -> "Splats":
        """Some of the Gaussians, in the same memory."""
        return self._each(lambda values: values[rows])

    def _each(self, change: Callable[[Float32s], Float32s]) -> "Splats":
        arrays: dict[str, Any] = {item.name: change(getattr(self, item.name)) for item in dataclasses.fields(self)[:6]}
        return dataclasses.replace(self, **arrays)


def to_ply_frame(splats: Splats) -> Splats:
    """The same asset after half a turn about X: (x, y, z) -> (x, -y, -z), spherical harmonics included."""
    return _turned(splats, *(np.empty(each.shape, np.float32) for each in (splats.means, splats.quats, splats.shN)))


def from_ply_frame(splats: Splats) -> Splats:
    """The way back, which is half a turn as well, in place: for a reader, whose arrays are new and large."""
    return _turned(splats, splats.means, splats.quats, np.ascontiguousarray(splats.shN))


def _turned(splats: Splats, means: Float32s, quats: Float32s, shN: Float32s) -> Splats:
    """Half a turn about X, with its results in these arrays, of which `shN` is contiguous."""
    n, k, _ = splats.shN.shape
    signs = np.repeat(_HALF_TURN_SIGNS[:k], 3)
    np.multiply(splats.means, np.array([1, -1, -1], np.float32), out=means)
    np.multiply(splats.quats, np.array([1, 1, -1, -1], np.float32), out=quats)
    np.multiply(splats.shN.reshape(n, 3 * k), signs, out=shN.reshape(n, 3 * k))
    return dataclasses.replace(splats, means=means, quats=quats, shN=shN)


def tidied(splats: Splats) -> Splats:
    """The same asset with unit quaternions and with values that every reader's float arithmetic survives.

    Log-scales are clamped to [-20, 20] and opacity logits to [-15, 15]. Quaternions of length zero become the
    identity; those that are unit to float precision keep their bits.
    """
    lengths = np.sqrt(np.einsum("nq,nq->n", splats.quats, splats.quats, dtype=np.float64))
    off = np.abs(lengths - 1) > 1e-6
    quats = splats.quats
    if off.any():
        with np.errstate(divide="ignore", invalid="ignore"):
            quats = (quats * np.where(off, 1 / lengths, 1)[:, None]).astype(np.float32)
        quats[lengths == 0] = (1, 0, 0, 0)
    return dataclasses.replace(
        splats,
        quats=quats,
        log_scales=np.clip(splats.log_scales, -LOG_SCALE_LIMIT, LOG_SCALE_LIMIT),
        opacity_logits=np.clip(splats.opacity_logits, -OPACITY_LOGIT_LIMIT, OPACITY_LOGIT_LIMIT),
    )


def not_finite(splats: Splats) -> NDArray[np.intp]:
    """Indices of the Gaussians that have a NaN or an infinity among their values."""
    bad = np.zeros(len(splats), bool)
    for item in dataclasses.fields(splats)[:6]:
        finite = np.isfinite(getattr(splats, item.name))
        if not finite.all():
            bad |= ~finite.reshape(len(splats), -1).all(axis=1)
    return np.flatnonzero(bad)


def joined(parts: Sequence[Splats], provenance: Mapping[str, Any]) -> Splats:
    """One asset of several, with spherical harmonics of the highest degree among them."""
    if len(parts) == 1:
        return dataclasses.replace(parts[0], provenance=provenance)
    k = max(part.shN.shape[1] for part in parts)
    padded = [np.pad(part.shN, ((0, 0), (0, k - part.shN.shape[1]), (0, 0))) for part in parts]
    names = ("means", "quats", "log_scales", "opacity_logits", "sh0")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Splats(**arrays, shN=np.concatenate(padded), provenance=provenance)


@dataclass(frozen=True, slots=True)
class Format:
    """A row of `FORMATS`; the file behind it is imported when it is used, so that showing the table costs nothing."""

    suffix: str
    """How its file names end."""
    description: str
    module: str
    """File of this folder with `write(path, splats, **options)`, and with `read(path)` where `readable`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What `write` is called with."""
    readable: bool = True

    def read(self, path: Path) -> Splats:
        """The asset in `path`; errors as in the module's `read`."""
        splats: Splats = import_module(f"{__name__}.{self.module}").read(path)
        return splats

    def write(self, path: Path, splats: Splats, **options: Any) -> None:
        """Writes `path`; errors as in the module's `write`."""
        import_module(f"{__name__}.{self.module}").write(path, splats, **{**self.options, **options})


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "ply": Format(".ply", "Gaussians as every viewer reads them, padded to SH degree 3", "ply"),
        "ply-compact": Format(".ply", "the same without the padding", "ply", {"pad_sh": False}),
        "compressed-ply": Format(
            ".compressed.ply", "a quarter of a compact PLY and less, for SuperSplat", "compressed"
        ),
        "spz": Format(".spz", "about a tenth of a PLY, for web viewers", "spz"),
        "spz4": Format(".spz", "the same with zstandard, for newer readers", "spz", {"version": 4}),
        "sog": Format(".sog", "the smallest for many Gaussians, for PlayCanvas", "sog"),
        "glb": Format(".glb", "glTF with KHR_gaussian_splatting", "glb"),
        "usdz": Format(
            ".usdz", "OpenUSD's ParticleField, for Omniverse, Houdini and Apple; needs the extra usd", "usd"
        ),
        "html": Format(".html", "one page with its viewer, works offline", "page", readable=False),
        "splat": Format(".splat", "32 bytes a Gaussian, colours without view dependence", "splat"),
        "points": Format(".ply", "a coloured point cloud for mesh tools", "points", readable=False),
    }
)
"""Format name -> suffix, description, read and write. The first row of a suffix is what the suffix alone means."""


def format_of(path: Path) -> str:
    """The name of the format that the suffix of `path` stands for.

    Raises:
        UsageProblem: there is none; the message lists the known suffixes.
    """
    for key in FORMATS:
        if goes_with(path, key):
            return key
    known = _suffixes()
    nearest = difflib.get_close_matches(path.suffix.lower(), known, n=1, cutoff=0.6) or known
    raise UsageProblem(
        f"{path} names no known asset format; known are {', '.join(known)}",
        hint=f"name the file {path.stem or 'asset'}{nearest[0]}",
    )


def goes_with(path: Path, name: str) -> bool:
    """Whether a file of that name may be of the format `name`; the longest suffix counts, as in `.compressed.ply`."""
    found = [suffix for suffix in _suffixes() if path.name.lower().endswith(suffix)]
    return bool(found) and FORMATS[name].suffix == max(found, key=len)


def _suffixes() -> list[str]:
    return list(dict.fromkeys(row.suffix for row in FORMATS.values()))


def not_a_file(path: Path) -> UsageProblem:
    """The error to raise for a folder or a pipe where an asset is to be read."""
    return UsageProblem(f"{path} is not a file", hint=f"ls -l {quote(str(path))}")


def read(path: Path) -> Splats:
    """The asset in `path`, which may come from another tool, in the inner frame.

    Raises:
        UsageProblem: the suffix is not known, or the file can't be read as that format.
    """
    if isdir(path):  # noqa: PTH112 - that of Path raises where a name is too long
        raise not_a_file(path)
    row = FORMATS[format_of(path)]
    if not row.readable:
        known = ", ".join(dict.fromkeys(other.suffix for other in FORMATS.values() if other.readable))
        raise UsageProblem(
            f"{path} can't be read: {row.suffix} files are only written", hint=f"give the asset as one of {known}"
        )
    return row.read(path)


def check_format(path: Path, format: str | None = None) -> str:
    """The name of the format that `path` is to be written in: the one named, or the one of its suffix.

    Raises:
        UsageProblem: the format is not known, or does not go with the suffix.
    """
    name = format_of(path) if format is None else format
    if name not in FORMATS:
        nearest = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0)
        raise UsageProblem(
            f"there is no format {name!r}; known are {', '.join(FORMATS)}", hint=f"--format {nearest[0]}"
        )
    suffix = FORMATS[name].suffix
    if not goes_with(path, name):
        raise UsageProblem(
            f"the format {name} is written to {suffix} files, not to {path.name}",
            hint=f"-o {path.with_suffix(suffix)}",
        )
    return name


def write(path: Path, splats: Splats, format: str | None = None, **options: Any) -> None:
    """Writes `splats` to `path`, in the format of its suffix or in the one named.

    Raises:
        UsageProblem: the format is not known, does not go with the suffix, or the folder can't be written.
        SegdreamError: there are no Gaussians, some are not finite, or the disk is full.
    """
    FORMATS[check_format(path, format)].write(path, splats, **options)
