"""View phrases, Perp-Neg's weights against the release's table, blended embeddings."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segdream_cli.config import ViewConfig
from segdream_cli.distill.view_prompts import (
    BACK,
    FRONT,
    OVERHEAD,
    RING,
    SIDE,
    PromptEmbeddings,
    ViewWeights,
    conditions,
    perp_neg_weights,
    phrase_texts,
    view_weights,
)
from segdream_cli.priors.profile import ViewPhrases

RING_OF_8 = tuple(f"view {i}" for i in range(8))
ANGLES = st.floats(-1000, 1000)


@pytest.mark.parametrize(
    ("azimuth", "front", "side"),
    [
        (0, 0, -2.000),
        (10, 0, -0.658),
        (17.9, 0, -0.274),
        (18.1, -0.404, -0.268),
        (30, -0.527, -0.071),
        (45, -0.736, -0.013),
        (60, -1.027, -0.003),
        (80, -1.602, 0),
        (90, -2, 0),
        (120, -2, -0.001),
        (150, -2, -0.036),
        (180, -2, -1.000),
    ],
)
@pytest.mark.parametrize("turn", [1, -1])
def test_perp_neg_weights_equal_the_release(azimuth: float, front: float, side: float, turn: int) -> None:
    """Release ceb78a6, train.py lines 95-136, evaluated by hand; 17.9 and 18.1 are both sides of a jump."""
    weights = perp_neg_weights(torch.tensor([float(turn * azimuth)]), ViewConfig())
    assert weights[:, 0].tolist() == pytest.approx([front, side], abs=1e-3)


@given(st.floats(-180, 180, width=32))
def test_perp_neg_weights_equal_the_formula(azimuth: float) -> None:
    a = abs(azimuth)
    if a < 90:
        r = 1 - a / 90
        front, side = -2 * math.exp(-2 * r) * (r <= 0.8), -2 * math.exp(-10 * (1 - r)) * (r >= 0.2)
    else:
        r = 1 - (a - 90) / 90
        front, side = -2.0, -math.exp(-10 * r) * (r <= 0.8)
    if min(abs(a - 18), abs(a - 72), abs(a - 108)) < 1e-3:
        return  # at the jumps float32 may fall on either side
    wanted = [front, side if abs(side) > 1e-4 else 0.0]
    assert perp_neg_weights(torch.tensor([azimuth]), ViewConfig())[:, 0].tolist() == pytest.approx(wanted, abs=2e-4)


def test_perp_neg_side_branch_returns_behind_108_degrees() -> None:
    front, side = perp_neg_weights(torch.tensor([107.9, 108.1]), ViewConfig()).tolist()
    assert front == [-2.0, -2.0]
    assert side[0] == 0
    assert side[1] == pytest.approx(-math.exp(-10 * (2 - 108.1 / 90)), rel=1e-4)


def test_perp_neg_weights_follow_the_settings() -> None:
    config = ViewConfig(negative_weight=-1.0, front_decay=1.0, side_decay=2.0, weight_floor=0.5)
    front, side = perp_neg_weights(torch.tensor([45.0, 30.0]), config).tolist()
    assert front == pytest.approx([-math.exp(-0.5), -math.exp(-2 / 3)])
    assert side == pytest.approx([0.0, -math.exp(-2 / 3)])


def weights(
    azimuths: list[float], views: ViewPhrases | None = None, elevation: float = 0.0, **config: object
) -> ViewWeights:
    perp_neg = bool(config.pop("perp_neg", True))
    angles = torch.tensor(azimuths, dtype=torch.float32)
    return view_weights(
        angles, torch.full_like(angles, elevation), views or ViewPhrases(), ViewConfig(**config), perp_neg=perp_neg
    )


@pytest.mark.parametrize("views", [ViewPhrases(), ViewPhrases(ring=RING_OF_8)], ids=["three", "ring"])
@pytest.mark.parametrize("blend", [True, False])
@given(azimuth=ANGLES, elevation=st.floats(-90, 90))
def test_view_weights_sum_to_one(views: ViewPhrases, blend: bool, azimuth: float, elevation: float) -> None:
    positive = weights([azimuth], views, elevation, blend=blend, overhead_elevation_deg=60.0).positive
    assert positive.shape == (1, RING + len(views.ring))
    assert float(positive.sum()) == pytest.approx(1)
    assert positive.min() >= 0
    assert int((positive > 0).sum()) <= (2 if blend else 1)


def test_view_weights_blend_three_phrases_as_the_release() -> None:
    positive = weights([0, 30, 45, 90, 120, 180, -30, -90, 330]).positive
    thirds = 2 / 3, 1 / 3
    wanted = [
        {FRONT: 1},
        {FRONT: thirds[0], SIDE: thirds[1]},
        {FRONT: 0.5, SIDE: 0.5},
        {SIDE: 1},
        {SIDE: thirds[0], BACK: thirds[1]},
        {BACK: 1},
        {FRONT: thirds[0], SIDE: thirds[1]},
        {SIDE: 1},
        {FRONT: thirds[0], SIDE: thirds[1]},
    ]
    for row, shares in zip(positive.tolist(), wanted, strict=True):
        assert row == pytest.approx([shares.get(phrase, 0) for phrase in range(RING)], abs=1e-5)


@pytest.mark.parametrize("views", [ViewPhrases(), ViewPhrases(ring=RING_OF_8)], ids=["three", "ring"])
@pytest.mark.parametrize("corner", [0, 45, 90, 135, 180, -45, -90, -180, 360])
def test_view_weights_are_continuous(views: ViewPhrases, corner: float) -> None:
    before, after = weights([corner - 0.01, corner + 0.01], views).positive
    assert (before - after).abs().max() < 1e-3


def test_view_weights_of_a_ring_of_eight() -> None:
    views = ViewPhrases(ring=RING_OF_8)
    exact = weights([45.0 * i for i in range(8)], views).positive
    assert torch.equal(exact[:, RING:], torch.eye(8))
    assert not exact[:, :RING].any()
    between = weights([-11.25], views).positive[0, RING:]
    assert between.tolist() == pytest.approx([0.75, 0, 0, 0, 0, 0, 0, 0.25])


def test_view_weights_without_blending_take_the_nearest() -> None:
    three = weights([44, 46, 134, 136, -44, -46], blend=False).positive.argmax(1)
    assert three.tolist() == [FRONT, SIDE, SIDE, BACK, FRONT, SIDE]
    ring = weights([22, 23, -23, 350], ViewPhrases(ring=RING_OF_8), blend=False).positive.argmax(1)
    assert (ring - RING).tolist() == [0, 1, 7, 0]


def test_view_weights_overhead_phrase_stands_alone() -> None:
    above = weights([45.0], elevation=61.0, overhead_elevation_deg=60.0)
    assert above.positive[0].tolist() == [float(phrase == OVERHEAD) for phrase in range(RING)]
    assert not above.negative.any()
    for other in (weights([45.0], elevation=59.0, overhead_elevation_deg=60.0), weights([45.0], elevation=89.0)):
        assert other.positive[0, OVERHEAD] == 0
        assert other.negative.abs().min() > 0


def test_view_weights_without_perp_neg_have_no_negatives() -> None:
    assert not weights([0, 45, 90, 180], perp_neg=False).negative.any()
    assert torch.equal(weights([0, 45, 180]).negative, perp_neg_weights(torch.tensor([0.0, 45, 180]), ViewConfig()))


def test_phrase_texts() -> None:
    texts = phrase_texts("a dog", ViewPhrases(front="front", side="side", back="back", overhead="top", ring=("n", "s")))
    assert texts == ["a dog, front", "a dog, side", "a dog, back", "a dog, top", "a dog, n", "a dog, s"]
    assert (texts[FRONT], texts[SIDE], texts[BACK], texts[OVERHEAD], texts[RING]) == (*texts[:4], texts[4])


def test_conditions_equal_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    phrases, uncond, null = (torch.randn(*shape, generator=generator) for shape in ((4, 5, 6), (5, 6), (5, 6)))
    given_weights = weights([0, 30, 100, -170])
    text = conditions([PromptEmbeddings(phrases, uncond, null)], given_weights)
    for i in range(4):
        blended = sum(float(given_weights.positive[i, p]) * phrases[p] for p in range(4))
        torch.testing.assert_close(text.positive[i], blended, rtol=1e-5, atol=1e-6)
        assert torch.equal(text.uncond[i], uncond)
        assert torch.equal(text.null[i], null)
        assert torch.equal(text.negatives[0, i], phrases[FRONT])
        assert torch.equal(text.negatives[1, i], phrases[SIDE])
    assert torch.equal(text.weights, given_weights.negative)


def test_conditions_concatenate_several_prompts() -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = [
        PromptEmbeddings(*(torch.randn(*shape, generator=generator) for shape in ((4, 5, 6), (5, 6), (5, 6))))
        for _ in range(3)
    ]
    azimuths = [[0.0, 30], [100, -170], [60, 90]]
    together = conditions(prompts, weights([azimuth for each in azimuths for azimuth in each]))
    alone = [conditions([prompt], weights(each)) for prompt, each in zip(prompts, azimuths, strict=True)]
    for name in ("null", "uncond", "positive"):
        torch.testing.assert_close(getattr(together, name), torch.cat([getattr(one, name) for one in alone]))
    torch.testing.assert_close(together.negatives, torch.cat([one.negatives for one in alone], 1))
    torch.testing.assert_close(together.weights, torch.cat([one.weights for one in alone], 1))
