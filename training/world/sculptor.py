"""Objects built of signed-distance primitives, many random instances of one kind at a time.

The frame is the project's own: right-handed, y up, the object faces +Z, its left is +X. Lengths are free while an
object is built; `Sculptor.finish` moves and scales each instance into the unit sphere.

Shapes: n instances, k primitives of each, f columns of a primitive's record.
"""

import math
from collections.abc import Sequence
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from training.world.layout import (
    BLEND,
    BOUND,
    BOX,
    CAPSULE,
    CARVE,
    CENTER,
    COLUMNS,
    CYLINDER,
    ELLIPSOID,
    KIND,
    MAIN,
    MAX_PRIMITIVES,
    PRISM,
    RGB,
    ROTATION,
    SIZE,
    TORUS,
)

Array = NDArray[np.float64]
Scalar = float | Array
"""One number for all instances, or an array [n]."""
Vector = tuple[Scalar, Scalar, Scalar]
Color = tuple[float, float, float] | Array | None
"""RGB in 0..1 for all, an array [n 3], or none: the colour that the prompt names."""

BLACK: Color = (0.08, 0.08, 0.09)
WHITE: Color = (0.95, 0.95, 0.94)
METAL: Color = (0.62, 0.63, 0.66)
STEEL: Color = (0.34, 0.35, 0.38)
WOOD: Color = (0.52, 0.34, 0.18)
GLASS: Color = (0.16, 0.22, 0.32)
HAT_RED = (0.86, 0.08, 0.09)


def about_x(degrees: Scalar) -> Array:
    """Rotation about x, [3 3] or [n 3 3]: positive tips the top towards the front."""
    return _rotation(degrees, 0)


def about_y(degrees: Scalar) -> Array:
    """Rotation about y, [3 3] or [n 3 3]: positive turns the front towards the object's left."""
    return _rotation(degrees, 1)


def about_z(degrees: Scalar) -> Array:
    """Rotation about z, [3 3] or [n 3 3]: positive tips the top towards the object's right."""
    return _rotation(degrees, 2)


def _rotation(degrees: Scalar, axis: int) -> Array:
    angle = np.asarray(degrees, float) * math.pi / 180
    matrix = np.zeros((*angle.shape, 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[..., axis, axis] = 1
    matrix[..., i, i] = matrix[..., j, j] = np.cos(angle)
    matrix[..., j, i] = np.sin(angle)
    matrix[..., i, j] = -np.sin(angle)
    return matrix


class Placement(TypedDict, total=False):
    """Options of every primitive besides shape and colour.

    Attributes:
        turn: rotation [3 3] or [n 3 3] about its centre.
        blend: width over which it blends into the earlier primitives.
        carve: subtract it from the earlier primitives instead.
    """

    turn: Array
    blend: Scalar
    carve: bool


class Sculptor:
    """Builds n instances of one kind of object at once.

    Args:
        n: number of instances.
        rng: source of every random proportion.
    """

    def __init__(self, n: int, rng: np.random.Generator) -> None:
        self.n = n
        self.rng = rng
        self.stripes: tuple[float, float, float] = (0.0, 1.0, 0.0)
        """Direction across which stripes alternate; set it to the object's long axis."""
        self._records: list[Array] = []
        self._crown: tuple[Array, Array, Array] | None = None

    def uniform(self, low: float, high: float) -> Array:
        """A random number for each instance, [n]."""
        return self.rng.uniform(low, high, self.n)

    def color(self, rgb: tuple[float, float, float], spread: float = 0.04) -> Array:
        """A colour that varies a little from instance to instance, [n 3]."""
        shift = self.rng.uniform(-spread, spread, (self.n, 1)) + self.rng.uniform(-spread, spread, (self.n, 3)) / 2
        return np.clip(np.asarray(rgb) + shift, 0.03, 0.98)

    def ellipsoid(self, center: Vector, radii: Scalar | Vector, color: Color = None, **how: Unpack[Placement]) -> None:
        """An ellipsoid with half axes along x, y, z (one number: a ball)."""
        self._add(ELLIPSOID, center, radii if isinstance(radii, tuple) else (radii,) * 3, color, **how)

    def box(
        self, center: Vector, half: Vector, color: Color = None, rounding: Scalar = 0.02, **how: Unpack[Placement]
    ) -> None:
        """A box with half sides; `rounding` is the radius of its edges, inside the box."""
        self._add(BOX, center, (*half, rounding), color, **how)

    def cylinder(
        self,
        center: Vector,
        radius: Scalar,
        half_height: Scalar,
        color: Color = None,
        *,
        top: Scalar | None = None,
        wall: Scalar = 10.0,
        rounding: Scalar = 0.01,
        **how: Unpack[Placement],
    ) -> None:
        """A cylinder or frustum along y: `radius` at the bottom, `top` at the top (0: a cone), hollow with a `wall`.

        `rounding` is the radius of its edges, and stays below its half height and radii, but for a cone's tip.
        """
        size = (radius, radius if top is None else top, half_height, wall, rounding)
        self._add(CYLINDER, center, size, color, **how)

    def torus(
        self,
        center: Vector,
        ring: Scalar,
        tube: Scalar,
        color: Color = None,
        *,
        arc: Scalar = 360.0,
        **how: Unpack[Placement],
    ) -> None:
        """A ring lying flat about y, `tube` thick; `arc` degrees of it, centred on +z."""
        half = np.asarray(arc, float) * math.pi / 360
        self._add(TORUS, center, (ring, tube, np.sin(half), np.cos(half)), color, **how)

    def prism(
        self,
        center: Vector,
        bottom: Scalar,
        top: Scalar,
        half_height: Scalar,
        half_depth: Scalar,
        color: Color = None,
        *,
        rounding: Scalar = 0.01,
        **how: Unpack[Placement],
    ) -> None:
        """A trapezoid in x and y, half as wide as `bottom` and `top` say (0: a triangle), drawn out along z."""
        self._add(PRISM, center, (bottom, top, half_height, half_depth, rounding), color, **how)

    def capsule(
        self,
        start: Vector,
        end: Vector,
        radius: Scalar,
        end_radius: Scalar | None = None,
        color: Color = None,
        **how: Unpack[Placement],
    ) -> None:
        """A limb from one ball to another; the smaller ball must not lie inside the larger one."""
        a, b = self._vector(start), self._vector(end)
        length = np.linalg.norm(b - a, axis=-1)
        up = (b - a) / length[:, None]
        side = np.cross(up, np.where(np.abs(up[:, 2:]) < 0.9, [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]))
        side /= np.linalg.norm(side, axis=-1, keepdims=True)
        turn = np.stack([side, up, np.cross(side, up)], -1)
        size = (radius, radius if end_radius is None else end_radius, length)
        how["turn"] = turn
        self._add(CAPSULE, (a[:, 0], a[:, 1], a[:, 2]), size, color, **how)

    def crown(self, center: Vector, radius: Scalar, turn: Array | None = None) -> None:
        """The crown, where a hat sits: the middle of its brim, and the radius of the head there."""
        self._crown = (self._vector(center), self._each(radius), np.eye(3) if turn is None else turn)

    def wear_hat(self) -> None:
        """Puts a red hat on the crown.

        Raises:
            ValueError: the object has no crown.
        """
        if self._crown is None:
            raise ValueError("this object has no crown to put a hat on")
        place, r, turn = self._crown
        turn = np.broadcast_to(turn, (self.n, 3, 3))
        red = self.color(HAT_RED, 0.03)

        def at(height: Array) -> Vector:
            x, y, z = (place + turn[:, :, 1] * height[:, None]).T
            return x, y, z

        self.cylinder(at(0.08 * r), 1.75 * r, 0.09 * r, red, rounding=0.08 * r, turn=turn)
        self.cylinder(at(0.75 * r), 1.02 * r, 0.65 * r, red, top=0.85 * r, rounding=0.2 * r, turn=turn)
        self.cylinder(at(0.28 * r), 1.06 * r, 0.12 * r, BLACK, rounding=0.02 * r, turn=turn)

    def finish(self) -> NDArray[np.float32]:
        """The records [n k f] of all primitives, each instance scaled into the unit sphere about its bounding box.

        A primitive counts in full, also where another carves it away.

        Raises:
            ValueError: it has none, or more than `MAX_PRIMITIVES`.
        """
        if not 0 < len(self._records) <= MAX_PRIMITIVES:
            raise ValueError(f"an object has 1 to {MAX_PRIMITIVES} primitives, not {len(self._records)}")
        records = np.stack(self._records, 1)
        centers, reach = _middles(records), _extents(records)
        solid = records[:, :, CARVE, None] == 0
        low = np.where(solid, centers - reach, np.inf).min(1)
        high = np.where(solid, centers + reach, -np.inf).max(1)
        middle = (low + high) / 2
        # A box's corners are part of it; those of a round part's box are not.
        corners = np.where(np.isin(records[:, :, KIND], (BOX, PRISM, CYLINDER)), 1, 0.8)
        radius = np.linalg.norm(np.abs(centers - middle[:, None]) + reach * corners[..., None], axis=-1)
        radius = np.minimum(radius, np.linalg.norm(centers - middle[:, None], axis=-1) + records[:, :, BOUND])
        scale = 1 / np.where(solid[..., 0], radius, 0).max(1)
        records[:, :, CENTER : CENTER + 3] -= middle[:, None]
        records[:, :, CENTER : CENTER + 3] *= scale[:, None, None]
        lengths = np.where(records[:, :, KIND, None] == TORUS, [1, 1, 0, 0, 0, 0], [1] * 6).astype(bool)
        sizes = records[:, :, SIZE : SIZE + 6]
        records[:, :, SIZE : SIZE + 6] = np.where(lengths, sizes * scale[:, None, None], sizes)
        records[:, :, [BLEND, BOUND]] *= scale[:, None, None]
        return records.astype(np.float32)

    def _add(self, kind: int, center: Vector, size: Sequence[Scalar], color: Color, **how: Unpack[Placement]) -> None:
        """Adds a primitive; its centre is its middle, for a capsule its start, its size up to six numbers."""
        record = np.zeros((self.n, COLUMNS))
        record[:, KIND] = kind
        record[:, CENTER : CENTER + 3] = self._vector(center)
        rotation = np.broadcast_to(how.get("turn", np.eye(3)), (self.n, 3, 3))
        record[:, ROTATION : ROTATION + 9] = rotation.reshape(self.n, 9)
        for i, value in enumerate(size):
            record[:, SIZE + i] = value
        record[:, RGB : RGB + 3] = 0 if color is None else color
        record[:, MAIN] = color is None
        record[:, BLEND] = how.get("blend", 0)
        record[:, CARVE] = how.get("carve", False)
        record[:, BOUND] = _bound(kind, record[:, SIZE : SIZE + 6])
        self._records.append(record)

    def _each(self, value: Scalar) -> Array:
        return np.broadcast_to(np.asarray(value, float), (self.n,))

    def _vector(self, value: Vector) -> Array:
        return np.stack([self._each(component) for component in value], -1)


def _bound(kind: int, size: Array) -> Array:
    """Radius of the ball about a primitive's centre that holds it, [n]."""
    wide = size[:, :2].max(-1)
    bounds = {
        ELLIPSOID: size[:, :3].max(-1),
        BOX: np.linalg.norm(size[:, :3], axis=-1),
        CYLINDER: np.hypot(wide, size[:, 2]),
        TORUS: size[:, 0] + size[:, 1],
        PRISM: np.hypot(np.hypot(wide, size[:, 2]), size[:, 3]),
        CAPSULE: np.maximum(size[:, 0], size[:, 2] + size[:, 1]),
    }
    return np.asarray(bounds[kind])


def _middles(records: Array) -> Array:
    """Middles of the primitives' boxes, [n k 3]: a capsule's lies half way along it."""
    along = np.where(records[:, :, KIND] == CAPSULE, records[:, :, SIZE + 2] / 2, 0)
    up = records[:, :, ROTATION + 1 : ROTATION + 9 : 3]
    return np.asarray(records[:, :, CENTER : CENTER + 3] + along[..., None] * up)


def _extents(records: Array) -> Array:
    """Half sides of the primitives' boxes along x, y, z, [n k 3]."""
    size, kind = records[:, :, SIZE : SIZE + 6], records[0, :, KIND]
    local = size[:, :, :3].copy()
    wide = size[:, :, :2].max(-1)
    for k in range(records.shape[1]):
        if kind[k] == CYLINDER:
            local[:, k] = np.stack([wide[:, k], size[:, k, 2], wide[:, k]], -1)
        elif kind[k] == TORUS:
            local[:, k] = np.stack([size[:, k, :2].sum(-1), size[:, k, 1], size[:, k, :2].sum(-1)], -1)
        elif kind[k] == PRISM:
            local[:, k] = np.stack([wide[:, k], size[:, k, 2], size[:, k, 3]], -1)
        elif kind[k] == CAPSULE:
            local[:, k] = np.stack([wide[:, k], size[:, k, 2] / 2 + wide[:, k], wide[:, k]], -1)
    rotation = np.abs(records[:, :, ROTATION : ROTATION + 9]).reshape(*records.shape[:2], 3, 3)
    return np.asarray((rotation @ local[..., None])[..., 0])
