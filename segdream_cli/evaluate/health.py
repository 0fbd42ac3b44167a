"""The metric `health`: whether surfaces are solid, edges narrow, Gaussians round and files small; it needs no prompt.

Shapes: s pixels square. Alpha is in 0..1.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage

from segdream_cli import formats
from segdream_cli.evaluate.measures import floaters
from segdream_cli.evaluate.metrics import Array, Asset, AssetMetric, Figure, Metric, Setup, Values
from segdream_cli.render.cameras import frame_sphere, turntable_azimuths
from segdream_cli.render.view import render
from segdream_cli.splats import BANDS, Splats
from segdream_cli.splats.bounds import VISIBLE_OPACITY
from segdream_cli.splats.gaussians import Gaussians

SIZE = 512
"""Side in pixels of the views that the measures are made for."""
VIEWS = 12
ELEVATIONS_DEG = (15.0, 60.0, -30.0)
"""Elevations of the views in turn: four views from each."""
SILHOUETTE, SOLID, INSET_PX = 0.5, 0.97, 4
"""Alpha of the silhouette and of solid pixels, and how far inside the silhouette pixels count."""
RISE = (0.1, 0.9)
"""Alpha at the outer and the inner end of an edge."""
OPACITY_BINS = 10
NEEDLE = 10.0
"""Ratio of the longest to the second axis above which a Gaussian is a needle."""


def solid_share(alpha: Float[Array, "s s"]) -> float:
    """Share of solid pixels more than four pixels inside the silhouette; NaN where nothing is that far inside."""
    depth = ndimage.distance_transform_edt(np.pad(alpha >= SILHOUETTE, 1))[1:-1, 1:-1]
    inside = alpha[depth > INSET_PX]
    return float((inside >= SOLID).mean()) if len(inside) else float("nan")


def edge_px(lines: Float[Array, "n s"]) -> float:
    """Median width in pixels over which alpha first rises from 0.1 to 0.9 along scan lines, interpolated.

    A line counts where it reaches the silhouette from alpha below 0.1; its width is infinite where it never reaches
    0.9. NaN where no line counts.

    Args:
        lines: alpha along n lines from the outside in: `alpha.T` for roofs, `alpha` and `alpha[:, ::-1]` for sides.
    """
    low, high = RISE
    s = lines.shape[1]
    outside = (lines < low) & (np.arange(s) < (lines >= SILHOUETTE).argmax(1)[:, None])
    lines, outside = lines[outside.any(1)], outside[outside.any(1)]
    start = s - 1 - outside[:, ::-1].argmax(1)  # the last pixel below 0.1 before the silhouette
    end = np.where((lines >= high).any(1), (lines >= high).argmax(1), s)
    widths = np.full(len(lines), np.inf)
    full = np.nonzero(end < s)[0]

    def cross(before: Array, level: float) -> Array:
        """Where the lines cross a level between the pixel `before` and the next."""
        here, there = lines[full, before], lines[full, before + 1]
        crossing: Array = before + (level - here) / (there - here)
        return crossing

    widths[full] = cross(end[full] - 1, high) - cross(start[full], low)
    return float(np.median(widths)) if len(widths) else float("nan")


def needle_share(splats: Splats) -> float:
    """Share of needles among the visible Gaussians; NaN if none is visible."""
    visible = splats.opacity_logits > np.log(VISIBLE_OPACITY / (1 - VISIBLE_OPACITY))
    axes = np.sort(splats.log_scales[visible], axis=1)
    return float((axes[:, 2] - axes[:, 1] > np.log(NEEDLE)).mean()) if len(axes) else float("nan")


def file_bytes(splats: Splats, format: str) -> int:
    """Size in bytes of the asset's file in a format of `formats.FORMATS`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"asset{formats.FORMATS[format].suffix}")
        formats.write(path, splats, format)
        return path.stat().st_size


@dataclass(frozen=True, slots=True)
class Health:
    """The measures of one asset: pixels at 512 px, sizes in bytes."""

    solid: float
    """Mean over the views of `solid_share`."""
    solid_lowest: float
    """Lowest of the views."""
    roof_px: float
    """`edge_px` downwards from the top, over all views from the horizon and above."""
    side_px: float
    """`edge_px` inwards from left and right, over all views."""
    floaters: float
    """Mean over the views of `measures.floaters`."""
    needles: float
    gaussians: int
    ply_bytes: int
    """Size as a compact PLY."""
    spz_bytes: int


@torch.no_grad()
def examine(gaussians: Gaussians, size: int = SIZE) -> Health:
    """The health of an asset of the working radius, seen from twelve azimuths at three elevations in turn."""
    elevations = torch.tensor(ELEVATIONS_DEG).repeat(VIEWS // len(ELEVATIONS_DEG))
    cameras = frame_sphere(turntable_azimuths(VIEWS), elevations, size).to(gaussians.device)
    alphas = render(gaussians, cameras).alpha[..., 0].cpu().numpy()  # [v, s, s]
    splats = gaussians.splats({})
    solid = np.array([solid_share(alpha) for alpha in alphas])
    solid = solid[np.isfinite(solid)]
    return Health(
        solid=float(solid.mean()) if len(solid) else float("nan"),
        solid_lowest=float(solid.min(initial=1)) if len(solid) else float("nan"),
        roof_px=edge_px(np.concatenate(alphas[elevations.numpy() > 0].transpose(0, 2, 1))),
        side_px=edge_px(np.concatenate([*alphas, *alphas[:, :, ::-1]])),
        floaters=float(np.mean([floaters(alpha) for alpha in alphas])),
        needles=needle_share(splats),
        gaussians=len(splats),
        ply_bytes=file_bytes(splats, "ply-compact"),
        spz_bytes=file_bytes(splats, "spz"),
    )


class HealthMetric(AssetMetric):
    """The measures of `examine`, and the asset's file, spherical harmonics and opacities."""

    figures: Mapping[str, Figure] = {
        "floaters": Figure("floating parts", "lower", 4, main=True),
        "solid": Figure("solid surface", "higher", main=True),
        "solid_lowest": Figure("solid surface, worst view", "higher"),
        "roof_px": Figure("blur of top edges, px", "lower", 1),
        "side_px": Figure("blur of side edges, px", "lower", 1),
        "needles": Figure("needle-shaped Gaussians", "lower", 4),
        "gaussians": Figure("Gaussians", digits=0, main=True),
        "file_bytes": Figure("file size, bytes", digits=0),
        "spz_bytes": Figure("size as SPZ, bytes", "lower", 0),
        "sh_degree": Figure("degree of view-dependent colour (SH)", digits=0),
        "faint": Figure("faint Gaussians (opacity below 0.1)", "lower"),
    }

    def measure(self, asset: Asset, observed: Float[Array, "v f"]) -> Values:
        """The values of one asset; `opacities` is the share of its Gaussians in ten bins of opacity from 0 to 1."""
        health = examine(asset.gaussians)
        opacities = opacity_histogram(asset.splats.opacity_logits)
        return {
            **{name: float(getattr(health, name)) for name in self.figures if hasattr(health, name)},
            "file_bytes": float(asset.path.stat().st_size),
            "sh_degree": float(BANDS.index(asset.splats.shN.shape[1])),
            "faint": opacities[0],
            "opacities": tuple(opacities),
        }


def opacity_histogram(logits: Float[Array, " n"]) -> list[float]:
    """Shares of Gaussians whose opacity is in [0, 0.1), [0.1, 0.2), ..., [0.9, 1]."""
    opacities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    counts, _ = np.histogram(opacities, OPACITY_BINS, (0, 1))
    return [float(share) for share in counts / len(logits)]


def load(setup: Setup) -> Metric:
    """The metric, which needs nothing."""
    return HealthMetric()
