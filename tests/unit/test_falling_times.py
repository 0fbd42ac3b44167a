"""Timesteps that fall over a run: the line they follow, and the draws of each method that has the setting."""

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segdream_cli.config import Config
from segdream_cli.config.distill import METHOD_NAMES, FallingTimes
from segdream_cli.distill import build_method

STEPS = 50
OWN = {
    "sctd": {"segments": 1, "min_gap": 1, "warmup_shift": 0},  # nothing lifts t
    "sds": {"t_min": 21, "t_max": 500},
    "ism": {"warmup_shift": 0},
    "csd": {"t_min": 21, "t_max": 500},
    "gcs": {"warmup_shift": 0, "interval": 1, "interval_start": 1, "margin": 0},  # nothing lifts t
}
"""Settings of each method with which it draws t from 21 to 500."""


def draws(method: str, step: int, count: int, **changes: Any) -> list[int]:
    """t of many draws of a step."""
    settings = {f"distill.{method}.{name}": value for name, value in {**OWN[method], **changes}.items()}
    built = build_method(Config().set({"distill.method": method, "optim.steps": STEPS} | settings))
    generators = {name: torch.Generator().manual_seed(3) for name in ("times", "noise")}
    shape = (2, 1, 1, 1)
    state = built.init_state(shape, generators)
    found: list[int] = []
    for _ in range(count):
        t = built.describe(built.draw(step, shape, state, generators))["t"]
        found += t if isinstance(t, list) else [t]
    return found


def test_the_methods_with_the_setting_are_those_tested_here() -> None:
    having = [name for name in METHOD_NAMES if isinstance(getattr(Config().distill, name), FallingTimes)]
    assert having == list(OWN)


@given(st.integers(0, 999), st.integers(0, 999), st.integers(1, 999), st.integers(0, 40))
def test_t_range_falls_on_a_line(one: int, other: int, end: int, step: int) -> None:
    low, high = sorted((one, other))
    random, annealed, falling = (
        FallingTimes(t_schedule=schedule, t_end=end).t_range(low, high, step / 40)
        for schedule in ("random", "annealed", "falling")
    )
    assert random == (low, high)
    target = sorted((low, end, high))[1]
    exact = Fraction(high) + Fraction(target - high) * Fraction(step, 40)
    assert abs(annealed[1] - exact) <= Fraction(1, 2)
    assert annealed == (low, annealed[1])
    assert falling == (annealed[1], annealed[1])
    assert low <= annealed[1] <= high


@pytest.mark.parametrize("method", OWN)
def test_random_times_ignore_the_end(method: str) -> None:
    found = draws(method, STEPS, 4000, t_end=50)
    assert (min(found), max(found)) == (21, 500)


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize(("step", "upper"), [(1, 492), (25, 300), (50, 100)])
def test_annealed_times_fill_a_range_whose_upper_end_falls(method: str, step: int, upper: int) -> None:
    """From 500 towards 100: 8 less in each of 50 steps."""
    found = draws(method, step, 4000, t_schedule="annealed", t_end=100)
    assert (min(found), max(found)) == (21, upper)
    middle, spread = (21 + upper) / 2, (upper - 20) / 12**0.5
    assert sum(found) / len(found) == pytest.approx(middle, abs=4 * spread / len(found) ** 0.5)


@pytest.mark.parametrize("method", OWN)
def test_falling_times_are_the_line_itself(method: str) -> None:
    for step in range(1, STEPS + 1):
        assert set(draws(method, step, 3, t_schedule="falling", t_end=100)) == {500 - 8 * step}


@pytest.mark.parametrize(
    ("step", "t", "e"),
    [
        (1, 979, 788),
        (750, 676, 596),  # 15 % from 740 towards 261, the window's ends, is 668
        (1500, 356, 212),  # 30 % from 500 towards 21
        (3750, 141, 20),
        (5000, 100, 20),  # 21, lifted
    ],
)
def test_falling_times_of_sctd_follow_the_sliding_window_and_are_lifted(step: int, t: int, e: int) -> None:
    """In the warm-up the window's upper end falls as well; t stays at least 80 above its edge."""
    config = Config().set({"optim.steps": 5000, "distill.sctd.t_schedule": "falling", "distill.sctd.t_end": 20})
    method, shape = build_method(config), (1, 1, 1, 1)
    generators = {name: torch.Generator().manual_seed(0) for name in ("times", "noise")}
    drawn = method.describe(method.draw(step, shape, method.init_state(shape, generators), generators))
    assert (drawn["t"], drawn["e"]) == (t, e)
