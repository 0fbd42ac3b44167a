"""Times every asset format, written and read, side by side with PlayCanvas's splat-transform; the viewer; a mesh.

python -m benchmarks.formats [--count 1000000] [--small 20000] [--runs 3] [--only sog html] [--sh 0 3] [--record]

splat-transform runs in one Node process, whose start is not counted, on the same files, in turns with ours; ours
syncs each file to the disk, theirs does not. The best of the runs counts, of the wall time and, apart from it, of the
processor time, which other work on the machine disturbs less. It comes from .node/node_modules, where
.ci/run puts it, or from the folder that SEGDREAM_NODE_MODULES names; without it, ours are timed alone.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.record import record
from segdream_cli import formats
from segdream_cli.formats import FORMATS, page
from segdream_cli.splats import BANDS, Splats
from segdream_cli.util.files import atomic_write

HERE = Path(__file__).resolve().parent
NODE_MODULES = Path(os.environ.get("SEGDREAM_NODE_MODULES", HERE.parent / ".node" / "node_modules")).resolve()
SLOW = ("sog", "html")
"""Formats for which splat-transform needs minutes with spherical harmonics of many Gaussians."""
THEIR_READERS = ("ply", "ply-compact", "compressed-ply", "splat", "spz", "spz4", "sog")
THEIR_WRITERS = {"ply-compact": ".ply"} | {
    name: FORMATS[name].suffix for name in ("compressed-ply", "splat", "spz4", "glb", *SLOW)
}
"""Formats that splat-transform writes too: its .spz is version 4, its .ply has no padding."""
LEAST_READS = 3
"""Formats whose file is written only once, because that takes minutes."""
VIEWED, MANY, SORTS = 200_000, 1_000_000, 12

Times = tuple[float, float]
"""Wall time and processor time in seconds."""
Theirs = Callable[..., Times | None]


def surface(count: int, k: int) -> Splats:
    """Gaussians near the surface of a ball, with values spread as in a trained asset."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    quats = rng.normal(size=(count, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    values = {
        "means": 0.8 * directions + rng.normal(0, 0.02, (count, 3)),
        "quats": quats,
        "log_scales": rng.normal(-5, 0.5, (count, 3)),
        "opacity_logits": rng.normal(1, 2, count),
        "sh0": directions + rng.normal(0, 0.3, (count, 3)),
        "shN": rng.normal(0, 0.1, (count, k, 3)),
    }
    return Splats(**{name: value.astype(np.float32) for name, value in values.items()})


@contextmanager
def splat_transform() -> Iterator[Theirs | None]:
    """A function that times one job of splat-transform, or None if it is not installed."""
    node = NODE_MODULES / ".bin" / "node"
    if not (NODE_MODULES / "@playcanvas" / "splat-transform").exists():
        print(f"{NODE_MODULES} has no splat-transform: ours alone", file=sys.stderr)
        yield None
        return
    command = [str(node), "--max-old-space-size=12000", str(HERE / "splat_transform.mjs"), str(NODE_MODULES)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def timed(**job: str) -> Times | None:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            while not (line := process.stdout.readline()).startswith("{"):  # the library prints too
                if not line:
                    raise SystemExit("splat-transform ended")
            answer = json.loads(line)
            if "problem" in answer:
                print(f"{job}: {answer['problem']}", file=sys.stderr)
                return None
            return answer["seconds"], answer["processor"]

        yield timed
        process.stdin.close()


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def both(work: Callable[[], object]) -> Times:
    """Wall time and processor time of one run."""
    before = time.process_time()
    return seconds(work), time.process_time() - before


def best(runs: int, ours: Callable[[], object], theirs: Callable[[], Times | None]) -> tuple[Times, Times | None]:
    """The shortest times of both, measured in turns."""
    pairs = [(both(ours), theirs()) for _ in range(runs)]
    others = [other for _, other in pairs if other is not None]
    return least([own for own, _ in pairs]), least(others) if others else None


def least(times: list[Times]) -> Times:
    """The least of each kind."""
    wall, processor = zip(*times, strict=True)
    return min(wall), min(processor)


def raw_seconds(path: Path, splats: Splats) -> float:
    """The time that numpy alone takes for the rows of a compact PLY, written and synced as ours are."""
    table = np.ones((len(splats), 17 + 3 * splats.shN.shape[1]), np.float32)
    start = time.perf_counter()
    with atomic_write(path) as temporary:
        table.tofile(temporary)
    return time.perf_counter() - start


def measure(count: int, k: int, names: list[str], runs: int, folder: Path, theirs: Theirs | None) -> dict[str, float]:
    """Prints a row per format, and returns the figures by metric."""
    splats = surface(count, k)
    degree = BANDS.index(k)
    source = folder / f"source-{count}-{degree}.ply"
    formats.write(source, splats, "ply-compact")
    figures: dict[str, float] = {}
    raw = min(raw_seconds(folder / "raw.ply", splats) for _ in range(runs))
    print(f"\n{count:,} Gaussians, SH {degree}; numpy writes the bytes of a compact PLY in {raw:.3f} s")
    print("format           MB   write   theirs   ratio  by CPU    read   theirs   ratio  by CPU")
    for name in names:
        path, other = folder / f"ours{FORMATS[name].suffix}", folder / f"theirs{FORMATS[name].suffix}"

        def write_theirs(name: str = name, other: Path = other) -> Times | None:
            return theirs(op="write", source=str(source), path=str(other)) if theirs and name in THEIR_WRITERS else None

        def read_theirs(name: str = name, path: Path = path) -> Times | None:
            return theirs(op="read", path=str(path)) if theirs and name in THEIR_READERS else None

        cells = [f"{name:14}"]
        written = best(runs, lambda path=path, name=name: formats.write(path, splats, name), write_theirs)
        cells.append(f"{path.stat().st_size / 1e6:6.1f}")
        steps = {"write": written}
        if FORMATS[name].readable:
            steps["read"] = best(max(runs, LEAST_READS), lambda path=path: formats.read(path), read_theirs)
        for what, (own, them) in steps.items():
            stem = f"{name}_{what}_sh{degree}_{count}"
            figures[f"{stem}_s"], figures[f"{stem}_processor_s"] = own
            cells.append(f"{own[0]:7.3f}")
            if them is None:
                cells.append(24 * " ")
                continue
            wall, processor = (other / mine for other, mine in zip(them, own, strict=True))
            figures[f"{stem}_times_faster"], figures[f"{stem}_processor_times_faster"] = wall, processor
            cells += [f"{them[0]:8.3f}", f"{wall:7.2f}", f"{processor:7.2f}"]
        print(" ".join(cells), flush=True)
    if "ply-compact" in names:
        figures[f"ply_compact_sh{degree}_over_numpy"] = figures[f"ply-compact_write_sh{degree}_{count}_s"] / raw
    return figures


def measure_viewer(folder: Path, count: int) -> dict[str, float]:
    """Seconds until the page shows an asset, milliseconds of a sort in its worker and until a new view is shown.

    The browser is headless, and computes graphics in software.
    """
    sys.path.insert(0, str(HERE.parent / "tests" / "formats"))
    from browser import MISSING, chromium

    if MISSING:
        print(MISSING, file=sys.stderr)
        return {}
    page.write(folder / "a.html", surface(count, 0))
    with chromium() as tab:
        tab.open(f"{(folder / 'a.html').as_uri()}#rotate=0")
        ready, decode = tab.run(
            "await segdream.ready; return [segdream.viewer.stats.readyMs, segdream.viewer.stats.decodeMs]"
        )
        views = [
            tab.run(
                "const { viewer } = segdream, begin = performance.now(); viewer.camera.set({ azimuth: arguments[0] });"
                "viewer.changed(); await viewer.settled(); viewer.renderer.gl.finish();"
                "return [viewer.stats.sortMs, performance.now() - begin]",
                30 * i,
            )
            for i in range(SORTS)
        ]
    sorts, shown = zip(*views, strict=True)
    middle, view = float(np.median(sorts)), float(np.median(shown))
    print(
        f"\nviewer, {count:,} Gaussians, Chromium with software graphics: shown after {ready / 1000:.2f} s "
        f"(unpacking {decode:.0f} ms), a sort takes {middle:.1f} ms, {min(sorts):.1f} to {max(sorts):.1f}, "
        f"a view {view:.0f} ms, {min(shown):.0f} to {max(shown):.0f}"
    )
    name = "viewer" if count == VIEWED else f"viewer_{count}"
    return {f"{name}_ready_s": ready / 1000, f"{name}_sort_ms": middle, f"{name}_view_ms": view}


def measure_mesh(folder: Path, count: int) -> dict[str, float]:
    """Seconds for a textured mesh of Gaussians that cover a ball, like a trained asset's, and of others that do not."""
    from segdream_cli import mesh

    crumbs, figures = surface(count, 0), {}
    size = np.full((count, 3), np.log(np.sqrt(4 * np.pi / count)), np.float32)
    for name, splats in (("mesh", replace(crumbs, log_scales=size)), ("mesh_of_crumbs", crumbs)):
        before = time.process_time()
        taken = seconds(lambda splats=splats: mesh.write(folder / "mesh.glb", mesh.extract(splats)))
        spent = time.process_time() - before
        print(f"\n{name} of {count:,} Gaussians: {taken:.1f} s, {spent:.1f} s of the processor", flush=True)
        figures |= {f"{name}_{count}_s": taken, f"{name}_{count}_processor_s": spent}
    return figures


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=20_000, help="for SOG and HTML with spherical harmonics")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=FORMATS, nargs="*", help="formats")
    parser.add_argument(
        "--sh", type=int, choices=(0, 3), nargs="*", default=[0, 3], help="degrees; none: viewer and mesh"
    )
    parser.add_argument("--record", action="store_true", help="into results.json")
    options = parser.parse_args()
    names = [name for name in FORMATS if not options.only or name in options.only]
    fast, slow = [name for name in names if name not in SLOW], [name for name in names if name in SLOW]
    with TemporaryDirectory() as temporary, splat_transform() as theirs:
        folder = Path(temporary)
        jobs: list[Callable[[], dict[str, float]]] = []
        if 0 in options.sh:
            jobs.append(lambda: measure(options.count, 0, names, options.runs, folder, theirs))
        if fast and 3 in options.sh:
            jobs.append(lambda: measure(options.count, 15, fast, options.runs, folder, theirs))
        if not options.only:
            jobs += [lambda: measure_viewer(folder, VIEWED), lambda: measure_viewer(folder, MANY)]
            jobs += [lambda: measure_mesh(folder, options.small)]
        if slow and 3 in options.sh:
            jobs.append(lambda: measure(options.small, 15, slow, 1, folder, theirs))
        for job in jobs:
            for metric, value in job().items():
                unit = "1" if metric.endswith(("faster", "numpy")) else "ms" if metric.endswith("_ms") else "s"
                if options.record:
                    record(f"formats_{metric}", value, unit, "cpu")


if __name__ == "__main__":
    main()
