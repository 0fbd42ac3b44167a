"""The pages: their links and file names exist, and their lines are short enough for a diff."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from segdream_cli import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = ROOT / "docs" / "cli.md"
MAX_LINE = 120

COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
EXAMPLE = re.compile(r"(?:^    (?:.*&& )?(?:\$ )?(?:\S*/)?|^\| `)segdream ([a-z]+)\b([^`\n|&;]*)", re.MULTILINE)
"""A command in a block of code, or at the start of a row of a table."""

each_page = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])


def anchors(page):
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@each_page
def test_file_names_exist(page):
    names = re.findall(r"`((?:\w+/)+[\w.]+\.\w+)`", page.read_text(encoding="utf-8"))
    folders = (ROOT, ROOT / "segdream_cli", page.parent)
    placeholders = ("NAME", "bus.run/", "owner/")
    files = [name for name in names if not any(part in name for part in placeholders)]
    assert [name for name in files if not any((folder / name).exists() for folder in folders)] == []


@each_page
def test_lines_outside_tables_and_code_are_short(page):
    if page == GENERATED:
        return
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > MAX_LINE and not line.startswith(("|", "    "))] == []


@each_page
def test_commands_have_arguments_that_their_options_take(page):
    """They are parsed, not run."""
    for name, rest in EXAMPLE.findall(page.read_text(encoding="utf-8")):
        words = shlex.split(rest.rstrip("\\").replace("...", ""), comments=True)  # none where a table names a command
        if words:
            COMMANDS[name].make_context(name, words)


def test_readme_has_an_example_of_every_command():
    shown = {name for name, _ in EXAMPLE.findall((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert shown == set(COMMANDS)
