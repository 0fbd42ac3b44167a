"""A bank of renders, kept on the device that drew them."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from training.world.camera import Lens, Light, backgrounds, random_views
from training.world.catalog import ATTRIBUTES, COLORS, HAT, OBJECTS, Combination, build, natural_colors
from training.world.render import draw

SIZE = 128
LIGHT, LENS = Light(), Lens()
CHUNK = 512
"""Number of instances, all of one object, that are built and drawn at a time."""

OBJECT_INDEX = {name: i for i, name in enumerate(OBJECTS)}
COLOR_INDEX = {name: i for i, name in enumerate(COLORS)}
ATTRIBUTE_INDEX = {name: i for i, name in enumerate(ATTRIBUTES)}


@dataclass(slots=True)
class Bank:
    """Renders with their labels: m images, s pixels square, premultiplied RGBA.

    Objects, colours and attributes are indices into `OBJECTS`, `COLORS` and `ATTRIBUTES`. The views of an instance
    share its number and are adjacent.
    """

    rgba: UInt8[Tensor, "m s s 4"]
    objects: Int64[Tensor, " m"]
    colors: Int64[Tensor, " m"]
    attributes: Int64[Tensor, " m"]
    azimuth_deg: Float[Tensor, " m"]
    elevation_deg: Float[Tensor, " m"]
    instances: Int64[Tensor, " m"]

    def __len__(self) -> int:
        return len(self.rgba)

    def over_backgrounds(self, picks: Int64[Tensor, " b"], generator: torch.Generator) -> Float[Tensor, "b 3 s s"]:
        """Chosen images over random backgrounds, 0..1."""
        images = self.rgba[picks].permute(0, 3, 1, 2).float() / 255
        return images[:, :3] + (1 - images[:, 3:]) * backgrounds(len(picks), images.shape[-1], generator)


def render_bank(
    count: int,
    seed: int,
    device: torch.device,
    *,
    combinations: Iterable[Combination],
    light: Light = LIGHT,
    lens: Lens = LENS,
    views_each: int = 2,
    size: int = SIZE,
) -> Bank:
    """Draws at least `count` images of random instances of the combinations; equal seeds give equal banks.

    Half of the instances are plain, and an object's natural colours are more frequent.

    Args:
        count: number of images.
        seed: source of every random number.
        device: draws and keeps the images.
        combinations: the combinations to draw.
        light: range of the light.
        lens: range of the cameras.
        views_each: images of each instance.
        size: side of the images in pixels.
    """
    rng = np.random.default_rng(seed)
    rgba, columns, drawn = [], [], 0
    for picked, primitives, looks in random_instances(combinations, rng, count // views_each):
        which = np.repeat(np.arange(len(picked)), views_each)
        views, azimuth, elevation = random_views(which, rng, lens, light)
        rgba.append(draw(primitives, looks, views, size, device))
        shown = [picked[i] for i in which]
        places = [
            [OBJECT_INDEX[one.object] for one in shown],
            [COLOR_INDEX[one.color] for one in shown],
            [ATTRIBUTE_INDEX[one.attribute] for one in shown],
        ]
        columns.append(np.stack([*places, azimuth, elevation, which + drawn]))
        drawn += len(picked)
        if drawn * views_each >= count:
            break
    table = torch.from_numpy(np.concatenate(columns, 1)).to(device)
    objects, colors, attributes, instances = (table[i].long() for i in (0, 1, 2, 5))
    return Bank(torch.cat(rgba), objects, colors, attributes, table[3].float(), table[4].float(), instances)


def random_instances(
    combinations: Iterable[Combination], rng: np.random.Generator, count: int
) -> Iterator[tuple[list[Combination], NDArray[np.float32], NDArray[np.float32]]]:
    """Yields random instances without end, a chunk of one object at a time: labels, primitives and looks.

    Chunks are small enough that `count` instances show every object.
    """
    groups = _groups(combinations)
    chunk = max(1, min(CHUNK, count // len(groups)))
    for group, share in _in_turn(groups, rng):
        picked = [group[i] for i in rng.choice(len(group), max(1, round(chunk * share)), p=_weights(group))]
        yield picked, *build(picked, rng)


def _groups(combinations: Iterable[Combination]) -> list[list[Combination]]:
    """Groups of combinations that can be built together: one object, with or without a hat."""

    def key(one: Combination) -> tuple[str, bool]:
        return one.object, one.attribute == HAT

    return [list(group) for _, group in itertools.groupby(sorted(combinations, key=key), key)]


def _in_turn(groups: list[list[Combination]], rng: np.random.Generator) -> Iterator[tuple[list[Combination], float]]:
    """Yields the groups in random order, again and again, with the share of its object's instances."""
    while True:
        for i in rng.permutation(len(groups)):
            yield groups[i], 0.12 if groups[i][0].attribute == HAT else 0.88


def _weights(group: list[Combination]) -> NDArray[np.float64]:
    """Probabilities: over half are plain, other attributes are equally frequent, natural colours count threefold."""
    weights = np.array([3.0 if one.color in natural_colors(one.object, one.attribute) else 1.0 for one in group])
    attributes = np.array([one.attribute for one in group])
    known = np.unique(attributes)
    for attribute in known:
        share = 0.55 * max(len(known) - 1, 1) if attribute == "" else 0.45
        weights[attributes == attribute] *= share / weights[attributes == attribute].sum()
    return np.asarray(weights / weights.sum())
