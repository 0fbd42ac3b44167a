"""Our files in Spark, an independent viewer: its images against the CPU rasteriser's."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import MISSING
from test_page import Parts
from viewers import Viewer, check, viewer

from segdream_cli.formats import FORMATS, read, write
from segdream_cli.splats import Splats

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
FILES = ("ply", "ply-compact", "compressed-ply", "splat", "spz", "sog")
"""Formats that Spark reads; of .spz it refuses version 4."""


@pytest.fixture(scope="module")
def spark(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    packages = ("@sparkjsdev/spark", "three")
    with viewer("spark.html", tmp_path_factory.mktemp("served"), node_modules, packages) as opened:
        yield opened


@pytest.mark.parametrize("name", FILES)
def test_spark_matches_the_rasteriser(chiral: Splats, spark: Viewer, name: str) -> None:
    file = spark.folder / f"{name}{FORMATS[name].suffix}"
    write(file, chiral, name)
    assert spark.load(file, "" if name == "spz" else "x") == len(chiral)
    check(spark, read(file))


def test_spark_shows_the_payload_of_a_page(chiral: Splats, spark: Viewer) -> None:
    """The bytes that an .html file carries for its own viewer, taken out by the standard library."""
    write(spark.folder / "a.html", chiral)
    payload = Parts((spark.folder / "a.html").read_text(encoding="utf-8")).texts["script"][0]
    file = spark.folder / "payload.spz"
    file.write_bytes(base64.b64decode(payload, validate=True))
    assert spark.load(file, "") == len(chiral)
    check(spark, read(file))
