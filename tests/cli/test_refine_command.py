"""`segdream refine`: assets of other frames, scales and tools through a whole run, and input that can't be refined."""

import dataclasses
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from commands import BUS
from fakes import AnalyticPrior

import segdream_cli as api
from segdream_cli.config import MINI, Config
from segdream_cli.errors import OutputExists, UsageProblem
from segdream_cli.formats.ply import read_vertices, save
from segdream_cli.priors.checkpoint import profile_of
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.runs.spec import Request
from segdream_cli.splats import Splats
from segdream_cli.splats.transform import transform

ROUNDS = {"t0": [300, 200], "steps": [2, 2], "views": [4, 4], "iterations": [4, 3], "image_size": [32, 32]}
ROUNDS |= {"gaussians": [0, 0]}
SETTINGS = [f"--set=refine.{key}={value}" for key, value in ROUNDS.items()]
FAST = ("--prior", MINI, "--device", "cpu", *SETTINGS)
STILL = [f"--set=refine.{name}_lr=0" for name in ("means", "quat", "scale", "opacity", "sh0")]
"""Rates at which nothing moves."""


def ball(n=400, k=0):
    """Small Gaussians evenly over a sphere, red where z is positive and blue elsewhere."""
    height = 1 - (np.arange(n) + 0.5) * 2 / n
    turn, flat = np.arange(n) * np.pi * (3 - np.sqrt(5)), np.sqrt(1 - height**2)
    means = np.stack([flat * np.cos(turn), height, flat * np.sin(turn)], axis=1)
    return Splats(
        means=(0.9 * means).astype(np.float32),
        quats=np.tile(np.float32([1, 0, 0, 0]), (n, 1)),
        log_scales=np.full((n, 3), np.log(0.06), np.float32),
        opacity_logits=np.full(n, 2, np.float32),
        sh0=np.where(means[:, 2:] > 0, [1.4, -1.4, -1.4], [-1.4, -1.4, 1.4]).astype(np.float32),
        shN=np.random.default_rng(0).normal(0, 0.1, (n, k, 3)).astype(np.float32),
    )


def moved(splats, degrees=0.0):
    """The asset somewhere else, 37 times as large, turned about y."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    return transform(splats, 37 * turn, np.array([200.0, -5, 60]))


def refine(segdream, *arguments, asset="in.ply", output="out.ply"):
    return segdream("refine", asset, BUS, "-o", output, *FAST, *arguments)


def close(one, other, means=2e-3):
    assert one.means == pytest.approx(other.means, abs=means)
    assert one.log_scales == pytest.approx(other.log_scales, abs=1e-4)
    assert one.sh0 == pytest.approx(other.sh0, abs=1e-4)
    assert one.shN == pytest.approx(other.shN, abs=1e-4)
    assert np.abs((one.quats * other.quats).sum(1)) == pytest.approx(np.ones(len(one)), abs=1e-5)


@pytest.mark.parametrize("front", ["+z", "-x", "33.5"])
def test_refine_returns_the_asset_in_its_own_frame(segdream, front):
    """At rates of 0 the result is the asset, wherever it stood; higher harmonics turn there and back."""
    asset = moved(ball(k=8), 20.0)
    api.write("in.ply", asset)
    done = refine(segdream, "--front", front, *STILL)
    assert (done.code, done.out) == (0, "out.ply\n"), done.err
    close(api.read("out.ply"), asset)
    assert RunDir(Path("out.run")).record().source["front_deg"] == {"+z": 0, "-x": 270, "33.5": 33.5}[front]


def test_refine_moves_an_asset_towards_the_repainted_views(segdream):
    """The same change, wherever the asset stands: Adam amplifies rounding, so most of it is compared, not all."""
    for name, asset in (("near", ball()), ("far", moved(ball()))):
        api.write(f"{name}.ply", asset)
        assert refine(segdream, asset=f"{name}.ply", output=f"{name}-out.ply").code == 0
    near, far = api.read("near-out.ply"), api.read("far-out.ply")
    change = near.sh0 - ball().sh0
    assert np.abs(change).mean() > 0.02
    assert np.quantile(np.abs(far.sh0 - near.sh0), 0.9) < 0.1 * np.abs(change).mean()
    expected = moved(near)
    assert np.quantile(np.abs(far.means - expected.means) / 37, 0.9) < 1e-3


@pytest.mark.parametrize("suffix", [".splat", ".spz", ".glb", ".sog", ".compressed.ply"])
def test_refine_reads_and_writes_every_format(segdream, suffix):
    api.write(f"in{suffix}", ball())
    assert refine(segdream, *STILL, asset=f"in{suffix}", output=f"out{suffix}").code == 0
    assert np.sort(api.read(f"out{suffix}").means, axis=0) == pytest.approx(np.sort(ball().means, axis=0), abs=0.02)


def test_refine_samples_a_mesh(segdream):
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=5)
    mesh.apply_translation([40, 0, 0])
    mesh.visual.vertex_colors = np.tile([255, 0, 0, 255], (len(mesh.vertices), 1))
    Path("in.glb").write_bytes(trimesh.Scene(mesh).export(file_type="glb"))
    done = refine(segdream, *STILL, "--set", "refine.surface=500", asset="in.glb")
    assert done.code == 0, done.err
    splats = api.read("out.ply")
    assert 480 < len(splats) <= 500
    assert np.linalg.norm(splats.means - [40, 0, 0], axis=1) == pytest.approx(np.full(len(splats), 5), abs=0.15)
    assert "500 Gaussians on its surface" in done.err or "499 Gaussians on its surface" in done.err


LIE_DOWN = {  # (x, y, z) of an upright asset -> the same point in a file with another axis up, and that asset's front
    "y": ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], "z"),
    "z": ([[1, 0, 0], [0, 0, -1], [0, 1, 0]], "-y"),
    "-z": ([[1, 0, 0], [0, 0, 1], [0, -1, 0]], "+y"),
    "-y": ([[1, 0, 0], [0, -1, 0], [0, 0, -1]], "-z"),
    "x": ([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], "z"),
    "-x": ([[0, -1, 0], [1, 0, 0], [0, 0, 1]], "z"),
}


@pytest.mark.parametrize("up", LIE_DOWN)
def test_refine_stands_an_asset_up_and_lays_the_result_down_again(segdream, up):
    """The same change as for the upright asset, in the frame of the asset; the prior's text depends on the view."""
    matrix, front = np.array(LIE_DOWN[up][0], np.float64), LIE_DOWN[up][1]
    api.write("upright.ply", ball(k=3))
    api.write("in.ply", transform(ball(k=3), 5 * matrix, np.array([1.0, 2, 3])))
    assert refine(segdream, asset="upright.ply", output="upright-out.ply").code == 0
    for arguments in (("--up", up), ("--up", f"+{up}" if up in "xyz" else up, "--front", front)):
        done = refine(segdream, *arguments, "--force")
        assert (done.code, done.out) == (0, "out.ply\n"), done.err
        assert RunDir(Path("out.run")).record().source["up"] == up
        expected = transform(api.read("upright-out.ply"), 5 * matrix, np.array([1.0, 2, 3]))
        found = api.read("out.ply")
        assert np.quantile(np.abs(found.means - expected.means) / 5, 0.9) < 1e-3
        assert np.quantile(np.abs(found.sh0 - expected.sh0), 0.9) < 0.1 * np.abs(found.sh0 - ball().sh0).mean()


def test_refine_of_a_lying_asset_differs_without_up(segdream):
    """Half of this ball is missing, so the repaint of a lying one moves other Gaussians."""
    api.write("in.ply", transform(ball(800).select(np.arange(400)), np.array(LIE_DOWN["z"][0], float), np.zeros(3)))
    assert refine(segdream, output="lying.ply").code == 0
    assert refine(segdream, "--up", "z").code == 0
    lying, upright = api.read("lying.ply"), api.read("out.ply")
    assert np.abs(lying.sh0 - upright.sh0).mean() > 0.01


@pytest.mark.parametrize("suffix", [".stl", ".off"])
def test_hint_for_another_mesh_converts_it(segdream, suffix):
    mesh, path = trimesh.creation.icosphere(subdivisions=2, radius=5), Path(f"it's a {suffix[1:]}{suffix}")
    mesh.export(path)
    done = refine(segdream, asset=path)
    assert (done.code, done.out) == (2, "")
    assert f"{path} is a mesh, and segdream reads only .glb and .obj meshes" in done.err
    command, *arguments = shlex.split(done.err.partition("hint: ")[2])
    assert command == "python"
    subprocess.run([sys.executable, *arguments], check=True)
    assert refine(segdream, "--set=refine.surface=200", asset=f"{path}.glb").code == 0


def test_refine_thins_a_large_asset_with_a_note(segdream):
    api.write("in.ply", ball(2000))
    done = refine(segdream, *STILL, "--max-gaussians", "300")
    assert done.code == 0
    assert "in.ply: 2,000 Gaussians merged into 300; see --max-gaussians" in done.err
    assert len(api.read("out.ply")) == 300


def test_refine_splits_up_to_the_limit(segdream):
    api.write("in.ply", ball(300))
    more = [f"--set=refine.gaussians={values}" for values in ("[500,5000]", "[0,5000]")]
    for arguments, count in (
        ((more[0],), 1000),
        ((more[0], "--no-split"), 300),
        ((more[1], "--max-gaussians=450"), 450),
    ):
        assert refine(segdream, *arguments, "--force").code == 0
        assert len(api.read("out.ply")) == count


def test_refine_keeps_higher_harmonics_or_drops_them(segdream):
    api.write("in.ply", ball(k=15))
    done = refine(segdream)
    assert "in.ply: spherical harmonics kept, but only the base colour is refined; --sh 0 drops them" in done.err
    found = api.read("out.ply")
    assert found.shN == pytest.approx(ball(k=15).shN, abs=1e-5)
    assert np.abs(found.sh0 - ball().sh0).mean() > 0.01
    done = refine(segdream, "--sh", "0", "--force")
    assert "spherical harmonics of degree 3 reduced to 0" in done.err
    assert api.read("out.ply").shN.shape == (400, 0, 3)


def test_refine_records_where_the_result_comes_from(segdream):
    api.write("first.ply", Splats(**ball().arrays(), provenance={"prompt": "a red ball", "seed": 3}))
    vertices = read_vertices(Path("first.ply"))
    save(Path("in.ply"), vertices.rows, ["scanned with a phone", *vertices.comments])
    done = refine(segdream, "--seed", "7", "--json")
    result = json.loads(done.out)
    assert (result["event"], result["output"], result["prompt"], result["seed"]) == ("done", "out.ply", BUS, 7)
    found = api.read("out.ply").provenance
    assert found["source"] == {
        "file": "in.ply",
        "sha256": hashlib.sha256(Path("in.ply").read_bytes()).hexdigest(),
        "provenance": {"prompt": "a red ball", "seed": 3},
        "comments": ["scanned with a phone"],
    }
    assert (found["prompt"], found["seed"], found["steps"]) == (BUS, 7, 7)
    assert found["generator"] == f"segdream {api.__version__}"


def test_refine_records_the_home_of_the_asset_as_a_tilde(segdream, folder, prior, monkeypatch):
    home = folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    api.write(home / "in.ply", ball())
    prior(lambda profile: Stopping(profile, 3))
    assert refine(segdream, asset=home / "in.ply").code == 130
    assert RunDir(Path("out.run")).record().source["path"] == "~/in.ply"
    assert str(home).encode() not in Path("out.run/run.json").read_bytes()
    prior()
    assert segdream("generate", "--resume", "out.run").code == 0
    assert str(home).encode() not in Path("out.ply").read_bytes()


def test_distil_takes_steps_before_the_refinement(segdream):
    api.write("in.ply", ball())
    done = refine(segdream, "--distil", "4", "--json")
    assert json.loads(done.out)["steps"] == 4 + 7
    stages = [json.loads(line)["stage"] for line in Path("out.run/events.jsonl").read_text().splitlines()]
    assert stages == ["distil"] * 4 + ["refine 1/2"] * 4 + ["refine 2/2"] * 3
    assert len(api.read("out.ply")) == 400


def test_settings_of_a_refinement_are_gentle():
    """Beside the preset's: lower rates and timesteps, no growth in the first half; the user's settings win."""
    profile = profile_of(Request(settings={"prior.name": MINI}).prior(), cuda=False)
    plain = Request(settings={"prior.name": MINI}).resolve(profile)
    own = Request(settings={"prior.name": MINI}, refines=True).resolve(profile)
    assert own.optim.steps == 0
    assert own.refine.enabled
    for steps in (10, 1000):
        gentle = Request(settings={"prior.name": MINI, "optim.steps": steps}, refines=True).resolve(profile)
        assert gentle.optim.steps == steps
        assert gentle.densify.start == steps // 2
        assert gentle.optim.means_lr[0] < plain.optim.means_lr[0] / 3
        assert gentle.distill.sctd.t_high == 300
        assert gentle.distill.sctd.warmup_shift == 0
    given = {"prior.name": MINI, "optim.means_lr": [0.1, 0.1], "refine.enabled": False}
    chosen = Request(settings=given, refines=True).resolve(profile)
    assert (chosen.optim.means_lr, chosen.refine.enabled) == ((0.1, 0.1), False)


@pytest.mark.parametrize("quality", ["draft", "standard", "high"])
def test_settings_of_a_refinement_suit_every_preset(quality):
    profile = profile_of(Request(settings={"prior.name": MINI}).prior(), cuda=False)
    for steps in (None, 1, 50):
        settings = {"prior.name": MINI, "optim.steps": steps}
        assert isinstance(Request(quality=quality, settings=settings, refines=True).resolve(profile), Config)


def test_strength_limits_the_timestep_of_every_round(segdream):
    api.write("in.ply", ball())
    assert refine(segdream, "--strength", "0.25").code == 0
    events = [json.loads(line) for line in Path("out.run/events.jsonl").read_text().splitlines()]
    assert [event["times"][0][0] for event in events] == [250] * 4 + [200] * 3


class Stopping(AnalyticPrior):
    """Sends this process SIGINT at the `call`-th noise prediction."""

    def __init__(self, profile, call):
        super().__init__(profile=profile)
        self.left = call

    def predict_noise(self, latents, timesteps, text):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().predict_noise(latents, timesteps, text)


@pytest.mark.parametrize("call", [1, 3, 5, 7])
def test_resumed_refinement_has_the_same_bits(segdream, prior, call):
    """Stopped while it distils, or at the begin of either round."""
    api.write("in.ply", moved(ball(k=3)))
    assert refine(segdream, "--distil", "2", output="whole.ply").code == 0
    prior(lambda profile: Stopping(profile, call))
    done = refine(segdream, "--distil", "2")
    assert done.code == 130
    assert "resume with: segdream generate --resume out.run" in done.err
    assert not Path("out.ply").exists()
    prior()
    again = segdream("generate", "--resume", "out.run")
    assert (again.code, again.out) == (0, "out.ply\n"), again.err
    assert Path("out.ply").read_bytes() == Path("whole.ply").read_bytes()


def test_resume_refuses_an_asset_that_has_changed(segdream, prior):
    api.write("in.ply", ball())
    prior(lambda profile: Stopping(profile, 3))
    assert refine(segdream).code == 130
    prior()
    api.write("in.ply", ball(401))
    done = segdream("generate", "--resume", "out.run")
    assert done.code == 2
    assert "in.ply has changed since the run began" in done.err
    again = shlex.split(done.err.partition("hint: segdream ")[2])
    assert again[:3] == ["refine", str(Path("in.ply").resolve()), BUS]
    Path("in.ply").unlink()
    done = segdream("generate", "--resume", "out.run")
    assert (done.code, "in.ply can't be read" in done.err) == (2, True)
    assert not Path("out.ply").exists()
    api.write("in.ply", ball(401))
    done = segdream(*again)
    assert (done.code, done.out) == (0, "out.ply\n"), done.err


def test_hint_of_a_run_without_checkpoint_repeats_it(segdream):
    api.write("in.ply", moved(ball(k=8), 20.0))
    arguments = (
        "--front",
        "-x",
        "--up",
        "-z",
        "--sh",
        "1",
        "--strength",
        "0.2",
        "--max-gaussians",
        "300",
        "--distil",
        "2",
    )
    done = refine(segdream, *arguments, "--seed", "5", "--negative", "a red ball")
    assert done.code == 0, done.err
    whole = Path("out.ply").read_bytes()
    Path("out.ply").unlink()
    done = segdream("generate", "--resume", "out.run")
    assert "has no checkpoint" in done.err
    assert segdream(*shlex.split(done.err.partition("hint: segdream ")[2])).code == 0
    assert Path("out.ply").read_bytes() == whole


@pytest.mark.parametrize(("logit", "hint"), [(-4.0, "--set refine.prune_opacity=0.009"), (-15.0, None)])
def test_refine_refuses_an_asset_that_cannot_be_seen(segdream, logit, hint):
    api.write("in.ply", dataclasses.replace(ball(), opacity_logits=np.full(400, logit, np.float32)))
    done = refine(segdream)
    assert (done.code, done.out) == (2, "")
    assert "in.ply is transparent: the highest opacity of its Gaussians is" in done.err
    assert ("hint: " in done.err) == (hint is not None)
    if hint is not None:
        assert done.err.endswith(f" {hint}")
        assert refine(segdream, *hint.split()).code == 0


def test_refine_refuses_to_do_nothing(segdream):
    api.write("in.ply", ball())
    for more in ((), ("--dry-run",)):
        done = refine(segdream, "--set", "refine.enabled=false", *more)
        assert (done.code, done.out) == (2, "")
        assert "leave nothing to do hint: segdream refine" in done.err
    assert refine(segdream, "--set", "refine.enabled=false", "--distil", "1").code == 0


def test_session_refines_as_the_command_does(segdream, prior):
    api.write("in.ply", moved(ball()))
    given = ("--front", "+x", "--up", "z", "--distil", "2", "--strength", "0.25", "--seed", "4")
    assert refine(segdream, *given).code == 0
    settings = {f"refine.{name}": values for name, values in ROUNDS.items()}
    session = api.load(prior=MINI, device="cpu", settings={**settings, "init.shape": "sphere", "optim.steps": 3})
    arguments = {"front": 90, "up": "z", "distil": 2, "strength": 0.25, "seed": 4}
    splats = session.refine("in.ply", BUS, output="api.ply", **arguments)
    assert Path("api.ply").read_bytes() == Path("out.ply").read_bytes()
    assert np.array_equal(session.refine("in.ply", BUS, **arguments).means, splats.means)
    assert session.config.optim.steps == 3
    with pytest.raises(OutputExists):
        session.refine("in.ply", BUS, output="api.ply")
    with pytest.raises(UsageProblem, match="can't be read"):
        session.refine("none.ply", BUS)
    with pytest.raises(UsageProblem, match="up can't be 'up'; it is one of y, -y"):
        session.refine("in.ply", BUS, up="up")
