"""What a format can't keep of an asset beside rounding: values beyond its range, and the antialias flag."""

from collections.abc import Mapping

import numpy as np

from segdream_cli.splats import SH_C0, Splats

_SPZ = {"log_scales": (-10.0, 255 / 16 - 10), "sh0": (-0.5 / 0.15, 0.5 / 0.15), "shN": (-1.0, 1.0)}
LIMITS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "spz": _SPZ,
    "spz4": _SPZ,
    "html": _SPZ,
    "3dtiles": _SPZ,
    "splat": {"sh0": (-0.5 / SH_C0, 0.5 / SH_C0)},
    "compressed-ply": {"shN": (-4.0, 4.0)},
}
"""Format -> array of `Splats` -> the range beyond which the format clamps; others keep every value."""
TITLES = {"log_scales": "scales", "sh0": "colours", "shN": "spherical harmonics"}
WITHOUT_FLAG = ("glb", "usdz", "splat", "points")
"""Formats without a place for the antialias flag."""
LEAST_SHARE = 5e-4
"""Share of values below which clamping is not worth a note."""


def describe_losses(splats: Splats, format: str) -> str:
    """What `format` does not keep, as the end of a sentence that begins with the file; empty if it keeps all."""
    clamped = []
    for name, (low, high) in LIMITS.get(format, {}).items():
        values = splats.arrays()[name]
        share = float(np.mean((values < low) | (values > high))) if values.size else 0.0
        if share >= LEAST_SHARE:
            clamped.append(f"{share:.1%} of the {TITLES[name]}")
    losses = [f"clamps {' and '.join(clamped)}"] if clamped else []
    if splats.antialiased and format in WITHOUT_FLAG:
        losses.append("has no antialias flag")
    if splats.shN.any() and format == "splat":
        losses.append("has no spherical harmonics")
    return f"{' and '.join(losses)}; a .ply file keeps them" if losses else ""
