"""Thins assets side by side with PlayCanvas's splat-transform, by the same views, and writes levels of detail.

python -m benchmarks.thinning [ASSET.ply ...] [--count 100000] [--levels 1000000] [--record]

Without assets, it thins a synthetic scan: discs of heavy-tailed sizes on four textured surfaces, three fifths of them
opaque, with spherical harmonics of degree 3. Both tools read and write the same files; processor time counts, of this
process and of Node's. splat-transform comes from where `benchmarks.formats` finds it, and runs without a GPU.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from benchmarks.formats import NODE_MODULES
from benchmarks.record import record
from segdream_cli import formats
from segdream_cli.render.cameras import Cameras, frame_sphere
from segdream_cli.render.view import render
from segdream_cli.simplify.merging import merge
from segdream_cli.simplify.polish import polish
from segdream_cli.splats import SH_C0, Splats
from segdream_cli.splats.gaussians import Gaussians, bounds

SHARES = (50, 25, 10)
"""Percentages of the Gaussians that are kept."""
POLISHED = 25
AZIMUTHS = torch.tensor([0.0, 60.0, 130.0, 200.0, 250.0, 310.0, 20.0, 180.0])
ELEVATIONS = torch.tensor([15.0, -10.0, -40.0, 10.0, 30.0, 50.0, 0.0, 70.0])
SIZE = 512


def scan(count: int) -> Splats:
    """Discs on the ground, a ball, a box and a ring, with noise and a checker as texture."""
    rng = np.random.default_rng(0)
    points, normals = surfaces(count, rng)
    spacing = np.sqrt(6.5 / count)
    first = spacing * np.exp(rng.normal(-0.1, 0.6, count))
    second = first * np.exp(-np.abs(rng.normal(0, 0.7, count)))
    third = first * np.exp(rng.normal(-2.2, 0.5, count)).clip(0, 0.8)
    tilted = unit(normals + rng.normal(0, 0.15, (count, 3)))
    along = rng.normal(size=(count, 3))
    along = unit(along - tilted * (along * tilted).sum(1, keepdims=True))
    axes = np.stack([along, np.cross(tilted, along), tilted], axis=2)
    opaque = rng.uniform(size=count) < 0.6
    alphas = np.where(opaque, rng.beta(6, 1, count), rng.beta(1.2, 3, count)).clip(0.006, 0.995)
    texture = np.stack([octaves(points, rng) for _ in range(3)], axis=1)
    colors = 0.5 + 0.12 * texture + 0.22 * octaves(points, rng)[:, None] + rng.normal(0, 0.04, (count, 3))
    checker = np.floor(points * 12).sum(axis=1, keepdims=True) % 2
    colors = np.where(points[:, :1] > 0.1, colors * (0.4 + 0.6 * checker), colors).clip(0.02, 0.98)
    degrees = np.repeat([1, 2, 3], [3, 5, 7])[None, :, None]
    values = {
        "means": points + normals * rng.normal(0, 0.3, (count, 1)) * spacing,
        "quats": Rotation.from_matrix(axes).as_quat()[:, [3, 0, 1, 2]],
        "log_scales": np.log(np.stack([first, second, third], axis=1)),
        "opacity_logits": np.log(alphas / (1 - alphas)),
        "sh0": (colors - 0.5) / SH_C0,
        "shN": rng.normal(0, 0.06, (count, 15, 3)) / degrees,
    }
    return Splats(**{name: np.ascontiguousarray(value, np.float32) for name, value in values.items()})


def surfaces(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points on the four surfaces and their normals, [n, 3] each; two fifths are on the ground."""
    counts = np.diff(np.round(np.cumsum([0, 0.4, 0.2, 0.2, 0.2]) * count).astype(int))
    radius, angle = np.sqrt(rng.uniform(0, 1, counts[0])), rng.uniform(0, 2 * np.pi, counts[0])
    x, z = radius * np.cos(angle), radius * np.sin(angle)
    ground = np.stack([x, 0.03 * np.sin(7 * x) * np.cos(5 * z) - 0.35, z], axis=1)
    slope = np.stack([-0.21 * np.cos(7 * x) * np.cos(5 * z), np.ones(counts[0]), 0.15 * np.sin(7 * x) * np.sin(5 * z)])
    ball = unit(rng.normal(size=(counts[1], 3)))
    sides, signs = rng.integers(0, 3, counts[2]), rng.choice([-1.0, 1.0], counts[2])
    face = np.zeros((counts[2], 3))
    face[np.arange(counts[2]), sides] = signs
    box = np.where(face == 0, rng.uniform(-1, 1, (counts[2], 3)), face) * [0.2, 0.25, 0.2]
    u, v = rng.uniform(0, 2 * np.pi, (2, counts[3]))
    ring = np.stack([np.cos(v) * np.cos(u), np.sin(v), np.cos(v) * np.sin(u)], axis=1)
    circle = 0.2 * np.stack([np.cos(u), np.zeros(counts[3]), np.sin(u)], axis=1)
    centers = np.array([[0, 0, 0], [-0.35, 0, 0.1], [0.35, -0.1, -0.1], [0.05, -0.2, 0.5]])
    points = np.concatenate([ground, 0.3 * ball, box, circle + 0.08 * ring]) + np.repeat(centers, counts, axis=0)
    return points, np.concatenate([unit(slope.T), ball, face, ring])


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, 3] of length one."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def octaves(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise [n] of six octaves, each of three waves."""
    total = np.zeros(len(points))
    for octave in range(6):
        for direction in unit(rng.normal(size=(3, 3))):
            total += 0.6**octave * np.sin(2.0 ** (octave + 1) * np.pi * points @ direction + rng.uniform(0, 2 * np.pi))
    return total


@torch.no_grad()
def images(splats: Splats, cameras: Cameras) -> torch.Tensor:
    """Views [8, h, w, 3] on white."""
    gaussians = Gaussians.from_splats(splats)
    white = torch.ones(3)
    return torch.cat([render(gaussians, cameras.view(i)).over(white).clamp(0, 1) for i in range(len(cameras))])


def processor_s(who: int) -> float:
    """Processor time of this process or of its ended children."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def thin(source: Path, name: str, folder: Path) -> dict[str, float]:
    """Prints a row per share, and returns the figures by metric."""
    whole = formats.read(source)
    center, extent = bounds(Gaussians.from_splats(whole))
    cameras = frame_sphere(AZIMUTHS, ELEVATIONS, SIZE, center=center, extent=extent)
    wanted = images(whole, cameras)
    merge(whole.slice_rows(slice(100)), 50)  # loads the kernels
    program = NODE_MODULES / "@playcanvas" / "splat-transform" / "bin" / "cli.mjs"
    figures: dict[str, float] = {}

    def judge(splats: Splats) -> float:
        errors = (images(splats, cameras) - wanted).square().mean((1, 2, 3))
        return float(-10 * errors.log10().mean())

    for share in SHARES:
        count, stem = len(whole) * share // 100, f"thin_{name}_{share}"
        start = processor_s(resource.RUSAGE_SELF)
        splats = merge(formats.read(source), count)
        formats.write(folder / "ours.ply", splats, "ply-compact")
        figures[f"{stem}_s"] = processor_s(resource.RUSAGE_SELF) - start
        figures[f"{stem}_db"] = judge(splats)
        if program.exists():
            start = processor_s(resource.RUSAGE_CHILDREN)
            command = [NODE_MODULES / ".bin" / "node", program, "-g", "cpu", "-q", "-w", source]
            command += ["--decimate", str(count), folder / "theirs.ply"]
            subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
            figures[f"{stem}_theirs_s"] = processor_s(resource.RUSAGE_CHILDREN) - start
            figures[f"{stem}_theirs_db"] = judge(formats.read(folder / "theirs.ply"))
        if share == POLISHED:
            start = processor_s(resource.RUSAGE_SELF)
            polished = polish(whole, splats)
            figures[f"{stem}_polish_s"] = processor_s(resource.RUSAGE_SELF) - start
            figures[f"{stem}_polish_db"] = judge(polished)
        row = {key.removeprefix(stem): value for key, value in figures.items() if key.startswith(f"{stem}_")}
        print(f"{name}, {share} %: " + ", ".join(f"{key[1:]} {value:.1f}" for key, value in row.items()), flush=True)
    return figures


def levels(count: int, folder: Path) -> dict[str, float]:
    """Wall time, processor time and peak memory of `segdream lod` in a process of its own."""
    formats.write(folder / "scan.ply", scan(count), "ply-compact")
    command = [sys.executable, "-m", "segdream_cli", "lod", "scan.ply", "-o", "scan", "--quiet"]
    begin, start = time.perf_counter(), processor_s(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
    assert status == 0
    stem = f"lod_{count}"
    figures = {
        f"{stem}_s": time.perf_counter() - begin,
        f"{stem}_processor_s": processor_s(resource.RUSAGE_CHILDREN) - start,
        f"{stem}_peak_gib": usage.ru_maxrss / 2**20,
    }
    print(", ".join(f"{key} {value:.1f}" for key, value in figures.items()), flush=True)
    return figures


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", type=Path, nargs="*", help="PLY files to thin")
    parser.add_argument("--count", type=int, default=100_000, help="Gaussians of the synthetic scan; 0: none")
    parser.add_argument("--levels", type=int, default=1_000_000, help="Gaussians for levels of detail; 0: none")
    parser.add_argument("--record", action="store_true", help="into results.json")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for asset in options.assets:
            figures |= thin(asset.resolve(), asset.stem, folder)
        if options.count:
            formats.write(folder / "source.ply", scan(options.count), "ply-compact")
            figures |= thin(folder / "source.ply", f"scan_{options.count}", folder)
        if options.levels:
            figures |= levels(options.levels, folder)
    for metric, value in figures.items() if options.record else ():
        unit = "dB" if metric.endswith("_db") else "GiB" if metric.endswith("_gib") else "s"
        record(metric, value, unit, "cpu")


if __name__ == "__main__":
    main()
