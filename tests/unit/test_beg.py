"""BEG against an independent computation in numpy, and its place in the loop."""

import numpy as np
import pytest
import torch
from fakes import AnalyticPrior, draw

from segdream_cli.config import Config, OptimConfig
from segdream_cli.errors import Diverged
from segdream_cli.optimize.adam import adam_step, build_optimizers, learning_rates
from segdream_cli.optimize.batch import Batch
from segdream_cli.optimize.beg import equalize, is_bright, is_due
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.optimize.state import AssetState
from segdream_cli.splats import GROUPS
from segdream_cli.splats.gaussians import Gaussians, stack

COLORS = ("sh0", "shN")


def brightness(views: np.ndarray, quantile: float) -> float:
    """Of an asset, from its views [v, h, w, 3], one at a time."""
    found = []
    for view in views:
        means = view.mean(-1)
        shown = means[means > 0]
        found.append(np.quantile(shown, quantile) if shown.size else 0.0)
    return float(np.quantile(found, quantile))


@pytest.mark.parametrize("quantile", [0.3, 0.85])
def test_is_bright_compares_quantiles_of_the_lit_pixels(quantile: float) -> None:
    views = draw(12, 6, 5, 3).clamp_min(0)  # 3 assets; pixels of mean 0 are outside the object
    views[1] = 0  # an empty view
    views[8:] = 0  # an empty asset
    expected = [brightness(part, quantile) for part in views.numpy().reshape(3, 4, 6, 5, 3)]
    assert expected[2] == 0 < min(expected[:2])
    for threshold in (*expected, np.mean(expected[:2])):
        for nudge in (-1e-9, 1e-9):
            config = OptimConfig(beg_quantile=quantile, beg_threshold=max(0.0, threshold + nudge))
            assert is_bright(views, 3, config).tolist() == [value > config.beg_threshold for value in expected]


def test_is_due_in_the_published_iterations() -> None:
    config = Config().set({"optim.beg": True})
    due = [step for step in range(1, 5001) if is_due(step, config.optim)]
    assert due == list(range(1001, 4500))
    assert [step for step in range(1, 51) if is_due(step, config.with_steps(50).optim)] == list(range(11, 45))
    assert not any(is_due(step, OptimConfig()) for step in due)


def gaussians(n: int, seed: int) -> Gaussians:
    shapes = {"means": (n, 3), "quats": (n, 4), "log_scales": (n, 3), "opacity_logits": (n,), "sh0": (n, 3)}
    return Gaussians({name: draw(*shape, seed=seed) for name, shape in {**shapes, "shN": (n, 3, 3)}.items()})


def test_equalize_around_adam_equals_numpy() -> None:
    """Three steps of two assets: the first is bright in step 2, the second never."""
    config = OptimConfig(means_lr=(0.1, 0.1), sh0_lr=(0.2, 0.2), shN_lr=(0.3, 0.3))
    sets = [gaussians(40, 1), gaussians(33, 2)]
    optimizers = [build_optimizers(each) for each in sets]
    values = [{name: each.params[name].detach().double().numpy().copy() for name in GROUPS} for each in sets]
    moments = [
        {name: [np.zeros_like(value), np.zeros_like(value), 0] for name, value in each.items()} for each in values
    ]
    rates = learning_rates(config, 1)
    for step, bright in enumerate([(False, False), (True, False), (False, False)]):
        stacked = stack(sets)
        for seed, name in enumerate(GROUPS):
            stacked.params[name].grad = draw(*stacked.params[name].shape, seed=10 * step + seed).float()
        with equalize(sets, optimizers, torch.tensor(bright), 0.7):
            adam_step(sets, optimizers, stacked, config, rates)
        for index, each in enumerate(values):
            for name in GROUPS:
                memory = moments[index][name]
                if bright[index] and name in COLORS:
                    each[name] *= 0.7
                    memory[:2] = np.zeros_like(each[name]), np.zeros_like(each[name])
                    continue
                gradient = stacked.params[name].grad[index, : len(each[name])].double().numpy()
                memory[0] = 0.9 * memory[0] + 0.1 * gradient
                memory[1] = 0.999 * memory[1] + 0.001 * gradient**2
                memory[2] += 1
                first, second = memory[0] / (1 - 0.9 ** memory[2]), memory[1] / (1 - 0.999 ** memory[2])
                each[name] -= rates[name] * first / (np.sqrt(second) + 1e-15)
    for each, expected, memory, optimizer in zip(sets, values, moments, optimizers, strict=True):
        for name in GROUPS:
            parameter = each.params[name]
            state = optimizer[name].state[parameter]
            np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(state["exp_avg"].numpy(), memory[name][0], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(state["exp_avg_sq"].numpy(), memory[name][1], rtol=1e-4, atol=1e-7)
            assert state["step"].item() == memory[name][2]
    assert moments[0]["sh0"][2] == 2
    assert moments[0]["means"][2] == 3


def test_equalize_may_come_before_any_color_step() -> None:
    sets = [gaussians(4, 1)]
    optimizers, stacked = [build_optimizers(sets[0])], stack(sets)
    stacked.params["sh0"].grad = torch.ones(1, 4, 3)
    before = sets[0].params["sh0"].detach().clone()
    with equalize(sets, optimizers, torch.tensor([True]), 0.5):
        adam_step(sets, optimizers, stacked, OptimConfig(), {"sh0": 0.1})
    assert torch.equal(sets[0].params["sh0"], 0.5 * before)


SETTINGS = {
    "optim.steps": 12, "init.shape": "sphere", "init.count": 40, "init.opacity": 0.9, "camera.batch": 2,
    "camera.image_size": 32, "camera.backgrounds": {"black": 1.0}, "densify.start": 0, "densify.every": 5,
    "densify.grad_threshold": 0.0, "densify.cap": 60, "densify.clone_scale": 0.08, "densify.prune_scale": 10.0,
    "optim.beg": True, "optim.beg_start": 2, "optim.beg_stop": 11, "optim.beg_threshold": 0.6,
}  # fmt: skip


class Whitening(AnalyticPrior):
    """Pulls every asset towards white, but those "of coal"."""

    def mean(self, text: str) -> torch.Tensor:
        value = -1.0 if "coal" in text else 3.0
        return torch.full(self.latent_shape, value if text else 0.0, dtype=torch.float64)


def build(prior: AnalyticPrior | None = None, *, queued: bool | None = None, **changes: object) -> Pipeline:
    overrides = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    return Pipeline(Config().set(overrides), prior or Whitening(), torch.device("cpu"), queued=queued)


def white(pipeline: Pipeline, prompt: str, *, gray: float = 0.95) -> AssetState:
    asset = pipeline.prepare(prompt, 3)
    with torch.no_grad():
        asset.gaussians.params["sh0"].fill_((gray - 0.5) / 0.28209479177387814)
    return asset


@pytest.mark.parametrize("queued", [False, True])
def test_bright_assets_fade_and_their_neighbours_in_the_batch_do_not(queued: bool) -> None:
    pipeline = build(queued=queued)
    bright, dark = white(pipeline, "a cube"), white(pipeline, "a lump of coal", gray=0.2)
    run = pipeline.run([bright, dark])
    next(run)
    next(run)
    before = [each.gaussians.params["sh0"].detach().clone() for each in (bright, dark)]
    next(run)
    assert torch.equal(bright.gaussians.params["sh0"], 0.8 * before[0])
    assert not torch.allclose(dark.gaussians.params["sh0"], 0.8 * before[1], rtol=1e-2)
    states = [each.optimizers["sh0"].state[each.gaussians.params["sh0"]] for each in (bright, dark)]
    assert not states[0]["exp_avg"].any()
    assert states[1]["exp_avg"].any()
    assert [state["step"].item() for state in states] == [2, 3]


def test_step_that_turns_out_nonfinite_fades_nothing() -> None:
    """The step is queued: its gradient is checked after the update."""

    class Breaking(Whitening):
        broken = False

        def predict_noise(self, latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            noise = super().predict_noise(latents, timesteps, text)
            return noise * torch.nan if self.broken else noise

    prior = Breaking()
    pipeline = build(prior, queued=True)
    asset = white(pipeline, "a cube")
    run = pipeline.run([asset])
    next(run)
    next(run)
    before = {name: value.clone() for name, value in asset.tensors().items()}
    prior.broken = True
    with pytest.raises(Diverged):
        list(run)
    assert all(torch.equal(value, before[name]) for name, value in asset.tensors().items())


def test_assets_of_a_batch_equal_their_solo_runs() -> None:
    pipeline = build()
    prompts = ("a cube", "a lump of coal")
    batch, solo = ([white(pipeline, prompt) for prompt in prompts] for _ in range(2))
    list(pipeline.run(batch))
    for one, other in zip(batch, solo, strict=True):
        list(pipeline.run([other]))
        for name, value in one.tensors().items():
            torch.testing.assert_close(value, other.tensors()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["sctd", "sds"])
@pytest.mark.parametrize("stop", [2, 5, 8])
def test_run_with_beg_resumes_to_the_same_bits(method: str, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    faded = []
    update = Batch.update

    def watch(batch: Batch, stacked: Gaussians, rendering: object, bright: torch.Tensor | None = None) -> None:
        faded.append(bright is not None and bool(bright))
        update(batch, stacked, rendering, bright)  # type: ignore[arg-type]

    monkeypatch.setattr(Batch, "update", watch)
    pipeline = build(distill__method=method)
    whole, interrupted = white(pipeline, "a cube"), white(pipeline, "a cube")
    list(pipeline.run([whole]))
    assert True in faded
    run = pipeline.run([interrupted])
    for _ in range(stop):
        next(run)
    restored = pipeline.restore(interrupted.tensors(), "a cube", 3)
    list(pipeline.run([restored]))
    expected = whole.tensors()
    assert all(torch.equal(value, expected[name]) for name, value in restored.tensors().items())


def test_beg_without_bright_assets_keeps_the_bits() -> None:
    runs = []
    for changes in ({"optim__beg": False}, {"optim__beg_threshold": 1e9}):
        pipeline = build(**changes)
        asset = white(pipeline, "a cube")
        list(pipeline.run([asset]))
        runs.append(asset.tensors())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
