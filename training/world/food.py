"""Cakes, fruit and fast food."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from training.world.sculptor import Scalar, Sculptor, about_x, about_y, about_z

CREAM = (0.98, 0.93, 0.82)
CHERRY = (0.80, 0.06, 0.12)
LEAF = (0.22, 0.58, 0.16)
TWIG = (0.36, 0.22, 0.10)
CANDY = ((0.98, 0.25, 0.45), (0.98, 0.86, 0.20), (0.20, 0.70, 0.95), (0.97, 0.97, 0.95), (0.35, 0.78, 0.30))


def _around(count: int, radius: Scalar, first: float = 0.0) -> Iterator[tuple[float, Scalar, Scalar]]:
    """Angle in degrees about y from the front, x and z of points on a circle."""
    for i in range(count):
        angle = first + 360 * i / count
        yield angle, radius * math.sin(math.radians(angle)), radius * math.cos(math.radians(angle))


def cake(o: Sculptor) -> None:
    """Two tiers with cream and five burning candles."""
    low, high, r = o.uniform(0.21, 0.25), o.uniform(0.18, 0.22), o.uniform(0.6, 0.66)
    o.cylinder((0, 0.03, 0), r + 0.14, 0.04, (0.75, 0.78, 0.84), rounding=0.03)
    o.cylinder((0, 0.06 + low, 0), r, low, rounding=0.05)
    floor = 0.06 + 2 * low
    o.cylinder((0, floor + high, 0), r * 0.62, high, rounding=0.05)
    top = floor + 2 * high
    o.torus((0, 0.09, 0), r, 0.06, CREAM)
    o.torus((0, floor + 0.02, 0), r * 0.62, 0.055, CREAM)
    for _, x, z in _around(9, r * 0.86, 20):
        o.ellipsoid((x, floor + 0.01, z), (0.085, 0.08, 0.085), CREAM)
    o.torus((0, top, 0), r * 0.55, 0.055, CREAM)
    for i, (_, x, z) in enumerate(_around(5, r * 0.36)):
        o.cylinder((x, top + 0.12, z), 0.05, 0.14, CANDY[(0, 2, 1, 4, 3)[i]], rounding=0.02)
        o.ellipsoid((x, top + 0.32, z), (0.055, 0.095, 0.055), (1.0, 0.66, 0.10))
    o.crown((0, top + 0.24, 0), 0.27)


def donut(o: Sculptor) -> None:
    """Icing with sprinkles over dough, tipped a little to show the hole."""
    ring, tube = o.uniform(0.5, 0.55), o.uniform(0.25, 0.29)
    tilt = about_x(9)

    def put(y: Scalar, x: Scalar, z: Scalar) -> tuple[Scalar, Scalar, Scalar]:
        return x, tilt[1, 1] * y + tilt[1, 2] * z, tilt[2, 1] * y + tilt[2, 2] * z

    # Dough as thick as the icing, so that the icing ends at the widest place and none shows from below.
    o.torus(put(-0.09, 0, 0), ring, tube, o.color((0.85, 0.60, 0.32)), turn=tilt)
    o.torus(put(0.04, 0, 0), ring, tube * 0.99, turn=tilt)
    for i, (angle, sine, cosine) in enumerate(_around(18, 1.0, 7)):
        lift = math.radians((78, 30, 112)[i % 3])  # 90: the crest, 0: the outer rim
        across, up = ring + tube * math.cos(lift), 0.04 + tube * math.sin(lift)
        way = math.radians(angle + (65, 20, -35)[i % 3])
        slope = 0.06 * math.sin(way - math.radians(angle)), 0.06 * math.cos(way - math.radians(angle))
        dx = cosine * slope[0] + sine * slope[1] * math.sin(lift)
        dz = -sine * slope[0] + cosine * slope[1] * math.sin(lift)
        dy = -slope[1] * math.cos(lift)
        ends = [put(up + s * dy, sine * across + s * dx, cosine * across + s * dz) for s in (-1, 1)]
        o.capsule(ends[0], ends[1], 0.042, color=CANDY[i % 5])
    x, y, z = put(0.04 + tube, 0, 0)
    o.crown((x, y - 0.02, z), ring * 0.62, turn=tilt)


def ice_cream_cone(o: Sculptor) -> None:
    """A big scoop that drips over a waffle cone, with sprinkles and a cherry."""
    r, h, sink = o.uniform(0.56, 0.62), o.uniform(0.46, 0.54), o.uniform(0.44, 0.54)
    waffle, line = o.color((0.87, 0.62, 0.32)), o.color((0.58, 0.34, 0.14))
    o.cylinder((0, 0, 0), 0.07, h, waffle, top=0.46, rounding=0.04)
    for _, x, z in _around(9, 1.0, 20):
        o.capsule((0.065 * x, -h + 0.03, 0.065 * z), (0.455 * x, h, 0.455 * z), 0.034, color=line)
    for share in (0.28, 0.54, 0.78):
        o.torus((0, h * (2 * share - 1), 0), 0.07 + 0.39 * share, 0.034, line)
    middle = h + r * sink
    o.ellipsoid((0, middle, 0), (r, r * 0.96, r))
    o.torus((0, h + 0.07, 0), r * 0.84, 0.1, blend=0.06)
    for i, (_, x, z) in enumerate(_around(8, r * 0.84, 12)):
        drop = (0.04, 0.16, 0.0, 0.1)[i % 4]
        o.capsule((x, h + 0.08, z), (x * 0.93, h - drop, z * 0.93), 0.11, 0.1, blend=0.06)
    for i in range(10):
        tilt, angle = math.radians((34, 62)[i % 2]), math.radians(30 + 36 * i)
        out, up = r * math.sin(tilt), r * 0.96 * math.cos(tilt)
        o.ellipsoid((out * math.sin(angle), middle + up, out * math.cos(angle)), 0.05, CANDY[i % 5])
    o.ellipsoid((0, middle + r + 0.06, 0), 0.14, CHERRY)
    o.crown((0, middle + r * 0.86, 0), r * 0.48)


def hamburger(o: Sculptor) -> None:
    """Buns around patty, cheese, tomato and lettuce."""
    r, dome, bun = o.uniform(0.62, 0.68), o.uniform(0.42, 0.5), o.uniform(0.12, 0.15)
    o.cylinder((0, bun, 0), r * 0.94, bun, top=r, rounding=0.1)
    y = 2 * bun
    o.cylinder((0, y + 0.07, 0), r * 1.03, 0.085, o.color((0.36, 0.19, 0.09)), rounding=0.07)
    o.box((0, y + 0.16, 0), (r * 0.82, 0.028, r * 0.82), (0.99, 0.76, 0.10), rounding=0.02, turn=about_y(45))
    for angle, x, z in _around(4, r * 1.08):
        turn = about_y(angle) @ about_x(68)
        o.box((x, y + 0.1, z), (0.12, 0.026, 0.085), (0.99, 0.76, 0.10), rounding=0.02, turn=turn)
    o.cylinder((0, y + 0.2, 0), r * 0.98, 0.045, (0.85, 0.14, 0.10), rounding=0.03)
    green = o.color((0.42, 0.76, 0.18))
    for i, (angle, x, z) in enumerate(_around(12, r * 0.97)):
        turn = about_y(angle) @ about_x(14)
        o.ellipsoid((x, y + (0.25, 0.22)[i % 2], z), (0.21, 0.055, 0.14), green, turn=turn, blend=0.03)
    y = y + 0.28
    o.ellipsoid((0, y, 0), (r * 1.02, dome, r * 1.02))
    seeds = [(22, 30 + 120 * i) for i in range(3)] + [(52, 40 * i) for i in range(9)]
    for tilt, angle in seeds:
        a, b = math.radians(tilt), math.radians(angle)
        out, up = r * 1.02 * math.sin(a), dome * math.cos(a)
        lean = np.degrees(np.arctan2(dome * math.sin(a), r * math.cos(a)))
        turn = about_y(angle) @ about_x(lean)
        o.ellipsoid((out * math.sin(b), y + up, out * math.cos(b)), (0.045, 0.035, 0.075), CREAM, turn=turn)
    o.crown((0, y + dome * 0.88, 0), r * 0.48)


def cupcake(o: Sculptor) -> None:
    """A swirl of frosting in a pleated wrapper, with a cherry."""
    r, h, swirl = o.uniform(0.42, 0.47), o.uniform(0.22, 0.27), o.uniform(0.9, 1.1)
    o.cylinder((0, h, 0), r * 0.74, h, o.color(CREAM, 0.02), top=r, rounding=0.03)
    for _, x, z in _around(14, 1.0):
        a, b = r * 0.74, r
        o.capsule((a * x, 0.03, a * z), (b * x, 2 * h - 0.03, b * z), 0.04, color=(0.62, 0.35, 0.20))
    y, step = 2 * h, 0.2 * swirl
    for i, (ring, tube) in enumerate(((0.86, 0.19), (0.62, 0.18), (0.36, 0.17), (0.12, 0.15))):
        o.torus((0, y + 0.07 + i * step, 0), r * ring, tube, turn=about_z(7) @ about_x(4), blend=0.02)
    o.ellipsoid((0, y + 0.25, 0), (r * 0.7, 0.36, r * 0.7))
    for i in range(10):
        level, angle = i % 3, math.radians(40 + 137.5 * i)
        out = r * (0.86, 0.62, 0.36)[level] + (0.19, 0.18, 0.17)[level] * 0.7
        height = y + 0.07 + level * step + 0.13
        o.ellipsoid((out * math.sin(angle), height, out * math.cos(angle)), 0.05, CANDY[i % 5])
    tip = y + 0.07 + 3 * step + 0.15
    o.ellipsoid((0, tip + 0.05, 0), 0.13, CHERRY)
    o.capsule((0, tip + 0.15, 0), (0.08, tip + 0.3, 0), 0.035, color=TWIG)
    o.crown((0, tip - 0.03, 0), 0.26)


def apple(o: Sculptor) -> None:
    """A round apple with a stem and a leaf."""
    wide, low, lean = o.uniform(0.32, 0.36), o.uniform(0.2, 0.26), o.uniform(5, 20)
    o.torus((0, 0.12, 0), 0.29, wide * 0.95)
    o.torus((0, -low, 0), 0.17, wide * 0.84, blend=0.25)
    o.ellipsoid((0, -0.1, 0), (0.42, 0.3, 0.42))
    sway = np.sin(np.radians(lean)) * 0.4
    o.capsule((0, 0.25, 0), (-sway, 0.66, 0), 0.05, 0.065, color=TWIG)
    turn = about_y(-25) @ about_z(28)
    o.ellipsoid((0.2 - sway * 0.56, 0.6, 0.05), (0.25, 0.055, 0.13), LEAF, turn=turn)
    o.crown((0, 0.4, 0), 0.26)


def pumpkin(o: Sculptor) -> None:
    """A jack-o'-lantern with a carved face."""
    tall, ring, rib = o.uniform(0.4, 0.46), o.uniform(0.28, 0.32), o.uniform(0.26, 0.28)
    o.ellipsoid((0, 0, 0), (0.45, tall * 0.85, 0.45))
    for angle, x, z in _around(10, ring, 18):
        o.ellipsoid((x, 0, z), (rib * 0.8, tall, rib), turn=about_y(angle), blend=0.01)
    dark, glow = (0.10, 0.05, 0.03), (1.0, 0.70, 0.10)
    for side in (1, -1):
        o.prism((0.19 * side, 0.13, 0.6), 0.125, 0, 0.115, 0.2, dark, carve=True)
    o.prism((0, -0.02, 0.62), 0.06, 0, 0.055, 0.2, dark, carve=True)
    o.prism((0, -0.18, 0.6), 0.14, 0.28, 0.1, 0.2, dark, carve=True)
    for x, y, z in ((-0.11, -0.1, 0.46), (0.11, -0.1, 0.46), (0, -0.25, 0.42)):
        o.box((x, y, z), (0.045, 0.045, 0.07), rounding=0.01)
    for side in (1, -1):
        o.ellipsoid((0.19 * side, 0.085, 0.41), (0.055, 0.05, 0.05), glow)
    o.ellipsoid((0, -0.18, 0.385), (0.19, 0.05, 0.05), glow)
    o.capsule((0, tall - 0.12, 0), (0.02, tall + 0.1, 0), 0.11, 0.08, color=(0.33, 0.42, 0.14))
    o.capsule((0.02, tall + 0.1, 0), (0.14, tall + 0.18, 0), 0.08, 0.075, color=(0.33, 0.42, 0.14))
    o.crown((0, tall - 0.06, 0), 0.3)


def pineapple(o: Sculptor) -> None:
    """Diamond scales over a dark core, and a crown of leaves."""
    r, tall, tuft = o.uniform(0.4, 0.46), o.uniform(0.5, 0.57), o.uniform(0.9, 1.1)
    bend = 0.34
    o.cylinder((0, 0, 0), r - 0.02, tall, o.color((0.36, 0.19, 0.05)), rounding=bend)
    size = r * 0.335
    for row, level in enumerate((-0.74, -0.37, 0.0, 0.37, 0.74)):
        past = np.maximum(abs(level) * tall - (tall - bend), 0)
        out, lean = r - bend + np.sqrt(bend**2 - past**2), np.degrees(np.arcsin(past / bend)) * np.sign(level)
        for angle, x, z in _around(6, 1.0, 30 * (row % 2)):
            turn = about_y(angle) @ about_x(-lean) @ about_z(45)
            o.box((x * (out - 0.02), tall * level, z * (out - 0.02)), (size, size, 0.075), rounding=0.055, turn=turn)
    for side in (1, -1):
        o.ellipsoid((0, side * (tall - 0.07), 0), (r * 0.8, 0.13, r * 0.8))
    y = tall * 0.9
    for count, reach, rise, first in ((6, 0.5, 0.22, 0), (5, 0.28, 0.42, 20)):
        for _, x, z in _around(count, 1.0, first):
            start, end = (0.14 * x, y, 0.14 * z), (reach * x, y + rise * tuft, reach * z)
            o.capsule(start, end, 0.13, 0.045, color=LEAF)
    o.capsule((0, y, 0), (0, y + 0.58 * tuft, 0), 0.14, 0.05, color=(0.30, 0.68, 0.22))
    o.crown((0, y + 0.26 * tuft, 0), 0.28)


OBJECTS: dict[str, Callable[[Sculptor], None]] = {
    "cake": cake,
    "donut": donut,
    "ice cream cone": ice_cream_cone,
    "hamburger": hamburger,
    "cupcake": cupcake,
    "apple": apple,
    "pumpkin": pumpkin,
    "pineapple": pineapple,
}
