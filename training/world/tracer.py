"""The scalar program behind `render.draw`: it computes one pixel of one image.

Its functions are numba's, which compiles them for the CPU and, called from a CUDA kernel, for the GPU. They take a
primitive (`part`) or all of an instance (`parts`), its `look` and an image's `view`, whose columns `layout` names.
"""

import math

import numba
import numpy as np
from numpy.typing import NDArray

from training.world.layout import (
    AMBIENT,
    AXIS,
    BLEND,
    BOUND,
    BOX,
    BRICKS,
    CARVE,
    CENTER,
    CYLINDER,
    ELLIPSOID,
    EYE,
    GOLDEN,
    INSTANCE,
    KIND,
    MAIN,
    OFFSET,
    PAINT,
    PATTERN,
    PRISM,
    RGB,
    ROTATION,
    SIZE,
    SKY,
    SNOW,
    SPOTS,
    STRIPES,
    SUN,
    SUN_LEVEL,
    TAN,
    TORUS,
    TRIM,
    TURN,
    WOODEN,
)

RAYS = 2  # a side: four rays a pixel
STEPS = 128
FAR = 1e3
HIT = 5e-4
BRICK, COURSE, MORTAR = 0.2, 0.1, 0.024  # of the unit sphere
DARKEST = 0.21  # brightness of the parts that no material covers

Floats = NDArray[np.float32]
Rgb = tuple[float, float, float]

_program = numba.njit(error_model="numpy", fastmath=True)


@_program
def distance(part: Floats, px: float, py: float, pz: float) -> float:
    """Signed distance of a point to one primitive; for ellipsoids, frustums and prisms an estimate, close near them."""
    dx, dy, dz = px - part[CENTER], py - part[CENTER + 1], pz - part[CENTER + 2]
    x = part[ROTATION] * dx + part[ROTATION + 3] * dy + part[ROTATION + 6] * dz
    y = part[ROTATION + 1] * dx + part[ROTATION + 4] * dy + part[ROTATION + 7] * dz
    z = part[ROTATION + 2] * dx + part[ROTATION + 5] * dy + part[ROTATION + 8] * dz
    a, b, c = part[SIZE], part[SIZE + 1], part[SIZE + 2]
    kind = int(part[KIND])
    if kind == ELLIPSOID:
        x, y, z = x / a, y / b, z / c
        unit = math.sqrt(x * x + y * y + z * z)
        x, y, z = x / a, y / b, z / c
        return unit * (unit - 1) / max(math.sqrt(x * x + y * y + z * z), 1e-6)
    if kind == BOX:
        edge = part[SIZE + 3]
        x, y, z = abs(x) - a + edge, abs(y) - b + edge, abs(z) - c + edge
        outside = math.sqrt(max(x, 0.0) ** 2 + max(y, 0.0) ** 2 + max(z, 0.0) ** 2)
        return outside + min(max(x, max(y, z)), 0.0) - edge
    if kind == CYLINDER:
        wall, edge = part[SIZE + 3], part[SIZE + 4]
        slope = (b - a) / (2 * c)
        across = math.sqrt(x * x + z * z) - (a + b) / 2 - slope * y
        across = max(across + edge, -across - wall + edge) / math.sqrt(1 + slope * slope)
        along = abs(y) - c + edge
        return math.sqrt(max(across, 0.0) ** 2 + max(along, 0.0) ** 2) + min(max(across, along), 0.0) - edge
    if kind == TORUS:
        sine, cosine = part[SIZE + 2], part[SIZE + 3]
        x = abs(x)
        flat = math.sqrt(x * x + z * z)
        near = flat if cosine * x <= sine * z else x * sine + z * cosine
        return math.sqrt(max(x * x + y * y + z * z + a * a - 2 * a * near, 0.0)) - b
    if kind == PRISM:
        depth, edge = part[SIZE + 3], part[SIZE + 4]
        slope = (b - a) / (2 * c)
        across = (abs(x) - (a + b) / 2 - slope * y) / math.sqrt(1 + slope * slope) + edge
        up, along = abs(y) - c + edge, abs(z) - depth + edge
        outside = math.sqrt(max(across, 0.0) ** 2 + max(up, 0.0) ** 2 + max(along, 0.0) ** 2)
        return outside + min(max(across, max(up, along)), 0.0) - edge
    slope = (a - b) / c
    cosine = math.sqrt(max(1 - slope * slope, 0.0))
    flat = math.sqrt(x * x + z * z)
    k = y * cosine - flat * slope
    if k < 0:
        return math.sqrt(flat * flat + y * y) - a
    if k > cosine * c:
        return math.sqrt(flat * flat + (y - c) ** 2) - b
    return flat * cosine + y * slope - a


@_program
def field(parts: Floats, chosen: int, x: float, y: float, z: float) -> tuple[float, int]:
    """Distance to the object, and the primitive whose surface is nearest."""
    best, nearest = FAR, 0
    raw = FAR
    i = 0
    while chosen:
        if chosen & 1:
            d = distance(parts[i], x, y, z)
            if parts[i, CARVE] > 0:
                if -d > best:
                    best, raw, nearest = -d, -d, i
            else:
                if d < raw:
                    raw, nearest = d, i
                k = parts[i, BLEND]
                melt = max(k - abs(best - d), 0.0)
                best = min(best, d)
                if k > 0:
                    best -= melt * melt / (4 * k)
        chosen >>= 1
        i += 1
    return best, nearest


@_program
def candidates(parts: Floats, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float, margin: float) -> int:
    """Bits of the primitives whose bounding balls a ray meets."""
    chosen = 0
    for i in range(len(parts)):
        x, y, z = parts[i, CENTER] - ox, parts[i, CENTER + 1] - oy, parts[i, CENTER + 2] - oz
        along = x * dx + y * dy + z * dz
        reach = parts[i, BOUND] + parts[i, BLEND] + margin
        if x * x + y * y + z * z - along * along < reach * reach:
            chosen |= 1 << i
    return chosen


@_program
def spots(x: float, y: float, z: float) -> float:
    """Whether a point lies in a spot, 0 or 1: surfaces cut the balls of a body-centred cubic lattice."""
    for half in range(2):
        fx, fy, fz = x / 0.36 + 0.5 * half, y / 0.36 + 0.5 * half, z / 0.36 + 0.5 * half
        fx, fy, fz = fx - math.floor(fx) - 0.5, fy - math.floor(fy) - 0.5, fz - math.floor(fz) - 0.5
        if fx * fx + fy * fy + fz * fz < 0.098:
            return 1.0
    return 0.0


@_program
def bricks(nx: float, ny: float, nz: float, x: float, y: float, z: float) -> tuple[float, float]:
    """Mortar at a surface point, 0 or 1, and the tone of its brick: running bond on the plane that the normal suits."""
    along, up = x, y
    if abs(ny) > 0.8:
        up = z
    elif abs(nx) > abs(nz):
        along = z
    up /= COURSE
    course = math.floor(up)
    along = along / BRICK + 0.5 * (course - 2 * math.floor(course / 2))
    column = math.floor(along)
    mortar = (up - course) * COURSE < MORTAR or (along - column) * BRICK < MORTAR
    chance = math.sin(12.9898 * course + 78.233 * column) * 43.7
    return 1.0 if mortar else 0.0, 0.82 + 0.3 * (chance - math.floor(chance))


@_program
def gold(ny: float, x: float, y: float, z: float) -> Rgb:
    """Colour of gold: bands of a made-up reflection follow the normal, and wander a little over flat faces."""
    tone = 0.5 + 0.5 * math.sin(4.2 * ny + 1.3 * math.sin(2.6 * x + 1.9 * y) + 1.3 * math.sin(2.6 * z - 1.9 * y) + 0.9)
    return 0.60 + 0.40 * min(2 * tone, 1.0), 0.36 + 0.55 * tone, 0.02 + 0.44 * tone * tone * tone


@_program
def paint(part: Floats, look: Floats, nx: float, ny: float, nz: float, x: float, y: float, z: float) -> Rgb:
    """Colour of a surface point before light.

    Spots and stripes are on the parts of the named colour, snow lies on whatever looks up. A material makes up all
    but the darkest parts, which are pupils, tyres and glass: in the named colour where that would be, else in the
    material's own, as light or dark as the part is. Gold has no colour but its own.
    """
    r, g, b = part[RGB], part[RGB + 1], part[RGB + 2]
    light = 0.5 * r + 0.4 * g + 0.1 * b  # more of red than usual: a dark red roof is lighter than glass
    main = part[MAIN] > 0
    if main:
        r, g, b = look[PAINT], look[PAINT + 1], look[PAINT + 2]
    pattern = int(look[PATTERN])
    tr, tg, tb = look[TRIM], look[TRIM + 1], look[TRIM + 2]
    ox, oy, oz = look[OFFSET], look[OFFSET + 1], look[OFFSET + 2]
    share = 0.0
    if pattern == SNOW:
        share = min(max((ny - 0.45) / 0.12, 0.0), 1.0)
        tr, tg, tb = 0.9, 0.93, 0.98
    elif pattern == SPOTS and main:
        share = spots(x + 0.36 * ox, y + 0.36 * oy, z + 0.36 * oz)
    elif pattern == STRIPES and main:
        phase = (x * look[AXIS] + y * look[AXIS + 1] + z * look[AXIS + 2]) / 0.3 + ox
        if phase - math.floor(phase) < 0.45:
            share = 1.0
    elif pattern == WOODEN and (main or light > DARKEST):
        if not main:
            tone = 0.35 + 0.65 * light
            r, g, b = 0.72 * tone, 0.5 * tone, 0.29 * tone
        bend = 0.05 * math.sin(4 * y + 6 * ox) + 0.03 * math.sin(9 * y + 6 * oz)
        ring = math.sqrt((x + bend + 1.2 * oy - 0.6) ** 2 + (z + bend + 0.4) ** 2) / 0.085
        ring -= math.floor(ring)
        share = ring * ring
        tr, tg, tb = 0.6 * r, 0.56 * g, 0.52 * b
    elif pattern == BRICKS and (main or light > DARKEST):
        share, tone = bricks(nx, ny, nz, x + 0.2 * ox, y + 0.2 * oy, z + 0.2 * oz)
        if not main:
            tone *= 0.45 + 0.75 * light
            r, g, b = 0.70, 0.31, 0.22
        r, g, b = r * tone, g * tone, b * tone
    elif pattern == GOLDEN and (main or light > DARKEST):
        tone = 1.0 if main else 0.55 + 0.45 * light
        r, g, b = gold(ny, x + ox, y + oy, z + oz)
        r, g, b = r * tone, g * tone, b * tone
    return r + share * (tr - r), g + share * (tg - g), b + share * (tb - b)


@_program
def normal(parts: Floats, every: int, x: float, y: float, z: float) -> Rgb:
    """Unit gradient of the distance, from its values at a tetrahedron's corners."""
    nx, ny, nz = 0.0, 0.0, 0.0
    for corner in range(4):
        cx, cy, cz = (1.0, -1.0, -1.0, 1.0)[corner], (-1.0, -1.0, 1.0, 1.0)[corner], (-1.0, 1.0, -1.0, 1.0)[corner]
        d, _ = field(parts, every, x + 0.006 * cx, y + 0.006 * cy, z + 0.006 * cz)
        nx, ny, nz = nx + cx * d, ny + cy * d, nz + cz * d
    length = max(math.sqrt(nx * nx + ny * ny + nz * nz), 1e-9)
    return nx / length, ny / length, nz / length


@_program
def lit(parts: Floats, every: int, look: Floats, view: Floats, nearest: int, x: float, y: float, z: float) -> Rgb:
    """Colour of a surface point in the light of an image."""
    nx, ny, nz = normal(parts, every, x, y, z)
    near, _ = field(parts, every, x + 0.06 * nx, y + 0.06 * ny, z + 0.06 * nz)
    wide, _ = field(parts, every, x + 0.16 * nx, y + 0.16 * ny, z + 0.16 * nz)
    open_sky = (min(max(near / 0.06, 0.0), 1.0) + min(max(wide / 0.16, 0.0), 1.0)) / 2
    sun = max(nx * view[SUN] + ny * view[SUN + 1] + nz * view[SUN + 2], 0.0)
    light = (view[AMBIENT] + view[SKY] * ny + view[SUN_LEVEL] * sun) * (0.75 + 0.25 * open_sky)
    r, g, b = paint(parts[nearest], look, nx, ny, nz, x, y, z)
    return min(r * light, 1.0), min(g * light, 1.0), min(b * light, 1.0)


@_program
def march(
    parts: Floats, chosen: int, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float, t: float, end: float
) -> tuple[float, float, int]:
    """Closest approach of a ray between `t` and `end`, 0 for a hit; where along it, and to which primitive."""
    closest, place, nearest = FAR, t, 0
    for _ in range(STEPS):
        d, i = field(parts, chosen, ox + dx * t, oy + dy * t, oz + dz * t)
        if d < closest:
            closest, place, nearest = d, t, i
        if d < HIT:
            return 0.0, place, nearest
        t += max(0.92 * d, 1e-3)
        if t > end:
            break
    return closest, place, nearest


@_program
def ray(
    parts: Floats, look: Floats, view: Floats, dx: float, dy: float, dz: float, footprint: float
) -> tuple[float, float, float, float]:
    """Colour and coverage along one ray."""
    ox, oy, oz = view[EYE], view[EYE + 1], view[EYE + 2]
    middle = -(ox * dx + oy * dy + oz * dz)
    reach = 1.05 * 1.05 - (ox * ox + oy * oy + oz * oz - middle * middle)
    if reach <= 0:
        return 0.0, 0.0, 0.0, 0.0
    reach = math.sqrt(reach)
    blur = footprint * middle
    chosen = candidates(parts, ox, oy, oz, dx, dy, dz, blur)
    if chosen == 0:
        return 0.0, 0.0, 0.0, 0.0
    closest, place, nearest = march(parts, chosen, ox, oy, oz, dx, dy, dz, middle - reach, middle + reach)
    cover = min(max(1 - closest / blur, 0.0), 1.0)
    if cover == 0:
        return 0.0, 0.0, 0.0, 0.0
    every = (1 << len(parts)) - 1
    r, g, b = lit(parts, every, look, view, nearest, ox + dx * place, oy + dy * place, oz + dz * place)
    return r * cover, g * cover, b * cover, cover


@_program
def pixel(
    primitives: Floats, looks: Floats, views: Floats, m: int, row: int, column: int, images: NDArray[np.uint8]
) -> None:
    """Writes one pixel of image `m`: the mean of its rays, premultiplied RGBA."""
    view = views[m]
    instance = int(view[INSTANCE])
    parts, look = primitives[instance], looks[instance]
    size = images.shape[1]
    red, green, blue, alpha = 0.0, 0.0, 0.0, 0.0
    for j in range(RAYS):
        for i in range(RAYS):
            u = ((column + (i + 0.5) / RAYS) * 2 / size - 1) * view[TAN]
            v = ((row + (j + 0.5) / RAYS) * 2 / size - 1) * view[TAN]
            length = math.sqrt(u * u + v * v + 1)
            dx = (view[TURN] * u + view[TURN + 3] * v + view[TURN + 6]) / length
            dy = (view[TURN + 1] * u + view[TURN + 4] * v + view[TURN + 7]) / length
            dz = (view[TURN + 2] * u + view[TURN + 5] * v + view[TURN + 8]) / length
            r, g, b, a = ray(parts, look, view, dx, dy, dz, view[TAN] / (size * RAYS))
            red, green, blue, alpha = red + r, green + g, blue + b, alpha + a
    scale = 255 / (RAYS * RAYS)
    images[m, row, column, 0] = int(red * scale + 0.5)
    images[m, row, column, 1] = int(green * scale + 0.5)
    images[m, row, column, 2] = int(blue * scale + 0.5)
    images[m, row, column, 3] = int(alpha * scale + 0.5)


@_program
def touch(primitives: Floats, looks: Floats, chances: Floats, m: int, found: Floats) -> None:
    """Follows one random chord of the unit sphere and writes where it meets instance `m`: 1 x y z r g b, or 0s.

    First hits of chords that are uniform in direction and offset are spread evenly over the surface that is seen
    from outside (Cauchy and Crofton). `chances` are four numbers in 0..1, the colour is unlit.
    """
    parts, look = primitives[m], looks[m]
    dz = 2 * chances[0] - 1
    flat = math.sqrt(max(1 - dz * dz, 0.0))
    dx, dy = flat * math.cos(2 * math.pi * chances[1]), flat * math.sin(2 * math.pi * chances[1])
    side = math.copysign(1.0, dz)  # two directions across the chord, as in Duff et al. 2017
    a = -1 / (side + dz)
    ux, uy, uz = 1 + side * dx * dx * a, side * dx * dy * a, -side * dx
    vx, vy, vz = dx * dy * a, side + dy * dy * a, -dy
    u = 1.05 * math.sqrt(chances[2]) * math.cos(2 * math.pi * chances[3])
    v = 1.05 * math.sqrt(chances[2]) * math.sin(2 * math.pi * chances[3])
    ox, oy, oz = ux * u + vx * v - 2 * dx, uy * u + vy * v - 2 * dy, uz * u + vz * v - 2 * dz
    found[0] = 0
    chosen = candidates(parts, ox, oy, oz, dx, dy, dz, 0.0)
    if chosen == 0:
        return
    closest, place, nearest = march(parts, chosen, ox, oy, oz, dx, dy, dz, 0.9, 3.1)
    if closest > 0:
        return
    x, y, z = ox + dx * place, oy + dy * place, oz + dz * place
    nx, ny, nz = normal(parts, (1 << len(parts)) - 1, x, y, z)
    r, g, b = paint(parts[nearest], look, nx, ny, nz, x, y, z)
    found[0], found[1], found[2], found[3] = 1, x, y, z
    found[4], found[5], found[6] = r, g, b
