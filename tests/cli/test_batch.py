"""Several assets at once on the command line: what each gets, what is saved, what one failure does to the others."""

import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import edit_weights
from commands import REFINED, SIX, TINY
from fakes import AnalyticPrior
from test_cli import Interrupted

from benchmarks.faults import KILL, Fault, run_forked
from segdream_cli import cli, formats
from segdream_cli.config import MINI
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.pointe import sampler
from segdream_cli.pointe.model import PointE
from segdream_cli.pointe.schedule import noise_levels
from segdream_cli.runs import session as running
from segdream_cli.runs.jobs import jobs_of_list
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.runs.session import Session
from segdream_cli.runs.spec import Request

THREE = ("a red ball", "a blue ball", "a green ball")
NAMES = ("a_red_ball", "a_blue_ball", "a_green_ball")


@pytest.fixture
def listed(folder):
    """The arguments that make a list of three."""
    (folder / "list.txt").write_text("\n".join(THREE))
    return ("generate", "--prompts", "list.txt", "--out-dir", ".", *SIX)


@pytest.mark.usefixtures("lockstep")
def test_batch_writes_all_files_of_each_asset(segdream, listed, sizes, folder):
    """Asset, run folder, events and result line; a third that does not fill the batch follows by itself."""
    done = segdream(*listed, "--batch", "2", "--json", "--set", "output.preview_every=3")
    assert done.code == 0
    assert sizes == [(2, 0), (1, 0)]
    assert "3 made, 0 skipped, 0 failed" in done.err
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [(line["event"], line["output"], line["prompt"]) for line in lines] == [
        ("done", f"{name}.ply", prompt) for name, prompt in zip(NAMES, THREE, strict=True)
    ]
    for name, prompt, line in zip(NAMES, THREE, lines, strict=True):
        assert line["steps"] == 6
        asset = formats.read(folder / f"{name}.ply")
        assert asset.provenance["prompt"] == prompt
        assert sorted(path.name for path in (folder / f"{name}.run").iterdir()) == [
            "events.jsonl", "preview-000003.png", "preview-000006.png", "run.json",
        ]  # fmt: skip
        events = [json.loads(text) for text in (folder / f"{name}.run" / "events.jsonl").read_text().splitlines()]
        assert [event["step"] for event in events] == [1, 2, 3, 4, 5, 6]
        assert {len(event[key]) for event in events for key in ("times", "grad_norm", "n_gaussians")} == {1}
        assert line["gaussians"] == events[-1]["n_gaussians"][0] == len(asset)


@pytest.mark.slow
@pytest.mark.usefixtures("lockstep")
def test_batch_loads_point_e_once_and_releases_it(segdream, listed, folder, monkeypatch):
    """The embedded prior's own Point-E, which is freed before assets grow and loaded again for the next ones."""
    monkeypatch.setenv("SEGDREAM_CACHE", str(folder / "cache"))
    monkeypatch.setattr(sampler, "noise_levels", lambda sampling: noise_levels(replace(sampling, steps=2)))
    loads, while_running, real = [], [], Pipeline.run
    monkeypatch.setattr(PointE, "load", lambda *given, load=PointE.load: loads.append(given[2]) or load(*given))

    def run(pipeline, assets):
        while_running.append("_networks" in vars(pipeline._clouds))
        return real(pipeline, assets)

    monkeypatch.setattr(Pipeline, "run", run)
    arguments = (*listed, "--init", "point-e", "--set", "init.copies=1", "--set", "densify.cap=600", "--batch", "2")
    first = segdream(*arguments, "--dtype", "fp32")
    assert first.code == 0, first.err
    assert (loads, while_running) == ([torch.float32] * 2, [False, False])
    assert "comes from the cache" not in first.err
    whole = [(folder / f"{name}.ply").read_bytes() for name in NAMES]
    again = segdream(*arguments, "--force", "--dtype", "fp32")
    assert again.err.count("comes from the cache") == 1
    assert len(loads) == 2
    assert [(folder / f"{name}.ply").read_bytes() for name in NAMES] == whole
    other = segdream(*arguments, "--force", "--dtype", "bf16")  # other arithmetic, other clouds
    assert other.code == 0, other.err
    assert "comes from the cache" not in other.err
    assert loads[2:] == [torch.bfloat16] * 2


@pytest.mark.usefixtures("lockstep")
def test_interrupted_batch_is_resumed_together_by_the_same_list(segdream, prior, listed, sizes, folder):
    assert segdream(*listed, "--batch", "2").code == 0
    whole = [(folder / f"{name}.ply").read_bytes() for name in NAMES]
    for name in NAMES:
        (folder / f"{name}.ply").unlink()
    prior(lambda profile: Interrupted(profile, 8, signal.SIGINT))
    stopped = segdream(*listed, "--batch", "2")
    assert (stopped.code, stopped.out) == (130, "")
    step = RunDir(folder / "a_red_ball.run").step()
    assert 0 < step < 6
    for name in NAMES[:2]:
        assert RunDir(folder / f"{name}.run").step() == step
        assert f"segdream generate --resume {name}.run" in stopped.err
    assert "repeat the command to resume the whole list" in stopped.err
    prior()
    sizes.clear()
    again = segdream(*listed, "--batch", "2")
    assert again.code == 0
    assert sizes == [(2, step), (1, 0)]
    assert f"resuming a_blue_ball.run after step {step}" in again.err
    assert [(folder / f"{name}.ply").read_bytes() for name in NAMES] == whole


@pytest.mark.usefixtures("lockstep")
def test_list_makes_assets_at_the_same_step_together(segdream, prior, listed, sizes, folder):
    """The first was stopped by itself; the other two have not begun."""
    prior(lambda profile: Interrupted(profile, 8, signal.SIGINT))
    assert segdream(*listed, "--batch", "1").code == 130
    prior()
    sizes.clear()
    step = RunDir(folder / "a_red_ball.run").step()
    done = segdream(*listed, "--batch", "3")
    assert done.code == 0
    assert sorted(sizes) == [(1, step), (2, 0)]
    assert "3 made" in done.err


class Counting(AnalyticPrior):
    """Counts its predictions."""

    calls = 0

    def predict_noise(self, latents, timesteps, text):
        type(self).calls += 1
        return super().predict_noise(latents, timesteps, text)


FORMS = {
    "list": (("--prompts", "list.txt", "--out-dir", "."), [(prompt, 0) for prompt in THREE], NAMES),
    "seeds": (("a red ball", "-o", "{seed}.ply", "--seeds", "0-2"), [("a red ball", seed) for seed in range(3)], "012"),
}
MEASURED = ("--set", "optim.stop_every=2", "--set")


def early_end(segdream, jobs):
    """Settings with which some of the jobs end their distillation early, and some do not."""
    changes = []
    for number, (prompt, seed) in enumerate(jobs):
        settings = (*SIX, *MEASURED, "optim.stop_change=1e-9")
        segdream("generate", prompt, "--seed", seed, "-o", f"measured-{number}.ply", *settings)
        events = Path(f"measured-{number}.run/events.jsonl").read_text().splitlines()
        changes += [change for event in events for change in json.loads(event).get("change", [])]
    assert len(set(changes)) == len(jobs)
    return *MEASURED, f"optim.stop_change={(min(changes) + max(changes)) / 2}"


@pytest.mark.parametrize("kind", ["plain", "refined", "early end", "refined after an early end"])
@pytest.mark.parametrize("form", FORMS)
def test_cpu_gives_an_asset_the_same_bits_whatever_else_is_made_or_stopped(segdream, prior, listed, folder, form, kind):
    """The bits of each asset alone: from `--batch`, and after SIGTERM, the printed commands, and the rest."""
    given, jobs, names = FORMS[form]
    settings = (*(REFINED if "refined" in kind else SIX), *(early_end(segdream, jobs) if "early" in kind else ()))
    command = ("generate", *given, *settings, "--batch", "3")
    (folder / "alone").mkdir()
    steps, alone = [], []
    Counting.calls = 0  # twice those of three assets, in the end
    prior(lambda profile: Counting(profile=profile))
    for (prompt, seed), name in zip(jobs, names, strict=True):
        done = segdream("generate", prompt, "--seed", seed, "-o", f"alone/{name}.ply", *settings, "--json")
        steps.append(json.loads(done.out)["steps"])
        alone.append((folder / "alone" / f"{name}.ply").read_bytes())
    assert len(set(steps)) == (2 if "early" in kind else 1)
    whole = segdream(*command)
    assert whole.code == 0, whole.err
    assert "--batch has no effect: a CPU optimises one asset at a time" in whole.err
    assert [(folder / f"{name}.ply").read_bytes() for name in names] == alone
    for name in names:
        (folder / f"{name}.ply").unlink()
        shutil.rmtree(folder / f"{name}.run")
    prior(lambda profile: Interrupted(profile, Counting.calls // 4, signal.SIGTERM))
    stopped = segdream(*command)
    assert stopped.code == 143
    assert stopped.out.split() == [f"{names[0]}.ply"]
    assert [RunDir(folder / f"{name}.run").can_resume() for name in names] == [False, True, False]
    prior()
    resumed = [segdream(*words.split()) for words in re.findall(r"segdream (generate --resume \S+)", stopped.err)]
    assert [(done.code, done.out) for done in resumed] == [(0, f"{names[1]}.ply\n")]
    if form == "list":
        assert "repeat the command to resume the whole list" in stopped.err
        rest = segdream(*command)
    else:
        (seeds,) = re.findall("the remaining seeds have not begun; (--seeds \\S+) makes them", stopped.err)
        rest = segdream(*command, *seeds.split())
    assert (rest.code, rest.out) == (0, f"{names[2]}.ply\n")
    assert [(folder / f"{name}.ply").read_bytes() for name in names] == alone


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_list_killed_at_a_checkpoint_ends_with_the_same_bits(segdream, listed, folder):
    command = (*listed, "--batch", "3", "--set", "output.checkpoint_every=2")
    assert segdream(*command).code == 0
    whole = [(folder / f"{name}.ply").read_bytes() for name in NAMES]
    for name in NAMES:
        (folder / f"{name}.ply").unlink()
    killed = run_forked(cli.run, command, folder, Fault(KILL, 2, r"replace .*blue_ball\.run"))
    assert killed.code == -signal.SIGKILL
    assert RunDir(folder / "a_blue_ball.run").step() == 2
    assert segdream(*command).code == 0
    assert [(folder / f"{name}.ply").read_bytes() for name in NAMES] == whole


@pytest.mark.usefixtures("lockstep")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_batch_killed_between_two_checkpoints_is_resumed_by_the_same_list(segdream, listed, sizes, folder):
    """One asset is a checkpoint ahead of the others; they end as an uninterrupted batch does, up to rounding."""
    command = (*listed, "--batch", "3", "--set", "output.checkpoint_every=2")
    assert segdream(*command).code == 0
    whole = [formats.read(folder / f"{name}.ply") for name in NAMES]
    for name in NAMES:
        (folder / f"{name}.ply").unlink()
    killed = run_forked(cli.run, command, folder, Fault(KILL, 2, r"replace .*blue_ball\.run"))
    assert killed.code == -signal.SIGKILL
    assert [RunDir(folder / f"{name}.run").step() for name in NAMES] == [4, 2, 2]
    sizes.clear()
    assert segdream(*command).code == 0
    assert sorted(sizes) == [(1, 4), (2, 2)]
    for name, expected in zip(NAMES, whole, strict=True):
        np.testing.assert_allclose(formats.read(folder / f"{name}.ply").means, expected.means, atol=1e-4)


class Poisoned(AnalyticPrior):
    """Knows no number for what is blue."""

    def mean(self, text):
        return super().mean(text) * (torch.nan if "blue" in text else 1)


@pytest.mark.usefixtures("either_way", "lockstep")
def test_diverged_asset_leaves_the_batch(segdream, prior, listed, folder):
    assert segdream(*listed, "--batch", "3").code == 0
    whole = [formats.read(folder / f"{name}.ply") for name in NAMES]
    prior(lambda profile: Poisoned(profile=profile))
    done = segdream(*listed, "--batch", "3", "--force", "--json")
    assert done.code == 1
    assert "2 made, 0 skipped, 1 failed" in done.err
    assert "kept as it was after step 0: a_blue_ball.run" in done.err
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["event"] for line in lines] == ["stopped", "done", "done", "error"]
    assert lines[0]["run"] == "a_blue_ball.run"
    assert lines[3]["exit_code"] == 7
    assert "'a blue ball' is not finite in step 1" in lines[3]["message"]
    for place in (0, 2):
        found = formats.read(folder / f"{NAMES[place]}.ply")
        np.testing.assert_allclose(found.means, whole[place].means, rtol=1e-4, atol=1e-5)
        events = (folder / f"{NAMES[place]}.run" / "events.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in events] == list(range(1, len(events) + 1))


class PoisonedAndInterrupted(Poisoned, Interrupted):
    """Both."""


@pytest.mark.usefixtures("either_way", "lockstep")
def test_diverged_asset_is_reported_after_an_interruption(segdream, prior, listed, folder):
    prior(lambda profile: PoisonedAndInterrupted(profile, 11, signal.SIGINT))
    done = segdream(*listed, "--batch", "3")
    assert done.code == 130
    assert "'a blue ball' is not finite in step 1" in done.err
    for name in (NAMES[0], NAMES[2]):
        assert RunDir(folder / f"{name}.run").step() > 0
        assert f"segdream generate --resume {name}.run" in done.err


@pytest.mark.usefixtures("lockstep")
def test_damaged_checkpoint_fails_its_asset_only(segdream, prior, listed, folder):
    """A checkpoint of the right step, but without its Gaussians."""
    prior(lambda profile: Interrupted(profile, 8, signal.SIGINT))
    assert segdream(*listed, "--batch", "3").code == 130
    prior()
    checkpoint = folder / "a_blue_ball.run" / "checkpoint.safetensors"
    edit_weights(checkpoint, drop="gaussians.means")
    done = segdream(*listed, "--batch", "3")
    assert (done.code, done.out.split()) == (1, ["a_red_ball.ply", "a_green_ball.ply"])
    assert "2 made, 0 skipped, 1 failed" in done.err
    assert "damaged" in done.err


@pytest.mark.usefixtures("lockstep")
def test_seeds_are_made_in_one_batch(segdream, prior, sizes, folder):
    seeds = ("generate", "a red ball", "--seeds", "0-2", "-o", "{seed}.ply", "--batch", "3", *SIX)
    done = segdream(*seeds)
    assert (done.code, done.out.split(), sizes) == (0, ["0.ply", "1.ply", "2.ply"], [(3, 0)])
    assert formats.read(Path("2.ply")).provenance["seed"] == 2
    prior(lambda profile: Poisoned(profile=profile))
    failed = segdream("generate", "a blue ball", "--seeds", "3-4", "-o", "{seed}.ply", "--batch", "2", *SIX)
    assert (failed.code, failed.out) == (7, "")
    assert failed.err.count("is not finite in step 1") == 2


class Greedy(AnalyticPrior):
    """Fails in the third step, as an allocation does."""

    def __init__(self, profile):
        super().__init__(profile=profile)
        self.calls = 0

    def encode_image(self, rgb, noise):
        self.calls += 1
        if self.calls == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")
        return super().encode_image(rgb, noise)


@pytest.mark.usefixtures("lockstep")
def test_out_of_memory_ends_the_list_with_a_smaller_batch_as_hint(segdream, prior, listed, sizes, folder):
    prior(Greedy)
    done = segdream(*listed, "--batch", "2")
    assert (done.code, done.out) == (5, "")
    assert "--batch 1" in done.err
    for name in NAMES[:2]:
        assert RunDir(folder / f"{name}.run").step() == 2
    assert not (folder / "a_green_ball.run").exists()
    prior()
    sizes.clear()
    assert segdream(*listed, "--batch", "1").code == 0
    assert sizes == [(1, 2), (1, 2), (1, 0)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a red ball", "-o", "ball.ply", "--batch", "2"), "--batch needs several assets"),
        (("--prompts", "list.txt", "--out-dir", ".", "--batch", "0"), "--batch"),
        (("--resume", "ball.run", "--batch", "2"), "--batch can't be changed"),
    ],
)
def test_batch_needs_several_assets(segdream, arguments, words):
    done = segdream("generate", *arguments)
    assert done.code == 2
    assert words in done.err


@pytest.mark.parametrize(
    ("device", "given", "batch"), [("cpu", None, 1), ("cuda", None, 24), ("cuda", 3, 3), ("cpu", 5, 1)]
)
def test_batch_defaults_to_the_prior_on_cuda(monkeypatch, device, given, batch):
    monkeypatch.setattr(running, "choose_device", lambda name: torch.device(device))
    request = Request(quality="standard", settings={"prior.name": MINI})
    assert Session.load(request, batch=given).batch == batch


def test_folder_in_the_place_of_an_asset_is_not_skipped(segdream, listed, folder):
    (folder / "a_red_ball.ply").mkdir()
    (folder / "list.txt").write_text("a red ball")
    done = segdream(*listed)
    assert (done.code, done.out) == (1, "")
    assert "a_red_ball.ply is a folder" in done.err
    assert "0 made, 0 skipped, 1 failed" in done.err


@pytest.mark.parametrize("source", ["empty.txt", "/dev/null"])
def test_prompts_file_without_a_prompt_has_a_hint_that_writes_one(segdream, folder, source):
    (folder / "empty.txt").write_text("# none\n\n")
    done = segdream("generate", "--prompts", source, "--out-dir", "assets", *TINY, "--steps", "1")
    assert (done.code, f"{source} has no prompt" in done.err) == (2, True)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_prompts_file_may_begin_with_a_byte_order_mark(tmp_path, encoding):
    path = tmp_path / "list.txt"
    mark = "\ufeff" if encoding.endswith("-be") else ""
    path.write_bytes(f"{mark}# a list\r\na süßer ball\r\n".encode(encoding))
    assert [job.prompt for job in jobs_of_list(str(path), tmp_path, [0], with_seed=False)] == ["a süßer ball"]


@pytest.mark.parametrize(
    ("content", "message", "encoding"),
    [
        ("a süßer ball\n".encode("cp1252"), "is not UTF-8 text", "cp1252"),
        ("a “red” ball\n".encode("cp1252"), "is not UTF-8 text", "cp1252"),
        ("a red ball\n".encode("utf-16-le"), "is not UTF-8 text", "utf-16le"),
        ("a süßer ball\n".encode("utf-16-be"), "is not UTF-8 text", "utf-16be"),
        (b"\x7fELF\0\0\0\xff\xd8", "is not UTF-8 text", None),
        (b"\x81\x8d\xff", "is not UTF-8 text", None),
        ("a ball\n".encode("utf-16")[:-1], "is not UTF-16 text: it is cut off or damaged after byte 14", None),
        (
            "a ball\n".encode("utf-16") + b"\0\xd8\n\0",
            "is not UTF-16 text: it is cut off or damaged after byte 16",
            None,
        ),
        ("a ball\n".encode("utf-32")[:-1], "is not UTF-32 text: it is cut off or damaged after byte 28", None),
    ],
)
def test_prompts_file_in_another_encoding_is_refused(segdream, content, message, encoding):
    Path("list.txt").write_bytes(content)
    done = segdream("generate", "--prompts", "list.txt", "--out-dir", "assets", *TINY, "--steps", "1")
    hint = f"iconv -f {encoding} -t utf-8 list.txt > prompts.txt && segdream generate --prompts prompts.txt "
    assert done.code == 2
    assert f"error: list.txt {message}" in done.err
    assert (hint in done.err) if encoding else ("hint:" not in done.err)
