"""What can't work ends with its exit code, names the thing, says what to type next, and leaves nothing behind."""

import json
import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import BUS, SIX, TINY, is_command, rewrite_record
from fakes import AnalyticPrior
from plyfile import PlyData, PlyElement

from segdream_cli import formats
from segdream_cli.config import SD21
from segdream_cli.errors import SegdreamError
from segdream_cli.runs import runner
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.splats import Splats


@pytest.fixture
def refused(segdream, folder):
    """Runs a command that must fail with `code`, say all of `words`, and change no file; a hint must be a command."""

    def run(code, words, *arguments):
        before = contents(folder)
        done = segdream(*arguments)
        assert done.code == code, done.err
        assert done.out == ""
        for word in [words] if isinstance(words, str) else words:
            assert word in done.err
        assert "error: " in done.err  # after notes, if there are any
        _, given, hint = done.err.partition("hint: ")
        assert not given or is_command(hint), hint
        assert contents(folder) == before
        return done

    return run


def contents(folder):
    """Every file below `folder` with its bytes, and every folder."""
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def generate(*arguments):
    return ("generate", BUS, "-o", "bus.ply", *SIX, *arguments)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "the prompt is empty"),
        (" \t\n ", "the prompt is empty"),
        ("bus " * 2500, "9,999 characters"),
        ("a yellow\x07 bus", r"control character '\x07'"),
        ("a red ball\na blue ball", r"control character '\n'"),
        ("a yellow skool bus", ["'skool'", "free text needs --prior sd21", "'a yellow school bus'"]),
        ("ein süßer Bus", ["'ein'", "'süßer'"]),
        ("a \udcff bus", "control character"),
        ("yellow", ["names no thing", "--list-words"]),
        ("a red ball and a blue cube", ["'ball' and 'cube'", "'a red ball' -o bus.ply"]),
        ("a red ball a blue cube", ["'ball' and 'cube'", "'a red ball' -o bus.ply"]),
    ],
)
@pytest.mark.parametrize("command", ["generate", "init"])
def test_prompt_is_refused_with_its_reason(refused, command, prompt, words):
    arguments = SIX if command == "generate" else TINY[:2]
    done = refused(2, words, command, prompt, "-o", "bus.ply", *arguments)
    assert "hint: " in done.err or len(prompt) > 1000


def test_long_prompt_is_not_repeated_in_the_error(refused):
    done = refused(2, "the prompt has 10,000 characters", "generate", "x" * 10_000, "-o", "bus.ply", *SIX)
    assert len(done.err) < 500


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--quality", "ultra"), ["--quality", "ultra", "standard"]),
        (("--prior", "sdxl"), ["--prior", "sdxl", SD21]),
        (("--steps", "many"), "--steps"),
        (("--steps", "-1"), "--steps"),
        (("--guidance-scale", "-1"), "--guidance-scale"),
        (("--seed", "-3"), "--seed"),
        (("--seed", "9" * 20), "--seed"),
        (("--preview-every", "-1"), "--preview-every"),
        (("--device", "tpu"), ["'tpu'", "--device cpu"]),
        (("--device", "cuda:x"), "'cuda:x'"),
        (("--no-such-option",), "--no-such-option"),
        (("--seeds", "3-1"), ["--seeds", "3-1"]),
        (("--seeds", "0-1"), ["bus.ply is one file", "bus-{seed}.ply"]),
        (
            ("--seeds", "0-1", "-o", "/dev/null/buses"),
            ["the folder /dev/null/buses can't be created", "-o buses"],
        ),
        (("--init", "spere"), ["'spere'", "sphere, box"]),
        (("--init", "none.ply"), "none.ply"),
    ],
)
def test_option_values_are_checked(refused, arguments, words):
    refused(2, words, *generate(*arguments))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", "a.ply", "--form", "spz"), ["no such option: --form", "hint: segdream export a.ply --format spz"]),
        (("expor", "a.ply"), ["no such command 'expor'", "hint: segdream export a.ply"]),
        (("export", "a.ply", "-o"), ["'-o' requires an argument", "hint: segdream export a.ply -o bus.spz"]),
        (("report", "a.ply", "b.ply"), ["too many arguments: b.ply", "hint: segdream report a.ply"]),
        (
            ("render", "a.ply", "--channel", "gray"),
            ["'--channel': 'gray' is not one of", "hint: segdream render a.ply --channel rgb"],
        ),
        (("doctor", "--quick"), ["no such option: --quick", "hint: segdream doctor --help"]),
    ],
)
def test_unparsable_command_lines_have_a_hint(refused, segdream, arguments, words):
    """In segdream's own message, and as an object with `--json`."""
    refused(2, words, *arguments)
    said = json.loads(segdream(*arguments[:2], "--json", *arguments[2:]).out)
    assert (said["event"], said["exit_code"]) == ("error", 2)
    assert said["message"] in refused(2, words, *arguments).err


def test_no_command_shows_the_help(segdream):
    done = segdream()
    assert done.code == 2
    assert "Usage: segdream" in done.out + done.err
    assert "error:" not in done.err


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("distil.segments=4", ["'distil.segments'", "--set distill.sctd.segments="]),
        ("segments=4", ["'segments'", "--set distill.sctd.segments="]),
        ("optim.step=4", ["'optim.step'", "--set optim.steps="]),
        ("distill.sctd.segments", "no '='"),
        ("distill.sctd.segments=four", ["distill.sctd.segments", "'four'"]),
        ("distill.sctd.segments=-1", ["distill.sctd.segments", "-1"]),
        ("distill.sctd.segments=4.5", "distill.sctd.segments"),
        ("optim.means_lr=[1]", "optim.means_lr"),
        ("prior.dtype=fp8", ["prior.dtype", "fp8", "fp16"]),
        ("distill.sctd.loss=mse", ["distill.sctd.loss", "eq10"]),
        ("distill.sctd.t_min=990", ["t_min", "990"]),
        ("loss.scale=nan", "loss.scale"),
        ("distill.sctd.segments=999", "999 segments"),
    ],
)
def test_set_names_the_wrong_setting(refused, assignment, words):
    refused(2, words, *generate("--set", assignment))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[optim", "settings.toml is not a configuration"),
        (b"\xff\xfe", "settings.toml is not a configuration"),
        ("[optim]\nstep = 3\n", ["'optim.step'", "optim.steps"]),
        ("steps = 3\n", "'steps'"),
        ("[optim]\nclip = 'x'\n", "optim.clip"),
        ("[optim.clip]\nx = 1\n", "optim.clip"),
        (None, "settings.toml can't be read"),
    ],
)
def test_config_file_errors_name_the_file(refused, folder, content, words):
    path = folder / "settings.toml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(2, words, *generate("--config", "settings.toml"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "run.json is not a configuration: list indices"),
        ("{}", "run.json is not a configuration: 'config'"),
        ('{"config": 3}', "run.json is not a configuration: 'int' object"),
        ("{", "run.json is not a configuration: Expecting"),
        ('{"config": {"optim.step": 3}}', ["run.json: there is no setting", "the nearest is optim.steps"]),
    ],
)
def test_config_refuses_a_damaged_run_json(refused, folder, content, words):
    (folder / "run.json").write_text(content)
    refused(2, words, *generate("--config", "run.json"))


OUTPUTS = {
    "generate": ("generate", BUS, *SIX),
    "init": ("init", BUS, *TINY[:2], "--init", "sphere"),  # Point-E says how long it takes, and what it found made
    "render": ("render", "there.ply", "--view", "0,0", "--size", "16"),
    "export": ("export", "there.ply"),
    "refine": ("refine", "there.ply", BUS, *TINY[:4]),
}


@pytest.fixture
def there(segdream, folder):
    """An asset, where a test wants one."""
    segdream("init", BUS, "--init", "sphere", "--count", "20", "-o", "there.ply", *TINY[:2])
    return folder / "there.ply"


@pytest.mark.parametrize("command", OUTPUTS)
def test_output_that_cannot_be_written_is_refused_first(refused, there, folder, command, monkeypatch):
    name = "bus.png" if command == "render" else "bus.ply"
    run = OUTPUTS[command]
    refused(2, ["no such", "mkdir -p 'no such/folder'"], *run, "-o", f"no such/folder/{name}")
    (folder / name).mkdir()
    refused(2, f"{name} is a folder", *run, "-o", name)
    (folder / name).rmdir()
    (folder / name).write_text("old")
    refused(6, [f"{name} exists", "--force"], *run, "-o", name)
    refused(2, "File name too long", *run, "-o", "x" * 300 + name)

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    refused(2, "can't be written: Permission denied", *run, "-o", f"new-{name}")


@pytest.mark.parametrize("command", ["generate", "init", "export", "refine"])
def test_unknown_suffix_suggests_a_known_one(refused, there, command):
    done = refused(2, ["bus.xyz", ".splat", "bus.ply"], *OUTPUTS[command], "-o", "bus.xyz")
    assert "hint: " in done.err
    refused(2, "bus", *OUTPUTS[command], "-o", "bus")


def test_unknown_format_suggests_a_known_one(refused, there):
    refused(2, ["'spalt'", "--format splat"], "export", "there.ply", "-o", "a.splat", "--format", "spalt")
    refused(2, ["the format points", "a.ply"], "export", "there.ply", "-o", "a.splat", "--format", "points")
    refused(2, "give an ASSET", "export", "there.ply")
    refused(2, "--no-browser only affects", *generate("--no-browser"))
    refused(2, ".mp4", "render", "there.ply", "-o", "a.avi")
    refused(2, ["a.tiff", "-o a.png"], "render", "there.ply", "--view", "0,0", "-o", "a.tiff")
    refused(2, "--view", "render", "there.ply", "--view", "up", "-o", "a.png")
    refused(2, "--background", "render", "there.ply", "--background", "nocolour", "-o", "a.png")
    refused(2, "no transparency", "render", "there.ply", "--background", "transparent", "-o", "a.mp4")
    refused(2, "at a time", "render", "there.ply", "--view", "0,0", "--turntable")
    refused(2, "--size", "render", "there.ply", "--size", "4", "--view", "0,0")
    refused(2, ["a.png is an image", "-o a.png --view 45,20"], "render", "there.ply", "-o", "a.png")
    refused(2, ["a folder", "-o a-frames"], "render", "there.ply", "--frames", "-o", "a.mp4")
    refused(2, "-o sub/b-frames", "render", "there.ply", "--frames", "-o", "sub/b.mp4")
    (there.parent / "sub").mkdir()
    refused(2, "-o sub/b.glb", "export", "there.ply", "--format", "mesh", "-o", "sub/b.spz")
    for again in ("a.spz", "sub/../a.spz", there.parent / "a.spz"):
        refused(2, f"{again} would be written twice", "export", "there.ply", "-o", "a.spz", "-o", again)


@pytest.mark.parametrize("start", ["point-e", "there.ply"])
def test_count_is_refused_for_other_starts(refused, there, start):
    told = [f"--count has no effect: the start is {start}", f"hint: segdream init '{BUS}' --init {start} --prior mini"]
    refused(2, told, "init", BUS, "--init", start, "--count", "9", *TINY[:2])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--perp-neg", "--no-perp-neg"), "--perp-neg and --no-perp-neg contradict each other"),
        (("--steps", "1", "--set", "optim.steps=3"), "--steps 1 and --set optim.steps=3 contradict each other"),
        (
            ("--guidance-scale", "5", "--set", "distill.sctd.guidance_scale=3"),
            "--guidance-scale 5.0 and --set distill.sctd.guidance_scale=3.0 contradict each other",
        ),
        (("--model", "somebody/something", "--prior", "mini"), "--prior can't be combined with --model"),
        (("--init-points", "9"), "--init-points has no effect: the start is sphere"),
        (("--init-color", "points"), "--init-color has no effect: the start is sphere"),
        (("--init-scale", "2"), "--init-scale has no effect: the start is sphere"),
        (("--init-prompt", "a zzz"), "--init-prompt has no effect: the start is sphere"),
        (
            ("--init-points", "9", "--init-scale", "2", "--point-e-dir", "there"),
            "--init-points, --init-scale and --point-e-dir have no effect: the start is sphere "
            f"hint: segdream generate '{BUS}' -o bus.ply --device cpu --init sphere",
        ),
        (("--list-words",), "PROMPT, --output and --init"),
        (("--steps", "99999999999"), "--steps"),
        (("--set", "optim.steps=99999999999"), "optim.steps can't be 99999999999: it must be at least 0 and at most"),
        (("--guidance-scale", "1e6"), "--guidance-scale"),
        (("--set", "distill.sds.guidance_scale=1e6"), "distill.sds.guidance_scale can't be 1e+06"),
        (("--init", "point-e", "--init-scale", "1e9"), "--init-scale"),
    ],
)
def test_options_without_effect_and_contradictions_are_refused(refused, arguments, told):
    plain = ("generate", BUS, "-o", "bus.ply", "--device", "cpu", "--init", "sphere")
    refused(2, told, *plain, *arguments)


def test_settings_without_effect_are_noted(segdream):
    done = segdream(*generate("--set", "init.lift=0.2", "--set", "distill.sds.t_min=10", "--offline"))
    assert done.code == 0
    for told in (
        "init.lift has no effect: the start is sphere",
        "distill.sds.t_min has no effect: distill.method is sctd",
        "--offline has no effect: prior and start need no download",
    ):
        assert told in done.err
    assert "optim.steps has no effect" not in done.err


EDITS = [
    ("--crop", "1,2,3", "neither a box"),
    ("--crop", "1,0,0,0,1,1", "neither a box"),
    ("--crop", "nan", "neither a box"),
    ("--crop", "-1", "neither a box"),
    ("--crop", "", "neither a box"),
    ("--crop", "0,0,0,1,1,inf", "neither a box"),
    ("--crop", "50,50,50,51,51,51", "no Gaussian has its centre in the box"),
    ("--rotate", "90", "not X,Y,Z"),
    ("--rotate", "0,90,up", "not X,Y,Z"),
    ("--rotate", "0,nan,0", "not X,Y,Z"),
    ("--prune-opacity", "1", "no Gaussian has an opacity of 1"),
    ("--keep", "25", "not a percentage"),
    ("--keep", "0%", "not a percentage"),
    ("--keep", "101%", "not a percentage"),
    ("--keep", "half", "not a percentage"),
    ("--spz-bits", "13", "12, 16 or 20"),
    ("--spz-bits", "20", "--spz-bits"),
]


@pytest.mark.parametrize(("option", "value", "told"), EDITS)
def test_export_refuses_edits_it_cannot_parse(refused, there, folder, option, value, told):
    name = "a.spz" if value == "13" else "a.splat"
    assert "hint: " in refused(2, told, "export", "there.ply", "-o", name, option, value).err
    assert sorted(path.name for path in folder.iterdir()) == ["there.ply"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--scale", "0"),
        ("--scale", "-1"),
        ("--scale", "nan"),
        ("--sh", "4"),
        ("--max-gaussians", "0"),
        ("--faces", "500"),
    ],
)
def test_export_refuses_edits_out_of_range(refused, there, folder, arguments):
    refused(2, arguments[0], "export", "there.ply", "-o", "a.splat", *arguments)
    assert sorted(path.name for path in folder.iterdir()) == ["there.ply"]


def test_generate_keeps_a_foreign_run_folder(refused, folder):
    (folder / "bus.run").mkdir()
    (folder / "bus.run" / "thesis.txt").write_text("mine")
    refused(6, "bus.run exists and is not a run folder", *generate())
    refused(6, "bus.run exists and is not a run folder", *generate("--force"))


def rewritten(change):
    def write(path):
        rows = np.array(PlyData.read(str(path))["vertex"].data)
        PlyData([PlyElement.describe(change(rows), "vertex")]).write(str(path))

    return write


def with_nan(rows):
    rows["x"] = np.nan
    return rows


def replaced(old, new):
    return lambda path: path.write_bytes(path.read_bytes().replace(old, new))


def as_text(path):
    data = PlyData.read(str(path))
    data.text = True
    path.unlink()
    data.write(str(path))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[-3] = lines[-3].replace(b" ", b" many ", 1)
    path.write_bytes(b"".join(lines))


DAMAGES = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-50]), "truncated"),
    "cut header": (lambda path: path.write_bytes(path.read_bytes()[:200]), "header has no end"),
    "not a number": (rewritten(with_nan), "20 of 20 rows have a value that is not a finite number"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "no Gaussians": (replaced(b"vertex 20", b"vertex 0"), "zero Gaussians"),
    "text": (as_text, "is damaged"),
    "unknown type": (replaced(b"float opacity", b"quark opacity"), "is damaged"),
    "no PLY": (lambda path: path.write_bytes(b"solid cube\n"), "is not a PLY file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is not a file"),
    "missing": (lambda path: path.unlink(), "No such file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_broken_assets_are_refused_by_every_command(refused, there, damage):
    change, words = DAMAGES[damage]
    change(there)
    told = ["there.ply", words]
    refused(2, told, "render", "there.ply", "--view", "0,0", "-o", "a.png")
    refused(2, told, "export", "there.ply", "-o", "a.splat")
    refused(2, told, "view", "there.ply", "--no-browser")
    refused(2, told, *generate("--init", "there.ply"))
    refused(2, told, "init", BUS, "--init", "there.ply", "-o", "a.ply", *TINY[:2])
    refused(2, told, "refine", "there.ply", BUS, "-o", "a.ply", *TINY[:4])


def test_export_writes_all_outputs_or_none(refused, there):
    """The second output refuses what the first could hold; the hints cure it."""
    splats = formats.read(there)
    formats.write(there, Splats(**{**splats.arrays(), "means": 100 * splats.means}))
    outputs = ("-o", "a.ply", "-o", "b.spz", "-o", "c.glb")
    refused(2, "reaches only 8", "export", "there.ply", *outputs, "--spz-bits", "20", "--scale", "100")
    done = refused(2, "reaches only 8388608", "export", "there.ply", *outputs, "--scale", "1e6")
    assert "-o b.ply" in done.err
    refused(2, "reaches only 8388608", "export", "there.ply", "--for", "quest", "--scale", "1e6")


def test_refine_names_what_it_cannot_use(refused, there, folder):
    """One sentence, a hint, and nothing is written; the prior is not loaded."""
    (folder / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nmtllib none.mtl\nusemtl a\nf 1 2 3\n")
    (folder / "b.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    (folder / "c.txt").write_text("a scan")

    def run(asset, *arguments, prompt=BUS):
        return ("refine", asset, prompt, "-o", "out.ply", *TINY[:4], *arguments)

    refused(2, "there.ply has 20 Gaussians, and a refinement needs at least 100", *run("there.ply"))
    refused(2, "a.obj names the file none.mtl, which can't be read", *run("a.obj"))
    refused(2, "b.obj has no faces", *run("b.obj"))
    refused(2, ["c.txt is no asset that segdream reads", ".spz"], *run("c.txt"))
    refused(2, "none.glb can't be read", *run("none.glb"))
    (folder / "page.html").write_text("<!doctype html>")
    refused(2, ["segdream can write .html files but not read them"], *run("page.html"))
    refused(2, ["'skool'", "refine there.ply 'a yellow school bus'"], *run("there.ply", prompt="a yellow skool bus"))
    refused(2, ["--front up is not x, z, -x, -z or", "--front x"], *run("there.ply", "--front", "up"))
    refused(2, "--front -y is not x, z, -x, -z or", *run("there.ply", "--front", "-y"))
    refused(2, "--front z is not x, y, -x, -y or", *run("there.ply", "--front", "z", "--up", "-z"))
    refused(2, ["--up 90 is not one of y, -y, z, -z, x, -x", "--up z"], *run("there.ply", "--up", "90"))
    refused(2, "--strength", *run("there.ply", "--strength", "1.5"))
    refused(2, "--no-browser only affects --view", *run("there.ply", "--no-browser"))
    refused(2, "refine.anchor can't be -1", *run("there.ply", "--set", "refine.anchor=-1"))
    refused(6, ["there.ply exists", "--force"], "refine", "there.ply", BUS, "-o", "there.ply", *TINY[:4])


@pytest.mark.parametrize(
    ("prompt", "instead"),
    [
        ("a white teapot with white spots", "a teapot with white spots"),
        ("", "a yellow school bus"),
        ("a red\nball", "a red ball"),
    ],
)
def test_hint_for_a_prompt_repeats_the_command_with_another_one(refused, segdream, folder, prompt, instead):
    segdream("init", BUS, "--init", "sphere", "--count", "200", "-o", "it's.ply", *TINY[:2])
    for command in (
        ("generate", prompt, "-o", "out.ply", "--seed", "3", *SIX),
        ("generate", BUS, "-o", "out.ply", "--init-prompt", prompt, *TINY[:4]),
        ("refine", "it's.ply", prompt, "-o", "out.ply", "--front", "-x", *TINY[:4]),
        ("init", prompt, "-o", "out.ply", *TINY[:2], "--init", "sphere"),
    ):
        done = refused(2, "hint: segdream", *command)
        program, *words = shlex.split(done.err.partition("hint: ")[2])
        assert (program, words) == ("segdream", [instead if word == prompt else word for word in command])
    assert segdream(*words).code == 0


def test_refine_refuses_an_asset_of_absurd_size(refused, segdream, folder):
    segdream("init", BUS, "--init", "sphere", "--count", "200", "-o", "there.ply", *TINY[:2])
    splats = formats.read(folder / "there.ply")
    formats.write(folder / "there.ply", Splats(**{**splats.arrays(), "means": 1e25 * splats.means}))
    told = "there.ply has no usable size"
    refused(2, told, "refine", "there.ply", BUS, "-o", "out.ply", *TINY[:4])


def test_device_cuda_without_cuda_exits_3(refused, there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = [part for part in SIX if part not in ("--device", "cpu")]
    told = ["CUDA was requested", "--device cpu"]
    refused(3, told, "generate", BUS, "-o", "bus.ply", *arguments, "--device", "cuda")
    refused(3, told, "render", "there.ply", "--view", "0,0", "--device", "cuda:1")
    several = ("generate", BUS, "--seeds", "0-1", *arguments, "--devices", "0,1")
    refused(3, ["CUDA was requested", "--devices cpu"], *several)
    monkeypatch.setenv("SEGDREAM_DEVICE", "cuda")
    refused(3, told, "render", "there.ply", "--view", "0,0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    refused(3, ["there is no cuda:7", "--device cuda:0"], "render", "there.ply", "--view", "0,0", "--device", "cuda:7")
    refused(3, ["there is no cuda:1", "--devices 0"], *several)


def test_offline_without_weights_exits_4(refused, folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "empty"))
    arguments = ("generate", BUS, "-o", "bus.ply", "--device", "cpu", "--offline")
    refused(4, ["not in the local cache", "--prior"], *arguments, "--prior", SD21)
    refused(4, ["somebody/something is not in the local cache"], *arguments, "--model", "somebody/something")
    refused(4, "there is no folder ./nowhere", *arguments, "--model", "./nowhere")
    (folder / "folder").mkdir()
    refused(4, "not a Stable Diffusion checkpoint", *arguments, "--model", "folder")


class Failing(AnalyticPrior):
    """Works for two steps, then does what `fail` does."""

    def __init__(self, profile, fail):
        super().__init__(profile=profile)
        self.calls, self.fail = 0, fail

    def encode_image(self, rgb, noise):
        self.calls += 1
        return super().encode_image(rgb, noise)

    def predict_noise(self, latents, timesteps, text):
        noise = super().predict_noise(latents, timesteps, text)
        return self.fail(noise) if self.calls > 2 else noise


def test_any_exception_is_one_sentence(segdream, prior, monkeypatch):
    def fail(noise):
        raise ZeroDivisionError("no\nsuch luck")

    prior(lambda profile: Failing(profile, fail))
    done = segdream(*generate())
    assert (done.code, done.out) == (1, "")
    assert "error: unexpected ZeroDivisionError: no hint: export SEGDREAM_DEBUG=1" in done.err
    monkeypatch.setenv("SEGDREAM_DEBUG", "1")
    with pytest.raises(SegdreamError) as caught:
        segdream(*generate("--force"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_any_exception_of_one_asset_leaves_the_rest_of_a_list(segdream, prior, folder):
    failed = []

    def fail(noise):
        if failed:
            return noise
        failed.append(True)
        raise MemoryError

    (folder / "list.txt").write_text("a red ball\na blue ball\n")
    prior(lambda profile: Failing(profile, fail))
    done = segdream("generate", "--prompts", "list.txt", "--out-dir", "all", *SIX)
    assert "1 made, 0 skipped, 1 failed" in done.err
    assert "does not have enough memory" in done.err
    assert [path.name for path in (folder / "all").glob("*.ply")] == ["a_blue_ball.ply"]


def test_checkpoints_come_by_time(segdream, prior, folder, monkeypatch):
    def fail(noise):
        raise ZeroDivisionError

    prior(lambda profile: Failing(profile, fail))
    assert segdream(*generate()).code == 1
    assert not RunDir(folder / "bus.run").can_resume()  # the first one would come at step 100, or after 20 s
    monkeypatch.setattr(runner, "SAVE_S", {"cpu": 0.0})
    prior(lambda profile: Failing(profile, fail))
    assert segdream(*generate("--force")).code == 1
    assert RunDir(folder / "bus.run").step() == 2
    prior()
    assert segdream(*generate("-o", "whole.ply")).code == 0
    assert segdream("generate", "--resume", "bus.run").code == 0
    assert (folder / "bus.ply").read_bytes() == (folder / "whole.ply").read_bytes()


def test_missing_package_is_found_before_the_first_step(segdream, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pxr.Usd", None)
    done = segdream(*generate("-o", "bus.usdz"))
    assert done.code == 3
    assert "usd-core" in done.err
    assert list(folder.iterdir()) == []


def test_a_finished_asset_that_cannot_be_written_is_kept(segdream, folder, monkeypatch):
    """Any failure of the last write, at any point of it, leaves a checkpoint from which the asset is written."""
    assert segdream(*generate("-o", "whole.ply")).code == 0

    def fail(*_, **__):
        raise ValueError("bad luck")

    with monkeypatch.context() as broken:
        broken.setattr(formats, "write", fail)
        done = segdream(*generate())
    assert (done.code, done.out) == (1, "")
    assert "bad luck" in done.err
    assert RunDir(folder / "bus.run").step() == 6
    done = segdream("generate", "--resume", "bus.run")
    assert (done.code, done.out) == (0, "bus.ply\n")
    assert (folder / "bus.ply").read_bytes() == (folder / "whole.ply").read_bytes()


RESUME = "stopped after step 2 of 6; resume with: segdream generate --resume bus.run"


def out_of_memory(noise):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")


@pytest.mark.parametrize("command", ["init", "generate"])
@pytest.mark.parametrize(("words", "said"), [(" ", "the prompt is empty"), ("a zzz", "does not know 'zzz'")])
def test_init_prompt_is_checked_like_a_prompt(refused, command, words, said):
    refused(2, said, command, "a red car", "--prior", "mini", "--init-prompt", words, "-o", "car.ply")


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    ("fail", "code", "words"),
    [
        (
            out_of_memory,
            5,
            ["does not have enough memory for a step", "the peak was", "GiB", "--force --set camera.batch=1", RESUME],
        ),
        (
            lambda noise: noise * torch.nan,
            7,
            [
                "is not finite in step 3",
                "t=",
                "--force --set distill.sctd.guidance_scale=1.5",
                "kept as it was after step 2: bus.run",
            ],
        ),
    ],
)
def test_failed_run_keeps_its_checkpoint(segdream, prior, folder, fail, code, words):
    prior(lambda profile: Failing(profile, fail))
    done = segdream(*generate())
    assert (done.code, done.out) == (code, "")
    for word in words:
        assert word in done.err
    assert not (folder / "bus.ply").exists()
    prior()
    assert segdream("generate", "--resume", "bus.run").code == 0
    assert np.isfinite(formats.read(folder / "bus.ply").means).all()
    assert len((folder / "bus.run" / "events.jsonl").read_text().splitlines()) == 6


@pytest.mark.usefixtures("either_way")
def test_signal_in_a_nonfinite_step_does_not_hide_the_error(segdream, prior):
    def fail(noise):
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))
        return noise * torch.nan

    sent = []
    prior(lambda profile: Failing(profile, fail))
    done = segdream(*generate())
    assert done.code == 7
    assert "is not finite in step 3" in done.err
    assert "kept as it was after step 2: bus.run" in done.err
    assert RunDir(Path("bus.run")).step() == 2


def test_list_reports_the_failed_run(segdream, prior, folder):
    prior(lambda profile: Failing(profile, out_of_memory))
    (folder / "list.txt").write_text("a red ball\na blue ball\n")
    done = segdream("generate", "--prompts", "list.txt", "--out-dir", ".", *SIX)
    assert done.code == 1
    assert done.err.count("does not have enough memory for a step") == 2
    assert "0 made, 0 skipped, 2 failed" in done.err


def fill_the_disk(monkeypatch, *suffixes):
    """From now on, temporary files that end so are links to /dev/full."""
    real = tempfile.mkstemp

    def mkstemp(dir=None, prefix="", suffix=""):
        if not suffix.endswith(suffixes):
            return real(dir=dir, prefix=prefix, suffix=suffix)
        name = Path(dir) / f"{prefix}full{suffix}"
        name.symlink_to("/dev/full")
        return os.open("/dev/null", os.O_RDONLY), str(name)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)


needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@needs_dev_full
@pytest.mark.parametrize("other", [None, "/mnt/bus.ply"])
def test_full_disk_at_the_end_keeps_the_checkpoint(segdream, folder, monkeypatch, other):
    segdream("generate", BUS, "-o", "whole.ply", *SIX)
    with monkeypatch.context() as patch:
        fill_the_disk(patch, ".ply")
        patch.setattr(runner, "other_path", lambda problem, path: other and Path(other))
        done = segdream(*generate())
    assert (done.code, done.out) == (1, "")
    assert "the disk is full: bus.ply was not written" in done.err
    resume = f"segdream generate --resume bus.run{f' -o {other}' if other else ''}"
    assert f"resume with: {resume}" in done.err
    assert f"hint: {resume if other else 'df -h .'}" in done.err
    assert sorted(path.name for path in folder.iterdir()) == ["bus.run", "whole.ply", "whole.run"]
    assert segdream("generate", "--resume", "bus.run").code == 0
    assert (folder / "bus.ply").read_bytes() == (folder / "whole.ply").read_bytes()


@needs_dev_full
@pytest.mark.parametrize("suffixes", [(".json",), (".safetensors",), (".json", ".safetensors", ".ply", ".png")])
def test_full_disk_in_a_step_is_reported(segdream, folder, monkeypatch, suffixes):
    fill_the_disk(monkeypatch, *suffixes)
    done = segdream(*generate("--set", "output.checkpoint_every=2"))
    assert (done.code, done.out) == (1, "")
    assert "the disk is full" in done.err
    assert not (folder / "bus.ply").exists()
    assert not [path for path in folder.rglob("*") if "partial" in path.name]
    if ".json" in suffixes:
        assert not (folder / "bus.run").exists()


@needs_dev_full
@pytest.mark.parametrize("command", ["init", "render", "export"])
def test_full_disk_of_export_is_reported(refused, there, monkeypatch, command):
    fill_the_disk(monkeypatch, ".ply", ".png", ".splat")
    for suffix in {"init": (".ply",), "render": (".png",), "export": (".ply", ".splat")}[command]:
        refused(1, f"the disk is full: bus{suffix}", *OUTPUTS[command], "-o", f"bus{suffix}")


@pytest.fixture
def stopped(segdream, prior, folder):
    """A run that failed after two steps and can be resumed."""
    prior(lambda profile: Failing(profile, out_of_memory))
    assert segdream(*generate()).code == 5
    prior()
    return folder / "bus.run"


def test_resume_refuses_a_folder_without_a_run(refused, folder):
    refused(2, "none.run is not a run folder", "generate", "--resume", "none.run")
    (folder / "empty.run").mkdir()
    refused(2, "empty.run is not a run folder", "generate", "--resume", "empty.run")
    (folder / "file.run").write_text("")
    refused(2, "file.run is not a run folder", "generate", "--resume", "file.run")


def test_resume_refuses_a_finished_run(segdream, refused):
    assert segdream(*generate()).code == 0
    refused(6, ["bus.run is done: bus.ply exists", "segdream render bus.ply"], "generate", "--resume", "bus.run")


def test_resume_without_checkpoint_prints_the_command_to_start_over(segdream, refused, stopped):
    (stopped / "checkpoint.safetensors").unlink()
    done = refused(2, "bus.run has no checkpoint", "generate", "--resume", "bus.run")
    program, *words = shlex.split(done.err.partition("hint: ")[2])
    assert program == "segdream"
    assert words[-2:] == ["-o", "bus.ply"]
    assert segdream(*words).code == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--steps", "9"), "--steps"),
        (("a red ball",), "PROMPT"),
        (("--set", "loss.scale=1"), "--set"),
        (("--seed", "0"), "--seed"),
        (("--quality", "high", "--no-perp-neg"), "--quality and --perp-neg"),
        (("--negative", "x"), "--negative"),
        (("--prompts", "x.txt"), "--prompts"),
        (("--config", "x.toml"), "--config"),
    ],
)
def test_resume_refuses_options_that_change_the_run(refused, stopped, arguments, named):
    refused(2, [f"{named} can't be changed", "--resume"], "generate", "--resume", "bus.run", *arguments)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 200, "half"])
def test_resume_names_the_damaged_checkpoint(refused, segdream, stopped, content):
    path = stopped / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    refused(2, ["bus.run/checkpoint.safetensors is damaged", "--force"], "generate", "--resume", "bus.run")
    assert segdream(*generate()).code == 2
    assert segdream(*generate("--force")).code == 0


def test_resume_names_a_damaged_record_without_a_whole_copy(refused, segdream, stopped):
    (stopped / "run.json").write_bytes(b"{}")
    content = bytearray((stopped / "checkpoint.safetensors").read_bytes())
    content[-1] ^= 1
    (stopped / "checkpoint.safetensors").write_bytes(content)
    cure = "mv bus.run bus-2.run"
    refused(2, ["bus.run/run.json is damaged", cure], "generate", "--resume", "bus.run")
    assert segdream(*generate()).code == 6
    (stopped.parent / "bus.run").rename("bus-2.run")
    assert segdream(*generate()).code == 0


def test_resume_of_a_damaged_checkpoint_names_the_command_that_starts_over(refused, segdream, stopped):
    path = stopped / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    done = refused(2, "checkpoint.safetensors is damaged", "generate", "--resume", "bus.run")
    words = shlex.split(done.err.partition("hint: ")[2])
    assert words[:3] == ["segdream", "generate", BUS]
    again = segdream(*words[1:], "--device", "cpu")
    assert (again.code, again.out) == (0, "bus.ply\n"), again.err


def test_resume_refuses_a_checkpoint_without_a_tensor(refused, stopped):
    from safetensors.torch import load_file, save_file

    tensors = load_file(stopped / "checkpoint.safetensors")
    del tensors["gaussians.sh0"]
    save_file(tensors, stopped / "checkpoint.safetensors")
    refused(2, "checkpoint.safetensors is damaged", "generate", "--resume", "bus.run")


def test_resume_refuses_other_weights(refused, stopped):
    rewrite_record(stopped, lambda record: record["prior"].update(digest="0" * 64))
    refused(2, ["bus.run was started on cpu with other weights", "--force"], "generate", "--resume", "bus.run")


def test_generate_refuses_to_replace_an_unfinished_run(refused, stopped):
    refused(6, ["bus.run holds an unfinished run at step 2", "--resume bus.run", "--force"], *generate())


def test_prompts_file_errors_name_the_file(refused, folder):
    listed = ("generate", "--out-dir", "assets", *SIX, "--prompts")
    refused(2, "none.txt can't be read", *listed, "none.txt")
    (folder / "empty.txt").write_text("# nothing\n\n")
    refused(2, ["empty.txt has no prompt", "#"], *listed, "empty.txt")
    (folder / "binary.txt").write_bytes(b"a\xff\xfe\x00a")
    refused(2, "binary.txt is not UTF-8 text", *listed, "binary.txt")
    refused(2, ". is a folder", *listed, ".")
    refused(2, "--prompts needs a folder", "generate", "--prompts", "empty.txt", *SIX)
    refused(2, "both say where", *listed, "empty.txt", "-o", "bus.ply")
    refused(2, "give one PROMPT", "generate", "--out-dir", "assets", *SIX)
    (folder / "assets").write_text("a file")
    (folder / "list.txt").write_text("a red ball\n")
    refused(2, "the folder assets can't be created", *listed, "list.txt")


def test_seed_whose_asset_exists_suggests_to_skip_it(refused, folder):
    (folder / "out").mkdir()
    (folder / "out" / "a_yellow_school_bus-1.ply").write_text("mine")
    seeds = ("generate", BUS, "--seeds", "0-1", "-o", "out", *SIX)
    refused(6, "--skip-existing", *seeds)
