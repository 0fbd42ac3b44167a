"""The optimisation loop on an analytic prior, small enough for a few milliseconds per step."""

import dataclasses
import math

import pytest
import torch
from fakes import AnalyticPrior

from segdream_cli.config import Config
from segdream_cli.distill import METHODS
from segdream_cli.distill.method import Gradient
from segdream_cli.errors import Diverged, OutOfMemory, UsageProblem
from segdream_cli.optimize import batch, losses, pipeline
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.optimize.report import HostCopy
from segdream_cli.render.cameras import frame_sphere, turntable_azimuths
from segdream_cli.runs.run_dir import RunDir, RunRecord
from segdream_cli.splats import GROUPS, SH_C0
from segdream_cli.util import memory

CPU = torch.device("cpu")
SMALL = {
    "optim.steps": 10,
    "init.shape": "sphere",
    "init.count": 40,
    "camera.batch": 2,
    "camera.image_size": 32,
    "distill.warmup_steps": 3,
    "densify.start": 0,
    "densify.every": 3,
    "densify.stop": 9,
    "densify.grad_threshold": 0.0,
    "densify.clone_scale": 0.08,
    "densify.cap": 70,
    "densify.prune_scale": 10.0,
    "densify.reset_every": 4,
    "optim.opacity_lr": (0.01, 0.01),
}


def build(prior=None, *, queued=None, **settings):
    overrides = SMALL | {key.replace("__", "."): value for key, value in settings.items()}
    return Pipeline(Config().set(overrides), prior or AnalyticPrior(), CPU, queued=queued)


def queueing(*arguments, **settings):
    """As on CUDA: the next step checks whether a gradient was finite."""
    return build(*arguments, queued=True, **settings)


def advance(pipe, assets, steps):
    """The reports of the next steps."""
    run = pipe.run(assets)
    return [next(run) for _ in range(steps)]


def values(asset):
    return {name: value.clone() for name, value in asset.tensors().items()}


def check_same(one, other, equal=torch.equal):
    assert set(one) == set(other)
    different = [name for name in one if not equal(one[name], other[name])]
    assert not different


def close(one, other):
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-5)


def test_run_reports_every_step():
    pipe = build()
    asset = pipe.prepare("a cube", 0)
    seen = []
    for report in pipe.run([asset]):
        seen.append(report)
        assert report.step == asset.step == len(seen)
        assert report.n_gaussians == (len(asset.gaussians),)
        t, s, e = report.timesteps[0].values()
        assert 0 <= e <= s < t < 1000
        assert math.isfinite(report.grad_norm[0])
        assert report.grad_norm[0] > 0
        assert report.seconds > 0
        assert 0.05 < report.memory_gib < 100
    assert len(seen) == 10
    assert seen[2].n_gaussians[0] > 40  # densified after step 3
    assert max(report.n_gaussians[0] for report in seen) <= 70
    assert not list(pipe.run([asset]))  # a finished asset takes no more steps


def test_run_pulls_colors_towards_the_prior_mean():
    """An analytic prior whose images are all of one colour paints the Gaussians in that colour."""
    mean = torch.tensor([0.8, -0.6, 0.2, 0.4 / 3])[:, None, None].expand(4, 8, 8)
    prior = AnalyticPrior({"red": mean} | {f"red, {view}": mean for view in ("front view", "side view", "back view")})
    pipe = build(
        prior, optim__steps=60, densify__every=1000, densify__reset_every=0, loss__scale=0.0, loss__tv_rgb=0.0,
        loss__tv_disparity=0.0, distill__disparity_probability=0.0, distill__sctd__guidance_scale=1.0,
        camera__scale_noise=0.0,
        init__opacity=0.9, init__radius=0.8, init__count=200, densify__cap=200, optim__sh0_lr=(0.05, 0.05),
    )  # fmt: skip
    asset = pipe.prepare("red", 0)
    before = asset.gaussians.colors(torch.zeros(1, 3)).detach().mean(0)
    advance(pipe, [asset], 60)
    after = asset.gaussians.colors(torch.zeros(1, 3)).detach().mean(0)
    goal = torch.tensor([0.9, 0.2, 0.6])
    assert torch.equal((after - before).sign(), (goal - before).sign())
    assert after[0] - after[1] > 0.3


EVERY_DRAW = {
    "camera__backgrounds": {"gradient": 0.4, "random": 0.3, "white": 0.3},
    "camera__stratified": True,
    "camera__fill": (0.8, 1.0),
    "distill__sctd__fixed_noise": False,
    "distill__disparity_probability": 0.5,
    "loss__tv_rgb": 0.0,  # so that in some steps no gradient reaches some assets' colours
    "loss__opacity": 0.1,
    "loss__outside": 0.5,
    "init__sh_degree": 1,
    "init__radius": 1.1,
    "densify__views": "all",
    "optim__scale_range": (0.01, 0.3),
}


@pytest.mark.parametrize(
    "settings", [{}, {"distill__perp_neg": True}, EVERY_DRAW], ids=["guidance", "perp-neg", "every draw"]
)
def test_batch_equals_solo_runs(settings):
    """The number of Gaussians of each asset evolves on its own."""
    reports = compare_batch_with_solo_runs(densify__grad_threshold=1.0, **settings)
    assert len(set(reports[-1].n_gaussians)) > 1


@pytest.mark.parametrize("method", METHODS)
def test_batch_equals_solo_runs_with_every_method(method):
    compare_batch_with_solo_runs(distill__method=method)


def compare_batch_with_solo_runs(**settings):
    """The reports of a batch, each of whose assets must end as it does alone."""
    pipe = build(prior__sample_posterior=True, densify__cap=500, **settings)
    prompts = [("a cube", 1), ("a ball", 2), ("a cone", 3)]
    together = [pipe.prepare(*each) for each in prompts]
    reports = advance(pipe, together, 6)
    for place, each in enumerate(prompts):
        alone = pipe.prepare(*each)
        own = advance(pipe, [alone], 6)
        assert [report.timesteps[place] for report in reports] == [report.timesteps[0] for report in own]
        assert [report.n_gaussians[place] for report in reports] == [report.n_gaussians[0] for report in own]
        for one, other in zip(reports, own, strict=True):
            assert one.grad_norm[place] == pytest.approx(other.grad_norm[0], rel=1e-3)
        check_same(values(together[place]), values(alone), close)
    return reports


def test_prepare_depends_on_the_seed_alone():
    pipe = build()
    ends = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(ends))  # the global generator has no effect
        asset = pipe.prepare("a cube", seed)
        advance(pipe, [asset], 5)
        ends.append(values(asset))
    check_same(ends[0], ends[1])
    assert not torch.equal(ends[0]["gaussians.means"], ends[2]["gaussians.means"])


@pytest.mark.parametrize(
    "settings",
    [
        *({"distill__method": name} for name in METHODS),
        {"distill__sctd__fixed_noise": False},
        {"distill__perp_neg": True},
    ],
    ids=[*METHODS, "fresh noise", "perp-neg"],
)
@pytest.mark.parametrize("stop", [1, 5])
def test_restore_resumes_to_the_same_bits(settings, stop):
    """Across clones, splits and a reset, with every generator in use."""
    pipe = build(init__color_noise=0.05, camera__backgrounds={"gradient": 0.5, "random": 0.5}, **settings)
    whole = pipe.prepare("a cube", 3)
    first = advance(pipe, [whole], stop)
    tensors = whole.tensors()
    other = build(init__color_noise=0.05, camera__backgrounds={"gradient": 0.5, "random": 0.5}, **settings)
    restored = other.restore(tensors, "a cube", 3)
    rest = list(pipe.run([whole]))  # on the original first: the two must not share memory
    again = list(other.run([restored]))
    assert len(first) + len(rest) == len(first) + len(again) == 10
    for one, two in zip(rest, again, strict=True):
        fields = ("step", "timesteps", "grad_norm", "n_gaussians")
        assert [getattr(one, name) for name in fields] == [getattr(two, name) for name in fields]
    check_same(values(whole), values(restored))


def test_restore_from_a_run_folder_ends_with_the_same_bits(tmp_path):
    pipe = build()
    whole = pipe.prepare("a cube", 3, "fog")
    list(pipe.run([whole]))
    run = RunDir(tmp_path / "cube.run")
    run.create(
        RunRecord(
            prompt="a cube", seed=3, negative_prompt="fog", output="cube.ply", quality="standard",
            config=pipe.config.flat(), prior={"name": "x", "digest": "y"}, device="cpu", versions={},
        )
    )  # fmt: skip
    asset = pipe.prepare("a cube", 3, "fog")
    advance(pipe, [asset], 5)
    run.save(asset)
    del asset
    record = run.record()
    fresh = Pipeline(run.config(), AnalyticPrior(), CPU)
    restored = fresh.restore(run.load(), record.prompt, record.seed, record.negative_prompt)
    assert restored.step == run.step() == 5
    list(fresh.run([restored]))
    check_same(values(whole), values(restored))


def test_restore_names_a_missing_tensor():
    pipe = build()
    tensors = pipe.prepare("a cube", 0).tensors()
    for name in ("gaussians.sh0", "generator.times", "noise", "step", "stats.count"):
        with pytest.raises(KeyError, match=name):
            pipe.restore({key: value for key, value in tensors.items() if key != name}, "a cube", 0)


def captured_loss(monkeypatch, asset_of, prior=None, rgb=None, **settings):
    """Gradients of the parameters after one step in which the method gives none but, if asked, `rgb`."""
    pipe = build(prior, densify__every=1000, densify__reset_every=0, **settings)
    monkeypatch.setattr(
        pipe.method, "gradient", lambda prior, schedule, latents, *_: Gradient(torch.zeros_like(latents), rgb)
    )
    asset = asset_of(pipe)
    seen = {}

    def keep(gaussians, limit):
        for name, value in gaussians.params.items():
            seen[name] = None if value.grad is None else value.grad[0].clone()
        return torch.zeros(1)

    monkeypatch.setattr(batch, "clip_gradients", keep)
    before = {name: value.detach().clone() for name, value in asset.gaussians.params.items()}
    advance(pipe, [asset], 1)
    return before, seen


OFF = {"loss__tv_rgb": 0.0, "loss__tv_disparity": 0.0, "loss__scale": 0.0}


def test_regularizers_have_their_analytic_gradients(monkeypatch):
    weights = {"loss__scale": 0.7, "loss__opacity": 0.6, "loss__outside": 0.5}
    before, grad = captured_loss(
        monkeypatch, lambda pipe: pipe.prepare("a cube", 0), init__radius=1.5, init__shape="box", **(OFF | weights)
    )
    n = len(before["means"])
    torch.testing.assert_close(grad["log_scales"], 0.7 * before["log_scales"].exp() / (3 * n))
    opacity = before["opacity_logits"].sigmoid()
    ramp = 1 / 3  # first of three warm-up steps
    torch.testing.assert_close(grad["opacity_logits"], 0.6 * ramp * opacity * (1 - opacity) / n)
    length = before["means"].norm(dim=-1, keepdim=True)
    assert (length > 1).any()
    assert (length < 1).any()
    expected = torch.where(length > 1, 0.5 * before["means"] / length / n, 0)
    torch.testing.assert_close(grad["means"], expected)


def test_regularizers_without_weights_have_no_gradient(monkeypatch):
    _, grad = captured_loss(monkeypatch, lambda pipe: pipe.prepare("a cube", 0), **OFF)
    for name, value in grad.items():
        assert value is None or not value.any(), name


@pytest.mark.parametrize("name", ["tv_rgb", "tv_disparity"])
def test_regularizers_apply_total_variation_to_color_or_disparity(monkeypatch, name):
    shapes = []
    real = losses.total_variation
    monkeypatch.setattr(pipeline.losses, "total_variation", lambda image: shapes.append(image.shape) or real(image))
    _, grad = captured_loss(
        monkeypatch, lambda pipe: pipe.prepare("a cube", 0), **(OFF | {f"loss__{name}": 2.0}), init__opacity=0.8
    )
    assert shapes == [(2, 32, 32, 3 if name == "tv_rgb" else 1)]
    assert grad["means"].abs().sum() > 0
    assert (grad["sh0"] is not None and bool(grad["sh0"].any())) is (name == "tv_rgb")


def rgb_pull(monkeypatch, rgb, prior=None, **settings):
    """sh0, and its gradient, after a step whose method asks for the gradient `rgb` of the colours."""
    settings |= OFF | {"camera__backgrounds": {"black": 1.0}}
    before, grad = captured_loss(monkeypatch, lambda pipe: pipe.prepare("a cube", 0), prior, rgb, **settings)
    return before["sh0"], grad["sh0"]


def test_rgb_gradient_reaches_the_colours_of_the_renders(monkeypatch):
    """A channel is linear in its base colours, x = sum_i w_i (0.5 + C0 sh0_i): sum_i g_i (0.5 / C0 + sh0_i) is g.x."""
    pull, prior = torch.zeros(2, 3, 32, 32), Watching()
    pull[:, 0, :20, 12:] = 0.3
    plain = {"distill__flip_probability": 0.0, "distill__disparity_probability": 0.0}
    sh0, grad = rgb_pull(monkeypatch, pull, prior, **plain)
    torch.testing.assert_close((grad * (0.5 / SH_C0 + sh0)).sum(), (prior.images[0] * pull).sum())
    assert grad[:, 0].abs().sum() > 0
    assert not grad[:, 1:].any()


def test_rgb_gradient_is_mirrored_with_the_images_and_ignores_disparity(monkeypatch):
    pull = torch.zeros(2, 3, 32, 32)
    pull[:, 0, :20, 12:] = 0.3
    plain = {"distill__flip_probability": 0.0, "distill__disparity_probability": 0.0}
    _, expected = rgb_pull(monkeypatch, pull.flip(-1), **plain)
    _, unflipped = rgb_pull(monkeypatch, pull, **plain)
    _, flipped = rgb_pull(monkeypatch, pull, **(plain | {"distill__flip_probability": 1.0}))
    _, shown_as_disparity = rgb_pull(monkeypatch, pull, **dict.fromkeys(plain, 1.0))
    torch.testing.assert_close(flipped, expected)
    torch.testing.assert_close(shown_as_disparity, expected)
    assert not torch.allclose(unflipped, expected)


class Watching(AnalyticPrior):
    """Keeps the images that it receives."""

    def __init__(self):
        super().__init__()
        self.images = []

    def encode_image(self, rgb, noise):
        self.images.append(rgb.detach().clone())
        return super().encode_image(rgb, noise)


def first_images(**settings):
    prior = Watching()
    pipe = build(prior, camera__backgrounds={"gradient": 1.0}, **settings)
    advance(pipe, [pipe.prepare("a cube", 0)], 1)
    return prior.images[0]


def test_flip_mirrors_the_images():
    plain = first_images(distill__flip_probability=0.0, distill__disparity_probability=0.0)
    flipped = first_images(distill__flip_probability=1.0, distill__disparity_probability=0.0)
    assert plain.shape == (2, 3, 32, 32)
    assert torch.equal(flipped, plain.flip(-1))
    assert not torch.equal(flipped, plain)


def test_disparity_steps_encode_gray_depth():
    shown = first_images(distill__flip_probability=0.0, distill__disparity_probability=1.0, init__opacity=0.9)
    assert shown.shape == (2, 3, 32, 32)
    assert torch.equal(shown[:, 0], shown[:, 1])
    assert torch.equal(shown[:, 0], shown[:, 2])
    assert 0 <= shown.min() < 0.2 < 0.8 < shown.max() <= 1
    assert shown[:, :, 12:20, 12:20].mean() > shown[:, :, :4, :4].mean()


@pytest.mark.slow
def test_flip_probability_sets_the_share_of_steps():
    prior, plain = Watching(), Watching()
    for seen, probability in ((prior, 0.25), (plain, 0.0)):
        still = {f"optim__{name}_lr": (1e-12, 1e-12) for name in ("means", "quat", "scale", "opacity", "sh0")}
        pipe = build(
            seen, optim__steps=100, distill__flip_probability=probability, distill__disparity_probability=0.0,
            distill__method="sds", camera__batch=1, densify__every=1000, densify__reset_every=0,
            camera__scale_noise=0.0, **still,
        )  # fmt: skip
        advance(pipe, [pipe.prepare("a cube", 0)], 100)
    flipped = [not torch.allclose(one, two, atol=1e-4) for one, two in zip(prior.images, plain.images, strict=True)]
    assert sum(flipped) == pytest.approx(25, abs=4 * math.sqrt(100 * 0.25 * 0.75))


class Breaking(AnalyticPrior):
    """Predicts noise that is not a number from the `after`-th call on."""

    def __init__(self, after):
        super().__init__()
        self.calls, self.after = 0, after

    def predict_noise(self, latents, timesteps, text):
        self.calls += 1
        noise = super().predict_noise(latents, timesteps, text)
        return noise * torch.nan if self.calls > self.after else noise


@pytest.mark.parametrize(("make", "reports"), [(build, 4), (queueing, 5)])
def test_diverged_leaves_the_parameters_unchanged(make, reports):
    counting = Breaking(10**9)
    pipe = make(counting)
    advance(pipe, [pipe.prepare("a cube", 0)], 4)
    pipe = make(Breaking(counting.calls))
    asset = pipe.prepare("a cube", 0)
    run = pipe.run([asset])
    for _ in range(4):
        next(run)
    before = values(asset)
    seen = []
    with pytest.raises(Diverged, match=r"'a cube' is not finite in step 5 \(t=\d+, s=\d+, e=\d+\)") as caught:
        seen.extend(run)
    assert 4 + len(seen) == reports
    assert caught.value.exit_code == 7
    assert "--set" in caught.value.hint
    check_same(values(asset), before)
    assert torch.isfinite(before["gaussians.means"]).all()


def before_it_breaks(step, **settings):
    """A pipeline that queues and breaks in a step, and an asset before that."""
    counting = Breaking(10**9)
    pipe = queueing(counting, **settings)
    advance(pipe, [pipe.prepare("a cube", 0)], step - 1)
    pipe = queueing(Breaking(counting.calls), **settings)
    asset = pipe.prepare("a cube", 0)
    advance(pipe, [asset], step - 1)
    return pipe, asset


@pytest.mark.parametrize("step", [4, 6, 10])
def test_queued_step_is_checked_before_density_control_and_at_the_end(step):
    """The fourth resets opacities, the sixth splits, the tenth is the last."""
    pipe, asset = before_it_breaks(step)
    before = values(asset)
    with pytest.raises(Diverged, match=f"in step {step} "):
        list(pipe.run([asset]))
    check_same(values(asset), before)


@pytest.mark.parametrize("step", [1, 4])
def test_nonfinite_step_does_not_clamp_scales(step):
    """Those of the start are outside it, and after the third step those of halves."""
    outside = {"optim__scale_range": (0.15, 0.3), "densify__clone_scale": 0.05, "densify__reset_every": 0}
    pipe, asset = before_it_breaks(step, **outside)
    before = values(asset)
    assert asset.gaussians.scales.min() < 0.15
    with pytest.raises(Diverged, match=f"in step {step} "):
        list(pipe.run([asset]))
    check_same(values(asset), before)


def test_out_of_memory_after_a_nonfinite_step_rolls_back_both(monkeypatch):
    pipe, asset = before_it_breaks(5)
    before = values(asset)
    run = pipe.run([asset])
    assert next(run).first_nonfinite() == 0

    def render(*_, **__):
        raise MemoryError

    monkeypatch.setattr(pipeline, "render", render)
    with pytest.raises(OutOfMemory):
        next(run)
    check_same(values(asset), before)


def test_queued_gradient_is_checked_after_the_next_render(monkeypatch):
    """Which the rasteriser has waited for."""
    order, render, tolist = [], pipeline.render, HostCopy.tolist
    monkeypatch.setattr(pipeline, "render", lambda *given, **named: order.append("render") or render(*given, **named))
    monkeypatch.setattr(HostCopy, "tolist", lambda numbers: order.append("look") or tolist(numbers))
    for make, expected in ((build, ["render", "look"]), (queueing, ["render", "render", "look"])):
        order.clear()
        pipe = make()
        advance(pipe, [pipe.prepare("a cube", 0)], 2)
        assert order[: len(expected)] == expected


def test_queued_steps_equal_waited_steps():
    """But for the rounding of another kernel of Adam."""
    ends = []
    for make in (build, queueing):
        pipe = make()
        assets = [pipe.prepare("a cube", 0), pipe.prepare("a ball", 1)]
        ends.append((advance(pipe, assets, 4), [values(asset) for asset in assets]))
    (one, waited), (other, queued) = ends
    assert [report.timesteps for report in one] == [report.timesteps for report in other]
    for found, expected in zip(queued, waited, strict=True):
        check_same(found, expected, close)


@pytest.mark.parametrize("make", [build, queueing])
def test_diverged_asset_leaves_the_others_as_if_alone(make):
    """The run names it and leaves all as they were before the step; without it the others end as they do alone."""
    pipe = make()
    assets = [pipe.prepare(*each) for each in (("a cube", 0), ("a ball", 1), ("a cone", 2))]
    alone = [pipe.prepare(*each) for each in (("a cube", 0), ("a cone", 2))]
    advance(pipe, assets, 4)
    with torch.no_grad():
        assets[1].embeddings.phrases.fill_(torch.nan)
    before = [values(asset) for asset in assets]
    with pytest.raises(Diverged, match="'a ball' is not finite in step 5") as caught:
        list(pipe.run(assets))
    assert caught.value.index == 1
    for asset, kept in zip(assets, before, strict=True):
        check_same(values(asset), kept)
    del assets[1]
    list(pipe.run(assets))
    for asset, expected in zip(assets, alone, strict=True):
        list(pipe.run([expected]))
        check_same(values(asset), values(expected), close)


class Greedy(AnalyticPrior):
    """Fails like an allocation."""

    def __init__(self, problem):
        super().__init__()
        self.problem = problem

    def predict_noise(self, latents, timesteps, text):
        raise self.problem


@pytest.mark.parametrize(
    ("assets", "batch", "hint"),
    [
        (5, 4, "--batch 2"),
        (1, 4, "--set camera.batch=2"),
        (1, 3, "--set camera.batch=1"),
        (1, 1, "--set camera.image_size=16"),
    ],
)
@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_peak_and_a_cheaper_setting(monkeypatch, assets, batch, hint, problem):
    monkeypatch.setattr(memory, "peak_memory_gib", lambda device: 12.34)
    pipe = build(Greedy(problem), camera__batch=batch)
    with pytest.raises(OutOfMemory, match=r"cpu does not have enough memory for a step.* 12\.3 GiB") as caught:
        advance(pipe, [pipe.prepare("a cube", seed) for seed in range(assets)], 1)
    assert caught.value.exit_code == 5
    assert caught.value.hint == hint


def test_out_of_memory_does_not_catch_other_errors():
    pipe = build(Greedy(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        advance(pipe, [pipe.prepare("a cube", 0)], 1)


def test_scale_range_clamps_scales():
    pipe = build(optim__scale_range=(0.05, 0.06), optim__scale_lr=(1.0, 1.0))
    asset = pipe.prepare("a cube", 0)
    advance(pipe, [asset], 3)
    scales = asset.gaussians.scales.detach()
    assert scales.min() >= 0.05 * (1 - 1e-6)
    assert scales.max() <= 0.06 * (1 + 1e-6)


def test_run_optimizes_higher_harmonics():
    pipe = build(init__sh_degree=1)
    asset = pipe.prepare("a cube", 0)
    advance(pipe, [asset], 4)
    assert asset.gaussians.params["shN"].detach().abs().sum() > 0
    restored = pipe.restore(asset.tensors(), "a cube", 0)
    advance(pipe, [asset], 3)
    advance(pipe, [restored], 3)
    check_same(values(asset), values(restored))


def test_render_shows_the_asset_in_the_middle():
    pipe = build()
    image = pipe.render(pipe.prepare("a cube", 0).gaussians, frame_sphere(turntable_azimuths(3), torch.zeros(3), 24))
    assert image.rgb.shape == (3, 24, 24, 3)
    assert not image.rgb.requires_grad
    assert image.alpha[:, 12, 12].min() > image.alpha[:, 0, 0].max()


def test_prepare_refuses_prompts_and_starts():
    pipe = build()
    with pytest.raises(UsageProblem, match="empty"):
        pipe.prepare("  ", 0)
    with pytest.raises(UsageProblem, match="no start 'none'"):
        build(init__shape="none").prepare("a cube", 0)


def test_embed_uses_the_prior_negative_prompt_by_default():
    prior = AnalyticPrior()
    pipe = build(prior)
    own, other = pipe.embed("a cube"), pipe.embed("a cube", "fog")
    torch.testing.assert_close(own.uncond.flatten(), prior.mean(prior.profile.negative_prompt).flatten())
    torch.testing.assert_close(other.uncond.flatten(), prior.mean("fog").flatten())
    assert not other.null.any()
    assert torch.equal(own.phrases, other.phrases)


def test_step_report_is_frozen():
    pipe = build()
    (report,) = advance(pipe, [pipe.prepare("a cube", 0)], 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.seconds = 9.0


def test_prepare_gives_every_group_an_optimizer():
    asset = build().prepare("a cube", 0)
    assert set(asset.optimizers) == set(asset.gaussians.params) == set(GROUPS)


def test_failed_step_can_be_repeated(monkeypatch):
    """Out of memory in step 3 leaves no trace: the resumed run equals an undisturbed one."""
    pipe = build()
    undisturbed = pipe.prepare("a cube", 0)
    advance(pipe, [undisturbed], 6)
    asset = pipe.prepare("a cube", 0)
    advance(pipe, [asset], 2)
    with monkeypatch.context() as patch:
        patch.setattr(pipe.prior, "predict_noise", Greedy(MemoryError()).predict_noise)
        with pytest.raises(OutOfMemory):
            advance(pipe, [asset], 1)
    advance(pipe, [asset], 4)
    check_same(values(undisturbed), values(asset))


def test_run_refuses_assets_at_different_steps():
    pipe = build()
    first, second = pipe.prepare("a cube", 0), pipe.prepare("a ball", 1)
    advance(pipe, [first], 1)
    with pytest.raises(ValueError, match="same step"):
        advance(pipe, [first, second], 1)
