"""`segdream generate --best-of`: which seed continues, what is kept of the others, and what an interruption leaves."""

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
from commands import SIX
from PIL import Image
from test_batch import Interrupted
from test_evaluate import BALL as SPLATS

from segdream_cli.errors import OutputExists
from segdream_cli.evaluate.judge_metric import JudgeMetric
from segdream_cli.evaluate.metrics import Asset
from segdream_cli.runs import best_of
from segdream_cli.runs.best_of import StopAt, scores_by
from segdream_cli.runs.ownership import RunLock
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.splats.gaussians import Gaussians

ASSET = Asset(
    name="ball", path=Path("ball.ply"), prompt="a red ball", splats=SPLATS, gaussians=Gaussians.from_splats(SPLATS)
)
BALL = ("generate", "a red ball", "-o", "ball.ply", *SIX)


@pytest.fixture
def preferred(monkeypatch):
    """Lets the judge prefer seed 5; returns the seeds and steps that it is asked about."""
    asked = []

    def measure(self, asset, observed):
        asked.append((asset.splats.provenance["seed"], asset.splats.provenance["steps"]))
        good = asset.splats.provenance["seed"] == 5
        return {"probability": 0.9 if good else 0.5, "view": float("nan"), "janus": float("nan")}

    monkeypatch.setattr(JudgeMetric, "measure", measure)
    return asked


@pytest.mark.usefixtures("lockstep")
def test_best_of_continues_the_best_seed_and_keeps_images_of_all(segdream, folder, preferred, sizes):
    done = segdream(*BALL, "--seed", "4", "--best-of", "3", "--json")
    assert done.code == 0, done.err
    assert sizes == [(3, 0), (1, 2)]
    assert preferred == [(4, 2), (5, 2), (6, 2)]
    chosen, made = map(json.loads, done.out.splitlines())
    seeds = [{"seed": 4, "score": 0.5}, {"seed": 5, "score": 0.9}, {"seed": 6, "score": 0.5}]
    assert (chosen["event"], chosen["by"], chosen["step"], chosen["seed"]) == ("chosen", "judge", 2, 5)
    assert chosen["seeds"] == seeds
    assert (made["event"], made["output"], made["seed"]) == ("done", "ball.ply", 5)
    assert "seed 5 is the best of 3 by judge after step 2" in done.err
    assert sorted(path.name for path in folder.iterdir()) == ["ball.ply", "ball.run"]
    assert sorted(path.name for path in (folder / "ball.run").iterdir()) == [
        "events.jsonl", "run.json", "tried-4.png", "tried-5.png", "tried-6.png", "tried.json",
    ]  # fmt: skip
    kept = json.loads((folder / "ball.run" / "tried.json").read_text())
    assert kept == {"by": "judge", "step": 2, "seeds": seeds, "chosen": 5}
    images = [np.asarray(Image.open(folder / "ball.run" / f"tried-{seed}.png")) for seed in (4, 5, 6)]
    assert len({image.tobytes() for image in images}) == 3
    events = [json.loads(line)["step"] for line in (folder / "ball.run" / "events.jsonl").read_text().splitlines()]
    assert events == [1, 2, 3, 4, 5, 6]


def test_best_of_makes_the_asset_that_its_seed_makes_alone(segdream, folder, preferred):
    assert segdream(*BALL, "--best-of", "6").code == 0
    alone = segdream("generate", "a red ball", "-o", "alone.ply", "--seed", "5", *SIX)
    assert alone.code == 0
    assert (folder / "ball.ply").read_bytes() == (folder / "alone.ply").read_bytes()


def test_no_other_process_gets_between_the_seeds(segdream, folder, preferred, monkeypatch):
    refusals = []

    def refuse(run, work):
        with pytest.raises(OutputExists, match=f"another process works on {run}"):
            work(RunDir(Path(run)))
        refusals.append(run)

    class Intruder(StopAt):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            refuse("ball.run", lambda run: run.check_free(force=True))

    measure = JudgeMetric.measure

    def intrude(*arguments):
        refuse("ball.run", lambda run: run.check_free(force=True))
        for seed in (4, 5, 6):
            refuse(f"ball.try-{seed}.run", RunDir.acquire)
        return measure(*arguments)

    monkeypatch.setattr(best_of, "StopAt", Intruder)
    monkeypatch.setattr(JudgeMetric, "measure", intrude)
    done = segdream(*BALL, "--seed", "4", "--best-of", "3")
    assert done.code == 0, done.err
    assert len(refusals) == 3 + 3 * 4
    assert sorted(path.name for path in folder.iterdir()) == ["ball.ply", "ball.run"]


def test_best_of_refuses_an_asset_and_a_seed_that_another_process_works_on(segdream, folder, preferred, prior):
    prior(lambda profile: Interrupted(profile, 9, signal.SIGTERM))
    assert segdream(*BALL, "--seed", "4", "--best-of", "3").code == 143
    prior()
    lock = RunLock(folder / "ball.try-4.run")
    busy = segdream(*BALL, "--seed", "4", "--best-of", "3")
    lock.release()
    assert busy.code == 6
    assert "another process works on ball.try-4.run" in busy.err
    assert not (folder / "ball.run").exists()
    assert RunDir(folder / "ball.try-4.run").step() == 2


@pytest.mark.usefixtures("lockstep")
def test_interrupted_seeds_are_resumed_by_the_same_command(segdream, prior, folder, preferred, sizes):
    prior(lambda profile: Interrupted(profile, 2, signal.SIGINT))
    stopped = segdream(*BALL, "--seed", "4", "--best-of", "3")
    assert (stopped.code, stopped.out) == (130, "")
    assert "repeat the command to resume the seeds" in stopped.err
    assert "--resume" not in stopped.err
    assert {path.name for path in folder.iterdir()} == {f"ball.try-{seed}.run" for seed in (4, 5, 6)}
    step = RunDir(folder / "ball.try-4.run").step()
    assert step == 1
    prior()
    sizes.clear()
    done = segdream(*BALL, "--seed", "4", "--best-of", "3")
    assert done.code == 0, done.err
    assert sizes == [(3, 1), (1, 2)]
    assert sorted(path.name for path in folder.iterdir()) == ["ball.ply", "ball.run"]


def test_interrupted_seeds_on_a_cpu_end_with_the_same_bits(segdream, prior, folder, preferred, sizes):
    assert segdream(*BALL, "--seed", "4", "--best-of", "3").code == 0
    whole = (folder / "ball.ply").read_bytes()
    (folder / "ball.ply").unlink()
    prior(lambda profile: Interrupted(profile, 5, signal.SIGTERM))
    assert segdream(*BALL, "--seed", "4", "--best-of", "3").code == 143
    assert {path.name for path in folder.glob("*.try-*")} == {"ball.try-4.run", "ball.try-5.run"}
    prior()
    sizes.clear()
    assert segdream(*BALL, "--seed", "4", "--best-of", "3").code == 0
    assert sizes == [(1, 1), (1, 0), (1, 2)]
    assert (folder / "ball.ply").read_bytes() == whole


def test_the_chosen_run_is_resumed_like_any_other(segdream, prior, folder, preferred):
    prior(lambda profile: Interrupted(profile, 13, signal.SIGINT))
    stopped = segdream(*BALL, "--seed", "4", "--best-of", "3")
    assert stopped.code == 130
    assert "segdream generate --resume ball.run" in stopped.err
    prior()
    again = segdream(*BALL, "--seed", "4", "--best-of", "3")
    assert (again.code, again.out) == (6, "")
    resumed = segdream("generate", "--resume", "ball.run", "--json")
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["seed"] == 5
    assert (folder / "ball.run" / "tried.json").exists()
    replaced = segdream(*BALL, "--force")
    assert replaced.code == 0
    assert not (folder / "ball.run" / "tried.json").exists()


class Fixed:
    """A metric with given values, which counts the views that it reads."""

    def __init__(self, values, reads_views=False):
        self.values, self.reads_views, self.angles = values, reads_views, []

    def observe(self, asset, views):
        self.angles += zip(views.azimuth_deg.tolist(), views.elevation_deg.tolist(), strict=True)
        return np.zeros((len(views.images), 1))

    def measure(self, asset, observed):
        assert len(observed) == len(self.angles)
        return self.values


@pytest.mark.parametrize(
    ("values", "score"),
    [
        ({"probability": 0.8, "view": 0.5, "janus": 0.25}, (0.8 + 0.5 + 0.75) / 3),
        ({"probability": 0.8, "view": math.nan, "janus": math.nan}, 0.8),
    ],
)
def test_scores_by_the_judge_are_means_of_the_defined_figures(values, score):
    assert scores_by("judge", Fixed(values), ASSET) == pytest.approx(score)


def test_scores_by_clip_read_eight_views():
    metric = Fixed({"score": 27.5}, reads_views=True)
    assert scores_by("clip", metric, ASSET) == 27.5
    assert metric.angles == [(45.0 * i, 15.0) for i in range(8)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*BALL, "--best-by", "clip"], "--best-by only affects --best-of"),
        ([*BALL, "--best-of", "3", "--seeds", "0-3"], "--seeds can't be combined with --best-of"),
        (["generate", "--prompts", "list.txt", "--out-dir", ".", "--best-of", "3"], "can't be combined with --prompts"),
        ([*BALL, "--best-of", "3", "--set", "optim.stop_change=0.1"], "can't be combined with optim.stop_change"),
        ([*BALL, "--best-of", "3", "--steps", "0"], "--best-of compares seeds between two distillation steps"),
    ],
)
def test_best_of_refuses_in_a_sentence(segdream, folder, arguments, message):
    done = segdream(*arguments)
    assert done.code == 2
    assert message in done.err
    assert not list(folder.iterdir())


def test_best_by_clip_without_its_weights_is_exit_4_before_any_step(segdream, folder, sizes, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    done = segdream(*BALL, "--best-of", "3", "--best-by", "clip", "--offline")
    assert done.code == 4
    assert "clip-vit-large-patch14" in done.err
    assert "hint: segdream fetch clip" in done.err
    assert sizes == []
