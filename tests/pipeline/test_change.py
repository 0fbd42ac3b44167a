"""The early end of a distillation whose views hardly change."""

import math

import numpy as np
import pytest
import torch
from test_pipeline import advance, build, check_same, queueing, values
from test_refinement import ROUNDS

from segdream_cli.config import OptimConfig
from segdream_cli.distill.method import Gradient
from segdream_cli.errors import Diverged
from segdream_cli.optimize.change import is_due, notes_on_change
from segdream_cli.render.cameras import orbit
from segdream_cli.render.view import render

EVERY = {"optim__stop_every": 2, "distill__warmup_steps": 3}
REFINED = {key.replace(".", "__"): value for key, value in ROUNDS.items()} | {"optim__steps": 10}


def look(asset):
    """Four views of 64 px from 15 degrees above, in a field of view of 40 degrees, the unit sphere at 0.85 of it."""
    distance = 1 / (0.85 * math.sin(math.radians(20)))
    azimuths = torch.tensor([0.0, 90, 180, 270])
    elevations, radii, fields = (torch.full((4,), value) for value in (15.0, distance, math.radians(40)))
    with torch.no_grad():
        seen = render(asset.gaussians, orbit(azimuths, elevations, radii, fields, 64))
    return np.clip(seen.rgb.numpy() + (1 - seen.alpha.numpy()), 0, 1).astype(np.float64)


def test_change_is_the_mean_difference_of_views():
    pipe = build(optim__stop_change=1e-9, **EVERY)
    asset = pipe.prepare("a cube", 0)
    before, measured = None, []
    for report in pipe.run([asset]):
        assert not report.stopped
        if report.step in (2, 4, 6, 8):
            now = look(asset)
            if before is not None:
                measured.append(report.step)
                assert report.change == pytest.approx([np.abs(now - before).mean()], rel=1e-4)
                assert report.change[0] > 1e-5
            before = now
        if report.step not in measured:
            assert report.change is None
    assert measured == [4, 6, 8]
    assert asset.step == 10
    assert asset.skipped == 0


@pytest.mark.parametrize("make", [build, queueing], ids=["checked at once", "queued"])
def test_small_change_ends_the_distillation_and_leaves_its_bits(make):
    pipe, plain = make(optim__stop_change=1.0, **EVERY), make(**EVERY)
    asset, expected = pipe.prepare("a cube", 0), plain.prepare("a cube", 0)
    reports = list(pipe.run([asset]))
    advance(plain, [expected], 4)
    assert [report.step for report in reports] == [1, 2, 3, 4]
    assert [report.stopped for report in reports] == [False, False, False, True]
    assert (asset.step, asset.skipped) == (10, 6)
    ours, theirs = values(asset), values(expected)
    for name in ("step", "stop.views", "stop.skipped"):
        ours.pop(name), theirs.pop(name, None)
    check_same(ours, theirs)
    assert not list(pipe.run([asset]))


def test_refinement_follows_an_early_end():
    pipe = build(optim__stop_change=1.0, **EVERY | REFINED)
    asset = pipe.prepare("a cube", 0)
    reports = list(pipe.run([asset]))
    assert [report.step for report in reports] == [1, 2, 3, 4, *range(11, 18)]
    assert [report.stage for report in reports] == 4 * ["distil"] + 3 * ["refine 1/2"] + 4 * ["refine 2/2"]
    assert (asset.step, asset.skipped) == (17, 6)


def test_batch_ends_with_its_slowest_asset():
    jobs = [("a cube", 1), ("a ball", 2)]
    pipe = build(optim__stop_change=1e-9, **EVERY)
    changes = next(report.change for report in pipe.run([pipe.prepare(*job) for job in jobs]) if report.change)
    assert changes[0] != changes[1]
    fast, slow = sorted(range(2), key=lambda index: -changes[index])
    for threshold, ends in ((sum(changes) / 2, False), (2 * max(changes), True)):
        pipe = build(optim__stop_change=threshold, **EVERY)
        together = [pipe.prepare(*job) for job in jobs]
        reports = advance(pipe, together, 4)
        assert reports[-1].stopped == ends
        assert [asset.skipped for asset in together] == 2 * [6 * ends]
        alone = [pipe.prepare(*job) for job in jobs]
        stopped = [advance(pipe, [asset], 4)[-1].stopped for asset in alone]
        assert stopped[slow]
        assert stopped[fast] == ends


@pytest.mark.parametrize("save", [1, 2, 3, 4, 6])
def test_restored_run_ends_early_with_the_same_bits(save):
    """Before, at and after the measurements, and in the refinement."""
    settings = EVERY | REFINED | {"optim__stop_change": 1.0}
    pipe = build(**settings)
    whole = pipe.prepare("a cube", 3)
    first = advance(pipe, [whole], save)
    other = build(**settings)
    restored = other.restore(whole.tensors(), "a cube", 3)
    rest, again = list(pipe.run([whole])), list(other.run([restored]))
    assert len(first) + len(rest) == 11
    fields = ("step", "timesteps", "grad_norm", "n_gaussians", "change", "stopped")
    assert [[getattr(one, name) for name in fields] for one in rest] == [
        [getattr(two, name) for name in fields] for two in again
    ]
    check_same(values(whole), values(restored))
    assert restored.skipped == 6


@pytest.mark.parametrize(
    ("steps", "every", "limit", "noted"),
    [(10, 4, 0.1, False), (10, 5, 0.1, True), (10, 5, 0.0, False), (0, 5, 0.1, False), (200, 100, 0.1, True)],
)
def test_runs_too_short_to_measure_a_change_are_noted(steps, every, limit, noted):
    notes = notes_on_change(OptimConfig(steps=steps, stop_every=every, stop_change=limit))
    assert len(notes) == noted
    measured = [
        step
        for step in range(1, steps + 1)
        if is_due(step, OptimConfig(steps=steps, stop_every=every, stop_change=0.1))
    ]
    assert noted == (limit > 0 and steps > 0 and len(measured) < 2)
    for note in notes:
        assert f"--set optim.stop_every={steps // 10} " in note


def test_change_is_not_measured_after_a_nonfinite_step(monkeypatch):
    pipe = queueing(optim__stop_change=1.0, **EVERY)
    asset = pipe.prepare("a cube", 0)
    advance(pipe, [asset], 1)
    monkeypatch.setattr(pipe.method, "gradient", lambda prior, schedule, latents, *_: Gradient(latents * math.nan))
    with pytest.raises(Diverged):
        advance(pipe, [asset], 1)
    assert (asset.step, asset.last_views) == (1, None)
