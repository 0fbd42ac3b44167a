"""Time and memory of a Point-E cloud: both stages at full size with random weights, 64 + 64 Karras steps, 4,096 points.

    python -m benchmarks.pointe --record          # and the official sampler beside it, where `point_e` is importable
    python -m benchmarks.pointe --only graphs --steps 16
    python -m benchmarks.pointe --smoke           # small networks on the CPU, where no implementation is faster

Every part has the same weights, text vector and noise. Differences are relative to `fp32`: our code in single
precision, kernel by kernel. A trajectory of random weights is rough, so even single precision differs from run to run
by more than with trained weights. `little` is the embedded prior's own Point-E.
"""

import argparse
import gc
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import segdream_cli
from benchmarks.pointe_official import importable, official_sampler
from benchmarks.record import record
from benchmarks.step.stages import wall_seconds
from segdream_cli.accel.cuda_graphs import FallbackChain
from segdream_cli.pointe.checkpoint import open_point_e
from segdream_cli.pointe.model import PointCloud, PointE
from segdream_cli.pointe.transformer import BASE, CHANNELS, UPSAMPLE, PointTransformer, PointTransformerConfig
from segdream_cli.util.failures import GIB
from segdream_cli.util.memory import peak_memory_gib

Row = dict[str, float]


@dataclass(frozen=True)
class Way:
    """How our networks compute: the precision of the blocks' products, graphs and compiler."""

    dtype: torch.dtype
    graphs: bool = False
    compiling: bool = False


FULL = {
    "fp32": Way(torch.float32),
    "eager": Way(torch.float16),
    "graphs": Way(torch.float16, graphs=True),
    "graphs, bf16": Way(torch.bfloat16, graphs=True),
    "compiled": Way(torch.float16, graphs=True, compiling=True),
}
LITTLE = {f"little, {name}": FULL[name] for name in ("eager", "graphs")}
OFFICIAL = {"official": "highest", "official, TF32": "high"}
"""With the precision of its matrix products: the default, and what a user may ask torch for."""
PARTS = ("fp32", "graphs", "official", "eager", *LITTLE, "graphs, bf16", "official, TF32", "compiled")
SLOW = ("fp32", *OFFICIAL)
"""Parts for which two repeats are enough."""
REPEATS = 5


class Work:
    """The inputs of every part: configurations, weights on the CPU, a text vector, and the noise of a seed."""

    def __init__(self, device: torch.device, steps: int, *, small: bool) -> None:
        self.device = device
        size: dict[str, Any] = {"width": 32, "layers": 2, "heads": 2} if small else {}
        low = {"points": 16} if small else {}
        high = {"points": 32, "low_points": 16} if small else {}
        self.configs = tuple(
            replace(config, **size, **more, sampling=replace(config.sampling, steps=steps))
            for config, more in ((BASE, low), (UPSAMPLE, high))
        )
        torch.manual_seed(0)
        self.states = [random_state(config) for config in self.configs]
        self.text = torch.nn.functional.normalize(torch.randn(BASE.text_width), dim=0)

    def noise(self) -> list[Tensor]:
        """The numbers that `PointE.sample` draws."""
        generator = torch.Generator().manual_seed(1)
        return [
            torch.randn(config.sampling.draws, config.points, CHANNELS, generator=generator).to(self.device)
            for config in self.configs
        ]

    def ours(self, way: Way) -> PointE:
        """Both stages in one implementation."""
        stages = (
            PointTransformer.from_state(config, state).compute_in(way.dtype).to(self.device)
            for config, state in zip(self.configs, self.states, strict=True)
        )
        return fast(PointE(*stages), way, self.device)


def flop(configs: Sequence[PointTransformerConfig]) -> float:
    """Floating-point operations of a cloud: the blocks' products, two per multiplication with an addition."""
    total = 0.0
    for config in configs:
        given = 1 if config.condition == "text" else config.grid_tokens + config.low_points
        tokens, rows = given + 1 + config.points, 1 if config.sampling.guidance_scale == 1 else 2
        block = 24 * tokens * config.width**2 + 4 * tokens**2 * config.width
        total += rows * config.layers * block * config.sampling.evaluations
    return total


def random_state(config: PointTransformerConfig) -> dict[str, Tensor]:
    """Weights drawn as for training, but without its zeros; the last layer is small, as rounding grows with it."""
    network = PointTransformer(config)
    for key, parameter in network.named_parameters():
        if key.endswith("bias") or ".ln_" in key or key.startswith("ln_"):
            torch.nn.init.normal_(parameter, mean=float("ln" in key and key.endswith("weight")), std=0.1)
    torch.nn.init.normal_(network.output_proj.weight, std=0.01)
    return dict(network.requires_grad_(False).state_dict())


def fast(point_e: PointE, way: Way, device: torch.device) -> PointE:
    """The same networks, in a faster implementation on CUDA."""
    if device.type == "cuda" and (way.graphs or way.compiling):
        point_e.speed_up(partial(print, flush=True), graphs=way.graphs, compiling=way.compiling)
    return point_e


def little(work: Work, way: Way) -> PointE:
    """The embedded prior's own Point-E, with its own number of steps, or that of the others if it is smaller."""
    folder = Path(segdream_cli.__file__).parent / "data" / "mini" / "point_e"
    dtype = way.dtype if work.device.type == "cuda" else torch.float32
    point_e = PointE.load(open_point_e(folder / "model.safetensors", origin="here"), work.device, dtype)
    for network in point_e.stages:
        own = network.config.sampling
        steps = min(own.steps, work.configs[0].sampling.steps)
        network.config = replace(network.config, sampling=replace(own, steps=steps))
    return fast(point_e, way, work.device)


def measure(name: str, work: Work, clouds: dict[str, PointCloud], repeats: int) -> Row:
    """Seconds per cloud and memory of one part; keeps its cloud in `clouds`."""
    make: Callable[[], PointCloud]
    if name in OFFICIAL:
        sampler, noise, text = official_sampler(work.configs, work.states, work.device), work.noise(), work.text
        on_device = text.to(work.device)
        make = lambda: sampler(on_device, noise)  # noqa: E731 - one of two
        chains: tuple[FallbackChain, ...] = ()
    else:
        point_e = little(work, LITTLE[name]) if name in LITTLE else work.ours(FULL[name])
        text = torch.nn.functional.normalize(torch.ones(point_e.text_width), dim=0) if name in LITTLE else work.text
        make = lambda: point_e.sample(text, torch.Generator().manual_seed(1))  # noqa: E731
        chains = point_e.chains

    if name in SLOW:
        repeats = min(2, repeats)

    def first() -> None:
        clouds[name] = make()

    row: Row = {"first_s": wall_seconds(work.device, first)}
    row["s"] = statistics.median([wall_seconds(work.device, make) for _ in range(repeats)])
    row["peak_gib"] = peak_memory_gib(work.device)
    if name not in LITTLE:
        row["tflop_s"] = flop(work.configs) / row["s"] / 1e12
    if work.device.type == "cuda":
        row["reserved_gib"] = torch.cuda.max_memory_reserved(work.device) / GIB
        row |= kernels(make)
    row["given_up"] = sum(len(chain.failed) for chain in chains)
    return row


def kernels(make: Callable[[], object]) -> Row:
    """Number of kernels per cloud, and the seconds in which the device computes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        make()
        torch.cuda.synchronize()
    events = profile.key_averages()
    return {
        "kernels": sum(event.count for event in events),
        "busy_s": sum(event.self_device_time_total for event in events) / 1e6,
    }


def compare(row: Row, cloud: PointCloud, expected: PointCloud) -> None:
    """Adds the differences of points and colours from others: the largest, and the mean of the points."""
    away = (cloud.points - expected.points).abs()
    row |= {"points_most": away.max().item(), "points_mean": away.mean().item()}
    row["colors_most"] = (cloud.colors - expected.colors).abs().max().item()


def run(options: argparse.Namespace, device: torch.device) -> tuple[Work, dict[str, Row]]:
    """Measures every part for which there is time; prints the error of one that fails, and leaves it out."""
    work = Work(device, options.steps, small=options.smoke)
    clouds: dict[str, PointCloud] = {}
    found: dict[str, Row] = {}
    end = time.monotonic() + options.time_limit
    beside = importable()
    for name in options.only or PARTS:
        if (name in OFFICIAL and not beside) or time.monotonic() > end:
            print(f"{name} is skipped", flush=True)
            continue
        torch.set_float32_matmul_precision(OFFICIAL.get(name, "highest"))
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            row = measure(name, work, clouds, options.repeats)
        except Exception as problem:  # any failure must not lose the figures of the other parts
            lines = traceback.format_list(traceback.extract_tb(problem.__traceback__)[-6:])
            print("".join(lines) + f"{name}: {type(problem).__name__}: {str(problem)[:1500]}", flush=True)
            continue
        if name not in LITTLE and "fp32" in clouds:
            compare(row, clouds[name], clouds["fp32"])
        found[name] = row
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
        if options.record and device.type == "cuda" and options.steps == BASE.sampling.steps:
            record_all(found, "cuda")  # now, since a later part may run out of time
    return work, found


def show(work: Work, found: dict[str, Row]) -> None:
    """Prints the table."""
    keys = list(dict.fromkeys(key for row in found.values() for key in row))
    print(
        f"\n{flop(work.configs) / 1e12:.4g} TFLOP per cloud\n\n| | "
        + " | ".join(keys)
        + " |\n| --- |"
        + " --- |" * len(keys)
    )
    for name, row in found.items():
        print(f"| {name} | " + " | ".join(f"{row[key]:.4g}" if key in row else "" for key in keys) + " |")
    if "official" in found and "graphs" in found:
        print(f"\nthe official sampler takes {found['official']['s'] / found['graphs']['s']:.2f} times as long")


def record_all(found: dict[str, Row], device: str) -> None:
    """Records the default implementation on CUDA, fp16 in graphs, unless it fell back to a slower one."""
    found = {name: row for name, row in found.items() if not row["given_up"]}
    graphs, official, mini = (found.get(name) for name in ("graphs", "official", "little, graphs"))
    if graphs:
        record("point_e_gpu_seconds", graphs["s"], "s", device)
        record("point_e_peak_gib", graphs["peak_gib"], "GiB", device)
    if graphs and official:
        record("point_e_official_ratio", official["s"] / graphs["s"], "1", device)
    if mini:
        record("mini_point_e_gpu_seconds", mini["s"], "s", device)


def main() -> None:
    """Runs the parts, prints the table, and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=64, help="noise levels of each stage; 64 is the release's")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--only", action="append", choices=PARTS, help="repeatable")
    parser.add_argument("--time-limit", type=float, default=500, help="seconds after which no part begins")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--record", action="store_true", help="keep the figures in results.json")
    options = parser.parse_args()
    cuda = torch.cuda.is_available() and not options.smoke
    if not cuda and not options.smoke:
        sys.exit("this needs a CUDA device; --smoke runs small networks on the CPU")
    if options.smoke:
        torch.set_num_threads(1)  # so small networks only wait for more
    work, found = run(options, torch.device("cuda" if cuda else "cpu"))
    show(work, found)


if __name__ == "__main__":
    main()
