"""Distances between the views of all assets and reference images, in the features of a network.

Shapes: m and n images, f features, v views, s pixels square.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from segdream_cli.evaluate.measures import Array

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
