"""Videos: frames streamed through ffmpeg to MP4, WebM, MOV, GIF or animated WebP."""

import difflib
import errno
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from shlex import quote
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdream_cli.errors import EnvironmentProblem, SegdreamError, UsageProblem
from segdream_cli.render.images import spread_colours
from segdream_cli.util.files import atomic_write, free_path, is_folder, scratch_file, write_problem

Frame = NDArray[np.uint8]

# Without the matrix, ffmpeg converts by BT.601, and players that expect BT.709 show other colours.
_TO_BT709 = (
    "scale=in_range=full:out_color_matrix=bt709:out_range=limited:flags=bicubic+accurate_rnd+full_chroma_int,"
    "format={pix_fmt},"
    "setparams=range=limited:color_primaries=bt709:color_trc=bt709:colorspace=bt709"
)
_TAGS = ("-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709", "-color_range", "tv")
# A sample of the pixels is enough for the palette: counting all takes longer than the rest, and memory per shade.
_COUNT = "split[kept][all];[all]scale=w='min(iw,96)':h='min(ih,96)':flags=neighbor[some];[some]palettegen[palette]"
_PALETTE = "paletteuse=dither=bayer:bayer_scale=4:alpha_threshold=128"


def _mp4(fps: float, alpha: bool) -> list[str]:
    """Options for H.264 that plays everywhere: High profile, 4:2:0, closed GOPs of 2 s, index at the front."""
    codec = ["-c:v", "libx264", "-profile:v", "high", "-preset", "medium", "-crf", "18", "-g", str(round(2 * fps))]
    convert = ["-vf", _TO_BT709.format(pix_fmt="yuv420p")]
    return [*convert, *codec, *_TAGS, "-fps_mode", "cfr", "-movflags", "+faststart", "-f", "mp4"]


def _webm(fps: float, alpha: bool) -> list[str]:
    """Options for VP9; alpha is a second image in every packet, beside which the encoder refuses hidden frames."""
    codec = ["-c:v", "libvpx-vp9", "-crf", "24", "-b:v", "0", "-g", str(round(2 * fps))]
    speed = ["-deadline", "good", "-cpu-used", "4", "-row-mt", "1", "-auto-alt-ref", "0" if alpha else "1"]
    convert = ["-vf", _TO_BT709.format(pix_fmt="yuva420p" if alpha else "yuv420p")]
    return [*convert, *codec, *speed, *_TAGS, "-fps_mode", "cfr", "-f", "webm"]


def _mov(fps: float, alpha: bool) -> list[str]:
    """Options for ProRes 4444, which editors take: 4:4:4 in 10 bits, straight alpha in 16, every frame a key frame."""
    codec = ["-c:v", "prores_ks", "-profile:v", "4444", "-vendor", "apl0", *(["-alpha_bits", "16"] if alpha else [])]
    convert = ["-vf", _TO_BT709.format(pix_fmt="yuva444p10le" if alpha else "yuv444p10le")]
    return [*convert, *codec, *_TAGS, "-fps_mode", "cfr", "-f", "mov"]


def _webp(fps: float, alpha: bool) -> list[str]:
    """Options for an animated WebP that loops forever; libwebp itself converts from RGB."""
    return ["-c:v", "libwebp_anim", "-pix_fmt", "bgra", "-quality", "80", "-loop", "0", "-f", "webp"]


ENCODINGS = {".mp4": _mp4, ".webm": _webm, ".mov": _mov, ".webp": _webp}
"""Suffix -> function of the frame rate and of whether frames have alpha, which returns ffmpeg's output options."""
SUFFIXES = (*ENCODINGS, ".gif")
BLOCK = 1 << 20
"""Bytes that are copied at once."""
WITH_ALPHA = (".webm", ".mov", ".webp", ".gif")
"""Suffixes of videos that may be transparent; a GIF only by whole pixels."""
BLOCKY = (".mp4", ".webm")
"""Suffixes of videos whose sides are even: their colours cover two by two pixels."""
NEAR = 6
"""Steps of 255 within which colours of a GIF's palette become the background's; dithering adds two at most."""


def check_suffix(path: Path) -> None:
    """Refuses an unknown video format before its frames are rendered.

    Raises:
        UsageProblem: the suffix is not one of `SUFFIXES`.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES and is_folder(path):
        raise UsageProblem(f"{path} is a folder", hint=f"-o {quote(str(free_path(path / 'turntable.mp4')))}")
    if suffix not in SUFFIXES:
        nearest = difflib.get_close_matches(suffix, SUFFIXES, n=1, cutoff=0.1)
        raise UsageProblem(
            f"{path} has no known video suffix; use one of {', '.join(SUFFIXES)}",
            hint=f"-o {quote(str(free_path(path.with_suffix(nearest[0] if nearest else '.mp4'))))}",
        )


def ffmpeg_version() -> str:
    """Version and path of the ffmpeg that writes videos.

    Raises:
        EnvironmentProblem: no ffmpeg runs.
    """
    try:
        program = _ffmpeg()
        output = subprocess.run([program, "-version"], capture_output=True, text=True, check=True).stdout
        return f"{output.split()[2]} in {program}"
    except (OSError, RuntimeError, subprocess.CalledProcessError, IndexError) as problem:
        raise EnvironmentProblem(
            f"no working ffmpeg was found: {problem}", hint="pip install --force-reinstall imageio-ffmpeg"
        ) from problem


def _ffmpeg() -> str:
    """Path of imageio-ffmpeg's ffmpeg, or of the system's own where the package is missing.

    Raises:
        RuntimeError: there is none.
    """
    try:
        import imageio_ffmpeg

        program: str | None = imageio_ffmpeg.get_ffmpeg_exe()
    except ImportError:
        program = os.environ.get("IMAGEIO_FFMPEG_EXE") or shutil.which("ffmpeg")
    if program is None:
        raise RuntimeError("imageio-ffmpeg is not installed, and no ffmpeg is on the PATH")
    return program


def write_video(path: Path, frames: Iterable[Frame], fps: float) -> None:
    """Encodes frames as they arrive, at a constant rate; this process holds one frame at a time, ffmpeg a few.

    A GIF's palette is known only after its last frame, so its frames wait in a lossless file beside it.

    Args:
        path: .mp4 (H.264 High, CRF 18) or .webm (VP9), both 4:2:0 and BT.709, an odd side padded by its edge pixels;
            .mov (ProRes 4444, BT.709); .gif or .webp.
        frames: bytes [h, w, 3], or [h, w, 4] with straight alpha for a suffix in `WITH_ALPHA`; all of one size, at
            least one.
        fps: frames per second, above 0; a GIF rounds each frame's time to 1/100 s.

    Raises:
        UsageProblem: the suffix is not known, or the folder can't be written.
        EnvironmentProblem: ffmpeg is missing or fails.
        SegdreamError: the disk is full.
        ValueError: there are no frames, they differ in size, they are not bytes, or the format can't be transparent.
    """
    check_suffix(path)
    suffix = path.suffix.lower()
    rest = iter(frames)
    first = next(rest, None)
    if first is None:
        raise ValueError("a video needs at least one frame")
    alpha = first.shape[-1] == 4
    if alpha and suffix not in WITH_ALPHA:
        raise ValueError(f"a {suffix} video has no transparency")
    width, height = padded_size(path, first.shape[1], first.shape[0])
    pixels = ["-pix_fmt", "rgba" if alpha else "rgb24", "-s", f"{width}x{height}", "-framerate", f"{fps:.10g}"]
    source = ["-f", "rawvideo", *pixels, "-i", "pipe:0", "-an"]

    def feed(options: list[str]) -> None:
        with _Encoder(options, path) as encoder:
            for frame in itertools.chain([first], rest):
                if frame.shape != first.shape or frame.dtype != np.uint8:
                    raise ValueError(f"a frame {frame.shape} {frame.dtype} in a video of {first.shape} uint8")
                shown = spread_colours(frame) if alpha and suffix in (".webm", ".mov") else frame
                encoder.write(_pad(shown, height, width).data)

    with atomic_write(path) as temporary:
        if suffix == ".gif":
            _write_gif(path, temporary, source, feed, _flat_colour(first))
        else:
            feed([*source, *ENCODINGS[suffix](fps, alpha), f"file:{temporary}"])


def padded_size(path: Path, width: int, height: int) -> tuple[int, int]:
    """Width and height of a video at `path` for frames of a size."""
    step = 2 if path.suffix.lower() in BLOCKY else 1
    return -(-width // step) * step, -(-height // step) * step


def _write_gif(
    path: Path, temporary: Path, source: list[str], feed: Callable[[list[str]], None], flat: Frame | None
) -> None:
    """Encodes in two passes: `feed` fills a lossless file and a palette, with which a second ffmpeg writes the GIF.

    The palette gets the colour `flat` of a background, which would be dithered otherwise.
    """
    with scratch_file(path, ".nut") as kept, scratch_file(path, ".png") as palette:
        lossless = ["-map", "[kept]", "-c:v", "ffv1", "-f", "nut", f"file:{kept}"]
        feed([*source, "-filter_complex", _COUNT, *lossless, "-map", "[palette]", "-update", "1", f"file:{palette}"])
        if flat is not None:
            _keep_colour(palette, flat)
        coloured = ["-filter_complex", _PALETTE, "-loop", "0", "-f", "gif", f"file:{temporary}"]
        # through the pipe, since an ffmpeg that reads a file would outlive this process
        command = ["-f", "nut", "-i", "pipe:0", "-i", f"file:{palette}", *coloured]
        with _Encoder(command, path) as encoder, kept.open("rb") as stream:
            while block := stream.read(BLOCK):
                encoder.write(block)


def _flat_colour(frame: Frame) -> Frame | None:
    """The colour [3] of the background of an opaque frame: that of its corners; None if they differ."""
    corners = frame[[0, 0, -1, -1], [0, -1, 0, -1]]
    return corners[0] if frame.shape[-1] == 3 and (corners == corners[0]).all() else None


def _keep_colour(palette: Path, colour: Frame) -> None:
    """Puts a colour into a palette: in place of the nearest one, and of all that dithering would mix with it."""
    with Image.open(palette) as image:
        pixels = np.array(image.convert("RGBA"))
    steps = np.abs(pixels[..., :3].astype(int) - colour).max(axis=-1)
    steps[pixels[..., 3] == 0] = 255  # the transparent entry
    pixels[steps <= max(NEAR, steps.min())] = (*colour, 255)
    Image.fromarray(pixels).save(palette)


def _pad(frame: Frame, height: int, width: int) -> Frame:
    """The frame with its last row and column repeated up to this size."""
    missing = ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0))
    return np.ascontiguousarray(np.pad(frame, missing, mode="edge"))


class _Encoder:
    """An ffmpeg process that reads frames from its standard input; it is stopped if the `with` block raises."""

    def __init__(self, options: list[str], path: Path) -> None:
        self._options, self._path = options, path

    def __enter__(self) -> "_Encoder":
        self._log: IO[bytes] = TemporaryFile()  # a full pipe would stall ffmpeg
        try:
            command = [_ffmpeg(), "-hide_banner", "-loglevel", "error", "-y", *self._options]
            # in a session of its own, so Ctrl-C reaches only this process, which then stops ffmpeg
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._log, start_new_session=True
            )
        except (OSError, RuntimeError) as problem:
            self._log.close()
            raise EnvironmentProblem(
                f"ffmpeg can't be started: {problem}",
                hint="pip install --force-reinstall imageio-ffmpeg",
            ) from problem
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Feeds bytes; raises the errors of `write_video`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
        except OSError as problem:  # ffmpeg has closed the pipe; its log has the reason
            self._process.wait()
            raise self._failure() from problem

    def __exit__(self, kind: Any, *_: object) -> None:
        process = self._process
        try:
            if kind is not None:
                process.kill()
            process.communicate()
            if kind is None and process.returncode != 0:
                raise self._failure()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            self._log.close()

    def _failure(self) -> SegdreamError:
        """The error to raise for an ffmpeg that failed, from its log."""
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", errors="replace").strip().splitlines()
        if any("No space left on device" in line for line in lines):
            return write_problem(OSError(errno.ENOSPC, "No space left on device"), self._path)
        reason = lines[-1] if lines else f"exit code {self._process.returncode}"
        return EnvironmentProblem(f"ffmpeg failed on {self._path}: {reason}", hint="segdream doctor")
