"""The refinement as part of a run, on an analytic prior."""

import pytest
import torch
from fakes import AnalyticPrior
from test_pipeline import SMALL, advance, check_same, close, values

from segdream_cli.config import Config
from segdream_cli.errors import Diverged, OutOfMemory, UsageProblem
from segdream_cli.optimize import refinement
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.refine.losses import fit_loss
from segdream_cli.refine.repaint import repaint, sharpen
from segdream_cli.refine.views import round_cameras
from segdream_cli.render.view import render
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.splats.gaussians import Gaussians

CPU = torch.device("cpu")
ROUNDS = SMALL | {
    "optim.steps": 2,
    "refine.enabled": True,
    "refine.t0": [300, 200],
    "refine.steps": [3, 2],
    "refine.views": [5, 4],
    "refine.iterations": [3, 4],
    "refine.image_size": [0, 0],
    "refine.gaussians": [0, 60],
    "refine.fit_batch": 2,
}


def build(prior=None, *, queued=None, **settings):
    overrides = ROUNDS | {key.replace("__", "."): value for key, value in settings.items()}
    return Pipeline(Config().set(overrides), prior or AnalyticPrior(), CPU, queued=queued)


def queueing(*arguments, **settings):
    """As on CUDA: the next step checks whether a gradient was finite."""
    return build(*arguments, queued=True, **settings)


def test_run_refines_after_the_distillation():
    pipe = build()
    asset = pipe.prepare("a cube", 0)
    reports = list(pipe.run([asset]))
    assert [report.step for report in reports] == list(range(1, 10))
    assert [report.stage for report in reports] == 2 * ["distil"] + 3 * ["refine 1/2"] + 4 * ["refine 2/2"]
    assert [report.n_gaussians[0] for report in reports] == 5 * [40] + 4 * [60]
    assert reports[2].timesteps == ({"t0": 300},)
    assert all(report.grad_norm[0] > 0 for report in reports)
    assert pipe.config.last_step == 9


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("step", [0, 1, 2, 3, 5, 6, 9])
def test_unet_rows_are_those_that_the_prior_computed(scale, step):
    class Counting(AnalyticPrior):
        rows = 0

        def predict_noise(self, latents, timesteps, text):
            self.rows += len(latents)
            return super().predict_noise(latents, timesteps, text)

    prior = Counting()
    pipe = build(prior, distill__method="sds", refine__guidance_scale=scale)
    asset = pipe.prepare("a cube", 0)
    advance(pipe, [asset], step)
    assert pipe.unet_rows(asset) == prior.rows
    assert (prior.rows > 0) == (step > 0)


def test_disabled_refinement_leaves_the_distillation_as_it_is():
    pipe, plain = build(), build(refine__enabled=False)
    asset, expected = pipe.prepare("a cube", 0), plain.prepare("a cube", 0)
    assert len(list(plain.run([expected]))) == 2
    advance(pipe, [asset], 2)
    check_same(values(asset), values(expected))


@pytest.mark.parametrize("make", [build, queueing])
@pytest.mark.parametrize("step", [1, 2, 3, 5, 6, 8])
def test_resumed_run_equals_an_undisturbed_one(tmp_path, make, step):
    """Before, at the begin of, and inside a round."""
    pipe = make()
    undisturbed, asset = pipe.prepare("a cube", 0), pipe.prepare("a cube", 0)
    list(pipe.run([undisturbed]))
    advance(pipe, [asset], step)
    run = RunDir(tmp_path)
    run.save(asset)
    fresh = make()
    restored = fresh.restore(run.load(), "a cube", 0)
    list(fresh.run([restored]))
    check_same(values(undisturbed), values(restored))


def test_batch_equals_assets_alone():
    together, alone = build(), build()
    inputs = [("a cube", 0), ("a ball", 1), ("a cone", 2)]
    assets, expected = ([pipe.prepare(*each) for each in inputs] for pipe in (together, alone))
    assets[1].gaussians = Gaussians({name: value[:33] for name, value in assets[1].gaussians.params.items()})
    expected[1].gaussians = Gaussians({name: value[:33] for name, value in expected[1].gaussians.params.items()})
    for pair in (assets[1], expected[1]):
        fresh = together.prepare("a ball", 1, gaussians=pair.gaussians)
        pair.gaussians, pair.optimizers, pair.stats = fresh.gaussians, fresh.optimizers, fresh.stats
    list(together.run(assets))
    for asset, other in zip(assets, expected, strict=True):
        list(alone.run([other]))
        check_same(values(asset), values(other), close)


def test_fit_approaches_the_repainted_views():
    """The loss over all views of the round falls, and the targets stay those of its begin."""
    pipe = build(
        refine__t0=[600], refine__steps=[4], refine__views=[6], refine__iterations=[100], refine__image_size=[0],
        refine__gaussians=[0], refine__opacity_lr=0.1, refine__sh0_lr=0.3,
    )  # fmt: skip
    asset = pipe.prepare("a cube", 0)

    @torch.no_grad()
    def loss():
        cameras = round_cameras(pipe.config.refine, 0, torch.arange(6), 32)
        rendering = render(asset.gaussians, cameras)
        images = rendering.over(targets.backgrounds[:, None, None])
        pictures = (images, rendering.alpha, targets.images.float() / 255)
        return float(fit_loss(pipe.config.refine, *(part.permute(0, 3, 1, 2) for part in pictures)))

    run = pipe.run([asset])
    for _ in range(3):
        next(run)
    targets = asset.targets
    before = loss()
    list(run)
    assert asset.targets is targets
    assert loss() < 0.92 * before


class Flaky(AnalyticPrior):
    """Fails like an allocation while it repaints, as often as it is told to."""

    failures = 0

    def decode(self, latents):
        if self.failures:
            self.failures -= 1
            raise MemoryError
        return super().decode(latents)


def test_failed_begin_of_a_round_leaves_no_trace():
    prior = Flaky()
    pipe = build(prior)
    undisturbed, asset = pipe.prepare("a cube", 0), pipe.prepare("a cube", 0)
    list(pipe.run([undisturbed]))
    advance(pipe, [asset], 5)
    before = values(asset)
    prior.failures = 1
    with pytest.raises(OutOfMemory) as caught:
        advance(pipe, [asset], 1)
    assert caught.value.hint == "--set refine.fit_batch=1"
    check_same(values(asset), before)
    list(pipe.run([asset]))
    check_same(values(undisturbed), values(asset))


@pytest.mark.parametrize("make", [build, queueing])
def test_asset_that_diverges_in_a_round_leaves_the_others(make):
    pipe = make()
    assets = [pipe.prepare("a cube", 0), pipe.prepare("a ball", 1)]
    alone = pipe.prepare("a cube", 0)
    advance(pipe, assets, 4)
    with torch.no_grad():
        assets[1].gaussians.params["sh0"][0] = torch.nan
    with pytest.raises(Diverged, match=r"'a ball' is not finite in step 5 \(t0=300\)") as caught:
        list(pipe.run(assets))
    assert caught.value.index == 1
    list(pipe.run(assets[:1]))
    list(pipe.run([alone]))
    check_same(values(assets[0]), values(alone), close)


class Overflowing(AnalyticPrior):
    """Decodes the `bad`-th of its images to a value that is not finite, as in fp16."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def decode(self, latents):
        images = super().decode(latents)
        if 0 <= self.bad < len(images):
            images[self.bad, 1, 3, 4] = torch.nan
        self.bad -= len(images)
        return images


@pytest.mark.parametrize("make", [build, queueing])
def test_view_that_is_not_finite_is_no_target(make):
    """As bytes it would be black; the other asset goes on with the same bits."""
    pipe = make(Overflowing(7), refine__guidance_scale=6.0)
    assets = [pipe.prepare("a cube", 0), pipe.prepare("a ball", 1)]
    alone = pipe.prepare("a cube", 0)
    with pytest.raises(Diverged, match="a view of 'a ball' that the prior repainted is not finite") as caught:
        list(pipe.run(assets))
    assert caught.value.index == 1
    assert "--set refine.guidance_scale=3" in caught.value.hint
    assert [asset.step for asset in assets] == [2, 2]
    assert assets[1].targets is None
    list(pipe.run(assets[:1]))
    list(pipe.run([alone]))
    check_same(values(assets[0]), values(alone), close)


def test_refinement_of_given_gaussians_needs_no_distillation():
    pipe = build(optim__steps=0)
    given = build().prepare("a cube", 3).gaussians
    before = {name: value.detach().clone() for name, value in given.params.items()}
    asset = pipe.prepare("a cube", 0, gaussians=given)
    reports = list(pipe.run([asset]))
    assert [report.stage for report in reports] == 3 * ["refine 1/2"] + 4 * ["refine 2/2"]
    assert not torch.equal(asset.gaussians.means[:40], given.means)
    for name, value in given.params.items():
        assert torch.equal(value, before[name]), name


def test_round_keeps_coarse_views_of_the_given_asset():
    """By the mean over squares of numpy, from a copy of the asset that was given; a checkpoint holds them."""
    pipe = build(AnalyticPrior(image_size=64), optim__steps=0)
    asset = pipe.prepare("a cube", 0)
    asset.anchor = asset.gaussians.to(CPU)
    advance(pipe, [asset], 1)
    targets = asset.targets
    cameras = round_cameras(pipe.config.refine, 0, torch.arange(5), 64)
    with torch.no_grad():
        images = render(asset.anchor, cameras).over(targets.backgrounds[:, None, None]).clamp(0, 1)
    expected = images.numpy().reshape(5, 32, 2, 32, 2, 3).mean((2, 4))
    assert targets.anchors.shape == (5, 32, 32, 3)
    assert abs(targets.anchors.numpy() / 255 - expected).max() <= 0.5 / 255 + 1e-6
    assert torch.equal(asset.tensors()["refine.anchors"], targets.anchors)
    alone = pipe.prepare("a cube", 0)
    advance(pipe, [alone], 1)
    assert alone.targets.anchors is None
    assert torch.equal(alone.targets.images, targets.images)


def test_anchor_keeps_the_views_near_the_given_ones():
    """The images change less with it; with a weight of 0 all is as if there were none."""
    changes, bits = {}, {}
    for weight in (None, 0.0, 20.0):
        settings = {"refine__iterations": [40, 1], "refine__gaussians": [0, 0], "refine__anchor": weight or 0.0}
        pipe = build(optim__steps=0, **settings)
        asset = pipe.prepare("a cube", 0)
        given = asset.gaussians.to(CPU)
        asset.anchor = None if weight is None else given
        list(pipe.run([asset]))
        cameras = round_cameras(pipe.config.refine, 0, torch.arange(5), 32)
        before, after = (pipe.render(each, cameras).over(torch.ones(3)) for each in (given, asset.gaussians))
        changes[weight], bits[weight] = float((before - after).abs().mean()), values(asset)
    assert changes[20.0] < 0.5 * changes[0.0]
    check_same(bits[None], bits[0.0])


def test_out_of_memory_in_a_fit_can_be_repeated(monkeypatch):
    """The asset keeps the targets of the round, which are not repainted again."""

    def fail(*_):
        raise MemoryError

    pipe = build()
    undisturbed, asset = pipe.prepare("a cube", 0), pipe.prepare("a cube", 0)
    list(pipe.run([undisturbed]))
    with monkeypatch.context() as patch:
        patch.setattr("segdream_cli.optimize.refinement.fit_loss", fail)
        with pytest.raises(OutOfMemory):
            list(pipe.run([asset]))
    assert asset.step == 2
    list(pipe.run([asset]))
    check_same(values(undisturbed), values(asset))


def test_fit_starts_from_small_gaussians_and_the_views_of_the_large_ones():
    plain, small = build(), build(refine__start_scale=0.02, refine__scale_lr=0.0, refine__means_lr=0.0)
    large, asset = plain.prepare("a cube", 0), small.prepare("a cube", 0)
    advance(plain, [large], 3)
    advance(small, [asset], 3)
    assert torch.equal(asset.targets.images, large.targets.images)
    assert large.gaussians.scales.max() > 0.03
    means = asset.gaussians.params["means"].detach()
    distances = torch.cdist(means, means).sort(1).values[:, 1:4]  # to the three nearest
    limits = (distances.square().mean(1).sqrt() / 2).clamp_min(0.02)
    longest = asset.gaussians.scales.amax(1)
    assert (longest < limits + 1e-5).all()
    assert (longest > limits - 1e-5).any()


def test_few_gaussians_do_not_shrink_to_specks():
    """On a sphere they still cover it: no view of it shows its background through a gap."""
    n = 400
    height = 1 - (torch.arange(n) + 0.5) * 2 / n
    turn = torch.arange(n) * torch.pi * (3 - 5**0.5)
    flat = (1 - height**2).sqrt()
    still = {f"refine__{name}_lr": 0.0 for name in ("scale", "means", "opacity")}
    pipe = build(optim__steps=0, densify__cap=n, refine__start_scale=0.02, **still)
    given = Gaussians(
        {
            "means": 0.9 * torch.stack([flat * turn.cos(), height, flat * turn.sin()], 1),
            "quats": torch.tensor([1.0, 0, 0, 0]).repeat(n, 1),
            "log_scales": torch.full((n, 3), 0.3).log(),
            "opacity_logits": torch.full((n,), 3.0),
            "sh0": torch.zeros(n, 3),
            "shN": torch.zeros(n, 0, 3),
        }
    )
    asset = pipe.prepare("a ball", 0, gaussians=given)
    advance(pipe, [asset], 1)
    assert 0.05 < asset.gaussians.scales.min() < 0.1  # about half the spacing of the sphere's points
    cameras = round_cameras(pipe.config.refine, 0, torch.arange(4), 64)
    center = pipe.render(asset.gaussians, cameras).alpha[:, 22:42, 22:42]
    assert center.min() > 0.9


def test_shared_noise_is_one_for_all_views(monkeypatch):
    seen = []

    def keep(prior, schedule, images, noise, *_):
        seen.append(noise)
        return images

    monkeypatch.setattr("segdream_cli.optimize.refinement.repaint", keep)
    for shared in (True, False):
        pipe = build(refine__share_noise=shared)
        advance(pipe, [pipe.prepare("a cube", 0)], 3)
    (one, several) = seen
    assert (one == one[:1]).all()
    assert not (several == several[:1]).all()


def test_pipeline_refuses_views_that_do_not_divide_into_latents():
    with pytest.raises(UsageProblem, match=r"image_size can't be 30: .* 4 pixels") as caught:
        build(refine__image_size=[0, 30])
    assert caught.value.hint == "--set refine.image_size=[0,32]"


@pytest.mark.parametrize("size", [1, 4, 8])
def test_pipeline_refuses_views_smaller_than_the_window_of_ssim(size):
    with pytest.raises(UsageProblem, match=rf"image_size can't be {size}: .* a view needs 11") as caught:
        build(refine__image_size=[size, size])
    assert caught.value.hint == "--set refine.image_size=[12,12]"
    pipe = build(refine__image_size=[12, 12])
    assert len(list(pipe.run([pipe.prepare("a cube", 0)]))) == 9


def test_step_renders_no_view_of_a_round_twice():
    """Views per step beyond those of the round change nothing."""
    results = []
    for count in (4, 1000):
        pipe = build(refine__fit_batch=count, refine__views=[4, 4])
        asset = pipe.prepare("a cube", 0)
        list(pipe.run([asset]))
        results.append(values(asset))
    check_same(*results)


def test_round_has_at_most_a_step_per_timestep():
    assert [(each.t0, each.steps) for each in build(refine__t0=[2, 300]).config.refine.rounds] == [(2, 2), (300, 2)]


def test_targets_of_a_round_are_sharpened(monkeypatch):
    """The targets are those of a run without the mask, sharpened; the round starts from the same Gaussians."""
    plain, sharp = (build(refine__sharpen=weight) for weight in (0.0, 300.0))
    painted = []
    monkeypatch.setattr(refinement, "repaint", lambda *args: painted.append(repaint(*args)) or painted[-1])
    found = []
    for pipe in (plain, sharp):
        asset = pipe.prepare("a bus", 0)
        next(report for report in pipe.run([asset]) if report.stage.startswith("refine"))
        found.append(asset.targets.images.permute(0, 3, 1, 2).float() / 255)
    assert torch.equal(*(torch.cat(painted).chunk(2)))
    for weight, target in zip((0.0, 300.0), found, strict=True):
        expected = sharpen(painted[0], weight)
        assert (target - expected).abs().max() <= 0.5 / 255 + 1e-6
    assert not torch.equal(*found)
