"""Sort orders of Gaussians in a file, as fast for millions as numpy allows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdream_cli.splats import Float32s

Order = NDArray[np.intp]


def argsort(keys: NDArray[np.unsignedinteger[Any]]) -> Order:
    """The stable order of unsigned integers [n], by 16 bits at a time, for which numpy has a radix sort."""
    digits = keys.astype(keys.dtype.newbyteorder("<")).view("<u2").reshape(len(keys), keys.itemsize // 2)
    order = np.argsort(digits[:, 0], kind="stable")
    for column in digits.T[1:]:
        order = order.take(np.argsort(column.take(order), kind="stable"))
    return order


def argsort_descending(values: Float32s) -> Order:
    """The stable order of floats [n], the largest first."""
    bits = (values + np.float32(0)).view(np.uint32)  # no negative zero
    return argsort(np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFFFFFF)))


def along_z_curve(means: Float32s) -> Order:
    """The order of centres [n, 3] along a Z-curve (Morton 1966) through their bounds, 21 bits per axis."""
    low = means.min(axis=0).astype(np.float64)
    extent = np.maximum(means.max(axis=0) - low, np.finfo(np.float64).tiny)
    code = np.zeros(len(means), np.uint64)
    for axis in range(3):
        bits = ((means[:, axis] - low[axis]) / extent[axis] * (2**21 - 1)).astype(np.uint64)
        for shift, mask in (
            (32, 0x1F00000000FFFF),
            (16, 0x1F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):
            bits = (bits | (bits << np.uint64(shift))) & np.uint64(mask)
        code |= bits << np.uint64(axis)
    return argsort(code)
