"""Several assets at once: seconds per asset and milliseconds per step, from 1 asset to 24.

    python -m benchmarks.batch --device cuda --record
    python -m benchmarks.batch --device cuda --profile 24   # the host's time per part of a step
    python -m benchmarks.batch --smoke                      # a few steps of a few assets, on any machine

Seconds cover the preparation of the assets and their loop: the prior is loaded and the libraries are warm, but CUDA
graphs are captured within the loop.
"""

import argparse
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.record import record
from segdream_cli import load
from segdream_cli.config import AUTO, MINI, SD21
from segdream_cli.config.values import parse_assignments
from segdream_cli.distill import sctd as sctd_module
from segdream_cli.optimize import batch as batch_module
from segdream_cli.optimize import pipeline as pipeline_module
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.optimize.state import AssetState
from segdream_cli.util.memory import peak_memory_gib

PROMPTS = Path(__file__).resolve().parent.parent / "prompts" / "mini.txt"
METRICS = {1: "mini_gpu_seconds", 24: "mini_gpu_batch24_seconds_each"}
"""Assets at once -> their metric in results.json."""
WARM_UP = 20
PARTS = {
    pipeline_module: ("sample_cameras", "sample_backgrounds", "render", "conditions"),
    batch_module: ("stack", "clip_gradients", "adam_step", "accumulate", "control_density"),
    sctd_module: ("draw_times", "sctd"),
    pipeline_module.losses: ("regularizers",),
    AssetState: ("rng_states",),
    torch.Tensor: ("backward", "tolist"),
}  # fmt: skip


def prepared(pipeline: Pipeline, count: int) -> list[AssetState]:
    """Assets of the list's prompts, before their first step.

    Each call has new seeds: clouds from the cache would hide the time of Point-E.
    """
    lines = [line for line in PROMPTS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    first = random.randrange(10**6)
    return [pipeline.prepare(lines[number % len(lines)], first + number) for number in range(count)]


def now(device: torch.device) -> float:
    """The time in seconds after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(pipeline: Pipeline, count: int) -> tuple[float, float]:
    """Seconds per asset for `count` assets from prompt to last step, and milliseconds of a later distillation step."""
    begin, steps = now(pipeline.device), pipeline.config.optim.steps
    run = pipeline.run(prepared(pipeline, count))
    warm_up = min(WARM_UP, steps // 2)
    for _ in range(warm_up):
        next(run)
    warm = now(pipeline.device)
    for _ in range(steps - warm_up):
        next(run)
    distilled = now(pipeline.device)
    for _ in run:  # the refinement
        pass
    return (now(pipeline.device) - begin) / count, 1e3 * (distilled - warm) / (steps - warm_up)


def show_profile(pipeline: Pipeline, count: int, steps: int) -> None:
    """Prints the host's time for the parts of a step, with waits for the device, and the number of launches."""
    run = pipeline.run(prepared(pipeline, count))
    for _ in range(WARM_UP // 2):
        next(run)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (pipeline.device.type == "cuda")
    with profile(activities=activities) as found:
        next(run)
        now(pipeline.device)
    spent: dict[str, float] = defaultdict(float)

    def timed(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            begin = time.perf_counter()
            result = inner(*arguments, **keywords)
            spent[name] += time.perf_counter() - begin
            return result

        setattr(owner, name, wrapper)

    for owner, names in {**PARTS, pipeline.prior: ("encode_image",)}.items():
        for name in names:
            timed(owner, name)
    begin = now(pipeline.device)
    for _ in range(steps):
        next(run)
    whole = now(pipeline.device) - begin
    print(f"\n{count} assets, {steps} steps\n\n| part | host ms per step |\n| --- | --- |")
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"| {name} | {1e3 * seconds / steps:.2f} |")
    print(f"| all others | {1e3 * (whole - sum(spent.values())) / steps:.2f} |")
    print(f"| whole step | {1e3 * whole / steps:.2f} |\n\n| calls of one step | |\n| --- | --- |")
    events = found.key_averages()
    for prefix in ("aten::", "cudaLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaStreamSynchronize"):
        print(f"| {prefix} | {sum(event.count for event in events if event.key.startswith(prefix))} |")
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    print(f"| kernels and copies | {sum(kernel.count for kernel in kernels)} |")
    print(f"| their time on the device, ms | {sum(kernel.self_device_time_total for kernel in kernels) / 1e3:.2f} |")


def opened(options: argparse.Namespace, *assignments: str) -> Pipeline:
    """A pipeline with its prior loaded."""
    settings = parse_assignments((*options.set, *assignments))
    prior, model = options.prior, options.model
    return load(quality=options.quality, prior=prior, model=model, settings=settings, device=options.device).pipeline


def main() -> None:
    """Prints the table, or the profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8, 16, 24])
    parser.add_argument("--prior", default=MINI, choices=[AUTO, MINI, SD21])
    parser.add_argument("--model")
    parser.add_argument("--quality", default="standard")
    parser.add_argument("--device", default=AUTO)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument(
        "--profile", type=int, metavar="ASSETS", help="profile a step with this number of assets instead"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="four steps of 1 and 3 small assets, without keeping figures"
    )
    parser.add_argument("--record", action="store_true", help="keep the figures in results.json")
    options = parser.parse_args()
    small = ("optim.steps=40", "init.copies=1", "densify.cap=600") if options.smoke else ()
    if options.profile:
        show_profile(opened(options, *small), options.profile, 5 if options.smoke else 50)
        return
    if options.smoke:
        options.counts, small = [1, 3], (*small, "optim.steps=4")
    measure(opened(options, *small, "optim.steps=4"), 1)  # compiles, and loads libraries
    pipeline = opened(options, *small)
    print("| assets | s per asset | ms per step | ms per step and asset | peak GiB |\n| --- | --- | --- | --- | --- |")
    for count in options.counts:
        each, step = measure(pipeline, count)
        peak = peak_memory_gib(pipeline.device)
        print(f"| {count} | {each:.3f} | {step:.2f} | {step / count:.2f} | {peak:.2f} |", flush=True)
        metric = METRICS.get(count)
        if options.record and metric and not options.smoke:
            record(metric, each, "s", options.device)


if __name__ == "__main__":
    main()
