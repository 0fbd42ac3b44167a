"""The training stages end to end on a few images: the package loads their checkpoint."""

import colorsys
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from segdream_cli.config import PriorConfig
from segdream_cli.errors import UsageProblem
from segdream_cli.evaluate.judge import Judge
from segdream_cli.priors import checkpoint as weights
from segdream_cli.priors.prompt import clean_prompt
from segdream_cli.priors.stable_diffusion import DiffusionPrior
from training import assemble, train_autoencoder, train_denoiser, train_judge
from training.assets import JUDGE
from training.bank import render_bank
from training.models import LATENT_CHANNELS, make_tokenizer, vocabulary
from training.stage import Clock, one_gradient, schedule
from training.world.catalog import (
    COLORS,
    OBJECTS,
    OVERHEAD,
    VIEWS,
    Combination,
    combinations,
    contradictions,
    natural_colors,
)

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
TINY = {"batch": 1, "large_batch": 1, "renders": 4, "large_renders": 2, "backgrounds_each": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> train_denoiser.Captions:
    """Made once: it holds some 240,000 captions."""
    return train_denoiser.Captions(_tokenizer(tmp_path_factory.mktemp("words")), CPU)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, captions: train_denoiser.Captions) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    autoencoder, denoiser, again, whole = (folder / name for name in ("ae", "denoiser", "again", "whole"))
    train_autoencoder.main(autoencoder, steps=2, batch=8, renders=8, channels="8,8,16,16", device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_denoiser, "Captions", lambda tokenizer, device: captions)
        patch.setattr(train_denoiser, "SAMPLES", 1)
        patch.setattr(train_denoiser, "SAMPLE_STEPS", 3)
        train_denoiser.main(autoencoder, denoiser, steps=2, **TINY)
        train_denoiser.main(autoencoder, again, start=denoiser, steps=1, rate=0.0, **TINY)
    whole.mkdir()
    shutil.copy(Path(weights.__file__).parents[1] / "data" / "mini" / "segdream.json", whole)
    assemble.main(autoencoder, again, whole)
    return whole


def test_assemble_makes_a_prior_that_loads(checkpoint: Path) -> None:
    found = weights.resolve(PriorConfig(model=str(checkpoint)), cuda=False, offline=True, announce=lambda _: None)
    prior = DiffusionPrior.load(found, CPU, warn=pytest.fail)
    assert prior.image_size == 128
    assert prior.latent_shape == (LATENT_CHANNELS, 16, 16)
    text = prior.encode_text(["a striped blue ice cream cone, front left view"])
    noisy = torch.randn(1, LATENT_CHANNELS, 16, 16)
    assert prior.predict_noise(noisy, torch.tensor([500]), text).isfinite().all()


def test_assembled_checkpoint_has_the_words_of_the_world(checkpoint: Path) -> None:
    found = weights.resolve(PriorConfig(model=str(checkpoint)), cuda=False, offline=True, announce=lambda _: None)
    words, shipped = (
        found.profile.vocabulary,
        weights.resolve(PriorConfig(), cuda=False, offline=True, announce=lambda _: None).profile.vocabulary,
    )
    assert words is not None
    assert shipped is not None
    assert (words.objects, words.colors) == (tuple(OBJECTS), tuple(COLORS))
    assert words.excluded == tuple(contradictions())
    for color, attribute in contradictions():
        with pytest.raises(UsageProblem, match=f"{color}.*{attribute}"):
            clean_prompt(f"a {color} teapot {attribute}", words)
    for one in combinations():
        clean_prompt(one.caption(), words)
    assert (words.synonyms, words.concepts, words.ignored) == (shipped.synonyms, shipped.concepts, shipped.ignored)
    assert words.synonyms
    assert shipped.excluded == tuple(pair for pair in contradictions() if pair[1] in shipped.attributes)


def test_assemble_accepts_the_autoencoder_of_the_checkpoint(checkpoint: Path) -> None:
    weights_file = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    before = weights_file.read_bytes()
    assemble.main(checkpoint / "vae", checkpoint.parent / "again", checkpoint)
    assert weights_file.read_bytes() == before


def test_stage_continues_from_saved_weights(checkpoint: Path) -> None:
    first = train_denoiser.Model(train_denoiser.unet(), train_denoiser.text_encoder(_tokenizer(checkpoint.parent)))
    second = train_denoiser.Model(train_denoiser.unet(), train_denoiser.text_encoder(_tokenizer(checkpoint.parent)))
    train_denoiser.load(checkpoint.parent / "denoiser", first)
    train_denoiser.load(checkpoint.parent / "again", second)  # a run at rate zero
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_stage_files_are_at_most_15_mb(checkpoint: Path) -> None:
    saved = [*(checkpoint.parent / "ae").rglob("*"), *(checkpoint.parent / "denoiser").rglob("*")]
    assert max(file.stat().st_size for file in saved) < 15e6
    assert sum(file.stat().st_size for file in checkpoint.rglob("*.safetensors")) < 1e6 * assemble.LIMIT_MB


def _tokenizer(folder: Path):
    return make_tokenizer(folder / "tokens", vocabulary())


def test_captions_match_the_images(tmp_path: Path, captions: train_denoiser.Captions) -> None:
    wanted = [Combination(name, color, "striped") for name in ("duck", "school bus") for color in ("blue", "yellow")]
    bank = render_bank(400, 0, CPU, combinations=wanted, size=8)
    tokenizer = _tokenizer(tmp_path)
    picks = torch.arange(len(bank))
    texts = tokenizer.batch_decode(
        captions.draw(bank, picks, torch.Generator().manual_seed(0)), skip_special_tokens=True
    )
    seen = {"empty": 0, "unnamed": 0, "view": 0}
    for i, text in enumerate(texts):
        if not text:
            seen["empty"] += 1
            continue
        name, color = list(OBJECTS)[bank.objects[i]], list(COLORS)[bank.colors[i]]
        assert name in text
        assert "striped" in text
        if color not in text:
            seen["unnamed"] += 1
            assert color in natural_colors(name, "striped")
        assert not any(other in text for other in COLORS if other != color)
        view = text.partition(",")[2].strip()
        if view:
            seen["view"] += 1
            assert (view == OVERHEAD) == (bank.elevation_deg[i] > 48)
        if view in VIEWS and view not in ("front view", "back view"):
            away = (bank.azimuth_deg[i] - 45 * VIEWS.index(view) + 180) % 360 - 180
            assert abs(away) <= 22.5
        if view in ("front view", "back view"):
            away = (bank.azimuth_deg[i] - (180 if view == "back view" else 0) + 180) % 360 - 180
            assert abs(away) <= 45
    n = len(texts)
    assert 0.05 < seen["empty"] / n < 0.2
    assert 0.05 < seen["unnamed"] / n < 0.5
    assert seen["view"] / n > 0.6


def test_hues_match_the_colour_wheel() -> None:
    images = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]])[:, :, None, None]
    hue, chroma = train_autoencoder.hues(images)
    assert hue.flatten()[:4].remainder(360).tolist() == pytest.approx([0, 60, 120, 240], abs=1e-4)
    assert chroma.flatten().tolist() == [1, 1, 1, 1, 0]


def test_hue_sine_of_rotated_hues() -> None:
    """At multiples of 60 degrees, where the hexagon of HSV and the circle of the chroma plane agree."""
    turned = torch.tensor([colorsys.hsv_to_rgb(k / 6, 0.8, 0.9) for k in (3, 2, 1, 2)])[:, :, None, None]
    images = torch.tensor([colorsys.hsv_to_rgb(2 / 6, s, 0.9) for s in (0.6, 0.9, 0.6, 0.1)])[:, :, None, None]
    found = train_autoencoder.hue_sine(turned, images).flatten()
    expected = [math.sin(math.pi / 3 * (2 - k)) for k in (3, 2, 1)]
    assert found.tolist() == pytest.approx([*expected, 0], abs=1e-5)


def test_degrade_changes_the_first_quarter() -> None:
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    spoilt = train_autoencoder.degrade(images, torch.Generator().manual_seed(1))
    assert torch.equal(spoilt[4:], images[4:])
    assert (F.avg_pool2d(spoilt[:2], 8) - F.avg_pool2d(images[:2], 8)).abs().max() < 0.1
    assert (spoilt[:2].diff(dim=-1).abs().mean() < 0.7 * images[:2].diff(dim=-1).abs().mean()).item()
    for mixed, own, other in zip(spoilt[2:4], images[2:4], images[4:6], strict=True):
        share = ((mixed - other) / (own - other)).median()
        torch.testing.assert_close(mixed, share * own + (1 - share) * other, atol=1e-4, rtol=0)


def test_schedule_warms_up_and_follows_a_cosine() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    rates = []
    for _ in schedule(optimizer, 100, Clock(), 1e6, warmup=10, floor=0.1):
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.2, rel=0.01)
    assert rates[50] == pytest.approx(2 * (0.1 + 0.9 * 0.5), rel=0.01)
    assert rates[-1] == pytest.approx(0.2, rel=0.02)


def test_schedule_stops_a_group_at_its_share() -> None:
    whole, part = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [whole]}, {"params": [part], "until": 0.5}], lr=2.0)
    rates, finished = [], []
    for _ in schedule(optimizer, 100, Clock(), 1e6, warmup=1, floor=0.1):
        rates.append(optimizer.param_groups[1]["lr"])
        finished.append(optimizer.param_groups[1]["finished"])
    assert rates[25] == pytest.approx(2 * (0.1 + 0.9 * 0.5), rel=0.01)
    assert all(rate > 0 for rate in rates[:50])
    assert rates[50:] == [0.0] * 50
    assert finished == [False] * 50 + [True] * 50
    assert optimizer.param_groups[0]["lr"] > 0


def test_one_gradient_collects_every_gradient() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 1)).to(
        memory_format=torch.channels_last
    )
    images = torch.rand(2, 3, 8, 8)
    expected = torch.autograd.grad(network(images).square().sum(), list(network.parameters()))
    flat = one_gradient(list(network.parameters()))
    network(images).square().sum().backward()
    for weight, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)
        assert weight.grad.stride() == weight.stride()
    assert flat.norm().item() == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in expected)), rel=1e-5)


class SlowClock(Clock):
    """A tenth of the time passes at every reading."""

    looks = -1

    def __call__(self) -> float:
        self.looks += 1
        return 1.0 * self.looks


def test_schedule_decays_when_time_runs_out(capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = [optimizer.param_groups[0]["lr"] for _ in schedule(optimizer, 1000, SlowClock(), 10.0, warmup=1)]
    assert len(rates) == 9
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.02 + 0.98 * (1 + math.cos(0.9 * math.pi)) / 2)
    assert "9 of 1000" in capsys.readouterr().out


def test_train_judge_saves_a_judge_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_judge.main(tmp_path, steps=2, device="cpu", smoke=True)
    judge = Judge.load(tmp_path, "cpu")
    assert judge.classes == train_judge.CLASSES
    assert judge.azimuth_accuracy.keys() <= set(list(OBJECTS)[:2])
    assert "128 held-out renders" in capsys.readouterr().out


def test_shipped_judge_has_the_classes_of_the_world() -> None:
    assert Judge.load(JUDGE, "cpu").classes == train_judge.CLASSES
