"""Draws objects of the world from all sides and with each attribute: `python -m training.contact_sheet --help`."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image

from training.world.camera import look_at
from training.world.catalog import ATTRIBUTES, COLORS, OBJECTS, Combination, build, is_distinguishable
from training.world.render import draw

ANGLES = ((30.0, 15.0), (0.0, 5.0), (90.0, 10.0), (200.0, 20.0), (330.0, 50.0))


def row(name: str, size: int, rng: np.random.Generator, attributes: list[str]) -> np.ndarray:
    """An object in its natural views and then with each attribute, side by side on white, [s w 3] bytes."""
    colors = list(rng.permutation(list(COLORS)))
    tiles = []
    for attribute in attributes:
        angles = ANGLES if not attribute else ANGLES[:1]
        color = next(color for color in colors if is_distinguishable(color, attribute))
        colors.sort(key=color.__eq__)  # to the end, so that each attribute has another colour
        primitives, looks = build([Combination(name, color, attribute)], rng)
        azimuths, elevations = np.array(angles).T
        tan = np.full(len(angles), np.tan(0.35))
        views = look_at(np.zeros(len(angles), int), azimuths, elevations, tan, 1 / np.sin(0.9 * 0.35 + 0 * tan))
        images = draw(primitives, looks, views, size, torch.device("cpu")).numpy().astype(float)
        tiles += list(images[..., :3] + 255 - images[..., 3:])
    return np.concatenate(tiles, 1).clip(0, 255).astype(np.uint8)


def main(
    output: Annotated[Path, typer.Argument(help="PNG or WebP to write.")],
    objects: Annotated[str, typer.Option(help="Names, separated by commas; empty: all.")] = "",
    size: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = 128,
    plain: Annotated[bool, typer.Option(help="Without the attributes.")] = False,
    columns: Annotated[int, typer.Option(help="Objects in a row of the sheet.")] = 1,
    seed: int = 0,
) -> None:
    """Draws a contact sheet of the world's objects."""
    names = [name.strip() for name in objects.split(",")] if objects else list(OBJECTS)
    rng = np.random.default_rng(seed)
    rows = [row(name, size, rng, [""] if plain else list(ATTRIBUTES)) for name in names]
    rows += [np.full_like(rows[0], 255)] * (-len(rows) % columns)
    sheet = np.concatenate([np.concatenate(rows[i : i + columns], 1) for i in range(0, len(rows), columns)])
    Image.fromarray(sheet).save(output)


if __name__ == "__main__":
    typer.run(main)
