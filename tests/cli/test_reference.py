"""The documentation agrees with the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

from segdream_cli import errors

ROOT = Path(__file__).parents[2]
REFERENCE, TROUBLESHOOTING = ROOT / "docs" / "cli.md", ROOT / "docs" / "troubleshooting.md"


def test_reference_page_matches_the_commands() -> None:
    command = [sys.executable, "-m", "typer", "segdream_cli.cli", "utils", "docs", "--name", "segdream"]
    environment = os.environ | {"TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    written = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    expected = REFERENCE.read_text(encoding="utf-8")
    assert written.stdout == expected, "regenerate: typer segdream_cli.cli utils docs --name segdream > docs/cli.md"


def test_command_summaries_are_whole() -> None:
    summaries = re.findall(r"^\* `(\w+)`: (.+)$", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, summary in summaries if not summary.endswith(".") or summary.endswith("..")] == []
    assert len(summaries) >= 7


def test_troubleshooting_lists_every_exit_code() -> None:
    rows = re.findall(r"^\| (\d+) \| \[?([a-z ]+)", TROUBLESHOOTING.read_text(encoding="utf-8"), re.MULTILINE)
    assert {int(code): meaning.strip() for code, meaning in rows} == errors.EXIT_CODES


def test_error_tree_in_the_docstring_has_every_class_and_its_code() -> None:
    listed = dict(re.findall(r"^[\s|]+(?:\+-- )?(\w+) +(\d+)  ", errors.__doc__ or "", re.MULTILINE))
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.SegdreamError)]
    assert listed == {one.__name__: str(one.exit_code) for one in classes}
    assert set(map(int, listed.values())) <= set(errors.EXIT_CODES)
