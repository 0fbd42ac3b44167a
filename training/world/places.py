"""Buildings, plants and the snowman."""

import math
from collections.abc import Callable

import numpy as np

from training.world.sculptor import (
    BLACK,
    GLASS,
    STEEL,
    WHITE,
    WOOD,
    Array,
    Color,
    Scalar,
    Sculptor,
    about_x,
    about_y,
    about_z,
)

BARK: Color = (0.40, 0.25, 0.13)
CLAY = (0.76, 0.40, 0.24)
SOIL: Color = (0.22, 0.15, 0.11)
LEAF = (0.16, 0.52, 0.18)
CREAM: Color = (0.96, 0.90, 0.76)
STONE: Color = (0.78, 0.76, 0.71)
CARROT = (0.95, 0.45, 0.08)
DARK: Color = (0.10, 0.09, 0.10)
LAMP: Color = (1.0, 0.93, 0.55)


def _either(o: Sculptor, first: tuple[float, float, float], second: tuple[float, float, float]) -> Array:
    """One of two colours for each instance, [n 3]."""
    return np.where((o.uniform(0, 1) < 0.5)[:, None], o.color(first, 0.03), o.color(second, 0.03))


def _window(
    o: Sculptor, x: Scalar, y: Scalar, z: Scalar, half: float, turn_deg: float = 0.0, tall: float = 1.2
) -> None:
    """Glass in a white frame on a wall; turned by 0 degrees it looks to +z, by 90 to +x."""
    angle = math.radians(turn_deg)
    turn, dx, dz = about_y(turn_deg), math.sin(angle) * 0.03, math.cos(angle) * 0.03
    o.box((x, y, z), (half + 0.05, half * tall + 0.05, 0.05), WHITE, turn=turn)
    o.box((x + dx, y, z + dz), (half, half * tall, 0.05), GLASS, turn=turn)


def _door(o: Sculptor, y: Scalar, z: Scalar, half: float, half_height: float, tilt: Scalar = 0.0) -> None:
    """A wooden door with a round top in a white frame, at the front; `y` is its threshold."""
    for grow, color, out in ((0.07, WHITE, 0.0), (0.0, WOOD, 0.03)):
        turn = about_x(tilt)
        o.box((0, y + half_height, z + out), (half + grow, half_height, 0.06), color, rounding=0.01, turn=turn)
        top = z + out + np.sin(np.radians(tilt)) * half_height
        o.cylinder((0, y + 2 * half_height, top), half + grow, 0.06, color, turn=turn @ about_x(90))


def tree(o: Sculptor) -> None:
    """A brown trunk under a crown of balls."""
    h, r = o.uniform(0.5, 0.65), o.uniform(0.36, 0.42)
    o.cylinder((0, h / 2 + 0.1, 0), 0.25, h / 2 + 0.1, BARK, top=0.14, rounding=0.03)
    o.ellipsoid((0, h + 0.62, 0), (0.5, 0.5, 0.5))
    first = o.uniform(0, 72)
    for i in range(5):
        angle = np.radians(first + 72 * i)
        o.ellipsoid((0.46 * np.sin(angle), h + 0.36 + 0.06 * (i % 2), 0.46 * np.cos(angle)), r, blend=0.03)
    for i in range(3):
        angle = np.radians(first + 30 + 120 * i)
        o.ellipsoid((0.32 * np.sin(angle), h + 0.84, 0.32 * np.cos(angle)), r * 0.9, blend=0.03)
    o.ellipsoid((0, h + 1.1, 0), r * 0.9, blend=0.03)
    o.crown((0, h + 1.1 + r * 0.6, 0), 0.34)


def pine_tree(o: Sculptor) -> None:
    """A brown trunk under four stacked cones."""
    w, step = o.uniform(0.66, 0.76), o.uniform(0.35, 0.4)
    o.cylinder((0, 0.25, 0), 0.22, 0.25, BARK, top=0.18)
    for i, (narrower, half) in enumerate(((0.0, 0.28), (0.12, 0.28), (0.23, 0.28), (0.34, 0.31))):
        bottom, y = w - narrower, 0.46 + step * i
        o.cylinder((0, y, 0), bottom + 0.01, 0.07, rounding=0.04)  # an upright rim, which snow leaves bare
        o.cylinder((0, y + half, 0), bottom, half, top=np.maximum(bottom - 0.41, 0), rounding=0.015)
    o.crown((0, 0.78 + step * 3, 0), 0.27)


def mushroom(o: Sculptor) -> None:
    """A calm cap on a pale stem; the spots are an attribute."""
    w, tall, stem = o.uniform(0.74, 0.86), o.uniform(0.58, 0.7), o.uniform(0.24, 0.29)
    pale = o.color((0.94, 0.89, 0.78), 0.03)
    o.ellipsoid((0, 0.82, 0), (w, tall, w))
    o.box((0, 0.32, 0), (1, 0.5, 1), (0.85, 0.77, 0.64), carve=True)
    o.torus((0, 0.83, 0), w - 0.08, 0.09)
    o.cylinder((0, 0.43, 0), stem * 1.3, 0.43, pale, top=stem * 0.9, rounding=0.06)
    o.torus((0, 0.58, 0), stem * 0.98, 0.08, pale)
    o.crown((0, 0.76 + tall, 0), 0.34)


def cactus(o: Sculptor) -> None:
    """A ribbed column with two raised arms, in a clay pot."""
    h, r, turned = o.uniform(1.25, 1.45), o.uniform(0.22, 0.26), np.radians(o.uniform(-30, 30))
    clay = o.color(CLAY)
    o.cylinder((0, 0.2, 0), 0.3, 0.2, clay, top=0.4, rounding=0.03)
    o.cylinder((0, 0.38, 0), 0.46, 0.09, clay, rounding=0.03)
    o.cylinder((0, 0.44, 0), 0.39, 0.04, SOIL)
    o.capsule((0, 0.4, 0), (0, 0.3 + h, 0), 0.24)
    for i in range(8):
        angle = math.pi * (i + 0.5) / 4
        x, z = r * math.sin(angle), r * math.cos(angle)
        o.capsule((x, 0.4, z), (x * 0.85, 0.28 + h, z * 0.85), 0.105)
    for side, low, high in (
        (1, o.uniform(0.8, 0.9), o.uniform(0.4, 0.5)),
        (-1, o.uniform(1.0, 1.1), o.uniform(0.36, 0.46)),
    ):
        x, z = side * 0.68 * np.cos(turned), side * 0.68 * np.sin(turned)
        o.capsule((0, low, 0), (x, low + 0.04, z), 0.15, blend=0.03)
        o.capsule((x, low + 0.04, z), (x, low + high, z), 0.16, blend=0.03)
    o.crown((0, 0.42 + h, 0), 0.29)


def flower(o: Sculptor) -> None:
    """A daisy that looks to the front and a little upwards."""
    w, h, tilt = o.uniform(0.23, 0.27), o.uniform(1.2, 1.35), o.uniform(-24, -16)
    green = o.color(LEAF)
    lean = about_x(tilt)
    sine, cosine = np.sin(np.radians(tilt)), np.cos(np.radians(tilt))
    o.capsule((0, 0.06, -0.1), (0, h, -0.12), 0.09, 0.09, green)
    o.cylinder((0, 0.05, -0.1), 0.26, 0.05, green, top=0.12, rounding=0.03, blend=0.06)
    for side in (1, -1):
        o.ellipsoid((side * 0.33, 0.3, 0), (0.34, 0.08, 0.17), green, turn=about_z(side * 32) @ about_y(-side * 15))
    o.ellipsoid((0, h, -0.08), (0.26, 0.26, 0.16), green, turn=lean)
    for i in range(8):
        angle = 45 * i + 22.5
        x, y = 0.48 * -math.sin(math.radians(angle)), 0.48 * math.cos(math.radians(angle))
        petal = lean @ about_z(angle) @ about_x(12)
        o.ellipsoid((x, h + y * cosine, y * sine), (w, 0.37, 0.12), turn=petal)
    o.ellipsoid((0, h - 0.06 * sine, 0.06), (0.3, 0.3, 0.12), (0.52, 0.28, 0.08), turn=lean)
    o.ellipsoid((0, h - 0.1 * sine, 0.1), (0.23, 0.23, 0.15), (1.0, 0.84, 0.12), turn=lean)
    o.crown((0, h + 0.7 * cosine, 0.7 * sine), 0.27, lean)


def snowman(o: Sculptor) -> None:
    """Three balls, a carrot and a scarf, but no hat of its own."""
    r, middle, head = o.uniform(0.64, 0.72), o.uniform(0.46, 0.52), o.uniform(0.37, 0.42)
    y, top = r * 0.9 + middle * 1.15, r * 0.9 + middle * 1.95 + head * 0.8
    scarf = _either(o, (0.80, 0.10, 0.12), (0.12, 0.25, 0.72))
    o.ellipsoid((0, r * 0.9, 0), (r, r * 0.95, r))
    o.ellipsoid((0, y, 0), (middle, middle * 0.95, middle))
    o.ellipsoid((0, top, 0), head)
    for side in (1, -1):
        hand = side * (middle + 0.52)
        o.capsule((side * middle * 0.8, y + 0.08, 0), (hand, y + 0.34, 0.06), 0.07, 0.06, BARK)
        o.capsule((hand * 0.85, y + 0.25, 0.05), (hand * 0.85 + side * 0.02, y + 0.5, 0.08), 0.06, 0.055, BARK)
        eye = side * head * 0.36, top + head * 0.28, head * 0.84
        o.ellipsoid(eye, (0.1, 0.11, 0.08), WHITE)
        o.ellipsoid((eye[0], eye[1], eye[2] + 0.045), (0.07, 0.08, 0.06), BLACK)
    o.capsule((0, top - 0.03, head * 0.9), (0, top - 0.06, head + 0.36), 0.1, 0.04, o.color(CARROT))
    for angle in (20, -16):
        at, turn = math.radians(angle), about_x(90 - angle)
        up, out = math.sin(at), math.cos(at)
        o.cylinder((0, y + up * middle * 0.93, out * middle * 0.98), 0.12, 0.04, WHITE, turn=turn, rounding=0.02)
        o.cylinder((0, y + up * middle * 0.96, out * middle * 1.02), 0.085, 0.05, BLACK, turn=turn, rounding=0.03)
    neck = top - head * 0.83
    o.torus((0, neck, 0), head * 0.74, 0.12, scarf)
    o.torus((0, neck, 0), head * 0.74 + 0.09, 0.055, WHITE)
    hang = about_x(-6) @ about_z(10)
    o.box((0.25, neck - 0.24, middle * 0.9), (0.12, 0.24, 0.07), scarf, rounding=0.04, turn=hang)
    o.box((0.28, neck - 0.4, middle * 0.92), (0.125, 0.045, 0.075), WHITE, rounding=0.02, turn=hang)
    o.crown((0, top + head * 0.62, 0), head * 0.74, about_x(-6))


def house(o: Sculptor) -> None:
    """A gable to the front with the door in it, two roof slabs, a chimney."""
    w, h, d = o.uniform(0.62, 0.74), o.uniform(0.6, 0.68), o.uniform(0.58, 0.66)
    rise = w * o.uniform(0.66, 0.76)
    roof = _either(o, (0.45, 0.12, 0.10), (0.27, 0.28, 0.31))
    o.box((0, h + 0.025, 0), (w, h + 0.025, d))
    o.prism((0, 2 * h + rise / 2, 0), w, 0.0, rise / 2, d)
    o.box((w * 0.5, 2 * h + rise * 0.75, -d * 0.4), (0.15, rise * 0.45, 0.15))
    o.box((w * 0.5, 2 * h + rise * 1.2, -d * 0.4), (0.19, 0.06, 0.19), STONE)
    slope = np.degrees(np.arctan2(rise, w))
    for side in (1, -1):
        x, y = side * (w / 2 + 0.05), 2 * h + rise / 2
        o.box((x, y, 0), (np.hypot(w, rise) / 2 + 0.09, 0.06, d + 0.07), roof, turn=about_z(-side * slope))
    _door(o, 0.0, d, 0.16, 0.29)
    for side in (1, -1):
        _window(o, side * w * 0.62, h * 1.1, d, 0.11)
        _window(o, side * w * 0.5, h * 1.05, -d, 0.12, 180)
        for place in (0.5, -0.5):
            _window(o, side * w, h * 1.05, place * d, 0.12, 90)
    o.cylinder((0, 2 * h + rise * 0.36, d), 0.15, 0.05, WHITE, turn=about_x(90))
    o.cylinder((0, 2 * h + rise * 0.36, d + 0.03), 0.1, 0.05, GLASS, turn=about_x(90))
    o.crown((0, 2 * h + rise + 0.02, 0), 0.3)


def castle(o: Sculptor) -> None:
    """Walls between four towers, a keep in the middle, the gate at the front."""
    w, h, tower, keep = o.uniform(0.58, 0.66), o.uniform(0.35, 0.4), o.uniform(0.52, 0.58), o.uniform(0.68, 0.76)
    roof = _either(o, (0.62, 0.14, 0.13), (0.20, 0.25, 0.50))
    o.box((0, h, 0), (w, h, w))
    o.box((0, 2 * h, 0), (w - 0.12, 0.3, w - 0.12), carve=True)
    for side in (1, -1):
        o.box((side * 0.16, 2 * h, 0), (0.07, 0.13, 1), carve=True)
        o.box((0, 2 * h, side * 0.16), (1, 0.13, 0.07), carve=True)
    o.box((0, keep, -0.08), (0.34, keep, 0.34))
    o.box((0, 2 * keep, -0.08), (0.24, 0.1, 0.24), carve=True)
    for side in (1, -1):
        o.box((side * 0.12, 2 * keep, -0.08), (0.05, 0.1, 0.5), carve=True)
        o.box((0, 2 * keep, -0.08 + side * 0.12), (0.5, 0.1, 0.05), carve=True)
    for x in (1, -1):
        for z in (1, -1):
            o.cylinder((x * w, tower, z * w), 0.25, tower, top=0.22)
            o.cylinder((x * w, 2 * tower + 0.24, z * w), 0.36, 0.255, roof, top=0.0)
        _window(o, x * w, tower * 1.35, w + 0.2, 0.06, tall=1.7)
    _door(o, 0.0, w, 0.17, 0.16)
    _window(o, 0, keep * 1.5, 0.26, 0.08, tall=1.6)
    o.crown((0, 2 * keep - 0.02, -0.08), 0.3)


def windmill(o: Sculptor) -> None:
    """A tower with four sails in front of its cap."""
    h, r, sail = o.uniform(1.4, 1.55), o.uniform(0.68, 0.76), o.uniform(0.82, 0.9)
    phase = o.uniform(35, 55)
    cloth = o.color((0.97, 0.94, 0.86), 0.02)
    o.cylinder((0, h / 2, 0), r, h / 2, top=r * 0.64)
    o.ellipsoid((0, h, 0), (r * 0.74, 0.36, r * 0.74))
    o.torus((0, h - 0.01, 0), r * 0.68, 0.07, BARK)
    hub = r * 0.72 + 0.16
    o.cylinder((0, h + 0.02, hub - 0.2), 0.09, 0.25, BARK, turn=about_x(90))
    for i in range(4):
        turn = about_z(phase + 90 * i)
        x, y = -np.sin(np.radians(phase + 90 * i)), np.cos(np.radians(phase + 90 * i))

        def along(share: float, x: Array = x, y: Array = y) -> tuple[Array, Array, Array]:
            return x * sail * share, h + 0.02 + y * sail * share, hub

        o.box(along(0.65), (0.21, sail * 0.35, 0.05), cloth, turn=turn)
        o.box(along(0.5), (0.06, sail * 0.5, 0.08), BARK, turn=turn)
        for share in (0.48, 0.82):
            o.box(along(share), (0.2, 0.045, 0.07), BARK, turn=turn)
    o.ellipsoid((0, h + 0.02, hub + 0.06), (0.13, 0.13, 0.1), STEEL)
    tilt = -np.degrees(np.arctan2(r * 0.36, h))
    _door(o, 0.0, r * 0.93, 0.15, 0.2, tilt)
    for side in (1, -1):
        _window(o, side * r * 0.84, h * 0.42, 0, 0.11, side * 90)
    _window(o, 0, h * 0.5, -r * 0.81, 0.11, 180)
    o.crown((0, h + 0.28, 0), 0.42)


def lighthouse(o: Sculptor) -> None:
    """A calm tower under a gallery and a lantern; the stripes are an attribute."""
    h, r = o.uniform(1.4, 1.6), o.uniform(0.48, 0.56)
    top = r * o.uniform(0.6, 0.68)
    roof = _either(o, (0.55, 0.10, 0.10), (0.24, 0.25, 0.28))
    o.cylinder((0, 0.05, 0), r + 0.14, 0.12, top=r + 0.06, rounding=0.04)
    o.cylinder((0, h / 2 + 0.1, 0), r, h / 2, top=top)
    y = h + 0.1
    o.cylinder((0, y + 0.03, 0), top + 0.15, 0.06, STEEL, rounding=0.02)
    o.torus((0, y + 0.17, 0), top + 0.1, 0.05, STEEL)
    for i in range(6):
        x, z = (top + 0.1) * math.sin(math.pi * i / 3), (top + 0.1) * math.cos(math.pi * i / 3)
        o.capsule((x, y, z), (x, y + 0.17, z), 0.05, color=STEEL)
    o.cylinder((0, y + 0.3, 0), top * 0.74, 0.28, LAMP)
    for angle in (45, -45):
        o.box((0, y + 0.3, 0), (top * 0.8, 0.28, 0.05), STEEL, turn=about_y(angle))
    o.cylinder((0, y + 0.58, 0), top * 0.98, 0.05, roof)
    o.ellipsoid((0, y + 0.6, 0), (top * 0.9, 0.3, top * 0.9))
    o.ellipsoid((0, y + 0.92, 0), 0.09, roof)
    slope = (r - top) / h
    _door(o, 0.12, r - 0.06, 0.13, 0.18, -np.degrees(np.arctan(slope)))
    _window(o, 0, h * 0.68, r - slope * h * 0.6, 0.08)
    _window(o, 0, h * 0.5, -r + slope * h * 0.42, 0.08, 180)
    o.crown((0, y + 0.76, 0), top * 0.8)


def tent(o: Sculptor) -> None:
    """A ridge tent with leaning ends, open at the front."""
    w, h, d = o.uniform(0.76, 0.88), o.uniform(0.54, 0.6), o.uniform(0.84, 0.96)
    lean = o.uniform(14, 19)
    sine, cosine = np.sin(np.radians(lean)), np.cos(np.radians(lean))
    o.prism((0, h, 0), w, 0.0, h, d)
    for end in (1, -1):
        o.box(
            (0, h + 0.5 * sine, end * (d - h * sine / cosine + 0.5 * cosine)),
            (1.3, 1.3, 0.5),
            carve=True,
            turn=about_x(-end * lean),
        )

    def opening(half_height: Array, inwards: float) -> tuple[float, Array, Array]:
        """The middle of a cut that leans with the front and starts at the ground."""
        y, z = half_height - 0.03, -inwards
        return 0.0, y * cosine + z * sine, d - y * sine + z * cosine

    front = about_x(-lean)
    o.prism(opening(h * 0.8, 0), w * 0.52, 0.0, h * 0.8, 0.12, CREAM, carve=True, turn=front)
    o.prism(opening(h * 0.68, 0.1), w * 0.4, 0.0, h * 0.68, 0.5, DARK, carve=True, turn=front)
    ridge = d - 2 * h * sine / cosine + 0.1
    o.capsule((0, 2 * h - 0.06, -ridge), (0, 2 * h - 0.06, ridge), 0.07, color=WOOD)
    o.capsule((0, 0.04, -d), (0, 1.9 * h, -ridge + 0.08), 0.05, color=CREAM)
    for x in (1, -1):
        for z in (1, -1):
            foot = x * (w + 0.24), 0.03, z * d * 0.75
            o.capsule((x * w * 0.62, h * 0.76, z * d * 0.6), foot, 0.05, color=CREAM)
            o.ellipsoid(foot, (0.09, 0.11, 0.09), STEEL)
    o.crown((0, 2 * h - 0.05, 0), 0.32)


OBJECTS: dict[str, Callable[[Sculptor], None]] = {
    "tree": tree,
    "pine tree": pine_tree,
    "mushroom": mushroom,
    "cactus": cactus,
    "flower": flower,
    "snowman": snowman,
    "house": house,
    "castle": castle,
    "windmill": windmill,
    "lighthouse": lighthouse,
    "tent": tent,
}
