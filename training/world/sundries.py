"""A butterfly, a tank, a flying saucer, a watermelon, a bucket, and things of the street and the lock."""

import math
from collections.abc import Callable

import numpy as np

from training.world.sculptor import (
    BLACK,
    METAL,
    STEEL,
    WHITE,
    WOOD,
    Array,
    Color,
    Scalar,
    Sculptor,
    Vector,
    about_x,
    about_y,
    about_z,
)
from training.world.vehicles import BRASS, FRAME, LAMP, PANE, RED, lamps

ALIEN: Color = (0.36, 0.82, 0.28)
GLOW: Color = (0.45, 0.95, 0.80)
RIND: Color = (0.92, 0.95, 0.78)
FLESH = (0.93, 0.20, 0.24)
DARK_GREEN = (0.07, 0.27, 0.11)
STALK: Color = (0.45, 0.42, 0.16)


def _at(turn: Array, x: Scalar, y: Scalar, z: Scalar) -> Vector:
    """A point given in turned axes, in the object's."""
    a, b, c = (turn[..., i, 0] * x + turn[..., i, 1] * y + turn[..., i, 2] * z for i in range(3))
    return a, b, c


def _drop(
    o: Sculptor, turn: Array, angle: Scalar, reach: Scalar, radius: Scalar, inset: float, thick: float, color: Color
) -> None:
    """A flat drop in turned axes: from their origin to a disc `reach` away, `angle` degrees above x, cut by `inset`."""
    along = turn @ about_z(angle - 90)
    width = radius - inset
    o.prism(_at(along, 0, reach / 2, 0), 0.10 - inset * 0.5, width * 0.96, reach / 2, thick, color, turn=along)
    o.cylinder(_at(along, 0, reach, 0), width, thick, color, rounding=0.02, turn=along @ about_x(90))


def butterfly(o: Sculptor) -> None:
    """A climbing one with half raised wings: coloured, with black borders and white dots on both sides."""
    lean, fold = o.uniform(27, 38), o.uniform(29, 40)
    fore, hind = o.uniform(0.76, 0.84), o.uniform(0.50, 0.56)
    wide, round_ = o.uniform(0.31, 0.36), o.uniform(0.27, 0.31)
    up, down = o.uniform(34, 40), o.uniform(-42, -36)
    body = about_x(lean)
    for side in (1, -1):
        turn = body @ about_y(side * fold)
        for angle, reach, radius in ((up, fore, wide), (down, hind, round_)):
            across = angle if side > 0 else 180 - angle
            _drop(o, turn, across, reach, radius, 0.0, 0.045, BLACK)
            _drop(o, turn, across, reach * 0.985, radius, 0.065, 0.06, None)
            for shift in (-50, 0, 50):
                slant = np.radians(across + side * shift)
                edge = radius - 0.035
                x = reach * np.cos(np.radians(across)) + edge * np.cos(slant)
                y = reach * np.sin(np.radians(across)) + edge * np.sin(slant)
                o.ellipsoid(_at(turn, x, y, 0), (0.045, 0.045, 0.075), WHITE, turn=turn)
    o.capsule(_at(body, 0, 0.05, 0), _at(body, 0, -0.52, 0.02), 0.105, 0.065, BLACK)
    o.ellipsoid(_at(body, 0, 0.12, 0.01), (0.125, 0.20, 0.13), FRAME, turn=body)
    o.ellipsoid(_at(body, 0, 0.36, 0.03), 0.125, BLACK)
    for side in (1, -1):
        o.ellipsoid(_at(body, side * 0.085, 0.40, 0.09), 0.06, WHITE)
        o.capsule(_at(body, side * 0.05, 0.44, 0.03), _at(body, side * 0.24, 0.74, 0.10), 0.038, 0.034, BLACK)
        o.ellipsoid(_at(body, side * 0.25, 0.76, 0.10), 0.065, BLACK)
    o.crown(_at(body, 0, 0.46, 0.02), 0.18, about_x(lean / 2))
    o.stripes = (1, 0, 0)


def tank(o: Sculptor) -> None:
    """Tracks under side skirts, a sloped hull, and a turret with a long gun; grille and exhausts at the back."""
    w, length, gun = o.uniform(0.48, 0.54), o.uniform(0.84, 0.92), o.uniform(1.10, 1.22)
    tall, wide = o.uniform(0.14, 0.18), o.uniform(0.38, 0.44)
    side_on = about_y(90)
    o.box((0, 0.30, 0), (w - 0.05, 0.19, length - 0.14))
    for side in (1, -1):
        o.prism((side * w, 0.26, 0), length - 0.26, length - 0.02, 0.26, 0.16, BLACK, rounding=0.09, turn=side_on)
        o.box((side * w, 0.53, 0), (0.19, 0.035, length + 0.01), rounding=0.025)
        o.box((side * (w + 0.165), 0.45, 0), (0.032, 0.10, length - 0.04), rounding=0.02)
    for i in range(5):
        z = (i - 2) * (length - 0.28) * 0.46
        for side in (1, -1):
            o.cylinder((side * w, 0.19, z), 0.135, 0.175, METAL, rounding=0.02, turn=about_z(90))
        o.cylinder((0, 0.19, z), 0.06, w + 0.20, STEEL, rounding=0.02, turn=about_z(90))
    o.prism((0, 0.58, -0.02), length - 0.04, length - 0.26, 0.11, w + 0.05, turn=side_on)
    deck = 0.69
    o.cylinder((0, deck, -0.05), wide * 0.9, 0.05, STEEL)
    top = deck + 0.03 + 2 * tall
    o.prism((0, deck + 0.03 + tall, -0.10), wide, wide * 0.78, tall, 0.40, rounding=0.06)
    o.prism((0, deck + 0.03 + tall, -0.08), 0.54, 0.40, tall * 0.98, wide * 0.72, rounding=0.06, turn=side_on)
    o.box((0, deck + 0.03 + tall, 0.44), (0.17, tall * 0.75, 0.08), STEEL, rounding=0.05)
    barrel = deck + 0.04 + tall
    o.capsule((0, barrel, 0.40), (0, barrel + 0.05, gun), 0.078, 0.066)
    o.cylinder((0, barrel + 0.05, gun), 0.098, 0.09, STEEL, rounding=0.02, turn=about_x(87))
    o.cylinder((0, barrel + 0.05, gun + 0.03), 0.055, 0.07, BLACK, turn=about_x(87))
    o.cylinder((wide * 0.34, top, -0.14), 0.15, 0.06, METAL, rounding=0.02)
    o.cylinder((wide * 0.34, top + 0.05, -0.14), 0.12, 0.03, STEEL, rounding=0.02)
    o.box((-wide * 0.42, top + 0.02, 0.02), (0.07, 0.05, 0.07), STEEL)
    o.box((-wide * 0.42, top + 0.025, 0.05), (0.05, 0.03, 0.05), PANE, rounding=0.01)
    o.box((0, deck + 0.05 + tall, -0.56), (wide * 0.7, tall * 0.55, 0.08), STEEL, rounding=0.03)
    lamps(o, w * 0.86, 0.60, length - 0.07, 0.075, LAMP)
    for i in range(3):
        o.box((0, 0.45 + 0.055 * i, -length + 0.09), (0.20, 0.016, 0.05), FRAME, rounding=0.01)
    for side in (1, -1):
        o.capsule((side * 0.32, 0.52, -length + 0.14), (side * 0.32, 0.56, -length - 0.02), 0.07, color=STEEL)
        o.box((side * w, 0.55, -length), (0.09, 0.045, 0.04), RED, rounding=0.02)
    o.crown((0, top, -0.12), 0.23)
    o.stripes = (0, 0, 1)


def flying_saucer(o: Sculptor) -> None:
    """A disc with lamps around, a glass dome with a pilot who looks out in front, three legs, a glowing drive."""
    flat, dome, legs = o.uniform(0.21, 0.26), o.uniform(0.37, 0.43), o.uniform(0.44, 0.54)
    glass = o.uniform(0.34, 0.42)
    o.ellipsoid((0, 0, 0), (1.0, flat, 1.0))
    o.torus((0, 0, 0), 0.94, 0.075)
    o.cylinder((0, flat * 0.8, 0), 0.66, 0.085, top=dome + 0.08, rounding=0.03)
    base = flat * 0.8 + 0.06
    o.ellipsoid((0, base, 0), (dome, glass, dome), PANE)
    o.torus((0, base + 0.015, 0), dome + 0.01, 0.06, METAL)
    o.box((0, base + 0.08, -dome + 0.04), (0.13, 0.16, 0.07), METAL, rounding=0.05, turn=about_x(16))
    o.ellipsoid((0, base + 0.17, dome - 0.18), (0.17, 0.15, 0.16), ALIEN)
    o.capsule((0, base + 0.13, dome - 0.15), (0, base + 0.07, dome - 0.13), 0.125, 0.10, ALIEN)
    for side in (1, -1):
        o.ellipsoid((side * 0.075, base + 0.16, dome - 0.04), (0.05, 0.075, 0.04), BLACK, turn=about_z(-side * 25))
    for i in range(12):
        angle = 2 * math.pi * (i + 0.5) / 12
        x, z = 0.95 * math.sin(angle), 0.95 * math.cos(angle)
        o.ellipsoid((x, 0.035, z), 0.085, (LAMP, RED, GLOW)[i % 3])
    o.cylinder((0, -flat, 0), 0.36, 0.07, STEEL, top=0.46, rounding=0.02)
    o.cylinder((0, -flat - 0.06, 0), 0.24, 0.05, GLOW, top=0.28, rounding=0.03)
    for degrees in (60, 180, 300):
        angle = math.radians(degrees)
        x, z = math.sin(angle), math.cos(angle)
        o.capsule((0.42 * x, -flat * 0.7, 0.42 * z), (0.62 * x, -legs, 0.62 * z), 0.06, 0.05, METAL)
        o.ellipsoid((0.62 * x, -legs - 0.02, 0.62 * z), (0.13, 0.055, 0.13), STEEL)
    o.crown((0, base + glass * 0.88, 0), 0.27)
    o.stripes = (0, 0, 1)


def watermelon(o: Sculptor) -> None:
    """A long one on its side, dark bands from end to end; a segment is cut out in front: red flesh with seeds."""
    long, r, open_ = o.uniform(0.86, 1.0), o.uniform(0.66, 0.72), o.uniform(29, 34)
    flesh, bands = o.color(FLESH), o.color(DARK_GREEN, 0.02)
    up = 26.0
    o.ellipsoid((0, 0, 0), (long, r, r))
    for i in range(5):
        o.ellipsoid((0, 0, 0), (long * 1.01, r * 1.03, r * 0.31), bands, turn=about_x(36 * i + 8))
    # A triangle along x, its edge near the axis, cut twice: through the rind, then a little less through the flesh.
    turn = about_x(90 - up) @ about_y(90)
    for grow, color in ((0.006, RIND), (0.0, flesh)):
        if color is not RIND:
            o.ellipsoid((0, 0, 0), (long - 0.09, r - 0.09, r - 0.09), color)
        spread = 1.2 * np.tan(np.radians(open_)) + grow
        o.prism(_at(turn, 0, 0.5, 0), 0.0, spread, 0.6 + grow, 1.2, color, rounding=0.0, carve=True, turn=turn)
    for side in (1, -1):
        face = turn @ about_z(-side * open_)
        for x, reach in ((-0.52, 0.26), (-0.30, 0.42), (-0.10, 0.27), (0.10, 0.44), (0.30, 0.27), (0.50, 0.36)):
            place = _at(face, 0, reach - 0.1 + 0.1 * np.cos(np.radians(open_)), 0)
            shift = _at(turn, 0, -0.1, 0)
            seed = (x * long, place[1] + shift[1] * 0.9, place[2] + shift[2] * 0.9)
            o.ellipsoid(seed, (0.032, 0.05, 0.032), BLACK, turn=face)
    o.capsule((long - 0.03, 0.01, 0), (long + 0.08, 0.05, 0), 0.055, 0.045, STALK)
    o.capsule((long + 0.08, 0.05, 0), (long + 0.13, 0.15, 0), 0.045, 0.05, STALK)
    o.ellipsoid((-long, 0, 0), (0.035, 0.07, 0.07), STALK)
    o.crown((0, r - 0.03, -0.06), 0.29, about_x(-6))
    o.stripes = (1, 0, 0)


def bucket(o: Sculptor) -> None:
    """An open pail with two hoops; its handle with a wooden grip leans back on the rim's ears."""
    bottom, top, h = o.uniform(0.40, 0.47), o.uniform(0.57, 0.63), o.uniform(0.46, 0.56)
    tilt = o.uniform(42, 58)
    o.cylinder((0, h, 0), bottom, h, top=top, wall=0.07, rounding=0.02)
    o.cylinder((0, 0.07, 0), bottom + 0.01, 0.05, rounding=0.02)
    o.torus((0, 2 * h, 0), top - 0.025, 0.06)
    o.torus((0, 0.03, 0), bottom - 0.02, 0.045, METAL)
    for share in (0.26, 0.72):
        radius = bottom + (top - bottom) * share
        lean = (top - bottom) / (2 * h) * 0.05
        o.cylinder((0, 2 * h * share, 0), radius + 0.018 - lean, 0.05, METAL, top=radius + 0.018 + lean, wall=0.06)
    pivot = 2 * h - 0.12
    ring = top + 0.055
    o.cylinder((top - 0.01, pivot, 0), 0.10, 0.075, STEEL, rounding=0.02, turn=about_z(90))
    o.cylinder((0.01 - top, pivot, 0), 0.10, 0.075, STEEL, rounding=0.02, turn=about_z(90))
    o.torus((0, pivot, 0), ring, 0.042, STEEL, arc=180, turn=about_x(-90 - tilt))
    y, z = pivot + ring * np.cos(np.radians(tilt)), -ring * np.sin(np.radians(tilt))
    o.capsule((-0.17, y, z), (0.17, y, z), 0.08, color=WOOD)
    o.crown((0, 2 * h + 0.04, 0.03), top * 0.58)
    o.stripes = (0, 1, 0)


def fire_hydrant(o: Sculptor) -> None:
    """A barrel between flanges under a domed bonnet, a wide nozzle in front and one at each side, all capped."""
    r, h, dome = o.uniform(0.29, 0.33), o.uniform(0.46, 0.56), o.uniform(0.28, 0.36)
    out = o.uniform(0.44, 0.50)
    pale = (o.uniform(0, 1) < 0.5)[:, None]
    caps = np.where(pale, o.color((0.90, 0.90, 0.88)), o.color((0.60, 0.61, 0.64)))
    top = 0.10 + 2 * h
    o.cylinder((0, 0.06, 0), r + 0.15, 0.06, rounding=0.03)
    o.cylinder((0, 0.10 + h, 0), r + 0.01, h, top=r, rounding=0.02)
    o.cylinder((0, 0.26, 0), r + 0.06, 0.045, rounding=0.03)
    o.cylinder((0, top, 0), r + 0.10, 0.065, rounding=0.03)
    o.ellipsoid((0, top + 0.04, 0), (r + 0.02, dome, r + 0.02))
    for i in range(6):
        angle = 2 * math.pi * (i + 0.5) / 6
        x, z = math.sin(angle), math.cos(angle)
        o.cylinder(((r + 0.10) * x, 0.13, (r + 0.10) * z), 0.045, 0.04, STEEL)
        o.cylinder(((r + 0.05) * x, top + 0.07, (r + 0.05) * z), 0.04, 0.035, STEEL)
    tip = top + 0.04 + dome
    o.cylinder((0, tip, 0), 0.13, 0.06, rounding=0.03)
    o.cylinder((0, tip + 0.09, 0), 0.075, 0.07, caps, rounding=0.02)
    y, across, ahead = 0.10 + 1.30 * h, about_z(90), about_x(90)
    o.cylinder((0, y, 0), 0.145, out, rounding=0.02, turn=across)
    o.cylinder((0, y, 0), 0.19, out - 0.07, rounding=0.02, turn=across)
    for side in (1, -1):
        o.cylinder((side * out, y, 0), 0.175, 0.065, caps, rounding=0.03, turn=across)
        o.cylinder((side * (out + 0.09), y, 0), 0.065, 0.05, caps, rounding=0.02, turn=across)
    o.cylinder((0, y - 0.09, r * 0.7), 0.20, 0.20, rounding=0.02, turn=ahead)
    o.cylinder((0, y - 0.09, r * 0.7 + 0.21), 0.235, 0.065, caps, rounding=0.03, turn=ahead)
    o.cylinder((0, y - 0.09, r * 0.7 + 0.30), 0.08, 0.06, caps, rounding=0.02, turn=ahead)
    o.crown((0, top + 0.04 + dome * 0.62, 0), r * 0.86)
    o.stripes = (0, 1, 0)


def traffic_cone(o: Sculptor) -> None:
    """Two white bands around a hollow cone on a square foot with a black rubber sole."""
    foot, r, tall, tip = o.uniform(0.48, 0.56), o.uniform(0.37, 0.42), o.uniform(1.24, 1.44), o.uniform(0.09, 0.12)
    o.box((0, 0.05, 0), (foot, 0.06, foot), BLACK, rounding=0.04)
    o.box((0, 0.12, 0), (foot - 0.03, 0.05, foot - 0.03), rounding=0.04)
    low = 0.14
    o.cylinder((0, low + tall / 2, 0), r, tall / 2, top=tip, rounding=0.03)
    o.cylinder((0, low + 0.03, 0), r + 0.06, 0.05, top=r + 0.01, rounding=0.02)
    slope = (r - tip) / tall
    for share, half in ((0.42, 0.12), (0.74, 0.085)):
        middle = r - slope * tall * share + 0.014
        half_high = half * tall / 1.3
        bottom, top = middle + slope * half_high, middle - slope * half_high
        o.cylinder((0, low + tall * share, 0), bottom, half_high, WHITE, top=top)
    o.cylinder((0, low + tall, 0), tip * 0.6, 0.012, BLACK)
    o.cylinder((0, 0, 0), r * 0.9, 0.05, STEEL, carve=True)
    o.crown((0, low + tall - 0.14, 0), 0.21)
    o.stripes = (0, 1, 0)


def key(o: Sculptor) -> None:
    """An old door key on its tip: a bow of three rings above, brass collars, a notched bit at its left below."""
    ring, tube, r = o.uniform(0.19, 0.23), o.uniform(0.085, 0.10), o.uniform(0.085, 0.10)
    out, tall, bow = o.uniform(0.38, 0.46), o.uniform(0.20, 0.24), o.uniform(0.42, 0.52)
    thick, low = 0.075, -0.66
    o.box((out / 2, low, 0), (out / 2 + 0.02, tall, thick), rounding=0.02)
    o.box((out, low + tall * 0.35, 0), (0.15, 0.045, 0.2), carve=True)
    o.box((out, low - tall * 0.45, 0), (0.09, 0.045, 0.2), carve=True)
    o.box((out * 0.5, low - tall, 0), (0.05, 0.12, 0.2), carve=True)
    o.capsule((0, -1.0, 0), (0, bow, 0), r)
    upright, apart = about_x(90), ring + tube * 0.7
    for x, y in ((1, 0), (-1, 0), (0, 1)):
        o.torus((x * apart * 0.95, bow + apart * (0.45 + y * 1.25), 0), ring, tube, turn=upright)
    o.cylinder((0, bow + apart * 0.55, 0), tube * 1.5, thick, rounding=0.04, turn=upright)
    for y, more in ((0.0, 0.07), (-0.13, 0.045), (-0.26, 0.07)):
        o.cylinder((0, bow - 0.16 + y, 0), r + more, 0.055, BRASS, rounding=0.03)
    o.cylinder((0, low + tall + 0.09, 0), r + 0.05, 0.05, BRASS, rounding=0.03)
    o.crown((0, bow + apart * 1.7 + ring + tube * 0.4, 0), 0.26)
    o.stripes = (0, 1, 0)


OBJECTS: dict[str, Callable[[Sculptor], None]] = {
    "butterfly": butterfly,
    "tank": tank,
    "flying saucer": flying_saucer,
    "watermelon": watermelon,
    "bucket": bucket,
    "fire hydrant": fire_hydrant,
    "traffic cone": traffic_cone,
    "key": key,
}
