"""Pictures: PNG files, contact sheets, captions, and depth and normals as colours."""

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
from segdream_cli.util.files import atomic_write

Array = NDArray[Any]
Bytes = NDArray[np.uint8]

PAPER, INK = (255, 255, 255), (32, 32, 32)
SYSTEM_FONTS = "DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf"
DEPTH_STEPS = 65534
"""Steps between near and far in a 16-bit depth picture; 0 is kept for "nothing there"."""


def write_png(path: Path, image: Array, about: Mapping[str, str] | None = None) -> None:
    """Writes a picture [h, w], [h, w, 3] or [h, w, 4]: floats in 0..1, bytes, or 16-bit grey; RGBA is straight alpha.

    Args:
        path: the file.
        image: the picture.
        about: text to keep in the file under each key.

    Raises:
        SegdreamError: a value is not finite, or the disk is full; UsageProblem: the folder can't be written.
    """
    pixels = np.ascontiguousarray(image if image.dtype in (np.uint8, np.uint16) else to_uint8(image))
    info = PngInfo()
    for key, text in (about or {}).items():
        info.add_text(key, text)
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=info)


def to_uint8(image: Array) -> Bytes:
    """Floats in 0..1 to the nearest of the 256 steps; values outside are clipped, bytes pass through.

    Raises:
        SegdreamError: a value is not finite.
    """
    if image.dtype == np.uint8:
        return image
    bad = int(np.count_nonzero(~np.isfinite(image)))
    if bad:
        raise SegdreamError(
            f"{bad} of {image.size} values of a picture are not finite",
            hint="go back to the last checkpoint with --resume",
        )
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def straight_alpha(rgb: Array, alpha: Array) -> NDArray[np.float32]:
    """RGBA [h, w, 4] with straight alpha from premultiplied `rgb` [h, w, 3] and `alpha` [h, w], all in 0..1."""
    opacity = np.clip(alpha, 0, 1)[..., None]
    colour = np.clip(rgb / np.maximum(opacity, 1e-6), 0, 1)
    return np.concatenate([colour, opacity], axis=2).astype(np.float32)


def spread_colours(rgba: Bytes) -> Bytes:
    """Gives what is wholly transparent in [h, w, 4] the mean colour of its surroundings.

    Nothing of it shows, but codecs mix the colours of neighbours: black behind the rim would darken the rim. The
    means are those of the smallest square of 2, 4, 8 ... pixels that holds something ("push-pull").
    """
    weight = rgba[..., 3:].astype(np.float32)
    levels = [(rgba[..., :3] * weight, weight)]
    while max(levels[-1][0].shape[:2]) > 1:
        levels.append((_quartered(levels[-1][0]), _quartered(levels[-1][1])))
    colour = np.zeros((1, 1, 3), np.float32)
    for summed, weight in reversed(levels):
        height, width, _ = summed.shape
        colour = np.repeat(np.repeat(colour, 2, axis=0), 2, axis=1)[:height, :width]
        colour = np.where(weight > 0, summed / np.maximum(weight, 1), colour)
    return np.where(rgba[..., 3:] > 0, rgba, np.dstack([to_uint8(colour / 255), rgba[..., 3:]]))


def caption_strip(captions: Sequence[str], width: int, paper: Sequence[float] | None) -> Bytes:
    """A strip to stand above pictures of `width` that are side by side, each caption over its picture.

    Args:
        captions: one a picture; those too long are cut and end in an ellipsis.
        width: of each picture in pixels.
        paper: colour behind the words in 0..1, or None for transparency.

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
        text, font = _lettered(caption, width)
        left = i * width + (width - font.getlength(text)) / 2
        if paper is None:  # to be read on whatever comes behind it
            draw.text((left, 3), text, fill=PAPER, font=font, stroke_width=1, stroke_fill=INK)
        else:
            draw.text((left, 3), text, fill=PAPER if dark else INK, font=font)
    return np.asarray(strip)


def contact_sheet(images: Sequence[Array], columns: int, labels: Sequence[str] | None = None) -> Bytes:
    """Pictures of one size [h, w, 3], row by row on white, each with its label above it.

    Args:
        images: at least one; floats in 0..1 or bytes.
        columns: pictures in a row, at least one.
        labels: one a picture; those too long for its width are cut and end in an ellipsis.

    Returns:
        Bytes [H, W, 3].

    Raises:
        ValueError: there are no pictures, or labels and pictures differ in number.
    """
    tiles = [to_uint8(image) for image in images]
    if labels is not None and len(labels) != len(tiles):
        raise ValueError(f"{len(labels)} labels for {len(tiles)} pictures")
    height, width, _ = tiles[0].shape
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    strip = 0 if labels is None else _strip_height(width)
    sheet = Image.new("RGB", (columns * width, rows * (height + strip)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, tile in enumerate(tiles):
        left, top = i % columns * width, i // columns * (height + strip)
        if labels is not None:
            text, font = _lettered(labels[i], width)
            draw.text((left + 4, top + 3), text, fill=INK, font=font)
        sheet.paste(Image.fromarray(tile), (left, top + strip))
    return np.asarray(sheet)


def depth_to_uint16(depth: Array, alpha: Array, near: float, far: float) -> NDArray[np.uint16]:
    """Depth [h, w] between two fixed planes as 16-bit grey: near is 1, far is 65535, and 0 is where alpha is <= 0.5.

    A value v > 0 reads back as near + (v - 1) / 65534 * (far - near).
    """
    steps = np.floor(_between(depth, near, far) * DEPTH_STEPS + 0.5) + 1
    return np.where(alpha > 0.5, steps, 0).astype(np.uint16)


def depth_preview(depth: Array, alpha: Array, near: float, far: float) -> Bytes:
    """Depth [h, w] as grey [h, w, 3] to look at: near is white, far dark, and black is where alpha is <= 0.5."""
    grey = np.where(alpha > 0.5, 1 - 0.8 * _between(depth, near, far), 0)
    return np.repeat(to_uint8(grey)[..., None], 3, axis=2)


def normals_to_rgb(normals: Array) -> Bytes:
    """Unit normals [h, w, 3] as the usual colours, n / 2 + 1 / 2; where there is no surface (zero) it is grey."""
    return to_uint8(normals * 0.5 + 0.5)


def _between(depth: Array, near: float, far: float) -> Array:
    # where nothing is drawn, depth over alpha may be 0 / 0
    return np.clip((np.nan_to_num(depth, nan=far, posinf=far) - near) / (far - near), 0, 1)


def _quartered(values: Array) -> Array:
    """Sums over squares of two by two pixels of [h, w, c], zeros beyond an odd rim."""
    height, width, channels = values.shape
    even = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    summed: Array = even.reshape(-(-height // 2), 2, -(-width // 2), 2, channels).sum(axis=(1, 3))
    return summed


def _letter_size(width: int) -> float:
    """Size of the letters on a picture of `width`."""
    return float(np.clip(width // 16, 10, 24))


def _strip_height(width: int) -> int:
    """Height of a strip of labels for pictures of `width`."""
    return int(ImageFont.load_default(size=_letter_size(width)).getbbox("Ag")[3]) + 6


def _lettered(text: str, width: int) -> tuple[str, Any]:
    """A label as it fits a picture of `width`, and the font that has its letters.

    Pillow's own font, the same everywhere, knows ASCII only; other letters take a font of the system, or where there
    is none lose their accents.
    """
    text, size = " ".join(text.split()), _letter_size(width)
    font: Any = ImageFont.load_default(size=size)
    if not text.isascii():
        for name in SYSTEM_FONTS:
            with suppress(OSError):
                font = ImageFont.truetype(name, size * 0.85)  # they stand higher in their line than Pillow's
                break
        else:
            letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
            text = "".join(letters).encode("ascii", "replace").decode()
    return _fitted(text, font, width - 8), font


def _fitted(text: str, font: Any, width: int) -> str:
    """`text`, or as much of its start as fits `width` pixels with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
