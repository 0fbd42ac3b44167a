"""Our files in Spark, an independent viewer, in headless Chromium: its pictures against the CPU rasteriser's."""

import functools
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import MISSING, Browser, chromium, decoded

from segdream_cli.cameras import Cameras, viewing
from segdream_cli.formats import FORMATS, Splats, read, write
from segdream_cli.gaussians import Gaussians, bounds
from segdream_cli.raster import rasterize

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
PAGE = Path(__file__).with_name("spark.html")
FILES = ("ply", "ply-compact", "compressed-ply", "splat", "spz", "sog")
"""What it reads; of .spz it refuses version 4."""
SIZE = 512


class Handler(SimpleHTTPRequestHandler):
    """Files of the test, of npm, and the page, from one place."""

    def __init__(self, *arguments: object, folders: list[Path], **keywords: object) -> None:
        self.folders = folders
        super().__init__(*arguments, **keywords)  # type: ignore[arg-type]

    def translate_path(self, path: str) -> str:
        found = [folder / path.lstrip("/") for folder in self.folders]
        return str(next((file for file in found if file.is_file()), found[0]))

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def served(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An address, and the folder whose files stand there beside Spark's."""
    if not (node_modules / "@sparkjsdev" / "spark").exists():
        pytest.skip(f"{node_modules / '@sparkjsdev' / 'spark'} is missing: npm install @sparkjsdev/spark three")
    folder = tmp_path_factory.mktemp("served")
    handler = functools.partial(Handler, folders=[folder, node_modules, PAGE.parent])
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


@pytest.fixture(scope="module")
def tab(served: tuple[str, Path]) -> Iterator[Browser]:
    with chromium() as opened:
        opened.open(f"{served[0]}/{PAGE.name}")
        deadline = time.monotonic() + 60
        while not opened.run("return window.ready === true"):
            assert time.monotonic() < deadline, opened.errors()
            time.sleep(0.1)
        yield opened


def ours(splats: Splats, cameras: Cameras, view: int) -> np.ndarray:
    gaussians = Gaussians.from_splats(splats)
    with torch.no_grad():
        seen = rasterize(
            gaussians.means, gaussians.params["quats"], gaussians.scales, gaussians.opacities,
            gaussians.colors(cameras.positions[view : view + 1]), cameras.viewmats[view : view + 1],
            cameras.Ks[view : view + 1], SIZE, SIZE,
        )  # fmt: skip
    return (seen.rgb[0] + 1 - seen.alpha[0]).clamp(0, 1).numpy()


@pytest.mark.parametrize("name", FILES)
def test_spark_shows_what_the_rasteriser_shows(
    chiral: Splats, served: tuple[str, Path], tab: Browser, name: str
) -> None:
    """Within what its own rounding of every Gaussian to 16 bytes makes: a mirrored or turned asset is far beyond."""
    address, folder = served
    file = folder / f"{name}{FORMATS[name].suffix}"
    write(file, chiral, name)
    assert tab.run("return await window.load(arguments[0])", f"{address}/{file.name}") == len(chiral)
    kept = read(file)
    center, extent = bounds(Gaussians.from_splats(kept))
    cameras = viewing(torch.tensor([0.0, 130.0]), torch.tensor([15.0, -40.0]), SIZE, center=center, extent=extent)
    for view in range(2):
        ask = "return await window.picture(arguments[0], arguments[1])"
        png = tab.run(ask, cameras.positions[view].tolist(), center.tolist())
        expected = ours(kept, cameras, view)
        inside = (expected < 0.99).any(axis=2)
        assert inside.sum() > 15_000
        difference = np.abs(decoded(png)[..., :3] / 255 - expected)[inside]
        assert difference.mean() < 3 / 255
        assert np.quantile(difference, 0.99) < 20 / 255
        for mirrored in (expected[:, ::-1], expected[::-1]):
            assert np.abs(decoded(png)[..., :3] / 255 - mirrored)[inside].mean() > 30 / 255
