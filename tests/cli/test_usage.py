"""Command lines that Typer can't parse: the hint is the nearest one that it can, with all corrections in it."""

import os
import shlex
from pathlib import Path

import pytest
import typer.main
from hints import check, find_hints

from segdream_cli import cli
from segdream_cli.cli.usage import explain, find_problem

GROUP = typer.main.get_command(cli.app)
COMMANDS = GROUP.commands  # type: ignore[attr-defined]
PATHS = {
    "--blind", "--camera-path", "--config", "--csv", "--html", "--make-references", "--model", "--point-e-dir",
    "--ray", "--reference", "--votes", "--weights",
}  # fmt: skip
"""Options whose value nobody can guess."""


@pytest.mark.parametrize(
    ("given", "cured"),
    [
        # options
        ("generate bus --outpt bus.ply", "generate bus --output bus.ply"),
        ("generate bus --outptu=bus.ply -q", "generate bus --output=bus.ply -q"),
        ("generate bus -seed 3", "generate bus --seed 3"),
        ("generate bus --perp-neg=yes", "generate bus --perp-neg"),
        ("generate bus --steps", "generate bus --steps 500"),
        ("generate bus --preset draft", "generate bus --quality draft"),
        ("runs --delete", "runs --clean"),
        ("generate bus --cfg=5 --overwrite", "generate bus --guidance-scale=5 --force"),
        ("lod bus.ply -o", "lod bus.ply -o levels"),
        ("generate bus -o --dry-run -q", "generate bus --dry-run -q"),
        ("--json doctor", "doctor --json"),
        ("-o bus.ply generate bus", "generate bus -o bus.ply"),
        ("doctor --quick", "doctor --help"),
        # values
        ("generate bus --steps abc", "generate bus --steps 500"),
        ("generate bus --steps=-1", "generate bus --steps=0"),
        ("render bus.ply --n-frames 99,999 -q", "render bus.ply --n-frames 3600 -q"),
        ("render bus.ply --supersample 2.5", "render bus.ply --supersample 2"),
        ("export bus.ply -o a.glb --opacity 50%", "export bus.ply -o a.glb --opacity 0.99"),
        ("generate bus --quality hihg", "generate bus --quality high"),
        ("generate bus --quality best", "generate bus --quality standard"),
        ("fetch sd22 pointe", "fetch sd21 point-e"),
        # arguments
        ("render --turntable", "render new.ply --turntable"),
        ("refine -q", "refine new.ply 'a yellow school bus' -q"),
        ("refine old.spz --up z", "refine old.spz 'a yellow school bus' --up z"),
        ("report -o bus.html", "report new.ply -o bus.html"),
        ("evaluate --csv a.csv", "evaluate --csv a.csv new.ply"),
        ("export -o a.spz", "export -o a.spz new.ply"),
        ("export old.spz", "export old.spz -o old.ply"),
        ("export new.ply new.sog -q", "export new.ply -q -o new.sog"),
        ("generate", "generate 'a yellow school bus'"),
        ("render", "render new.ply"),
        ("fetch", "fetch sd21"),
        ("generate --seed 3", "generate --seed 3 'a yellow school bus'"),
        ("generate --out-dir all", "generate --out-dir all --prompts prompts.txt"),
        ("generate a yellow bus -o bus.ply", "generate 'a yellow bus' -o bus.ply"),
        ("generate 'a yellow bus' bus.ply", "generate 'a yellow bus' -o bus.ply"),
        ("refine bus.ply a yellow bus", "refine bus.ply 'a yellow bus'"),
        ("lod a.ply b.ply -o all", "lod a.ply -o all"),
        # commands
        ("rendr bus.ply", "render bus.ply"),
        ("convert bus.ply -o bus.spz", "export bus.ply -o bus.spz"),
        ("help render", "render --help"),
        ("version", "--version"),
        ("bus.ply", "view bus.ply"),
        ("'a yellow bus'", "generate 'a yellow bus'"),
        ("a yellow bus -o bus.ply", "generate 'a yellow bus' -o bus.ply"),
        ("sing", "--help"),
        ("bus", "generate bus"),
        # several errors
        ("make a bus --quality slow --steps abc", "generate 'a bus' --quality standard --steps 500"),
    ],
)
def test_hint_is_the_nearest_command_line(folder, capsys, given, cured):
    for age, name in enumerate(("new.ply", "old.spz", "notes.txt")):
        Path(name).touch()
        os.utime(name, (1e9 - age, 1e9 - age))
    assert cli.run(shlex.split(given)) == 2
    (hint,) = find_hints([], capsys.readouterr().err)
    assert shlex.split(hint.text) == ["segdream", *shlex.split(cured)]
    check(hint.text)


def test_every_option_without_its_value_gets_one(folder):
    for name, command in COMMANDS.items():
        arguments = ["sd21" for each in command.params if each.param_type_name == "argument" and each.required]
        for each in command.params:
            if each.param_type_name == "argument" or each.is_flag:
                continue
            words = [name, *arguments, each.opts[-1]]
            hint = explain(find_problem(GROUP, words), GROUP, words).hint
            whole = shlex.join(["segdream", *words])
            assert hint.startswith(f"{whole} ") if each.opts[-1] not in PATHS else hint == f"segdream {name} --help"
            check(hint)


def test_messages_say_the_range_of_numbers(capsys):
    for given, message in {
        "generate bus --steps abc": "--steps 'abc' is not an integer from 0 to 1,000,000",
        "generate bus --batch 0": "--batch '0' is not an integer of at least 1",
        "export bus.ply --scale x": "--scale 'x' is not a number from 1e-06 to 1,000,000.0",
        "generate a bus": "too many arguments: bus; a prompt of several words needs quotes",
        "generate 'a bus' bus.ply": "too many arguments: bus.ply",
        "-q generate bus": "options follow the command, and -q is before it",
        "generate bus --preset draft": "no such option: --preset",
        "generat bus": "no such command 'generat'",
        "generate bus -o --dry-run": "-o needs a value, and --dry-run is the next option",
        "generate bus -o --quality=draft": "-o needs a value, and --quality=draft is the next option",
        "generate bus --steps --dry-run": "--steps needs a value, and --dry-run is the next option",
        "generate bus -o -o bus.ply": "-o needs a value, and -o is the next option",
        "lod bus.ply -o --help": "-o needs a value, and --help is the next option",
        "fetch": "missing argument 'WEIGHTS', one of sd21, point-e, clip, image-reward, fid",
    }.items():
        assert cli.run(shlex.split(given)) == 2
        assert capsys.readouterr().err.splitlines()[0] == f"error: {message}"
