"""Animals, all standing or sitting on the ground and looking along +z; the main colour is the coat's."""

from collections.abc import Callable
from itertools import pairwise

from training.world.sculptor import BLACK, WHITE, Color, Scalar, Sculptor, about_x, about_y, about_z

CREAM = (0.97, 0.90, 0.76)
IVORY = (0.97, 0.93, 0.84)
DARK_BROWN = (0.27, 0.16, 0.10)
BEAK = (0.99, 0.62, 0.08)
PINK = (0.98, 0.60, 0.66)


def eyes(o: Sculptor, x: Scalar, y: Scalar, z: Scalar, r: Scalar, *, aside: float = 0.2, tall: float = 1.0) -> None:
    """Two white balls with black pupils that look ahead, and `aside` by the tangent of an angle."""
    ahead = 1 / (1 + aside * aside) ** 0.5
    for side in (1, -1):
        o.ellipsoid((side * x, y, z), (r, r * tall, r), WHITE)
        place = (side * (x + 0.36 * r * ahead * aside), y, z + 0.36 * r * ahead)
        o.ellipsoid(place, (0.74 * r, 0.74 * r * tall, 0.74 * r), BLACK)


def legs(o: Sculptor, x: Scalar, z: Scalar, top: Scalar, r: Scalar, foot: Color = None, middle: Scalar = 0.0) -> None:
    """Four upright legs about z = `middle`, their soles at y = 0, or just below if the feet have a colour."""
    for side in (1, -1):
        for end in (1, -1):
            o.cylinder((side * x, top / 2, middle + end * z), r * 1.08, top / 2, top=r, rounding=0.05, blend=0.06)
            if foot is not None:
                o.cylinder((side * x, 0.06, middle + end * z), r * 1.14, 0.08, foot, rounding=0.03)


def dog(o: Sculptor) -> None:
    """Standing, floppy dark ears, tail up."""
    r, long, head = o.uniform(0.27, 0.32), o.uniform(0.36, 0.48), o.uniform(0.36, 0.40)
    brown = o.color(DARK_BROWN)
    y, z = 1.10, long + 0.16
    o.capsule((0, 0.58, -long), (0, 0.62, long), r * 0.95, r * 1.05)
    legs(o, r * 0.62, long, 0.5, 0.125)
    o.capsule((0, 0.7, long * 0.9), (0, y, z), 0.25, 0.27, blend=0.08)
    o.ellipsoid((0, y, z), (head, head * 0.95, head * 0.95), blend=0.05)
    o.capsule((0, y - 0.12, z + 0.25), (0, y - 0.13, z + 0.5), 0.21, 0.17, CREAM)
    o.ellipsoid((0, y - 0.02, z + 0.63), (0.12, 0.085, 0.085), BLACK)
    o.box((0, y - 0.33, z + 0.5), (0.075, 0.12, 0.045), (0.93, 0.32, 0.36), rounding=0.04, turn=about_x(-12))
    eyes(o, 0.165, y + 0.13, z + head * 0.72, 0.125)
    drop = o.uniform(0.24, 0.32)
    for side in (1, -1):
        turn = about_z(side * 16)
        o.ellipsoid((side * (head + 0.06), y + 0.2 - drop, z - 0.02), (0.1, drop + 0.06, 0.19), brown, turn=turn)
    o.capsule((0, 0.72, -long - 0.14), (0, 1.12, -long - 0.36), 0.11, 0.08, blend=0.05)
    o.crown((0, y + head * 0.74, z - 0.05), head * 0.66, about_x(-8))
    o.stripes = (0, 0, 1)


def cat(o: Sculptor) -> None:
    """Sitting, pointed ears, long tail in an S."""
    r, y, head = o.uniform(0.30, 0.35), o.uniform(1.10, 1.20), o.uniform(0.41, 0.45)
    z = 0.14
    o.capsule((0, 0.3, -0.12), (0, y - 0.2, 0.04), r, r * 0.62)
    for side in (1, -1):
        o.ellipsoid((side * r * 0.75, 0.24, -0.04), (0.17, 0.24, 0.3), blend=0.05)
        o.capsule((side * r * 0.75, 0.08, 0.1), (side * r * 0.8, 0.08, 0.28), 0.09, blend=0.03)
        o.capsule((side * 0.13, 0.7, 0.16), (side * 0.12, 0.09, 0.27), 0.1, 0.09, blend=0.04)
        o.ellipsoid((side * 0.12, 0.07, 0.33), (0.1, 0.075, 0.12), WHITE)
    o.ellipsoid((0, y, z), (head * 1.12, head * 0.92, head * 0.9))
    for side in (1, -1):
        x, top = side * head * 0.68, y + head * 0.92
        turn = about_z(-side * 20) @ about_y(45)
        o.cylinder((x, top, z - 0.02), 0.22, 0.21, top=0.03, rounding=0.02, turn=turn, blend=0.04)
        o.cylinder((x, top - 0.04, z + 0.09), 0.14, 0.15, PINK, top=0.02, rounding=0.01, turn=about_z(-side * 20))
        o.ellipsoid((side * 0.08, y - 0.15, z + head * 0.8), (0.11, 0.085, 0.09), WHITE)
    o.ellipsoid((0, y - 0.07, z + head * 0.96), (0.06, 0.045, 0.05), PINK)
    eyes(o, 0.19, y + 0.06, z + head * 0.68, 0.14, tall=1.15)
    swing = o.uniform(0.06, 0.2)
    tail = ((0.13, -0.3), (0.11, -0.5), (0.22, -0.68), (0.44, -0.75), (0.68, -0.71), (0.9, -0.73), (1.03, -0.84))
    for k, ((a, b), (c, d)) in enumerate(pairwise(tail)):
        o.capsule((swing * k / 5, a, b), (swing * (k + 1) / 5, c, d), 0.1)
    o.crown((0, y + head * 0.76, z), head * 0.52)


def duck(o: Sculptor) -> None:
    """Standing on webbed feet, flat bill."""
    r, head, z = o.uniform(0.42, 0.48), o.uniform(0.31, 0.36), o.uniform(0.34, 0.42)
    y = 1.14
    o.ellipsoid((0, 0.52, 0), (r, 0.36, 0.6))
    o.capsule((0, 0.58, -0.4), (0, 0.86, -0.78), 0.2, 0.07, blend=0.1)
    o.capsule((0, 0.62, z - 0.05), (0, y, z), 0.24, 0.2, blend=0.12)
    o.ellipsoid((0, y, z), (head, head, head), blend=0.04)
    for side in (1, -1):
        o.ellipsoid((side * r * 0.93, 0.58, -0.08), (0.1, 0.2, 0.36), turn=about_x(12) @ about_y(-side * 6))
        o.cylinder((side * 0.18, 0.16, 0.06), 0.07, 0.14, BEAK)
        o.box((side * 0.2, 0.045, 0.17), (0.14, 0.045, 0.19), BEAK, rounding=0.04, turn=about_y(side * 12))
    o.ellipsoid((0, y - 0.05, z + head + 0.1), (0.19, 0.065, 0.24), BEAK, turn=about_x(-8))
    o.ellipsoid((0, y - 0.14, z + head + 0.04), (0.15, 0.05, 0.2), (0.93, 0.48, 0.05), turn=about_x(8))
    eyes(o, 0.15, y + 0.1, z + head * 0.7, 0.115, aside=0.5)
    o.crown((0, y + head * 0.7, z), head * 0.7)
    o.stripes = (0, 0, 1)


def fish(o: Sculptor) -> None:
    """Flat from side to side, with a forked tail and full lips."""
    wide, tall, long = o.uniform(0.26, 0.32), o.uniform(0.42, 0.52), 0.72
    fin = o.color((0.99, 0.80, 0.36))
    o.ellipsoid((0, 0, 0.1), (wide, tall, long))
    for side in (1, -1):
        o.ellipsoid((0, side * 0.24, -0.86), (0.085, 0.36, 0.17), turn=about_x(-side * 38), blend=0.08)
        o.ellipsoid(
            (side * (wide + 0.08), -0.1, 0.05), (0.06, 0.14, 0.24), fin, turn=about_y(-side * 32) @ about_x(-20)
        )
    o.ellipsoid((0, tall - 0.02, -0.02), (0.07, 0.22, 0.36), fin, turn=about_x(-14))
    o.ellipsoid((0, -tall + 0.02, -0.1), (0.065, 0.17, 0.24), fin, turn=about_x(24))
    o.torus((0, -0.06, 0.79), 0.09, 0.055, (0.95, 0.42, 0.45), turn=about_x(90))
    o.ellipsoid((0, -0.06, 0.78), (0.08, 0.08, 0.04), (0.35, 0.08, 0.10))
    eyes(o, wide * 0.6, 0.15, 0.45, 0.16, aside=1.4)
    o.crown((0, tall * 0.83, 0.36), 0.22, about_x(18))
    o.stripes = (0, 0, 1)


def rabbit(o: Sculptor) -> None:
    """Sitting up, long ears, bobtail."""
    r, head, ear = o.uniform(0.39, 0.44), o.uniform(0.41, 0.45), o.uniform(0.29, 0.36)
    y, z = 1.0, 0.14
    o.ellipsoid((0, 0.4, -0.08), (r, 0.42, r * 1.08))
    o.ellipsoid((0, 0.22, -r - 0.2), 0.17, WHITE)
    o.ellipsoid((0, y, z), (head * 1.05, head * 0.92, head * 0.95))
    for side in (1, -1):
        o.ellipsoid((side * r * 0.8, 0.24, -0.02), (0.15, 0.23, 0.26), blend=0.05)
        o.capsule((side * 0.24, 0.09, 0.14), (side * 0.28, 0.09, 0.5), 0.1, 0.1, blend=0.03)
        o.capsule((side * 0.26, 0.6, 0.12), (side * 0.15, 0.42, 0.38), 0.09, 0.085, blend=0.03)
        turn = about_z(-side * 12)
        o.ellipsoid((side * 0.22, y + head * 0.7 + ear, z - 0.12), (0.15, ear + 0.12, 0.095), turn=turn, blend=0.03)
        o.ellipsoid((side * 0.22, y + head * 0.72 + ear, z - 0.05), (0.085, ear - 0.02, 0.05), PINK, turn=turn)
        o.ellipsoid((side * 0.085, y - 0.14, z + head * 0.84), (0.115, 0.09, 0.1), WHITE)
    o.box((0, y - 0.25, z + head * 0.88), (0.065, 0.075, 0.04), WHITE, rounding=0.02)
    o.ellipsoid((0, y - 0.06, z + head), (0.065, 0.05, 0.05), PINK)
    eyes(o, 0.19, y + 0.07, z + head * 0.74, 0.13, tall=1.2)
    o.crown((0, y + head * 0.76, z + 0.09), head * 0.56, about_x(6))


def elephant(o: Sculptor) -> None:
    """Large flat ears, trunk curled up at its end."""
    r, ear, z = o.uniform(0.40, 0.46), o.uniform(0.36, 0.42), o.uniform(0.48, 0.56)
    y = 1.0
    o.ellipsoid((0, 0.74, -0.18), (r, 0.44, 0.6))
    legs(o, r * 0.56, 0.34, 0.6, 0.175, middle=-0.16)
    o.ellipsoid((0, y, z), (0.36, 0.38, 0.36), blend=0.08)
    for side in (1, -1):
        turn = about_y(side * 28) @ about_z(-side * 8)
        o.ellipsoid((side * (0.28 + ear * 0.72), y + 0.06, z - 0.12), (ear * 0.86, ear * 1.12, 0.085), turn=turn)
        place = (side * (0.30 + ear * 0.72), y + 0.04, z - 0.06)
        o.ellipsoid(place, (ear * 0.58, ear * 0.8, 0.07), PINK, turn=turn)
        o.capsule((side * 0.2, y - 0.24, z + 0.2), (side * 0.24, y - 0.36, z + 0.42), 0.08, 0.055, WHITE)
        for end in (0.18, -0.5):
            o.ellipsoid((side * r * 0.56, 0.06, end + 0.16), (0.13, 0.07, 0.06), CREAM)
    trunk = ((-0.06, 0.24), (-0.3, 0.46), (-0.56, 0.54), (-0.76, 0.66), (-0.74, 0.86), (-0.58, 0.94))
    for k, ((a, b), (c, d)) in enumerate(pairwise(trunk)):
        o.capsule((0, y + a, z + b), (0, y + c, z + d), 0.19 - 0.02 * k, 0.17 - 0.02 * k, blend=0.06 * (k == 0))
    eyes(o, 0.19, y + 0.12, z + 0.25, 0.11, aside=0.3)
    o.capsule((0, 0.9, -0.72), (0, 0.52, -0.86), 0.065, 0.06)
    o.ellipsoid((0, 0.46, -0.88), (0.08, 0.12, 0.08), BLACK)
    o.crown((0, y + 0.3, z), 0.25)
    o.stripes = (0, 0, 1)


def pig(o: Sculptor) -> None:
    """Round, with a disc for a snout and a ringlet for a tail."""
    r, long, head = o.uniform(0.42, 0.48), o.uniform(0.54, 0.62), o.uniform(0.36, 0.40)
    snout = o.color((0.96, 0.48, 0.54))
    y, z = 0.76, long + 0.08
    o.ellipsoid((0, 0.62, -0.05), (r, r * 0.95, long))
    legs(o, r * 0.55, long * 0.52, 0.4, 0.14, DARK_BROWN, middle=-0.05)
    o.ellipsoid((0, y, z), (head * 1.05, head, head * 0.85), blend=0.05)
    o.cylinder((0, y - 0.08, z + head * 0.85), 0.2, 0.13, snout, rounding=0.04, turn=about_x(90))
    for side in (1, -1):
        o.ellipsoid((side * 0.075, y - 0.08, z + head * 0.85 + 0.12), (0.042, 0.065, 0.04), DARK_BROWN)
        turn = about_z(-side * 32) @ about_x(28)
        o.cylinder((side * 0.27, y + head * 0.9, z + 0.04), 0.19, 0.18, snout, top=0.02, rounding=0.01, turn=turn)
    eyes(o, 0.19, y + 0.15, z + head * 0.62, 0.12)
    o.torus((0, 0.86, -long - 0.1), 0.12, 0.06, arc=300, turn=about_y(30) @ about_x(75), blend=0.02)
    o.capsule((0, 0.74, -long + 0.02), (0.06, 0.76, -long - 0.14), 0.06, blend=0.03)
    o.crown((0, y + head * 0.82, z), head * 0.6)
    o.stripes = (0, 0, 1)


def turtle(o: Sculptor) -> None:
    """A dome of dark plates on a pale rim, head held up."""
    r, h, head = o.uniform(0.56, 0.62), o.uniform(0.40, 0.47), o.uniform(0.29, 0.33)
    plate = o.color((0.36, 0.22, 0.10))
    base = h + 0.06
    y, z = 0.74, r + 0.28
    o.ellipsoid((0, base, 0), (r, h, r * 1.12))
    o.ellipsoid((0, 0.26, 0), (r * 0.9, 0.22, r), CREAM)
    for k in range(7):
        turn = about_y(60.0 * k) @ about_x(56 if k else 0)
        x, up, ahead = turn[:, 1]
        place = (r * 0.92 * x, base + h * 0.92 * up, r * 1.03 * ahead)
        o.ellipsoid(place, (0.17, 0.08, 0.17), plate, turn=turn)
    o.torus((0, 0.32, 0), r * 1.02, 0.1, CREAM)
    for side in (1, -1):
        for end in (1, -1):
            o.capsule((side * r * 0.6, 0.3, end * r * 0.7), (side * r * 0.86, 0.13, end * r), 0.15, 0.13, blend=0.03)
    o.capsule((0, 0.28, r * 0.8), (0, y - 0.1, z - 0.08), 0.17, 0.17, blend=0.05)
    o.ellipsoid((0, y, z), (head, head * 0.92, head * 1.05), blend=0.05)
    o.capsule((0, 0.22, -r), (0, 0.13, -r - 0.3), 0.11, 0.06)
    eyes(o, 0.14, y + 0.08, z + head * 0.68, 0.115, aside=0.3)
    o.torus((0, y - 0.03, z + head * 0.94), 0.11, 0.03, DARK_BROWN, arc=120, turn=about_x(76))
    o.crown((0, y + head * 0.66, z), head * 0.68)
    o.stripes = (0, 0, 1)


def penguin(o: Sculptor) -> None:
    """Upright, white front, flippers held off."""
    r, h, head = o.uniform(0.42, 0.48), o.uniform(0.54, 0.62), o.uniform(0.34, 0.38)
    y = 0.62 + h * 0.95
    o.ellipsoid((0, 0.62, 0), (r, h, r * 0.92))
    o.ellipsoid((0, y, 0.03), (head, head * 0.95, head), blend=0.12)
    o.ellipsoid((0, 0.55, r * 0.42), (r * 0.72, h * 0.78, r * 0.6), IVORY)
    for side in (1, -1):
        o.ellipsoid((side * 0.13, y + 0.01, 0.03 + head * 0.52), (0.17, 0.2, head * 0.5), IVORY)
        turn = about_z(side * 22)
        o.ellipsoid((side * (r + 0.1), 0.68, 0), (0.085, 0.4, 0.19), turn=turn, blend=0.04)
        o.ellipsoid((side * 0.2, 0.06, 0.22), (0.17, 0.075, 0.26), BEAK, turn=about_y(side * 14))
        o.ellipsoid((side * 0.14, y + 0.02, 0.03 + head * 0.97), (0.065, 0.08, 0.06), BLACK)
    o.cylinder((0, y - 0.09, head + 0.15), 0.12, 0.18, BEAK, top=0.02, rounding=0.01, turn=about_x(96))
    o.capsule((0, 0.22, -r * 0.6), (0, 0.1, -r), 0.14, 0.07, blend=0.05)
    o.crown((0, y + head * 0.7, 0.02), head * 0.68)


def owl(o: Sculptor) -> None:
    """Upright, huge eyes in pale discs, ear tufts."""
    r, h, face = o.uniform(0.46, 0.52), o.uniform(0.58, 0.66), o.uniform(0.24, 0.27)
    y = h * 1.42
    o.ellipsoid((0, h + 0.06, 0), (r, h, r * 0.86))
    o.ellipsoid((0, y, 0.02), (r * 0.98, r * 0.74, r * 0.84), blend=0.1)
    o.ellipsoid((0, h * 0.72, r * 0.36), (r * 0.62, h * 0.56, r * 0.52), CREAM)
    for side in (1, -1):
        turn = about_z(-side * 24)
        o.cylinder((side * r * 0.66, y + r * 0.72, 0.04), 0.19, 0.22, top=0.03, rounding=0.02, turn=turn, blend=0.06)
        o.cylinder((side * face * 0.82, y + 0.02, r * 0.78), face, 0.09, CREAM, rounding=0.05, turn=about_x(90))
        o.ellipsoid((side * face * 0.8, y + 0.02, r * 0.78 + 0.08), (face * 0.62, face * 0.62, 0.08), BLACK)
        o.ellipsoid((side * face * 0.8 + 0.05, y + 0.08, r * 0.78 + 0.14), 0.05, WHITE)
        o.ellipsoid((side * r * 0.98, h * 0.95, -0.06), (0.11, h * 0.62, 0.3), turn=about_z(side * 6) @ about_x(14))
        for toe in (-0.08, 0.08):
            o.capsule((side * 0.2 + toe, 0.09, 0.14), (side * 0.2 + toe * 1.1, 0.08, 0.36), 0.09, 0.085, BEAK)
    o.cylinder((0, y - 0.12, r * 0.78 + 0.14), 0.11, 0.16, BEAK, top=0.02, rounding=0.01, turn=about_x(145))
    o.box((0, 0.16, -r * 0.72), (0.19, 0.06, 0.26), rounding=0.05, turn=about_x(20), blend=0.05)
    o.crown((0, y + r * 0.56, 0), r * 0.52)


def giraffe(o: Sculptor) -> None:
    """Long neck, dark patches, two horns."""
    r, neck, lean = o.uniform(0.29, 0.33), o.uniform(0.74, 0.88), o.uniform(0.18, 0.28)
    patch = o.color((0.34, 0.17, 0.07))
    top, z = 0.82 + neck, 0.34 + lean
    o.capsule((0, 0.72, -0.34), (0, 0.78, 0.28), r * 0.95, r)
    legs(o, r * 0.58, 0.34, 0.68, 0.13, DARK_BROWN)
    o.capsule((0, 0.84, 0.3), (0, top, z), 0.22, 0.17, blend=0.1)
    o.ellipsoid((0, top + 0.08, z + 0.04), (0.25, 0.24, 0.26), blend=0.05)
    o.capsule((0, top + 0.01, z + 0.2), (0, top - 0.07, z + 0.46), 0.18, 0.165, CREAM)
    for side in (1, -1):
        o.ellipsoid((side * 0.08, top, z + 0.59), (0.05, 0.045, 0.05), DARK_BROWN)
        o.capsule((side * 0.11, top + 0.22, z - 0.02), (side * 0.14, top + 0.44, z - 0.05), 0.065)
        o.ellipsoid((side * 0.14, top + 0.46, z - 0.05), 0.09, DARK_BROWN)
        o.ellipsoid((side * 0.34, top + 0.12, z - 0.06), (0.18, 0.1, 0.065), turn=about_z(side * 15), blend=0.03)
        o.ellipsoid((side * r * 0.84, 0.86, 0.26), (0.09, 0.14, 0.15), patch)
        o.ellipsoid((side * r * 0.84, 0.68, -0.06), (0.09, 0.13, 0.13), patch)
        o.ellipsoid((side * r * 0.76, 0.84, -0.36), (0.09, 0.14, 0.14), patch)
        for k, (share, along) in enumerate(((0.32, 0.05), (0.56, -0.05), (0.8, 0.04))):
            place = (side * (0.17 - 0.013 * k), 0.84 + share * neck, 0.3 + share * lean + along)
            o.ellipsoid(place, (0.07, 0.1, 0.11), patch)
    o.ellipsoid((0, 0.72 + r * 0.76, -0.14), (0.15, 0.09, 0.13), patch)
    o.ellipsoid((0, 0.84 + neck * 0.5, 0.14 + lean * 0.5), (0.1, 0.12, 0.07), patch)
    o.ellipsoid((0, 0.68, -0.36 - r * 0.84), (0.13, 0.14, 0.08), patch)
    eyes(o, 0.16, top + 0.15, z + 0.19, 0.11, aside=0.5)
    o.capsule((0, 0.82, -0.58), (0, 0.46, -0.76), 0.065)
    o.ellipsoid((0, 0.4, -0.78), (0.09, 0.12, 0.09), DARK_BROWN)
    o.crown((0, top + 0.26, z + 0.03), 0.22)


def teddy_bear(o: Sculptor) -> None:
    """Sitting with its pale soles to the front."""
    r, head, ear = o.uniform(0.38, 0.43), o.uniform(0.38, 0.42), o.uniform(0.15, 0.18)
    y = 1.14
    o.ellipsoid((0, 0.44, 0), (r, 0.46, r * 0.9))
    o.ellipsoid((0, 0.45, r * 0.42), (r * 0.7, 0.33, r * 0.54), CREAM)
    o.ellipsoid((0, y, 0.04), (head * 1.06, head * 0.94, head * 0.92))
    for side in (1, -1):
        o.ellipsoid((side * head * 0.86, y + head * 0.78, 0), (ear, ear, 0.1), blend=0.03)
        o.ellipsoid((side * head * 0.86, y + head * 0.78, 0.07), (ear * 0.6, ear * 0.6, 0.06), CREAM)
        o.capsule((side * r * 0.74, 0.7, 0.06), (side * (r + 0.22), 0.48, 0.26), 0.14, 0.14, blend=0.04)
        o.capsule((side * 0.24, 0.17, 0.1), (side * 0.36, 0.17, 0.58), 0.17, 0.17, blend=0.04)
        o.cylinder((side * 0.38, 0.19, 0.68), 0.15, 0.09, CREAM, rounding=0.05, turn=about_y(side * 14) @ about_x(84))
    eyes(o, 0.17, y + 0.09, 0.04 + head * 0.74, 0.095)
    o.ellipsoid((0, 0.17, -r * 0.86), 0.13)
    o.ellipsoid((0, y - 0.1, 0.04 + head * 0.84), (0.19, 0.15, 0.15), CREAM)
    o.ellipsoid((0, y - 0.04, 0.04 + head * 1.18), (0.085, 0.065, 0.06), BLACK)
    o.crown((0, y + head * 0.7, 0.03), head * 0.6)


OBJECTS: dict[str, Callable[[Sculptor], None]] = {
    "dog": dog,
    "cat": cat,
    "duck": duck,
    "fish": fish,
    "rabbit": rabbit,
    "elephant": elephant,
    "pig": pig,
    "turtle": turtle,
    "penguin": penguin,
    "owl": owl,
    "giraffe": giraffe,
    "teddy bear": teddy_bear,
}
