"""The metric `health`: floaters, holes, edges, needles, sizes and opacities of an asset; it needs no prompt."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from segdream_cli.evaluate.health import examine
from segdream_cli.evaluate.metrics import Array, Asset, AssetMetric, Figure, Metric, Setup, Values
from segdream_cli.splats import BANDS

OPACITY_BINS = 10


class HealthMetric(AssetMetric):
    """The measures of `health.examine`, and the asset's file, spherical harmonics and opacities."""

    figures: Mapping[str, Figure] = {
        "floaters": Figure("floaters", "lower", 4, main=True),
        "solid": Figure("solid", "higher", main=True),
        "solid_lowest": Figure("solid, lowest view", "higher"),
        "roof_px": Figure("roof edge, px", "lower", 1),
        "side_px": Figure("side edge, px", "lower", 1),
        "needles": Figure("needles", "lower", 4),
        "gaussians": Figure("Gaussians", digits=0, main=True),
        "file_bytes": Figure("file, bytes", digits=0),
        "spz_bytes": Figure("SPZ, bytes", "lower", 0),
        "sh_degree": Figure("SH degree", digits=0),
        "faint": Figure("faint Gaussians", "lower"),
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
