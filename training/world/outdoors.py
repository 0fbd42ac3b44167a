"""More vehicles, a church, a palm tree, and fruit and vegetables of the garden."""

import math
from collections.abc import Callable

import numpy as np

from training.world.sculptor import (
    BLACK,
    GLASS,
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
from training.world.vehicles import BRASS, FRAME, LAMP, PANE, RED, TYRE, axle, lamps

BEACON: Color = (0.10, 0.32, 0.98)
LADDER: Color = (0.82, 0.84, 0.87)
WICKER = (0.66, 0.44, 0.22)
ROPE: Color = (0.42, 0.30, 0.18)
CREAM: Color = (0.97, 0.93, 0.82)
FLAME: Color = (1.0, 0.62, 0.10)
SLATE = (0.28, 0.29, 0.33)
TILES = (0.48, 0.18, 0.12)
BARK = (0.50, 0.36, 0.21)
COCONUT: Color = (0.33, 0.19, 0.09)
LEAF = (0.20, 0.56, 0.17)
TIP: Color = (0.24, 0.16, 0.08)
SEED: Color = (1.0, 0.90, 0.56)
SOIL: Color = (0.42, 0.20, 0.07)


def bicycle(o: Sculptor) -> None:
    """Spoked wheels under mudguards, a diamond frame, saddle, handlebars and pedals; the chain is on its right."""
    r, base = o.uniform(0.42, 0.46), o.uniform(0.60, 0.66)
    seat, bar = o.uniform(1.16, 1.26), o.uniform(1.20, 1.30)
    upright = about_z(90)
    for z in (base, -base):
        o.torus((0, r, z), r - 0.06, 0.06, TYRE, turn=upright)
        o.torus((0, r, z), r - 0.135, 0.045, turn=upright)
        o.cylinder((0, r, z), 0.075, 0.13, METAL, rounding=0.02, turn=upright)
        for angle in (0, 60, 120):
            y, along = (r - 0.12) * math.sin(math.radians(angle)), (r - 0.12) * math.cos(math.radians(angle))
            o.capsule((0, r - y, z - along), (0, r + y, z + along), 0.032, color=METAL)
    o.torus((0, r, base), r + 0.01, 0.085, arc=95, turn=about_x(-100) @ upright)
    o.torus((0, r, -base), r + 0.01, 0.085, arc=115, turn=about_x(-115) @ upright)
    pedals, saddle, head = (0, r - 0.06, -0.02), (0, seat - 0.26, -0.20), (0, bar - 0.24, 0.40)
    for start, end in ((pedals, saddle), (saddle, head), (pedals, (0, bar - 0.34, 0.43))):
        o.capsule(start, end, 0.078)
    o.capsule((0, bar - 0.36, 0.44), (0, bar - 0.14, 0.37), 0.09)
    for side in (1, -1):
        x = side * 0.12
        o.capsule((x, r, -base), (side * 0.06, r - 0.06, -0.02), 0.055)
        o.capsule((x, r, -base), (side * 0.05, seat - 0.28, -0.20), 0.055)
        o.capsule((x, r, base), (side * 0.06, bar - 0.36, 0.44), 0.06)
        o.capsule((0, bar, 0.34), (side * 0.40, bar + 0.04, 0.22), 0.055, color=METAL)
        o.capsule((side * 0.34, bar + 0.03, 0.24), (side * 0.46, bar + 0.05, 0.12), 0.075, color=BLACK)
        o.capsule((side * 0.15, r - 0.06, -0.02), (side * 0.17, r - 0.06 - side * 0.17, 0.06), 0.045, color=METAL)
        o.box((side * 0.26, r - 0.06 - side * 0.17, 0.06), (0.10, 0.04, 0.085), BLACK, rounding=0.03)
    o.capsule((0, bar - 0.14, 0.37), (0, bar, 0.34), 0.06, color=METAL)
    o.cylinder((-0.13, r - 0.06, -0.02), 0.15, 0.045, STEEL, rounding=0.02, turn=upright)
    o.capsule((-0.14, r + 0.02, -0.02), (-0.14, r + 0.04, -base), 0.05)
    o.capsule(saddle, (0, seat - 0.04, -0.25), 0.06, color=METAL)
    o.ellipsoid((0, seat, -0.32), (0.17, 0.085, 0.18), BLACK)
    o.capsule((0, seat, -0.32), (0, seat - 0.01, -0.07), 0.085, 0.055, BLACK)
    o.ellipsoid((0, bar - 0.16, 0.50), (0.10, 0.10, 0.09), LAMP)
    o.ellipsoid((0, r + 0.22, -base - r * 0.92), (0.07, 0.07, 0.06), RED)
    o.crown((0, seat + 0.06, -0.28), 0.23)
    o.stripes = (0, 0, 1)


def fire_truck(o: Sculptor) -> None:
    """A long ladder over cab and body, blue beacons, shutters and a white band."""
    w, h, cab = o.uniform(0.43, 0.48), o.uniform(0.35, 0.40), o.uniform(0.43, 0.47)
    floor, r, rise = 0.28, 0.23, o.uniform(9, 13)
    roof, nose = floor + 2 * h, 1.02
    o.box((0, floor + h, -0.30), (w, h, 0.70), rounding=0.05)
    o.box((0, floor + cab, 0.70), (w * 0.99, cab, 0.33), rounding=0.09)
    o.box((0, floor - 0.01, 0), (w * 0.80, 0.09, 0.96), STEEL)
    glass = floor + cab * 1.36
    o.box((0, glass, 0.72), (w + 0.006, 0.175, 0.20), FRAME)
    o.box((0, glass, 0.72), (w + 0.02, 0.13, 0.155), PANE)
    o.box((0, glass, 0.80), (w * 0.86, 0.20, 0.235), FRAME)
    o.box((0, glass, 0.80), (w * 0.76, 0.15, 0.25), PANE)
    o.box((0, floor + cab * 0.66, 0), (w + 0.015, 0.05, 1.0), WHITE)
    o.box((0, floor + cab * 0.66, nose + 0.01), (w * 0.86, 0.05, 0.03), WHITE)
    o.box((0, floor + 0.12, nose), (w * 0.45, 0.075, 0.04), FRAME)
    lamps(o, w * 0.70, floor + 0.12, nose, 0.08, LAMP)
    o.box((0, floor - 0.06, nose), (w, 0.07, 0.10), LADDER, rounding=0.04)
    for z in (-0.68, -0.02):
        o.box((0, floor + h * 1.36, z), (w + 0.006, h * 0.38, 0.22), FRAME)
        o.box((0, floor + h * 1.36, z), (w + 0.02, h * 0.38 - 0.045, 0.175), METAL)
    o.box((0, floor + h * 1.2, -1.0), (w * 0.50, h * 0.46, 0.02), FRAME)
    o.box((0, floor + h * 1.2, -1.0), (w * 0.42, h * 0.46 - 0.045, 0.035), METAL)
    lamps(o, w * 0.80, floor + 0.22, -1.0, 0.08, RED)
    o.box((0, floor + 0.02, -1.0), (w * 0.96, 0.06, 0.07), LADDER, rounding=0.04)
    top = floor + 2 * cab
    o.box((0, top + 0.03, 0.72), (w * 0.74, 0.05, 0.09), WHITE, rounding=0.03)
    for side in (1, -1):
        o.cylinder((side * w * 0.62, top + 0.08, 0.72), 0.11, 0.10, BEACON, top=0.09, rounding=0.04)
        o.cylinder((side * w * 0.74, roof + 0.06, -0.88), 0.08, 0.08, BEACON, rounding=0.03)
    o.cylinder((0, roof + 0.06, -0.62), 0.22, 0.08, METAL, rounding=0.02)
    o.box((0, roof + 0.20, -0.62), (0.14, 0.12, 0.14), STEEL)
    slope = np.radians(rise)
    middle = roof + 0.26 + 0.62 * np.sin(slope)

    def along(reach: float, x: float) -> Vector:
        return x, middle + reach * np.sin(slope), reach * np.cos(slope)

    for side in (1, -1):
        o.capsule(along(-0.96, side * 0.20), along(0.98, side * 0.20), 0.055, color=LADDER)
    for i in range(8):
        o.capsule(along(-0.88 + 0.252 * i, -0.2), along(-0.88 + 0.252 * i, 0.2), 0.042, color=LADDER)
    for z in (0.68, -0.60):
        axle(o, w - 0.07, z, r, 0.11)
    o.crown(along(-0.15, 0), 0.25, about_x(-rise))
    o.stripes = (0, 0, 1)


def van(o: Sculptor) -> None:
    """A tall panel van: a short sloping nose, glass in front only, a sliding door, two doors at the back."""
    w, tall, back = o.uniform(0.42, 0.47), o.uniform(0.98, 1.10), o.uniform(0.86, 0.96)
    sill, hood = 0.20, 0.66
    nose = 1.0
    half = (tall - sill) / 2 + 0.02
    o.box((0, sill + half, -back / 2 + 0.20), (w, half, back / 2 + 0.20), rounding=0.10)
    o.box((0, (sill + hood) / 2, 0.60), (w * 0.99, (hood - sill) / 2, nose - 0.60), rounding=0.13)
    side_on = about_y(90)
    # Trapezoids whose front edges are the windscreen's slope; their back edges lie inside the body.
    y, rise = (hood + tall) / 2 - 0.04, (tall - hood) / 2 + 0.08
    o.prism((0, y, 0.18), 0.72, 0.34, rise, w - 0.01, rounding=0.08, turn=side_on)
    o.prism((0, y + 0.01, 0.18), 0.735, 0.365, rise - 0.09, w - 0.09, FRAME, rounding=0.03, turn=side_on)
    o.prism((0, y + 0.01, 0.18), 0.735, 0.385, rise - 0.13, w - 0.14, PANE, rounding=0.03, turn=side_on)
    o.prism((0, y + 0.02, 0.43), 0.31, 0.12, rise - 0.10, w + 0.01, FRAME, rounding=0.03, turn=side_on)
    o.prism((0, y + 0.02, 0.43), 0.25, 0.08, rise - 0.145, w + 0.022, PANE, rounding=0.03, turn=side_on)
    o.box((0, sill + 0.03, 0.05), (w * 0.94, 0.07, 0.96), STEEL, rounding=0.05)
    door = sill + half
    for z in (0.06, -0.44):
        o.box((0, door, z), (w + 0.008, half - 0.14, 0.022), FRAME, rounding=0.005)
    o.box((0, door + 0.03, -0.64), (w + 0.008, 0.025, 0.20), FRAME, rounding=0.005)
    for z in (0.16, -0.04):
        o.box((0, hood - 0.10, z), (w + 0.03, 0.03, 0.055), METAL, rounding=0.02)
    o.box((0, 0.46, nose - 0.01), (w * 0.48, 0.075, 0.035), FRAME, rounding=0.03)
    lamps(o, w * 0.74, 0.48, nose - 0.05, 0.095, LAMP)
    o.box((0, 0.26, nose - 0.02), (w * 0.98, 0.075, 0.07), STEEL, rounding=0.05)
    end = -back
    o.box((0, door, end), (0.022, half - 0.10, 0.012), FRAME, rounding=0.005)
    for side in (1, -1):
        o.box((side * w * 0.46, tall - 0.26, end), (w * 0.33, 0.14, 0.012), FRAME, rounding=0.01)
        o.box((side * w * 0.46, tall - 0.26, end), (w * 0.25, 0.10, 0.025), PANE, rounding=0.01)
        o.box((side * (w - 0.07), hood - 0.08, end + 0.02), (0.055, 0.14, 0.04), RED, rounding=0.03)
        o.ellipsoid((side * (w + 0.06), hood + 0.08, 0.62), (0.075, 0.10, 0.06), BLACK)
        o.box((side * 0.09, hood - 0.06, end - 0.01), (0.035, 0.06, 0.03), METAL)
        for z in (0.60, -0.52):
            o.cylinder((side * (w - 0.02), 0.26, z), 0.29, 0.03, BLACK, rounding=0.01, turn=about_z(90))
    o.box((0, 0.42, end), (w * 0.30, 0.06, 0.02), WHITE)
    o.box((0, 0.24, end + 0.01), (w * 0.98, 0.06, 0.05), STEEL, rounding=0.04)
    for z in (0.60, -0.52):
        axle(o, w - 0.04, z, 0.23, 0.10)
    o.crown((0, tall + 0.02, -0.2), 0.25)
    o.stripes = (0, 0, 1)


def hot_air_balloon(o: Sculptor) -> None:
    """A lobed envelope with a pale skirt over a burner and a wicker basket on ropes."""
    r, drop, gores = o.uniform(0.66, 0.74), o.uniform(0.28, 0.36), 12
    lean = math.radians(40)  # where the ball passes into the cone to the mouth
    shoulder, out = -r * math.sin(lean), r * math.cos(lean)
    mouth = shoulder - (out - 0.24) / math.tan(lean)
    o.ellipsoid((0, 0, 0), (r * 0.94, r * 1.06, r * 0.94))
    o.cylinder((0, (shoulder + mouth) / 2, 0), 0.19, (shoulder - mouth) / 2, top=out - 0.06)
    for i in range(gores):
        angle = 360 * (i + 0.5) / gores
        x, z = math.sin(math.radians(angle)), math.cos(math.radians(angle))
        o.ellipsoid((x * r * 0.45, 0, z * r * 0.45), (r * 0.24, r * 0.93, r * 0.55), turn=about_y(angle))
        o.capsule((x * (out - 0.11), shoulder + 0.02, z * (out - 0.11)), (x * 0.17, mouth, z * 0.17), 0.14, 0.06)
    o.ellipsoid((0, r * 0.99, 0), (0.25, 0.10, 0.25), CREAM)
    o.cylinder((0, mouth - 0.05, 0), 0.25, 0.09, CREAM, top=0.22, wall=0.06, rounding=0.02)
    rim = mouth - 0.10 - drop
    o.ellipsoid((0, mouth - 0.06 - drop * 0.3, 0), (0.09, 0.17, 0.09), FLAME)
    o.cylinder((0, rim + 0.12, 0), 0.085, 0.075, STEEL, rounding=0.02)
    wicker = o.color(WICKER)
    for x in (1, -1):
        for z in (1, -1):
            o.capsule((x * 0.17, mouth - 0.08, z * 0.17), (x * 0.24, rim, z * 0.24), 0.034, color=ROPE)
        o.capsule((0.22, rim + 0.10, x * 0.22), (-0.22, rim + 0.10, -x * 0.22), 0.036, color=STEEL)
    o.box((0, rim - 0.19, 0), (0.27, 0.21, 0.27), wicker, rounding=0.07)
    o.box((0, rim, 0), (0.30, 0.05, 0.30), ROPE, rounding=0.045)
    for y in (-0.17, -0.29):
        o.box((0, rim + y, 0), (0.282, 0.025, 0.282), ROPE, rounding=0.02)
    for side in (1, -1):
        o.ellipsoid((side * 0.30, rim - 0.15, 0), (0.065, 0.11, 0.085), CREAM)
        o.ellipsoid((0, rim - 0.15, side * 0.30), (0.085, 0.11, 0.065), CREAM)
    o.crown((0, r * 0.98, 0), 0.32)


def _arches(o: Sculptor, center: Vector, half: float, tall: float, depth: Scalar, along_x: bool) -> None:
    """Windows with round tops on two opposite walls: glass in a white frame, right through the building."""
    x, y, z = center
    for grow, color, out in ((0.04, WHITE, 0.02), (0.0, GLASS, 0.04)):
        turn = about_y(90 if along_x else 0)
        o.box((x, y, z), (half + grow, tall + grow, depth + out), color, rounding=0.01, turn=turn)
        o.cylinder((x, y + tall, z), half + grow, depth + out, color, turn=turn @ about_x(90))


def church(o: Sculptor) -> None:
    """A nave behind a tower with a pointed steeple and a cross, the door in the tower, an apse at the back."""
    w, h, d = o.uniform(0.42, 0.48), o.uniform(0.38, 0.43), o.uniform(0.58, 0.66)
    half, tall, spire = o.uniform(0.25, 0.28), o.uniform(0.70, 0.77), o.uniform(0.27, 0.32)
    slate = (o.uniform(0, 1) < 0.5)[:, None]
    roof = np.where(slate, o.color(SLATE, 0.03), o.color(TILES, 0.03))
    z, eaves = d - 0.14, half + 0.05
    # A pyramid: a ridge roof, cut by its front and its back slope.
    tip = 2 * tall + 2 * spire
    lean = np.degrees(np.arctan2(eaves, 2 * spire))
    sine, cosine = np.sin(np.radians(lean)), np.cos(np.radians(lean))
    o.prism((0, tip - spire, z), eaves, 0, spire, eaves, roof)
    for end in (1, -1):
        middle = (0, tip - spire + 0.5 * sine, z + end * (eaves / 2 + 0.5 * cosine))
        o.box(middle, (0.6, 0.7, 0.5), roof, carve=True, turn=about_x(-end * lean))
    o.box((0, tip + 0.08, z), (0.045, 0.20, 0.045), BRASS)
    o.box((0, tip + 0.13, z), (0.14, 0.045, 0.045), BRASS)
    o.box((0, tall, z), (half, tall, half))
    o.box((0, 2 * tall, z), (half + 0.05, 0.035, half + 0.05), WHITE)
    rise = w * 0.72
    back = -0.22
    o.box((0, h, back), (w, h, d))
    o.prism((0, 2 * h + rise / 2, back), w, 0, rise / 2, d)
    slope = np.degrees(np.arctan2(rise, w))
    for side in (1, -1):
        x, y = side * (w / 2 + 0.045), 2 * h + rise / 2
        o.box((x, y, back), (np.hypot(w, rise) / 2 + 0.07, 0.05, d + 0.04), roof, turn=about_z(-side * slope))
    apse = back - d
    o.cylinder((0, h * 0.9, apse), w * 0.66, h * 0.9)
    o.cylinder((0, h * 1.8 + 0.11, apse), w * 0.72, 0.13, roof, top=0.0)
    for place in (0.26, -0.12, -0.5):
        _arches(o, (0, h * 0.95, back + place), 0.07, 0.13, w, True)
    _arches(o, (0, 1.58 * tall, z), 0.085, 0.12, half, True)
    _arches(o, (0, 1.58 * tall, z), 0.085, 0.12, half, False)
    _arches(o, (0, h * 0.95, apse), 0.075, 0.12, w * 0.66, False)
    o.cylinder((0, tall * 1.06, z + half), 0.125, 0.03, WHITE, turn=about_x(90))
    o.cylinder((0, tall * 1.06, z + half + 0.02), 0.08, 0.03, GLASS, turn=about_x(90))
    for grow, color, out in ((0.06, WHITE, 0.0), (0.0, WOOD, 0.025)):
        o.box((0, 0.17, z + half + out), (0.12 + grow, 0.17, 0.05), color, rounding=0.01)
        o.cylinder((0, 0.34, z + half + out), 0.12 + grow, 0.05, color, turn=about_x(90))
    o.crown((0, tip - 0.06, z), 0.23)


def _frond(o: Sculptor, base: Vector, angle: Scalar, size: Scalar, pitches: tuple[float, float]) -> None:
    """A frond in the direction `angle` about y: two pieces, each of two leaves that meet in a ridge."""
    sine, cosine = np.sin(np.radians(angle)), np.cos(np.radians(angle))
    reach = height = 0.0
    for pitch, before, after, half, wide in zip(
        pitches, (0.30, 0.27), (0.26, 0), (0.34, 0.40), (0.13, 0.10), strict=True
    ):
        across, down = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))
        reach, height = reach + before * across, height - before * down
        for side in (1, -1):
            x, z = reach * sine + side * 0.075 * cosine, reach * cosine - side * 0.075 * sine
            turn = about_y(angle) @ about_x(pitch) @ about_z(-side * 32)
            middle = base[0] + x * size, base[1] + height * size, base[2] + z * size
            o.ellipsoid(middle, (wide * size, 0.045, half * size), turn=turn)
        reach, height = reach + after * across, height - after * down


def palm_tree(o: Sculptor) -> None:
    """A ringed, bent trunk under drooping fronds, with coconuts."""
    h, bend, size = o.uniform(1.20, 1.40), o.uniform(0.20, 0.34), o.uniform(0.95, 1.08)
    bark, turned = o.color(BARK), o.uniform(0, 45)
    rings = 7
    for i in range(rings):
        low, high = i / rings, (i + 1) / rings
        x, across = -bend * (1 - ((low + high) / 2 - 1) ** 2), -bend * 2 * (1 - (low + high) / 2) / rings
        tilt = np.degrees(np.arctan2(-across, h / rings))
        thick = 0.15 - 0.045 * low
        middle = (x, h * (low + high) / 2, 0)
        o.cylinder(middle, thick * 0.86, h / rings * 0.56, bark, top=thick * 1.1, rounding=0.02, turn=about_z(tilt))
    o.cylinder((-0.02, 0.05, 0), 0.24, 0.06, bark, top=0.14, rounding=0.03)
    top = -bend
    o.ellipsoid((top, h + 0.04, 0), (0.16, 0.14, 0.16))
    for i in range(8):
        _frond(o, (top, h + 0.04 * size, 0), turned + 45 * i, size, (-32, 26) if i % 2 else (-12, 52))
    for i in range(3):
        angle = np.radians(turned + 22 + 120 * i)
        o.ellipsoid((top + 0.16 * np.sin(angle), h - 0.10, 0.16 * np.cos(angle)), 0.11, COCONUT)
    o.crown((top, h + 0.27, 0), 0.28)


def banana(o: Sculptor) -> None:
    """A ripe banana that bulges down and to the front; its stem is at its left."""
    ring, thick, tilt = o.uniform(0.80, 0.92), o.uniform(0.24, 0.28), o.uniform(-42, -28)
    plane = about_x(tilt)
    stem = o.color((0.55, 0.50, 0.16))

    def at(angle_deg: float, out: float = 0.0) -> Vector:
        """A point of the arc, 0 degrees at its lowest, positive towards the stem."""
        angle = math.radians(angle_deg)
        x, y = (ring + out) * math.sin(angle), -(ring + out) * math.cos(angle)
        return x, y * plane[:, 1, 1], y * plane[:, 2, 1]

    shares = (0.40, 0.62, 0.80, 0.91, 0.98, 1.0, 1.0, 0.98, 0.93, 0.84, 0.70, 0.50)
    angles = np.linspace(-66, 66, len(shares))
    for i in range(len(shares) - 1):
        o.capsule(at(angles[i]), at(angles[i + 1]), thick * shares[i], thick * shares[i + 1])
    o.capsule(at(66), at(84, 0.04), thick * 0.5, thick * 0.34, stem, blend=0.04)
    o.capsule(at(84, 0.04), at(88, 0.06), thick * 0.38, color=TIP)
    o.capsule(at(-66), at(-73), thick * 0.42, thick * 0.3, TIP)
    o.crown(at(81, 0.03), 0.21, about_x(tilt / 2))
    o.stripes = (1, 0, 0)


def carrot(o: Sculptor) -> None:
    """A pointed root with short creases, and a tuft of leaves."""
    length, thick, tuft = o.uniform(1.20, 1.40), o.uniform(0.32, 0.38), o.uniform(0.9, 1.1)
    sway, turned = o.uniform(-0.10, 0.10), o.uniform(0, 60)
    green = o.color(LEAF)
    o.capsule((0, 0, 0), (0, -0.45 * length, 0), thick, thick * 0.72)
    o.capsule((0, -0.45 * length, 0), (sway * 0.5, -0.80 * length, 0), thick * 0.72, thick * 0.36)
    o.capsule((sway * 0.5, -0.80 * length, 0), (sway, -1.02 * length, 0), thick * 0.36, 0.05)
    o.torus((0, 0.10 * thick, 0), thick * 0.52, thick * 0.46)
    for i, share in enumerate((0.02, 0.12, 0.24, 0.36, 0.47, 0.58, 0.68, 0.78)):
        radius = thick * (1 - 0.62 * share if share < 0.45 else 0.72 - 0.36 * (share - 0.45) / 0.35)
        turn = about_y(turned + 137 * i)
        x = sway * 0.5 * max(share - 0.45, 0) / 0.35
        o.torus((x, -share * length, 0), radius - 0.012, 0.034, SOIL, arc=(80, 120, 95)[i % 3], turn=turn)
    for i in range(7):
        angle = turned + 60 * i
        lean, reach = ((44, 0.56), (20, 0.68))[i % 2] if i < 6 else (0, 0.74)
        out = about_y(angle) @ about_x(lean)

        def frond(along: float, side: float, out: Array = out) -> Vector:
            x, y, z = tuft * (side * out[:, :, 0] + along * out[:, :, 1]).T
            return x, y + thick * 0.4, z

        o.capsule(frond(0.05, 0), frond(reach, 0), 0.05, 0.04, green)
        for low, wide in ((reach * 0.42, 0.17), (reach * 0.72, 0.13)):
            for side in (1, -1):
                o.capsule(frond(low, 0), frond(low + 0.13, side * wide), 0.065, 0.035, green)
    o.crown((0, thick * 0.4 + 0.48 * tuft, 0), 0.25)


def strawberry(o: Sculptor) -> None:
    """A heart-shaped berry with seeds in its skin, under a star of leaves."""
    wide, tall, point = o.uniform(0.54, 0.60), o.uniform(0.66, 0.78), 0.20
    green = o.color(LEAF)
    o.capsule((0, 0, 0), (0, -tall, 0), wide, point)
    slant = np.degrees(np.arcsin((wide - point) / tall))
    # Seeds stand on the upper ball, then on the cone between the balls; `low` is in degrees below the equator.
    rows = ((-18, 0, 8), (6, 0, 9), (slant, 0.10, 9), (slant, 0.36, 7), (slant, 0.62, 5), (slant, 0.88, 3))
    for row, (low, share, count) in enumerate(rows):
        ball = wide + (point - wide) * share
        out, y = ball * np.cos(np.radians(low)), -tall * share - ball * np.sin(np.radians(low))
        for i in range(count):
            angle = 360 * (i + 0.5 * (row % 2)) / count
            x, z = out * math.sin(math.radians(angle)), out * math.cos(math.radians(angle))
            o.ellipsoid((x, y, z), (0.042, 0.065, 0.032), SEED, turn=about_y(angle) @ about_x(low))
    top = wide
    for i in range(7):
        angle = 360 * (i + 0.5) / 7
        x, z = 0.5 * wide * math.sin(math.radians(angle)), 0.5 * wide * math.cos(math.radians(angle))
        o.ellipsoid((x, wide * 0.9, z), (0.14, 0.055, 0.29), green, turn=about_y(angle) @ about_x(24))
    o.capsule((0, top - 0.05, 0), (0.03, top + 0.14, 0), 0.085, 0.065, green)
    o.capsule((0.03, top + 0.14, 0), (0.14, top + 0.26, 0), 0.065, 0.07, green)
    o.crown((0, top + 0.03, 0), 0.30)


OBJECTS: dict[str, Callable[[Sculptor], None]] = {
    "bicycle": bicycle,
    "fire truck": fire_truck,
    "van": van,
    "hot air balloon": hot_air_balloon,
    "church": church,
    "palm tree": palm_tree,
    "banana": banana,
    "carrot": carrot,
    "strawberry": strawberry,
}
