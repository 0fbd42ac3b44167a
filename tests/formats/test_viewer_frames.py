"""How our files stand in other viewers: the rows of docs/conventions.md, seen in images of those viewers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import MISSING
from viewers import Viewer, check, viewer

from segdream_cli.formats import FORMATS, read, write
from segdream_cli.splats import Splats

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
ROOT = Path(__file__).parents[2]
PAGES = {
    "three.js": ("three.html", ("three",)),
    "PlayCanvas": ("playcanvas_file.html", ("playcanvas",)),
    "Babylon.js": ("babylon.html#left", ("babylonjs", "babylonjs-loaders", "@adobe/spz")),
}
TURNS = {
    "three.js": {"ply": "x", "splat": "x", "spz": "", "spz4": "x", "glb": ""},
    "PlayCanvas": {"ply": "x", "compressed-ply": "x", "sog": "x", "glb": ""},
    "Babylon.js": {"ply": "", "compressed-ply": "", "splat": "", "spz": "x", "spz4": "x", "glb": "y"},
}
"""Axis of the half turn after which a viewer shows the front upright from +z; none in Babylon's left-handed scene,
where the front of the PLY family is at -z. Spark's are checked in test_spark.py."""
MEAN, NEARLY_ALL = 14 / 255, 70 / 255
"""Bounds of the difference: three.js ends a Gaussian at two standard deviations, PlayCanvas blurs by another width.
The least difference of another half turn is 50 / 255."""


@pytest.fixture(scope="module", params=PAGES)
def shown(
    request: pytest.FixtureRequest, node_modules: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Viewer]]:
    page, packages = PAGES[request.param]
    with viewer(page, tmp_path_factory.mktemp("served"), node_modules, packages) as opened:
        yield request.param, opened


@pytest.mark.slow
def test_viewer_needs_this_half_turn(chiral: Splats, shown: tuple[str, Viewer]) -> None:
    name, page = shown
    for format, axis in TURNS[name].items():
        file = page.folder / f"{format}{FORMATS[format].suffix}"
        write(file, chiral, format)
        page.load(file, axis)
        check(page, read(file), MEAN, NEARLY_ALL, slice(1, 2))


def test_conventions_page_has_the_turns() -> None:
    rows = (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8").splitlines()
    for name, turns in TURNS.items():
        (cells,) = (row.split("|")[2:-1] for row in rows if row.startswith(f"| {name}"))
        heads = ("ply", "compressed-ply", "splat", "sog", "spz", "spz4", "glb")
        written = dict(zip(heads, (cell.strip() for cell in cells), strict=True))
        assert {head: cell for head, cell in written.items() if cell != "-"} == {
            head: axis or "none" for head, axis in turns.items()
        }
