"""SPZ's conversion of Gaussians to bytes and back: one function per attribute and direction."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdream_cli.formats.common import CACHED_ROWS
from segdream_cli.splats import Float32s, Splats

Bytes = NDArray[np.uint8]
UInt32s = NDArray[np.uint32]

COLOUR_SCALE = 0.15
HALF_ROOT = np.float32(np.sqrt(0.5))
"""Bound of all components of a unit quaternion but the largest."""

_BYTES = np.arange(256, dtype=np.float64)
BYTE_SCALES = (_BYTES / 16 - 10).astype(np.float32)
"""Log-scale of each byte."""
BYTE_COLOURS = ((_BYTES / 255 - 0.5) / COLOUR_SCALE).astype(np.float32)
"""sh0 of each byte."""


def pack_blocks(splats: Splats, bits: int) -> Iterator[Bytes]:
    """The attributes' bytes, in the order of the file; means are rounded to 2^-bits."""
    fixed = np.rint(splats.means * np.float32(2**bits)).astype("<i4", order="C")
    yield fixed.view(np.uint8).reshape(-1, 4)[:, :3].reshape(-1)  # 24 bits, little-endian
    yield _to_bytes(255 / (1 + np.exp(-splats.opacity_logits)))
    yield _to_bytes(np.clip(splats.sh0, -4, 4) * np.float32(COLOUR_SCALE * 255) + np.float32(127.5))
    yield _to_bytes((splats.log_scales + 10) * 16)
    yield _pack_quats(splats.quats).astype("<u4").view(np.uint8)
    yield _pack_harmonics(splats.shN)


def _to_bytes(values: NDArray[np.floating[Any]]) -> Bytes:
    """Values rounded and clamped to 0..255, flat."""
    rounded: Bytes = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded.reshape(-1)


def _pack_quats(quats: Float32s) -> UInt32s:
    """Unit quaternions wxyz, [n, 4], as [n] numbers of 32 bits.

    Two bits hold the index of the largest of x, y, z, w. Each of the others takes a sign bit, relative to the sign of
    the largest, and nine bits for its size.
    """
    xyzw = quats[:, (1, 2, 3, 0)]
    sizes = np.abs(xyzw)
    largest = sizes.argmax(axis=1)
    negative = np.signbit(xyzw)
    flipped = negative[np.arange(len(quats)), largest]
    packed: UInt32s = largest.astype("<u4")
    for i in range(4):
        size = (sizes[:, i] * (511 / HALF_ROOT) + np.float32(0.5)).astype(np.uint32)
        code = (packed << 10) | ((negative[:, i] ^ flipped).astype(np.uint32) << 9) | size
        packed = np.where(largest == i, packed, code)
    return packed


def _pack_harmonics(shN: Float32s) -> Bytes:
    """128 + 128 times each value, rounded to multiples of 8 in degree 1 and of 16 above."""
    _, k, _ = shN.shape
    step = np.where(np.arange(k) < 3, 8, 16).astype(np.int16)[:, None]
    packed = np.empty(shN.shape, np.uint8)
    for start in range(0, len(shN), CACHED_ROWS):
        values = np.rint(np.clip(shN[start : start + CACHED_ROWS], -2, 2) * 128).astype(np.int16)
        values += 128 + step // 2
        values &= -step
        packed[start : start + CACHED_ROWS] = np.clip(values, 0, 255, out=values)
    return packed.reshape(-1)


def unpack_harmonics(packed: Bytes) -> Float32s:
    """The inverse of `_pack_harmonics`, for bytes of any shape."""
    values = np.empty(packed.shape, np.float32)
    for start in range(0, len(packed), CACHED_ROWS):
        block = values[start : start + CACHED_ROWS]
        np.subtract(packed[start : start + CACHED_ROWS], np.float32(128), out=block)
        block /= 128
    return values


def unpack_means(block: Bytes, bits: int | None) -> Float32s:
    """The centres [n, 3] from 24-bit fixed-point numbers with `bits` fractional bits; half floats if `bits` is None."""
    if bits is None:
        return block.view("<f2").astype(np.float32).reshape(-1, 3)
    shifted = np.zeros((len(block) // 3, 4), np.uint8)
    shifted[:, 1:] = block.reshape(-1, 3)
    fixed = shifted.view("<i4") >> 8  # the shift carries the sign down
    return (fixed.astype(np.float32) * np.float32(0.5**bits)).reshape(-1, 3)


def unpack_quats(block: Bytes, version: int) -> Float32s:
    """Quaternions wxyz, [n, 4], from the bytes of `_pack_quats`, or of x, y, z, w >= 0, before version 3."""
    if version <= 2:
        xyz = block.reshape(-1, 3).astype(np.float32) / np.float32(127.5) - 1
        w = np.sqrt(np.maximum(0, 1 - np.einsum("nc,nc->n", xyz, xyz)))
        return np.concatenate([w[:, None], xyz], axis=1)
    packed = np.frombuffer(block, "<u4").astype(np.uint32)
    largest = (packed >> 30).astype(np.intp)
    xyzw = np.empty((len(packed), 4), np.float32)
    for i in (3, 2, 1, 0):
        size = (packed & 511).astype(np.float32) * (HALF_ROOT / 511)
        signed = np.where(packed & 512, -size, size)
        xyzw[:, i] = np.where(largest == i, 0, signed)
        packed = np.where(largest == i, packed, packed >> 10)
    rest = np.einsum("nq,nq->n", xyzw, xyzw)
    xyzw[np.arange(len(xyzw)), largest] = np.sqrt(np.maximum(0, 1 - rest))
    return xyzw[:, (3, 0, 1, 2)]
