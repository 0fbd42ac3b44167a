"""Names of files from templates, and commands that can be run again."""

import json
import signal
from pathlib import Path

import pytest
from commands import BUS, SIX, TINY
from test_cli import Interrupted
from test_options import random_splats
from test_refine_command import FAST

from segdream_cli import formats
from segdream_cli.config import MINI
from segdream_cli.errors import UsageProblem
from segdream_cli.runs import session
from segdream_cli.runs.jobs import Job, fill_template, jobs_of_list, jobs_of_prompt
from segdream_cli.runs.run_dir import RunDir

SHORT = (*TINY, "--steps", "2")


def files(jobs):
    return [str(job.output) for job in jobs]


def test_fill_template_fills_each_field_once():
    job = Job("a {seed} Bus!", 7, Path())
    labels = {"method": "sds", "prior": "tiny"}
    filled = fill_template(Path("{prior}/{method}/{index}-{prompt}-{seed}.ply"), job, 3, labels)
    assert str(filled) == "tiny/sds/3-a_seed_bus-7.ply"


def test_fill_template_names_an_unknown_field_and_a_template_without_it():
    with pytest.raises(UsageProblem, match=r"has the field \{colour\}, not one of \{prompt\}") as problem:
        fill_template(Path("{prompt}-{colour}.ply"), Job(BUS, 0, Path()))
    assert problem.value.hint == "-o '{prompt}-{index}.ply'"


def test_jobs_of_prompt_take_a_template_with_an_index():
    assert files(jobs_of_prompt(BUS, Path("{index}.spz"), [5, 3], 0)) == ["1.spz", "2.spz"]
    assert files(jobs_of_prompt(BUS, Path("{prompt}.spz"), None, 4)) == ["a_yellow_school_bus.spz"]
    with pytest.raises(UsageProblem, match="is one file"):
        jobs_of_prompt(BUS, Path("{prompt}.ply"), [0, 1], 0)


def test_jobs_of_list_take_a_template_that_tells_assets_apart(folder):
    (folder / "list.txt").write_text("a red ball\nA red ball!\na red cube\n")
    take = lambda template, seeds, several: jobs_of_list(  # noqa: E731
        "list.txt", None, seeds, Path(template), with_seed=several
    )
    assert files(take("all/{prompt}.spz", [4], False)) == [
        "all/a_red_ball.spz",
        "all/a_red_ball-2.spz",
        "all/a_red_cube.spz",
    ]
    assert files(take("{index}.ply", [4, 5], True)) == [f"{number}.ply" for number in range(1, 7)]
    for template, seeds, hint in (("x.spz", [0], "x-{prompt}.spz"), ("{prompt}.ply", [0, 1], "{prompt}-{seed}.ply")):
        with pytest.raises(UsageProblem, match=r"has no \{") as problem:
            take(template, seeds, len(seeds) > 1)
        assert problem.value.hint == f"-o '{hint}'"


def test_generate_fills_templates_and_makes_their_folders(segdream, folder):
    done = segdream("generate", BUS, "-o", "{prior}/{method}/{prompt}.ply", "--method", "sds", *SHORT)
    assert done.out == f"{MINI}/sds/a_yellow_school_bus.ply\n", done.err
    (folder / "list.txt").write_text("a red ball\na blue ball\n")
    done = segdream("generate", "--prompts", "list.txt", "-o", "all/{index}-{prompt}.splat", *SHORT)
    assert done.out.split() == ["all/1-a_red_ball.splat", "all/2-a_blue_ball.splat"], done.err
    init = segdream("init", BUS, "-o", "clouds/{prompt}-{seed}.ply", "--seed", "9", *TINY[:6])
    assert init.out == "clouds/a_yellow_school_bus-9.ply\n", init.err
    polished = segdream("refine", init.out.strip(), BUS, "-o", "new/{prior}.ply", *FAST)
    assert polished.out == f"new/{MINI}.ply\n", polished.err


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ((BUS, "-o", "{color}.ply"), "has the field {color}", "-o '{index}.ply'"),
        ((BUS, "-o", "{seed}.ply", "--best-of", "2"), "not known before it is chosen", "-o best.ply"),
        ((BUS, "-o", "x.ply", "--skip-existing", "--force"), "contradict each other", "--skip-existing"),
        (("--prompts", "list.txt", "-o", "x.ply"), "has no {prompt}", "-o 'x-{prompt}.ply'"),
        (("--prompts", "list.txt", "-o", "{index}.ply", "--out-dir", "all"), "both say where", "--out-dir all"),
    ],
)
def test_templates_that_cant_be_used(segdream, folder, arguments, message, hint):
    (folder / "list.txt").write_text("a red ball\n")
    done = segdream("generate", *arguments, *SHORT)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert hint in done.err
    assert [path.name for path in folder.iterdir()] == ["list.txt"]


def test_stem_is_the_name_of_the_asset(segdream, folder):
    segdream("generate", BUS, "-o", "bus.compressed.ply", *SHORT)
    done = segdream("export", "bus.compressed.ply", "-o", "web/{stem}.spz", "-o", "{stem}-2.ply")
    assert (done.code, done.out.split()) == (0, ["web/bus.spz", "bus-2.ply"]), done.err
    view = ("--view", "0,0", "--size", "16")
    assert segdream("render", "web/bus.spz", *view, "-o", "pictures/{stem}.png").out == "pictures/bus.png\n"
    assert (folder / "pictures" / "bus.png").exists()
    refined = segdream("refine", "bus-2.ply", BUS, "-o", "{stem}-{seed}.ply", "--seed", "4", "--dry-run", *FAST)
    assert (refined.code, "bus-2-4.ply" in refined.out) == (0, True), refined.err
    for command in (("export", "bus-2.ply"), ("render", "bus-2.ply", *view)):
        refused = segdream(*command, "-o", "{seed}-{stem}.png")
        assert (refused.code, "has the field {seed}, not one of {stem}" in refused.err) == (2, True)
        assert "-o '{stem}-{stem}.png'" in refused.err


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (("export", "bus.ply", "-o", "bus.spz"), "bus.spz"),
        (("render", "bus.ply", "--view", "0,0", "--size", "16", "-o", "a.png"), "a.png"),
        (("lod", "bus.ply", "--levels", "1", "-o", "levels"), "levels"),
        (("report", "bus.ply", "-o", "bus.html"), "bus.html"),
        (("init", BUS, "--init", "box", "-o", "box.ply", *TINY[:2]), "box.ply"),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else "",
)
def test_skip_existing_leaves_out_output_that_exists(segdream, folder, command, output):
    formats.write(folder / "bus.ply", random_splats())
    assert segdream(*command, "--skip-existing").out == f"{output}\n"
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = segdream(*command, "--skip-existing", "--json")
    assert (again.code, [json.loads(line)["event"] for line in again.out.splitlines()]) == (0, ["skipped"])
    assert f"{output} exists, skipped" in again.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == written
    refused = segdream(*command, "--skip-existing", "--force")
    assert (refused.code, "contradict each other" in refused.err) == (2, True)


def test_skip_existing_writes_only_what_is_missing(segdream, folder):
    formats.write(folder / "bus.ply", random_splats())
    (folder / "bus.splat").write_bytes(b"mine")
    done = segdream("export", "bus.ply", "-o", "bus.splat", "-o", "bus.spz", "--skip-existing")
    assert (done.out, (folder / "bus.splat").read_bytes()) == ("bus.spz\n", b"mine")
    turn = ("render", "bus.ply", "--frames", "--size", "16", "--n-frames", "3", "-o", "turn", "--skip-existing")
    assert segdream(*turn).out == "turn\n"
    (folder / "turn" / "frame-0002.png").unlink()
    assert segdream(*turn).out == "turn\n"  # without its last frame, a turn is incomplete
    assert segdream(*turn).out == ""


def test_seeds_are_announced(segdream):
    done = segdream("generate", BUS, "--seeds", "0-1", "-o", "{seed}.ply", *SHORT)
    assert f"[1/2] {BUS}, seed 0 " in done.err
    assert done.err.endswith(f"[2/2] {BUS}, seed 1")


def test_skip_existing_makes_only_missing_assets_and_resumes_stopped_ones(segdream, prior, folder):
    command = ("generate", BUS, "--seeds", "0-2", "-o", "{seed}.ply", "--skip-existing", *SIX)
    whole = [(folder / path).read_bytes() for path in segdream(*command).out.split()]
    for seed in (1, 2):
        (folder / f"{seed}.ply").unlink()
    prior(lambda profile: Interrupted(profile, 8, signal.SIGINT))
    assert segdream(*command).code == 130
    step = RunDir(folder / "1.run").step()
    assert 0 < step < 6
    prior()
    again = segdream(*command, "--json")
    assert again.code == 0, again.err
    lines = [json.loads(line) for line in again.out.splitlines()]
    assert [(line["event"], line["output"], line.get("steps")) for line in lines] == [
        ("skipped", "0.ply", None),
        ("done", "1.ply", 6 - step),
        ("done", "2.ply", 6),
    ]
    assert [(folder / f"{seed}.ply").read_bytes() for seed in range(3)] == whole
    third = segdream("generate", BUS, "-o", "1.ply", "--seed", "1", "--skip-existing", *SIX)
    assert (third.code, third.out) == (0, "")
    assert "1.ply exists, skipped" in third.err


@pytest.fixture
def cache(folder, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("SEGDREAM_CACHE", str(folder / "cache"))
    return folder / "cache"


@pytest.mark.usefixtures("cache")
def test_dry_run_expects_what_the_last_asset_took(segdream, folder):
    command = ("generate", BUS, *SHORT, "-o")
    first = segdream(*command, "new/{seed}.ply", "--dry-run", "--json")
    assert "--offline" not in first.err
    unknown = {"seconds": None, "gaussians": None, "bytes": None}
    planned = {"schema": 2, "event": "planned", "output": "new/0.ply", "action": "make", "prompt": BUS, "seed": 0}
    assert json.loads(first.out) == {**planned, "steps": 2, **unknown}, first.err
    assert not (folder / "new").exists()
    made = json.loads(segdream(*command, "a.ply", "--json").out)
    after = json.loads(segdream(*command, "b.ply", "--seed", "5", "--dry-run", "--json").out)
    assert after["seconds"] == pytest.approx(made["seconds"], abs=0.002)
    assert (after["gaussians"], after["bytes"]) == (made["gaussians"], (folder / "a.ply").stat().st_size)
    other = json.loads(segdream(*command, "b.ply", "--steps", "3", "--dry-run", "--json").out)
    assert {name: other[name] for name in unknown} == unknown
    assert json.loads(segdream(*command, "b.spz", "--dry-run", "--json").out)["bytes"] is None
    assert sorted(path.name for path in folder.iterdir()) == ["a.ply", "a.run", "cache"]


@pytest.mark.usefixtures("cache")
def test_dry_run_of_a_list_says_what_would_happen_to_each(segdream, prior, folder):
    (folder / "list.txt").write_text("a red ball\na blue ball\na gryphon\na green ball\n")
    command = ("generate", "--prompts", "list.txt", "-o", "{index}.ply", *SIX)
    prior(lambda profile: Interrupted(profile, 20, signal.SIGINT))
    assert segdream(*command).code == 130
    step = RunDir(folder / "2.run").step()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = segdream(*command, "--dry-run")
    assert done.code == 1
    lines = done.out.splitlines()
    assert lines[0] == "skip    1.ply: exists"
    assert lines[1].startswith(f"resume  2.ply: a blue ball, seed 0; {6 - step} steps; about ")
    assert lines[2].startswith("make    4.ply: a green ball, seed 0; 6 steps; about ")
    assert "gryphon" in done.err
    assert "dry run: 1 to make, 1 to resume, 1 to skip, 1 impossible; about " in done.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_dry_run_refuses_what_the_command_would_refuse(segdream, folder):
    (folder / "bus.ply").write_text("mine")
    assert segdream("generate", BUS, "-o", "bus.ply", "--dry-run", *SHORT).code == 6
    assert segdream("generate", BUS, "-o", "none/bus.ply", "--dry-run", *SHORT).code == 2
    skipped = segdream("generate", BUS, "-o", "bus.ply", "--dry-run", "--skip-existing", *SHORT)
    assert (skipped.code, skipped.out) == (0, "skip    bus.ply: exists\n")
    assert "--view" in segdream("generate", BUS, "--dry-run", "--view", *SHORT).err


def test_dry_run_downloads_no_weights(segdream, cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    done = segdream("generate", BUS, "--prior", "sd21", "--device", "cpu", "--dry-run")
    assert done.code == 4
    assert "a dry run downloads nothing hint: segdream fetch sd21" in done.err


def test_dry_run_without_point_e_says_how_to_fetch_it(segdream, folder, monkeypatch):
    load = session.load_clouds
    monkeypatch.setattr(
        session, "load_clouds", lambda config, _, *rest, **options: load(config, None, *rest, **options)
    )
    monkeypatch.setenv("SEGDREAM_CACHE", str(folder / "cache"))
    done = segdream("generate", BUS, "--init", "point-e", "--dry-run")
    assert done.code == 4
    assert "a dry run downloads nothing hint: segdream fetch point-e" in done.err
