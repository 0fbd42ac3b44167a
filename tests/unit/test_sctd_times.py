"""SCTD's segments and draws of (t, s, e) against the release's tables and statistics."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from segdream_cli.config import Config, DistillConfig
from segdream_cli.config.distill import SctdConfig
from segdream_cli.distill.sctd import Sctd, Times, draw_times, t_window, trajectory_segments
from segdream_cli.errors import UsageProblem


@pytest.mark.parametrize(
    ("changes", "edges"),
    [
        ({"segments": 1}, (20, 980)),
        ({"segments": 3}, (20, 340, 660, 980)),
        ({"segments": 4}, (20, 260, 500, 740, 980)),
        ({"segments": 5}, (20, 212, 404, 596, 788, 980)),
        ({"segments": 10}, tuple(range(20, 981, 96))),
        ({"segments": 5, "segmentation": "full"}, (0, 200, 400, 600, 800, 1000)),
        ({"segments": 5, "segmentation": "mono", "t_tau": 150}, (20, 150, 311, 503, 726, 980)),
        ({"segments": 1, "segmentation": "mono"}, (20, 980)),
    ],
)
def test_trajectory_segments_match_the_release(changes: dict[str, object], edges: tuple[int, ...]) -> None:
    assert trajectory_segments(SctdConfig(**changes)) == edges


@pytest.mark.parametrize("segments", range(2, 15))
def test_trajectory_segments_grow_by_the_constant_of_the_release(segments: int) -> None:
    """Intervals t_tau - 20 + i d with d = floor(2 (960 - N (t_tau - 20)) / (N (N - 1))), the last one up to 980.

    From 8 segments on d is negative; with 10, the paper's ablation, the release has d = -8.
    """
    step = math.floor(2 * (960 - segments * 130) / (segments * (segments - 1)))
    assert segments != 10 or step == -8
    expected = [20]
    for i in range(segments - 1):
        expected.append(expected[-1] + 130 + i * step)
    assert trajectory_segments(SctdConfig(segmentation="mono", segments=segments)) == (*expected, 980)


@pytest.mark.parametrize(
    ("changes", "fitting"),
    [
        ({"segmentation": "mono", "segments": 15}, 14),
        ({"segmentation": "mono", "segments": 2, "t_tau": 990}, 1),
        ({"segmentation": "mono", "segments": 3, "t_tau": 20}, 1),
        ({"segments": 961}, 960),
    ],
)
def test_trajectory_segments_refuse_empty_segments_with_the_most_that_fit(
    changes: dict[str, object], fitting: int
) -> None:
    with pytest.raises(UsageProblem, match=r"leave some of 20\.\.980 empty") as caught:
        trajectory_segments(SctdConfig(**changes))
    assert caught.value.hint == f"--set distill.sctd.segments={fitting}"
    assert len(trajectory_segments(SctdConfig(**changes | {"segments": fitting}))) == fitting + 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"segments": 12}, []),  # parts of 80
        ({"segments": 13}, ["shortest of 13 segments has 73"]),
        ({"segmentation": "mono", "segments": 7}, []),
        ({"segmentation": "mono", "segments": 8}, ["shrink to 112; --set distill.sctd.segments=7 "]),
        ({"segmentation": "mono", "segments": 10}, ["shrink to 66; ", "has 66 timesteps"]),
        ({"segmentation": "mono", "segments": 10, "min_gap": 66}, ["shrink to 66; "]),
        ({"segments": 1, "segmentation": "mono"}, []),
    ],
)
def test_sctd_notes_segments_that_shrink_or_are_short(changes: dict[str, object], expected: list[str]) -> None:
    notes = Sctd(Config().set({f"distill.sctd.{name}": value for name, value in changes.items()})).notes
    assert len(notes) == len(expected)
    for text, part in zip(notes, expected, strict=True):
        assert part in text


@st.composite
def configs(draw: st.DrawFn) -> SctdConfig:
    """Settings that the configuration accepts."""
    t_min = draw(st.integers(0, 200))
    t_max = draw(st.integers(t_min + 2, 1000))
    settings = {
        "t_min": t_min,
        "t_max": t_max,
        "t_high": draw(st.integers(t_min + 2, t_max)),
        "segments": draw(st.integers(1, 200)),
        "segmentation": draw(st.sampled_from(["uniform", "full", "mono"])),
        "t_tau": draw(st.integers(0, 300)),
        "window": draw(st.sampled_from(["sliding", "lower_fixed"])),
        "warmup_shift": draw(st.integers(0, 1200)),
        "min_gap": draw(st.integers(0, 300)),
        "s_margin": draw(st.integers(0, 100)),
    }
    return Config().set({f"distill.sctd.{name}": value for name, value in settings.items()}).distill.sctd


@given(configs())
def test_trajectory_segments_increase_without_gaps(config: SctdConfig) -> None:
    low, high = (0, 1000) if config.segmentation == "full" else (config.t_min, config.t_max)
    first = config.t_tau - low
    grows = config.segmentation == "mono" and config.segments > 1
    try:
        edges = trajectory_segments(config)
    except UsageProblem:
        assert first < 1 or config.segments * first > high - low if grows else config.segments > high - low
        return
    assert (edges[0], edges[-1], len(edges)) == (low, high, config.segments + 1)
    lengths = [after - before for before, after in pairwise(edges)]
    assert min(lengths) > 0
    if grows:
        assert lengths[0] == first
        assert (lengths == sorted(lengths)) == (config.segments * first <= high - low)
    else:
        assert max(lengths) - min(lengths) <= 1


@given(configs(), st.floats(0, 1), st.integers(0, 2**32))
def test_draw_times_keeps_order_and_segment(config: SctdConfig, warmup: float, seed: int) -> None:
    try:
        edges = trajectory_segments(config)
    except UsageProblem:
        return
    t, s, e = draw_times(config, t_window(config, warmup, 0.0), edges, torch.Generator().manual_seed(seed))
    assert e <= s <= t < config.t_max
    assert s < t or (config.min_gap == 0 and s == t == e)
    assert t > config.t_min
    assert e in edges[:-1]
    assert t <= min(edge for edge in edges if edge > e)
    margin = min(config.s_margin, (t - e - 1) // 2)
    assert s == e == t or e + margin <= s <= max(t - margin - 1, e + margin)


def draw_many(config: SctdConfig, warmup: float, n: int = 4000) -> Tensor:
    """(t, s, e) of `n` draws, [n, 3]."""
    generator, edges = torch.Generator().manual_seed(0), trajectory_segments(config)
    window = t_window(config, warmup, 0.0)
    return torch.tensor([draw_times(config, window, edges, generator) for _ in range(n)])


def test_warmup_ends_after_its_steps() -> None:
    config = DistillConfig(warmup_steps=1500)
    assert [config.warmup(step) for step in (1, 750, 1500, 9999)] == [1 / 1500, 0.5, 1.0, 1.0]
    assert DistillConfig(warmup_steps=0).warmup(1) == 1.0


def test_draw_times_slides_the_window_as_the_release() -> None:
    """t lies in [500, 979] at step 1 and, but for the lift, in [21, 500] from step 1,500 on (release: train.py)."""
    free = SctdConfig(min_gap=1)
    first, last = draw_many(free, 1 / 1500)[:, 0], draw_many(free, 1.0)[:, 0]
    assert (int(first.min()), int(first.max())) == (500, 979)
    assert (int(last.min()), int(last.max())) == (21, 500)
    assert draw_many(SctdConfig(), 1.0)[:, 0].min() == 100
    middle = draw_many(free, 0.5)[:, 0]
    assert (int(middle.min()), int(middle.max())) == (261, 740)


def test_draw_times_fixes_the_lower_end_as_the_paper() -> None:
    t = draw_many(SctdConfig(window="lower_fixed", min_gap=1), 1 / 1500, 20_000)[:, 0]
    assert (int(t.min()), int(t.max())) == (21, 979)
    assert float(t.double().mean()) == pytest.approx(500, abs=8)


def test_draw_times_has_the_release_statistics_after_the_warmup() -> None:
    """27.4 % below t_tau, half at exactly e + 80, mean gap 106, segments visited 40/40/20 (release at ceb78a6)."""
    t, s, e = draw_many(SctdConfig(), 1.0, 20_000).T
    within = 3 * math.sqrt(0.25 / 20_000)  # three standard deviations of a share
    assert float((t < 150).double().mean()) == pytest.approx(0.274, abs=within + 0.004)
    assert float((t == e + 80).double().mean()) == pytest.approx(0.5, abs=within + 0.005)
    assert float((t - e).double().mean()) == pytest.approx(106, abs=1)
    for edge, share in ((20, 0.4), (212, 0.4), (404, 0.2)):
        assert float((e == edge).double().mean()) == pytest.approx(share, abs=within)
    assert set(e.tolist()) == {20, 212, 404}
    assert int((s - e).min()) == 10
    assert int((t - s).min()) == 11


def test_draw_times_has_the_release_statistics_over_a_run() -> None:
    """The one-step branch takes 20.3 % of a run's steps and 3.9 % of the warm-up's (release at ceb78a6)."""
    config, generator = SctdConfig(), torch.Generator().manual_seed(0)
    edges, warmup = trajectory_segments(config), DistillConfig().warmup
    windows = [t_window(config, warmup(step), 0.0) for step in range(1, 5001)]
    short = torch.tensor([draw_times(config, window, edges, generator)[0] < 150 for window in windows]).double()
    assert float(short.mean()) == pytest.approx(0.203, abs=0.017)
    assert float(short[:1500].mean()) == pytest.approx(0.039, abs=0.015)


def test_draw_times_lifts_t_to_the_next_edge_at_most() -> None:
    config = SctdConfig(segments=20)  # parts of 48, less than min_gap
    t, _, e = draw_many(config, 1.0).T
    assert int((t - e).max()) == 48


def test_draw_times_lets_t_lie_on_an_edge_without_a_smallest_gap() -> None:
    """Algorithm 1 takes s_m = t there; t is uniform over 480 values, with edges at 212 and 404."""
    t, s, e = draw_many(SctdConfig(min_gap=0), 1.0, 20_000).T
    on_edge = t == e
    assert set(t[on_edge].tolist()) == {212, 404}
    assert torch.equal(s[on_edge], t[on_edge])
    assert float(on_edge.double().mean()) == pytest.approx(2 / 480, abs=3 * math.sqrt(2 / 480 / 20_000))
    assert bool((s < t)[~on_edge].all())
    assert not bool((draw_many(SctdConfig(min_gap=1), 1.0, 20_000)[:, 0] == 212).any())


@pytest.mark.parametrize(
    ("changes", "perp_neg", "offset"),
    [
        ({}, False, 0.3),
        ({}, True, 0.2),
        ({"fixed_noise": False}, False, 0.3),
        ({"fixed_noise": False}, True, 0.7),
    ],
)
def test_sctd_noise_has_the_offset_of_its_kind(changes: dict[str, object], perp_neg: bool, offset: float) -> None:
    """The constant per channel, drawn after the noise from the same generator."""
    offsets = {"noise_offset": 0.3, "noise_offset_perp_neg": 0.2, "noise_offset_perp_neg_fresh": 0.7}
    settings = {f"distill.sctd.{name}": value for name, value in (offsets | changes).items()}
    method, shape = Sctd(Config().set(settings | {"distill.perp_neg": perp_neg})), (3, 4, 8, 8)
    generators = {name: torch.Generator().manual_seed(5) for name in ("times", "noise")}
    state = method.init_state(shape, generators)
    if changes:
        generators["noise"].manual_seed(5)
    noise = method.draw(1, shape, state, generators).noise
    again = torch.Generator().manual_seed(5)
    torch.testing.assert_close(
        noise, torch.randn(shape, generator=again) + offset * torch.randn(1, 4, 1, 1, generator=again)
    )


def test_draw_times_starts_no_segment_at_the_last_timestep() -> None:
    narrow = SctdConfig(t_min=970, t_high=979, segmentation="full", segments=1000)
    t, s, e = draw_many(narrow, 1.0, 300).T  # every timestep is an edge
    assert int(t.max()) == 979
    assert bool(((e <= s) & (s < t)).all())


def test_times_repeat_for_the_views_of_an_asset() -> None:
    times = Times(torch.tensor([9, 8]), torch.tensor([5, 4]), torch.tensor([1, 0])).repeat(2)
    assert times.t.tolist() == [9, 9, 8, 8]
    assert times.s.tolist() == [5, 5, 4, 4]
    assert times.e.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        ({}, 1 + 2),
        ({"distill.perp_neg": True}, 1 + 3.5),
        ({"distill.sctd.t_tau": 0}, 1 + 2),
        ({"distill.sctd.t_tau": 300}, 1 + 2),
        ({"distill.sctd.t_tau": 1000}, 1 + 2),
        ({"distill.sctd.segments": 13, "distill.warmup_steps": 0}, 1 + 2),
        ({"distill.sctd.reuse_noise": True}, 2),
        ({"distill.sctd.t_schedule": "annealed", "distill.sctd.t_end": 50}, 1 + 2),
        ({"distill.sctd.t_schedule": "falling", "distill.sctd.t_tau": 400}, 1 + 2),
        ({"distill.sctd.reuse_noise": True, "distill.sctd.t_tau": 1000}, 2),
    ],
)
def test_sctd_rows_per_view_are_those_of_a_run(changes: dict[str, object], others: float) -> None:
    """The release's 20.3 % of one-step inversions leave 1.8 rows for the inversion on average."""
    whole, generators = Config().set(changes), {name: torch.Generator().manual_seed(0) for name in ("times", "noise")}
    method, shape = Sctd(whole), (1, 1, 1, 1)
    state = method.init_state(shape, generators)
    draws = [method.draw(step, shape, state, generators).times[0] for step in range(1, 5001)]
    steps = [2 if t >= whole.distill.sctd.t_tau else 1 for t in draws]
    assert method.rows_per_view == pytest.approx(sum(steps) / len(steps) + others, abs=0.02)
