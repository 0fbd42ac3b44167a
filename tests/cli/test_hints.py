"""Hints are whole commands: the one that failed, with the correction in it. The fixture `segdream` follows them all."""

import shlex
import subprocess

import pytest
import typer
from commands import BUS, SIX
from hints import Hint, follow
from test_options import random_splats

from segdream_cli import formats
from segdream_cli.cli import command_line
from segdream_cli.cli.reporter import correct_list
from segdream_cli.errors import PromptProblem, SegdreamError
from segdream_cli.util.compat import usage_error

LONG = 300 * "a"
"""A name that no file can have."""


def words(done):
    """The words of a hint after the program."""
    program, *found = shlex.split(done.err.partition("hint: ")[2])
    assert program == "segdream"
    return found


@pytest.mark.parametrize(
    ("given", "cured"),
    [
        # an option in place of its value, wherever it is and however it is written
        ("generate P --output=bus.ply -q", "generate P -o bus-2.ply -q"),
        ("generate P -obus.ply --seed 3 -q", "generate P -o bus-2.ply --seed 3 -q"),
        ("generate -q -o bus.ply -- P", "generate -q -o bus-2.ply -- P"),
        # a setting in place of the same setting, of its short name and of its option, beside other settings
        ("generate P --set optim.steps=x --set init.count=9", "generate P --set optim.steps=5000 --set init.count=9"),
        ("generate P --set=distill.t_min=-1 -q", "generate P --set distill.sctd.t_min=0 -q"),
        ("generate P --set refine.enbled=false", "generate P --set refine.enabled=false"),
        # options that exclude each other
        ("generate P --prior mini --model nosuch", "generate P --model nosuch"),
        ("generate P --model ./nosuch", "generate P --prior mini"),
        ("generate P --perp-neg --no-perp-neg", "generate P --no-perp-neg"),
        ("generate P --seeds 0-1 --seed 3", "generate P --seeds 0-1"),
        ("init P --prior sd21 --point-e-dir no --init-points 9 -q", "init P --prior sd21 -q --init sphere"),
        (
            "generate P --init point --point-e-dir no --init-points 9",
            "generate P --init point-e --point-e-dir no --init-points 9",
        ),
        # of several outputs, the one that can't be written
        ("export bus.ply -o a.splat -o bus.ply -q", "export bus.ply -o a.splat -o bus-2.ply -q"),
        ("export bus.ply -o bus.ply -o a.html --output-frame rdf", "export bus.ply -o bus.ply -o a.html"),
        # an output without the suffix of its format
        ("export bus.ply --format 3dtiles -o tiles", "export bus.ply --format 3dtiles -o tiles.glb"),
        ("export bus.ply --format sog -o bus.v2", "export bus.ply --format sog -o bus.sog"),
        ("export bus.ply -o new.ply.gz", "export bus.ply -o new.ply"),
        ("export bus.ply -o a.ply -o b.txt", "export bus.ply -o a.ply -o b.ply"),
        ("export bus.ply -o a.glb -o b.fbx", "export bus.ply -o a.glb"),
        ("export bus.ply -o bus.ply -o bus-2.ply", "export bus.ply -o bus-3.ply -o bus-2.ply"),
        ("export bus.ply -o q.html --format spz -o q.ply", "export bus.ply -o q.spz --format spz -o q.ply"),
        ("export bus.ply -o buss.ply -o asset.ply", "export bus.ply -o buss.ply/asset.ply -o asset.ply"),
        ("export bus.ply -o a.spz -o ./a.spz", "export bus.ply -o a-2.spz -o ./a.spz"),
        # arguments
        ("generate --prompts list.txt P --out-dir all", "generate --prompts list.txt --out-dir all"),
        ("render bus.mp4 --view 0,0 --size 64", "render bus.ply --view 0,0 --size 64"),
        ("export buss.spz -o a.splat -q", "export bus.ply -o a.splat -q"),
        ("render bus.ply --view 0,0 --n-frames 3 --size 64", "render bus.ply --view 0,0 --size 64"),
        ("render bus.ply --turntable --view 0,0", "render bus.ply --turntable"),
        ("render bus.ply bus.ply --caption 'my bus'", "render bus.ply bus.ply --caption=bus --caption=bus"),
        ("refine P bus.ply --dry-run", "refine bus.ply P --dry-run"),
        ("refine P bus.ply -o bus.ply --dry-run", "refine bus.ply P -o bus.ply --dry-run"),
        (f"refine {LONG} P --dry-run", "refine bus.ply P --dry-run"),
        # files that are missing, and folders
        ("info scan.ply", "info bus.ply"),
        ("info all -q", "info all/car.spz -q"),
        ("info all/ -q", "info all/car.spz -q"),
        ("report buss.ply", "report bus.ply"),
        ("report .", "report bus.ply"),
        ("render . --view 0,0", "render bus.ply --view 0,0"),
        ("render bus.ply --frames -o bus.ply --force", "render bus.ply --frames -o bus-frames --force"),
        ("generate P -o -o x.ply", "generate P -o x.ply"),
        ("generate --prompts list.txt -o {prompt}.foo", "generate --prompts list.txt -o {prompt}.ply"),
        (f"runs {LONG}", "runs ."),
        ("info none/bus.ply", "generate P -o none/bus.ply"),
        ("report scan.run", "report bus.ply"),
        ("generate --resume scan.run", "runs"),
        ("generate --prompts lists --out-dir all", "generate --prompts lists/a.txt --out-dir all"),
        ("generate P -o all -q", "generate P -o all/a_yellow_school_bus.ply -q"),
        ("export bus.ply -o all -q", "export bus.ply -o all/asset.ply -q"),
        ("export bus.ply -o bus.txt -q", "export bus.ply -o bus-2.ply -q"),
        ("export bus.ply -o bus.fbx -q", "export bus.ply --format mesh -o bus.glb -q"),
        ("render bus.ply -o all", "render bus.ply -o all/turntable.mp4"),
    ],
)
def test_hint_is_the_command_with_the_correction(segdream, folder, given, cured):
    formats.write(folder / "bus.ply", random_splats())
    (folder / "list.txt").write_text(f"{BUS}\n")
    (folder / "buss.ply").mkdir()
    for name in ("all", "lists", "none"):
        (folder / name).mkdir()
    (folder / "all" / "car.spz").touch()
    (folder / "lists" / "a.txt").write_text(f"{BUS}\n")
    said = segdream(*(BUS if word == "P" else word for word in shlex.split(given)))
    assert said.code != 0
    assert words(said) == [BUS if word == "P" else word for word in shlex.split(cured)]


def test_hint_of_a_prompt_in_a_list_corrects_its_lines(segdream, folder):
    folder.joinpath("my list.txt").write_text(f"\ufeffa corgi\r\n# mine\n\n{BUS}\n  a corgi \n", encoding="utf-8")
    given = ("generate", "--prompts", "my list.txt", "--out-dir", "all", *SIX, "--dry-run")
    said = segdream(*given)
    assert said.code == 1
    assert "error: line 1 of my list.txt: mini does not know 'corgi'" in said.err
    edit, then = said.err.partition("hint: ")[2].partition(" dry run:")[0].split(" && ")
    assert shlex.split(then) == ["segdream", *given]
    subprocess.run(edit, shell=True, cwd=folder, check=True)
    assert folder.joinpath("my list.txt").read_text().splitlines() == ["a dog", "# mine", "", BUS, "a dog"]
    assert folder.joinpath("my list.txt.bak").exists()
    assert segdream(*given).code == 0
    long = PromptProblem("no", prompt="a / b", instead="c / d & \\")
    folder.joinpath("odd.txt").write_text("a / b")
    correct_list(long, "odd.txt")
    subprocess.run(str(long.hint).partition(" && ")[0], shell=True, cwd=folder, check=True)
    assert folder.joinpath("odd.txt").read_text() == "c / d & \\"
    elsewhere = PromptProblem("no", prompt=BUS, instead="a dog")
    correct_list(elsewhere, "-")
    assert (elsewhere.message, elsewhere.hint) == ("no", "segdream generate 'a dog'")


def test_refusal_without_a_near_phrase_names_its_line_and_lists_the_words_of_its_prior(segdream, folder):
    """On CUDA, the words of the default prior would be those of another one."""
    folder.joinpath("list.txt").write_text(f"{BUS}\nasdfgh\n{'so ' * 400}\n")
    hint = " hint: segdream generate --list-words --prior mini --device cpu"
    said = segdream("generate", "--prompts", "list.txt", "--out-dir", "all", *SIX, "--dry-run")
    assert said.code == 1
    assert "error: line 2 of list.txt: mini does not know 'asdfgh'; it knows" in said.err
    assert hint in said.err
    assert "error: line 3 of list.txt: the prompt has 1,199 characters" in said.err
    assert segdream("generate", "asdfgh", *SIX).err.endswith(hint)


def test_hint_whose_option_the_command_lacks_is_none(segdream):
    segdream("doctor", "--json")
    lacking = SegdreamError("this machine does not have enough memory", hint="--set densify.cap=5000")
    assert command_line.complete_hint(lacking) is None
    command_line.forget_command()
    assert command_line.complete_hint(lacking) == lacking.hint


@pytest.mark.parametrize(
    "given",
    [
        ("generate", "a corgi", "-o", "corgi.ply", *SIX, "--low-vram", "--offline", "--prior", "sd21"),
        ("generate", BUS, "-o", "car.ply", *SIX, "--model", "nosuch", "--offline"),
        ("generate", BUS, "-o", "bus.ply", *SIX),
        ("generate", "--resume", "bus.run"),
        ("generate", BUS, "-o", "damaged.ply", *SIX),
        ("generate", BUS, "-o", "damaged.ply", *SIX, "--force"),
        ("render", "bus.ply", "--view", "45,20", "--n-frames", "3", "--size", "64"),
        ("render", "bus.ply", "-o", "bus.txt", "--view", "45,20", "--size", "64"),
        ("export", "bus.ply", "-o", "bus.txt"),
    ],
    ids=" ".join,
)
def test_hints_lead_to_a_command_that_works(segdream, folder, given):
    """Known circles: each command ends in an error, or works, and its hints lead to one that works."""
    assert segdream("generate", BUS, "-o", "bus.ply", *SIX).code == 0
    (folder / "damaged.run").mkdir()
    (folder / "damaged.run" / "run.json").write_text("{")
    met, done = [], segdream(*given)
    while done.code != 0:
        assert (done.code, done.err) not in met
        assert "hint: " in done.err
        met.append((done.code, done.err))
        hint = done.err.partition("hint: ")[2]
        if hint.startswith("segdream"):
            given = words(done)
        else:
            subprocess.run(hint, shell=True, cwd=folder, check=True)
        done = segdream(*given)
    assert len(met) < 5


@pytest.mark.parametrize(
    ("hint", "wrong"),
    [
        ("--set init.count=9", "no command"),
        ("segdream generate PATH", "can't be pasted"),
        ("segdream generate P --set init.shape=...", "can't be pasted"),
        ("rm a.ply  # then run the command again", "can't be pasted"),
        ("segdream render a.ply --steps 9", "No such option"),
        ("segdream sing a.ply", "No such command"),
        ("segdream export a.ply", "the error that it should cure"),
        ("touch a.ply", "the same error comes back"),
        ("rm /home/bus.ply", "not the test's"),
        ("segdream export a.ply -o a.spz", None),
        ("segdream render a.ply && segdream export a.ply -o a.spz", None),
    ],
)
def test_follow_tells_a_hint_that_does_not_cure(folder, monkeypatch, hint, wrong):
    """Here the only command that works is an export with an output."""
    given = Hint(("export", "a.ply"), "there is no output", hint)

    def run(*arguments):
        return None if "-o" in arguments or arguments[0] == "render" else "there is no output"

    if wrong is None:
        return follow(given, run, folder, monkeypatch)
    with pytest.raises((AssertionError, usage_error(typer.BadParameter))) as caught:
        follow(given, run, folder, monkeypatch)
    assert wrong in str(getattr(caught.value, "message", caught.value))
