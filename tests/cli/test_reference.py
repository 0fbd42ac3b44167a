"""docs/cli.md is what the command line says about itself."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_reference_is_fresh() -> None:
    command = [sys.executable, "-m", "typer", "segdream_cli.cli", "utils", "docs", "--name", "segdream"]
    environment = os.environ | {"TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    written = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    expected = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written.stdout == expected, "make it anew: typer segdream_cli.cli utils docs --name segdream > docs/cli.md"
