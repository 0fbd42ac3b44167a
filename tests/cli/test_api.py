"""The public Python API: the same assets, images and errors as the commands, without a terminal."""

import json
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from commands import BUS, SIX
from PIL import Image

import segdream_cli as segdream
from segdream_cli.config import MINI
from segdream_cli.errors import Interrupted, OutputExists, SegdreamError, UsageProblem
from segdream_cli.runs import reporter
from segdream_cli.runs.jobs import check_seed
from segdream_cli.runs.reporter import AssetFinished, JobFailed, RunEnded, RunSaved, RunStarted, Stepped
from segdream_cli.runs.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "init.shape": "sphere",
    "init.count": 40,
    "densify.cap": 60,
    "camera.batch": 2,
    "optim.steps": 6,
    "refine.enabled": False,
}


@pytest.fixture
def session(folder, prior):
    """A session with the settings of `SIX`, and a prior in closed form."""
    return segdream.load(prior=MINI, device="cpu", settings=SETTINGS)


@pytest.fixture
def bus(segdream_command):
    """The bytes of the asset that the command makes of `BUS` with seed 3."""
    assert segdream_command("generate", BUS, "-o", "command.ply", "--seed", "3", *SIX).code == 0
    return Path("command.ply").read_bytes()


@pytest.fixture
def segdream_command(request):
    """Runs a command in this process."""
    return request.getfixturevalue("segdream")


def test_import_loads_nothing_heavy():
    script = "import sys, segdream_cli; print(*sys.modules); segdream_cli.Config; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    loaded, torch_for_config = out.splitlines()
    assert not {"torch", "numpy", "typer", "rich", "PIL"} & set(loaded.split())
    assert torch_for_config == "False"


def test_load_reports_the_notes_of_the_method():
    events = []
    mono = {"segmentation": "mono", "segments": 8, "t_tau": 150}
    settings = {f"distill.sctd.{name}": value for name, value in mono.items()}
    segdream.load(prior=MINI, device="cpu", settings=settings, reporter=events.append)
    notes = [event.text for event in events if isinstance(event, reporter.Note)]
    assert [text for text in notes if "--set distill.sctd.segments=" in text]
    events.clear()
    segdream.load(prior=MINI, device="cpu", reporter=events.append)
    assert events == []


def test_readings_of_prompts_are_reported_once_and_recorded(folder, prior):
    """The asset of a rewritten prompt is that of its reading, and names both."""
    events = []
    session = segdream.load(
        prior=MINI, device="cpu", settings=SETTINGS, reporter=events.append, negative_prompt="the dogs"
    )
    plain = session.generate("a blue ball made of wood", output="plain.ply")
    typed = "The wooden balls, in blue"
    splats = session.generate(typed, output="ball.ply")
    session.generate(typed, output="ball.spz")
    assert (splats.means == plain.means).all()
    assert (splats.sh0 == plain.sh0).all()
    assert "prompt_read" not in plain.provenance
    assert splats.provenance["prompt"] == typed
    assert splats.provenance["prompt_read"] == segdream.read("ball.ply").provenance["prompt_read"]
    assert splats.provenance["prompt_read"] == "a blue ball made of wood"
    notes = [event.text for event in events if isinstance(event, reporter.Note) and " reads " in event.text]
    assert notes == [
        "mini reads the negative prompt 'the dogs' as 'dog'",
        f"mini reads {typed!r} as 'a blue ball made of wood'",
    ]
    finished = [(event.prompt, event.prompt_read) for event in events if isinstance(event, AssetFinished)]
    assert finished == [("a blue ball made of wood", None), *[(typed, "a blue ball made of wood")] * 2]


def test_early_end_is_reported_and_recorded(folder, prior):
    events = []
    settings = SETTINGS | {"optim.stop_change": 1.0, "optim.stop_every": 2}
    session = segdream.load(prior=MINI, device="cpu", settings=settings, reporter=events.append)
    splats = session.generate(BUS, output="bus.ply")
    assert splats.provenance["steps"] == 4
    assert splats.provenance["unet_rows"] > 0
    (finished,) = [event for event in events if isinstance(event, AssetFinished)]
    assert finished.steps == 4
    note = (
        "the distillation ended after 4 of 6 steps: in the last 2, the views changed by less than 1 (optim.stop_change)"
    )
    assert [event.text for event in events if isinstance(event, reporter.Note)].count(note) == 1
    lines = [json.loads(line) for line in (finished.run / "events.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "change" in line] == [4]
    assert lines[-1]["stopped"] is True
    assert 0 < lines[-1]["change"][0] < 1


def test_every_public_name_exists():
    assert {name: hasattr(segdream, name) for name in segdream.__all__} == dict.fromkeys(segdream.__all__, True)
    assert dir(segdream) == sorted(segdream.__all__)
    with pytest.raises(AttributeError, match="no attribute 'generate_all'"):
        segdream.generate_all  # noqa: B018


def test_generate_writes_the_file_of_the_command(bus, session):
    splats = session.generate(BUS, seed=3, output="api.ply")
    assert Path("api.ply").read_bytes() == bus
    assert sorted(path.name for path in Path("api.run").iterdir()) == ["events.jsonl", "run.json"]
    np.testing.assert_array_equal(splats.means, segdream.read("command.ply").means)


def test_generate_in_memory_makes_the_asset_of_the_command(bus, session, folder, capsys):
    splats = session.generate(BUS, seed=3)
    assert sorted(path.name for path in folder.iterdir()) == ["command.ply", "command.run"]
    segdream.write("memory.ply", splats)
    assert Path("memory.ply").read_bytes() == bus
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_generate_works_outside_the_main_thread(bus, session):
    thread = threading.Thread(target=session.generate, args=(BUS,), kwargs={"seed": 3, "output": "thread.ply"})
    thread.start()
    thread.join(timeout=120)
    assert Path("thread.ply").read_bytes() == bus


def test_iterate_yields_each_step_and_the_asset_so_far(session):
    generation = session.iterate(BUS)
    seen = [(report.step, report.n_gaussians, generation.splats()) for report in generation]
    assert [step for step, _, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert [(len(splats),) for _, _, splats in seen] == [counts for _, counts, _ in seen]
    assert [splats.provenance["steps"] for _, _, splats in seen] == [1, 2, 3, 4, 5, 6]
    assert len({splats.means.tobytes() for _, _, splats in seen}) == 6


@pytest.mark.parametrize("last", [2, 6])
def test_iterate_that_is_closed_saves_a_run_that_can_be_resumed(bus, session, segdream_command, last):
    generation = session.iterate(BUS, seed=3, output="half.ply")
    for report in generation:
        if report.step == last:
            break
    generation.close()
    assert (RunDir(Path("half.run")).step(), Path("half.ply").exists()) == (last, False)
    assert segdream_command("generate", "--resume", "half.run", "--device", "cpu").code == 0
    assert Path("half.ply").read_bytes() == bus


def test_session_reports_the_events_of_a_run(folder, prior):
    events = []
    session = segdream.load(prior=MINI, device="cpu", settings=SETTINGS, reporter=events.append)
    session.generate(BUS, output="bus.ply")
    kinds = [type(event) for event in events if not isinstance(event, reporter.Note)]
    assert kinds == [RunStarted, *[Stepped] * 6, RunEnded, AssetFinished]
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2, 3, 4, 5, 6]
    assert (events[-1].output, events[-1].prompt, events[-1].steps) == (Path("bus.ply"), BUS, 6)
    assert pickle.loads(pickle.dumps(events)) == events


def test_session_stops_after_the_step_in_which_it_is_asked_to(folder, prior):
    events = []

    def stop_after_two(event):
        events.append(event)
        if isinstance(event, Stepped) and event.step == 2:
            session.stop.set()

    session = segdream.load(prior=MINI, device="cpu", settings=SETTINGS, reporter=stop_after_two)
    with pytest.raises(Interrupted, match="stopped after step 3 of 6"):
        session.generate(BUS, output="bus.ply")
    (saved,) = [event for event in events if isinstance(event, RunSaved)]
    assert saved == RunSaved(Path("bus.run"), 3, 6, "segdream generate --resume bus.run")
    assert RunDir(Path("bus.run")).step() == 3


def test_errors_keep_message_hint_and_exit_code_in_a_pickle():
    for problem in (OutputExists("bus.ply exists", hint="--force"), SegdreamError("the disk is full")):
        copy = pickle.loads(pickle.dumps(JobFailed(problem, Path("bus.ply")))).problem
        assert type(copy) is type(problem)
        assert (copy.message, copy.hint, copy.exit_code) == (problem.message, problem.hint, problem.exit_code)
    assert pickle.loads(pickle.dumps(Interrupted("stopped", exit_code=143))).exit_code == 143


def test_load_chooses_the_method():
    session = segdream.load(prior=MINI, device="cpu", method="sds", settings={"distill.guidance_scale": 20})
    assert (session.config.distill.method, session.config.distill.sds.guidance_scale) == ("sds", 20.0)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ({"quality": "ultra"}, None),
        ({"prior": "sdxl"}, None),
        ({"method": "sd"}, None),
        ({"device": "tpu"}, ("--device", "tpu")),
        ({"method": "sdss"}, None),
        ({"settings": {"optim.stepz": 3}}, ("--set", "optim.stepz=3")),
        ({"settings": {"optim.steps": "many"}}, ("--set", "optim.steps=many")),
        ({"settings": {"init.shape": "spere"}}, ("--init", "spere")),
        ({"negative_prompt": "a zzz"}, ("--negative", "a zzz")),
        ({"config": "none.toml"}, ("--config", "none.toml")),
    ],
)
def test_load_refuses_what_the_command_refuses(segdream_command, arguments, command):
    with pytest.raises(SegdreamError) as refused:
        segdream.load(**{"prior": MINI, "device": "cpu", **arguments})
    assert refused.value.exit_code == 2
    assert refused.value.hint
    if command is not None:
        done = segdream_command("generate", BUS, "-o", "bus.ply", "--prior", MINI, "--device", "cpu", *command)
        assert done.code == 2
        assert " ".join(refused.value.message.split()) in done.err


def test_generate_refuses_what_the_command_refuses(session, folder):
    with pytest.raises(UsageProblem, match="does not know 'skool'"):
        session.generate("a yellow skool bus")
    with pytest.raises(UsageProblem, match="the seed -1 is not an integer in 0 to"):
        session.generate(BUS, seed=-1)
    with pytest.raises(UsageProblem, match="the folder none does not exist"):
        session.generate(BUS, output="none/bus.ply")
    with pytest.raises(UsageProblem, match="no known suffix"):
        session.generate(BUS, output="bus.txt")
    Path("bus.ply").write_text("mine")
    with pytest.raises(OutputExists, match=r"bus\.ply exists"):
        session.generate(BUS, output="bus.ply")
    assert [path.name for path in folder.iterdir()] == ["bus.ply"]
    session.generate(BUS, output="bus.ply", force=True)
    assert len(segdream.read("bus.ply")) > 0


def test_read_and_write_convert_as_export_does(bus, segdream_command):
    outputs = ("command.spz", "command.splat", "command.glb")
    assert segdream_command("export", "command.ply", *[part for path in outputs for part in ("-o", path)]).code == 0
    splats = segdream.read("command.ply")
    for path in outputs:
        own = Path(path).with_stem("api")
        segdream.write(own, splats)
        assert own.read_bytes() == Path(path).read_bytes()
    segdream.write("four.spz", splats, "spz4", fractional_bits=16)
    assert Path("four.spz").read_bytes()[:8] == b"NGSP\4\0\0\0"


@pytest.mark.parametrize(
    ("background", "color"), [((1.0, 1.0, 1.0), "white"), ((1.0, 0.0, 0.0), "#ff0000"), (None, "transparent")]
)
def test_render_image_has_the_pixels_of_the_command(bus, segdream_command, background, color):
    arguments = ("--view", "40,20", "--size", "48x32", "--supersample", "2", "--background", color)
    assert segdream_command("render", "command.ply", *arguments, "-o", "view.png").code == 0
    splats = segdream.read("command.ply")
    image = segdream.render_image(
        splats, azimuth=40, elevation=20, size=(48, 32), supersample=2, background=background, device="cpu"
    )
    with Image.open("view.png") as expected:
        np.testing.assert_array_equal(image, np.asarray(expected))
    assert (image.dtype, image.shape) == (np.uint8, (32, 48, 4 if background is None else 3))


def test_render_turntable_has_the_frames_of_the_command(bus, segdream_command):
    arguments = ("--frames", "--n-frames", "3", "--size", "32", "--elevation", "10")
    assert segdream_command("render", "command.ply", *arguments, "-o", "turn").code == 0
    images = segdream.render_turntable(segdream.read("command.ply"), n_frames=3, elevation=10, size=32, device="cpu")
    for number, image in enumerate(images):
        with Image.open(f"turn/frame-{number:04d}.png") as expected:
            np.testing.assert_array_equal(image, np.asarray(expected))
    assert number == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 8}, "size 8 is not SIDE or WIDTHxHEIGHT"),
        ({"size": 4096, "supersample": 4}, "8192 samples"),
        ({"supersample": 0}, "--supersample 0 is not at least 1"),
        ({"elevation": 91}, "the elevation 91 is not in -90 to 90 degrees"),
        ({"elevation": float("nan")}, "the elevation nan"),
        ({"azimuth": float("nan")}, "the azimuth nan"),
        ({"background": (2.0, 0.0, 0.0)}, "the background"),
        ({"device": "tpu"}, "no device 'tpu'"),
    ],
)
def test_render_image_refuses_arguments_out_of_range(bus, arguments, message):
    with pytest.raises(UsageProblem, match=message):
        segdream.render_image(segdream.read("command.ply"), **arguments)


SHORT = """
import runpy, sys
from dataclasses import replace
import segdream_cli
from segdream_cli.pointe import sampler, schedule
few = {"views": (4,), "steps": (2,), "iterations": (4,), "t0": (200,), "image_size": (0,), "gaussians": (0,)}
short = {"init.copies": 1, "refine.surface": 500} | {f"refine.{name}": value for name, value in few.items()}
real = segdream_cli.load
segdream_cli.load = lambda *, settings, **options: real(settings=short | settings, **options)
sampler.noise_levels = lambda sampling: schedule.noise_levels(replace(sampling, steps=2))
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""A program that runs another one with two steps of Point-E, a Gaussian per point, and a short round of refinement."""


@pytest.mark.slow
def test_example_makes_an_asset_and_an_image(tmp_path):
    program = str(ROOT / "examples" / "generate.py")
    command = [sys.executable, "-c", SHORT, program, BUS, "bus.ply", "--steps", "2"]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("wrote bus.ply and bus.png\n")
    assert segdream.read(tmp_path / "bus.ply").provenance["prompt"] == BUS
    with Image.open(tmp_path / "bus.png") as image:
        assert image.size == (256, 256)


@pytest.mark.parametrize("seed", [1.5, True, "1", -1, 10**15])
def test_check_seed_refuses_what_is_not_a_seed(seed):
    with pytest.raises(UsageProblem, match="is not an integer in 0 to"):
        check_seed(seed)


def test_check_seed_returns_a_python_integer():
    assert type(check_seed(np.int64(7))) is int
    assert check_seed(np.int64(7)) == 7


def test_an_error_of_the_reporter_saves_the_run(folder):
    def fail(event):
        if isinstance(event, Stepped) and event.step == 2:
            raise ValueError("not today")

    session = segdream.load(prior=MINI, device="cpu", settings=SETTINGS, reporter=fail)
    with pytest.raises(ValueError, match="not today"):
        session.generate(BUS, output="reporter.ply")
    assert RunDir(folder / "reporter.run").step() == 2
