"""Films: what players need, colours that come back, and nothing half-written."""

import importlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from segdream_cli.errors import EnvironmentProblem, SegdreamError, UsageProblem
from segdream_cli.render.images import spread_colours
from segdream_cli.render.video import check_suffix, write_video

FLAT = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (250, 200, 20), (12, 120, 130), (255, 255, 255), (0, 0, 0), (90, 90, 90)]


def bars(height: int = 64, width: int = 32) -> np.ndarray:
    """Flat colours side by side, each `width` wide."""
    return np.repeat(np.array(FLAT, np.uint8)[None], height, axis=0).repeat(width, axis=1)


def moving(frames: int, height: int = 48, width: int = 64) -> Iterator[np.ndarray]:
    for i in range(frames):
        frame = np.full((height, width, 3), 255, np.uint8)
        frame[10:30, i : i + 12] = (200, 30, 30)
        yield frame


def ffmpeg(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", *arguments], capture_output=True, check=False
    )


def described(path: Path) -> str:
    return ffmpeg("-i", str(path)).stderr.decode()


def decoded(path: Path, pix_fmt: str, *decoder: str) -> np.ndarray:
    done = ffmpeg("-v", "error", *decoder, "-i", str(path), "-f", "rawvideo", "-pix_fmt", pix_fmt, "-")
    assert done.returncode == 0, done.stderr
    return np.frombuffer(done.stdout, np.uint8)


def boxes(path: Path) -> list[str]:
    """The top-level boxes of an MP4 in their order."""
    data, at, names = path.read_bytes(), 0, []
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        if size == 1:
            (size,) = struct.unpack(">Q", data[at + 8 : at + 16])
        names.append(name.decode())
        at += size
    return names


def test_mp4_is_what_every_player_reads(tmp_path: Path) -> None:
    path = tmp_path / "turn table.mp4"
    write_video(path, moving(25), fps=24)
    about = described(path)
    assert re.search(r"Video: h264 \(High\).* yuv420p\(tv, bt709[,)]", about), about
    assert "64x48" in about
    assert "24 fps" in about
    assert "Duration: 00:00:01.04" in about
    assert "Audio" not in about
    assert len(decoded(path, "rgb24")) == 25 * 48 * 64 * 3
    assert boxes(path).index("moov") < boxes(path).index("mdat")
    assert list(tmp_path.iterdir()) == [path]


def test_mp4_colours_come_back(tmp_path: Path) -> None:
    path = tmp_path / "bars.mp4"
    frame = bars()
    write_video(path, [frame] * 3, fps=30)
    back = decoded(path, "rgb24").reshape(3, *frame.shape)[1]
    middles = np.arange(len(FLAT)) * 32 + 16
    assert np.abs(back[32, middles].astype(int) - FLAT).max() <= 3


def test_mp4_holds_bt709_limited_range_samples(tmp_path: Path) -> None:
    path = tmp_path / "bars.mp4"
    frame = bars()
    height, width, _ = frame.shape
    write_video(path, [frame] * 3, fps=30)
    planes = decoded(path, "yuv420p")
    luma = planes[: height * width].reshape(height, width)
    chroma = planes[height * width : height * width * 3 // 2].reshape(2, height // 2, width // 2)
    for i, rgb in enumerate(FLAT):
        r, g, b = np.array(rgb) / 255  # Rec. ITU-R BT.709-6, items 3.2 to 3.4
        y = 0.2126 * r + 0.7152 * g + 0.0722 * b
        expected = (16 + 219 * y, 128 + 224 * (b - y) / 1.8556, 128 + 224 * (r - y) / 1.5748)
        column = i * 32 + 16
        found = (luma[32, column], *chroma[:, 16, column // 2])
        assert found == pytest.approx(expected, abs=1.5), rgb


def test_mp4_pads_odd_sides_with_their_edge(tmp_path: Path) -> None:
    path = tmp_path / "odd.mp4"
    frame = np.full((33, 47, 3), (0, 90, 200), np.uint8)
    frame[:16] = (220, 220, 220)
    write_video(path, [frame] * 2, fps=10)
    back = decoded(path, "rgb24").reshape(2, 34, 48, 3)[0].astype(int)
    assert np.abs(back[33, :] - (0, 90, 200)).max() <= 4
    assert np.abs(back[:12, 47] - (220, 220, 220)).max() <= 4
    assert np.abs(back[20:, 47] - (0, 90, 200)).max() <= 4


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_have_all_frames_and_repeat(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"turn{suffix.upper()}"
    frames = list(moving(12))
    write_video(path, frames, fps=10)
    with Image.open(path) as video:
        assert video.n_frames == 12  # type: ignore[attr-defined]
        assert video.info["loop"] == 0
        video.seek(7)
        video.load()
        assert video.size == (64, 48)
        assert video.info["duration"] == 100
        back = np.asarray(video.convert("RGB")).astype(int)
    assert np.abs(back - frames[7]).mean() < 3
    assert np.abs(back[20, 13] - (200, 30, 30)).max() < 20


def clear(frames: int, height: int = 48, width: int = 64) -> Iterator[np.ndarray]:
    """A moving opaque square with a half-transparent one below it, and nothing (black) around them."""
    for i in range(frames):
        frame = np.zeros((height, width, 4), np.uint8)
        frame[8:24, i + 4 : i + 20] = (200, 30, 30, 255)
        frame[24:40, i + 4 : i + 20] = (20, 160, 40, 128)
        yield frame


ALPHA_MODE = b"\x53\xc0\x81\x01"  # Matroska's AlphaMode, one byte, 1


def test_webm_is_vp9_in_bt709(tmp_path: Path) -> None:
    path = tmp_path / "turn.webm"
    frame = bars()
    write_video(path, [frame] * 5, fps=24)
    about = described(path)
    assert re.search(r"Video: vp9 .*yuv420p\(tv, bt709[,)]", about), about
    assert "24 fps" in about
    assert ALPHA_MODE not in path.read_bytes()
    back = decoded(path, "rgb24").reshape(5, *frame.shape)[2]
    assert np.abs(back[32, np.arange(len(FLAT)) * 32 + 16].astype(int) - FLAT).max() <= 4


def test_webm_keeps_alpha_and_the_colours_of_rims(tmp_path: Path) -> None:
    path = tmp_path / "turn.webm"
    frames = list(clear(9))
    write_video(path, frames, fps=10)
    assert ALPHA_MODE in path.read_bytes()
    back = decoded(path, "rgba", "-c:v", "libvpx-vp9").reshape(9, 48, 64, 4).astype(int)
    for frame, shown in zip(frames, back, strict=True):
        assert np.abs(shown[..., 3] - frame[..., 3]).mean() < 2
        seen = frame[..., 3] > 0
        # black around the squares would leak into these colours: half as bright at the rim
        assert np.abs(shown - frame)[seen][:, :3].mean() < 6
    assert np.abs(back[4, 16, 16] - (200, 30, 30, 255)).max() <= 8
    assert np.abs(back[4, 32, 16] - (20, 160, 40, 128)).max() <= 8


@pytest.mark.parametrize(("suffix", "half"), [(".webp", 128), (".gif", 255)])
def test_animations_keep_alpha(tmp_path: Path, suffix: str, half: int) -> None:
    """Squares that move on must not stay where they were."""
    path = tmp_path / f"turn{suffix}"
    write_video(path, clear(9), fps=10)
    with Image.open(path) as video:
        assert video.n_frames == 9  # type: ignore[attr-defined]
        video.seek(7)
        back = np.asarray(video.convert("RGBA")).astype(int)
    assert back[16, 6, 3] == back[32, 6, 3] == back[4, 40, 3] == 0
    assert np.abs(back[16, 20] - (200, 30, 30, 255)).max() <= 20
    assert np.abs(back[32, 20] - (20, 160, 40, half)).max() <= 20


def test_mp4_has_no_alpha(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no transparency"):
        write_video(tmp_path / "a.mp4", clear(2), fps=10)


def test_spread_colours_takes_the_mean_of_the_smallest_square() -> None:
    rng = np.random.default_rng(3)
    frame = rng.integers(0, 256, (13, 9, 4), dtype=np.uint8)
    frame[rng.random((13, 9)) < 0.85] = 0
    frame[..., 3] = np.where(frame[..., 3] > 0, np.maximum(frame[..., 3], 1), 0)
    spread = spread_colours(frame)
    np.testing.assert_array_equal(spread[..., 3], frame[..., 3])
    for row, column in np.ndindex(13, 9):
        side = 1
        while not (block := squared(frame, row, column, side))[..., 3].any():
            side *= 2
        weights = block[..., 3:].astype(float)
        mean = (block[..., :3] * weights).sum((0, 1)) / weights.sum()
        np.testing.assert_allclose(spread[row, column, :3], mean, atol=0.51)


def squared(frame: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    top, left = row // side * side, column // side * side
    return frame[top : top + side, left : left + side]


def test_spread_colours_of_nothing() -> None:
    assert (spread_colours(np.zeros((5, 6, 4), np.uint8)) == 0).all()


PEAKS = """
import resource, sys
from pathlib import Path
import numpy as np
from segdream_cli.render.video import write_video

def frames(n):
    noise = np.random.default_rng(0).integers(0, 256, (320, 640, 3), dtype=np.uint8)
    for i in range(n):
        yield np.roll(noise, i, axis=1)[:, :320]

write_video(Path(sys.argv[1]), frames(int(sys.argv[2])), 30)
print(*(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_write_video_memory_is_bounded(tmp_path: Path, suffix: str) -> None:
    """Neither here nor in ffmpeg: 192 frames more are 59 MB of bytes."""
    peaks = []
    for n in (48, 240):
        command = [sys.executable, "-c", PEAKS, str(tmp_path / f"{n}{suffix}"), str(n)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append([int(word) / 1024 for word in done.stdout.split()])
    (here, there), (here_long, there_long) = peaks
    assert here_long - here < 12
    assert there_long - there < 25


def probed(path: Path) -> dict[str, str]:
    """What ffprobe of the system, another build than the encoder's, says of the first stream."""
    program = shutil.which("ffprobe")
    if program is None:
        pytest.skip("no ffprobe on the PATH (apt-get install ffmpeg): only imageio-ffmpeg's own reading was checked")
    entries = "stream=codec_name,profile,pix_fmt,width,height,color_range,color_space,color_transfer,color_primaries"
    entries += ",r_frame_rate,nb_read_frames,codec_type:stream_tags=alpha_mode"
    command = [program, "-v", "error", "-count_frames", "-show_entries", entries, "-of", "json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (stream,) = json.loads(done.stdout)["streams"]
    return {**stream, **stream.pop("tags", {})}


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
@pytest.mark.parametrize(
    ("suffix", "alpha", "codec", "profile"),
    [(".mp4", False, "h264", "High"), (".webm", False, "vp9", "Profile 0"), (".webm", True, "vp9", "Profile 0")],
)
def test_write_video_agrees_with_ffprobe(
    tmp_path: Path, suffix: str, alpha: bool, codec: str, profile: str, size: tuple[int, int]
) -> None:
    path = tmp_path / f"turn{suffix}"
    write_video(path, (clear if alpha else moving)(11, *size), fps=25)
    said = probed(path)
    expected = {
        "codec_type": "video", "codec_name": codec, "profile": profile, "pix_fmt": "yuv420p", "width": 64,
        "height": 48, "color_range": "tv", "color_space": "bt709", "color_transfer": "bt709",
        "color_primaries": "bt709", "r_frame_rate": "25/1", "nb_read_frames": "11",
    }  # fmt: skip
    assert {key: said[key] for key in expected} == expected
    assert (said.get("alpha_mode") or said.get("ALPHA_MODE")) == ("1" if alpha else None)


def test_write_video_of_one_pixel(tmp_path: Path) -> None:
    for suffix in (".mp4", ".webm", ".gif", ".webp"):
        path = tmp_path / f"dot{suffix}"
        write_video(path, [np.zeros((1, 1, 3), np.uint8)], fps=30)
        assert "Video:" in described(path)


def test_write_video_streams_frames(tmp_path: Path) -> None:
    """A long video must not be gathered first: the process that encodes it has to be there from the first frames on."""
    children: list[set[str]] = []

    def watched() -> Iterator[np.ndarray]:
        for frame in moving(6):
            tasks = Path("/proc/self/task")
            children.append({p for task in tasks.iterdir() for p in (task / "children").read_text().split()})
            yield frame

    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        pytest.skip("needs Linux's /proc")
    write_video(tmp_path / "a.mp4", watched(), fps=30)
    assert all(later - children[0] for later in children[1:])


def test_write_video_leaves_nothing_if_frames_fail(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"what was there")

    def failing() -> Iterator[np.ndarray]:
        yield from moving(3)
        raise RuntimeError("out of views")

    with pytest.raises(RuntimeError, match="out of views"):
        write_video(path, failing(), fps=30)
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_write_video_refuses_mixed_sizes_and_no_frames(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a frame \(50, 64, 3\)"):
        write_video(tmp_path / "a.mp4", [*moving(2), *moving(1, height=50)], fps=30)
    with pytest.raises(ValueError, match="float64"):
        write_video(tmp_path / "a.mp4", [np.zeros((8, 8, 3))], fps=30)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "a.mp4", [], fps=30)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "nearest"), [("a.mpeg", ".mp4"), ("a.gift", ".gif"), ("a", ".mp4"), ("a.webb", ".webp")]
)
def test_check_suffix_refuses_unknown_formats(tmp_path: Path, name: str, nearest: str) -> None:
    with pytest.raises(UsageProblem, match=r"\.mp4, \.webm, \.mov, \.webp, \.gif") as caught:
        write_video(tmp_path / name, moving(1), fps=30)
    assert caught.value.hint == f"-o {tmp_path / 'a'}{nearest}"
    with pytest.raises(UsageProblem):
        check_suffix(Path(name))


def fake_ffmpeg(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    program = folder / "ffmpeg.py"
    program.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))


def test_write_video_without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "no-such-ffmpeg"))
    with pytest.raises(EnvironmentProblem, match="can't be started") as caught:
        write_video(tmp_path / "a.mp4", moving(2), fps=30)
    assert "imageio-ffmpeg" in str(caught.value.hint)
    assert not list(tmp_path.iterdir())


def test_write_video_without_imageio_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody needs it for images; videos take an ffmpeg that is named or on the PATH, or say what to install."""
    program = imageio_ffmpeg.get_ffmpeg_exe()
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.delitem(sys.modules, "segdream_cli.render.video")
    video = importlib.import_module("segdream_cli.render.video")
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for use in (video.ffmpeg_version, lambda: video.write_video(tmp_path / "a.mp4", moving(2), fps=30)):
        with pytest.raises(EnvironmentProblem, match="not installed"):
            use()
    (tmp_path / "ffmpeg").symlink_to(program)
    video.write_video(tmp_path / "a.mp4", moving(2), fps=30)
    assert b"ftyp" in (tmp_path / "a.mp4").read_bytes()[:16]
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program)
    assert video.ffmpeg_version().endswith(program)


def test_write_video_leaves_nothing_if_gif_frames_fail(tmp_path: Path) -> None:
    def failing() -> Iterator[np.ndarray]:
        yield from moving(3)
        raise RuntimeError("out of views")

    with pytest.raises(RuntimeError, match="out of views"):
        write_video(tmp_path / "a.gif", failing(), fps=30)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("early", [True, False], ids=["before the frames", "after the frames"])
def test_write_video_reports_ffmpeg_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    reading = "" if early else "sys.stdin.buffer.read()\n"
    fake_ffmpeg(tmp_path, monkeypatch, f"{reading}sys.exit('Unknown encoder libx264')")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(EnvironmentProblem, match="Unknown encoder libx264"):
        write_video(out / "a.mp4", moving(40, height=200, width=200), fps=30)
    assert not list(out.iterdir())


def test_write_video_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ffmpeg(tmp_path, monkeypatch, "sys.exit('av_interleaved_write_frame(): No space left on device')")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(SegdreamError, match="disk is full") as caught:
        write_video(out / "a.mp4", moving(40, height=200, width=200), fps=30)
    assert caught.value.exit_code == 1
    assert not list(out.iterdir())


@pytest.mark.parametrize("alpha", [False, True])
def test_mov_is_prores_4444_with_its_size_and_alpha(tmp_path: Path, alpha: bool) -> None:
    """Odd sides stay; colours and straight alpha come back, also where nothing is opaque."""
    frames = [frame[:47, :63] for frame in (clear(6) if alpha else moving(6))]
    path = tmp_path / "turn.mov"
    write_video(path, frames, fps=25)
    found = probed(path)
    assert (found["codec_name"], found["profile"]) == ("prores", "4444")
    assert found["pix_fmt"].startswith("yuva444p" if alpha else "yuv444p")
    assert (found["width"], found["height"], found["nb_read_frames"], found["r_frame_rate"]) == (63, 47, "6", "25/1")
    assert found["color_space"] == found["color_primaries"] == found["color_transfer"] == "bt709"
    back = decoded(path, "rgba" if alpha else "rgb24").reshape(6, 47, 63, -1).astype(int)
    shown = np.stack(frames).astype(int)
    if alpha:
        np.testing.assert_allclose(back[..., 3], shown[..., 3], atol=1)
        shown[..., :3][shown[..., 3] == 0] = back[..., :3][shown[..., 3] == 0]
    inner = shown[:, :, 2:-2]
    flat = (inner == shown[:, :, 1:-3]).all(-1) & (inner == shown[:, :, 3:-1]).all(-1)
    assert np.abs(back[:, :, 2:-2] - inner)[flat].mean() < 2


@pytest.mark.parametrize("colour", [(255, 255, 255), (250, 250, 248), (12, 120, 130)])
def test_gif_background_is_one_colour(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    """Beside a gradient that needs many colours close to it, the background is neither dithered nor changed."""
    ramp = np.linspace(0, 255, 64)[None, :, None] * np.linspace(0.2, 1, 48)[:, None, None] * (1, 0.99, 0.97)
    frames = []
    for i in range(6):
        frame = np.full((96, 128, 3), colour, np.uint8)
        frame[24:72, 20 + i : 84 + i] = ramp
        frames.append(frame)
    path = tmp_path / "turn.gif"
    write_video(path, frames, fps=10)
    with Image.open(path) as video:
        for i, frame in enumerate(frames):
            video.seek(i)
            back = np.asarray(video.convert("RGB"))
            outside = np.ones((96, 128), bool)
            outside[24:72, 20 + i : 84 + i] = False
            assert (back[outside] == colour).all(), i
            assert np.abs(back[~outside].astype(int) - frame[~outside]).mean() < 5
