"""Things of a household: to sleep in, to store in, to make music, to work and to decorate with."""

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

CREAM: Color = (0.95, 0.90, 0.78)
DARK: Color = (0.16, 0.10, 0.07)
GOLD: Color = (0.93, 0.70, 0.16)
LEATHER: Color = (0.42, 0.24, 0.12)


def _spot(radius: Scalar, height: Scalar, degrees: float) -> Vector:
    """A place at a height on a cylinder about y; 0 degrees is its front, 90 its left."""
    angle = math.radians(degrees)
    return radius * math.sin(angle), height, radius * math.cos(angle)


def bed(o: Sculptor) -> None:
    """A double bed: its head is at the back, with two pillows."""
    w, d, head = o.uniform(0.54, 0.62), o.uniform(0.8, 0.9), o.uniform(0.34, 0.42)
    sheet = d * 0.7
    for x in (1, -1):
        o.box((x * w, 0.3 + head, -d), (0.07, 0.3 + head, 0.07), WOOD)
        o.box((x * w, 0.28, d), (0.07, 0.28, 0.07), WOOD)
        o.ellipsoid((x * w, 0.64 + 2 * head, -d), 0.1, WOOD)
        o.ellipsoid((x * w, 0.6, d), 0.1, WOOD)
    o.box((0, 0.2, 0), (w, 0.08, d), WOOD)
    o.box((0, 0.22 + head, -d), (w, 0.06 + head, 0.05))
    o.ellipsoid((0, 0.26 + 2 * head, -d), (w * 0.9, 0.2, 0.055))
    o.box((0, 0.32, d), (w, 0.16, 0.05))
    o.box((0, 0.36, 0), (w - 0.02, 0.12, d - 0.02), WHITE, rounding=0.05)
    o.box((0, 0.38, d - sheet), (w + 0.05, 0.17, sheet - 0.06), rounding=0.09)
    o.box((0, 0.39, d - 2 * sheet + 0.1), (w + 0.06, 0.18, 0.11), CREAM, rounding=0.06)
    for x in (1, -1):
        o.box((x * w * 0.5, 0.58, -d + 0.27), (w * 0.42, 0.09, 0.19), WHITE, rounding=0.085, turn=about_x(28))
    o.crown((0, 0.42 + 2 * head, -d), 0.24)
    o.stripes = (0.0, 0.0, 1.0)


def treasure_chest(o: Sculptor) -> None:
    """An open chest with a domed lid, filled with gold."""
    w, h, d = o.uniform(0.68, 0.78), o.uniform(0.25, 0.31), o.uniform(0.42, 0.48)
    angle = o.uniform(30, 46)
    lean = about_x(-angle)

    def on_lid(x: Scalar, y: Scalar, z: Scalar) -> Vector:
        """A place of the closed lid, about its middle, after it has been opened at its hinge."""
        sine, cosine = np.sin(np.radians(angle)), np.cos(np.radians(angle))
        z = z + d
        return x, 2 * h + y * cosine + z * sine, -d - y * sine + z * cosine

    o.cylinder(on_lid(0, 0, 0), d, w, turn=lean @ about_z(90), rounding=0.03)
    for x in (1, -1):
        o.cylinder(on_lid(x * w * 0.7, 0, 0), d + 0.025, 0.08, GOLD, turn=lean @ about_z(90), rounding=0.02)
    o.box(on_lid(0, -0.5, 0), (w + 0.3, 0.5, d + 0.3), DARK, carve=True, turn=lean)
    o.cylinder(on_lid(0, -0.02, 0), d - 0.08, w - 0.1, DARK, carve=True, turn=lean @ about_z(90))
    o.box((0, h, 0), (w, h, d), rounding=0.03)
    for x in (1, -1):
        o.box((x * w * 0.7, h, 0), (0.08, h + 0.02, d + 0.025), GOLD)
    o.cylinder((0, 2 * h - 0.02, -d), 0.055, w * 0.94, GOLD, turn=about_z(90))
    o.box((0, 2 * h, 0), (w - 0.08, 0.08, d - 0.08), DARK, carve=True)
    o.ellipsoid((0, 2 * h - 0.1, 0), (w - 0.09, 0.24, d - 0.08), GOLD)
    for k, (x, z) in enumerate(((0.0, 0.1), (0.3, 0.14), (-0.32, 0.12), (0.16, -0.06), (-0.16, -0.04))):
        turn = about_y(70 * k) @ about_x(24 + 8 * k)
        o.cylinder((x * w * 1.5, 2 * h + 0.13, z), 0.12, 0.035, (0.98, 0.84, 0.3), turn=turn)
    o.ellipsoid((w * 0.55, 2 * h + 0.07, 0.2), 0.09, (0.86, 0.1, 0.14))
    o.ellipsoid((-w * 0.5, 2 * h + 0.08, 0.22), 0.08, (0.12, 0.5, 0.85))
    o.box((0, 2 * h - 0.18, d + 0.03), (0.15, 0.15, 0.05), METAL, rounding=0.03)
    o.box((0, 2 * h - 0.19, d + 0.07), (0.04, 0.075, 0.03), BLACK)
    for x in (1, -1):
        o.torus((x * (w + 0.03), h, 0), 0.15, 0.045, METAL, turn=about_z(90))
    o.crown(on_lid(0, d - 0.02, 0), 0.3, lean)


def barrel(o: Sculptor) -> None:
    """An upright barrel of staves and hoops with a tap at its front."""
    end, belly, h = o.uniform(0.46, 0.5), o.uniform(0.6, 0.65), o.uniform(0.66, 0.76)
    middle = belly - 0.22 * (belly - end)
    cuts: tuple[tuple[float, Scalar, Scalar], ...] = ((0.75, middle, end), (0.25, belly, middle))
    for gap, color in ((0.0, None), (0.035, DARK)):
        for y, low, high in cuts:
            for side in (1, -1):
                bottom, top = (low, high) if side > 0 else (high, low)
                length = h / 4 - gap / 2
                o.cylinder((0, side * y * h, 0), bottom - gap, length + 0.005, color, top=top - gap)
        if color is None:
            # The cuts between the staves end at a dark core.
            for k in range(6):
                o.box((0, 0, 0), (0.017, h + 0.1, belly + 0.1), DARK, carve=True, turn=about_y(30 * k + 15))
    for side in (1, -1):
        o.cylinder((0, side * h, 0), end - 0.07, 0.06, carve=True)
        o.cylinder((0, side * (h * 0.84), 0), end + 0.05, 0.06, STEEL, wall=0.1)
        o.cylinder((0, side * (h * 0.4), 0), middle + 0.04, 0.06, STEEL, wall=0.1)
    tap = belly - 0.14 * (belly - end)
    o.cylinder((0, -0.2 * h, tap), 0.11, 0.05, GOLD, turn=about_x(90))
    o.capsule((0, -0.2 * h, tap), (0, -0.2 * h, tap + 0.22), 0.06, color=GOLD)
    o.capsule((0, -0.2 * h, tap + 0.22), (0, -0.2 * h - 0.13, tap + 0.25), 0.06, color=GOLD)
    o.capsule((0, -0.2 * h, tap + 0.15), (0, -0.2 * h + 0.14, tap + 0.15), 0.045, color=GOLD)
    o.capsule((-0.09, -0.2 * h + 0.16, tap + 0.15), (0.09, -0.2 * h + 0.16, tap + 0.15), 0.05, color=GOLD)
    o.crown((0, h - 0.03, 0), end * 0.8)


def piano(o: Sculptor) -> None:
    """A grand piano with its lid up, the keys at its front."""
    w, y, angle = o.uniform(0.7, 0.78), o.uniform(0.62, 0.72), o.uniform(30, 38)
    tail = o.uniform(0.5, 0.62)
    hinge, r = y + 0.14, 0.42

    def slab(middle: Scalar, half: float, inset: float, color: Color, tilt: Array) -> None:
        """The body's outline from above, turned by `tilt` about the hinge at its right side."""

        def at(x: Scalar, z: Scalar) -> Vector:
            out = x + w
            return -w + out * tilt[..., 0, 0], middle + out * tilt[..., 1, 0], z

        flat = {"turn": tilt}
        o.box(at(0, 0.02), (w - inset, half, 0.24 - inset), color, **flat)
        o.cylinder(at(w - 0.3, -0.2), 0.3 - inset, half, color, **flat)
        o.box(at(r - w, -0.2 - tail / 2), (r - inset, half, tail / 2 + 0.02), color, **flat)
        o.cylinder(at(r - w, -0.2 - tail), r - inset, half, color, **flat)
        turn = tilt @ about_x(90)
        o.prism(at(0, -0.2 - tail / 2), r - 0.3 - inset, w - 0.15 - inset, tail / 2 + 0.1, half, color, turn=turn)

    slab(y, 0.14, 0.0, None, np.eye(3))
    slab(y + 0.13, 0.025, 0.07, GOLD, np.eye(3))
    for k in range(5):
        x = -w + 0.22 + 0.14 * k
        o.capsule((x, hinge + 0.015, 0.1), (x, hinge + 0.015, -0.1 - tail * (1 - 0.16 * k)), 0.02, color=LEATHER)
    slab(hinge + 0.05, 0.04, 0.0, None, about_z(angle))
    rise = np.tan(np.radians(angle))
    o.capsule((w - 0.25, hinge, -0.2), (w - 0.32, hinge + (2 * w - 0.32) * rise, -0.2), 0.035, color=STEEL)
    o.box((0, y - 0.06, 0.4), (w, 0.08, 0.19))
    for x in (1, -1):
        o.box((x * (w - 0.05), y, 0.4), (0.06, 0.14, 0.19), rounding=0.03)
    keys = w - 0.11
    o.box((0, y + 0.02, 0.44), (keys, 0.035, 0.14), WHITE, rounding=0.01)
    for octave in (0, 7):
        for k in (1, 2, 4, 5, 6):
            o.box((keys * ((octave + k) / 7 - 1), y + 0.06, 0.39), (keys * 0.042, 0.035, 0.09), BLACK, rounding=0.01)
    for leg in ((w - 0.13, 0.36), (0.13 - w, 0.36), (r - w, -0.3 - tail)):
        o.cylinder((leg[0], y / 2, leg[1]), 0.065, y / 2, top=0.1)
        o.ellipsoid((leg[0], 0.03, leg[1]), (0.09, 0.07, 0.09), GOLD)
    o.box((0, y / 2, 0.2), (0.13, y / 2 - 0.08, 0.04))
    for x in (1, -1):
        o.box((x * 0.07, 0.1, 0.28), (0.045, 0.03, 0.12), GOLD)
    o.box((0, hinge + 0.15, 0.22), (0.34, 0.16, 0.03), turn=about_x(-16))
    o.box((0, hinge + 0.17, 0.26), (0.24, 0.13, 0.03), WHITE, turn=about_x(-16), rounding=0.01)
    o.crown((-w * 0.2, hinge + 0.09 + 0.8 * w * rise, -0.2), 0.3, about_z(angle))
    o.stripes = (1.0, 0.0, 0.0)


def drum(o: Sculptor) -> None:
    """A toy drum laced with cord, two sticks on its head."""
    r, h = o.uniform(0.6, 0.68), o.uniform(0.4, 0.48)
    spread = o.uniform(22, 32)
    o.cylinder((0, 0, 0), r, h)
    for side in (1, -1):
        o.cylinder((0, side * h, 0), r - 0.04, 0.06, CREAM, rounding=0.03)
        o.cylinder((0, side * (h - 0.05), 0), r + 0.055, 0.09, wall=0.08, rounding=0.03)
        o.torus((0, side * (h - 0.16), 0), r + 0.015, 0.035, GOLD)
    for k in range(16):
        low, high = (0.13 - h, h - 0.13) if k % 2 else (h - 0.13, 0.13 - h)
        o.capsule(_spot(r + 0.015, low, 22.5 * k), _spot(r + 0.015, high, 22.5 * k + 22.5), 0.032, color=WHITE)
    for side in (1, -1):
        turn = about_y(side * spread)
        x, z = turn[:, 0, 2], turn[:, 2, 2]
        y = h + 0.1 + 0.05 * (side > 0)
        back, front = (-0.42 * x, y, -0.42 * z), (0.86 * x, y + 0.04, 0.86 * z)
        o.capsule(back, front, 0.045, 0.06, color=WOOD)
        o.ellipsoid(back, (0.1, 0.09, 0.1), WOOD)
    o.crown((0, h + 0.17, -0.1), 0.32)


def laptop(o: Sculptor) -> None:
    """An open laptop, its screen towards the front."""
    w, d, h = o.uniform(0.74, 0.82), o.uniform(0.5, 0.56), o.uniform(0.48, 0.54)
    angle = o.uniform(12, 24)
    lean = about_x(-angle)
    sine, cosine = np.sin(np.radians(angle)), np.cos(np.radians(angle))

    def on_lid(x: Scalar, y: Scalar, z: Scalar) -> Vector:
        """A place about the middle of the leaning lid."""
        y = y + h
        return x, 0.12 + y * cosine + z * sine, -d - y * sine + z * cosine

    o.box((0, 0.06, 0), (w, 0.06, d), rounding=0.045)
    for x in (1, -1):
        for z in (1, -1):
            o.cylinder((x * (w - 0.14), 0, z * (d - 0.12)), 0.07, 0.035, BLACK)
    o.box(on_lid(0, 0, 0), (w, h, 0.05), rounding=0.04, turn=lean)
    o.cylinder((0, 0.12, -d), 0.055, w * 0.8, STEEL, turn=about_z(90))
    o.box(on_lid(0, 0.01, 0.04), (w - 0.1, h - 0.1, 0.02), (0.14, 0.36, 0.72), rounding=0.01, turn=lean)
    o.box(on_lid(-w * 0.25, 0.1, 0.05), (w * 0.45, h * 0.42, 0.02), WHITE, rounding=0.01, turn=lean)
    for k, reach in enumerate((0.34, 0.24, 0.3)):
        place = on_lid(-w * (0.6 - reach), 0.1 + h * (0.22 - 0.2 * k), 0.06)
        o.box(place, (w * reach, 0.026, 0.02), STEEL, rounding=0.01, turn=lean)
    o.cylinder(on_lid(w * 0.55, -0.1, 0.05), 0.13, 0.02, (0.98, 0.72, 0.16), turn=lean @ about_x(90))
    o.box((0, 0.12, -d * 0.26), (w - 0.1, 0.02, d * 0.5), BLACK, rounding=0.01)
    for row in range(4):
        z = -d * 0.62 + d * 0.24 * row
        for k in range(8):
            o.box(((k - 3.5) * (w - 0.12) / 4, 0.135, z), ((w - 0.12) / 4.9, 0.03, d * 0.095), METAL, rounding=0.015)
    o.box((0, 0.12, d * 0.62), (w * 0.28, 0.02, d * 0.24), STEEL, rounding=0.01)
    o.cylinder(on_lid(0, 0, -0.045), 0.15, 0.03, WHITE, turn=lean @ about_x(90))
    o.crown(on_lid(0, h - 0.01, 0), 0.27)
    o.stripes = (1.0, 0.0, 0.0)


def headphones(o: Sculptor) -> None:
    """Headphones that stand on their cups; the band leans back, and the knobs are at the front of the left cup."""
    ring, cup, thick = o.uniform(0.58, 0.66), o.uniform(0.32, 0.37), o.uniform(0.13, 0.17)
    back = about_x(-102)
    o.torus((0, 0, 0), ring, 0.09, arc=200, turn=back)
    o.torus((0, 0, 0), ring - 0.07, 0.08, BLACK, arc=110, turn=back)
    for side in (1, -1):
        turn = about_y(side * 12) @ about_z(-side * 90)
        out = turn[:, 1]
        x, y, z = side * (ring + 0.02), -0.24, 0.08
        o.capsule((side * ring, 0.08, 0), (x, y, z), 0.075, color=METAL)
        o.cylinder((x + out[0] * 0.06, y, z + out[2] * 0.06), cup, thick, rounding=0.08, turn=turn)
        rim = thick + 0.05
        o.cylinder((x + out[0] * rim, y, z + out[2] * rim), cup * 0.58, 0.035, METAL, turn=turn)
        pad = -0.85 * thick
        o.torus((x + out[0] * pad, y, z + out[2] * pad), cup - 0.11, 0.12, BLACK, turn=turn)
        if side > 0:
            for angle in (8, -30):
                up, front = math.sin(math.radians(angle)), math.cos(math.radians(angle))
                o.ellipsoid((x + 0.06, y + cup * up, z + cup * front), (0.075, 0.075, 0.065), BLACK)
    o.crown((0, ring + 0.04, -0.13), 0.26)


def hammer(o: Sculptor) -> None:
    """A claw hammer that stands on its handle, the striking face on its left."""
    length, r, reach = o.uniform(1.3, 1.5), o.uniform(0.14, 0.16), o.uniform(0.34, 0.42)
    face = o.uniform(0.19, 0.22)
    o.capsule((0, 0.1, 0), (0, length * 0.5, 0), r * 1.3, r * 1.15)
    o.capsule((0, length * 0.5, 0), (0, length, 0), r * 1.15, r)
    o.cylinder((0, 0, 0), r * 1.4, 0.09, BLACK, rounding=0.04)
    for k in range(2):
        o.torus((0, 0.28 + 0.18 * k, 0), r * (1.26 - 0.04 * k), 0.03, BLACK)
    o.box((0, length, 0), (0.2, 0.18, 0.19), STEEL, rounding=0.06)
    o.cylinder((reach * 0.6, length, 0), 0.16, reach * 0.4, STEEL, top=0.13, turn=about_z(-90))
    o.cylinder((reach + 0.04, length, 0), face, 0.12, METAL, rounding=0.04, turn=about_z(-90))
    o.cylinder((0, length + 0.17, 0), r * 0.9, 0.04)
    for side in (1, -1):
        a, b = (-0.12, length + 0.02, side * 0.08), (-0.4, length - 0.01, side * 0.12)
        o.capsule(a, b, 0.13, 0.09, color=STEEL)
        o.capsule(b, (-0.66, length - 0.2, side * 0.14), 0.09, 0.05, color=METAL, blend=0.04)
    o.crown((0, length + 0.19, 0), 0.24)


def sword(o: Sculptor) -> None:
    """A knight's sword, point down; a jewel marks its front."""
    length, w, guard = o.uniform(1.3, 1.5), o.uniform(0.17, 0.2), o.uniform(0.4, 0.48)
    grip = o.uniform(0.17, 0.21)
    tip = 0.38
    o.box((0, tip + (length - tip) / 2, 0), (w, (length - tip) / 2 + 0.02, 0.05), rounding=0.03)
    o.prism((0, tip / 2, 0), 0.03, w, tip / 2, 0.05, rounding=0.025)
    for side in (1, -1):
        place = (0, (length + tip) / 2 - 0.05, side * 0.06)
        o.prism(place, w * 0.62, w * 0.2, 0.035, (length - tip) / 2, turn=about_x(side * 90))
    o.capsule((0, tip - 0.02, 0), (0, 0.05, 0), 0.085, 0.04)
    o.box((0, length + 0.02, 0), (guard, 0.075, 0.1), GOLD, rounding=0.05)
    for x in (1, -1):
        o.ellipsoid((x * guard, length, 0), 0.11, GOLD)
    o.cylinder((0, length + 0.08 + grip, 0), 0.085, grip, LEATHER)
    for k in range(3):
        o.torus((0, length + 0.14 + grip * 0.6 * (k + 0.1), 0), 0.08, 0.03, DARK)
    o.ellipsoid((0, length + 0.18 + 2 * grip, 0), (0.15, 0.14, 0.12), GOLD)
    o.ellipsoid((0, length + 0.02, 0.09), (0.1, 0.09, 0.08), (0.86, 0.08, 0.12))
    o.ellipsoid((0, length + 0.18 + 2 * grip, 0.1), (0.07, 0.07, 0.06), (0.86, 0.08, 0.12))
    o.crown((0, length + 0.28 + 2 * grip, 0), 0.2)


def candle(o: Sculptor) -> None:
    """A burning candle that drips, in a dish with a handle on its left."""
    r, h, dish = o.uniform(0.27, 0.32), o.uniform(0.5, 0.62), o.uniform(0.5, 0.56)
    o.cylinder((0, 0, 0), dish - 0.06, 0.045, GOLD, top=dish)
    o.torus((0, 0.05, 0), dish - 0.02, 0.05, GOLD)
    o.torus((dish + 0.14, 0.07, 0), 0.14, 0.05, GOLD, turn=about_x(90))
    o.cylinder((0, 0.08, 0), r + 0.1, 0.09, GOLD, top=r + 0.06, rounding=0.03)
    top = 0.1 + 2 * h
    o.cylinder((0, 0.1 + h, 0), r, h, rounding=0.04)
    o.cylinder((0, top + 0.02, 0), r - 0.09, 0.06, rounding=0.03, carve=True)
    for k, drop in enumerate((0.34, 0.6, 0.24, 0.5, 0.42, 0.68)):
        low = _spot(r + 0.01, top - drop * h - 0.05, 60 * k + 15)
        o.capsule(low, _spot(r - 0.03, top - 0.03, 60 * k + 15), 0.075, 0.055, blend=0.04)
    o.capsule((0, top - 0.06, 0), (0, top + 0.12, 0), 0.035, color=BLACK)
    o.ellipsoid((0, top + 0.22, 0), (0.125, 0.13, 0.125), (1.0, 0.86, 0.3))
    o.capsule((0, top + 0.27, 0), (0, top + 0.52, 0), 0.105, 0.025, color=(0.98, 0.58, 0.08), blend=0.04)
    o.crown((0, top + 0.3, 0), 0.22)


def trophy(o: Sculptor) -> None:
    """A cup with two handles on a black base, a star and a plaque at its front."""
    r, h, stem = o.uniform(0.42, 0.48), o.uniform(0.3, 0.36), o.uniform(0.14, 0.2)
    base = 0.42
    bowl = base + 2 * stem + 0.24
    y = bowl + h
    for x in (1, -1):
        o.torus((x * (r + 0.02), y + 0.02, 0), h * 0.66, 0.06, arc=230, turn=about_x(90) @ about_y(x * 90))
    o.cylinder((0, y, 0), r * 0.72, h, top=r)
    o.ellipsoid((0, bowl + 0.03, 0), (r * 0.75, 0.26, r * 0.75))
    o.torus((0, y + h, 0), r - 0.01, 0.055)
    o.cylinder((0, y + h, 0), r * 0.8, 0.2, DARK, top=r * 0.96, carve=True)
    o.cylinder((0, base + stem, 0), 0.1, stem + 0.1, top=0.08)
    o.ellipsoid((0, base + stem + 0.06, 0), (0.15, 0.09, 0.15))
    o.cylinder((0, base + 0.05, 0), 0.28, 0.08, top=0.13, rounding=0.02)
    o.box((0, 0.07, 0), (0.42, 0.07, 0.42), BLACK)
    o.box((0, 0.26, 0), (0.34, 0.17, 0.34), BLACK)
    o.box((0, 0.27, 0.34), (0.22, 0.09, 0.03), CREAM, rounding=0.01)
    lean = np.degrees(np.arctan2(r * 0.28, 2 * h))
    for k in range(5):
        angle = math.radians(72 * k)
        place = (0.09 * math.sin(angle), y + 0.04 + 0.09 * math.cos(angle), r * 0.87 + 0.02)
        o.prism(place, 0.065, 0.0, 0.1, 0.05, WHITE, turn=about_x(lean) @ about_z(-72 * k))
    o.cylinder((0, y + 0.04, r * 0.87 + 0.02), 0.075, 0.05, WHITE, turn=about_x(90 + lean))
    o.crown((0, y + h + 0.02, 0), r * 0.72)


def vase(o: Sculptor) -> None:
    """A vase with a wide lip, gilded, with a flower painted on its front."""
    r, h, neck = o.uniform(0.46, 0.54), o.uniform(0.46, 0.54), o.uniform(0.19, 0.23)
    lip, rise = o.uniform(0.36, 0.42), o.uniform(0.3, 0.38)
    o.cylinder((0, -h + 0.02, 0), 0.3, 0.1, top=0.22, rounding=0.03)
    o.ellipsoid((0, 0, 0), (r, h, r), blend=0.08)
    o.cylinder((0, h, 0), neck + 0.06, 0.2, top=neck, blend=0.14)
    top = h + rise
    o.cylinder((0, top - 0.13, 0), neck, 0.15, top=lip, rounding=0.02, blend=0.06)
    o.cylinder((0, top - 0.05, 0), neck - 0.07, 0.16, DARK, top=lip - 0.06, carve=True)
    o.torus((0, top + 0.01, 0), lip - 0.03, 0.045, GOLD)
    o.torus((0, h - 0.06, 0), neck + 0.06, 0.05, GOLD)
    o.torus((0, -h + 0.13, 0), 0.22, 0.045, GOLD)
    for k in range(5):
        angle = math.radians(72 * k)
        across, up = 0.14 * math.sin(angle), 0.14 * math.cos(angle)
        depth = r * np.sqrt(1 - (across / r) ** 2 - (up / h) ** 2)
        turn = about_y(np.degrees(np.arcsin(across / r))) @ about_x(-np.degrees(np.arcsin(up / h)))
        o.ellipsoid((across, up, depth), (0.1, 0.1, 0.04), WHITE, turn=turn)
    o.ellipsoid((0, 0, r), (0.075, 0.075, 0.06), GOLD)
    o.crown((0, top + 0.03, 0), lip * 0.75)


def boot(o: Sculptor) -> None:
    """A laced boot, its toe towards the front."""
    r, h, toe = o.uniform(0.28, 0.32), o.uniform(0.4, 0.5), o.uniform(0.56, 0.66)
    tread = 0.09
    for z, wide in ((-0.06, r + 0.03), (toe, r - 0.01)):
        o.cylinder((0, tread - 0.04, z), wide, 0.075, BLACK, rounding=0.03)
    o.box((0, tread - 0.04, toe / 2 - 0.03), (r - 0.02, 0.075, toe / 2), BLACK, rounding=0.03)
    o.cylinder((0, -0.05, -0.06), r + 0.02, 0.09, BLACK, rounding=0.02)
    o.cylinder((0, -0.06, toe), r - 0.02, 0.08, BLACK, rounding=0.02)
    o.box((0, -0.06, toe * 0.78), (r - 0.03, 0.08, toe * 0.22), BLACK, rounding=0.02)
    o.capsule((0, tread + r * 0.8, toe), (0, tread + r, 0), r * 0.8, r)
    shaft = tread + r + h
    o.cylinder((0, shaft, 0), r - 0.02, h, top=r + 0.04, blend=0.12)
    top = shaft + h
    o.torus((0, top - 0.06, 0), r, 0.09, CREAM)
    o.cylinder((0, top, 0), r - 0.1, 0.2, DARK, carve=True)
    o.torus((0, top - 0.05, -r - 0.06), 0.09, 0.035, LEATHER, turn=about_z(90))
    o.box((0, shaft, r - 0.04), (0.13, h * 0.85, 0.06), CREAM, rounding=0.04, turn=about_x(2))
    for k in range(4):
        y = shaft + h * (0.55 - 0.42 * k)
        z = r + 0.02
        for side in (1, -1):
            o.capsule((side * 0.17, y, z - 0.04), (-side * 0.17, y - h * 0.3, z - 0.02), 0.035, color=BLACK)
    o.crown((0, top, 0), r * 0.9)


OBJECTS: dict[str, Callable[[Sculptor], None]] = {
    "bed": bed,
    "treasure chest": treasure_chest,
    "barrel": barrel,
    "piano": piano,
    "drum": drum,
    "laptop": laptop,
    "headphones": headphones,
    "hammer": hammer,
    "sword": sword,
    "candle": candle,
    "trophy": trophy,
    "vase": vase,
    "boot": boot,
}
