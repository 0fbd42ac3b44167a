"""The optimisation loop of the full-size model under measurement: a few steps, several assets, a whole run."""

import argparse
import json
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.step.random_prior import random_pipeline
from benchmarks.step.stages import settled, stage_milliseconds, wall_seconds
from segdream_cli.config.distill import METHOD_NAMES
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.optimize.report import StepReport
from segdream_cli.priors.stable_diffusion import workload
from segdream_cli.render.cameras import frame_sphere
from segdream_cli.runs.run_dir import RunDir, RunRecord, package_versions
from segdream_cli.util.failures import GIB
from segdream_cli.util.memory import peak_memory_gib

Settings = dict[str, Any]
Found = dict[str, Any]
Keep = Callable[[Found], object]
"""Is handed what is known after each piece of the work, so that a later one can't lose it."""
SPARE_SECONDS = 25
"""What a whole run leaves of its time for saving and for the end of the process."""
WARM_UP, PROFILED = 5, 3
ASSETS = (1, 2, 4, 8)
PROMPT = "a yellow school bus"


def measure_loop(name: str, settings: Settings, options: argparse.Namespace, device: torch.device, keep: Keep) -> Found:
    """Time, stages, waits and memory of steps of the optimisation loop."""
    pipeline = random_pipeline(settings, device, small=options.smoke)
    found = ready(pipeline)
    keep(found)
    steps, asset, found["first_step_s"] = started(pipeline)
    for _ in range(WARM_UP):
        next(steps)
    count = options.steps if name in ("cfg", "perpneg") else max(2, options.steps // 4)
    with counted_rows(pipeline) as rows:
        seconds = wall_seconds(device, lambda: [next(steps) for _ in range(count)]) / count
    work = workload(pipeline.prior, pipeline.config, pipeline.method.rows_per_view)
    unet, encoder = work.sample_flops()
    evaluations = sum(rows) / count
    flops = evaluations * unet + 2 * pipeline.config.camera.batch * encoder
    found |= {
        "ms": 1e3 * seconds,
        "peak_gib": peak_memory_gib(device),
        "reserved_gib": reserved_gib(device),
        "estimated_gib": work.memory_gib(len(asset.gaussians)),
        "gaussians": len(asset.gaussians),
        "unet_rows": evaluations,
        "tflop": flops / 1e12,
        "tflops": flops / seconds / 1e12,
    }
    keep(found)
    found["stages"] = stage_milliseconds(pipeline, steps, max(2, count // 2))
    keep(found)
    if device.type == "cuda":
        found["estimated_ms"] = 1e3 * work.seconds(device) / pipeline.config.optim.steps
        found["waits"] = waits(steps)
        keep(found)
        found |= profiled(steps)
    return found


def reserved_gib(device: torch.device) -> float:
    """What torch has taken of the device so far, the memory of graphs between their replays included."""
    return torch.cuda.max_memory_reserved(device) / GIB if device.type == "cuda" else 0.0


def ready(pipeline: Pipeline) -> Found:
    """Seconds that each network takes at first, compiled and captured, and the rasteriser's kernels after them."""
    prior, views, size = pipeline.prior, pipeline.config.camera.batch, pipeline.image_size
    text = prior.encode_text([""])

    def predict(rows: int) -> None:
        latents = torch.zeros(rows, *prior.latent_shape, device=pipeline.device)
        prior.predict_noise(latents, torch.full((rows,), 500), text.repeat(rows, 1, 1))

    def encode() -> None:
        images = torch.zeros(views, size, size, 3, device=pipeline.device, requires_grad=True)
        prior.encode_image(images.permute(0, 3, 1, 2), None).sum().backward()

    def render() -> None:
        pipeline.render(pipeline.prepare(PROMPT, 0).gaussians, frame_sphere(torch.zeros(1), torch.zeros(1), 64))

    work: dict[str, Callable[[], None]] = {
        "unet_s": lambda: predict(views), "unet_twice_s": lambda: predict(2 * views), "encoder_s": encode,
        "rasteriser_s": render,
    }  # fmt: skip
    return {name: wall_seconds(pipeline.device, each) for name, each in work.items()}


def started(pipeline: Pipeline) -> tuple[Iterator[StepReport], Any, float]:
    """The loop after its first step, its asset, and the seconds that step took."""
    asset = pipeline.prepare(PROMPT, 0)
    steps = pipeline.run([asset])
    return steps, asset, wall_seconds(pipeline.device, lambda: next(steps))


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


def profiled(steps: Iterator[object]) -> Found:
    """Time a step in which the device computes, and the kernels that take most of it, in ms a step."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PROFILED):
            next(steps)
        torch.cuda.synchronize()
    kernels = {event.key: event.self_device_time_total / 1e3 / PROFILED for event in profile.key_averages()}
    largest = dict(sorted(kernels.items(), key=lambda item: -item[1])[:25])
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


def measure_throughput(settings: Settings, options: argparse.Namespace, device: torch.device, keep: Keep) -> Found:
    """Milliseconds a step and assets an hour of several assets in lock step, each with its own times and views."""
    pipeline, found = random_pipeline(settings, device, small=options.smoke), {}
    ready(pipeline)
    for count in (1, 2) if options.smoke else ASSETS:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        assets = [pipeline.prepare(f"{PROMPT} {number}", number) for number in range(count)]
        steps, number = pipeline.run(assets), max(2, options.steps // 3)
        for _ in range(WARM_UP):
            next(steps)
        seconds = wall_seconds(device, lambda steps=steps, number=number: [next(steps) for _ in range(number)]) / number
        found[str(count)] = {
            "ms": 1e3 * seconds,
            "ms_each": 1e3 * seconds / count,
            "assets_an_hour": 3600 * count / (seconds * pipeline.config.optim.steps),
            "peak_gib": peak_memory_gib(device),
            "reserved_gib": reserved_gib(device),
        }
        keep(found)
        print(count, found[str(count)], flush=True)
    return found


def measure_methods(settings: Settings, options: argparse.Namespace, device: torch.device, keep: Keep) -> Found:
    """Milliseconds per step of each distillation method, one after the other with the same networks.

    The ratio is to the time that its U-Net rows would take in the loop of SCTD: that loop's step, plus the difference
    in rows times the mean time of a row there. Decoded images count as time, not as rows.
    """
    # of GCS, so that the decoder is compiled too
    base, found = random_pipeline({"distill.method": "gcs"} | settings, device, small=options.smoke), {}
    ready(base)
    for method in dict.fromkeys(("sctd", *(options.method or METHOD_NAMES))):
        pipeline = Pipeline(base.config.set({"distill.method": method}), base.prior, device)
        steps, _, first = started(pipeline)
        for _ in range(WARM_UP):
            next(steps)
        with counted_rows(pipeline) as rows:
            seconds = wall_seconds(device, lambda steps=steps: [next(steps) for _ in range(options.steps)])
        own = {"ms": 1e3 * seconds / options.steps, "unet_rows": sum(rows) / options.steps}
        if method == "sctd":
            with counted_rows(pipeline) as rows:
                stages = stage_milliseconds(pipeline, steps, max(2, options.steps // 2))
            unet = sum(ms for stage, ms in stages.items() if stage.startswith("U-Net"))
            row_ms, plain = unet * max(2, options.steps // 2) / sum(rows), own
        expected = plain["ms"] + (own["unet_rows"] - plain["unet_rows"]) * row_ms
        decodes = pipeline.method.decodes_per_view * pipeline.config.camera.batch
        found[method] = own | {"decodes": decodes, "first_step_s": first, "expected_ms": expected}
        found[method]["ratio"] = own["ms"] / expected
        keep(found)
        print(method, found[method], flush=True)
    return found


def measure_whole(settings: Settings, options: argparse.Namespace, device: torch.device, keep: Keep) -> Found:
    """One asset to its end, or to the time limit; another call goes on from the run folder."""
    pipeline = random_pipeline(settings | {"optim.steps": 12 if options.smoke else 5000}, device, small=options.smoke)
    first = ready(pipeline)
    started(pipeline)  # of an asset that is thrown away: compiling is no part of the mean
    run, log = RunDir(options.run), options.run / "milliseconds.json"
    if run.can_resume():
        asset = pipeline.restore(run.load(), PROMPT, 0)
    else:
        asset = pipeline.prepare(PROMPT, 0)
        run.create(
            RunRecord(
                prompt=PROMPT, seed=0, negative_prompt=None, output="whole.ply", quality="standard",
                config=pipeline.config.flat(), prior={"name": "random", "digest": "random"}, device=str(device),
                versions=package_versions(),
            )
        )  # fmt: skip
    spent = json.loads(log.read_text()) if asset.step and log.exists() else []
    settled(device)
    before = time.perf_counter()
    for report in pipeline.run([asset]):
        stopping = time.time() > options.deadline - SPARE_SECONDS or report.step == options.stop_at
        saving = report.step % 500 == 0 or stopping
        if saving:
            settled(device)  # what is queued belongs to the steps, saving does not
        spent.append((1e3 * (time.perf_counter() - before), report.n_gaussians[0], round(report.memory_gib, 3)))
        if saving:
            run.save(asset)
            log.write_text(json.dumps(spent))
            mean = statistics.mean(ms for ms, *_ in spent)
            print(f"step {report.step}: mean {mean:.1f} ms, {spent[-1][1]:,} Gaussians", flush=True)
            keep(_summary(spent, pipeline, asset, first))
        before = time.perf_counter()
        if stopping:
            break
    return _summary(spent, pipeline, asset, first)


def _summary(spent: list[Any], pipeline: Pipeline, asset: Any, first: Found) -> Found:
    """What a whole run has come to so far."""
    ms = [entry[0] for entry in spent]
    return {
        "steps": len(ms),
        "of": pipeline.config.optim.steps,
        "ms": statistics.mean(ms),
        "median_ms": statistics.median(ms),
        "compiled_s": sum(first.values()),
        "peak_gib": max(entry[2] for entry in spent),
        "gaussians": spent[-1][1],
        "most_gaussians": max(entry[1] for entry in spent),
        "finite": all(bool(value.isfinite().all()) for value in asset.gaussians.params.values()),
        "minutes": sum(ms) / 60e3,
    }
