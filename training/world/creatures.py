"""More animals: of the farm, the wild, the water and the past. They look along +z; the main colour is the coat's."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from training.world.animals import BEAK, CREAM, DARK_BROWN, IVORY, PINK, eyes, legs
from training.world.sculptor import BLACK, WHITE, Color, Scalar, Sculptor, Vector, about_x, about_y, about_z

HOOF = (0.20, 0.16, 0.15)
COMB_RED = (0.88, 0.10, 0.12)
MOUTH = (0.42, 0.10, 0.12)


def limb(
    o: Sculptor, points: Sequence[Vector], radii: Sequence[Scalar], color: Color = None, blend: Scalar = 0.0
) -> None:
    """Capsules from point to point; the first one blends into earlier primitives."""
    for k, (start, end) in enumerate(pairwise(points)):
        o.capsule(start, end, radii[k], radii[k + 1], color, blend=blend if k == 0 else 0.0)


def horse(o: Sculptor) -> None:
    """Slim legs, a mane down the raised neck, a long head and a long tail."""
    r, long, neck = o.uniform(0.30, 0.35), o.uniform(0.40, 0.48), o.uniform(0.54, 0.66)
    hair = o.color((0.24, 0.15, 0.10))
    top, z = 0.90 + neck, long + 0.38
    o.capsule((0, 0.84, -long), (0, 0.86, long), r, r * 0.98)
    legs(o, r * 0.58, long, 0.76, 0.12, HOOF)
    o.capsule((0, 0.90, long), (0, top, z), 0.28, 0.19, blend=0.1)
    o.capsule((0, top + 0.03, z + 0.02), (0, top - 0.24, z + 0.38), 0.23, 0.165, blend=0.05)
    o.ellipsoid((0, top - 0.28, z + 0.45), (0.185, 0.165, 0.175), CREAM)
    for side in (1, -1):
        o.ellipsoid((side * 0.09, top - 0.24, z + 0.6), (0.042, 0.047, 0.042), DARK_BROWN)
        turn = about_z(-side * 14)
        o.cylinder((side * 0.14, top + 0.3, z - 0.02), 0.095, 0.17, top=0.02, rounding=0.01, turn=turn, blend=0.03)
    eyes(o, 0.16, top + 0.06, z + 0.18, 0.11, aside=0.6)
    for k in range(6):
        share = k / 5
        thick = 0.26 - 0.06 * share
        place = (0, 0.94 + share * neck + 0.5 * thick, long - 0.06 + share * 0.38 - 0.84 * thick)
        o.ellipsoid(place, (0.1, 0.15, 0.13), hair, turn=about_x(-24))
    o.ellipsoid((0, top + 0.24, z - 0.04), (0.085, 0.09, 0.14), hair)
    o.ellipsoid((0, top + 0.19, z + 0.14), (0.075, 0.06, 0.13), hair, turn=about_x(40))
    back = long + r
    tail = [(0.0, up, -back - out) for up, out in ((0.98, -0.06), (1.0, 0.12), (0.82, 0.26), (0.5, 0.26), (0.26, 0.36))]
    limb(o, tail, (0.08, 0.1, 0.12, 0.12, 0.04), hair)
    o.crown((0, top + 0.22, z), 0.21, about_x(8))
    o.stripes = (0, 0, 1)


def cow(o: Sculptor) -> None:
    """A square trunk with dark patches, horns, a pink muzzle and an udder."""
    w, long, y = o.uniform(0.34, 0.39), o.uniform(0.52, 0.60), 1.2
    patch = o.color((0.17, 0.12, 0.10), 0.03)
    z = long + 0.28
    o.box((0, 0.86, 0), (w, 0.37, long), rounding=0.27)
    legs(o, w * 0.62, long * 0.7, 0.6, 0.13, HOOF)
    o.capsule((0, 0.98, long * 0.75), (0, y - 0.06, z - 0.1), 0.25, 0.23, blend=0.08)
    o.ellipsoid((0, y, z), (0.26, 0.29, 0.28), blend=0.04)
    o.ellipsoid((0, y - 0.17, z + 0.22), (0.22, 0.16, 0.18), PINK)
    for side in (1, -1):
        o.ellipsoid((side * 0.09, y - 0.12, z + 0.38), (0.04, 0.045, 0.04), DARK_BROWN)
        o.ellipsoid((side * 0.37, y + 0.08, z - 0.06), (0.18, 0.085, 0.1), turn=about_z(-side * 16), blend=0.03)
        horn = ((side * 0.14, y + 0.22, z - 0.04), (side * 0.3, y + 0.3, z - 0.02), (side * 0.36, y + 0.48, z + 0.02))
        limb(o, horn, (0.075, 0.065, 0.02), IVORY)
        for teat in (-0.08, 0.08):
            place = (side * 0.09, 0.36, -long * 0.3 + teat)
            o.capsule(place, (place[0], 0.29, place[2]), 0.04, 0.035, PINK)
        o.ellipsoid((side * w * 0.94, 0.94 - side * 0.06, 0.2 + side * 0.06), (0.06, 0.2, 0.2), patch)
        o.ellipsoid((side * w * 0.94, 0.84 + side * 0.1, -0.26 + side * 0.06), (0.06, 0.16, 0.2), patch)
    o.ellipsoid((0, 0.48, -long * 0.3), (0.21, 0.14, 0.21), PINK)
    o.ellipsoid((0.08, 1.2, -0.12), (0.2, 0.05, 0.22), patch)
    o.ellipsoid((-0.06, 0.92, -long), (0.17, 0.2, 0.06), patch)
    eyes(o, 0.15, y + 0.08, z + 0.2, 0.1, aside=0.3)
    limb(o, ((0.0, 1.1, -long + 0.02), (0, 1.06, -long - 0.12), (0, 0.6, -long - 0.16)), (0.055, 0.05, 0.05))
    o.ellipsoid((0, 0.52, -long - 0.16), (0.085, 0.15, 0.085), patch)
    o.crown((0, y + 0.24, z - 0.02), 0.22)
    o.stripes = (0, 0, 1)


def sheep(o: Sculptor) -> None:
    """Bulging wool around a dark face, on thin dark legs."""
    r, long, curl = o.uniform(0.35, 0.40), o.uniform(0.46, 0.54), o.uniform(0.15, 0.18)
    dark = o.color((0.20, 0.17, 0.17), 0.03)
    y, z = 1.1, long + 0.1
    o.ellipsoid((0, 0.76, -0.05), (r, r * 0.95, long))
    golden = math.pi * (3 - 5**0.5)
    for k in range(28):
        up = 1 - (2 * k + 1) / 28
        flat, around = (1 - up * up) ** 0.5, golden * k
        place = (r * 0.9 * flat * math.cos(around), 0.76 + r * 0.85 * up, -0.05 + long * 0.9 * flat * math.sin(around))
        o.ellipsoid(place, curl)
    for side in (1, -1):
        for end in (0.26, -0.36):
            o.cylinder((side * 0.2, 0.24, end), 0.085, 0.24, dark, rounding=0.04)
        o.ellipsoid((side * 0.3, y + 0.02, z + 0.06), (0.17, 0.075, 0.1), dark, turn=about_z(-side * 24))
        o.ellipsoid((side * 0.13, y + 0.18, z + 0.04), 0.14)
    o.ellipsoid((0, y - 0.06, z + 0.12), (0.2, 0.27, 0.23), dark, turn=about_x(-24))
    o.ellipsoid((0, y + 0.23, z + 0.1), 0.14)
    o.capsule((0, 0.86, long * 0.6), (0, y + 0.16, z - 0.1), 0.24, 0.2)
    o.ellipsoid((0, y - 0.17, z + 0.32), (0.06, 0.045, 0.04), PINK)
    eyes(o, 0.115, y + 0.0, z + 0.27, 0.085, aside=0.3)
    o.ellipsoid((0, 0.86, -long - 0.16), 0.13)
    o.crown((0, y + 0.27, z + 0.03), 0.2)
    o.stripes = (0, 0, 1)


def bear(o: Sculptor) -> None:
    """On four heavy paws with claws, a hump over its shoulders, round ears and a stub of a tail."""
    r, long, head = o.uniform(0.40, 0.46), o.uniform(0.56, 0.64), o.uniform(0.33, 0.37)
    tan = o.color((0.80, 0.62, 0.42))
    y, z = 1.02, long + 0.16
    o.ellipsoid((0, 0.74, -0.16), (r, r * 0.96, long))
    o.ellipsoid((0, 0.88, long * 0.42), (r * 0.86, r * 0.9, 0.36), blend=0.12)
    o.ellipsoid((0, y, z), (head * 1.04, head * 0.94, head * 0.94), blend=0.08)
    for side in (1, -1):
        for end in (long * 0.6, -long * 0.76):
            x = side * r * 0.58
            o.cylinder((x, 0.36, end), 0.17, 0.3, top=0.2, rounding=0.05, blend=0.08)
            o.ellipsoid((x, 0.12, end + 0.07), (0.19, 0.12, 0.25), blend=0.04)
            o.cylinder((x, 0.03, end + 0.06), 0.13, 0.04, DARK_BROWN, rounding=0.03)
            for toe in (-0.1, 0.0, 0.1):
                claw = end + 0.3 - abs(toe) * 0.4
                o.capsule((x + toe, 0.1, claw - 0.05), (x + toe * 1.1, 0.05, claw + 0.07), 0.045, 0.02, IVORY)
        o.ellipsoid((side * head * 0.78, y + head * 0.78, z - 0.06), (0.14, 0.14, 0.09), blend=0.03)
        o.ellipsoid((side * head * 0.78, y + head * 0.78, z + 0.01), (0.085, 0.085, 0.05), tan)
    o.capsule((0, y - 0.11, z + head * 0.7), (0, y - 0.13, z + head + 0.14), 0.18, 0.14, tan)
    o.ellipsoid((0, y - 0.05, z + head + 0.26), (0.095, 0.07, 0.065), BLACK)
    o.capsule((0, y - 0.16, z + head + 0.26), (0, y - 0.2, z + head + 0.23), 0.02, 0.02, BLACK)
    eyes(o, 0.15, y + 0.1, z + head * 0.78, 0.075, aside=0.25)
    o.ellipsoid((0, 0.86, -0.16 - long), 0.12, blend=0.05)
    o.crown((0, y + head * 0.74, z), head * 0.62)
    o.stripes = (0, 0, 1)


def frog(o: Sculptor) -> None:
    """Crouching on folded hind legs, eyes on top of a head that is mostly mouth."""
    w, thigh = o.uniform(0.40, 0.46), o.uniform(0.32, 0.38)
    y, z = o.uniform(0.64, 0.72), 0.26
    o.ellipsoid((0, 0.40, -0.14), (w * 0.95, 0.33, 0.54), turn=about_x(-24))
    o.ellipsoid((0, y, z), (w, 0.25, w * 0.94), blend=0.1)
    o.ellipsoid((0, y - 0.14, z), (w * 0.86, 0.2, w * 0.8), CREAM)
    o.ellipsoid((0, 0.33, 0.08), (w * 0.72, 0.28, 0.34), CREAM)
    o.torus((0, y - 0.07, z - 0.01), w * 0.93, 0.024, MOUTH, arc=170)
    for side in (1, -1):
        o.ellipsoid((side * w * 0.6, y + 0.22, z + 0.04), 0.165, blend=0.05)
        o.ellipsoid((side * (w + 0.06), 0.28, -0.24), (0.16, 0.23, thigh), turn=about_y(side * 14) @ about_x(-18))
        o.capsule((side * (w + 0.08), 0.12, -0.44), (side * (w + 0.14), 0.1, 0.06), 0.11, 0.08)
        foreleg = ((side * w * 0.66, 0.5, 0.3), (side * w * 0.86, 0.28, 0.4), (side * w * 0.74, 0.07, 0.52))
        limb(o, foreleg, (0.12, 0.095, 0.08), blend=0.05)
        for toe in (-0.13, 0.0, 0.13):
            o.capsule((side * w * 0.74, 0.06, 0.52), (side * w * 0.74 + toe, 0.05, 0.72), 0.055, 0.05)
            hind = side * (w + 0.14)
            o.capsule((hind, 0.06, 0.06), (hind + toe * 1.1 + side * 0.04, 0.05, 0.34), 0.06, 0.055)
        o.ellipsoid((side * 0.06, y + 0.06, z + w * 0.9), 0.022, BLACK)
    eyes(o, w * 0.6, y + 0.26, z + 0.11, 0.135, aside=0.4)
    o.crown((0, y + 0.23, z - 0.1), 0.22, about_x(-12))
    o.stripes = (0, 0, 1)


def chicken(o: Sculptor) -> None:
    """Red comb and wattles, a fan of a tail, thin legs with long toes."""
    r, long, tall = o.uniform(0.36, 0.41), o.uniform(0.44, 0.50), o.uniform(0.30, 0.40)
    y, z = 1.05 + tall, 0.42
    o.ellipsoid((0, 0.76, -0.02), (r, 0.36, long))
    o.capsule((0, 0.84, 0.24), (0, y, z), 0.29, 0.19, blend=0.12)
    o.ellipsoid((0, y + 0.02, z), (0.21, 0.22, 0.21), blend=0.03)
    for x, top in ((0.0, 1.34), (0.17, 1.26), (-0.17, 1.26), (0.28, 1.08), (-0.28, 1.08)):
        o.capsule((x * 0.5, 0.8, -0.3), (x, top, -0.8 - abs(x) * 0.2), 0.15, 0.1, blend=0.04)
    for side in (1, -1):
        o.ellipsoid((side * r * 0.95, 0.8, -0.08), (0.09, 0.2, 0.34), turn=about_x(10) @ about_y(-side * 6))
        o.ellipsoid((side * 0.07, y - 0.17, z + 0.21), (0.055, 0.11, 0.055), COMB_RED)
        o.capsule((side * 0.17, 0.5, 0.02), (side * 0.17, 0.34, 0.02), 0.15, 0.08, blend=0.06)
        o.capsule((side * 0.17, 0.36, 0.02), (side * 0.17, 0.06, 0.02), 0.055, 0.05, BEAK)
        for across, ahead in ((0.0, 0.26), (0.13, 0.2), (-0.13, 0.2), (0.0, -0.16)):
            o.capsule((side * 0.17, 0.05, 0.02), (side * 0.17 + across, 0.04, 0.02 + ahead), 0.05, 0.035, BEAK)
    for up, ahead in ((0.18, 0.19), (0.26, 0.09), (0.27, -0.03), (0.2, -0.14)):
        o.ellipsoid((0, y + up, z + ahead), (0.05, 0.11, 0.075), COMB_RED)
    o.cylinder((0, y - 0.02, z + 0.28), 0.095, 0.13, BEAK, top=0.02, rounding=0.01, turn=about_x(96))
    eyes(o, 0.12, y + 0.06, z + 0.12, 0.085, aside=0.7)
    o.crown((0, y + 0.19, z - 0.03), 0.18, about_x(-6))
    o.stripes = (0, 0, 1)


def parrot(o: Sculptor) -> None:
    """On a branch: a hooked beak, pale cheeks, wings of three colours and a long tail that hangs down."""
    r, head, tail = o.uniform(0.29, 0.33), o.uniform(0.28, 0.32), o.uniform(0.46, 0.58)
    yellow, blue = o.color((0.98, 0.80, 0.14)), o.color((0.12, 0.36, 0.84))
    y, z = 1.24, 0.16
    o.ellipsoid((0, 0.72, 0), (r, 0.48, r * 0.95), turn=about_x(10))
    o.ellipsoid((0, y, z), (head, head, head), blend=0.1)
    lean = about_x(16)
    o.ellipsoid((0, 0.3 - tail * 0.9, -0.28 - tail * 0.26), (0.11, tail + 0.1, 0.06), turn=lean)
    for side in (1, -1):
        o.ellipsoid((side * 0.09, 0.34 - tail * 0.7, -0.26 - tail * 0.2), (0.085, tail * 0.9, 0.05), blue, turn=lean)
        turn = about_z(side * 5) @ about_x(14)
        o.ellipsoid((side * r * 0.98, 0.82, -0.06), (0.1, 0.3, 0.2), turn=turn)
        o.ellipsoid((side * r * 0.98, 0.62, -0.12), (0.095, 0.28, 0.17), yellow, turn=turn)
        o.ellipsoid((side * r * 0.94, 0.45, -0.17), (0.085, 0.3, 0.14), blue, turn=turn)
        o.ellipsoid((side * head * 0.56, y + 0.03, z + head * 0.5), (0.16, 0.17, 0.15), WHITE)
        for toe in (-0.07, 0.0, 0.07):
            o.torus((side * 0.15 + toe, 0.2, 0.06), 0.11, 0.04, HOOF, arc=240, turn=about_z(90))
    beak = ((0, y + 0.05, z + head * 0.8), (0, y + 0.04, z + head + 0.1), (0, y - 0.08, z + head + 0.2))
    limb(o, (*beak, (0, y - 0.24, z + head + 0.17)), (0.13, 0.12, 0.085, 0.025), o.color((0.16, 0.15, 0.16), 0.02))
    o.ellipsoid((0, y - 0.13, z + head * 0.9), (0.085, 0.07, 0.13), HOOF, turn=about_x(20))
    eyes(o, head * 0.6, y + 0.07, z + head * 0.68, 0.085, aside=0.6)
    o.capsule((-0.62, 0.2, 0.06), (0.62, 0.2, 0.06), 0.095, 0.08, o.color((0.44, 0.28, 0.16)))
    o.crown((0, y + head * 0.72, z - 0.02), head * 0.66)


def whale(o: Sculptor) -> None:
    """A huge head, a pale grooved throat, level flukes and a spout of water."""
    w, tall, long = o.uniform(0.46, 0.52), o.uniform(0.40, 0.46), o.uniform(0.62, 0.70)
    water = o.color((0.66, 0.88, 0.98), 0.02)
    o.ellipsoid((0, 0, 0.2), (w, tall, long))
    limb(o, ((0, 0.0, -0.1), (0, 0.08, -0.66), (0, 0.34, -1.02)), (tall * 0.85, 0.19, 0.11), blend=0.16)
    y, r, z = -tall * 0.33, tall * 0.76, 0.26
    o.ellipsoid((0, y, z), (w * 0.9, r, long * 0.98), CREAM)
    for across in (-0.6, -0.3, 0.0, 0.3, 0.6):
        flat = (1 - across * across) ** 0.5
        groove: list[Vector] = []
        for degrees in (-14, -38, -66, -100, -128):
            up, ahead = flat * math.sin(math.radians(degrees)), flat * math.cos(math.radians(degrees))
            groove.append((across * w * 0.9, y + r * up, z + long * 0.98 * ahead))
        limb(o, groove, [0.018] * 5, (0.72, 0.62, 0.48))
    for side in (1, -1):
        turn = about_x(-30) @ about_y(side * 28)
        o.ellipsoid((side * 0.25, 0.46, -1.14), (0.32, 0.065, 0.16), turn=turn, blend=0.05)
        turn = about_y(side * 35) @ about_z(-side * 20)
        o.ellipsoid((side * (w + 0.1), -0.2, 0.1), (0.3, 0.06, 0.15), turn=turn, blend=0.04)
        jet = ((0, tall + 0.26, 0.12), (side * 0.14, tall + 0.36, 0.12), (side * 0.25, tall + 0.24, 0.12))
        limb(o, jet, (0.07, 0.08, 0.06), water)
    o.cylinder((0, tall + 0.1, 0.12), 0.06, 0.18, water, top=0.085, rounding=0.02)
    eyes(o, w * 0.76, tall * 0.2, 0.2 + long * 0.58, 0.085, aside=1.2)
    o.crown((0, tall * 0.78, 0.2 + long * 0.52), 0.22, about_x(22))
    o.stripes = (0, 0, 1)


def crab(o: Sculptor) -> None:
    """Broad and flat: eyes on stalks, raised pincers, eight jointed legs."""
    w, deep, claw = o.uniform(0.58, 0.66), o.uniform(0.40, 0.46), o.uniform(0.19, 0.23)
    o.ellipsoid((0, 0.42, 0), (w, 0.31, deep))
    o.ellipsoid((0, 0.34, 0.02), (w * 0.86, 0.28, deep * 0.9), CREAM)
    for side in (1, -1):
        x, up = side * (w + 0.16), 0.82
        arm = ((side * w * 0.74, 0.44, deep * 0.5), (x, 0.42, 0.46), (x, up - claw * 0.6, 0.5))
        limb(o, arm, (0.11, 0.1, 0.1), blend=0.04)
        o.ellipsoid((x, up, 0.5), (claw, claw * 1.05, claw * 0.72))
        finger = ((0.1, 0.06), (0.19, 0.32), (0.04, 0.56))
        limb(o, [(x + side * out, up + high, 0.5) for out, high in finger], (0.14, 0.12, 0.03))
        thumb = ((-0.1, 0.04), (-0.2, 0.24), (-0.08, 0.44))
        limb(o, [(x + side * out, up + high, 0.5) for out, high in thumb], (0.11, 0.085, 0.025))
        for k, z in enumerate((0.2, 0.02, -0.16, -0.32)):
            knee = (side * (w + 0.18 - 0.06 * k), 0.42, z * 1.6)
            tip = (side * (w + 0.34 - 0.08 * k), 0.03, z * 1.9)
            limb(o, ((side * w * 0.76, 0.32, z), knee, tip), (0.1, 0.085, 0.03))
        o.capsule((side * 0.17, 0.62, deep * 0.66), (side * 0.19, 0.86, deep * 0.78), 0.06, 0.055)
        o.ellipsoid((side * 0.19, 0.93, deep * 0.8 - 0.04), 0.125)
    eyes(o, 0.19, 0.93, deep * 0.8, 0.125, aside=0.15)
    o.torus((0, 0.5, deep * 0.92), 0.12, 0.026, MOUTH, arc=140, turn=about_x(80))
    o.crown((0, 0.69, -0.12), 0.24)
    o.stripes = (1, 0, 0)


def snail(o: Sculptor) -> None:
    """A shell with a spiral on a soft body, eyes on long stalks."""
    w, r = o.uniform(0.32, 0.38), o.uniform(0.50, 0.58)
    skin, line = o.color((0.88, 0.72, 0.50)), o.color((0.30, 0.18, 0.11))
    middle = r + 0.14
    o.ellipsoid((0, middle, -0.14), (w, r, r * 1.04))
    o.ellipsoid((0, 0.12, -0.06), (0.25, 0.13, 0.86), skin)
    limb(o, ((0, 0.16, 0.4), (0, 0.3, 0.68), (0, 0.58, 0.84)), (0.17, 0.2, 0.18), skin, blend=0.06)
    o.ellipsoid((0, 0.64, 0.88), (0.22, 0.2, 0.21), skin, blend=0.04)
    for side in (1, -1):
        spiral: list[Vector] = []
        for k in range(19):
            share, turn = 0.08 + 0.042 * k, 0.66 * k
            up, ahead = share * math.sin(turn), share * math.cos(turn)
            x = side * w * (1 - share * share) ** 0.5
            spiral.append((x, middle + r * up, -0.14 + r * 1.04 * ahead))
        limb(o, spiral, [0.036] * 19, line)
        o.capsule((side * 0.1, 0.76, 0.94), (side * 0.18, 1.1, 1.02), 0.055, 0.05, skin)
        o.ellipsoid((side * 0.18, 1.14, 0.995), 0.11, skin)
        o.capsule((side * 0.09, 0.56, 1.04), (side * 0.12, 0.5, 1.2), 0.04, 0.045, skin)
    eyes(o, 0.18, 1.14, 1.03, 0.11, aside=0.15)
    o.torus((0, 0.61, 0.88), 0.2, 0.02, MOUTH, arc=80)
    o.crown((0, 0.79, 0.82), 0.22, about_x(-12))
    o.stripes = (0, 0, 1)


def dinosaur(o: Sculptor) -> None:
    """Upright on two strong legs: toothy jaws, tiny arms, spikes from its neck to the end of its thick tail."""
    r, neck, long = o.uniform(0.33, 0.38), o.uniform(0.30, 0.40), o.uniform(0.95, 1.1)
    spike = o.color((0.97, 0.62, 0.16))
    y, z = 1.24 + neck, 0.24
    o.ellipsoid((0, 0.86, -0.06), (r, 0.48, 0.40), turn=about_x(14))
    o.capsule((0, 1.12, 0.06), (0, y, z - 0.04), 0.27, 0.22, blend=0.1)
    tail = [(0.0, 0.7, -0.26), (0.0, 0.4, -0.3 - long * 0.38), (0.0, 0.2, -0.3 - long * 0.7), (0.0, 0.16, -0.3 - long)]
    limb(o, tail, (0.32, 0.21, 0.12, 0.04), blend=0.1)
    o.ellipsoid((0, y, z), (0.28, 0.26, 0.3), blend=0.06)
    o.box((0, y - 0.02, z + 0.34), (0.21, 0.13, 0.28), rounding=0.11, blend=0.06)
    o.box((0, y - 0.22, z + 0.26), (0.18, 0.075, 0.28), rounding=0.06, turn=about_x(14), blend=0.03)
    o.box((0, y - 0.13, z + 0.26), (0.15, 0.07, 0.25), MOUTH, rounding=0.04, turn=about_x(6))
    o.ellipsoid((0, 0.84, 0.13), (r * 0.74, 0.42, 0.27), CREAM, turn=about_x(10))
    for side in (1, -1):
        o.ellipsoid((side * r * 0.9, 0.56, -0.08), (0.18, 0.32, 0.27), turn=about_x(12), blend=0.05)
        o.capsule((side * r * 0.96, 0.36, -0.14), (side * r * 0.96, 0.14, -0.04), 0.15, 0.13, blend=0.04)
        o.ellipsoid((side * r * 0.98, 0.09, 0.1), (0.16, 0.1, 0.26))
        for toe in (-0.1, 0.0, 0.1):
            o.ellipsoid((side * r * 0.98 + toe, 0.06, 0.34 - abs(toe) * 0.6), (0.045, 0.05, 0.07), IVORY)
        arm = ((side * r * 0.8, 1.1, 0.2), (side * (r * 0.9), 0.98, 0.42), (side * r * 0.72, 1.04, 0.54))
        limb(o, arm, (0.09, 0.075, 0.065), blend=0.03)
        o.ellipsoid((side * r * 0.72, 1.06, 0.6), (0.035, 0.035, 0.055), IVORY)
        o.ellipsoid((side * 0.09, y + 0.06, z + 0.61), 0.03, BLACK)
        for k in range(3):
            place = (side * (0.15 - 0.035 * (k == 2)), y - 0.15, z + 0.28 + 0.13 * k)
            o.cylinder(place, 0.012, 0.055, WHITE, top=0.045, rounding=0.005)
    back = ((y + 0.12, z - 0.3), (y - 0.14, z - 0.36), (1.16, -0.34), (0.92, -0.52), (0.68, -0.66))
    for k, (up, ahead) in enumerate(back):
        tilt = -62 - 4 * k
        o.cylinder((0, up, ahead), 0.13, 0.14, spike, top=0.01, rounding=0.005, turn=about_x(tilt))
    for share in (0.52, 0.7, 0.86):
        place = (0, 0.68 - 0.5 * share + 0.14 * share, -0.3 - long * share)
        o.cylinder(place, 0.1, 0.12, spike, top=0.01, rounding=0.005, turn=about_x(-30))
    eyes(o, 0.17, y + 0.16, z + 0.17, 0.11, aside=0.3)
    o.crown((0, y + 0.2, z - 0.06), 0.24, about_x(-8))


def octopus(o: Sculptor) -> None:
    """A bulb of a head on eight arms that curl up at their ends, pale suckers below."""
    r, tall = o.uniform(0.42, 0.48), o.uniform(0.50, 0.60)
    sucker = o.color((0.99, 0.80, 0.76), 0.02)
    y = 0.5 + tall * 0.86
    o.ellipsoid((0, y, -0.04), (r, tall, r))
    o.ellipsoid((0, 0.4, 0), (r * 0.86, 0.3, r * 0.86), blend=0.14)
    for k in range(8):
        around = math.radians(22.5 + 45 * k)
        x, z = math.sin(around), math.cos(around)
        reach = o.uniform(0.8, 0.94)
        path = ((0.24, 0.34), (0.5, 0.16), (reach, 0.1), (reach + 0.17, 0.22), (reach + 0.14, 0.42))
        points = [(x * out, up, z * out) for out, up in path]
        limb(o, points, (0.18, 0.15, 0.11, 0.08, 0.05), blend=0.08)
        for out, up in ((0.62, 0.05), (reach + 0.02, 0.05)):
            o.ellipsoid((x * out, up, z * out), 0.07, sucker)
    o.ellipsoid((0, 0.2, 0), (0.3, 0.14, 0.3), sucker)
    eyes(o, 0.18, y - 0.16, r * 0.8, 0.15, aside=0.2)
    o.torus((0, y - 0.34, r * 0.76), 0.1, 0.035, MOUTH, arc=150, turn=about_x(84))
    o.crown((0, y + tall * 0.74, -0.04), r * 0.6)


OBJECTS: dict[str, Callable[[Sculptor], None]] = {
    "horse": horse,
    "cow": cow,
    "sheep": sheep,
    "bear": bear,
    "frog": frog,
    "chicken": chicken,
    "parrot": parrot,
    "whale": whale,
    "crab": crab,
    "snail": snail,
    "dinosaur": dinosaur,
    "octopus": octopus,
}
