"""Prompts, file names and file contents that would change a terminal, through every command."""

import json
import os
import re
import shlex
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import SIX, TINY

from segdream_cli import cli, formats
from segdream_cli.splats import Splats
from segdream_cli.util.text import printable_command

HOSTILE = "a\x1b]0;owned\x07\u202egpj\x9b31m"
BALL = Splats(
    means=np.float32([[0, 0, 0], [0.1, 0, 0]]),
    quats=np.tile(np.float32([1, 0, 0, 0]), (2, 1)),
    log_scales=np.full((2, 3), -1, np.float32),
    opacity_logits=np.full(2, 4, np.float32),
    sh0=np.zeros((2, 3), np.float32),
    shN=np.zeros((2, 0, 3), np.float32),
)
MISSING = f"{HOSTILE}/missing.ply"


@pytest.mark.parametrize(
    "name", [HOSTILE, "it's\x1b1\\033", "two\nlines\t\x7f", "caf\udce9\u2028", "plain '1'", 'a"b\x07']
)
def test_printable_command_means_the_same_in_a_shell(name):
    command = printable_command(f"printf %s {shlex.quote(name)}  # {HOSTILE}")
    assert command.isprintable()
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True)
    assert done.stdout == os.fsencode(name)


def test_the_hint_for_a_file_with_control_characters_works_when_pasted(terminal, folder):
    said = terminal("generate", "--resume", f"{HOSTILE}.run")
    (hint,) = re.findall(r"hint:  (mv .*)", said)
    subprocess.run(["bash", "-c", hint], check=True, cwd=folder)
    assert not Path(f"{HOSTILE}.run").exists()


def test_the_hint_for_a_prompt_with_colours_has_none_of_their_codes(terminal):
    assert "'a red ball'" in terminal("generate", "a \x1b[31mred\x1b[0m ball\x1b]0;owned\x07", "-o", "x.ply", *SIX)


@pytest.fixture
def terminal(segdream, folder, capsys, monkeypatch):
    """Runs a command as on a terminal without colours; returns everything that it printed."""
    monkeypatch.setenv("TERM", "dumb")
    formats.write(Path(f"{HOSTILE}.ply"), replace(BALL, provenance={"prompt": HOSTILE}))
    Path(f"{HOSTILE}.txt").write_text(f"{HOSTILE}\n", encoding="utf-8")
    Path(f"{HOSTILE}.toml").write_text(f'[optim]\n"{json.dumps(HOSTILE)[1:-1]}" = 1\n', encoding="utf-8")
    run = Path(f"{HOSTILE}.run")
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"format": 1, HOSTILE: 1}), encoding="utf-8")

    def run_command(*arguments):
        capsys.readouterr()
        for stream in (sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
        cli.run(arguments)
        said = capsys.readouterr()
        return said.out + said.err

    return run_command


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", HOSTILE, "-o", "x.ply", *SIX),
        ("generate", "a red ball", "-o", MISSING, *SIX),
        ("generate", "--prompts", f"{HOSTILE}.txt", "--out-dir", HOSTILE, *SIX),
        ("generate", "--resume", f"{HOSTILE}.run"),
        ("generate", "a red ball", "--config", f"{HOSTILE}.toml", *SIX),
        ("generate", "a red ball", "--set", f"{HOSTILE}=1", *SIX),
        ("generate", "a red ball", "--quality", HOSTILE),
        ("generate", "a red ball", f"--{HOSTILE}"),
        ("generate", "a red ball", "-o", f"new {HOSTILE}.ply", *SIX),
        ("init", HOSTILE, "-o", "x.ply", *TINY[:4]),
        ("init", "a red ball", "-o", MISSING, *TINY[:6]),
        ("init", "a red ball", "-o", f"new {HOSTILE}.ply", *TINY[:6]),
        ("refine", MISSING, "a red ball", *TINY[:4]),
        ("refine", f"{HOSTILE}.ply", HOSTILE, *TINY[:4]),
        ("render", MISSING, "--turntable"),
        ("render", f"{HOSTILE}.ply", "--view", HOSTILE),
        ("render", f"{HOSTILE}.ply", "--view", "0,0", "--size", "16"),
        ("view", MISSING),
        ("export", MISSING, "-o", "x.splat"),
        ("export", f"{HOSTILE}.ply", "-o", HOSTILE),
        ("export", f"{HOSTILE}.ply", "-o", f"{HOSTILE}.splat"),
        ("evaluate", f"{HOSTILE}.ply", "--views", "2", "--size", "64", "--metrics", "health"),
        ("evaluate", f"{HOSTILE}.ply", "--metrics", HOSTILE),
        ("evaluate", MISSING),
        ("evaluate", "--compare", f"{HOSTILE}.ply", MISSING),
        ("fetch", HOSTILE),
        ("doctor", HOSTILE),
        (HOSTILE,),
    ],
    ids=lambda arguments: " ".join(arguments).encode("unicode_escape").decode()[:60],
)
def test_no_command_prints_what_changes_a_terminal(terminal, arguments):
    said = terminal(*arguments)
    assert not [letter for letter in said if unicodedata.category(letter).startswith("C") and letter != "\n"]
    assert any(escape in said for escape in (r"\x1b]", r"\u202e", r"\342\200\256"))
