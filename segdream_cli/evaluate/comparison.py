"""Compares two sets of assets prompt by prompt, A with B.

Shapes: p prompts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segdream_cli.errors import UsageProblem
from segdream_cli.evaluate.assets import Entry
from segdream_cli.evaluate.evaluation import Evaluation
from segdream_cli.evaluate.metrics import Figure
from segdream_cli.evaluate.statistics import Estimate, estimate, holm, sign_flip_p_value

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Pair:
    """The assets of one prompt on both sides, in the order of their names."""

    key: str
    """The prompt; the name of the assets if they have none."""
    a: Sequence[Entry]
    b: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of two sets of assets over the prompts that have it on both sides."""

    mean_a: float
    mean_b: float
    estimate: Estimate
    """Of B - A; NaN for values over all assets, which have no value per prompt."""
    p_value: float
    """Of the sign-flip test; NaN for figures of which neither direction is better."""
    adjusted: float
    """By Holm's correction for all figures with a p-value."""


def pair(a: Sequence[Entry], b: Sequence[Entry]) -> tuple[list[Pair], list[str]]:
    """The pairs of two sets of assets by prompt, and messages about the prompts of one side only.

    Raises:
        UsageProblem: no prompt is on both sides.
    """
    sides = []
    for entries in (a, b):
        groups: dict[str, list[Entry]] = {}
        for entry in sorted(entries, key=lambda entry: entry.path.name):
            groups.setdefault(entry.key, []).append(entry)
        sides.append(groups)
    first, second = sides
    pairs = [Pair(key, first[key], second[key]) for key in first if key in second]
    if not pairs:
        raise UsageProblem(
            f"A and B have no prompt in common: A has {next(iter(first))!r}, B has {next(iter(second))!r}"
        )
    notes = [
        f"{key!r} is only in {side} and does not count"
        for side, own, other in (("A", first, second), ("B", second, first))
        for key in own
        if key not in other
    ]
    return pairs, notes


def compare(a: Evaluation, b: Evaluation, pairs: Sequence[Pair], seed: int) -> dict[str, Difference]:
    """The differences of all figures that at least one prompt has on both sides, by "metric.figure".

    Several assets of a prompt count by their mean.

    Args:
        a: the first evaluation.
        b: the second one, by the same metrics.
        pairs: their entries, paired.
        seed: of the intervals and tests.
    """
    keys = [pair.key for pair in pairs]
    found: dict[str, Difference] = {}
    for name, figure in a.figures.items():
        left, right = (_per_prompt(evaluation, name, keys) for evaluation in (a, b))
        both = np.isfinite(left) & np.isfinite(right)
        if not both.any():
            continue
        change = np.where(both, right - left, NAN)
        tested = figure.better != "neither" and int(both.sum()) > 1
        found[name] = Difference(
            mean_a=float(left[both].mean()),
            mean_b=float(right[both].mean()),
            estimate=estimate(change, keys, seed),
            p_value=sign_flip_p_value(change, seed) if tested else NAN,
            adjusted=NAN,
        )
    adjusted = holm({name: one.p_value for name, one in found.items()})
    found = {
        name: Difference(one.mean_a, one.mean_b, one.estimate, one.p_value, adjusted[name])
        for name, one in found.items()
    }
    return found | _over_all(a, b)


def _over_all(a: Evaluation, b: Evaluation) -> dict[str, Difference]:
    """The differences of the values over all assets, which have neither interval nor p-value."""
    first, second = a.summarize(), b.summarize()
    return {
        name: Difference(value, second[name], Estimate(second[name] - value, NAN, NAN, 0), NAN, NAN)
        for name, value in first.items()
        if name in second
    }


def all_figures(evaluation: Evaluation) -> Mapping[str, Figure]:
    """The figures of assets and those over all assets."""
    return evaluation.figures | evaluation.set_figures


def _per_prompt(evaluation: Evaluation, name: str, keys: Sequence[str]) -> np.ndarray:
    """The mean of a figure over the assets of each prompt that have it, [p]; NaN where none has."""
    values: dict[str, list[float]] = {key: [] for key in keys}
    for row in evaluation.rows:
        value = row.scalar(name)
        if math.isfinite(value) and row.entry.key in values:
            values[row.entry.key].append(value)
    return np.array([np.mean(values[key]) if values[key] else NAN for key in keys])
