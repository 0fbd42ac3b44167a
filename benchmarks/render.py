"""Times `segdream render`: the seconds of a turntable, the share of encoding, and the peak memory by length.

python -m benchmarks.render [--device cuda] [--count 50000] [--size 512] [--frames 120]

Processor seconds, here and in ffmpeg together, are valid on a busy machine too; the wall clock is not.
"""

import argparse
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.raster import closed_surface
from segdream_cli import formats, read
from segdream_cli.render.images import to_uint8
from segdream_cli.render.job import RenderJob
from segdream_cli.splats import GROUPS, SH_C0
from segdream_cli.splats.gaussians import Gaussians

SUFFIXES = (".mp4", ".webm", ".gif", ".webp")
LENGTHS = (48, 240)
CHILDREN = "children_user", "children_system"
WHITE = (1.0, 1.0, 1.0)


def write_asset(path: Path, count: int) -> None:
    """Writes the closed surface of the rasteriser's benchmark."""
    means, quats, scales, opacities, colors = (tensor.detach() for tensor in closed_surface(count, "cpu"))
    stored = means, quats, scales.log(), torch.logit(opacities, 1e-6), (colors - 0.5) / SH_C0
    tensors = dict(zip(GROUPS, (*stored, torch.zeros(count, 0, 3)), strict=True))
    formats.write(path, Gaussians(tensors).splats({}))


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall time and processor time of one run, with its child processes."""
    start, before = time.perf_counter(), os.times()
    work()
    after = os.times()
    spent = sum(getattr(after, name) - getattr(before, name) for name in ("user", "system", *CHILDREN))
    return time.perf_counter() - start, spent


def peaks(asset: Path, suffix: str, options: argparse.Namespace, frames: int) -> tuple[float, float]:
    """Largest resident sets in MiB of a process that makes a video and of its ffmpeg."""
    arguments = [
        f"--count={options.count}",
        f"--size={options.size}",
        f"--frames={frames}",
        f"--device={options.device}",
    ]
    command = [sys.executable, "-m", "benchmarks.render", *arguments, "--only", suffix, "--asset", str(asset)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(said[0]), float(said[1])


def report_peaks(asset: Path, suffix: str, options: argparse.Namespace) -> None:
    """Makes one video and prints the peaks of this process and of its ffmpeg."""
    job = RenderJob.of([read(asset)], options.device, options.size, "rgb", WHITE)
    done, highest = threading.Event(), [0]

    def watch() -> None:
        # a child's ru_maxrss starts at the resident size of this process at that time
        tasks = Path("/proc/self/task")
        while not done.wait(0.02):
            for pid in {pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()}:
                with suppress(OSError, IndexError):
                    status = Path(f"/proc/{pid}/status").read_text()
                    if "Name:\tpython" not in status:
                        highest[0] = max(highest[0], int(status.split("VmHWM:")[1].split()[0]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with TemporaryDirectory() as folder:
        job.write_video(Path(folder) / f"turn{suffix}", job.turntable(options.frames, 15.0), 30)
    done.set()
    watcher.join()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, highest[0] / 1024)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--only", choices=SUFFIXES, help=argparse.SUPPRESS)
    parser.add_argument("--asset", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        report_peaks(options.asset, options.only, options)
        return
    with TemporaryDirectory() as folder:
        asset = Path(folder) / "surface.ply"
        write_asset(asset, options.count)
        job = RenderJob.of([read(asset)], options.device, options.size, "rgb", WHITE)
        clear = RenderJob.of([read(asset)], options.device, options.size, "rgb", None)
        track, warm = job.turntable(options.frames, 15.0), job.turntable(2, 15.0)
        job.write_video(Path(folder) / "warm.mp4", warm, 30)
        print(
            f"{options.device}, torch {torch.__version__}, {torch.get_num_threads()} threads; {options.count:,} "
            f"Gaussians, {options.frames} frames of {options.size} px"
        )
        rows = {"images alone": lambda: [to_uint8(image) for image in job.images(track, precise=False)]}
        for suffix in SUFFIXES:
            rows[suffix] = lambda suffix=suffix: job.write_video(Path(folder) / f"turn{suffix}", track, 30)
        rows[".webm, transparent"] = lambda: clear.write_video(Path(folder) / "clear.webm", track, 30)
        print(" " * 18, "wall s".rjust(8), "CPU s".rjust(8))
        for name, work in rows.items():
            wall, spent = seconds(work)
            print(name.ljust(18), f"{wall:.1f}".rjust(8), f"{spent:.1f}".rjust(8), flush=True)
        print(f"peak MiB of {LENGTHS[0]} and {LENGTHS[1]} frames")
        for suffix in SUFFIXES:
            short, long = (peaks(asset, suffix, options, frames) for frames in LENGTHS)
            memory = f"here {short[0]:.0f}, {long[0]:.0f}; ffmpeg {short[1]:.0f}, {long[1]:.0f}"
            print(suffix.ljust(18), memory, flush=True)


if __name__ == "__main__":
    main()
