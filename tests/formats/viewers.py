"""Other projects' viewers in headless Chromium, and the differences of their images from the CPU rasteriser's."""

import functools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Browser, chromium, decoded

from segdream_cli.render.cameras import Cameras, frame_sphere
from segdream_cli.render.raster import Rendering
from segdream_cli.render.view import render
from segdream_cli.splats import Splats
from segdream_cli.splats.gaussians import Gaussians, bounds

SIZE = 512
AZIMUTHS, ELEVATIONS = torch.tensor([0.0, 130.0]), torch.tensor([15.0, -40.0])
MEAN, NEARLY_ALL, CONTROL, HARMONICS = 3 / 255, 20 / 255, 30 / 255, 4 / 255
"""Bounds of a difference where the asset is: its mean, its 99th percentile; the least that a mirrored image, and one
without the higher harmonics, must differ by. Spark rounds a Gaussian to 16 bytes, Babylon its rotation to 4: either
makes 2 / 255 of the mean."""


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


@dataclass(frozen=True)
class Viewer:
    """A page of tests/formats that shows files."""

    tab: Browser
    address: str
    folder: Path
    """The folder of the files that the page can show."""

    def load(self, file: Path, *options: object) -> Any:
        return self.tab.run("return await window.load(...arguments[0])", [f"{self.address}/{file.name}", *options])

    def image(self, cameras: Cameras, view: int, target: torch.Tensor) -> np.ndarray:
        """Colours 0..1 on white, [h, w, 3]."""
        ask = "return await window.picture(arguments[0], arguments[1])"
        png = self.tab.run(ask, cameras.positions[view].tolist(), target.tolist())
        return decoded(png)[..., :3] / 255


@contextmanager
def viewer(page: str, folder: Path, node_modules: Path, packages: Sequence[str]) -> Iterator[Viewer]:
    """The page `page` in a browser of its own, served on the loopback address, or a skip without a package of its."""
    for name in packages:
        if not (node_modules / name).exists():
            pytest.skip(f"{node_modules / name} is missing: npm install {name}")
    handler = functools.partial(Handler, folders=[folder, node_modules, Path(__file__).parent])
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, chromium() as tab:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        tab.open(f"{address}/{page}")
        deadline = time.monotonic() + 60
        while not tab.run("return window.ready === true"):
            assert time.monotonic() < deadline, tab.errors()
            time.sleep(0.1)
        yield Viewer(tab, address, folder)
        outside = [url for url in tab.requests() if not url.startswith((address, "data:", "blob:"))]
        server.shutdown()
    assert not outside


def rasterized(splats: Splats, cameras: Cameras) -> Rendering:
    with torch.no_grad():
        return render(Gaussians.from_splats(splats), cameras)


def on_white(seen: Rendering) -> np.ndarray:
    """Images [views, h, w, 3] in 0..1."""
    return (seen.rgb + 1 - seen.alpha).clamp(0, 1).numpy()


def check(
    shown: Viewer, expected: Splats, mean: float = MEAN, nearly_all: float = NEARLY_ALL, views: slice = slice(None)
) -> None:
    """Checks that the viewer shows `expected` as the rasteriser does, and not mirrored, rotated or flat."""
    center, extent = bounds(Gaussians.from_splats(expected))
    cameras = frame_sphere(AZIMUTHS[views], ELEVATIONS[views], SIZE, center=center, extent=extent)
    flat = on_white(rasterized(replace(expected, shN=expected.shN[:, :0]), cameras))
    for view, ours in enumerate(on_white(rasterized(expected, cameras))):
        theirs = shown.image(cameras, view, center)
        inside = (ours < 0.99).any(axis=2)
        assert inside.sum() > 15_000
        difference = np.abs(theirs - ours)[inside]
        assert difference.mean() < mean
        assert np.quantile(difference, 0.99) < nearly_all
        for other in (ours[:, ::-1], ours[::-1]):
            assert np.abs(theirs - other)[inside].mean() > CONTROL
        if expected.shN.any():
            assert np.abs(theirs - flat[view])[inside].mean() > HARMONICS
