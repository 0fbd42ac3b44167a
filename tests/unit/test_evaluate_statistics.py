"""Intervals and p-values of evaluations against SciPy's, an explicit loop and published values."""

import math

import numpy as np
import pytest
from scipy import stats

from segdream_cli.evaluate.statistics import estimate, holm, resample_means, sign_flip_p_value

VALUES = np.random.default_rng(3).normal(0.4, 1.0, 25)
ONE_EACH = [f"prompt {i}" for i in range(len(VALUES))]


def test_estimate_agrees_with_scipys_percentile_bootstrap() -> None:
    found = estimate(VALUES, ONE_EACH, seed=0)
    ours = stats.bootstrap((VALUES,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    assert found.mean == pytest.approx(VALUES.mean())
    assert found.n == len(VALUES)
    spread = VALUES.std() / math.sqrt(len(VALUES))
    assert found.low == pytest.approx(ours.confidence_interval.low, abs=0.1 * spread)
    assert found.high == pytest.approx(ours.confidence_interval.high, abs=0.1 * spread)


def test_estimate_is_the_same_for_a_seed_and_differs_for_another() -> None:
    assert estimate(VALUES, ONE_EACH, seed=5) == estimate(VALUES, ONE_EACH, seed=5)
    assert estimate(VALUES, ONE_EACH, seed=5).low != estimate(VALUES, ONE_EACH, seed=6).low


def test_estimate_leaves_out_what_is_not_finite_and_needs_two_prompts_for_an_interval() -> None:
    found = estimate(np.array([1.0, math.nan, 3.0]), ["a", "b", "a"], seed=0)
    assert (found.mean, found.n) == (2.0, 2)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    nothing = estimate(np.array([math.nan]), ["a"], seed=0)
    assert nothing.n == 0
    assert math.isnan(nothing.mean)


def test_resample_means_draws_prompts_with_all_their_assets() -> None:
    """By the same draws, each written out as a list of assets."""
    values, which = np.array([1.0, 2.0, 4.0, 8.0, 16.0]), np.array([0, 0, 1, 2, 2])
    found = resample_means(values, which, np.random.default_rng(7), 50)
    rng = np.random.default_rng(7)
    for mean, draw in zip(found, rng.multinomial(3, [1 / 3] * 3, size=50), strict=True):
        assets = [value for prompt, times in enumerate(draw) for _ in range(times) for value in values[which == prompt]]
        assert mean == pytest.approx(sum(assets) / len(assets))


@pytest.mark.parametrize("n", [2, 5, 10])
def test_sign_flip_p_value_agrees_with_scipys_exact_test(n: int) -> None:
    differences = VALUES[:n]
    exact = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p_value(differences, seed=0) == pytest.approx(exact.pvalue)


def test_sign_flip_p_value_of_many_prompts_is_close_to_scipys() -> None:
    sampled = stats.permutation_test(
        (VALUES,), np.mean, permutation_type="samples", n_resamples=50_000, rng=np.random.default_rng(2)
    )
    assert sign_flip_p_value(VALUES, seed=0) == pytest.approx(sampled.pvalue, abs=0.01)


def test_sign_flip_p_value_of_equal_differences_counts_both_ends() -> None:
    assert sign_flip_p_value(np.full(6, 0.1), seed=0) == pytest.approx(2 / 64)
    assert sign_flip_p_value(np.zeros(4), seed=0) == 1
    assert math.isnan(sign_flip_p_value(np.array([math.nan]), seed=0))


def test_holm_by_the_values_of_r() -> None:
    """p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") is 0.03 0.06 0.06 0.02."""
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": math.nan})
    assert [found[name] for name in "abcd"] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(found["e"])
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
