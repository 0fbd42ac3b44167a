"""Bootstrap intervals over prompts, paired differences, and Holm's correction.

Shapes: n assets, p prompts, r resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

Array = np.ndarray

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over assets with its bootstrap interval over prompts."""

    mean: float
    low: float
    """Lower end of the 95 % interval; NaN with fewer than two prompts."""
    high: float
    n: int
    """Number of assets that have a value."""


def estimate(values: Float[Array, " n"], prompts: Sequence[str], seed: int, resamples: int = RESAMPLES) -> Estimate:
    """The mean of finite values, and its percentile interval from resampling prompts with all of their assets.

    Args:
        values: one per asset; NaN where it has none.
        prompts: the prompt of each asset; assets of one prompt are drawn together.
        seed: of the resampling.
        resamples: number of resamples.
    """
    has = np.isfinite(values)
    kept = values[has]
    if not len(kept):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    which = np.unique(np.array(prompts, object)[has].astype(str), return_inverse=True)[1]
    mean = float(kept.mean())
    if which.max() == 0:
        return Estimate(mean, float("nan"), float("nan"), len(kept))
    means = resample_means(kept, which, np.random.default_rng(seed), resamples)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, float(low), float(high), len(kept))


def resample_means(
    values: Float[Array, " n"], which: Int64[Array, " n"], rng: np.random.Generator, resamples: int
) -> Float[Array, " r"]:
    """Means over assets in `resamples` draws of the p prompts with replacement; `which` is each asset's prompt."""
    p = int(which.max()) + 1
    sums, counts = np.bincount(which, values, p), np.bincount(which, minlength=p)
    draws = rng.multinomial(p, np.full(p, 1 / p), size=resamples)
    means: Array = (draws @ sums) / (draws @ counts)
    return means


def sign_flip_p_value(differences: Float[Array, " p"], seed: int, resamples: int = RESAMPLES) -> float:
    """Two-sided p-value of paired differences, one per prompt, under random signs (Fisher's randomisation test).

    The share of sign patterns whose sum is at least as far from 0 as that of the differences: all 2^p patterns if they
    are at most `resamples`, else random ones, to which the observed one is added. NaN without finite differences.
    """
    finite = differences[np.isfinite(differences)]
    p = len(finite)
    if not p:
        return float("nan")
    scale = float(np.abs(finite).sum())
    least = abs(float(finite.sum())) - 1e-12 * scale  # equal sums differ in their last bits
    if 2**p <= resamples:
        signs = 1 - 2 * (np.arange(2**p)[:, None] >> np.arange(p) & 1)
        return float((np.abs(signs @ finite) >= least).mean())
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (resamples, p))
    return float((1 + (np.abs(signs @ finite) >= least).sum()) / (1 + resamples))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p-values (Holm 1979); NaN stays NaN and does not count.

    adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)), in ascending order of the m values.
    """
    finite = sorted((name for name, value in p_values.items() if np.isfinite(value)), key=lambda name: p_values[name])
    adjusted, largest = dict(p_values), 0.0
    for i, name in enumerate(finite):
        largest = max(largest, min(1.0, (len(finite) - i) * p_values[name]))
        adjusted[name] = largest
    return adjusted
