"""Shared helpers of the command-line tests: small runs, and a start for processes without networks."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segdream_cli.config import MINI

TESTS = Path(__file__).resolve().parent
BUS = "a yellow school bus"
TINY = (
    "--prior",
    MINI,
    "--device",
    "cpu",
    "--init",
    "sphere",
    "--set",
    "init.count=40",
    "--set",
    "densify.cap=60",
    "--set",
    "camera.batch=2",
    "--no-refine",
)
SIX = (*TINY, "--steps", "6")
ROUNDS = {
    "t0": "[300,200]",
    "steps": "[3,2]",
    "views": "[5,4]",
    "iterations": "[3,4]",
    "image_size": "[0,0]",
    "gaussians": "[0,60]",
    "fit_batch": "2",
}
REFINED = (
    *(word if word != "--no-refine" else "--refine" for word in SIX),
    *(word for key, value in ROUNDS.items() for word in ("--set", f"refine.{key}={value}")),
)
"""Those of `SIX`, and two rounds of refinement, of 7 steps together."""

LAUNCHER = f"""
import sys, time
sys.path[:0] = [{str(TESTS.parent)!r}, {str(TESTS)!r}, {str(TESTS / "cli")!r}]
from cluster_workers import replace_prior
from fakes import AnalyticPrior
from segdream_cli.cli import main

class Slow(AnalyticPrior):
    def predict_noise(self, latents, timesteps, text):
        time.sleep(0.01)
        return super().predict_noise(latents, timesteps, text)

replace_prior(Slow)
main()
"""


COMMANDS = (
    "chmod",
    "cp",
    "df",
    "echo",
    "export",
    "flock",
    "hf",
    "iconv",
    "mkdir",
    "mv",
    "npx",
    "pip",
    "printf",
    "python",
    "rm",
    "sed",
)
COMMANDS += ("segdream", "sudo", "sync", "touch", "ulimit", "unset")


def is_command(hint):
    """Whether a hint can be pasted into a shell: a command, or an option to add to one."""
    words = shlex.split(hint, comments=True)
    return bool(words) and (words[0].startswith("-") or words[0] in COMMANDS)


def plain(text):
    """Text without colours and the lines of boxes."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


def rewrite_record(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the record of a stopped run and its copy in the checkpoint, as if it had been begun elsewhere."""
    from segdream_cli.util.tensor_files import dump_tensors, load_tensors  # imports torch

    record = json.loads((run / "run.json").read_text())
    change(record)
    (run / "run.json").write_text(json.dumps(record))
    tensors, entries = load_tensors(run / "checkpoint.safetensors")
    (run / "checkpoint.safetensors").write_bytes(dump_tensors(tensors, entries | {"record": json.dumps(record)}))
