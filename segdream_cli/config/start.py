"""The values of `init.shape`."""

import difflib
from pathlib import Path

from segdream_cli.errors import UsageProblem

POINT_E = "point-e"
SHAPE_NAMES = ("sphere", "box", "polar-sphere")


def check_start(shape: str) -> None:
    """Refuses a start that is neither a known shape nor a PLY file that can be opened.

    Raises:
        UsageProblem: it is neither.
    """
    known = (POINT_E, *SHAPE_NAMES)
    if shape in known:
        return
    path = Path(shape)
    nearest = [*difflib.get_close_matches(path.stem.lower(), known, n=1), SHAPE_NAMES[0]][0]
    if path.suffix.lower() != ".ply":
        message = f"there is no start {shape!r}; use one of {', '.join(known)} or a .ply file"
        raise UsageProblem(message, hint=f"--init {nearest}")
    try:
        if path.is_dir():
            raise UsageProblem(f"the start {shape} is not a file", hint=f"--init {nearest}")
        path.open("rb").close()
    except OSError as problem:
        message = f"the start {shape} can't be read: {problem.strerror or problem}"
        raise UsageProblem(message, hint=f"--init {nearest}") from problem
