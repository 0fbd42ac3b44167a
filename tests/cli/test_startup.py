"""Errors of input are answered before torch is imported, which takes seconds; so are help and version."""

import json
import shlex
import subprocess
import sys

import pytest
from commands import BUS, LAUNCHER, SIX

SCRIPT = """
import contextlib, io, json, shlex, sys
from segdream_cli import cli
for line in sys.stdin.read().splitlines():
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = cli.run(shlex.split(line))
        except SystemExit as end:
            code = end.code
    loaded = [name for name in ("torch", "transformers", "diffusers", "scipy") if name in sys.modules]
    print(json.dumps([line, code, loaded, said.getvalue()]))
"""
LINES = """
--version
--help
generate --help
generate 'a red ball' -o there.ply
generate 'a red ball' -o folder.ply
generate 'a red ball' -o none/x.ply
generate 'a red ball' -o x.xyz
generate 'a rod bull' -o x.ply
generate 'a red ball' -o begun.ply
generate 'a red ball' --negative 'a zzz' -o x.ply
generate 'a red ball' -o x.ply --device tpu
generate 'a red ball' -o x.ply --quality ultra
generate 'a red ball' -o x.ply --set optim.step=3
generate 'a red ball' -o x.ply --init spere
generate 'a red ball' -o x.ply --init none.ply
generate 'a red ball' -o x.ply --init-prompt 'a zzz'
generate 'a red ball' -o x.ply --config none.toml
generate 'a red ball' -o x.ply --model ./none
generate 'a red ball' -o x.ply --init sphere --init-scale 2
generate 'a red ball' -o x.ply --seeds 0-1
generate --prompts none.txt --out-dir a
generate --resume none.run
generate --resume folder.ply
init 'a red ball' -o there.ply
init 'a rod bull' -o x.ply
init 'a red ball' -o x.xyz
refine none.ply 'a red ball'
refine folder.ply 'a red ball'
refine there.ply 'a red ball' -o there.ply
refine there.ply 'a rod bull' -o x.ply
render none.ply
render folder.ply
render there.ply -o there.mp4
render there.ply --view x
render there.ply -o x.xyz
render there.ply --device tpu
render there.mp4
view none.ply
view folder.ply
export none.ply -o x.spz
export there.ply -o there.ply
export there.ply -o x.xyz
export there.ply -o x.splat --format spalt
export list.txt -o x.splat
evaluate none.ply
evaluate folder.ply
evaluate there.ply --csv there.csv
evaluate there.ply --metrics none
evaluate there.ply --elevations 100
evaluate --make-references folder.ply --prompts list.txt
fetch none
doctor --none
"""


@pytest.mark.slow
def test_errors_of_input_do_not_import_torch(tmp_path):
    for name in ("there.ply", "there.mp4", "there.csv"):
        (tmp_path / name).write_text("x")
    (tmp_path / "list.txt").write_text("a red ball\n")
    (tmp_path / "folder.ply").mkdir()
    (tmp_path / "begun.run").mkdir()
    (tmp_path / "begun.run" / "run.json").write_text("{}")
    lines = [
        f"{line} --device cpu" if "--device" not in line and needs_device(line) else line for line in LINES.split("\n")
    ]
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, input="\n".join(lines).strip(), capture_output=True, text=True, cwd=tmp_path)
    assert not done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(LINES.strip().split("\n"))
    for line, code, loaded, said in found:
        assert not loaded, f"{line} imports {loaded}: {said}"
        fails = "--help" not in shlex.split(line) and "--version" not in line
        assert (code != 0) == fails, f"{line}: {code} {said}"
        assert "unexpected" not in said


@pytest.mark.slow
def test_run_imports_no_compiler(tmp_path):
    """Neither PyTorch's, nor the kernel that merges the Gaussians of large assets: each takes seconds."""
    script = LAUNCHER.replace(
        "\nmain()\n",
        """
from segdream_cli.cli import run
code = run(sys.argv[1:])
print([name for name in ("torch._dynamo", "segdream_cli.simplify.kernels") if name in sys.modules])
sys.exit(code)
""",
    )
    command = [sys.executable, "-c", script, "generate", BUS, *SIX, "-o", "bus.ply"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines() == ["bus.ply", "[]"]


def needs_device(line):
    """Whether the prior depends on the device, which only torch knows on a machine with a GPU."""
    return line.startswith(("generate '", "generate --prompts", "init", "refine", "evaluate --make"))
