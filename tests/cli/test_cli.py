"""Every command in process, with a prior in closed form: what is written, what is said, and where."""

import gzip
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import BUS, REFINED, SIX, TINY, rewrite_record
from fakes import AnalyticPrior
from PIL import Image

from segdream_cli import __version__, cli, formats, mesh
from segdream_cli.cli.render import parse_background, parse_view
from segdream_cli.config import MINI
from segdream_cli.errors import UsageProblem
from segdream_cli.mesh import texture
from segdream_cli.priors.checkpoint import PRIORS
from segdream_cli.priors.profile import PriorProfile
from segdream_cli.runs import session
from segdream_cli.runs.jobs import parse_seeds, slug
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.runs.spec import Request


def record(run):
    return json.loads((Path(run) / "run.json").read_text())


def test_generate_writes_the_asset_and_its_run_folder(segdream, folder):
    done = segdream("generate", BUS, "-o", "bus.ply", "--seed", "5", *SIX)
    assert (done.code, done.out) == (0, "bus.ply\n")
    assert sorted(path.name for path in folder.iterdir()) == ["bus.ply", "bus.run"]
    assert sorted(path.name for path in (folder / "bus.run").iterdir()) == ["events.jsonl", "run.json"]
    splats = formats.read(folder / "bus.ply")
    assert 0 < len(splats) <= 60
    assert np.isfinite(splats.means).all()
    about = splats.provenance
    assert (about["prompt"], about["seed"], about["steps"], about["method"]) == (BUS, 5, 6, "sctd")
    assert about["generator"] == f"segdream {__version__}"
    assert about["prior_digest"] == record("bus.run")["prior"]["digest"]


def test_no_file_names_the_users_home(segdream, folder, monkeypatch):
    home = folder / "home"
    shutil.copytree(Path(PRIORS[MINI]), home / "models" / "mine")
    monkeypatch.setenv("HOME", str(home))
    options = ("--model", home / "models" / "mine", *SIX[2:])
    assert segdream("generate", BUS, "-o", home / "bus.ply", *options).code == 0
    for made in (home / "bus.ply", home / "bus.run" / "run.json"):
        assert b"~/models/mine" in made.read_bytes()
        assert str(home).encode() not in made.read_bytes()


def test_events_have_one_line_per_step(segdream):
    segdream("generate", BUS, "-o", "bus.ply", *SIX)
    lines = [json.loads(line) for line in Path("bus.run/events.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert set(lines[0]) == {"step", "times", "grad_norm", "n_gaussians", "seconds", "memory_gib", "stage"}


def test_json_prints_the_result_only(segdream):
    done = segdream("generate", BUS, "-o", "bus.ply", "--json", *SIX)
    (line,) = done.out.splitlines()
    said = json.loads(line)
    assert (said["event"], said["output"], said["prompt"], said["seed"]) == ("done", "bus.ply", BUS, 0)
    assert (said["steps"], said["run"]) == (6, "bus.run")
    assert said["gaussians"] == len(formats.read(Path("bus.ply")))


def test_json_prints_errors_as_objects(segdream):
    done = segdream("generate", BUS, "-o", "none/bus.ply", "--json", *SIX)
    said = json.loads(done.out)
    assert (done.code, said["event"], said["exit_code"]) == (2, "error", 2)
    assert "none" in said["message"]
    assert said["hint"] == "mkdir -p none"


def test_quiet_prints_results_and_errors_only(segdream):
    done = segdream("generate", BUS, "-o", "bus.ply", "--quiet", *SIX)
    assert (done.out, done.err) == ("bus.ply\n", "")
    again = segdream("generate", BUS, "-o", "bus.ply", "--quiet", *SIX)
    assert again.err.startswith("error: bus.ply exists; --force replaces it hint:")


def test_auto_prior_is_announced_once(segdream):
    arguments = [part for part in SIX if part not in SIX[:2]]
    done = segdream("generate", BUS, "-o", "bus.ply", *arguments)
    assert done.code == 0
    assert done.err.count("because there is no CUDA (--prior") == 1


def test_output_defaults_to_the_prompt(segdream, folder):
    done = segdream("generate", BUS, *SIX)
    assert (done.code, done.out) == (0, "a_yellow_school_bus.ply\n"), done.err
    assert (folder / "a_yellow_school_bus.run").is_dir()


def test_previews_show_four_sides(segdream):
    segdream("generate", BUS, "-o", "bus.ply", "--preview-every", "3", "--set", "output.preview_size=32", *SIX)
    names = sorted(path.name for path in Path("bus.run").glob("*.png"))
    assert names == ["preview-000003.png", "preview-000006.png"]
    with Image.open(Path("bus.run") / names[0]) as image:
        assert (image.format, image.size) == ("PNG", (128, 32))


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (("--steps", "3"), "optim.steps", 3),
        (("--guidance-scale", "3.5", "--steps", "2"), "distill.sctd.guidance_scale", 3.5),
        (("--perp-neg", "--steps", "2"), "distill.perp_neg", True),
        (("--no-perp-neg", "--steps", "2"), "distill.perp_neg", False),
        (("--init", "box", "--steps", "2"), "init.shape", "box"),
        (("--dtype", "bf16", "--steps", "2"), "prior.dtype", "bf16"),
        (("--low-vram", "--steps", "2"), "prior.low_vram", True),
        (("--preview-every", "9", "--steps", "2"), "output.preview_every", 9),
        (("--set", "loss.scale=0.25", "--steps", "2"), "loss.scale", 0.25),
        (("--set", "optim.steps=2"), "optim.steps", 2),
        (("--set", "optim.steps=3", "--set", "optim.steps=2"), "optim.steps", 2),
        (("--set", "camera.fov_rad=[0.5,0.6]", "--steps", "2"), "camera.fov_rad", [0.5, 0.6]),
    ],
)
def test_options_change_the_setting_they_name(segdream, arguments, key, value):
    assert segdream("generate", BUS, "-o", "bus.ply", *TINY, *arguments).code == 0
    assert record("bus.run")["config"][key] == value


@pytest.mark.parametrize(
    ("settings", "cap"),
    [
        ({}, 100_000),
        ({"densify.cap": 3000}, 3000),
        ({"densify.cap": 150_000}, 150_000),
        ({"prior.low_vram": False}, 200_000),
    ],
)
def test_low_vram_caps_the_gaussians_unless_a_cap_is_given(settings, cap):
    request = Request(quality="standard", settings={"prior.low_vram": True} | settings)
    assert request.resolve(PriorProfile()).densify.cap == cap
    few = PriorProfile(presets={"standard": {"densify.cap": 2000}})
    assert Request(quality="standard", settings={"prior.low_vram": True}).resolve(few).densify.cap == 2000


def test_options_change_the_result(segdream):
    """One that parses and changes nothing would leave the same bytes."""
    variants = [
        (), ("--guidance-scale", "30"), ("--perp-neg",), ("--negative", "a red ball"), ("--init", "box"),
        ("--seed", "1"), ("--set", "distill.sctd.loss=eq10"),
    ]  # fmt: skip
    seen = {}
    for number, variant in enumerate(variants):
        assert segdream("generate", BUS, "-o", f"{number}.ply", *SIX, *variant).code == 0
        seen[formats.read(Path(f"{number}.ply")).means.tobytes()] = variant
    assert len(seen) == len(variants)


def test_quality_chooses_the_preset(segdream):
    for quality in ("draft", "high"):
        arguments = ("--quality", quality, "--steps", "1", *TINY[:4], "--no-refine")
        assert segdream("generate", BUS, "-o", f"{quality}.ply", *arguments).code == 0
        assert record(f"{quality}.run")["quality"] == quality
    draft, high = (record(f"{quality}.run")["config"] for quality in ("draft", "high"))
    assert draft["init.count"] < high["init.count"]


def test_options_and_set_override_the_config_file(segdream):
    Path("my settings.toml").write_text(
        "[optim]\nsteps = 9\n[loss]\nscale = 0.5\ntv_rgb = 0.5\n[distill]\nsegments = 3\n"
    )
    arguments = ("--config", "my settings.toml", *SIX, "--set", "loss.scale=0.125")
    assert segdream("generate", BUS, "-o", "bus.ply", *arguments).code == 0
    config = record("bus.run")["config"]
    assert (config["optim.steps"], config["distill.sctd.segments"]) == (6, 3)
    assert (config["loss.scale"], config["loss.tv_rgb"]) == (0.125, 0.5)


def test_config_from_run_json_repeats_the_run(segdream):
    segdream("generate", BUS, "-o", "first.ply", "--seed", "4", *SIX)
    segdream("generate", BUS, "-o", "second.ply", "--seed", "4", "--device", "cpu", "--config", "first.run/run.json")
    assert Path("first.ply").read_bytes() == Path("second.ply").read_bytes()


def test_force_replaces_asset_and_run(segdream):
    segdream("generate", BUS, "-o", "bus.ply", *SIX)
    before = Path("bus.ply").read_bytes()
    assert segdream("generate", BUS, "-o", "bus.ply", "--seed", "1", "--force", *SIX).code == 0
    assert Path("bus.ply").read_bytes() != before
    assert record("bus.run")["seed"] == 1
    assert len(Path("bus.run/events.jsonl").read_text().splitlines()) == 6


def test_seeds_fill_a_pattern_a_folder_or_default_names(segdream):
    Path("my buses").mkdir()
    short = (*TINY, "--steps", "2")
    assert segdream("generate", BUS, "--seeds", "0-1", "-o", "bus-{seed}.ply", *short).out.split() == [
        "bus-0.ply",
        "bus-1.ply",
    ]
    assert segdream("generate", BUS, "--seeds", "1,7", "-o", "my buses", *short).out.splitlines() == [
        "my buses/a_yellow_school_bus-1.ply",
        "my buses/a_yellow_school_bus-7.ply",
    ]
    assert segdream("generate", BUS, "--seeds", "3", *short).out == "a_yellow_school_bus-3.ply\n"
    assert segdream("generate", BUS, "--seeds", "0-1", "-o", "new/buses/", *short).out.split() == [
        "new/buses/a_yellow_school_bus-0.ply",
        "new/buses/a_yellow_school_bus-1.ply",
    ]
    same = formats.read(Path("bus-1.ply")), formats.read(Path("my buses/a_yellow_school_bus-1.ply"))
    assert np.array_equal(same[0].means, same[1].means)
    assert not np.array_equal(same[0].means[:1], formats.read(Path("bus-0.ply")).means[:1])


def test_seeds_are_all_checked_before_the_first_asset(segdream, folder):
    (folder / "bus-1.ply").write_text("old")
    done = segdream("generate", BUS, "--seeds", "0-2", "-o", "bus-{seed}.ply", *SIX)
    assert (done.code, done.out) == (6, "")
    assert [path.name for path in folder.iterdir()] == ["bus-1.ply"]


def test_list_skips_finished_assets_and_reports_failures_first(segdream, folder):
    (folder / "list.txt").write_text(
        f"# mine\n\n{BUS}\r\n  a red ball  \nan unheard of thing\na blue cube\n{BUS}\n", encoding="utf-8-sig"
    )
    (folder / "assets").mkdir()
    (folder / "assets" / "a_red_ball.ply").write_text("old")
    done = segdream("generate", "--prompts", "list.txt", "--out-dir", "assets", "--json", *SIX)
    assert done.code == 1
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["event"] for line in lines] == ["error", "done", "skipped", "done"]
    assert "unheard" in lines[0]["message"]
    assert lines[0]["output"] == "assets/an_unheard_of_thing.ply"
    assert "2 made, 1 skipped, 1 failed" in done.err
    assert (folder / "assets" / "a_red_ball.ply").read_text() == "old"
    names = sorted(path.name for path in (folder / "assets").glob("*.ply"))
    assert names == ["a_blue_cube.ply", "a_red_ball.ply", "a_yellow_school_bus.ply"]
    (folder / "list.txt").write_text(f"{BUS}\na red ball\n")
    again = segdream("generate", "--prompts", "list.txt", "--out-dir", "assets", *SIX)
    assert (again.code, again.out) == (0, "")
    assert "0 made, 2 skipped, 0 failed" in again.err


def test_list_keeps_files_that_appear_meanwhile(segdream, prior, folder):
    """Another shell may be at the same list, or somebody puts a file there."""

    class Meanwhile(AnalyticPrior):
        def predict_noise(self, latents, timesteps, text):
            (folder / "a_red_ball.ply").write_text("mine")
            (folder / "a_blue_cube.run").mkdir(exist_ok=True)
            (folder / "a_blue_cube.run" / "notes.txt").write_text("mine")
            return super().predict_noise(latents, timesteps, text)

    prior(lambda profile: Meanwhile(profile=profile))
    (folder / "list.txt").write_text(f"{BUS}\na red ball\na blue cube\n")
    done = segdream("generate", "--prompts", "list.txt", "--out-dir", ".", *SIX)
    assert done.code == 1
    assert "1 made, 1 skipped, 1 failed" in done.err
    assert "is not a run folder" in done.err
    assert (folder / "a_red_ball.ply").read_text() == "mine"
    assert (folder / "a_blue_cube.run" / "notes.txt").read_text() == "mine"


def test_list_resumes_a_run_that_has_fewer_settings(segdream, prior, folder):
    (folder / "list.txt").write_text(f"{BUS}\n")
    arguments = ("generate", "--prompts", "list.txt", "--out-dir", ".", *SIX)
    prior(lambda profile: Interrupted(profile, 8, signal.SIGINT))
    assert segdream(*arguments).code == 130
    run = folder / "a_yellow_school_bus.run"
    rewrite_record(run, lambda record: record["config"].pop("prior.recomputed_values"))
    prior()
    done = segdream(*arguments)
    assert done.code == 0, done.err
    assert "resuming" in done.err


def test_list_loads_the_prior_once(segdream, prior, folder):
    loaded = []
    prior(lambda profile: loaded.append(1) or AnalyticPrior(profile=profile))
    (folder / "list.txt").write_text("a red ball\na blue ball\n")
    assert segdream("generate", "--prompts", "list.txt", "--out-dir", "new/assets", *SIX).code == 0
    assert loaded == [1]
    assert len(list((folder / "new" / "assets").glob("*.ply"))) == 2


def test_list_with_seeds_puts_them_into_the_names(segdream, folder):
    (folder / "list.txt").write_text("a red ball\n")
    segdream("generate", "--prompts", "list.txt", "--out-dir", ".", "--seeds", "2-3", *SIX)
    assert sorted(path.name for path in folder.glob("*.ply")) == ["a_red_ball-2.ply", "a_red_ball-3.ply"]


def stdin_of(text, monkeypatch):
    stream = SimpleNamespace(buffer=io.BytesIO(text.encode()))
    monkeypatch.setattr(sys, "stdin", stream)
    return stream.buffer


def test_prompts_dash_alone_reads_stdin(segdream, monkeypatch):
    stream = stdin_of("a red ball\na blue ball\n", monkeypatch)
    assert segdream("generate", BUS, "-o", "bus.ply", *SIX).code == 0
    assert stream.tell() == 0
    done = segdream("generate", "--prompts", "-", "--out-dir", "assets", *SIX)
    assert done.out.split() == ["assets/a_red_ball.ply", "assets/a_blue_ball.ply"]


class Interrupted(AnalyticPrior):
    """Sends this process signals at the `call`-th noise prediction."""

    def __init__(self, profile, call, *numbers):
        super().__init__(profile=profile)
        self.left, self.numbers = call, numbers

    def predict_noise(self, latents, timesteps, text):
        self.left -= 1
        if self.left == 0:
            for number in self.numbers:
                os.kill(os.getpid(), number)
        return super().predict_noise(latents, timesteps, text)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_the_run_and_prints_the_resume_command(segdream, prior, number, code):
    segdream("generate", BUS, "-o", "whole.ply", *SIX)
    prior(lambda profile: Interrupted(profile, 8, number))
    Path("my runs").mkdir()
    handler = signal.getsignal(number)
    done = segdream("generate", BUS, "-o", "my runs/bus.ply", *SIX)
    assert signal.getsignal(number) is handler
    assert (done.code, done.out) == (code, "")
    steps = len(Path("my runs/bus.run/events.jsonl").read_text().splitlines())
    assert 1 <= steps < 6
    assert f"stopped after step {steps} of 6; resume with: segdream generate --resume 'my runs/bus.run'" in done.err
    assert not Path("my runs/bus.ply").exists()
    prior()
    again = segdream("generate", "--resume", "my runs/bus.run", "--device", "cpu")
    assert (again.code, again.out) == (0, "my runs/bus.ply\n")
    assert Path("my runs/bus.ply").read_bytes() == Path("whole.ply").read_bytes()
    lines = [json.loads(line)["step"] for line in Path("my runs/bus.run/events.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4, 5, 6]
    assert not Path("my runs/bus.run/checkpoint.safetensors").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_second_signal_leaves_at_once(segdream, prior, number, code):
    prior(lambda profile: Interrupted(profile, 8, signal.SIGINT, number))
    done = segdream("generate", BUS, "-o", "bus.ply", *SIX)
    assert (done.code, done.out) == (code, "")
    assert "resume with" not in done.err
    assert not Path("bus.run/checkpoint.safetensors").exists()
    assert not Path("bus.ply").exists()


def test_steps_that_an_early_end_left_out_are_not_counted(segdream, prior):
    """The distillation ends after 4 of 6 steps; 7 steps of refinement follow."""
    early = (*REFINED, "--set", "optim.stop_change=1", "--set", "optim.stop_every=2")
    segdream("generate", BUS, "-o", "whole.ply", *early)
    prior(lambda profile: Interrupted(profile, 13, signal.SIGTERM))
    stopped = segdream("generate", BUS, "-o", "bus.ply", *early, "--json")
    steps = len(Path("bus.run/events.jsonl").read_text().splitlines())
    assert 4 < steps < 11
    assert f"stopped after step {steps} of 11; resume with: segdream generate --resume bus.run" in stopped.err
    assert json.loads(stopped.out)["step"] == steps
    prior()
    refused = segdream("generate", BUS, "-o", "bus.ply", *early)
    assert f"holds an unfinished run at step {steps}" in refused.err
    again = segdream("generate", "--resume", "bus.run", "--json")
    assert f"resuming bus.run after step {steps} of 11" in again.err
    resumed = json.loads(again.out)
    assert (resumed["steps"], resumed["total_steps"]) == (11 - steps, 11)
    assert Path("bus.ply").read_bytes() == Path("whole.ply").read_bytes()


def interrupt(segdream, prior, *arguments, call=8):
    prior(lambda profile: Interrupted(profile, call, signal.SIGINT))
    assert segdream(*arguments).code == 130
    prior()


def test_resume_from_within_the_folder_writes_beside_it(segdream, prior, folder, monkeypatch):
    interrupt(segdream, prior, "generate", BUS, "-o", "bus.ply", *SIX)
    monkeypatch.chdir(folder / "bus.run")
    assert segdream("generate", "--resume", ".").code == 0
    assert (folder / "bus.ply").is_file()
    assert not (folder / "bus.run" / "bus.ply").exists()


def test_resume_replaces_an_asset_only_with_force(segdream, prior, folder):
    (folder / "bus.ply").write_text("old")
    interrupt(segdream, prior, "generate", BUS, "-o", "bus.ply", "--force", *SIX)
    refused = segdream("generate", "--resume", "bus.run")
    assert refused.code == 6
    assert "bus.ply exists" in refused.err
    assert (folder / "bus.ply").read_text() == "old"
    assert segdream("generate", "--resume", "bus.run", "--force").code == 0
    assert len(formats.read(folder / "bus.ply"))


def test_list_resumes_what_was_stopped(segdream, prior, folder):
    (folder / "list.txt").write_text("a red ball\na blue ball\n")
    arguments = ("generate", "--prompts", "list.txt", "--out-dir", ".", *SIX)
    interrupt(segdream, prior, *arguments)
    done = segdream(*arguments)
    assert done.code == 0
    assert "resuming a_red_ball.run after step" in done.err
    assert "2 made, 0 skipped, 0 failed" in done.err
    segdream("generate", "a red ball", "-o", "whole.ply", *SIX)
    assert (folder / "whole.ply").read_bytes() == (folder / "a_red_ball.ply").read_bytes()


def test_list_refuses_a_run_with_other_settings(segdream, prior, folder):
    (folder / "list.txt").write_text("a red ball\n")
    interrupt(segdream, prior, "generate", "--prompts", "list.txt", "--out-dir", ".", *SIX)
    done = segdream("generate", "--prompts", "list.txt", "--out-dir", ".", *SIX, "--set", "loss.scale=9")
    assert done.code == 1
    assert "a_red_ball.run holds an unfinished run" in done.err


def test_checkpoints_are_written_regularly_and_removed_at_the_end(segdream, monkeypatch):
    steps, real = [], RunDir.save

    def save(run, asset):
        steps.append(asset.step)
        real(run, asset)
        assert run.step() == asset.step

    monkeypatch.setattr(RunDir, "save", save)
    assert segdream("generate", BUS, "-o", "bus.ply", "--set", "output.checkpoint_every=2", *SIX).code == 0
    assert steps == [2, 4, 6]
    assert not Path("bus.run/checkpoint.safetensors").exists()


def test_init_writes_a_file_that_generate_starts_from(segdream):
    done = segdream("init", BUS, "--init", "box", "--count", "30", "--seed", "2", "-o", "cloud.ply", *TINY[:2])
    assert (done.code, done.out) == (0, "cloud.ply\n")
    start = formats.read(Path("cloud.ply"))
    assert len(start) == 30
    assert start.provenance["init"] == "box"
    arguments = ("generate", BUS, "-o", "bus.ply", *TINY, "--init", "cloud.ply", "--steps", "1")
    assert segdream(*arguments, "--set", "optim.means_lr=[1e-12,1e-12]").code == 0
    np.testing.assert_allclose(formats.read(Path("bus.ply")).means, start.means, atol=1e-6)


def test_rewritten_prompts_are_noted_and_recorded(segdream, prior):
    """By init, a single prompt and a list; the asset of a stopped run goes on with the same reading only."""
    typed, said = "the GREY kitties", "mini reads 'the GREY kitties' as 'a gray cat'"
    done = segdream("init", typed, "--init", "box", "--count", "9", "-o", "cloud.ply", "--json", *TINY[:2])
    assert said in done.err
    assert json.loads(done.out)["prompt_read"] == "a gray cat"
    assert formats.read(Path("cloud.ply")).provenance["prompt"] == typed
    Path("list.txt").write_text(f"{typed}\na blue ball\n")
    done = segdream("generate", "--prompts", "list.txt", "--out-dir", ".", "--json", *SIX)
    assert done.err.count(said) == 1
    assert [json.loads(line).get("prompt_read") for line in done.out.splitlines()] == ["a gray cat", None]
    record = json.loads(Path("the_grey_kitties.run/run.json").read_text())
    assert (record["prompt"], record["prompt_read"]) == (typed, "a gray cat")


def test_resume_refuses_another_reading_of_the_prompt(segdream, prior, monkeypatch):
    interrupt(segdream, prior, "generate", "the GREY kitties", "-o", "cat.ply", *SIX)
    monkeypatch.setattr(session, "describe_prompt", lambda *_: {"prompt_read": "a gray dog"})
    done = segdream("generate", "--resume", "cat.run")
    assert done.code == 2
    assert "cat.run was begun with the prompt read as 'a gray cat'" in done.err
    assert "hint: segdream generate 'the GREY kitties'" in done.err


@pytest.fixture
def asset(segdream):
    """A small asset."""
    segdream("init", BUS, "--init", "sphere", "--count", "50", "-o", "bus.ply", *TINY[:2])
    return Path("bus.ply")


def test_render_writes_a_view(segdream, asset):
    done = segdream("render", asset, "--view", "45,20", "--size", "48", "-o", "my view.png", "--json")
    said = json.loads(done.out)
    assert (done.code, said["output"], said["kind"], said["size"]) == (0, "my view.png", "view", [48, 48])
    with Image.open("my view.png") as image:
        assert (image.mode, image.size) == ("RGB", (48, 48))
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert image.getpixel((24, 24)) != (255, 255, 255)


@pytest.mark.parametrize("channel", ["rgb", "alpha", "depth", "normals"])
def test_render_writes_each_channel(segdream, asset, channel):
    assert segdream("render", asset, "--view", "0,0", "--size", "32", "--channel", channel, "-o", "a.png").code == 0
    with Image.open("a.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(pixels[16, 16] - pixels[0, 0]).max() > 5


def test_render_writes_a_transparent_view(segdream, asset):
    segdream("render", asset, "--view", "0,0", "--size", "32", "--background", "transparent", "-o", "a.png")
    with Image.open("a.png") as image:
        assert image.mode == "RGBA"
        assert image.getpixel((0, 0))[3] == 0 < image.getpixel((16, 16))[3]


def test_render_writes_sheet_frames_and_video(segdream, asset):
    assert segdream("render", asset, "--contact-sheet", "--size", "32").out == "bus-sheet.png\n"
    with Image.open("bus-sheet.png") as image:
        assert image.size[0] == 128
    assert segdream("render", asset, "--frames", "--n-frames", "3", "--size", "32", "-o", "turn").out == "turn\n"
    assert sorted(path.name for path in Path("turn").iterdir()) == [f"frame-000{i}.png" for i in range(3)]
    refused = segdream("render", asset, "--frames", "--n-frames", "3", "--size", "32", "-o", "turn")
    assert refused.code == 6
    done = segdream("render", asset, "--turntable", "--n-frames", "4", "--fps", "2", "--size", "32", "-o", "turn.gif")
    assert done.code == 0
    with Image.open("turn.gif") as video:
        assert (video.n_frames, video.size) == (4, (32, 32))


def test_export_writes_several_files(segdream, asset):
    done = segdream("export", asset, "-o", "a.splat", "-o", "b.ply", "--json")
    assert [json.loads(line)["output"] for line in done.out.splitlines()] == ["a.splat", "b.ply"]
    assert Path("a.splat").stat().st_size == 50 * 32
    assert len(formats.read(Path("b.ply"))) == 50
    assert segdream("export", asset, "-o", "c.ply", "--format", "ply-compact").code == 0
    assert Path("c.ply").stat().st_size < Path("b.ply").stat().st_size


def test_export_writes_the_same_edits_to_every_output(segdream, asset):
    assert segdream("export", asset, "--max-gaussians", "30", "-o", "thinned.ply").code == 0
    before = formats.read(Path("thinned.ply"))
    edits = ["--max-gaussians", "30", "--rotate", "0,90,0", "--scale", "2", "--sh", "0"]
    done = segdream("export", asset, *edits, "-o", "a.ply", "-o", "b.spz", "-o", "c.glb", "--format", "spz4", "--json")
    assert [json.loads(line)["gaussians"] for line in done.out.splitlines()] == [30, 30, 30]
    exact = formats.read(Path("a.ply")).means
    turned = 2 * before.means @ np.array([[0, 0, -1], [0, 1, 0], [1, 0, 0]])
    assert np.abs(turned[:, None] - exact[None]).max(axis=2).min(axis=0).max() < 1e-5
    for name in ("b.spz", "c.glb"):
        np.testing.assert_allclose(formats.read(Path(name)).means, exact, atol=1e-5)
    assert Path("b.spz").read_bytes()[:8] == b"NGSP\4\0\0\0"  # --format is for the suffix that it goes with


@pytest.mark.parametrize("bits", [12, 16, 20])
def test_export_writes_spz_with_fractional_bits(segdream, asset, bits):
    assert segdream("export", asset, "-o", "a.spz", "--spz-bits", bits).code == 0
    assert gzip.decompress(Path("a.spz").read_bytes())[13] == bits


def test_list_words_formats_and_version_are_printed(segdream):
    assert "splat" in segdream("export", "--formats").out
    words = segdream("generate", "--list-words", *TINY[:4])
    assert words.code == 0
    assert "school bus" in words.out
    assert "yellow" in words.out
    assert len(words.out.splitlines()) < 12
    vocabulary = json.loads(segdream("generate", "--list-words", "--json", *TINY[:4]).out)
    assert f"synonyms: {sum(map(len, vocabulary['synonyms'].values()))}, such as bus (school bus)," in words.out
    assert segdream("--version").out == f"{__version__}\n"


def test_help_exists_for_every_command(segdream):
    assert "Exit codes" in segdream("--help").out
    for command in ("init", "generate", "render", "view", "export", "doctor"):
        done = segdream(command, "-h")
        assert (done.code, done.err) == (0, "")
        assert command in done.out


def test_doctor_reports_ok_for_all_that_generate_needs(segdream):
    done = segdream("doctor", "--json")
    findings = {(line["name"], line["state"]): line for line in map(json.loads, done.out.splitlines())}
    assert done.code == 0
    assert {("python", "ok"), ("torch", "ok"), ("numba", "ok"), ("prior", "ok")} <= set(findings)


def test_doctor_names_the_engine_and_why(segdream, monkeypatch):
    def finding():
        findings = [json.loads(line) for line in segdream("doctor", "--json").out.splitlines()]
        return next(found for found in findings if found["name"] == "engine")

    if importlib.util.find_spec("openvino") is not None:
        assert finding()["state"] == "ok"
        assert "OpenVINO 20" in finding()["detail"]
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert finding()["detail"] == "torch computes the U-Net on a CPU: OpenVINO is not installed"
    assert finding()["hint"] == "pip install openvino"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it builds them")
def test_doctor_builds_kernels_for_cuda_only(segdream):
    done = segdream("doctor", "--build-kernels")
    assert done.code == 3
    assert "no CUDA device" in done.err


def test_doctor_exits_3_if_no_asset_can_be_made(segdream, monkeypatch):
    from segdream_cli.priors import checkpoint as weights

    monkeypatch.setattr(weights, "PRIORS", dict.fromkeys(weights.PRIORS, "/nowhere"))
    done = segdream("doctor")
    assert done.code == 3
    assert "hint:" in done.out
    assert "this machine can't make assets: prior" in done.err


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [3]), ("0-3", [0, 1, 2, 3]), ("5,1", [5, 1]), ("1, 4-5", [1, 4, 5]), ("7-7", [7])]
)
def test_parse_seeds_lists_them_in_order(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,1", "-1", "0-99999", "1,,2", "1-", "0-2,2"])
def test_parse_seeds_refuses_other_texts(text):
    with pytest.raises(UsageProblem, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A  yellow,school-bus!", "a_yellow_school_bus"),
        ("Crème brûlée", "creme_brulee"),
        ("東京 タワー", "東京_タワー"),
        ("../../etc/passwd", "etc_passwd"),
        ("!!!", "asset"),
        ("x " * 99, ("x_" * 30).rstrip("_")),
    ],
)
def test_slug_is_a_safe_file_name(prompt, name):
    assert slug(prompt) == name


def test_parse_view_and_parse_background():
    assert parse_view(" -45 , 20.5 ") == (-45.0, 20.5)
    assert parse_background("#ff0080") == pytest.approx((1, 0, 128 / 255))
    assert parse_background("transparent") is None
    for text in ("45", "45,91", "a,b", "1.2.3,4", "inf,0", ""):
        with pytest.raises(UsageProblem, match="--view"):
            parse_view(text)
    with pytest.raises(UsageProblem, match="--background"):
        parse_background("nocolour")


def mesh_extent(path):
    trimesh = pytest.importorskip("trimesh")
    return float(trimesh.load(path, force="mesh").extents.max())


@pytest.mark.slow
def test_export_writes_a_mesh(segdream, monkeypatch):
    pytest.importorskip("xatlas")
    monkeypatch.setattr(mesh, "extract", partial(mesh.extract, resolution=64))
    monkeypatch.setattr(texture, "VIEW_SIZE", 128)
    assert segdream("generate", BUS, "-o", "bus.ply", *SIX).code == 0
    done = segdream(
        "export", "bus.ply", "--format", "mesh", "-o", "bus.glb", "--faces", "500", "--opacity", "0.2", "--json"
    )
    (event,) = map(json.loads, done.out.splitlines())
    assert event["triangles"] > 100
    small = mesh_extent("bus.glb")
    larger = ("--format", "mesh", "-o", "large.glb", "-o", "large.ply", "--faces", "500", "--opacity", "0.2")
    assert segdream("export", "bus.ply", "--scale", "3", *larger).code == 0
    assert mesh_extent("large.glb") == pytest.approx(3 * small, rel=0.02)
    assert len(formats.read(Path("large.ply"))) == len(formats.read(Path("bus.ply")))
    assert Path("bus.glb").read_bytes()[:4] == b"glTF"
    assert segdream("export", "bus.ply", "--format", "mesh", "-o", "bus.stl").code == 2
    Path("bus.mtl").write_text("mine")
    refused = segdream("export", "bus.ply", "-o", "bus.obj", "--faces", "500")
    assert refused.code == 6
    assert Path("bus.mtl").read_text() == "mine"
    assert not Path("bus.obj").exists()


def test_main_lets_waiting_threads_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["segdream", "--version"])
    for given, expected in (("", "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if given:
            monkeypatch.setenv("OMP_WAIT_POLICY", given)
        with pytest.raises(SystemExit):
            cli.main()
        assert os.environ["OMP_WAIT_POLICY"] == expected


def test_torch_is_not_imported_before_main() -> None:
    """Or OpenMP would not read the policy that main sets."""
    code = "import sys, segdream_cli.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
