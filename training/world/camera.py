"""Random cameras and lights, and the backgrounds behind the objects.

azimuth 0 looks at the front (+Z) and grows towards the object's left (+X); elevation 0 is the horizon.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from training.world.layout import AMBIENT, EYE, INSTANCE, SKY, SUN, SUN_LEVEL, TAN, TURN, VIEW_COLUMNS

Array = NDArray[np.float64]
Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Light:
    """Brightness of the light: `ambient + sky * n_y + sun * max(n . l, 0)`, each drawn from its bounds."""

    ambient: Bounds = (0.84, 0.88)
    sky: Bounds = (0.06, 0.1)
    sun: Bounds = (0.08, 0.16)


@dataclass(frozen=True, slots=True)
class Lens:
    """Ranges of cameras: elevation in degrees, field of view in radians, share of it that the unit sphere fills.

    A `below` share of the views comes from a range of its own, `below_deg`, and shows undersides.
    """

    elevation_deg: Bounds = (-15.0, 65.0)
    below_deg: Bounds = (-50.0, -20.0)
    below: float = 0.12
    fov_rad: Bounds = (0.56, 0.84)
    fill: Bounds = (0.8, 1.0)


def random_views(
    instances: NDArray[np.intp], rng: np.random.Generator, lens: Lens, light: Light
) -> tuple[NDArray[np.float32], Array, Array]:
    """Views of the instances from all around, with their azimuths and elevations in degrees, each [m]."""
    m = len(instances)
    azimuth, elevation = rng.uniform(-180, 180, m), rng.uniform(*lens.elevation_deg, m)
    elevation = np.where(rng.uniform(0, 1, m) < lens.below, rng.uniform(*lens.below_deg, m), elevation)
    tan = np.tan(rng.uniform(*lens.fov_rad, m) / 2)
    sine = np.sin(np.arctan(tan) * rng.uniform(*lens.fill, m))
    views = look_at(instances, azimuth, elevation, tan, 1 / sine)
    around, height = rng.uniform(0, 2 * np.pi, m), rng.uniform(0.5, 1.2, m)
    views[:, SUN : SUN + 3] = np.stack(
        [np.cos(height) * np.sin(around), np.sin(height), np.cos(height) * np.cos(around)], -1
    )
    for column, bounds in ((AMBIENT, light.ambient), (SKY, light.sky), (SUN_LEVEL, light.sun)):
        views[:, column] = rng.uniform(*bounds, m)
    return views, azimuth, elevation


def look_at(
    instances: NDArray[np.intp], azimuth_deg: Array, elevation_deg: Array, tan: Array, distance: Array
) -> NDArray[np.float32]:
    """Views [m 20] of the origin from given angles and distances, in a mean light from above the camera's left."""
    azimuth, elevation = np.radians(azimuth_deg), np.radians(elevation_deg)
    out = np.stack([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)], -1)
    right = np.stack([np.cos(azimuth), np.zeros_like(azimuth), -np.sin(azimuth)], -1)
    down = np.cross(-out, right)
    views = np.zeros((len(instances), VIEW_COLUMNS), np.float32)
    views[:, INSTANCE] = instances
    views[:, EYE : EYE + 3] = out * np.asarray(distance)[:, None]
    views[:, TURN : TURN + 9] = np.concatenate([right, down, -out], -1)
    views[:, TAN] = tan
    sun = out - 0.4 * right + 0.8 * np.array([0, 1, 0])
    views[:, SUN : SUN + 3] = sun / np.linalg.norm(sun, axis=-1, keepdims=True)
    views[:, [AMBIENT, SKY, SUN_LEVEL]] = 0.86, 0.08, 0.12
    return views


def backgrounds(m: int, size: int, generator: torch.Generator) -> Float[Tensor, "m 3 s s"]:
    """Random backgrounds, 0..1: white, one colour or a gradient between two; half of them are pale."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, device=generator.device, generator=generator)

    first, second = draw(m, 3, 1, 1), draw(m, 3, 1, 1)
    pale = draw(m, 1, 1, 1) < 0.5
    first, second = (torch.where(pale, 0.7 + 0.3 * color, color) for color in (first, second))
    kind, angle = draw(m, 1, 1, 1), draw(m, 1, 1) * 2 * torch.pi
    first = torch.where(kind < 0.25, torch.ones_like(first), first)
    second = torch.where(kind < 0.6, first, second)
    place = torch.linspace(-0.5, 0.5, size, device=generator.device)
    share = 0.5 + 0.7 * (angle.cos() * place[None, None, :] + angle.sin() * place[None, :, None])
    return first + (second - first) * share[:, None].clamp(0, 1)
