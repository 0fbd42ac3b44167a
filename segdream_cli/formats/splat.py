"""The headerless 32-byte format of antimatter15/splat, which every web viewer reads."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdream_cli.errors import UsageProblem
from segdream_cli.formats.common import (
    BYTE_LOGITS,
    DEFAULT,
    Reading,
    finish,
    open_asset,
    require_finite,
    to_log_scales,
)
from segdream_cli.formats.ordering import argsort_descending
from segdream_cli.splats import SH_C0, Splats, sanitize, to_ply_frame
from segdream_cli.splats.frames import PLY
from segdream_cli.util.files import atomic_write

ROW = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])
BLOCK = 1 << 14
"""Rows to convert at a time, which stay in the cache from step to step."""
UNIT = 0.05
"""How far the length of a quaternion in bytes may be from 1."""
LARGEST = np.float32(1e9)
"""Largest standard deviation of a plausible row."""
SAMPLE = 10_000
"""Rows that are checked, evenly over the file."""
PLAUSIBLE = 0.75
"""Share of rows that must be plausible."""


def write(path: Path, splats: Splats) -> None:
    """Writes centres, standard deviations and bytes for colour, opacity and rotation, in the PLY frame.

    Rows are in descending order of volume times opacity, so that a viewer shows the shape while it loads. Bytes are
    rounded. The format has no room for `shN` and provenance, which are dropped. Clamps as in `ply.write`.

    Raises:
        SegdreamError: there are no Gaussians, some are not finite, or the disk is full.
        UsageProblem: the folder can't be written.
    """
    require_finite(splats)
    turned = to_ply_frame(sanitize(splats))
    rows = np.empty(len(splats), ROW)
    for start in range(0, len(rows), BLOCK):
        _fill(rows[start : start + BLOCK], turned, slice(start, start + BLOCK))
    volumes = turned.log_scales.sum(axis=1) - np.logaddexp(0, -turned.opacity_logits)
    order = argsort_descending(volumes)
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        for start in range(0, len(rows), BLOCK):  # tofile hides that the disk is full
            stream.write(rows.take(order[start : start + BLOCK]).tobytes())


def _fill(rows: NDArray[np.void], splats: Splats, part: slice) -> None:
    """Fills `rows` with a slice of the Gaussians."""
    rows["means"] = splats.means[part]
    rows["scales"] = np.exp(splats.log_scales[part])
    rows["rgba"][:, :3] = np.rint(np.clip(np.float32(0.5) + np.float32(SH_C0) * splats.sh0[part], 0, 1) * 255)
    rows["rgba"][:, 3] = np.rint(255 / (1 + np.exp(-splats.opacity_logits[part])))
    rows["quats"] = np.clip(np.rint(splats.quats[part] * 128 + 128), 0, 255)


def is_plausible(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with `head` can be a .splat, which has no magic number.

    Most rows of a sample must be finite, with scales that are not negative and with quaternions of length 1 or 0.
    """
    if size % ROW.itemsize or len(head) < ROW.itemsize:
        return False
    rows = np.frombuffer(head, ROW, len(head) // ROW.itemsize)
    rows = rows[:: -(-len(rows) // SAMPLE)]
    lengths = np.linalg.norm(rows["quats"] / 128.0 - 1, axis=1)
    with np.errstate(invalid="ignore"):
        good = np.isfinite(rows["means"]).all(axis=1) & ((rows["scales"] >= 0) & (rows["scales"] < LARGEST)).all(axis=1)
    return float((good & ((np.abs(lengths - 1) < UNIT) | (lengths == 0))).mean()) >= PLAUSIBLE


def read(path: Path, reading: Reading = DEFAULT) -> Splats:
    """The Gaussians of a .splat file, in the inner frame, to the precision of its bytes.

    Raises:
        UsageProblem: the file can't be opened, its rows are not plausible, or none is finite.
    """
    with open_asset(path) as stream:
        content = stream.read()
    if len(content) % ROW.itemsize:
        raise UsageProblem(
            f"{path} is truncated or not a .splat file: {len(content)} bytes is not a multiple of {ROW.itemsize}"
        )
    if not is_plausible(content, len(content)):
        raise UsageProblem(f"{path} is not a .splat file: its rows are not Gaussians with unit quaternions")
    rows = np.frombuffer(content, ROW)
    splats = Splats(
        means=rows["means"].astype(np.float32),
        quats=((rows["quats"] - np.float32(128)) / 128).astype(np.float32),
        log_scales=to_log_scales(rows["scales"]),
        opacity_logits=BYTE_LOGITS[rows["rgba"][:, 3]],
        sh0=((rows["rgba"][:, :3] / np.float32(255) - np.float32(0.5)) / np.float32(SH_C0)).astype(np.float32),
        shN=np.zeros((len(rows), 0, 3), np.float32),
    )
    return finish(path, splats, reading, PLY)
