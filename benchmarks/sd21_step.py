"""What a step of the full-size model takes: random weights in the layout of Stable Diffusion 2.1-base.

    python benchmarks/sd21_step.py --record               # everything, in at most ten minutes of one GPU
    python benchmarks/sd21_step.py --whole --record       # one asset of 5,000 steps; again, to go on where it stopped
    python benchmarks/sd21_step.py --only cfg --steps 200
    python benchmarks/sd21_step.py --smoke                # a small model on the CPU: does all of it run?

Each part runs in a process of its own, so that a peak of memory is its own, and the first compiles what the later ones
find in the cache. The tables come last, with what was skipped for want of time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from record import record
from sd21_pieces import measure_pieces
from sd21_random import EAGER, random_pipeline
from stages import stage_milliseconds, wall_seconds

from segdream_cli.cameras import viewing
from segdream_cli.diffusion import workload
from segdream_cli.estimate import product_rate
from segdream_cli.memory import peak_memory_gib
from segdream_cli.pipeline import Pipeline, StepReport
from segdream_cli.run_dir import RunDir, RunRecord, installed_versions

PARTS: dict[str, dict[str, Any]] = {
    "cfg": {},
    "perpneg": {"distill.perp_neg": True},
    "lowvram": {"prior.low_vram": True, "densify.cap": 100_000},
    "eager": EAGER,
    "pieces": {},
    "graphs": {"prior.compile": "off"},
}
DEFAULT = ["cfg", "perpneg", "lowvram", "eager", "pieces"]
LOW_VRAM_GIB = 4.5
LEAST_SECONDS = 40
WARM_UP, PROFILED = 5, 3
PROMPT = "a yellow school bus"


def measure_loop(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time, stages, waits and memory of steps of the optimisation loop."""
    cuda = device.type == "cuda"
    if name == "lowvram" and cuda:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(LOW_VRAM_GIB * 2**30 / total, device)
    pipeline = random_pipeline(PARTS[name], device, small=options.smoke)
    kernels = wall_seconds(device, lambda: rasterized(pipeline))
    steps, asset, first = started(pipeline, device)
    for _ in range(WARM_UP):
        next(steps)
    count = options.steps if name in ("cfg", "perpneg") else max(2, options.steps // 4)
    with counted_rows(pipeline) as rows:
        seconds = wall_seconds(device, lambda: [next(steps) for _ in range(count)]) / count
    work = workload(pipeline.prior, pipeline.config)
    unet, encoder = work.sample_flops()
    evaluations = sum(rows) / count
    flops = evaluations * unet + 2 * pipeline.config.camera.batch * encoder
    found = {
        "ms": 1e3 * seconds,
        "rasteriser_s": kernels,
        "first_step_s": first,
        "peak_gib": peak_memory_gib(device),
        "estimated_gib": work.memory_gib(len(asset.gaussians)),
        "gaussians": len(asset.gaussians),
        "unet_rows": evaluations,
        "tflop": flops / 1e12,
        "tflops": flops / seconds / 1e12,
        "stages": stage_milliseconds(pipeline, steps, max(2, count // 2)),
    }
    if cuda:
        found["estimated_ms"] = 1e3 * work.seconds(device) / pipeline.config.optim.steps
        found |= profiled(steps) | {"waits": waits(steps)}
    return found


def rasterized(pipeline: Pipeline) -> None:
    """Renders once, which builds the rasteriser's kernels or loads them."""
    asset = pipeline.prepare(PROMPT, 0)
    pipeline.render(asset.gaussians, viewing(torch.zeros(1), torch.zeros(1), 64))


def started(pipeline: Pipeline, device: torch.device) -> tuple[Iterator[StepReport], Any, float]:
    """The loop after its first step, its asset, and the seconds that step took, compiling and capturing included."""
    asset = pipeline.prepare(PROMPT, 0)
    steps = pipeline.run([asset])
    return steps, asset, wall_seconds(device, lambda: next(steps))


@contextmanager
def counted_rows(pipeline: Pipeline) -> Iterator[list[int]]:
    """Lists the numbers of rows of the calls of the U-Net in a block."""
    rows: list[int] = []
    inner = pipeline.prior.predict_noise

    def counting(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(len(latents))
        return inner(latents, *rest)

    with mock.patch.object(pipeline.prior, "predict_noise", counting):
        yield rows


def profiled(steps: Iterator[object]) -> dict[str, Any]:
    """Time a step in which the device computes, and the kernels that take most of it, in ms a step."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PROFILED):
            next(steps)
        torch.cuda.synchronize()
    kernels = {event.key: event.self_device_time_total / 1e3 / PROFILED for event in profile.key_averages()}
    largest = dict(sorted(kernels.items(), key=lambda item: -item[1])[:15])
    return {"busy_ms": sum(kernels.values()), "kernels": largest}


def waits(steps: Iterator[object]) -> dict[str, float]:
    """Where the host waits for the device, and how often a step."""
    places: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(PROFILED):
                next(steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchroniz" in str(warning.message):
            places[f"{Path(warning.filename).name}:{warning.lineno}"] += 1
    return {place: times / PROFILED for place, times in places.most_common()}


def measure_whole(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One asset to its end, or to the time limit; another call goes on from the run folder."""
    settings = PARTS["perpneg" if options.perp_neg else "cfg"] | {"optim.steps": 12 if options.smoke else 5000}
    pipeline, begin = random_pipeline(settings, device, small=options.smoke), time.monotonic()
    _, _, first = started(pipeline, device)  # of an asset that is thrown away: compiling is no part of the mean
    run = RunDir(options.run)
    if run.unfinished():
        asset = pipeline.restore(run.load(), PROMPT, 0)
    else:
        asset = pipeline.prepare(PROMPT, 0)
        run.create(
            RunRecord(
                prompt=PROMPT, seed=0, negative_prompt=None, output="whole.ply", quality="standard",
                config=pipeline.config.flat(), prior={"name": "random", "digest": "random"}, device=str(device),
                versions=installed_versions(),
            )
        )  # fmt: skip
    log = options.run / "milliseconds.json"
    spent = json.loads(log.read_text()) if asset.step and log.exists() else []
    for report in pipeline.run([asset]):
        spent.append((1e3 * report.seconds, report.n_gaussians[0], round(report.memory_gib, 3)))
        stopping = time.monotonic() - begin > options.time_limit - LEAST_SECONDS
        if report.step % 500 == 0 or stopping or report.step == options.stop_at:
            run.save(asset)
            log.write_text(json.dumps(spent))
            print(
                f"step {report.step}: mean {statistics.mean(ms for ms, *_ in spent):.1f} ms, {spent[-1][1]:,} Gaussians"
            )
        if stopping or report.step == options.stop_at:
            break
    ms = [entry[0] for entry in spent]
    return {
        "steps": len(ms),
        "of": pipeline.config.optim.steps,
        "ms": statistics.mean(ms),
        "median_ms": statistics.median(ms),
        "first_step_s": first,
        "peak_gib": max(entry[2] for entry in spent),
        "gaussians": spent[-1][1],
        "finite": all(bool(value.isfinite().all()) for value in asset.gaussians.params.values()),
        "minutes": sum(ms) / 60e3,
    }


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a part finds, on this process's device."""
    device = torch.device("cpu" if options.smoke or not torch.cuda.is_available() else "cuda")
    if name == "whole":
        return measure_whole(options, device)
    if name == "pieces":
        return measure_pieces(device, partial(leave, options), small=options.smoke)
    found = measure_loop(name, options, device)
    if name == "cfg":
        size = 256 if options.smoke else 8192
        found["product_tflops"] = product_rate(device, torch.bfloat16, size, 20) / 1e12
    return found


def leave(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Puts what is known where the parent looks for it."""
    if options.result:
        options.result.write_text(json.dumps(found))


def run_parts(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Every part that there is time for; None is one that failed or was skipped."""
    found: dict[str, Any] = {}
    begin = time.monotonic()
    for name in names:
        left = options.time_limit - (time.monotonic() - begin)
        print(f"\n### {name}, {left:.0f} s left", flush=True)
        if options.smoke:
            found[name] = measure(name, options)
        elif left < LEAST_SECONDS:
            found[name] = None
        else:
            found[name] = in_a_process(name, left, options)
        print(json.dumps(found[name], default=str), flush=True)
    return found


def in_a_process(name: str, seconds: float, options: argparse.Namespace) -> dict[str, Any] | None:
    """What a part finds in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--part", name, "--result", str(result), "--steps", str(options.steps)]
        command += ["--run", str(options.run), "--time-limit", str(seconds), *["--perp-neg"] * options.perp_neg]
        try:
            subprocess.run(command, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            print(f"{name} was stopped after {seconds:.0f} s")
        found: dict[str, Any] | None = json.loads(result.read_text()) if result.exists() else None
        return found


def show(found: dict[str, Any]) -> None:
    """The tables."""
    loops = {name: part for name, part in found.items() if part and "stages" in part}
    if loops:
        rate = (found.get("cfg") or {}).get("product_tflops")
        if rate:
            print(f"\n8192^3 bf16 product: {rate:.0f} TFLOP/s")
        print("\n| | " + " | ".join(loops) + " |\n| --- |" + " --- |" * len(loops))
        skipped = {"stages", "waits", "kernels"}
        keys = dict.fromkeys(key for part in loops.values() for key in part if key not in skipped)
        for key in keys:
            print(f"| {key} | " + " | ".join(cell(part.get(key)) for part in loops.values()) + " |")
        for stage in dict.fromkeys(stage for part in loops.values() for stage in part["stages"]):
            print(f"| {stage}, ms | " + " | ".join(cell(part["stages"].get(stage)) for part in loops.values()) + " |")
        for name, part in loops.items():
            for title in ("waits", "kernels"):
                for place, value in part.get(title, {}).items():
                    print(f"{name} {title[:-1]}: {value:.3f} a step, {place[:110]}")
    if pieces := found.get("pieces"):
        print("\n| piece | ms | latents or noise, error | gradient, error |\n| --- | --- | --- | --- |")
        for name, row in pieces.items():
            print(
                f"| {name} | {cell(row['ms'])} | {row['error']:.1e} | {row.get('gradient_error', float('nan')):.1e} |"
            )
    if whole := found.get("whole"):
        print("\n" + ", ".join(f"{key} {cell(value)}" for key, value in whole.items()))
    missing = [name for name, part in found.items() if part is None]
    print(f"\nnot measured: {', '.join(missing) or 'nothing'}")


def cell(value: Any) -> str:
    """A number as a table shows it."""
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def keep(found: dict[str, Any], device: str, *, perp_neg: bool) -> None:
    """Records what was measured in results.json."""
    cfg, eager, low, whole = (found.get(name) or {} for name in ("cfg", "eager", "lowvram", "whole"))
    done = whole and whole["steps"] == whole["of"]
    perpneg = found.get("perpneg") or {}
    means = {"cfg": cfg.get("ms"), "perpneg": perpneg.get("ms")}
    if done:
        means["perpneg" if perp_neg else "cfg"] = whole["ms"]
    values = {f"sd21_{name}_ms_per_iteration": (ms, "ms") for name, ms in means.items()}
    values["sd21_peak_gib"] = (whole["peak_gib"] if done else cfg.get("peak_gib"), "GiB")
    values["sd21_lowvram_peak_gib"] = (low.get("peak_gib"), "GiB")
    values["sd21_eager_ratio"] = (eager["ms"] / cfg["ms"] if eager and cfg else None, "1")
    for metric, (value, unit) in values.items():
        if value is not None:
            record(metric, value, unit, device)


def main() -> None:
    """Runs the parts and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", action="append", choices=PARTS, help="repeatable")
    parser.add_argument("--whole", action="store_true", help="a whole run in place of the parts")
    parser.add_argument("--perp-neg", action="store_true", help="of the whole run")
    parser.add_argument("--run", type=Path, default=Path("sd21_whole.run"))
    parser.add_argument("--stop-at", type=int, default=0, help="end a whole run after this step, to be continued")
    parser.add_argument("--time-limit", type=float, default=570, help="seconds")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--record", action="store_true", help="keep the figures in results.json")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        leave(options, measure(options.part, options))
        return
    if not options.smoke and not torch.cuda.is_available():
        sys.exit("this needs a CUDA device; --smoke runs a small model on the CPU")
    if options.smoke:
        torch.set_num_threads(1)  # so small a model only waits for more
    found = run_parts(["whole"] if options.whole else options.only or DEFAULT, options)
    show(found)
    if options.record and not options.smoke:
        keep(found, "cuda", perp_neg=options.perp_neg)


if __name__ == "__main__":
    main()
