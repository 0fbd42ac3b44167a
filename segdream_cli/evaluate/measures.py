"""Measures of images of an asset, and the scores of the judge and the measures for many images.

Shapes: p prompts, v views of each, m images, s pixels square. Colors and alpha are in 0..1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from segdream_cli.evaluate.judge import Judge, Label

Array = np.ndarray  # NDArray[Any] is a type alias from NumPy 2.5 on, which jaxtyping does not take

COVERED = 0.1
"""Alpha above which a pixel counts as covered."""
DIFFERENT = 0.1
"""Distance from the background in any channel above which a pixel counts as object."""
SECTOR_OF_AXIS = np.array([0, 1, 2, 1])
"""Index into `judge.SECTORS` of the azimuths 0, 90, 180 and 270."""
READABLE = 0.95
"""The azimuths of an object count where the judge reads at least this share of its held-out renders right."""


def silhouette_iou(alpha: Float[Array, "*m s s"], masks: Float[Array, "*m s s"]) -> Float[Array, "*m"]:
    """Intersection over union of soft masks, sum min(a, b) / sum max(a, b); NaN where both are empty."""
    union = np.maximum(alpha, masks).sum((-2, -1))
    overlap: Array = np.minimum(alpha, masks).sum((-2, -1)) / np.where(union > 0, union, np.nan)
    return overlap


def floaters(alpha: Float[Array, "s s"]) -> float:
    """Share of the alpha of covered pixels outside their largest 8-connected component; 1 if none is covered."""
    masses = _component_masses(alpha)
    return 1 - float(masses.max() / masses.sum()) if len(masses) else 1.0


def faint(alpha: Float[Array, "s s"]) -> float:
    """Share of all alpha in pixels that are not covered; 1 if none is covered."""
    masses = _component_masses(alpha)
    return 1 - float(masses.sum() / alpha.sum()) if len(masses) else 1.0


def _component_masses(alpha: Float[Array, "s s"]) -> Float[Array, " n"]:
    """The alpha of each 8-connected component of covered pixels."""
    components, count = ndimage.label(alpha > COVERED, np.ones((3, 3)))
    masses: Array = ndimage.sum_labels(alpha, components, np.arange(1, count + 1))
    return masses


def silhouette(image: Float[Array, "3 s s"]) -> Bool[Array, "s s"]:
    """Pixels of the largest 4-connected component that differs from the background, its holes filled.

    The background is a plane in (1, x, y) per channel through the colors of the border, so that it follows gradients.
    It is fitted twice, the second time without the 30 % that the first fits worst: there the object meets the border.
    """
    size = image.shape[-1]
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    basis = np.stack([np.ones_like(x), x, y], -1)  # [s, s, 3]
    border = np.maximum(abs(x), abs(y)) > 0.5 - 3 / size
    ring, colors = basis[border], image[:, border].T
    residual = np.abs(colors - ring @ np.linalg.lstsq(ring, colors)[0]).max(-1)
    kept = residual <= np.quantile(residual, 0.7)
    plane = basis @ np.linalg.lstsq(ring[kept], colors[kept])[0]
    differs: Array = np.abs(image - plane.transpose(2, 0, 1)).max(0) > DIFFERENT
    components, count = ndimage.label(differs)
    if not count:
        return differs
    largest = 1 + np.argmax(ndimage.sum_labels(differs, components, np.arange(1, count + 1)))
    return np.asarray(ndimage.binary_fill_holes(components == largest), bool)


def sharpness(image: Float[Array, "3 s s"], mask: Bool[Array, "s s"] | None = None) -> tuple[float, float]:
    """Mean and root mean square per pixel of the gradient magnitude two pixels inside the silhouette.

    Blur hardly lowers the mean, since it spreads an edge without changing its height; it does lower the second. Both
    are NaN where nothing is that far inside.

    Args:
        image: the image.
        mask: its silhouette where the alpha is known; by default what differs from the background.
    """
    inside = ndimage.binary_erosion(silhouette(image) if mask is None else mask, iterations=2)
    if not inside.any():
        return float("nan"), float("nan")
    magnitude = np.hypot(*np.gradient(image, axis=(1, 2)))[:, inside]
    return float(magnitude.mean()), float(np.sqrt((magnitude**2).mean()))


def frechet(features: Float[Array, "m f"], others: Float[Array, "n f"]) -> float:
    """Frechet distance of the normal distributions with the means µ and covariances Σ of two sets of features.

    |µ₁ - µ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½), in float64; with Σ = Rᵀ R, the trace of the root is the sum of the singular
    values of R₁ R₂ᵀ. It falls with m and n, so compare only distances of equally many features.

    Raises:
        ValueError: a set has fewer than two rows.
    """
    if min(len(features), len(others)) < 2:
        raise ValueError("a covariance needs at least two rows")
    sets = [np.asarray(each, np.float64) for each in (features, others)]
    shift = sets[0].mean(0) - sets[1].mean(0)
    roots = [np.asarray(np.linalg.qr((each - each.mean(0)) / np.sqrt(len(each) - 1), "r")) for each in sets]
    overlap = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return float(shift @ shift + sum((root**2).sum() for root in roots) - 2 * overlap)


COLUMNS = ("object", "color", "attribute", "view", "azimuth", "floaters", "faint", "gradient", "edges")
"""Measures of a table of assets, in order: what `Scores.means` returns."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of images of p prompts from v azimuths; shares are of views.

    Args:
        object, color, attribute, azimuth: whether the judge reads the right class.
        sector: whether it reads front, side or back right, in the views along the axes.
        readable: whether the azimuths of the prompt's object count.
        gradient, edges: mean and root mean square of `sharpness`.
        floaters, faint: of the alpha; NaN for images without alpha.
    """

    object: Bool[Array, "p v"]
    color: Bool[Array, "p v"]
    attribute: Bool[Array, "p v"]
    azimuth: Bool[Array, "p v"]
    sector: Bool[Array, "p a"]
    readable: Bool[Array, " p"]
    gradient: Float[Array, "p v"]
    edges: Float[Array, "p v"]
    floaters: Float[Array, "p v"]
    faint: Float[Array, "p v"]

    def means(self) -> dict[str, float]:
        """The mean of each of `COLUMNS` over finite values; "view" (the sector) and "azimuth" over readable objects."""
        readable = {"view": self.sector[self.readable], "azimuth": self.azimuth[self.readable]}
        return {name: _mean(readable[name] if name in readable else getattr(self, name)) for name in COLUMNS}

    def ratio(self, samples: "Scores", name: Literal["gradient", "edges"]) -> float:
        """A measure of sharpness over that of samples, in the views where both have a silhouette; NaN if none has."""
        own, other = getattr(self, name), getattr(samples, name)
        both = np.isfinite(own) & np.isfinite(other)
        return float(own[both].mean() / other[both].mean()) if both.any() else float("nan")


def score(
    images: Float[Tensor, "p 8 3 s s"],
    labels: Sequence[Label],
    judge: Judge,
    alphas: Float[Tensor, "p 8 s s"] | None = None,
    *,
    sharp: bool = True,
) -> Scores:
    """The scores of images from the azimuths 0, 45, ..., 315 degrees, each row of which should show a label.

    Args:
        images: in 0..1.
        labels: one per row.
        judge: reads them.
        alphas: their alpha, for the floaters.
        sharp: measure the sharpness too, which takes most of the time; else it is NaN.

    Raises:
        ValueError: the judge has no such class.
    """
    p, v = images.shape[:2]
    verdict = judge.verdict(images.flatten(0, 1))
    objects, colors, attributes = (
        np.array([judge.classes[head].index(label[i]) for label in labels])[:, None]
        for i, head in enumerate(("objects", "colors", "attributes"))
    )

    def per_view(values: Tensor) -> Array:
        return values.cpu().numpy().reshape(p, v)

    gradients = np.full((p, v, 2), np.nan)
    if sharp:
        gradients = np.array([sharpness(image) for image in images.flatten(0, 1).cpu().numpy()]).reshape(p, v, 2)
    masses = np.full((p, v, 2), np.nan)
    if alphas is not None:
        flat = alphas.flatten(0, 1).cpu().numpy()
        masses = np.array([(floaters(alpha), faint(alpha)) for alpha in flat]).reshape(p, v, 2)
    return Scores(
        object=per_view(verdict.object) == objects,
        color=per_view(verdict.color) == colors,
        attribute=per_view(verdict.attribute) == attributes,
        azimuth=per_view(verdict.azimuth) == np.arange(v),
        sector=per_view(verdict.sector)[:, ::2] == SECTOR_OF_AXIS,
        readable=np.array([judge.azimuth_accuracy.get(label.object, 0) >= READABLE for label in labels]),
        gradient=gradients[..., 0],
        edges=gradients[..., 1],
        floaters=masses[..., 0],
        faint=masses[..., 1],
    )


def _mean(values: Array) -> float:
    """The mean of finite values, NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
