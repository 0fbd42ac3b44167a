"""The documentation agrees with the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import typer

from segdream_cli import cli, errors

ROOT = Path(__file__).parents[2]
REFERENCE, TROUBLESHOOTING = ROOT / "docs" / "cli.md", ROOT / "docs" / "troubleshooting.md"


def test_reference_page_matches_the_commands() -> None:
    command = [sys.executable, str(ROOT / "docs" / "make_cli.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    written = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    expected = REFERENCE.read_text(encoding="utf-8")
    assert written.stdout == expected, "regenerate: python docs/make_cli.py > docs/cli.md"


def test_reference_page_reads_as_text() -> None:
    page = REFERENCE.read_text(encoding="utf-8")
    assert not re.findall(r"&[a-z0-9#]+;", page)
    assert '    segdream generate "a yellow school bus" -o bus.ply' in page.splitlines()


def test_every_option_is_on_the_page_and_in_the_help_of_its_command() -> None:
    page = REFERENCE.read_text(encoding="utf-8")
    for name, command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        section = page.partition(f"## `segdream {name}`\n")[2].partition("\n## ")[0]
        listed = re.findall(r"^\* `([^`]+)`", section, re.MULTILINE)
        own = [each for each in command.params if not getattr(each, "hidden", False)]
        assert len(listed) == len(own) + 1, name  # and --help
        for each in own:
            assert any({*each.opts} & {*entry.replace(",", "").split()} for entry in listed) or each.metavar in listed


def test_groups_of_options_are_in_the_order_of_use() -> None:
    """The prompt and the outputs come before quality, and hardware comes last; `--help` ends the outputs."""
    section = REFERENCE.read_text(encoding="utf-8").partition("## `segdream generate`")[2].partition("\n## ")[0]
    titles = re.findall(r"^\*\*(.+)\*\*$", section, re.MULTILINE)
    assert titles == ["Arguments", "Prompt", "Output", "Quality", "Run", "Start", "Hardware and weights"]
    output = section.partition("**Output**")[2].partition("**Quality**")[0]
    names = re.findall(r"^\* `(-[^`]+)`", output, re.MULTILINE)
    assert (names[0], names[-1]) == ("-o, --output PATH", "-h, --help")


def test_command_summaries_are_whole() -> None:
    summaries = re.findall(r"^\| \[`(\w+)`\]\(#\S+\) \| (.+) \|$", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, summary in summaries if not summary.endswith(".") or summary.endswith("..")] == []
    assert [name for name, _ in summaries] == list(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
    assert summaries[0][0] == "generate"


def test_troubleshooting_lists_every_exit_code() -> None:
    rows = re.findall(r"^\| (\d+) \| \[?([a-z ]+)", TROUBLESHOOTING.read_text(encoding="utf-8"), re.MULTILINE)
    assert {int(code): meaning.strip() for code, meaning in rows} == errors.EXIT_CODES


def test_error_tree_in_the_docstring_has_every_class_and_its_code() -> None:
    listed = dict(re.findall(r"^[\s|]+(?:\+-- )?(\w+) +(\d+)  ", errors.__doc__ or "", re.MULTILINE))
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.SegdreamError)]
    assert listed == {one.__name__: str(one.exit_code) for one in classes}
    assert set(map(int, listed.values())) <= set(errors.EXIT_CODES)
