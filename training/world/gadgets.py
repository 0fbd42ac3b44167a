"""Gadgets, instruments and things to carry."""

import math
from collections.abc import Callable

import numpy as np

from training.world.sculptor import (
    BLACK,
    GLASS,
    METAL,
    STEEL,
    WHITE,
    Color,
    Scalar,
    Sculptor,
    Vector,
    about_x,
    about_y,
    about_z,
)

CREAM: Color = (0.93, 0.88, 0.74)
GOLD: Color = (0.93, 0.72, 0.2)
LEATHER: Color = (0.55, 0.33, 0.15)
TAN: Color = (0.76, 0.55, 0.33)


def _disc(o: Sculptor, center: Vector, radius: Scalar, half: Scalar, color: Color = None, **how: object) -> None:
    """A cylinder whose axis points to the front."""
    o.cylinder(center, radius, half, color, turn=about_x(90), **how)  # type: ignore[arg-type]


def _rod(o: Sculptor, center: Vector, radius: Scalar, half: Scalar, color: Color = None, **how: object) -> None:
    """A cylinder whose axis points to the side."""
    o.cylinder(center, radius, half, color, turn=about_z(90), **how)  # type: ignore[arg-type]


def robot(o: Sculptor) -> None:
    """Its face is a dark screen, and a wind-up key sits on its back."""
    w, h = o.uniform(0.38, 0.46), o.uniform(0.36, 0.44)
    head, leg = o.uniform(0.36, 0.42), o.uniform(0.26, 0.34)
    hip, neck = leg + 0.05, leg + 0.05 + 2 * h
    top, face = neck + 0.1 + 1.5 * head, neck + 0.1 + 0.75 * head
    for side in (1, -1):
        o.box((side * w * 0.52, 0.08, 0.06), (0.17, 0.1, 0.24), rounding=0.07)
        o.capsule((side * w * 0.52, 0.15, 0), (side * w * 0.52, hip + 0.05, 0), 0.12)
        o.capsule((side * w, neck - 0.16, 0), (side * (w + 0.2), neck - 0.3, 0), 0.12)
        o.capsule((side * (w + 0.2), neck - 0.3, 0), (side * (w + 0.22), hip + 0.22, 0.14), 0.11)
        o.ellipsoid((side * (w + 0.22), hip + 0.12, 0.17), 0.14, METAL)
    o.box((0, hip + h, 0), (w, h, 0.3), rounding=0.08)
    o.cylinder((0, neck + 0.05, 0), 0.16, 0.1, STEEL)
    o.box((0, face, 0), (head * 1.15, head * 0.75, 0.32), rounding=0.1)
    o.box((0, face, 0.3), (head * 0.86, head * 0.48, 0.05), GLASS, rounding=0.04)
    for side in (1, -1):
        o.ellipsoid((side * head * 0.45, face + 0.05, 0.33), (0.12, 0.12, 0.07), WHITE)
        o.ellipsoid((side * head * 0.43, face + 0.05, 0.39), (0.06, 0.06, 0.03), BLACK)
        _rod(o, (side * (head * 1.15 + 0.04), face, 0), 0.13, 0.06, METAL, rounding=0.03)
    o.box((0, face - head * 0.35, 0.34), (head * 0.4, 0.03, 0.03), WHITE)
    o.box((0, hip + h * 1.15, 0.29), (w * 0.52, h * 0.32, 0.05), CREAM, rounding=0.03)
    for x, color in ((-1, (0.86, 0.12, 0.1)), (0, (0.98, 0.8, 0.1)), (1, (0.15, 0.6, 0.25))):
        _disc(o, (x * w * 0.35, hip + h * 1.15, 0.35), 0.06, 0.03, color)
    o.capsule((0, top - 0.03, 0), (0, top + 0.2, 0), 0.06, color=METAL)
    o.ellipsoid((0, top + 0.26, 0), 0.1, o.color((0.9, 0.2, 0.12)))
    _disc(o, (0, hip + h, -0.36), 0.05, 0.1, METAL)
    for side in (1, -1):
        o.torus((side * 0.12, hip + h, -0.44), 0.1, 0.045, METAL, turn=about_x(90))
    o.crown((0, top - 0.02, 0), head * 0.68)


def clock(o: Sculptor) -> None:
    """An alarm clock with two bells, the hammer between them."""
    r, d = o.uniform(0.56, 0.62), o.uniform(0.26, 0.34)
    bell, spread = o.uniform(0.24, 0.29), 33
    minute, hour = o.uniform(20, 110), o.uniform(-110, -40)
    _disc(o, (0, 0, 0), r, d, rounding=0.06)
    o.torus((0, 0, d - 0.02), r - 0.09, 0.1, turn=about_x(90))
    _disc(o, (0, 0, d), r - 0.15, 0.03, WHITE)
    for angle in range(0, 360, 90):
        x, y = math.sin(math.radians(angle)), math.cos(math.radians(angle))
        o.box((x * (r - 0.24), y * (r - 0.24), d + 0.03), (0.03, 0.055, 0.02), BLACK, 0.01, turn=about_z(-angle))
    for angle, length, thick in ((minute, r - 0.28, 0.035), (hour, r - 0.36, 0.045)):
        across, up = length * np.sin(np.radians(angle)), length * np.cos(np.radians(angle))
        o.capsule((0, 0, d + 0.05), (across, up, d + 0.05), thick, color=BLACK)
    _disc(o, (0, 0, d + 0.06), 0.07, 0.04, BLACK)
    for side in (1, -1):
        lean = about_z(-side * spread)
        x, y = side * math.sin(math.radians(spread)), math.cos(math.radians(spread))
        o.capsule((x * (r - 0.05), y * (r - 0.05), 0), (x * (r + 0.16), y * (r + 0.16), 0), 0.06, color=METAL)
        o.ellipsoid((x * (r + 0.1), y * (r + 0.1), 0), (bell, bell * 0.85, bell), turn=lean)
        o.ellipsoid((x * (r + 0.12 + bell * 0.85), y * (r + 0.12 + bell * 0.85), 0), 0.06, METAL)
        o.capsule((side * r * 0.5, -r * 0.7, 0), (side * (r * 0.72), -r - 0.16, 0), 0.1, 0.13)
    o.capsule((0, r - 0.05, 0), (0, r + 0.2, 0), 0.06, color=METAL)
    _rod(o, (0, r + 0.24, 0), 0.08, 0.12, STEEL, rounding=0.03)
    _disc(o, (0, -0.05, -d - 0.04), 0.05, 0.08, METAL)
    for side in (1, -1):
        o.ellipsoid((side * 0.12, -0.05, -d - 0.12), (0.14, 0.11, 0.06), METAL)
    _disc(o, (0, 0.28, -d - 0.02), 0.08, 0.05, STEEL)
    o.crown((0, r + 0.3, 0), 0.3)


def telephone(o: Sculptor) -> None:
    """A desk telephone with a rotary dial on its sloping front."""
    w, h = o.uniform(0.52, 0.6), o.uniform(0.28, 0.34)
    bottom, top = o.uniform(0.58, 0.66), 0.26
    span, dial = o.uniform(0.62, 0.72), o.uniform(0.33, 0.37)
    for side in (1, -1):
        for front in (1, -1):
            o.cylinder((side * w * 0.75, 0.0, front * bottom * 0.75), 0.09, 0.06, BLACK)
    o.prism((0, h + 0.03, 0), bottom, top, h, w, rounding=0.08, turn=about_y(90))
    tilt = np.degrees(np.arctan2(2 * h, bottom - top))
    turn, up, out = about_x(tilt), np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    middle = (bottom + top) / 2

    def on_dial(x: Scalar, y: Scalar, height: float) -> Vector:
        return x, h + 0.03 + y * out + height * up, middle - y * up + height * out

    o.cylinder(on_dial(0, 0, 0.0), dial, 0.05, STEEL, turn=turn)
    o.cylinder(on_dial(0, 0, 0.05), dial - 0.03, 0.03, WHITE, turn=turn)
    for k in range(9):
        angle = math.radians(20 + 36 * k)
        place = on_dial((dial - 0.1) * math.cos(angle), (dial - 0.1) * math.sin(angle), 0.07)
        o.cylinder(place, 0.052, 0.03, BLACK, turn=turn)
    o.cylinder(on_dial(0, 0, 0.07), dial * 0.38, 0.04, o.color((0.85, 0.15, 0.12)), turn=turn)
    y = 2 * h + 0.08
    o.box((0, y, 0), (w * 0.62, 0.1, 0.17), rounding=0.05)
    for side in (1, -1):
        for front in (1, -1):
            o.capsule((side * w * 0.55, y, front * 0.2), (side * w * 0.6, y + 0.2, front * 0.23), 0.06, color=STEEL)
    y = y + 0.22
    o.capsule((-span, y, 0), (0, y + 0.06, 0), 0.13, 0.12)
    o.capsule((span, y, 0), (0, y + 0.06, 0), 0.13, 0.12, blend=0.05)
    for side in (1, -1):
        lean = about_z(side * 12)
        o.cylinder((side * (span + 0.02), y - 0.1, 0), 0.25, 0.13, top=0.16, rounding=0.05, turn=lean, blend=0.06)
        o.cylinder((side * (span - 0.01), y - 0.22, 0), 0.2, 0.04, BLACK, turn=lean)
    cord = (y - 0.34) / 2
    o.torus((w + 0.02, cord + 0.14, -0.05), cord, 0.065, BLACK, arc=190, turn=about_x(90) @ about_y(90))
    o.crown((0, y + 0.16, 0), 0.3)


def typewriter(o: Sculptor) -> None:
    """Three rows of keys, and a sheet of paper in the roller."""
    w, h = o.uniform(0.68, 0.78), o.uniform(0.28, 0.34)
    sheet, paper = o.uniform(0.32, 0.38), o.uniform(0.27, 0.33)
    for side in (1, -1):
        for z in (0.5, -0.5):
            o.cylinder((side * (w - 0.13), -0.03, z), 0.1, 0.07, BLACK)
    o.box((0, 0.12, 0), (w, 0.12, 0.68), rounding=0.08)
    o.box((0, h + 0.05, -0.28), (w, h + 0.05, 0.38), rounding=0.1)
    o.prism((0, 0.3, 0.05), 0.6, 0.1, 0.14, w - 0.02, rounding=0.05, turn=about_y(90), blend=0.05)
    turn = about_x(24)
    for row in range(3):
        rise, z = 0.25 + 0.09 * row, 0.52 - 0.17 * row
        count = 6 - row % 2
        o.box((0, rise, z), (w * 0.68, 0.06, 0.085), STEEL, turn=turn)
        for k in range(count):
            o.cylinder(
                ((k - (count - 1) / 2) * w * 0.225, rise + 0.07, z), 0.062, 0.05, WHITE, turn=turn, rounding=0.02
            )
    o.box((0, 0.22, 0.64), (w * 0.4, 0.05, 0.04), WHITE, turn=turn)
    y = 2 * h + 0.15
    _rod(o, (0, y, -0.3), 0.12, w + 0.02, BLACK)
    for side in (1, -1):
        _rod(o, (side * (w + 0.09), y, -0.3), 0.15, 0.08, METAL, rounding=0.03)
        o.box((side * (w - 0.16), y - 0.04, -0.3), (0.17, 0.19, 0.22), rounding=0.05)
    lean = about_x(-14)
    o.box((0, y + paper, -0.36 - paper * 0.2), (sheet, paper, 0.045), WHITE, turn=lean, rounding=0.01)
    for k in range(3):
        up = paper * (1.45 - 0.42 * k)
        place = (-0.06 * (k == 2), y + up, -0.32 - up * 0.22)
        o.box(place, (sheet * 0.7 - 0.06 * (k == 2), 0.025, 0.03), STEEL, turn=lean, rounding=0.01)
    o.crown((0, y + paper * 1.9, -0.36 - paper * 0.42), 0.3)


def television(o: Sculptor) -> None:
    """An old set with two antennas, on four legs."""
    w, h, d = o.uniform(0.66, 0.76), o.uniform(0.52, 0.6), o.uniform(0.34, 0.42)
    reach = o.uniform(0.4, 0.55)
    o.box((0, 0, 0), (w, h, d), rounding=0.11)
    o.box((0, -0.02, -d), (w * 0.7, h * 0.7, 0.2), rounding=0.1)
    for k in range(3):
        o.box((0, 0.12 - 0.14 * k, -d - 0.18), (w * 0.45, 0.03, 0.03), BLACK)
    o.box((-0.16 * w, 0, d - 0.01), (w * 0.57, h * 0.62, 0.06), CREAM, rounding=0.05)
    o.box((-0.16 * w, 0, d + 0.03), (w * 0.51, h * 0.54, 0.06), GLASS, rounding=0.05)
    o.capsule((-0.53 * w, 0.22 * h, d + 0.08), (-0.4 * w, 0.33 * h, d + 0.08), 0.035, color=WHITE)
    for y in (0.5, 0.08):
        _disc(o, (w * 0.73, h * y, d + 0.03), 0.1, 0.07, CREAM, rounding=0.03)
        o.box((w * 0.73, h * y, d + 0.1), (0.025, 0.09, 0.03), BLACK)
    for k in range(3):
        o.box((w * 0.73, -h * 0.32 - 0.1 * k, d + 0.0), (0.12, 0.025, 0.03), BLACK)
    for side in (1, -1):
        for z in (0.6, -0.6):
            a, b = (side * w * 0.6, -h + 0.05, z * d), (side * w * 0.72, -h - 0.2, z * d * 1.3)
            o.capsule(a, b, 0.1, 0.07, color=LEATHER)
        tip = (side * reach, h + 0.55, -0.1)
        o.capsule((side * 0.05, h, -0.1), tip, 0.065, color=METAL)
        o.ellipsoid(tip, 0.1, METAL)
    o.ellipsoid((0, h - 0.02, -0.1), (0.2, 0.13, 0.17), STEEL)
    o.crown((0, h + 0.06, -0.02), 0.27)


def camera(o: Sculptor) -> None:
    """A photo camera: lens and flash in front, screen and viewfinder behind."""
    w, h, d = o.uniform(0.66, 0.76), o.uniform(0.4, 0.46), o.uniform(0.2, 0.25)
    lens, length = o.uniform(0.31, 0.36), o.uniform(0.2, 0.3)
    o.box((0, 0, 0), (w, h, d), rounding=0.09)
    o.box((-w + 0.14, -0.02, d), (0.13, h - 0.04, 0.1), rounding=0.08, blend=0.05)
    o.prism((0, h + 0.1, 0), 0.34, 0.24, 0.16, d, rounding=0.04)
    z = d + length
    _disc(o, (0.05, -0.04, d), lens + 0.03, 0.04, STEEL)
    _disc(o, (0.05, -0.04, d + length * 0.5), lens, length * 0.5 + 0.06, rounding=0.04)
    o.torus((0.05, -0.04, z + 0.03), lens - 0.09, 0.04, METAL, turn=about_x(90))
    _disc(o, (0.05, -0.04, z + 0.02), lens - 0.1, 0.06, BLACK)
    o.ellipsoid((0.05, -0.04, z + 0.03), (lens - 0.15, lens - 0.15, 0.11), (0.12, 0.25, 0.5))
    o.ellipsoid((0.12, 0.05, z + 0.11), (0.06, 0.06, 0.04), WHITE)
    o.box((0, h + 0.13, d), (0.2, 0.09, 0.05), STEEL)
    o.box((0, h + 0.13, d + 0.03), (0.16, 0.06, 0.05), WHITE)
    o.cylinder((-w * 0.72, h + 0.03, 0), 0.1, 0.06, o.color((0.86, 0.14, 0.1)), rounding=0.03)
    o.cylinder((w * 0.72, h + 0.02, 0), 0.14, 0.08, METAL, rounding=0.03)
    o.box((0.08, -0.04, -d), (w * 0.48, h * 0.54, 0.03), BLACK)
    o.box((0.08, -0.04, -d - 0.01), (w * 0.42, h * 0.44, 0.03), (0.35, 0.62, 0.78))
    o.box((0, h + 0.1, -d), (0.14, 0.08, 0.05), BLACK)
    for y in (0.12, -0.12):
        _disc(o, (-w * 0.76, y, -d), 0.06, 0.04, METAL)
    for side in (1, -1):
        o.torus((side * (w + 0.04), h * 0.6, 0), 0.08, 0.05, METAL, turn=about_x(90))
    o.crown((0, h + 0.25, 0), 0.26)


def crown(o: Sculptor) -> None:
    """Eight points with pearls, and jewels around the band; the largest is in front."""
    r, h = o.uniform(0.52, 0.58), o.uniform(0.2, 0.25)
    flare, point = o.uniform(0.06, 0.12), o.uniform(0.38, 0.46)
    jewels = ((0.86, 0.08, 0.12), (0.1, 0.3, 0.85), (0.1, 0.62, 0.25), (0.6, 0.15, 0.7))
    o.cylinder((0, h, 0), r, h, top=r + flare, wall=0.12, rounding=0.03)
    o.torus((0, 0.05, 0), r - 0.03, 0.09)
    lean = np.degrees(np.arctan2(flare, 2 * h))
    for k in range(8):
        turn = about_y(45 * k) @ about_x(lean)
        out = np.array([math.sin(math.pi * k / 4), math.cos(math.pi * k / 4)])
        ring = r + flare - 0.06
        grow = flare / (2 * h)
        middle, tip = ring + grow * point * 0.5, ring + grow * point
        size = 1.0 if k else 1.3
        o.prism(
            (out[0] * middle, 2 * h + point * 0.5 - 0.06, out[1] * middle), 0.25, 0.04, point * 0.5, 0.06, turn=turn
        )
        o.ellipsoid((out[0] * tip, 2 * h + point - 0.03, out[1] * tip), 0.08, WHITE)
        wide = r + flare * 0.6
        o.ellipsoid((out[0] * wide, h + 0.05, out[1] * wide), (0.1 * size, 0.12 * size, 0.07), jewels[k % 4], turn=turn)
    o.crown((0, 2 * h + point * 0.62, 0), (r + flare) * 0.58)


def guitar(o: Sculptor) -> None:
    """An acoustic guitar that stands upright on its body."""
    low, high, d = o.uniform(0.58, 0.64), o.uniform(0.43, 0.49), o.uniform(0.18, 0.23)
    neck, waist = o.uniform(0.42, 0.52), 0.73
    shoulder = waist + high
    top = shoulder + neck
    _disc(o, (0, 0, 0), low, d, rounding=0.05)
    _disc(o, (0, waist, 0), high, d, rounding=0.05, blend=0.03)
    _disc(o, (0, 0.47, d), 0.23, 0.02, CREAM)
    _disc(o, (0, 0.47, d + 0.01), 0.18, 0.025, BLACK)
    o.box((0, -0.14, d), (0.25, 0.05, 0.05), (0.2, 0.11, 0.06))
    o.box((0, (shoulder + top) / 2 - 0.08, d * 0.3), (0.12, neck / 2 + 0.12, 0.1), rounding=0.03)
    o.box((0, (shoulder + top) / 2 - 0.17, d * 0.3 + 0.1), (0.125, neck / 2 + 0.2, 0.06), (0.2, 0.11, 0.06))
    for k in range(4):
        o.box((0, top - 0.12 - 0.17 * k, d * 0.3 + 0.15), (0.125, 0.015, 0.02), METAL, rounding=0.005)
    o.prism((0, top + 0.16, d * 0.2), 0.16, 0.24, 0.22, 0.1, rounding=0.03)
    for side in (1, -1):
        for y in (0.07, 0.19, 0.31):
            o.ellipsoid((side * 0.25, top + y, d * 0.2), (0.1, 0.06, 0.07), CREAM)
    for x in (-0.055, 0, 0.055):
        o.capsule((x, -0.14, d + 0.05), (x, top, d * 0.3 + 0.16), 0.014, color=WHITE)
    o.crown((0, top + 0.36, d * 0.2), 0.25)


def umbrella(o: Sculptor) -> None:
    """An open umbrella on its hooked handle."""
    r, cut = o.uniform(0.88, 0.96), o.uniform(0.2, 0.3)
    pole = o.uniform(0.75, 0.9)
    rim = np.sqrt(r * r - cut * cut)
    o.ellipsoid((0, 0, 0), r)
    for k in range(4):
        o.torus((0, 0, 0), r - 0.01, 0.035, arc=170, turn=about_y(45 * k + 22.5) @ about_x(-90))
    o.ellipsoid((0, -0.03, 0), r - 0.08, carve=True)
    o.box((0, cut - 1.5, 0), (1.5, 1.5, 1.5), carve=True)
    for k in range(8):
        x, z = math.sin(math.pi * k / 4), math.cos(math.pi * k / 4)
        o.ellipsoid((rim * x, cut - 0.1, rim * z), 0.28, carve=True)
    o.cylinder((0, r + 0.08, 0), 0.07, 0.12, METAL, top=0.05)
    o.capsule((0, r, 0), (0, -pole, 0), 0.065, color=METAL)
    o.capsule((0, -pole + 0.2, 0), (0, -pole, 0), 0.1, color=LEATHER)
    hook, turn = 0.21, about_y(23)
    o.torus((-hook * turn[0, 0], -pole, -hook * turn[2, 0]), hook, 0.1, LEATHER, arc=180, turn=turn @ about_x(90))
    o.crown((0, r - 0.02, 0), 0.26)


def backpack(o: Sculptor) -> None:
    """A bag with a pocket and two buckles in front, its straps behind."""
    w, h, d = o.uniform(0.46, 0.53), o.uniform(0.56, 0.64), o.uniform(0.25, 0.31)
    o.box((0, 0, 0), (w, h, d), rounding=0.2)
    o.ellipsoid((0, h - 0.18, 0), (w * 0.96, 0.34, d * 0.98), blend=0.1)
    for side in (1, -1):
        o.box((side * w, -h * 0.5, 0), (0.12, h * 0.36, d * 0.7), rounding=0.09)
        o.box((side * w, -h * 0.36, 0), (0.13, 0.05, d * 0.72), TAN)
        x = side * w * 0.5
        o.capsule((x, h * 0.75, -d), (x * 1.1, h * 0.35, -d - 0.2), 0.08, color=TAN)
        o.capsule((x * 1.1, h * 0.35, -d - 0.2), (x * 1.2, -h * 0.3, -d - 0.16), 0.08, color=TAN)
        o.capsule((x * 1.2, -h * 0.3, -d - 0.16), (x * 1.4, -h * 0.75, -d + 0.05), 0.08, color=TAN)
        o.box((side * w * 0.42, h * 0.28, d), (0.06, h * 0.44, 0.05), TAN)
        o.box((side * w * 0.42, h * 0.08, d + 0.04), (0.09, 0.07, 0.04), GOLD)
    o.box((0, -h * 0.5, d + 0.06), (w * 0.74, h * 0.37, 0.14), rounding=0.1)
    o.box((0, -h * 0.28, d + 0.17), (w * 0.56, 0.03, 0.04), BLACK)
    o.box((w * 0.4, -h * 0.36, d + 0.2), (0.035, 0.09, 0.03), GOLD)
    o.torus((0, h + 0.1, 0), 0.16, 0.06, TAN, arc=200, turn=about_x(-90))
    o.crown((0, h + 0.12, 0), 0.27)


OBJECTS: dict[str, Callable[[Sculptor], None]] = {
    "robot": robot,
    "clock": clock,
    "telephone": telephone,
    "typewriter": typewriter,
    "television": television,
    "camera": camera,
    "crown": crown,
    "guitar": guitar,
    "umbrella": umbrella,
    "backpack": backpack,
}
