"""The lines of `--json`: one schema, one page, and the page's examples. `segdream` of conftest.py checks every line."""

import json
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import BUS, SIX, TINY
from json_lines import PAGE, check_lines, describe, described, fits, hints, line_classes
from test_cli import Interrupted

from segdream_cli import formats
from segdream_cli.cli import schema
from segdream_cli.formats import FORMATS

EXAMPLES = re.findall(r"^    segdream (.+?) \| (jq .+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture
def asset(segdream) -> str:
    segdream("generate", BUS, "-o", "bus.ply", *TINY, "--steps", "1")
    return "bus.ply"


def test_page_has_the_fields_and_types_of_every_line():
    expected = [(kind.event, {name: describe(hint) for name, hint in hints(kind).items()}) for kind in line_classes()]
    found = list(described())
    assert sorted(map(str, found)) == sorted(map(str, expected))
    assert f"version of this page, {schema.SCHEMA}." in PAGE.read_text(encoding="utf-8")


def test_lines_differ_in_event_or_fields():
    """So that a reader can tell them apart."""
    kinds = [(kind.event, *sorted(hints(kind))) for kind in line_classes()]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (True, int, False),
        (1, float, True),
        (1.5, int, False),
        (None, int | None, True),
        ({"a": [1, None]}, dict, True),
        ([["a"]], schema.Words.__annotations__["objects"], False),
        ("a", Path, True),
    ],
)
def test_fits(value, hint, expected):
    assert fits(value, hint) == expected


def test_check_lines_refuses_what_is_not_in_the_schema():
    good = json.loads(schema.Skipped(output=Path("a.ply")).encode())
    assert check_lines(json.dumps(good)) == [good]
    for bad in ({**good, "more": 1}, {**good, "output": 1}, {**good, "event": "left out"}, {**good, "schema": 1}):
        with pytest.raises(AssertionError):
            check_lines(json.dumps(bad))


def test_encode_has_null_for_numbers_that_are_not_finite():
    line = schema.Counted(votes=2, preference={"mean": float("nan"), "low": float("-inf"), "high": 0.5})
    assert check_lines(line.encode())[0]["preference"] == {"mean": None, "low": None, "high": 0.5}


def test_list_words_is_one_object(segdream):
    (line,) = check_lines(segdream("generate", "--list-words", "--json", *TINY[:4]).out)
    assert {"school bus", "dog"} <= set(line["objects"])
    assert "yellow" in line["colors"]
    assert {"color": "white", "attribute": "with white spots"} in line["excluded"]
    assert "plane" in line["synonyms"]["airplane"]
    (free,) = check_lines(segdream("generate", "--list-words", "--prior", "sd21", "--json").out)
    assert (free["any_text"], free["objects"]) == (True, [])


def test_formats_are_objects(segdream):
    lines = check_lines(segdream("export", "--formats", "--json").out)
    rows = {line["name"]: (line["suffixes"], line["readable"]) for line in lines}
    assert rows == {name: ([row.suffix], row.readable) for name, row in FORMATS.items()} | {
        "mesh": ([".glb", ".obj"], False)
    }


def test_export_counts_what_each_edit_keeps(segdream, asset):
    whole = formats.read(Path(asset))
    edits = ("--crop", "0.4", "--max-gaussians", "7")
    done = segdream("export", asset, *edits, "-o", "a.ply", "--json")
    (line,) = check_lines(done.out)
    inside = int((((whole.means.astype(float)) ** 2).sum(axis=1) <= 0.16).sum())
    assert 7 < inside < len(whole)
    assert line["edits"] == [
        {"option": "--crop", "kept": inside, "of": len(whole)},
        {"option": "--max-gaussians", "kept": 7, "of": inside},
    ]
    assert (line["gaussians_read"], line["gaussians"]) == (len(whole), 7)
    assert f"--crop keeps {inside} of {len(whole)} Gaussians" in done.err


def test_export_joins_assets_in_their_places(segdream, asset):
    whole = formats.read(Path(asset))
    done = segdream("export", asset, f"{asset}@1,0,0", "-o", "a.ply", "--json")
    (line,) = check_lines(done.out)
    assert (line["asset"], line["assets"], line["gaussians_read"]) == (asset, [asset, asset], 2 * len(whole))
    found = formats.read(Path("a.ply"))
    np.testing.assert_allclose(found.means[len(whole) :, 0], whole.means[:, 0] + 1, rtol=1e-6)
    assert [part["offset"] for part in found.provenance["scene"]] == [[0, 0, 0], [1, 0, 0]]


def test_render_and_init_lines(segdream, asset):
    (line,) = check_lines(segdream("render", asset, asset, "--view", "0,0", "--size", "32x16", "--json").out)
    assert (line["assets"], line["size"], line["frames"], line["fps"]) == ([asset, asset], [32, 16], 1, None)
    made = segdream("init", BUS, "--init", "box", "--count", "9", "-o", "c.ply", "--preview", "--json", *TINY[:2])
    (line,) = check_lines(made.out)
    assert (line["preview"], line["gaussians"]) == ("c.png", 9)


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
@pytest.mark.parametrize(("command", "program"), EXAMPLES, ids=[program for _, program in EXAMPLES])
def test_examples_of_the_page(segdream, prior, asset, folder, command, program):
    (folder / "prompts.txt").write_text(f"{BUS}\na gryphon\n")
    (folder / "assets").mkdir()
    if "evaluate" in command:
        Path(asset).rename("assets/bus.ply")
    if command.startswith("runs"):
        prior(lambda profile: Interrupted(profile, 8, signal.SIGINT))
        segdream("generate", BUS, "-o", "assets/stopped.ply", *SIX)
    arguments = shlex.split(command)
    lines = check_lines(segdream(*arguments, *(SIX if "--prompts" in command else ())).out)
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    told = subprocess.run(program, shell=True, input=text, capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == expected(arguments, program, lines)


def expected(arguments, program, lines):
    """What an example of the page prints, computed in Python."""
    if "--list-words" in arguments:
        return lines[0]["objects"]
    if "--formats" in arguments:
        return sorted({row.suffix for row in FORMATS.values() if row.readable})
    if "doctor" in arguments:
        return [f"{line['name']}: {line['hint']}" for line in lines if line.get("hint")]
    if "evaluate" in arguments:
        return [f"bus\t{lines[0]['values']['judge.probability']}"]
    if "export" in arguments:
        return [f"{edit['option']} {edit['kept'] / edit['of']:.17g}" for edit in lines[0]["edits"]]
    if "runs" in arguments:
        return [BUS]
    if '"error"' in program:
        return [f"assets/a_gryphon.ply: {line['message']}" for line in lines if line["event"] == "error"]
    return ["assets/a_yellow_school_bus.ply"]
