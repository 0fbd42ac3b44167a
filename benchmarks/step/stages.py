"""Where the time of a distillation step goes, stage by stage.

    python -m benchmarks.step.stages --steps 60                     # the embedded prior
    python -m benchmarks.step.stages --device cuda --model FOLDER   # any checkpoint

On CUDA the stages are taken from events in the device's queue, without waiting for any of them: the time between two
events is charged to the stage that the later one ends, the device's idle time in it included.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from benchmarks.batch import opened
from segdream_cli.config import AUTO, MINI, SD21
from segdream_cli.optimize import batch as batch_module
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.util.memory import peak_memory_gib


class Timeline:
    """Marks in the order in which a device passes them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any]] = []

    def mark(self, stage: str) -> None:
        """What has been queued since the last mark belongs to `stage`."""
        if self._device.type != "cuda":
            self._marks.append((stage, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((stage, event))

    def milliseconds(self) -> dict[str, float]:
        """Each stage's sum, in the order of first appearance."""
        settled(self._device)
        spent: dict[str, float] = defaultdict(float)
        for (_, before), (stage, after) in zip(self._marks, self._marks[1:], strict=False):
            spent[stage] += before.elapsed_time(after) if self._device.type == "cuda" else 1e3 * (after - before)
        return dict(spent)


@contextmanager
def watched(pipeline: Pipeline, timeline: Timeline) -> Iterator[None]:
    """Marks what the pipeline calls while the block runs."""

    def around(owner: Any, name: str, before: str | None, after: Any) -> Callable[..., Any]:
        inner = getattr(owner, name)

        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            if before is not None:
                timeline.mark(before)
            if name == "encode_image" and arguments[0].requires_grad:
                arguments[0].register_hook(lambda _: timeline.mark("losses and encoder, backward"))
            result = inner(*arguments, **keywords)
            timeline.mark(after(*arguments) if callable(after) else after)
            return result

        return wrapper

    def rows(latents: torch.Tensor, *_: Any) -> str:
        return f"U-Net, {len(latents)} rows"

    patches: list[tuple[Any, str, str | None, Any]] = [
        (pipeline, "_render_views", "between steps", "cameras, render"),
        (pipeline.prior, "encode_image", "cameras, render", "encode"),
        (pipeline.prior, "predict_noise", "arithmetic of SCTD", rows),
        (torch.Tensor, "backward", "arithmetic of SCTD", "render, backward"),
        (batch_module, "clip_gradients", None, "clip"),
        (batch_module.Batch, "check_last", None, "check the norms"),
        (batch_module, "adam_step", "clip", "optimiser"),
        (batch_module, "control_density", "optimiser", "density control"),
    ]
    with ExitStack() as stack:
        for owner, name, before, after in patches:
            stack.enter_context(mock.patch.object(owner, name, around(owner, name, before, after)))
        yield


def settled(device: torch.device) -> None:
    """Waits until the device has done what is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wall_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Wall time of `work`, the device's queue included."""
    settled(device)
    begin = time.perf_counter()
    work()
    settled(device)
    return time.perf_counter() - begin


def stage_milliseconds(pipeline: Pipeline, steps: Iterator[object], count: int) -> dict[str, float]:
    """Milliseconds a step of each stage, over the next `count` steps."""
    timeline = Timeline(pipeline.device)
    with watched(pipeline, timeline):
        for _ in range(count):
            next(steps)
    return {stage: spent / count for stage, spent in timeline.milliseconds().items()}


def main() -> None:
    """Runs undisturbed steps, then marked ones, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a yellow school bus")
    parser.add_argument("--prior", default=MINI, choices=[AUTO, MINI, SD21])
    parser.add_argument("--model")
    parser.add_argument("--quality", default="standard")
    parser.add_argument("--device", default=AUTO)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    pipeline = opened(options)
    device = pipeline.device
    asset = pipeline.prepare(options.prompt, 0)
    steps = pipeline.run([asset])
    for _ in range(10):
        next(steps)
    plain = wall_seconds(device, lambda: [next(steps) for _ in range(options.steps)]) / options.steps
    stages = stage_milliseconds(pipeline, steps, options.steps)
    print(f"{options.steps} steps, {len(asset.gaussians):,} Gaussians, peak {peak_memory_gib(device):.2f} GiB")
    print("| stage | ms a step |\n| --- | --- |")
    for stage, spent in stages.items():
        print(f"| {stage} | {spent:.1f} |")
    print(f"| whole step, marked | {sum(stages.values()):.1f} |\n| whole step, undisturbed | {1e3 * plain:.1f} |")


if __name__ == "__main__":
    main()
