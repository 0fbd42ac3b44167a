"""The folder of reference images: whether it can be written, and the commands that make one, for hints."""

import tempfile
from pathlib import Path
from shlex import quote

from segdream_cli.errors import OutputExists, UsageProblem
from segdream_cli.util.files import free_name, write_problem


def make_command(folder: Path) -> str:
    """A command that makes references, for hints."""
    return f"segdream evaluate --make-references {quote(str(folder))} --prompts prompts.txt"


def make_another(folder: Path) -> str:
    """A command that makes references beside a folder, which may hold images of the user's own, or in its place."""
    other = folder if folder.name else Path("references")  # "." has no name to number
    return make_command(free_name(other) if other.exists() else other)


def check_folder(folder: Path) -> None:
    """Refuses a folder that references can't be written to, before any work starts.

    Raises:
        OutputExists: it exists.
        UsageProblem: its parent does not exist or can't be written.
    """
    if folder.exists():
        raise OutputExists(f"{folder} exists", hint=make_another(folder))
    if not folder.parent.is_dir():
        raise UsageProblem(f"the folder {folder.parent} does not exist", hint=f"mkdir -p {quote(str(folder.parent))}")
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent):
            pass
    except OSError as problem:
        raise write_problem(problem, folder) from problem
