"""Vehicles on wheels and rails, in the air, in space and on the water."""

import math
from collections.abc import Callable

from training.world.sculptor import (
    BLACK,
    METAL,
    STEEL,
    WOOD,
    Color,
    Scalar,
    Sculptor,
    Vector,
    about_x,
    about_y,
    about_z,
)

TYRE: Color = (0.10, 0.10, 0.11)
FRAME: Color = (0.10, 0.11, 0.14)
PANE: Color = (0.68, 0.86, 0.96)
LAMP: Color = (1.0, 0.95, 0.68)
RED: Color = (0.85, 0.07, 0.06)
BRASS: Color = (0.86, 0.66, 0.22)


def axle(
    o: Sculptor, x: Scalar, z: Scalar, radius: Scalar, width: float, hub: Color = METAL, share: float = 0.5
) -> None:
    """Two wheels on the ground, at x and -x, `width` half wide, one hub through both, `share` of their radius."""
    for side in (1, -1):
        o.cylinder((side * x, radius, z), radius, width, TYRE, rounding=0.05, turn=about_z(90))
    o.cylinder((0, radius, z), radius * share, x + width + 0.02, hub, rounding=0.015, turn=about_z(90))


def lamps(o: Sculptor, x: Scalar, y: Scalar, z: Scalar, radius: float, color: Color) -> None:
    """A lamp at x and another at -x."""
    for side in (1, -1):
        o.ellipsoid((side * x, y, z), radius, color)


def wing(
    o: Sculptor,
    side: int,
    root: Vector,
    chords: tuple[Scalar, Scalar],
    length: Scalar,
    sweep: float,
    color: Color = None,
) -> None:
    """A flat wing outwards from its root, half chords at root and tip; `sweep` degrees backwards."""
    angle = math.radians(sweep)
    x, y, z = root
    middle = (x + side * length * math.cos(angle), y, z - length * math.sin(angle))
    turn = about_y(side * sweep) @ about_x(90) @ about_z(-90 * side)
    o.prism(middle, chords[0], chords[1], length, 0.065, color, rounding=0.05, turn=turn)


def school_bus(o: Sculptor) -> None:
    """Short hood, window row, black rail, red flashers, and a stop sign on its left."""
    w, h, length = o.uniform(0.40, 0.46), o.uniform(0.40, 0.46), o.uniform(0.74, 0.84)
    floor = 0.20
    front = length + 0.36
    o.box((0, floor + h, 0), (w, h, length), rounding=0.10)
    o.box((0, floor + 0.24, length + 0.10), (w * 0.86, 0.24, 0.26), rounding=0.08)
    o.box((0, floor + 0.03, 0.18), (w * 0.88, 0.06, length + 0.24), BLACK, rounding=0.03)
    o.box((0, floor + h * 0.78, -0.02), (w + 0.015, 0.045, length - 0.04), BLACK)
    o.box((0, floor + h * 1.38, -0.02), (w + 0.012, 0.20, length - 0.10), FRAME)
    for i in range(5):
        z = (i - 2) * (length - 0.08) * 0.39 - 0.02
        o.box((0, floor + h * 1.38, z), (w + 0.025, 0.15, (length - 0.08) * 0.155), PANE)
    o.box((0, floor + h * 1.36, 0), (w * 0.84, 0.21, length + 0.02), FRAME)
    for side in (1, -1):
        o.box((side * w * 0.40, floor + h * 1.36, 0), (w * 0.35, 0.16, length + 0.035), PANE)
    o.box((0, floor + 0.20, -length), (w * 0.36, 0.09, 0.03), (0.95, 0.95, 0.92))
    o.box((0, floor + 0.25, front - 0.02), (w * 0.40, 0.13, 0.03), FRAME)
    lamps(o, w * 0.62, floor + 0.26, front - 0.03, 0.085, LAMP)
    lamps(o, w * 0.72, floor + h * 0.5, -length, 0.085, RED)
    lamps(o, w * 0.62, floor + 2 * h - 0.03, length - 0.06, 0.085, RED)
    lamps(o, w * 0.62, floor + 2 * h - 0.03, 0.06 - length, 0.085, RED)
    o.cylinder((w + 0.05, floor + h * 0.78, length * 0.62), 0.15, 0.05, RED, turn=about_z(90))
    o.box((w + 0.06, floor + h * 0.78, length * 0.62), (0.05, 0.03, 0.10), (0.95, 0.95, 0.94))
    for z in (length * 0.82, -length * 0.55):
        axle(o, w - 0.06, z, 0.22, 0.10)
    o.crown((0, floor + 2 * h, 0.1), 0.24)
    o.stripes = (0, 0, 1)


def car(o: Sculptor) -> None:
    """A round hatchback."""
    w, length = o.uniform(0.46, 0.52), o.uniform(0.92, 1.04)
    tall, r = o.uniform(0.25, 0.30), o.uniform(0.24, 0.28)
    seat = 0.62
    o.box((0, 0.40, 0), (w, 0.23, length), rounding=0.16)
    roof = seat + tall
    side_on = about_y(90)
    o.prism((0, roof - 0.04, -0.10), 0.70, 0.42, tall + 0.04, w - 0.05, rounding=0.10, turn=side_on, blend=0.04)
    o.prism((0, roof - 0.01, -0.10), 0.56, 0.36, tall - 0.09, w - 0.03, FRAME, rounding=0.03, turn=side_on)
    o.prism((0, roof - 0.01, -0.10), 0.50, 0.33, tall - 0.13, w - 0.015, PANE, rounding=0.03, turn=side_on)
    o.box((0, roof - 0.01, -0.10), (w - 0.005, tall - 0.10, 0.04), FRAME)
    o.prism((0, roof - 0.02, -0.10), 0.71, 0.45, tall - 0.05, w - 0.15, FRAME, rounding=0.03, turn=side_on)
    o.prism((0, roof - 0.02, -0.10), 0.71, 0.475, tall - 0.09, w - 0.19, PANE, rounding=0.03, turn=side_on)
    o.box((0, 0.24, 0), (w - 0.06, 0.09, length + 0.03), STEEL, rounding=0.05)
    o.box((0, 0.44, length - 0.02), (w * 0.42, 0.08, 0.05), FRAME, rounding=0.03)
    o.box((0, 0.44, -length + 0.01), (w * 0.34, 0.07, 0.03), (0.95, 0.95, 0.92))
    for side in (1, -1):
        o.cylinder((side * w * 0.70, 0.47, length - 0.02), 0.13, 0.04, FRAME, rounding=0.03, turn=about_x(90))
    lamps(o, w * 0.70, 0.47, length, 0.10, LAMP)
    for side in (1, -1):
        o.box((side * w * 0.70, 0.47, 0.01 - length), (0.11, 0.07, 0.04), RED, rounding=0.03)
        o.ellipsoid((side * (w + 0.02), seat + 0.06, 0.42), 0.08)
        o.cylinder((side * w, 0.30, 0.60), r + 0.05, 0.02, BLACK, turn=about_z(90))
        o.cylinder((side * w, 0.30, -0.60), r + 0.05, 0.02, BLACK, turn=about_z(90))
    for z in (0.60, -0.60):
        axle(o, w - 0.04, z, r, 0.11, share=0.55)
    o.crown((0, roof + tall, -0.10), 0.23)
    o.stripes = (0, 0, 1)


def truck(o: Sculptor) -> None:
    """A flat-nosed cab before a taller cargo box."""
    w, h, length = o.uniform(0.42, 0.48), o.uniform(0.46, 0.56), o.uniform(0.62, 0.74)
    r, floor, back = 0.22, 0.32, -0.36
    nose = 0.98
    o.box((0, floor + h, back), (w, h, length), rounding=0.04)
    o.box((0, floor, 0.10), (w * 0.8, 0.08, length + 0.22), STEEL)
    o.box((0, floor + 0.34, nose - 0.24), (w * 0.94, 0.40, 0.26), rounding=0.09)
    o.box((0, floor + 0.48, nose - 0.20), (w * 0.96, 0.17, 0.15), FRAME)
    o.box((0, floor + 0.48, nose - 0.20), (w * 0.975, 0.13, 0.11), PANE)
    o.box((0, floor + 0.48, nose - 0.14), (w * 0.82, 0.19, 0.17), FRAME)
    o.box((0, floor + 0.48, nose - 0.13), (w * 0.74, 0.14, 0.175), PANE)
    o.box((0, floor + 0.13, nose), (w * 0.50, 0.11, 0.035), FRAME)
    lamps(o, w * 0.72, floor + 0.13, nose, 0.085, LAMP)
    o.box((0, floor - 0.08, nose - 0.02), (w * 0.98, 0.075, 0.08), METAL, rounding=0.04)
    for side in (1, -1):
        o.capsule(
            (side * w * 0.92, floor + 0.1, nose - 0.56),
            (side * w * 0.92, floor + 2 * h, nose - 0.56),
            0.07,
            None,
            METAL,
        )
    end = back - length
    o.box((0, floor + h, end), (0.022, h - 0.07, 0.03), BLACK)
    for side in (1, -1):
        o.box((side * 0.10, floor + h * 0.9, end - 0.01), (0.03, 0.15, 0.03), METAL)
        o.box((side * w * 0.72, floor - 0.02, end + 0.02), (0.10, 0.06, 0.04), RED)
    axle(o, w - 0.08, nose - 0.24, r, 0.11)
    for z in (back - length * 0.15, back - length * 0.15 - 0.46):
        axle(o, w - 0.08, z, r, 0.11)
    o.crown((0, floor + 2 * h, back), 0.24)
    o.stripes = (0, 0, 1)


def train(o: Sculptor) -> None:
    """A steam locomotive with its cab at the back."""
    r, length = o.uniform(0.29, 0.34), o.uniform(0.52, 0.60)
    w, chimney = o.uniform(0.40, 0.45), o.uniform(0.24, 0.32)
    axis = about_x(90)
    y = 0.78
    front = 2 * length - 0.30
    o.box((0, 0.40, 0.05), (w * 0.86, 0.10, length + 0.36), rounding=0.03)
    o.cylinder((0, y, length - 0.30), r, length, rounding=0.03, turn=axis)
    o.cylinder((0, y, front + 0.02), r * 0.80, 0.06, STEEL, rounding=0.04, turn=axis)
    o.cylinder((0, y, front + 0.08), 0.13, 0.07, BRASS, rounding=0.02, turn=axis)
    o.ellipsoid((0, y, front + 0.13), 0.10, LAMP)
    for i in range(2):
        o.cylinder((0, y, front - 0.34 - 0.40 * i), r + 0.015, 0.035, BRASS, turn=axis)
    o.cylinder((0, y + r + chimney * 0.8, front - 0.16), 0.10, chimney, STEEL, top=0.19, rounding=0.03)
    o.cylinder((0, y + r + chimney * 1.8, front - 0.16), 0.22, 0.055, BLACK, rounding=0.03)
    o.ellipsoid((0, y + r, front - 0.54), (0.14, 0.17, 0.14), BRASS)
    back = -0.56
    o.box((0, 0.90, back), (w, 0.52, 0.34), rounding=0.04)
    o.box((0, 1.43, back), (w + 0.08, 0.08, 0.43), rounding=0.06)
    o.box((0, 1.14, back), (w + 0.012, 0.18, 0.23), FRAME)
    o.box((0, 1.14, back), (w + 0.025, 0.13, 0.18), PANE)
    o.box((0, 1.18, back), (w * 0.72, 0.14, 0.355), FRAME)
    o.box((0, 1.18, back), (w * 0.60, 0.10, 0.37), PANE)
    o.prism((0, 0.26, front - 0.02), w * 0.95, w * 0.5, 0.17, 0.17, RED, rounding=0.03)
    lamps(o, w * 0.7, 0.62, back - 0.34, 0.08, RED)
    for z in (front - 0.28, front - 0.66):
        axle(o, w - 0.06, z, 0.22, 0.09, RED, 0.6)
    axle(o, w - 0.04, back, 0.33, 0.09, RED, 0.65)
    for side in (1, -1):
        o.capsule((side * (w + 0.06), 0.26, front - 0.28), (side * (w + 0.06), 0.26, back), 0.065, None, METAL)
    o.crown((0, 1.51, back), 0.25)
    o.stripes = (0, 0, 1)


def motorbike(o: Sculptor) -> None:
    """A chunky cruiser with full mudguards."""
    r, base = o.uniform(0.36, 0.40), o.uniform(0.62, 0.68)
    fat = o.uniform(0.92, 1.08)
    for z in (base, -base):
        o.cylinder((0, r, z), r, 0.16, TYRE, rounding=0.10, turn=about_z(90))
        o.cylinder((0, r, z), r * 0.58, 0.18, METAL, rounding=0.02, turn=about_z(90))
    o.torus((0, r, base), r, 0.17, arc=100, turn=about_x(-85) @ about_z(90))
    o.torus((0, r, -base), r, 0.19, arc=120, turn=about_x(-105) @ about_z(90))
    o.box((0, 0.50, 0), (0.24 * fat, 0.24, 0.36), rounding=0.10)
    o.cylinder((0, 0.40, 0.0), 0.17, 0.28, STEEL, rounding=0.03, turn=about_z(90))
    o.cylinder((0, 0.40, 0.0), 0.09, 0.30, METAL, rounding=0.02, turn=about_z(90))
    o.ellipsoid((0, 0.86, 0.18), (0.29 * fat, 0.24, 0.38), blend=0.08)
    o.ellipsoid((0, 0.76, -0.62), (0.24 * fat, 0.15, 0.36), blend=0.08)
    o.box((0, 0.84, -0.38), (0.20, 0.12, 0.32), BLACK, rounding=0.08, turn=about_x(-4))
    for side in (1, -1):
        o.capsule((side * 0.22, r, base), (side * 0.20, 0.98, 0.40), 0.065, None, METAL)
        o.capsule((0, 1.08, 0.38), (side * 0.46, 1.20, 0.26), 0.065, None, STEEL)
        o.capsule((side * 0.36, 1.17, 0.29), (side * 0.54, 1.22, 0.24), 0.09, None, BLACK)
        o.capsule((side * 0.27, 0.28, 0.02), (side * 0.27, 0.34, -0.80), 0.07, 0.10, METAL)
    o.ellipsoid((0, 0.98, 0.48), (0.28 * fat, 0.26, 0.24))
    o.cylinder((0, 1.00, 0.68), 0.185, 0.06, FRAME, rounding=0.03, turn=about_x(90))
    o.ellipsoid((0, 1.00, 0.72), (0.15, 0.15, 0.09), LAMP)
    o.ellipsoid((0, 0.78, -0.97), (0.14, 0.09, 0.08), RED)
    o.crown((0, 1.21, 0.44), 0.22)
    o.stripes = (0, 0, 1)


def airplane(o: Sculptor) -> None:
    """A stubby jet."""
    r, span, length = o.uniform(0.27, 0.32), o.uniform(0.40, 0.46), o.uniform(0.74, 0.84)
    o.capsule((0, 0, length - r), (0, 0, -0.30), r)
    o.capsule((0, 0, -0.30), (0, 0.12, -length), r, 0.13)
    for side in (1, -1):
        wing(o, side, (side * 0.15, -0.08, 0.14), (0.38, 0.22), span, 22)
        wing(o, side, (side * 0.04, 0.14, -length + 0.14), (0.22, 0.14), 0.22, 22)
        o.cylinder((side * 0.58, -0.20, 0.08), 0.115, 0.20, METAL, rounding=0.04, top=0.145, turn=about_x(90))
        o.cylinder((side * 0.58, -0.20, 0.27), 0.10, 0.03, BLACK, turn=about_x(90))
    o.prism((0, 0.42, -length - 0.02), 0.28, 0.17, 0.28, 0.085, rounding=0.05, turn=about_x(-24) @ about_y(90))
    tilt = math.radians(32)
    for out, half, color in (
        (0.88, (r * 0.76, r * 0.34, r * 0.20), FRAME),
        (0.92, (r * 0.31, r * 0.25, r * 0.20), PANE),
    ):
        for side in (1, -1) if color is PANE else (0,):
            center = (side * r * 0.37, out * r * math.sin(tilt), length - r + out * r * math.cos(tilt))
            o.box(center, half, color, rounding=0.04, turn=about_x(-32))
    o.box((0, 0.10, 0.02), (r - 0.005, 0.085, 0.40), FRAME, rounding=0.03)
    for i in range(4):
        o.cylinder((0, 0.10, 0.32 - 0.20 * i), 0.065, r + 0.01, PANE, turn=about_z(90))
    o.crown((0, r - 0.02, 0.0), 0.20)
    o.stripes = (0, 0, 1)


def helicopter(o: Sculptor) -> None:
    """A bubble cockpit, a tail boom, two rotors, skids."""
    r, tail, blade = o.uniform(0.45, 0.51), o.uniform(0.88, 1.00), o.uniform(0.74, 0.84)
    o.ellipsoid((0, 0, 0.16), (r, r, r * 1.35))
    o.capsule((0, 0.08, -0.20), (0, 0.22, -tail), 0.26, 0.12, blend=0.10)
    o.prism((0, 0.40, -tail - 0.04), 0.19, 0.11, 0.22, 0.075, rounding=0.05, turn=about_x(-20) @ about_y(90))
    o.ellipsoid((0, 0.10, 0.40), (r * 0.90, r * 0.70, r * 0.92), FRAME)
    o.ellipsoid((0, 0.11, 0.44), (r * 0.87, r * 0.62, r * 0.88), PANE)
    o.ellipsoid((0, 0.11, 0.43), (0.06, r * 0.68, r * 0.94), FRAME)
    o.cylinder((0, 0.10, -0.06), 0.17, r * 1.005, FRAME, rounding=0.03, turn=about_z(90))
    o.cylinder((0, 0.10, -0.06), 0.125, r * 1.03, PANE, rounding=0.03, turn=about_z(90))
    for side in (1, -1):
        wing(o, side, (0, 0.20, -tail + 0.16), (0.13, 0.09), 0.17, 10)
        o.capsule((side * 0.34, -r - 0.16, -0.38), (side * 0.34, -r - 0.16, 0.62), 0.065, None, STEEL)
        for z in (0.36, -0.06):
            o.capsule((side * 0.22, -r * 0.7, z), (side * 0.34, -r - 0.16, z), 0.06, None, STEEL)
    o.cylinder((0, r + 0.02, 0.05), 0.16, 0.08, rounding=0.04)
    o.cylinder((0, r + 0.14, 0.05), 0.07, 0.10, STEEL)
    for angle in (35, -55):
        o.box((0, r + 0.24, 0.05), (0.095, 0.06, blade), STEEL, rounding=0.05, turn=about_y(angle))
    o.cylinder((0.10, 0.38, -tail - 0.02), 0.06, 0.06, METAL, turn=about_z(90))
    for angle in (30, -60):
        o.box((0.12, 0.38, -tail - 0.02), (0.06, 0.07, 0.25), STEEL, rounding=0.05, turn=about_x(angle))
    o.ellipsoid((0, -r * 0.66, 0.50), 0.09, LAMP)
    o.crown((0, r + 0.29, 0.05), 0.20)
    o.stripes = (0, 0, 1)


def rocket(o: Sculptor) -> None:
    """Upright, with four fins, a flame and a porthole in front."""
    r, h, nose = o.uniform(0.36, 0.42), o.uniform(0.46, 0.54), o.uniform(0.30, 0.36)
    fin = o.uniform(0.19, 0.23)
    o.cylinder((0, -0.02, 0), r * 0.86, h, top=r, rounding=0.06)
    o.ellipsoid((0, h - 0.05, 0), (r, 2 * nose, r))
    o.cylinder((0, h - 0.06, 0), r + 0.02, 0.045, METAL, rounding=0.03)
    o.cylinder((0, 0.10 - h, 0), r * 0.90 + 0.02, 0.045, METAL, rounding=0.03)
    o.cylinder((0, -h - 0.09, 0), r * 0.72, 0.12, STEEL, top=r * 0.5, rounding=0.02)
    o.ellipsoid((0, -h - 0.26, 0), (r * 0.56, 0.28, r * 0.56), (1.0, 0.50, 0.08))
    o.ellipsoid((0, -h - 0.22, 0), (r * 0.40, 0.20, r * 0.62), (1.0, 0.86, 0.25))
    for quarter in range(4):
        angle = math.pi / 2 * quarter
        out = r + 0.12
        turn = about_y(90 * quarter) @ about_z(-90 - 32)
        center = (out * math.cos(angle), -h + 0.02, -out * math.sin(angle))
        o.prism(center, 0.26, 0.15, fin, 0.065, rounding=0.05, turn=turn)
    o.cylinder((0, h * 0.36, r * 0.86), 0.23, 0.12, METAL, rounding=0.03, turn=about_x(90))
    o.cylinder((0, h * 0.36, r * 0.86 + 0.03), 0.16, 0.11, PANE, rounding=0.03, turn=about_x(90))
    o.crown((0, h - 0.05 + nose * 1.62, 0), r * 0.60)


def sailboat(o: Sculptor) -> None:
    """A mainsail and a jib, swung out so that they show from the front too."""
    w, length, mast = o.uniform(0.42, 0.48), o.uniform(0.80, 0.90), o.uniform(1.46, 1.60)
    o.ellipsoid((0, 0, 0), (w, 0.44, length))
    o.box((0, 0.52, 0), (1, 0.40, 2), rounding=0.01, carve=True)
    o.box((0, 0, -length - 0.80), (1, 1, 1), rounding=0.01, carve=True)
    o.box((0, 0.16, -0.32), (w * 0.55, 0.16, 0.26), (0.72, 0.50, 0.29), rounding=0.06, carve=True)
    o.box((0, 0.04, -0.32), (w * 0.60, 0.05, 0.07), WOOD, rounding=0.03)
    o.cylinder((0, mast / 2, 0.14), 0.065, mast / 2 + 0.04, WOOD, rounding=0.02)
    swing = 32
    # Sails are isosceles triangles with one edge upright along the mast.
    for sign, apex, share, half in ((-1, mast, 0.42, 24), (1, mast * 0.90, 0.375, 22)):
        height = mast * share
        lean = math.radians(half)
        along = sign * (height * math.sin(lean) + 0.05)
        sine, cosine = math.sin(math.radians(swing)), math.cos(math.radians(swing))
        center = (-along * sine, apex - height * math.cos(lean), 0.14 + along * cosine)
        turn = about_y(-swing) @ about_x(-sign * half) @ about_y(90)
        o.prism(center, height * math.tan(lean), 0, height, 0.07, rounding=0.03, turn=turn)
    o.box((0, mast + 0.06, 0.04), (0.06, 0.07, 0.17), RED, rounding=0.03)
    o.crown((0, mast + 0.08, 0.12), 0.20)


def submarine(o: Sculptor) -> None:
    """A tower with a periscope, portholes, fins and a propeller."""
    r, length, tower = o.uniform(0.44, 0.50), o.uniform(0.86, 0.96), o.uniform(0.20, 0.26)
    o.ellipsoid((0, 0, 0), (r, r, length))
    o.cylinder((0, r + 0.08, 0.10), 0.29, tower, top=0.23, rounding=0.06, blend=0.06)
    o.capsule((0, r + tower, 0.04), (0, r + tower + 0.34, 0.04), 0.075, None, METAL)
    o.capsule((0, r + tower + 0.34, 0.04), (0, r + tower + 0.34, 0.24), 0.075, 0.095, METAL)
    o.ellipsoid((0, r + tower + 0.34, 0.30), 0.075, FRAME)
    for z, inside in ((-0.38, 0.06), (0.04, 0.0), (0.46, 0.09)):
        o.cylinder((0, 0.08, z), 0.165, r - inside, BRASS, rounding=0.02, turn=about_z(90))
        o.cylinder((0, 0.08, z), 0.11, r - inside + 0.02, PANE, rounding=0.02, turn=about_z(90))
    o.cylinder((0, 0.02, length - 0.13), 0.24, 0.08, BRASS, rounding=0.03, turn=about_x(90))
    o.ellipsoid((0, 0.02, length - 0.09), (0.18, 0.18, 0.13), PANE)
    back = -length
    for side in (1, -1):
        fin = about_x(90 - 90 * side) @ about_y(90)
        wing(o, side, (0, 0, back + 0.22), (0.18, 0.13), 0.24, 15)
        o.prism((0, side * 0.26, back + 0.16), 0.18, 0.13, 0.22, 0.065, rounding=0.05, turn=fin)
    o.cylinder((0, 0, back - 0.04), 0.09, 0.14, BRASS, rounding=0.03, turn=about_x(90))
    for angle in (45, -45):
        o.ellipsoid((0, 0, back - 0.12), (0.30, 0.10, 0.065), BRASS, turn=about_z(angle))
    o.crown((0, r + 0.06 + tower, 0.06), 0.20)
    o.stripes = (0, 0, 1)


def tractor(o: Sculptor) -> None:
    """Big rear wheels under mudguards, a long hood, a chimney, a cab."""
    big, small = o.uniform(0.47, 0.53), o.uniform(0.25, 0.29)
    w, hood = o.uniform(0.27, 0.31), o.uniform(0.44, 0.52)
    rear, nose = -0.42, hood * 2 - 0.06
    o.box((0, 0.62, hood - 0.16), (w, 0.25, hood + 0.08), rounding=0.08)
    o.box((0, 0.40, 0.12), (0.20, 0.10, 0.72), STEEL)
    o.box((0, 0.62, nose - 0.02), (w * 0.68, 0.18, 0.05), FRAME, rounding=0.02)
    lamps(o, w * 0.62, 0.74, nose + 0.0, 0.085, LAMP)
    o.box((0, 0.98, rear), (w + 0.06, 0.44, 0.34), rounding=0.05)
    o.box((0, 1.45, rear), (w + 0.14, 0.08, 0.44), rounding=0.06)
    o.box((0, 1.15, rear), (w + 0.075, 0.20, 0.27), FRAME)
    o.box((0, 1.15, rear), (w + 0.09, 0.15, 0.22), PANE)
    o.box((0, 1.15, rear), (w * 0.95, 0.20, 0.355), FRAME)
    o.box((0, 1.15, rear), (w * 0.80, 0.15, 0.37), PANE)
    for side in (1, -1):
        x = side * (w + 0.20)
        o.torus((x, big, rear), big + 0.01, 0.11, arc=150, turn=about_x(-80) @ about_z(90))
        o.ellipsoid((side * (w + 0.2), big + 0.28, rear - big - 0.0), 0.075, RED)
    o.cylinder((w * 0.4, 1.08, hood * 1.15), 0.065, 0.30, STEEL)
    o.cylinder((w * 0.4, 1.36, hood * 1.15), 0.085, 0.06, BLACK)
    axle(o, w + 0.22, rear, big, 0.14, None, 0.62)
    axle(o, w + 0.10, nose - 0.24, small, 0.11, None, 0.62)
    o.crown((0, 1.53, rear), 0.25)
    o.stripes = (0, 0, 1)


OBJECTS: dict[str, Callable[[Sculptor], None]] = {
    "school bus": school_bus,
    "car": car,
    "truck": truck,
    "train": train,
    "motorbike": motorbike,
    "airplane": airplane,
    "helicopter": helicopter,
    "rocket": rocket,
    "sailboat": sailboat,
    "submarine": submarine,
    "tractor": tractor,
}
