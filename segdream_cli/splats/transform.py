"""Linear transforms of assets: means, quaternions, scales and spherical harmonics together."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdream_cli.splats import Float32s, Float64s, Splats
from segdream_cli.splats.sh import sh_basis

BLOCK = 1 << 15
"""Gaussians to decompose at a time."""
TOLERANCE = 1e-4
"""How far a matrix may be from a multiple of a rotation, relative to its scale."""


def scale_and_rotation(matrix: Float64s) -> tuple[float, Float64s]:
    """The positive factor and the rotation [3, 3] whose product is `matrix` [3, 3].

    Raises:
        ValueError: the matrix mirrors, stretches, or has values that are not finite; the message is a verb phrase.
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


def transform(splats: Splats, matrix: Float64s, offset: Float64s) -> Splats:
    """The asset after x -> matrix x + offset; its view-dependent colours turn with it.

    Args:
        splats: the asset.
        matrix: [3, 3] of positive determinant; if it is no rotation times a factor, the view-dependent colours turn
            with the nearest rotation.
        offset: [3].

    Raises:
        ValueError: the matrix mirrors, flattens, or has values that are not finite; the message is a verb phrase.
    """
    try:
        scale, rotation = scale_and_rotation(matrix)
    except ValueError:
        return _stretch(splats, matrix, offset)
    with np.errstate(over="ignore"):
        means = (splats.means @ matrix.T + offset).astype(np.float32)
    return dataclasses.replace(
        splats,
        means=means,
        quats=_multiply(quaternion(rotation), splats.quats),
        log_scales=splats.log_scales + np.float32(np.log(scale)),
        shN=rotate_harmonics(splats.shN, rotation),
    )


def _stretch(splats: Splats, matrix: Float64s, offset: Float64s) -> Splats:
    """The asset after x -> matrix x + offset for any matrix of positive determinant.

    A Gaussian with the axes M = R diag(s) gets those of the singular value decomposition of matrix M.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        determinant = np.linalg.det(matrix)
    if not (np.isfinite(determinant) and determinant > 0):
        raise ValueError("mirrors or flattens")
    quats, log_scales = np.empty_like(splats.quats), np.empty_like(splats.log_scales)
    for start in range(0, len(splats), BLOCK):
        rows = slice(start, start + BLOCK)
        logs = splats.log_scales[rows].astype(np.float64)
        largest = np.clip(logs.max(axis=1, keepdims=True), -1e3, 1e3)  # NaN stays
        axes = matrix @ rotation_matrices(splats.quats[rows].astype(np.float64)) * np.exp(logs - largest)[:, None]
        usable = np.isfinite(axes).all(axis=(1, 2), keepdims=True)
        rotations, sizes, _ = np.linalg.svd(np.where(usable, axes, 0))
        rotations[np.linalg.det(rotations) < 0, :, 2] *= -1
        quats[rows] = np.where(usable[:, 0], _quaternions(rotations), np.nan)
        with np.errstate(divide="ignore"):
            log_scales[rows] = np.where(usable[:, 0], np.log(sizes) + largest, np.nan)
    u, _, v = np.linalg.svd(matrix)
    means = (splats.means @ matrix.T + offset).astype(np.float32)
    shN = rotate_harmonics(splats.shN, u @ v)
    return dataclasses.replace(splats, means=means, quats=quats, log_scales=log_scales, shN=shN)


def _quaternions(rotations: Float64s) -> Float64s:
    """Unit quaternions wxyz [n, 4] of rotation matrices [n, 3, 3], each from its largest component."""
    r = np.moveaxis(rotations, 0, -1)
    squares = np.array([1, 1, 1, 1])[:, None] + np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) @ np.stack(
        [r[0, 0], r[1, 1], r[2, 2]]
    )  # four times the square of each component
    products = np.empty((4, 4, rotations.shape[0]))  # four times the product of each two components
    products[range(4), range(4)] = squares
    for (i, j), value in {
        (0, 1): r[2, 1] - r[1, 2],
        (0, 2): r[0, 2] - r[2, 0],
        (0, 3): r[1, 0] - r[0, 1],
        (1, 2): r[0, 1] + r[1, 0],
        (1, 3): r[0, 2] + r[2, 0],
        (2, 3): r[1, 2] + r[2, 1],
    }.items():
        products[i, j] = products[j, i] = value
    found = products[squares.argmax(axis=0), :, np.arange(rotations.shape[0])]
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def rotation_xyz(degrees: Sequence[float]) -> Float64s:
    """The matrix [3, 3] of rotations by three angles about the fixed axes x, y, z, in that order."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[u, u, v, v], [u, v, u, v]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    return matrix


def reflect(splats: Splats) -> Splats:
    """The point reflection x -> -x; a mirror image is this and half a turn. Covariances and even harmonics stay."""
    degrees = np.repeat([1, 2, 3], [3, 5, 7])[: splats.shN.shape[1]]
    signs = np.where(degrees % 2, -1, 1).astype(np.float32)
    return dataclasses.replace(splats, means=-splats.means, shN=splats.shN * signs[:, None])


def quaternion(rotation: Float64s) -> Float64s:
    """The unit quaternion wxyz, w >= 0, of a rotation matrix [3, 3]; the inverse of `rotation_matrices`.

    It is the eigenvector of Bar-Itzhack's symmetric matrix (2000), which has no case that is close to singular.
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


def rotation_matrices(quats: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Rotation matrices [n, 3, 3] of unit quaternions wxyz [n, 4], in their precision."""
    w, x, y, z = quats.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _multiply(left: Float64s, right: Float32s) -> Float32s:
    """The quaternion products left * right, [4] times [n, 4]."""
    w, x, y, z = left
    matrix = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    product: Float32s = (right @ matrix.T).astype(np.float32)
    return product


def rotate_harmonics(rest: Float32s, rotation: Float64s) -> Float32s:
    """The coefficients [n, k, 3] of f(rotation^-1 d), given those of f(d).

    A least-squares fit on 64 directions yields them. The fit is exact: rotating a harmonic keeps its degree.
    """
    k = rest.shape[1]
    if not k:
        return rest
    i = np.arange(64) + 0.5
    z, longitude = 1 - i / 32, np.pi * (1 + np.sqrt(5)) * i  # Fibonacci's spiral
    ring = np.sqrt(1 - z * z)
    directions = np.stack([ring * np.cos(longitude), ring * np.sin(longitude), z], axis=1)
    basis, turned = (np.stack(sh_basis(each.T, k), axis=1) for each in (directions, directions @ rotation))
    matrix = np.linalg.lstsq(basis, turned, rcond=None)[0]
    rotated: Float32s = np.einsum("jk,nkc->njc", matrix.astype(np.float32), rest, optimize=True)
    return rotated
