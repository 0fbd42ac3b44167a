"""The metrics `fid` and `frechet`: distances between the views of all assets and reference images.

`fid` measures in the features of Inception, and `frechet` in those of the embedded judge, which needs no download.

Shapes: m and n images, f features, v views, s pixels square.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from segdream_cli.errors import UsageProblem
from segdream_cli.evaluate import inception
from segdream_cli.evaluate.judge import EMBEDDED, Judge
from segdream_cli.evaluate.measures import frechet
from segdream_cli.evaluate.metrics import Array, Asset, Figure, Metric, Setup, Views
from segdream_cli.evaluate.reference_folder import make_command
from segdream_cli.evaluate.references import References

JUDGE_SIZE = 128
"""Side in pixels of the images that the judge was trained on."""
ROWS = 1024
"""Rows of a kernel matrix that are computed together; it bounds the memory."""

Extract = Callable[[UInt8[Tensor, "m 3 s s"]], Float[Tensor, "m f"]]


def kid(features: Float[Array, "m f"], others: Float[Array, "n f"]) -> float:
    """Kernel distance (KID, Bińkowski et al., ICLR 2018): the unbiased squared MMD with the kernel (x·y / f + 1)³.

    Over all rows, in float64. The published number is the mean over random subsets, which has the same expectation and
    a larger variance. It is about zero, also below, for equal distributions, and does not depend on m and n.

    Raises:
        ValueError: a set has fewer than two rows.
    """
    m, n = len(features), len(others)
    if min(m, n) < 2:
        raise ValueError("a distance needs at least two rows")
    x, y = (np.asarray(each, np.float64) for each in (features, others))
    within = [(_kernel_sum(each, each) - _diagonal_sum(each)) / (len(each) * (len(each) - 1)) for each in (x, y)]
    return sum(within) - 2 * _kernel_sum(x, y) / (m * n)


def _kernel_sum(x: Float[Array, "m f"], y: Float[Array, "n f"]) -> float:
    blocks = (x[start : start + ROWS] @ y.T / x.shape[1] + 1 for start in range(0, len(x), ROWS))
    return float(sum((block**3).sum() for block in blocks))


def _diagonal_sum(x: Float[Array, "m f"]) -> float:
    return float(((np.square(x).sum(1) / x.shape[1] + 1) ** 3).sum())


class DistanceMetric:
    """Distances of the views of all assets from reference images, in the features of a network.

    Args:
        extract: features of images.
        references: the reference images; their features are computed at once.

    Raises:
        UsageProblem: a reference image can't be read.
    """

    figures: Mapping[str, Figure] = MappingProxyType({})
    set_figures: Mapping[str, Figure] = {
        "frechet": Figure("Frechet distance", "lower", 2, main=True),
        "kid": Figure("kernel distance", "lower", 4, main=True),
        "images": Figure("views", digits=0),
        "references": Figure("reference images", digits=0),
    }
    reads_views = True

    def __init__(self, extract: Extract, references: References) -> None:
        self.extract = extract
        self.references = np.concatenate([extract(images).cpu().numpy() for images in references.images()])  # [n, f]

    def observe(self, asset: Asset, views: Views) -> Float[Array, "v f"]:
        """The features of views."""
        return self.extract(views.images).cpu().numpy()

    def measure(self, asset: Asset, observed: Float[Array, "v f"]) -> dict[str, float]:
        """Nothing: a distance needs more images than those of one asset."""
        return {}

    def summarize(self, observed: Sequence[Float[Array, "v f"]]) -> dict[str, float]:
        """The distances, NaN for a single view, and the numbers of images, on which the Frechet distance depends."""
        views = np.concatenate(observed)
        enough = len(views) > 1
        return {
            "frechet": frechet(views, self.references) if enough else float("nan"),
            "kid": kid(views, self.references) if enough else float("nan"),
            "images": float(len(views)),
            "references": float(len(self.references)),
        }


def find_references(name: str, setup: Setup) -> References:
    """The references of `setup`, for the metric `name`.

    Raises:
        UsageProblem: there are none, or their manifest can't be read.
    """
    if setup.reference is None:
        raise UsageProblem(
            f"the metric {name} compares with reference images, and --reference names no folder of them",
            hint=make_command(Path("references")),
        )
    references = References.read(setup.reference)
    setup.announce(f"{name}: comparing with {len(references.rows)} images of {setup.reference}")
    return references


def load_fid(setup: Setup) -> Metric:
    """The metric `fid` with the published weights, or those in the folder `setup.weights["fid"]`.

    Raises:
        WeightsUnavailable: the weights can't be found, downloaded or read.
        UsageProblem: there are no reference images, or they can't be read.
    """
    references = find_references("fid", setup)  # before a download starts
    given = setup.weights.get("fid")
    folder = None if given is None else Path(given).expanduser()
    network = inception.load(folder, setup.device, offline=setup.offline, announce=setup.announce)
    return DistanceMetric(network.features, references)


def load_frechet(setup: Setup) -> Metric:
    """The metric `frechet` with the embedded judge, or that of `setup.weights["frechet"]`.

    Raises:
        WeightsUnavailable: the judge can't be read.
        UsageProblem: there are no reference images, or they can't be read.
    """
    judge = Judge.load(Path(setup.weights.get("frechet", EMBEDDED)).expanduser(), setup.device)

    def extract(images: UInt8[Tensor, "m 3 s s"]) -> Float[Tensor, "m 640"]:
        small = F.interpolate(images.to(torch.float32) / 255, (JUDGE_SIZE, JUDGE_SIZE), mode="bilinear", antialias=True)
        return judge.features(small)

    return DistanceMetric(extract, find_references("frechet", setup))
