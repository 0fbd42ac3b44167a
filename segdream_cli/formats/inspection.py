"""Facts about a file that its Gaussians don't tell: kind, version, frame, and how it was trained to be drawn."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segdream_cli.formats import gltf, kind_of, sog, spz
from segdream_cli.formats.common import open_asset
from segdream_cli.formats.ply_header import read_header

DOWN, UP, OWN, UNDECLARED = "y down, z away", "y up, z front", "its own up axis", "not declared"
FAMILY = {"points": UP, "usd": OWN, "glb": UP}
"""Kinds whose frame is not that of the PLY family."""
ANTIALIASED = re.compile(r"SplatRenderMode:\s*mip|antialiased\s+1")
"""Comments of Brush and Postshot in a PLY."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about a file.

    Args:
        kind: a key of `formats.READERS`.
        version: of its format; None if the format has none.
        frame: the frame of its numbers.
        antialiased: whether it was trained with antialiasing; None if the file does not say.
    """

    kind: str
    version: str | None
    frame: str
    antialiased: bool | None = None


def inspect(path: Path) -> Facts:
    """The facts about a file that can be read.

    Raises:
        UsageProblem: it can't be opened, or its header is damaged.
    """
    kind = kind_of(path)
    if kind in ("ply", "compressed-ply", "points"):
        with open_asset(path) as stream:
            header = read_header(path, stream)
        return Facts(kind, f"1.0, {header.layout}", FAMILY.get(kind, DOWN), _is_antialiased(header.comments))
    if kind == "spz":
        version, antialiased, frame = spz.read_declaration(path)
        return Facts(kind, str(version), UNDECLARED if frame is None else f"{frame.upper()}, declared", antialiased)
    return Facts(kind, _version(path, kind), FAMILY.get(kind, DOWN))


def _version(path: Path, kind: str) -> str | None:
    """The version of a kind of file that is neither PLY nor SPZ."""
    match kind:
        case "glb":
            return gltf.load(path).version()
        case "sog":
            return str(sog.version(path))
        case "ksplat":
            return "0.1"
    return None


def _is_antialiased(comments: Sequence[str]) -> bool | None:
    """True if a comment says so; None otherwise."""
    return True if any(ANTIALIASED.search(comment) for comment in comments) else None
