"""Several assets in one scene: the place of each, and their join."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segdream_cli.errors import UsageProblem
from segdream_cli.splats import Splats, concat
from segdream_cli.splats.transform import rotation_xyz, transform

PLACED = re.compile(r"(?P<path>.+)@(?P<place>[-+.,\deE]+)", re.DOTALL)
FARTHEST = 1e6


@dataclass(frozen=True, slots=True)
class Placed:
    """A file and where its asset stands."""

    path: Path
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Added to its centres."""
    turn_deg: float = 0.0
    """Rotation about its own y axis before that, counter-clockwise seen from above."""

    def apply(self, splats: Splats) -> Splats:
        """The asset in its place; bit for bit the same at the origin."""
        if not any(self.offset) and not self.turn_deg:
            return splats
        return transform(splats, rotation_xyz((0, self.turn_deg, 0)), np.array(self.offset))


def parse_placed(text: str) -> Placed:
    """The file and the place in `PATH`, `PATH@X,Y,Z` or `PATH@X,Y,Z,DEGREES`; an existing file's name is no place.

    Raises:
        UsageProblem: the place is not three or four finite numbers.
    """
    match = PLACED.fullmatch(text)
    if match is None or Path(text).exists():
        return Placed(Path(text))
    try:
        values = [float(part) for part in match["place"].split(",")]
    except ValueError:
        values = []
    if len(values) not in (3, 4) or not all(abs(value) <= FARTHEST for value in values):
        raise UsageProblem(
            f"the place of {text!r} is not X,Y,Z or X,Y,Z,DEGREES",
            words={text: f"{match['path']}@1,0,0"},
        )
    x, y, z, turn = [*values, 0.0][:4]
    return Placed(Path(match["path"]), (x, y, z), turn)


def join(assets: Sequence[Splats], places: Sequence[Placed]) -> Splats:
    """The assets in their places as one; a single one keeps its provenance, several are listed under `scene`."""
    parts = [placed.apply(splats) for splats, placed in zip(assets, places, strict=True)]
    if len(parts) == 1:
        return parts[0]
    scene: list[dict[str, Any]] = [
        {
            "file": placed.path.name,
            "offset": list(placed.offset),
            "turn_deg": placed.turn_deg,
            "provenance": dict(splats.provenance),
        }
        for splats, placed in zip(assets, places, strict=True)
    ]
    return concat(parts, {"scene": scene})
