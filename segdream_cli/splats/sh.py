"""Real spherical harmonics of degree 1 to 3, with the Condon-Shortley phase, as polynomials of a unit vector.

The polynomials are those of KHR_gaussian_splatting, appendix A.
"""

import math
from collections.abc import Iterable
from typing import Any

PI = math.pi


def sh_basis(directions: Iterable[Any], k: int) -> list[Any]:
    """The first `k` basis functions, l = 1..3 and m = -l..l, each of the shape of x.

    Args:
        directions: x, y and z of unit vectors from the camera to a Gaussian, as torch tensors or as numpy arrays.
        k: number of functions: 3, 8 or 15.
    """
    x, y, z = directions
    values = [-math.sqrt(3 / (4 * PI)) * y, math.sqrt(3 / (4 * PI)) * z, -math.sqrt(3 / (4 * PI)) * x]
    if k > 3:
        a = math.sqrt(15 / PI) / 2
        values += [a * x * y, -a * y * z, math.sqrt(5 / PI) / 4 * (3 * z * z - 1), -a * x * z, a / 2 * (x * x - y * y)]
    if k > 8:
        b, c = math.sqrt(35 / (2 * PI)) / 4, math.sqrt(21 / (2 * PI)) / 4
        values += [
            -b * y * (3 * x * x - y * y),
            math.sqrt(105 / PI) / 2 * x * y * z,
            -c * y * (5 * z * z - 1),
            math.sqrt(7 / PI) / 4 * z * (5 * z * z - 3),
            -c * x * (5 * z * z - 1),
            math.sqrt(105 / PI) / 4 * z * (x * x - y * y),
            -b * x * (x * x - 3 * y * y),
        ]
    return values
