"""Renders the silhouette and the colour of a procedural object from four sides, for the end-to-end test.

    python tests/golden/make_masks.py WORLD.py "school bus" tests/data/school_bus.npz

WORLD.py is the procedural world that the embedded prior was trained on. Its objects vary in their proportions, so the
masks are means over many of them: a soft silhouette, and the mean colour of the pixels inside. The cameras are those of
`segdream_cli.cameras.viewing` at elevation 15 degrees; the world's (x, y, z) is (y, z, x) there.
"""

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import torch

from segdream_cli.cameras import viewing

AZIMUTHS_DEG, ELEVATION_DEG, SIZE, SHARPER = (0.0, 90.0, 180.0, 270.0), 15.0, 32, 2


def load_world(path):
    """The world's file as a module."""
    spec = importlib.util.spec_from_file_location("world", path)
    world = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(world)
    return world


def camera(azimuth_deg, count):
    """`count` copies of a viewing camera, as the world's renderer takes them."""
    cameras = viewing(torch.tensor([azimuth_deg]), torch.tensor([ELEVATION_DEG]), SIZE * SHARPER)
    to_world = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    return {
        "pos": (cameras.positions @ to_world.T).expand(count, 3),
        "R": (cameras.viewmats[:, :3, :3] @ to_world.T).expand(count, 3, 3),
        "tanh": (cameras.size / 2 / cameras.Ks[:, 0, 0]).expand(count),
    }


def make(world, name, count):
    """Masks [4, h, w] and colours [4, h, w, 3], premultiplied by the mask, both as bytes."""
    generator = torch.Generator().manual_seed(0)
    build, color = world.CATS[name]
    thing = world.Obj(count, torch.tensor(world.COLORS[color]).expand(count, 3), "cpu", generator)
    build(thing)
    thing.done()
    masks, colors = [], []
    for azimuth in AZIMUTHS_DEG:
        rgb, alpha = world.render(thing, camera(azimuth, count), SIZE * SHARPER, gen=generator)
        small = torch.nn.functional.avg_pool2d(torch.cat([alpha, rgb * alpha], 1), SHARPER).mean(0)
        masks.append(small[0])
        colors.append(small[1:].permute(1, 2, 0))
    return [np.round(torch.stack(part).numpy() * 255).astype(np.uint8) for part in (masks, colors)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", type=Path)
    parser.add_argument("name")
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=64)
    arguments = parser.parse_args()
    masks, colors = make(load_world(arguments.world), arguments.name, arguments.count)
    np.savez_compressed(arguments.output, mask=masks, color=colors)
