"""Classifier-free guidance and Perp-Neg against their algebra, a literal loop, and the rows they may evaluate."""

import pytest
import torch
from fakes import AnalyticPrior, draw
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from segdream_cli.distill.guidance import Conditions, classifier_free, guided_noise, perp_neg

SHAPE = (3, 4, 8, 8)
SCALE = 7.5


UNCOND, COND = draw(*SHAPE), draw(*SHAPE, seed=1)
NEGATIVES, WEIGHTS = draw(2, *SHAPE, seed=2), torch.tensor([[-2.0, -0.5, 0.0], [0.0, -1.2, 0.0]])


def reference(uncond: Tensor, cond: Tensor, negatives: Tensor, weights: Tensor, scale: float) -> Tensor:
    """Perp-Neg per row and branch, release ceb78a6, guidance/perpneg_utils.py lines 4-48."""
    rows = []
    for i in range(len(cond)):
        positive = (cond[i] - uncond[i]).flatten()
        total = positive.clone()
        for k in range(len(weights)):
            negative = (negatives[k, i] - uncond[i]).flatten()
            along = torch.dot(negative, positive) / max(float(torch.dot(positive, positive)), 1e-6)
            total += float(weights[k, i]) * (negative - along * positive)
        rows.append(uncond[i] + scale * total.reshape(cond[i].shape))
    return torch.stack(rows)


class Recorder:
    """A prior's noise estimate that records its calls."""

    def __init__(self) -> None:
        self.prior = AnalyticPrior(variance=0.3)
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        self.calls.append((latents, timesteps, text))
        return self.prior.predict_noise(latents, timesteps, text)


def conditions(weights: Tensor) -> Conditions:
    encode = AnalyticPrior().encode_text
    b = weights.shape[1]
    return Conditions(
        null=encode([""]).expand(b, -1, -1),
        uncond=encode(["blurry"]).expand(b, -1, -1),
        positive=encode([f"view {i}" for i in range(b)]),
        negatives=encode(["front", "side"])[:, None].expand(-1, b, -1, -1),
        weights=weights,
    )


def test_classifier_free_extrapolates() -> None:
    torch.testing.assert_close(classifier_free(UNCOND, COND, SCALE), (1 - SCALE) * UNCOND + SCALE * COND)
    torch.testing.assert_close(classifier_free(UNCOND, COND, 1.0), COND)
    torch.testing.assert_close(classifier_free(UNCOND, COND, 0.0), UNCOND)
    torch.testing.assert_close(classifier_free(COND, COND, SCALE), COND)


def test_perp_neg_equals_the_loop_over_rows_and_branches() -> None:
    ours = perp_neg(UNCOND, COND, NEGATIVES, WEIGHTS.double(), SCALE)
    torch.testing.assert_close(ours, reference(UNCOND, COND, NEGATIVES, WEIGHTS, SCALE), rtol=1e-12, atol=1e-12)


def test_perp_neg_with_zero_weights_is_classifier_free() -> None:
    plain = classifier_free(UNCOND, COND, SCALE)
    torch.testing.assert_close(perp_neg(UNCOND, COND, NEGATIVES, torch.zeros(2, 3).double(), SCALE), plain)


@given(st.floats(-3, 3), st.floats(-2, 0))
def test_perp_neg_ignores_a_parallel_negative(factor: float, weight: float) -> None:
    parallel = (UNCOND + factor * (COND - UNCOND))[None]
    ours = perp_neg(UNCOND, COND, parallel, torch.full((1, 3), weight).double(), SCALE)
    torch.testing.assert_close(ours, classifier_free(UNCOND, COND, SCALE), rtol=1e-10, atol=1e-10)


def test_perp_neg_adds_only_orthogonal_parts() -> None:
    added = perp_neg(UNCOND, COND, NEGATIVES, WEIGHTS.double(), SCALE) - classifier_free(UNCOND, COND, SCALE)
    products = (added * (COND - UNCOND)).flatten(1).sum(1)
    assert added[:2].flatten(1).norm(dim=1).min() > 1
    assert not added[2].any()
    assert products.abs().max() < 1e-9


def test_perp_neg_keeps_an_orthogonal_negative() -> None:
    positive, negative = torch.zeros(2, 1, 1, 2, 2, dtype=torch.float64)
    positive[..., 0, 0], negative[..., 1, 1] = 1.0, 3.0
    ours = perp_neg(torch.zeros_like(positive), positive, negative[None], torch.tensor([[-2.0]]).double(), 10.0)
    torch.testing.assert_close(ours[0, 0], torch.tensor([[10.0, 0.0], [0.0, -60.0]], dtype=torch.float64))


def test_perp_neg_is_finite_for_a_zero_positive() -> None:
    ours = perp_neg(COND, COND, NEGATIVES, WEIGHTS.double(), SCALE)
    torch.testing.assert_close(ours, reference(COND, COND, NEGATIVES, WEIGHTS, SCALE))
    assert ours.isfinite().all()


@pytest.mark.parametrize("scale", [SCALE, 1.0])
@pytest.mark.parametrize("weights", [WEIGHTS, WEIGHTS * 0, -torch.ones(2, 3)], ids=["some", "none", "all"])
def test_guided_noise_equals_the_dense_computation(weights: Tensor, scale: float) -> None:
    recorder, text = Recorder(), conditions(weights)
    latents, t = draw(*SHAPE, seed=4), torch.tensor([30, 400, 900])
    ours = guided_noise(recorder, latents, t, text, scale)

    def noise(embedding: Tensor) -> Tensor:
        return recorder.prior.predict_noise(latents, t, embedding)

    negatives = torch.stack([noise(branch) for branch in text.negatives])
    dense = reference(noise(text.uncond), noise(text.positive), negatives, weights, scale)
    torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("weights", "scale", "rows"),
    [(WEIGHTS, SCALE, 3 + 3 + 3), (WEIGHTS, 1.0, 9), (WEIGHTS * 0, SCALE, 6), (WEIGHTS * 0, 1.0, 3)],
    ids=["perp-neg", "perp-neg at scale 1", "plain", "plain at scale 1"],
)
def test_guided_noise_evaluates_active_branches_in_one_call(weights: Tensor, scale: float, rows: int) -> None:
    recorder, text = Recorder(), conditions(weights)
    latents, t = draw(*SHAPE, seed=4), torch.tensor([30, 400, 900])
    guided_noise(recorder, latents, t, text, scale)
    ((seen, times, embeddings),) = recorder.calls
    assert len(seen) == len(times) == len(embeddings) == rows
    asked = {
        (int(time), tuple(embedding.flatten()[:3].tolist())) for time, embedding in zip(times, embeddings, strict=True)
    }
    wanted = [(i, text.positive[i]) for i in range(3)]
    wanted += [(i, text.uncond[i]) for i in range(3)] if rows > 3 else []
    wanted += [(i, text.negatives[k, i]) for k in range(2) for i in range(3) if weights[k, i]]
    assert asked == {(int(t[i]), tuple(embedding.flatten()[:3].tolist())) for i, embedding in wanted}
