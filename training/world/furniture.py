"""Furniture, crockery and simple solids."""

from collections.abc import Callable

from training.world.sculptor import BLACK, WHITE, WOOD, Sculptor, about_x, about_y, about_z

CREAM = (0.97, 0.93, 0.84)
GOLD = (0.93, 0.70, 0.16)


def mug(o: Sculptor) -> None:
    """A mug of coffee, its handle on its left."""
    r, h = o.uniform(0.42, 0.5), o.uniform(0.46, 0.54)
    o.torus((r, h, 0), h * 0.56, 0.085, arc=220, turn=about_x(90) @ about_y(90))
    o.cylinder((0, h + 0.04, 0), r - 0.07, h, (0.97, 0.95, 0.9), carve=True)
    o.cylinder((0, h, 0), r, h, wall=0.08, rounding=0.035)
    o.cylinder((0, 0.08, 0), r - 0.03, 0.07)
    o.cylinder((0, h * 1.78, 0), r - 0.05, 0.03, (0.25, 0.13, 0.06))
    o.crown((0, 2 * h - 0.03, 0), r * 0.72)


def chair(o: Sculptor) -> None:
    """A chair with a slatted back and a pale cushion."""
    w, seat, back = o.uniform(0.36, 0.42), o.uniform(0.42, 0.5), o.uniform(0.52, 0.64)
    for x in (1, -1):
        o.box(((w - 0.07) * x, seat / 2, w - 0.07), (0.07, seat / 2, 0.07), rounding=0.03)
        o.box(((w - 0.07) * x, (seat + back) / 2, -w + 0.06), (0.07, (seat + back) / 2, 0.06), rounding=0.03)
    o.box((0, seat, 0), (w, 0.06, w), rounding=0.04)
    o.box((0, seat + 0.065, 0.05), (w * 0.82, 0.04, w * 0.76), CREAM, rounding=0.035)
    o.box((0, seat + back - 0.1, -w + 0.06), (w, 0.12, 0.065), rounding=0.05)
    o.box((0, seat + back * 0.42, -w + 0.06), (w * 0.9, 0.07, 0.05), rounding=0.04)
    o.crown((0, seat + back, -w + 0.06), 0.22)


def table(o: Sculptor) -> None:
    """A plain table on four legs."""
    w, d, h = o.uniform(0.74, 0.86), o.uniform(0.44, 0.54), o.uniform(0.54, 0.64)
    for x in (1, -1):
        for z in (1, -1):
            o.cylinder(((w - 0.14) * x, h / 2, (d - 0.14) * z), 0.065, h / 2, top=0.095, rounding=0.02)
    o.box((0, h - 0.07, 0), (w - 0.12, 0.08, d - 0.12), rounding=0.02)
    o.box((0, h + 0.03, 0), (w, 0.06, d), rounding=0.04)
    o.crown((0, h + 0.09, 0), 0.28)


def lamp(o: Sculptor) -> None:
    """A table lamp: a shade, a bulb, a brass stem and a foot."""
    r, h, stem = o.uniform(0.52, 0.58), o.uniform(0.3, 0.35), o.uniform(0.46, 0.56)
    o.cylinder((0, 0.05, 0), 0.42, 0.07, top=0.36, rounding=0.05)
    o.ellipsoid((0, 0.15, 0), (0.2, 0.13, 0.2), GOLD)
    o.cylinder((0, 0.1 + stem / 2, 0), 0.06, stem / 2 + 0.1, GOLD)
    y = 0.1 + stem + h
    o.cylinder((0, y - h * 0.1, 0), 0.055, h * 0.9, GOLD)
    o.ellipsoid((0, y - h * 0.35, 0), (0.19, 0.21, 0.19), (1.0, 0.92, 0.55))
    o.cylinder((0, y, 0), r, h, top=r * 0.62, wall=0.06, rounding=0.025)
    o.cylinder((0, y + h * 0.85, 0), r * 0.62, 0.03, CREAM)
    o.ellipsoid((0, y + h * 0.95, 0), (0.07, 0.09, 0.07), GOLD)
    o.crown((0, y + h - 0.02, 0), r * 0.42)


def bottle(o: Sculptor) -> None:
    """A corked bottle with a label at its front."""
    r, h, neck = o.uniform(0.31, 0.36), o.uniform(0.42, 0.5), o.uniform(0.24, 0.32)
    o.cylinder((0, h, 0), r, h, rounding=0.06)
    o.ellipsoid((0, 2 * h - 0.06, 0), (r, 0.3, r), blend=0.05)
    o.cylinder((0, 2 * h + 0.15 + neck / 2, 0), 0.14, neck / 2 + 0.1, top=0.125, blend=0.16)
    top = 2 * h + neck + 0.2
    o.torus((0, top - 0.08, 0), 0.12, 0.05)
    o.cylinder((0, top + 0.04, 0), 0.14, 0.1, (0.78, 0.6, 0.2), rounding=0.03)
    # Shifted forwards, a label as wide as the bottle shows only at its front.
    o.cylinder((0, h * 0.95, 0.032), r, h * 0.62, (0.30, 0.20, 0.10), rounding=0.01)
    o.cylinder((0, h * 0.95, 0.045), r, h * 0.5, CREAM, rounding=0.01)
    o.cylinder((0, h * 0.98, r), 0.13, 0.055, (0.80, 0.12, 0.12), rounding=0.02, turn=about_x(90))
    o.crown((0, top + 0.08, 0), 0.2)


def teapot(o: Sculptor) -> None:
    """A teapot, its spout on its left."""
    r, h, reach = o.uniform(0.5, 0.56), o.uniform(0.42, 0.48), o.uniform(0.9, 1.05)
    o.cylinder((0, -h * 0.92, 0), r * 0.6, 0.07, rounding=0.03)
    o.ellipsoid((0, 0, 0), (r, h, r))
    bend, tip = (r + 0.14 * reach, 0.06, 0), (r + 0.27 * reach, 0.36, 0)
    o.capsule((r * 0.8, -0.1, 0), bend, 0.16, 0.11, blend=0.08)
    o.capsule(bend, tip, 0.11, 0.09, blend=0.03)
    o.ellipsoid((tip[0] + 0.03, tip[1] + 0.09, 0), (0.085, 0.06, 0.065), BLACK, carve=True)
    o.torus((-r + 0.03, 0.03, 0), 0.24, 0.08, arc=235, turn=about_x(90) @ about_y(-90))
    o.torus((0, h * 0.8, 0), r * 0.58, 0.04, GOLD)
    o.ellipsoid((0, h * 0.82, 0), (r * 0.56, 0.15, r * 0.56))
    o.ellipsoid((0, h * 0.82 + 0.2, 0), 0.11, GOLD)
    o.crown((0, h * 0.82 + 0.1, 0), 0.27)


def sofa(o: Sculptor) -> None:
    """A sofa for two with a pair of golden pillows."""
    w, d, back = o.uniform(0.72, 0.86), o.uniform(0.36, 0.42), o.uniform(0.4, 0.48)
    for x in (1, -1):
        for z in (1, -1):
            o.cylinder(((w - 0.02) * x, 0.03, (d - 0.1) * z), 0.06, 0.1, WOOD)
    o.box((0, 0.24, 0), (w, 0.14, d), rounding=0.05)
    o.box((0, 0.3 + back / 2, -d + 0.1), (w, back / 2 + 0.2, 0.13), rounding=0.1)
    for x in (1, -1):
        o.box((w * x, 0.34, 0.02), (0.13, 0.24, d + 0.02), rounding=0.11)
        o.box((w * 0.44 * x, 0.4, 0.09), (w * 0.425, 0.085, d - 0.08), rounding=0.07)
        o.box((w * 0.44 * x, 0.4 + back * 0.55, -d + 0.26), (w * 0.41, back * 0.45, 0.09), rounding=0.08)
        turn = about_y(-20 * x) @ about_x(-18) @ about_z(12 * x)
        o.box((w * 0.66 * x, 0.6, 0.06), (0.16, 0.16, 0.07), GOLD, rounding=0.065, turn=turn)
    o.crown((0, 0.46 + back, -d + 0.12), 0.22)


def cube(o: Sculptor) -> None:
    """A cube with rounded edges."""
    half = o.uniform(0.48, 0.52)
    o.box((0, 0, 0), (half, half, half), rounding=o.uniform(0.02, 0.07))
    o.crown((0, half, 0), half * 0.55)


def ball(o: Sculptor) -> None:
    """A ball with the seams of a basketball."""
    r, turn = 0.6, about_x(18) @ about_z(-14)
    o.ellipsoid((0, 0, 0), r)
    x, y, z = turn[:, 0] * 0.6 * r
    o.torus((0, 0, 0), r - 0.012, 0.03, BLACK, turn=turn)
    o.torus((0, 0, 0), r - 0.012, 0.03, BLACK, turn=turn @ about_z(90))
    for side in (1, -1):
        o.torus((x * side, y * side, z * side), r * 0.8 - 0.01, 0.03, BLACK, turn=turn @ about_z(90))
    o.crown((0, r * 0.88, 0), r * 0.5)


def present(o: Sculptor) -> None:
    """A box with a lid, a golden ribbon and a bow."""
    w, h, d = o.uniform(0.46, 0.54), o.uniform(0.3, 0.4), o.uniform(0.46, 0.54)
    o.box((0, h, 0), (w, h, d), rounding=0.02)
    top = 2 * h + 0.09
    o.box((0, 2 * h, 0), (w + 0.05, 0.09, d + 0.05), rounding=0.025)
    for width, rise, color in ((0.115, 0.015, GOLD), (0.06, 0.03, WHITE)):
        o.box((0, h, 0), (width, h, d + rise), color)
        o.box((0, h, 0), (w + rise, h, width), color)
        o.box((0, 2 * h, 0), (width, 0.09 + rise, d + 0.05 + rise), color)
        o.box((0, 2 * h, 0), (w + 0.05 + rise, 0.09 + rise, width), color)
    for side in (1, -1):
        turn = about_z(-24 * side) @ about_x(90)
        o.cylinder((0.22 * side, top + 0.17, 0), 0.19, 0.11, GOLD, wall=0.075, rounding=0.03, turn=turn)
        o.capsule((0.04 * side, top + 0.06, 0.06), (0.25 * side, top + 0.04, 0.3), 0.065, color=GOLD)
    o.ellipsoid((0, top + 0.1, 0), (0.12, 0.12, 0.15), WHITE)
    o.crown((0, top + 0.14, 0), 0.26)


OBJECTS: dict[str, Callable[[Sculptor], None]] = {
    "mug": mug,
    "chair": chair,
    "table": table,
    "lamp": lamp,
    "bottle": bottle,
    "teapot": teapot,
    "sofa": sofa,
    "cube": cube,
    "ball": ball,
    "present": present,
}
