"""The headerless 32-byte format of antimatter15/splat, which every web viewer reads."""

from pathlib import Path

import numpy as np

from segdream_cli.errors import UsageProblem
from segdream_cli.files import replacing
from segdream_cli.formats import SH_C0, Splats, from_ply_frame, not_finite, tidied, to_ply_frame
from segdream_cli.formats.ply import ANOTHER_FILE, opened, refuse_not_finite, require_finite

ROW = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])


def write(path: Path, splats: Splats) -> None:
    """Writes centres, standard deviations and bytes for colour, opacity and rotation, in the PLY frame.

    Rows go by falling volume times opacity, so that a viewer shows the shape while it loads. Bytes are rounded;
    `shN` has no place in the format and is dropped, provenance as well. Clamps as in `ply.write`.

    Raises:
        SegdreamError: there are no Gaussians, some are not finite, or the disk is full.
        UsageProblem: the folder can't be written.
    """
    require_finite(splats)
    turned = to_ply_frame(tidied(splats))
    opacities = 1 / (1 + np.exp(-turned.opacity_logits))
    order = np.argsort(-(turned.log_scales.sum(axis=1) + np.log(opacities)), kind="stable")
    rows = np.empty(len(splats), ROW)
    rows["means"] = turned.means
    rows["scales"] = np.exp(turned.log_scales)
    rows["rgba"][:, :3] = np.rint(np.clip(0.5 + SH_C0 * turned.sh0, 0, 1) * 255)
    rows["rgba"][:, 3] = np.rint(opacities * 255)
    rows["quats"] = np.clip(np.rint(turned.quats * 128 + 128), 0, 255)
    with replacing(path) as temporary:
        temporary.write_bytes(rows[order].tobytes())  # tofile hides that the disk is full


def read(path: Path) -> Splats:
    """The Gaussians of a .splat file, in the inner frame, within the rounding of its bytes.

    Raises:
        UsageProblem: the file can't be opened, its size is not a multiple of 32, or a value can't be right.
    """
    with opened(path) as stream:
        content = stream.read()
    if len(content) % ROW.itemsize:
        raise UsageProblem(
            f"{path} is truncated or no .splat file: {len(content)} bytes are no multiple of {ROW.itemsize}",
            hint=ANOTHER_FILE,
        )
    rows = np.frombuffer(content, ROW)
    opacities = rows["rgba"][:, 3] / np.float32(255)
    with np.errstate(divide="ignore", invalid="ignore"):  # the clamps see to byte 0 and 255, and to a scale of zero
        log_scales = np.maximum(np.log(rows["scales"]), -1e3)
        logits = np.clip(np.log(opacities) - np.log1p(-opacities), -1e3, 1e3)
    splats = Splats(
        means=rows["means"].astype(np.float32),
        quats=((rows["quats"] - 128.0) / 128).astype(np.float32),
        log_scales=log_scales.astype(np.float32),
        opacity_logits=logits.astype(np.float32),
        sh0=((rows["rgba"][:, :3] / np.float32(255) - 0.5) / SH_C0).astype(np.float32),
        shN=np.zeros((len(rows), 0, 3), np.float32),
    )
    refuse_not_finite(path, not_finite(splats), len(splats))
    return from_ply_frame(tidied(splats))
