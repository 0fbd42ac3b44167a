"""Films: what players need, colours that come back, and nothing half-written."""

import os
import re
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
from segdream_cli.video import check_suffix, write_video

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


def decoded(path: Path, pix_fmt: str) -> np.ndarray:
    done = ffmpeg("-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", pix_fmt, "-")
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
    with Image.open(path) as film:
        assert film.n_frames == 12  # type: ignore[attr-defined]
        assert film.info["loop"] == 0
        film.seek(7)
        film.load()
        assert film.size == (64, 48)
        assert film.info["duration"] == 100
        back = np.asarray(film.convert("RGB")).astype(int)
    assert np.abs(back - frames[7]).mean() < 3
    assert np.abs(back[20, 13] - (200, 30, 30)).max() < 20


def test_a_single_odd_frame_of_one_pixel(tmp_path: Path) -> None:
    for suffix in (".mp4", ".gif", ".webp"):
        path = tmp_path / f"dot{suffix}"
        write_video(path, [np.zeros((1, 1, 3), np.uint8)], fps=30)
        assert "Video:" in described(path)


def test_frames_are_taken_as_they_are_encoded(tmp_path: Path) -> None:
    """A long film must not be gathered first: the process that encodes it has to be there from the first frames on."""
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


def test_nothing_is_left_when_the_frames_fail(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"what was there")

    def failing() -> Iterator[np.ndarray]:
        yield from moving(3)
        raise RuntimeError("out of views")

    with pytest.raises(RuntimeError, match="out of views"):
        write_video(path, failing(), fps=30)
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_frames_of_two_sizes_and_no_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a frame \(50, 64, 3\)"):
        write_video(tmp_path / "a.mp4", [*moving(2), *moving(1, height=50)], fps=30)
    with pytest.raises(ValueError, match="float64"):
        write_video(tmp_path / "a.mp4", [np.zeros((8, 8, 3))], fps=30)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "a.mp4", [], fps=30)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "nearest"), [("a.mpeg", ".mp4"), ("a.gift", ".gif"), ("a", ".mp4"), ("a.webm", ".webp")]
)
def test_unknown_suffix(tmp_path: Path, name: str, nearest: str) -> None:
    with pytest.raises(UsageProblem, match=r"\.mp4, \.gif, \.webp") as caught:
        write_video(tmp_path / name, moving(1), fps=30)
    assert caught.value.hint == f"-o {tmp_path / 'a'}{nearest}"
    with pytest.raises(UsageProblem):
        check_suffix(Path(name))


def fake_ffmpeg(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    program = folder / "ffmpeg.py"
    program.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))


def test_ffmpeg_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "no-such-ffmpeg"))
    with pytest.raises(EnvironmentProblem, match="can't be started") as caught:
        write_video(tmp_path / "a.mp4", moving(2), fps=30)
    assert "imageio-ffmpeg" in str(caught.value.hint)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("early", [True, False], ids=["before the frames", "after the frames"])
def test_ffmpeg_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    reading = "" if early else "sys.stdin.buffer.read()\n"
    fake_ffmpeg(tmp_path, monkeypatch, f"{reading}sys.exit('Unknown encoder libx264')")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(EnvironmentProblem, match="Unknown encoder libx264"):
        write_video(out / "a.mp4", moving(40, height=200, width=200), fps=30)
    assert not list(out.iterdir())


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ffmpeg(tmp_path, monkeypatch, "sys.exit('av_interleaved_write_frame(): No space left on device')")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(SegdreamError, match="disk is full") as caught:
        write_video(out / "a.mp4", moving(40, height=200, width=200), fps=30)
    assert caught.value.exit_code == 1
    assert not list(out.iterdir())
