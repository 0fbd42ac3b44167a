"""Assets moved, turned and scaled: means, quaternions, scales and spherical harmonics together."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from segdream_cli.splats import Float32s, Splats

Float64s = NDArray[np.float64]

TOLERANCE = 1e-4
"""How far a matrix may be from a multiple of a rotation, relative to its scale."""


def scale_and_rotation(matrix: Float64s) -> tuple[float, Float64s]:
    """The positive factor and the rotation [3, 3] whose product is `matrix`.

    Raises:
        ValueError: it mirrors, stretches, or has values that are not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scale = float(np.cbrt(np.linalg.det(matrix)))
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError("mirrors or flattens")
        rotation = matrix / scale
        if not np.abs(rotation.T @ rotation - np.eye(3)).max() < TOLERANCE:
            raise ValueError("stretches")
    u, _, v = np.linalg.svd(rotation)
    return scale, u @ v


def moved(splats: Splats, matrix: Float64s, offset: Float64s) -> Splats:
    """The asset after x -> matrix x + offset, seen from the outside: its colours turn with it.

    Args:
        splats: the asset.
        matrix: [3, 3], a rotation times a positive factor.
        offset: [3].

    Raises:
        ValueError: as `scale_and_rotation`.
    """
    scale, rotation = scale_and_rotation(matrix)
    with np.errstate(over="ignore"):
        means = (splats.means @ matrix.T + offset).astype(np.float32)
    return dataclasses.replace(
        splats,
        means=means,
        quats=_product(quaternion(rotation), splats.quats),
        log_scales=splats.log_scales + np.float32(np.log(scale)),
        shN=turned_harmonics(splats.shN, rotation),
    )


def quaternion(rotation: Float64s) -> Float64s:
    """Unit wxyz, w >= 0, of a rotation matrix [3, 3].

    The eigenvector of Bar-Itzhack's symmetric matrix (2000), which has no case that is close to singular.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    upper = [
        [xx + yy + zz, zy - yz, xz - zx, yx - xy],
        [0, xx - yy - zz, yx + xy, zx + xz],
        [0, 0, yy - xx - zz, zy + yz],
        [0, 0, 0, zz - xx - yy],
    ]
    found = np.linalg.eigh(np.array(upper), UPLO="U")[1][:, -1]
    return np.asarray(-found if found[0] < 0 else found)


def _product(left: Float64s, right: Float32s) -> Float32s:
    """The quaternions left * right, [4] times [n, 4]."""
    w, x, y, z = left
    matrix = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    product: Float32s = (right @ matrix.T).astype(np.float32)
    return product


def turned_harmonics(rest: Float32s, rotation: Float64s) -> Float32s:
    """Coefficients [n, k, 3] of the functions f(rotation^-1 d) of those of f(d).

    Both are equal on as many directions as fix the coefficients, which a least-squares fit then yields; it is exact,
    since a turned function of a degree is of that degree.
    """
    k = rest.shape[1]
    if not k:
        return rest
    i = np.arange(64) + 0.5
    z, longitude = 1 - i / 32, np.pi * (1 + np.sqrt(5)) * i  # Fibonacci's spiral
    ring = np.sqrt(1 - z * z)
    directions = np.stack([ring * np.cos(longitude), ring * np.sin(longitude), z], axis=1)
    matrix = np.linalg.lstsq(harmonics(directions, k), harmonics(directions @ rotation, k), rcond=None)[0]
    turned: Float32s = np.einsum("jk,nkc->njc", matrix.astype(np.float32), rest, optimize=True)
    return turned


def harmonics(directions: Float64s, k: int) -> Float64s:
    """Real spherical harmonics of degree 1 to 3 with the Condon-Shortley phase, m from -l to l, [p, k].

    The polynomials of KHR_gaussian_splatting, appendix A; `gaussians.sh_basis` has them in torch.
    """
    x, y, z = directions.T
    pi = np.pi
    a, b = np.sqrt(3 / (4 * pi)), np.sqrt(15 / pi) / 2
    c, d, e = np.sqrt(35 / (2 * pi)) / 4, np.sqrt(105 / pi) / 4, np.sqrt(21 / (2 * pi)) / 4
    values = [-a * y, a * z, -a * x]
    values += [b * x * y, -b * y * z, np.sqrt(5 / pi) / 4 * (3 * z * z - 1), -b * x * z, b / 2 * (x * x - y * y)]
    values += [-c * y * (3 * x * x - y * y), 2 * d * x * y * z, -e * y * (5 * z * z - 1)]
    values += [np.sqrt(7 / pi) / 4 * z * (5 * z * z - 3), -e * x * (5 * z * z - 1)]
    values += [d * z * (x * x - y * y), -c * x * (x * x - 3 * y * y)]
    return np.stack(values[:k], axis=1)
