"""The values of `init.shape`."""

import difflib
from os.path import lexists
from pathlib import Path

from segdream_cli.errors import UsageProblem

POINT_E = "point-e"
SHAPE_NAMES = ("sphere", "box", "polar-sphere")


def is_file(shape: str) -> bool:
    """Whether a start is the path of a file."""
    return shape not in (POINT_E, *SHAPE_NAMES)


def check_start(shape: str) -> None:
    """Refuses a start that is neither a known shape nor a file that can be opened.

    Raises:
        UsageProblem: it is neither.
    """
    if not is_file(shape):
        return
    known, path = (POINT_E, *SHAPE_NAMES), Path(shape)
    nearest = [*difflib.get_close_matches(path.stem.lower(), known, n=1), SHAPE_NAMES[0]][0]
    if not path.suffix and not lexists(path):
        message = f"there is no start {shape!r}; use one of {', '.join(known)} or an asset"
        raise UsageProblem(message, hint=f"--init {nearest}")
    try:
        if path.is_dir():
            raise UsageProblem(f"the start {shape} is not a file", hint=f"--init {nearest}")
        path.open("rb").close()
    except OSError as problem:
        message = f"the start {shape} can't be read: {problem.strerror or problem}"
        raise UsageProblem(message, hint=f"--init {nearest}") from problem
