"""Shared by the readers and writers of all formats: opening a file, finite checks, provenance, byte tables."""

import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from segdream_cli.errors import EnvironmentProblem, SegdreamError, UsageProblem
from segdream_cli.splats import OPACITY_LOGIT_LIMIT, Float32s, Splats, find_nonfinite, find_unusable, sanitize
from segdream_cli.splats.frames import from_frame
from segdream_cli.util.files import known_problem, parse_json

SIGNATURE = "segdream "
"""Start of the one comment that segdream writes; JSON follows."""
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError)
"""Exceptions of Python's zip reader on a damaged file."""
CACHED_ROWS = 4096
"""Rows to convert at a time, so that a block stays in the processor's cache from step to step."""

GZIP = b"\x1f\x8b"
SPZ_MAGIC, SPZ_4 = b"NGSP", b"\4\0\0\0"
"""Start of every version of SPZ, and its version 4, which is not gzip itself."""
UNPACKED_FREE = 1 << 26
"""Bytes that any file may unpack to; a larger one that unpacks to UNPACKED_RATIO times its size is a bomb."""
UNPACKED_RATIO = 64
UNPACKED_AT_ONCE = 1 << 20

_BYTES = np.arange(256, dtype=np.float64)
with np.errstate(divide="ignore"):
    BYTE_LOGITS: Float32s = np.clip(
        np.log(_BYTES / 255) - np.log1p(-_BYTES / 255), -OPACITY_LOGIT_LIMIT, OPACITY_LOGIT_LIMIT
    ).astype(np.float32)
"""Opacity logit of each byte of opacity, [256]."""


def ignore(_: object) -> None:
    """Does nothing; unlike a lambda, it can be sent to another process."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read a file, beyond what its bytes say."""

    strict: bool = False
    """Refuse a file with rows that are not finite, which are dropped otherwise."""
    as_splats: bool = False
    """Read a plain point cloud as small Gaussians."""
    frame: str | None = None
    """Where the axes of the file point, a name of `splats.frames.FRAMES`; None is what the file or its format says."""
    note: Callable[[str], object] = ignore
    """Receives a message about each change that the reader makes, such as rows that it drops."""
    unusable: Callable[[int], object] = ignore
    """Receives the number of rows that are dropped."""


DEFAULT = Reading()


@contextmanager
def open_asset(path: Path) -> Iterator[BinaryIO]:
    """Opens the regular file `path` for reading; what gzip packs is unpacked, unless it is SPZ.

    Raises:
        UsageProblem: it is missing, empty, a folder or a pipe, reading it is not permitted, or it is damaged gzip.
        SegdreamError: the disk fails, or too many files are open.
    """
    try:
        if path.exists() and not path.is_file():
            raise not_a_file(path)
        with path.open("rb") as stream:
            head = stream.read(512)
            if not head:
                raise UsageProblem(f"{path} is empty")
            stream.seek(0)
            if not _is_packed(head):
                yield stream
            else:
                with TemporaryFile() as unpacked:
                    _unpack(path, stream, unpacked)
                    yield unpacked
    except OSError as problem:
        reason = problem.strerror or problem
        unknown = UsageProblem(f"{path} can't be read: {reason}")
        raise known_problem(problem, path, "read") or unknown from problem


def _is_packed(head: bytes) -> bool:
    """Whether a file with this head is gzip of something other than SPZ, whose reader reads the member itself."""
    try:
        start = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, 8) if head[:2] == GZIP else b""
    except zlib.error:
        return False
    return len(start) >= 4 and (start[:4] != SPZ_MAGIC or start[4:8] == SPZ_4)


def _unpack(path: Path, packed: BinaryIO, target: BinaryIO) -> None:
    """Unpacks a gzip member; leaves `target` at its start.

    Raises:
        UsageProblem: it is damaged or truncated, or unpacks to too much.
    """
    room = max(UNPACKED_FREE, UNPACKED_RATIO * packed.seek(0, 2))
    packed.seek(0)
    stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
    while not stream.eof:
        part = stream.unconsumed_tail or packed.read(UNPACKED_AT_ONCE)
        if not part:
            raise UsageProblem(f"{path} is truncated")
        try:
            unpacked = stream.decompress(part, UNPACKED_AT_ONCE)
        except zlib.error as problem:
            raise UsageProblem(f"{path} is damaged: {problem}") from problem
        room -= target.write(unpacked)
        if room < 0:
            raise UsageProblem(f"{path} unpacks to more than {UNPACKED_RATIO} times its size")
    target.seek(0)


def not_a_file(path: Path) -> UsageProblem:
    """The error to raise if the path of an asset is a folder or a pipe."""
    return UsageProblem(f"{path} is not a file{' but a folder' if path.is_dir() else ''}")


def finish(path: Path, splats: Splats, reading: Reading, frame: str) -> Splats:
    """The Gaussians of a file in the inner frame, after `sanitize`, without unusable rows; a note gives their number.

    Args:
        path: the file.
        splats: its Gaussians, whose arrays this may change.
        reading: how to read it.
        frame: the frame of the file, unless `reading` names another.

    Raises:
        UsageProblem: all rows are unusable, or `reading` is strict and some are.
    """
    bad = find_unusable(splats)
    if len(bad):
        splats = splats.select(keep_rows(path, bad, len(splats), reading))
    return from_frame(sanitize(splats), reading.frame or frame)


def keep_rows(path: Path, bad: NDArray[np.intp], count: int, reading: Reading) -> NDArray[np.intp]:
    """The indices of the rows of a file that are not `bad`, of which there is one at least; a note gives their number.

    Raises:
        UsageProblem: all `count` rows are bad, or `reading` is strict.
    """
    problem = f"{len(bad)} of {count} rows have a value that is not a finite number"
    if reading.strict or len(bad) == count:
        why = "" if len(bad) == count else ", and --strict refuses such rows"
        raise UsageProblem(f"{path}: {problem}, the first is row {bad[0]}{why}")
    reading.note(f"{path}: {problem} and are left out; --strict refuses such files")
    reading.unusable(len(bad))
    return np.delete(np.arange(count), bad)


def check_webp() -> None:
    """Refuses a Pillow that was built without WebP.

    Raises:
        EnvironmentProblem: it was.
    """
    from PIL import features

    if not features.check("webp"):
        raise EnvironmentProblem(
            "the package pillow was built without WebP", hint="pip install --force-reinstall --only-binary :all: pillow"
        )


def require_finite(splats: Splats) -> None:
    """Refuses to write an asset that no viewer could show.

    Raises:
        SegdreamError: there are no Gaussians, or some have a value that is not a finite number.
    """
    if not len(splats):
        raise SegdreamError("there are no Gaussians to write")
    bad = find_nonfinite(splats)
    if len(bad):
        raise SegdreamError(
            f"{len(bad)} of {len(splats)} Gaussians have a value that is not a finite number, "
            f"the first is number {bad[0]}"
        )


def provenance_comments(splats: Splats) -> list[str]:
    """The provenance as one comment of ASCII JSON, or no comment without provenance.

    plyfile takes ASCII only, and a line break in a prompt would end the comment; JSON escapes both.
    """
    if not splats.provenance:
        return []
    return [SIGNATURE + json.dumps(dict(splats.provenance), ensure_ascii=True, sort_keys=True)]


def parse_provenance(comments: Sequence[str]) -> dict[str, Any]:
    """The provenance in a comment by `provenance_comments`; empty if there is none or it is damaged."""
    for comment in comments:
        if comment.startswith(SIGNATURE):
            try:
                found = parse_json(comment.removeprefix(SIGNATURE))
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
    return {}


def render_mode_comments(splats: Splats) -> list[str]:
    """The comment of a PLY, as Brush and splat-transform spell it, for Gaussians that are antialiased."""
    return ["SplatRenderMode: mip"] if splats.antialiased else []


def parse_antialiased(comments: Sequence[str]) -> bool:
    """Whether the last comment about it, in Brush's spelling or Postshot's, says that Gaussians are antialiased."""
    found = [
        comment for comment in map(str.strip, comments) if comment.startswith(("SplatRenderMode:", "antialiased "))
    ]
    return bool(found) and found[-1].split()[-1] in ("mip", "1")


def provenance_extras(splats: Splats) -> dict[str, Any]:
    """The `extras` of a JSON document's `asset`: the provenance without NaN, which other parsers refuse; or nothing."""
    plain = json.loads(json.dumps(dict(splats.provenance)), parse_constant=lambda _: None)
    return {"extras": {"segdream": plain}} if plain else {}


def extras_provenance(document: Any) -> Mapping[str, Any]:
    """The provenance in the `asset.extras` of a JSON document; empty if there is none."""
    for key in ("asset", "extras", "segdream"):
        document = document.get(key) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}


def to_opacity_logits(opacities: NDArray[np.floating[Any]]) -> Float32s:
    """Logits within ±1000 of opacities, which are clipped to 0..1; NaN for those that are not finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        clipped = np.where(np.isfinite(opacities), np.clip(opacities.astype(np.float64), 0, 1), np.nan)
        logits: Float32s = np.clip(np.log(clipped) - np.log1p(-clipped), -1e3, 1e3).astype(np.float32)
    return logits


def to_log_scales(scales: NDArray[np.floating[Any]]) -> Float32s:
    """Logarithms of scales, at least -1000; NaN for negative ones."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms: Float32s = np.maximum(np.log(scales), -1e3).astype(np.float32)
    return logarithms


def escapes_archive(name: str) -> bool:
    """Whether the name of a zip member points outside the archive."""
    return name.startswith(("/", "\\")) or ".." in name or ":" in name
