"""Films: frames streamed through ffmpeg to MP4, WebM, GIF or animated WebP."""

import difflib
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from segdream_cli.errors import EnvironmentProblem, SegdreamError, UsageProblem
from segdream_cli.render.images import spread_colours
from segdream_cli.util.files import atomic_write

Frame = NDArray[np.uint8]

# Without the matrix ffmpeg converts by BT.601, and players that expect BT.709 show other colours.
_TO_BT709 = (
    "scale=in_range=full:out_color_matrix=bt709:out_range=limited:flags=bicubic+accurate_rnd+full_chroma_int,"
    "format={pix_fmt},"
    "setparams=range=limited:color_primaries=bt709:color_trc=bt709:colorspace=bt709"
)
_TAGS = ("-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709", "-color_range", "tv")
# Some of a picture's pixels tell its colours; counting them all takes longer than the rest, and memory for each shade.
_COUNT = "split[kept][all];[all]scale=w='min(iw,96)':h='min(ih,96)':flags=neighbor[some];[some]palettegen[palette]"
_PALETTE = "paletteuse=dither=bayer:bayer_scale=4:alpha_threshold=128"


def _mp4(fps: float, alpha: bool) -> list[str]:
    """H.264 that plays everywhere: High profile, 4:2:0, a closed group of pictures every 2 s, index in front."""
    codec = ["-c:v", "libx264", "-profile:v", "high", "-preset", "medium", "-crf", "18", "-g", str(round(2 * fps))]
    pictures = ["-vf", _TO_BT709.format(pix_fmt="yuv420p")]
    return [*pictures, *codec, *_TAGS, "-fps_mode", "cfr", "-movflags", "+faststart", "-f", "mp4"]


def _webm(fps: float, alpha: bool) -> list[str]:
    """VP9, with alpha as a second picture in every packet; the encoder refuses its hidden frames beside alpha."""
    codec = ["-c:v", "libvpx-vp9", "-crf", "24", "-b:v", "0", "-g", str(round(2 * fps))]
    speed = ["-deadline", "good", "-cpu-used", "4", "-row-mt", "1", "-auto-alt-ref", "0" if alpha else "1"]
    pictures = ["-vf", _TO_BT709.format(pix_fmt="yuva420p" if alpha else "yuv420p")]
    return [*pictures, *codec, *speed, *_TAGS, "-fps_mode", "cfr", "-f", "webm"]


def _webp(fps: float, alpha: bool) -> list[str]:
    """An animated WebP, repeated for ever; libwebp itself does the conversion from RGB."""
    return ["-c:v", "libwebp_anim", "-pix_fmt", "bgra", "-quality", "80", "-loop", "0", "-f", "webp"]


ENCODINGS = {".mp4": _mp4, ".webm": _webm, ".webp": _webp}
"""Suffix -> ffmpeg's output options at a frame rate, of what one pass can write."""
SUFFIXES = (*ENCODINGS, ".gif")
WITH_ALPHA = (".webm", ".webp", ".gif")
"""Suffixes of films that may be transparent, a GIF by whole pixels only."""


def check_suffix(path: Path) -> None:
    """Refuses a film of an unknown kind, before its frames are rendered.

    Raises:
        UsageProblem: the suffix is not one of `SUFFIXES`.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        nearest = difflib.get_close_matches(suffix, SUFFIXES, n=1, cutoff=0.1)
        raise UsageProblem(
            f"{path} names no known kind of film; known are {', '.join(SUFFIXES)}",
            hint=f"-o {path.with_suffix(nearest[0] if nearest else '.mp4')}",
        )


def ffmpeg_version() -> str:
    """Name and version of the ffmpeg that films are made with.

    Raises:
        EnvironmentProblem: there is none that runs.
    """
    try:
        program = _ffmpeg()
        said = subprocess.run([program, "-version"], capture_output=True, text=True, check=True).stdout
        return f"{said.split()[2]} in {program}"
    except (OSError, RuntimeError, subprocess.CalledProcessError, IndexError) as problem:
        raise EnvironmentProblem(
            f"no ffmpeg runs here: {problem}", hint="pip install --force-reinstall imageio-ffmpeg"
        ) from problem


def _ffmpeg() -> str:
    """The ffmpeg of imageio-ffmpeg; stills need neither, so a system without the package may have one of its own.

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
    """Encodes frames as they come, at a constant rate; no more than one is held here, and few by ffmpeg.

    The colours of a GIF are known after its last frame, so that its frames wait in a lossless file beside it.

    Args:
        path: .mp4 (H.264 High, CRF 18) or .webm (VP9), both 4:2:0 and BT.709, an odd side padded by its edge pixels;
            .gif or .webp.
        frames: bytes [h, w, 3], or [h, w, 4] with straight alpha for a suffix in `WITH_ALPHA`; all of one size, at
            least one.
        fps: frames a second, above 0; a GIF rounds each frame's time to 1/100 s.

    Raises:
        UsageProblem: the suffix is not known, or the folder can't be written.
        EnvironmentProblem: ffmpeg is missing or fails.
        SegdreamError: the disk is full.
        ValueError: there are no frames, they differ in size, they are not bytes, or the film can't be transparent.
    """
    check_suffix(path)
    suffix = path.suffix.lower()
    rest = iter(frames)
    first = next(rest, None)
    if first is None:
        raise ValueError("a film needs at least one frame")
    alpha = first.shape[-1] == 4
    if alpha and suffix not in WITH_ALPHA:
        raise ValueError(f"a {suffix} film has no transparency")
    step = 2 if suffix in (".mp4", ".webm") else 1  # 4:2:0 halves the sides
    height, width = (-(-side // step) * step for side in first.shape[:2])
    pixels = ["-pix_fmt", "rgba" if alpha else "rgb24", "-s", f"{width}x{height}", "-framerate", f"{fps:.10g}"]
    source = ["-f", "rawvideo", *pixels, "-i", "pipe:0", "-an"]

    def feed(options: list[str]) -> None:
        with _Encoder(options, path) as encoder:
            for frame in itertools.chain([first], rest):
                if frame.shape != first.shape or frame.dtype != np.uint8:
                    raise ValueError(f"a frame {frame.shape} {frame.dtype} in a film of {first.shape} uint8")
                shown = spread_colours(frame) if alpha and suffix == ".webm" else frame
                encoder.write(_padded(shown, height, width))

    with atomic_write(path) as temporary:
        if suffix == ".gif":
            _write_gif(path, temporary, source, feed)
        else:
            feed([*source, *ENCODINGS[suffix](fps, alpha), f"file:{temporary}"])


def _write_gif(path: Path, temporary: Path, source: list[str], feed: Callable[[list[str]], None]) -> None:
    """Two passes: `feed` fills a lossless file and counts the colours, then every frame gets the one palette."""
    with TemporaryDirectory(dir=path.parent, prefix=".segdream-") as folder:
        kept, palette = (f"file:{Path(folder, name)}" for name in ("frames.nut", "palette.png"))
        lossless = ["-map", "[kept]", "-c:v", "ffv1", "-f", "nut", kept]
        feed([*source, "-filter_complex", _COUNT, *lossless, "-map", "[palette]", "-update", "1", palette])
        coloured = ["-filter_complex", _PALETTE, "-loop", "0", "-f", "gif", f"file:{temporary}"]
        with _Encoder(["-i", kept, "-i", palette, *coloured], path):
            pass


def _padded(frame: Frame, height: int, width: int) -> Frame:
    missing = ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0))
    return np.ascontiguousarray(np.pad(frame, missing, mode="edge"))


class _Encoder:
    """An ffmpeg process that is fed through its standard input, and stopped if the block that feeds it raises."""

    def __init__(self, options: list[str], path: Path) -> None:
        self._options, self._path = options, path

    def __enter__(self) -> "_Encoder":
        self._log: IO[bytes] = TemporaryFile()  # a pipe that nobody reads would stall ffmpeg
        try:
            command = [_ffmpeg(), "-hide_banner", "-loglevel", "error", "-y", *self._options]
            # a session of its own: Ctrl-C is for this process, which then stops the other
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._log, start_new_session=True
            )
        except (OSError, RuntimeError) as problem:
            self._log.close()
            raise EnvironmentProblem(
                f"ffmpeg can't be started: {problem}",
                hint="pip install --force-reinstall imageio-ffmpeg  # or point IMAGEIO_FFMPEG_EXE at an ffmpeg",
            ) from problem
        return self

    def write(self, frame: Frame) -> None:
        """Feeds one frame; errors as `write_video`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(frame.data)
        except OSError as problem:  # it has closed its end: what it wrote says why
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
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", errors="replace").strip().splitlines()
        if any("No space left on device" in line for line in lines):
            return SegdreamError(
                f"the disk is full: {self._path} was not written",
                hint=f"df -h {self._path.parent}  # then run the command again",
            )
        reason = lines[-1] if lines else f"exit code {self._process.returncode}"
        return EnvironmentProblem(f"ffmpeg failed on {self._path}: {reason}", hint="segdream doctor")
