"""Images: PNG, JPEG and EXR files, contact sheets, captions, and depth and normals as colours."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from segdream_cli.errors import SegdreamError
from segdream_cli.render.exr import EXR_SUFFIX, write_exr
from segdream_cli.util.files import atomic_write

Array = NDArray[Any]
Bytes = NDArray[np.uint8]

JPEG_SUFFIXES = (".jpg", ".jpeg")
JPEG_QUALITY = 95
FRAME_SUFFIXES = ".png", ".jpg", EXR_SUFFIX
PAPER, INK = (255, 255, 255), (32, 32, 32)
SYSTEM_FONTS = "DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf"
DEPTH_STEPS = 65534
"""Steps between near and far in a 16-bit depth image; the value 0 means that nothing is there."""


def write_image(path: Path, image: Array, about: Mapping[str, str] | None = None) -> None:
    """Writes an image as PNG, JPEG or, from floats, EXR, as the suffix says.

    Args:
        path: the file, replaced as a whole.
        image: as `write_png` takes it; for JPEG without alpha. For EXR see `exr.write_exr`.
        about: key -> text, stored in a PNG file.

    Raises:
        EnvironmentProblem: the library of EXR files is missing.
        SegdreamError: a value is not finite, or the disk is full.
        UsageProblem: the folder can't be written.
    """
    suffix = path.suffix.lower()
    if suffix == EXR_SUFFIX:
        return write_exr(path, image)
    if suffix not in JPEG_SUFFIXES:
        return write_png(path, image, about)
    with atomic_write(path) as temporary:
        Image.fromarray(to_uint8(image)).save(temporary, format="JPEG", quality=JPEG_QUALITY, subsampling=0)


def frame_path(folder: Path, number: int, suffix: str) -> Path:
    """The file of a frame; numbers begin with 0."""
    return folder / f"frame-{number:04d}{suffix}"


def frames_in(folder: Path) -> list[Path]:
    """The frames in a folder, of any format.

    Raises:
        OSError: it can't be read.
    """
    name = re.compile(rf"frame-([0-9]{{4}}|[1-9][0-9]{{4,}})({'|'.join(map(re.escape, FRAME_SUFFIXES))})")
    return sorted(path for path in folder.iterdir() if name.fullmatch(path.name))


def write_png(path: Path, image: Array, about: Mapping[str, str] | None = None) -> None:
    """Writes an image [h, w], [h, w, 3] or [h, w, 4]: floats in 0..1, bytes, or 16-bit grey; RGBA is straight alpha.

    Args:
        path: the file, replaced as a whole.
        image: the image.
        about: key -> text, stored in the file.

    Raises:
        SegdreamError: a value is not finite, or the disk is full.
        UsageProblem: the folder can't be written.
    """
    pixels = np.ascontiguousarray(image if image.dtype in (np.uint8, np.uint16) else to_uint8(image))
    info = PngInfo()
    for key, text in (about or {}).items():
        info.add_text(key, text)
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=info)


def to_uint8(image: Array) -> Bytes:
    """Rounds floats in 0..1 to 256 steps; values outside are clipped, bytes pass through.

    Raises:
        SegdreamError: a value is not finite.
    """
    if image.dtype == np.uint8:
        return image
    bad = int(np.count_nonzero(~np.isfinite(image)))
    if bad:
        raise SegdreamError(f"{bad} of {image.size} values of an image are not finite")
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def straight_alpha(rgb: Array, alpha: Array) -> NDArray[np.float32]:
    """RGBA [h, w, 4] with straight alpha from premultiplied `rgb` [h, w, 3] and `alpha` [h, w], all in 0..1."""
    opacity = np.clip(alpha, 0, 1)[..., None]
    colour = np.clip(rgb / np.maximum(opacity, 1e-6), 0, 1)
    return np.concatenate([colour, opacity], axis=2).astype(np.float32)


def spread_colours(rgba: Bytes) -> Bytes:
    """Gives every transparent pixel of [h, w, 4] the mean colour of its surroundings by `push_pull`.

    The change is invisible, but codecs mix the colours of neighbours: black behind the rim would darken the rim.
    """
    weights = rgba[..., 3:].astype(np.float32)
    colours = push_pull(rgba[..., :3] * weights, weights)
    return np.where(weights > 0, rgba, np.dstack([to_uint8(colours / 255), rgba[..., 3:]]))


def push_pull(sums: Array, weights: Array, *, renormalize: bool = False) -> NDArray[np.float32]:
    """Weighted means [h, w, c], in which pixels without weight take the mean of their surroundings.

    The mean is that of the smallest square of 2, 4, 8 ... pixels that holds some weight (Gortler 1996).

    Args:
        sums: values times their weights, [h, w, c].
        weights: [h, w, 1], not between 0 and 1.
        renormalize: give every square that holds some weight the same weight in larger squares.
    """
    means: NDArray[np.float32] = np.where(weights > 0, sums / np.maximum(weights, 1), 0).astype(np.float32)
    if (weights > 0).all() or max(means.shape[:2]) == 1:
        return means
    if renormalize:
        sums, weights = means, (weights > 0).astype(np.float32)
    coarse = push_pull(_sum_quads(sums), _sum_quads(weights), renormalize=renormalize)
    larger = coarse.repeat(2, axis=0).repeat(2, axis=1)[: means.shape[0], : means.shape[1]]
    return np.where(weights > 0, means, larger)


def caption_strip(captions: Sequence[str], width: int, paper: Sequence[float] | None) -> Bytes:
    """A strip of captions for images side by side, each caption centred over its image.

    Args:
        captions: one per image; a long one is cut and ends in an ellipsis.
        width: width of each image in pixels.
        paper: RGB in 0..1 behind the text, or None for transparency.

    Returns:
        Bytes [h, len(captions) * width, 3], or 4 channels without paper; h is even.
    """
    height = _strip_height(width) + _strip_height(width) % 2
    dark = paper is not None and 0.2126 * paper[0] + 0.7152 * paper[1] + 0.0722 * paper[2] < 0.5
    size = (len(captions) * width, height)
    if paper is None:
        strip = Image.new("RGBA", size)
    else:
        red, green, blue = (round(255 * value) for value in paper)
        strip = Image.new("RGB", size, (red, green, blue))
    draw = ImageDraw.Draw(strip)
    for i, caption in enumerate(captions):
        text, font = _fit_label(caption, width)
        left = i * width + (width - font.getlength(text)) / 2
        if paper is None:  # an outline keeps it legible on any background
            draw.text((left, 3), text, fill=PAPER, font=font, stroke_width=1, stroke_fill=INK)
        else:
            draw.text((left, 3), text, fill=PAPER if dark else INK, font=font)
    return np.asarray(strip)


def contact_sheet(images: Sequence[Array], columns: int, labels: Sequence[str] | None = None) -> Bytes:
    """Images of one size [h, w, 3], row by row on white, each with its label above it.

    Args:
        images: at least one; floats in 0..1 or bytes.
        columns: images per row, at least one.
        labels: one per image; one too long for its image is cut and ends in an ellipsis.

    Returns:
        Bytes [H, W, 3].

    Raises:
        ValueError: labels and images differ in number.
    """
    tiles = [to_uint8(image) for image in images]
    if labels is not None and len(labels) != len(tiles):
        raise ValueError(f"{len(labels)} labels for {len(tiles)} images")
    height, width, _ = tiles[0].shape
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    strip = 0 if labels is None else _strip_height(width)
    sheet = Image.new("RGB", (columns * width, rows * (height + strip)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, tile in enumerate(tiles):
        left, top = i % columns * width, i // columns * (height + strip)
        if labels is not None:
            text, font = _fit_label(labels[i], width)
            draw.text((left + 4, top + 3), text, fill=INK, font=font)
        sheet.paste(Image.fromarray(tile), (left, top + strip))
    return np.asarray(sheet)


def depth_to_uint16(depth: Array, alpha: Array, near: float, far: float) -> NDArray[np.uint16]:
    """Depth [h, w] between two planes as 16-bit grey: near is 1, far is 65535, and 0 is where alpha is <= 0.5.

    A value v > 0 reads back as near + (v - 1) / 65534 * (far - near).
    """
    steps = np.floor(_between(depth, near, far) * DEPTH_STEPS + 0.5) + 1
    return np.where(alpha > 0.5, steps, 0).astype(np.uint16)


def depth_preview(depth: Array, alpha: Array, near: float, far: float) -> Bytes:
    """Depth [h, w] as grey [h, w, 3] for viewing: near is white, far is dark, and alpha <= 0.5 is black."""
    grey = np.where(alpha > 0.5, 1 - 0.8 * _between(depth, near, far), 0)
    return np.repeat(to_uint8(grey)[..., None], 3, axis=2)


def normals_to_rgb(normals: Array) -> Bytes:
    """Unit normals n [h, w, 3] as the usual colours, n / 2 + 1 / 2; zero means no surface and becomes grey."""
    return to_uint8(normals * 0.5 + 0.5)


def _between(depth: Array, near: float, far: float) -> Array:
    """Depth as a share of the way from near to far, 0..1."""
    # depth over alpha may be 0 / 0 where nothing is drawn
    return np.clip((np.nan_to_num(depth, nan=far, posinf=far) - near) / (far - near), 0, 1)


def _sum_quads(values: Array) -> Array:
    """Sums over squares of two by two pixels of [h, w, c], zeros beyond an odd rim."""
    height, width, channels = values.shape
    even = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    summed: Array = even.reshape(-(-height // 2), 2, -(-width // 2), 2, channels).sum(axis=(1, 3))
    return summed


def _letter_size(width: int) -> float:
    """Font size on an image of `width` pixels."""
    return float(np.clip(width // 16, 10, 24))


def _strip_height(width: int) -> int:
    """Height in pixels of a strip of labels for images of `width` pixels."""
    return int(ImageFont.load_default(size=_letter_size(width)).getbbox("Ag")[3]) + 6


def _fit_label(text: str, width: int) -> tuple[str, Any]:
    """A label cut to fit an image of `width` pixels, and a font that has its letters.

    Pillow's own font is the same everywhere but has only ASCII letters. Other letters need a system font; without one,
    they lose their accents.
    """
    text, size = " ".join(text.split()), _letter_size(width)
    font: Any = ImageFont.load_default(size=size)
    if not text.isascii():
        for name in SYSTEM_FONTS:
            with suppress(OSError):
                font = ImageFont.truetype(name, size * 0.85)  # its letters are taller than those of Pillow's
                break
        else:
            letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
            text = "".join(letters).encode("ascii", "replace").decode()
    return _truncate(text, font, width - 8), font


def _truncate(text: str, font: Any, width: int) -> str:
    """`text`, or as much of its start as fits into `width` pixels with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
