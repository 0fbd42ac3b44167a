"""Frames by name: where the x, y and z axes of a file point.

A name has a letter per axis, as in the SPZ library: R or L, U or D, and B or F, for right, up and back as a viewer in
front of the object sees them. The inner frame is RUB, the frame of the PLY family RDF. There are 48 names; half of
them are left-handed, and reading one of those mirrors the coordinates, so that the object is not mirrored.
"""

import itertools
from collections.abc import Mapping

import numpy as np

from segdream_cli.errors import UsageProblem
from segdream_cli.splats import Float64s, Splats, from_ply_frame, to_ply_frame
from segdream_cli.splats.transform import reflect, rotation_xyz, transform

INNER, PLY = "rub", "rdf"
_DIRECTIONS: Mapping[str, Float64s] = {
    letter: sign * np.eye(3)[axis]
    for axis, letters in enumerate(("rl", "ud", "bf"))
    for letter, sign in zip(letters, (1.0, -1.0), strict=True)
}
"""Direction of each letter in the inner frame."""
FRAMES = tuple(
    "".join(name) for axes in itertools.permutations(("rl", "ud", "bf")) for name in itertools.product(*axes)
)
"""The names of all frames."""
AXES: Mapping[str, Float64s] = {
    sign + name: np.asarray(factor * row, np.float64)
    for sign, factor in (("", 1), ("-", -1))
    for name, row in zip("xyz", np.eye(3), strict=True)
}
"""Unit vector of each axis, x to -z."""
UPRIGHT: Mapping[str, Float64s] = {
    "y": rotation_xyz((0, 0, 0)),
    "-y": rotation_xyz((180, 0, 0)),
    "z": rotation_xyz((-90, 0, 0)),
    "-z": rotation_xyz((90, 0, 0)),
    "x": rotation_xyz((0, 0, 90)),
    "-x": rotation_xyz((0, 0, -90)),
}
"""The quarter or half turn [3, 3] about x or z that takes an axis to +y."""


def check_frame(name: str, option: str = "--frame") -> str:
    """The name in lower case; `option` is where the user gave it.

    Raises:
        UsageProblem: there is no such frame.
    """
    if name.lower() not in FRAMES:
        raise UsageProblem(
            f"{option} {name!r} is not three letters for the x, y and z axes: R or L, U or D, and B or F",
            hint=f"{option} rdf",
        )
    return name.lower()


def axes(name: str) -> Float64s:
    """The matrix [3, 3] from a frame to the inner frame; its columns are the frame's axes."""
    return np.stack([_DIRECTIONS[letter] for letter in name], axis=1)


def from_frame(splats: Splats, name: str) -> Splats:
    """The asset in the inner frame, given in the frame `name`; may change its arrays, which are a reader's own."""
    return from_ply_frame(splats) if name == PLY else _move(splats, axes(name))


def to_frame(splats: Splats, name: str) -> Splats:
    """The asset in the frame `name`, given in the inner frame."""
    return to_ply_frame(splats) if name == PLY else _move(splats, axes(name).T)


def _move(splats: Splats, matrix: Float64s) -> Splats:
    """The asset after x -> matrix x, for an orthogonal matrix; bit for bit the same after the identity."""
    if np.array_equal(matrix, np.eye(3)):
        return splats
    if np.linalg.det(matrix) < 0:
        splats, matrix = reflect(splats), -matrix
    return transform(splats, matrix, np.zeros(3))


def upright_rotation(up: str, front_deg: float) -> Float64s:
    """The rotation [3, 3] that takes the axis `up` to +y and then the front to +z; the identity for y and 0.

    Args:
        up: the axis that points up, x to -z.
        front_deg: azimuth of the front after `UPRIGHT` of `up`: 0 is +z, 90 is +x.
    """
    return rotation_xyz((0, -front_deg, 0)) @ UPRIGHT[up]


def azimuth_of(front: str, up: str = "y") -> float:
    """Azimuth in degrees, 0 to 360, of an axis after `UPRIGHT` of `up`.

    Raises:
        ValueError: the axis points up or down.
    """
    x, y, z = np.round(UPRIGHT[up] @ AXES[front])
    if y:
        raise ValueError(f"{front} points {'up' if y > 0 else 'down'}")
    return float(np.degrees(np.arctan2(x, z)) % 360)
