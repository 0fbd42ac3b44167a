"""Packages that are missing or can't be imported: one sentence, a command that repairs them, and exit code 3."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import BUS, TINY

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 300
RAISE = 'raise OSError("libfoo.so.1: cannot open shared object file")'
MISSING = 'raise ModuleNotFoundError(f"No module named {__name__!r}", name=__name__)'
DAMAGED = "def broken(:\n"
GENERATE = ("generate", BUS, *TINY, "--steps", "1", "-o", "bus.ply")
COMMANDS = {
    "init": ("init", BUS, "-o", "start.ply"),
    "generate": GENERATE,
    "refine": ("refine", "bus.ply", BUS, "-o", "refined.ply"),
    "render": ("render", "bus.ply", "--view", "45,20", "-o", "bus.png"),
    "view": ("view", "bus.ply", "--no-browser"),
    "export": ("export", "bus.ply", "-o", "bus.splat"),
    "evaluate": ("evaluate", "bus.ply"),
    "fetch": ("fetch", "sd21"),
    "doctor": ("doctor",),
}

pytestmark = pytest.mark.slow


def run(folder, command, **stubs):
    """The finished process of a command for which modules have other source texts."""
    for name, source in stubs.items():
        (folder / "stubs").mkdir(exist_ok=True)
        (folder / "stubs" / f"{name}.py").write_text(source)
    path = os.pathsep.join([str(folder / "stubs"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "segdream_cli", *command],
        capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=LIMIT_S,
    )  # fmt: skip


def asset(folder):
    """A file with one Gaussian, written by hand."""
    names = [*"xyz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", *(f"scale_{i}" for i in range(3))]
    names += [f"rot_{i}" for i in range(4)]
    lines = ["ply", "format ascii 1.0", "element vertex 1", *(f"property float {name}" for name in names), "end_header"]
    values = [0, 0, 0, 1, 1, 1, 2, -1, -1, -1, 1, 0, 0, 0]
    (folder / "bus.ply").write_text("\n".join([*lines, " ".join(map(str, values))]) + "\n")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("view", "export", "fetch")])
def test_commands_name_a_torch_that_cannot_be_imported(tmp_path, command):
    if command != "generate":
        asset(tmp_path)
    before = sorted(tmp_path.iterdir())
    done = run(tmp_path, COMMANDS[command], torch=RAISE)
    said = done.stdout + done.stderr
    assert done.returncode == 3, said
    assert "the package torch can't be imported: libfoo.so.1: cannot open shared object file" in said
    assert "pip install --force-reinstall 'torch>=" in said
    assert "Traceback" not in said
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "stubs"])


@pytest.mark.parametrize(
    ("module", "command", "distribution"),
    [
        ("diffusers", "generate", "diffusers"),
        ("transformers", "generate", "transformers"),
        ("gsplat", "generate", "gsplat"),
        ("numba", "render", "numba"),
        ("scipy", "evaluate", "scipy"),
        ("safetensors", "generate", "safetensors"),
        ("numpy", "export", "numpy"),
        ("PIL", "render", "pillow"),
        ("plyfile", "export", "plyfile"),
        ("huggingface_hub", "fetch", "huggingface-hub"),
        ("plyfile", "view", "plyfile"),
        ("rich", "evaluate", "rich"),
        ("typer", "doctor", "typer"),
    ],
)
@pytest.mark.parametrize("source", [MISSING, DAMAGED], ids=["missing", "damaged"])
def test_command_names_the_package(tmp_path, module, command, distribution, source):
    if command != "generate":
        asset(tmp_path)
    done = run(tmp_path, COMMANDS[command], **{module: source})
    assert done.returncode == 3, done.stderr
    error, hint = done.stderr.strip().splitlines()[-2:]
    lacks = source == MISSING
    assert error.startswith(f"error: the package {distribution} {'is not installed' if lacks else 'can'}"), done.stderr
    assert hint.startswith(f"hint:  pip install {'' if lacks else '--force-reinstall '}"), done.stderr
    assert distribution in hint
    assert "Traceback" not in done.stderr


def test_doctor_reports_each_package_once_and_goes_on(tmp_path):
    done = run(tmp_path, ("doctor", "--json"), diffusers=MISSING, numba=RAISE)
    *findings, _ = map(json.loads, done.stdout.splitlines())
    problems = {line["detail"]: line["hint"] for line in findings if line["state"] == "problem"}
    assert done.returncode == 3
    assert len(problems) == sum(line["state"] == "problem" for line in findings) == 2
    assert {detail.split()[2] for detail in problems} == {"diffusers", "numba"}
    assert {"torch", "prior", "disk"} <= {line["name"] for line in findings if line["state"] != "problem"}


def test_doctor_imports_all_that_generate_imports(tmp_path):
    script = """
import json, sys
from importlib.metadata import packages_distributions
from segdream_cli.cli import run
code = run(sys.argv[1:])
known = packages_distributions()
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules} & known.keys())]))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    imported = {}
    for command in (GENERATE, ("doctor",)):
        done = subprocess.run(
            [sys.executable, "-c", script, *command],
            capture_output=True, text=True, check=True, cwd=tmp_path, env=environment, timeout=LIMIT_S,
        )  # fmt: skip
        code, names = json.loads(done.stdout.splitlines()[-1])
        assert code == 0, done.stderr
        imported[command[0]] = set(names)
    assert {"torch", "diffusers", "numba", "gsplat"} <= imported["generate"]
    assert (
        imported["generate"] - {"rich"} <= imported["doctor"]
    )  # its tables are a slow import, and every install has it
