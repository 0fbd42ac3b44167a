"""How SPZ rounds the values of a Gaussian to bytes, and back: one function an attribute and direction."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdream_cli.splats import OPACITY_LOGIT_LIMIT, Float32s, Splats

Bytes = NDArray[np.uint8]
UInt32s = NDArray[np.uint32]

COLOUR_SCALE = 0.15
HALF_ROOT = np.float32(np.sqrt(0.5))
"""No component of a unit quaternion but the largest is larger."""
ROWS = 4096
"""Of spherical harmonics at a time, which stay in the cache from step to step."""

_EVERY_BYTE = np.arange(256, dtype=np.float64)
with np.errstate(divide="ignore"):
    BYTE_LOGITS: Float32s = np.clip(
        np.log(_EVERY_BYTE / 255) - np.log1p(-_EVERY_BYTE / 255), -OPACITY_LOGIT_LIMIT, OPACITY_LOGIT_LIMIT
    ).astype(np.float32)
"""Opacity logit of each byte of opacity."""
BYTE_SCALES = (_EVERY_BYTE / 16 - 10).astype(np.float32)
BYTE_COLOURS = ((_EVERY_BYTE / 255 - 0.5) / COLOUR_SCALE).astype(np.float32)


def packed_blocks(splats: Splats, bits: int) -> Iterator[Bytes]:
    """The attributes as they follow each other in the file."""
    fixed = np.rint(splats.means * np.float32(2**bits)).astype("<i4", order="C")
    yield fixed.view(np.uint8).reshape(-1, 4)[:, :3].reshape(-1)  # 24 bits, little-endian
    yield _byte(255 / (1 + np.exp(-splats.opacity_logits)))
    yield _byte(np.clip(splats.sh0, -4, 4) * np.float32(COLOUR_SCALE * 255) + np.float32(127.5))
    yield _byte((splats.log_scales + 10) * 16)
    yield _packed_quats(splats.quats).astype("<u4").view(np.uint8)
    yield _packed_harmonics(splats.shN)


def _byte(values: NDArray[np.floating[Any]]) -> Bytes:
    rounded: Bytes = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded.reshape(-1)


def _packed_quats(quats: Float32s) -> UInt32s:
    """Unit quaternions wxyz, [n, 4], as [n] numbers of 32 bits.

    Two bits say which of x, y, z, w is largest, and is left out; for each of the others follow its sign, relative to
    that of the largest, and nine bits of its size.
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


def _packed_harmonics(shN: Float32s) -> Bytes:
    """128 + 128 times each value, rounded to multiples of 8 in degree 1 and of 16 above."""
    _, k, _ = shN.shape
    step = np.where(np.arange(k) < 3, 8, 16).astype(np.int16)[:, None]
    packed = np.empty(shN.shape, np.uint8)
    for start in range(0, len(shN), ROWS):
        values = np.rint(np.clip(shN[start : start + ROWS], -2, 2) * 128).astype(np.int16)
        values += 128 + step // 2
        values &= -step
        packed[start : start + ROWS] = np.clip(values, 0, 255, out=values)
    return packed.reshape(-1)


def unpacked_harmonics(packed: Bytes) -> Float32s:
    """The values of bytes of any shape."""
    values = np.empty(packed.shape, np.float32)
    for start in range(0, len(packed), ROWS):
        block = values[start : start + ROWS]
        np.subtract(packed[start : start + ROWS], np.float32(128), out=block)
        block /= 128
    return values


def unpacked_means(block: Bytes, bits: int) -> Float32s:
    """The centres [n, 3] of 24-bit whole numbers."""
    shifted = np.zeros((len(block) // 3, 4), np.uint8)
    shifted[:, 1:] = block.reshape(-1, 3)
    fixed = shifted.view("<i4") >> 8  # the shift carries the sign down
    return (fixed.astype(np.float32) * np.float32(0.5**bits)).reshape(-1, 3)


def unpacked_quats(block: Bytes, version: int) -> Float32s:
    """The wxyz of the bytes of `_packed_quats`; in version 2 from bytes of x, y and z, with w positive."""
    if version == 2:
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
