"""Where the time of a distillation step goes, stage by stage.

    python benchmarks/stages.py --steps 60                     # the embedded prior
    python benchmarks/stages.py --device cuda --model FOLDER   # any checkpoint

Stages are timed by wrapping what the pipeline calls; on CUDA each is bracketed by a synchronisation, so their sum is
larger than an undisturbed step, which is timed apart.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from segdream_cli import pipeline as pipeline_module
from segdream_cli.cli.output import Output
from segdream_cli.cli.session import Request, choose_device, open_checkpoint, open_pipeline
from segdream_cli.config import AUTO, MINI, SD21
from segdream_cli.memory import peak_memory_gib


def main() -> None:
    """Runs undisturbed steps, then timed ones, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a yellow school bus")
    parser.add_argument("--prior", default=MINI, choices=[AUTO, MINI, SD21])
    parser.add_argument("--model")
    parser.add_argument("--quality", default="standard")
    parser.add_argument("--device", default=AUTO)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    given = {"prior.name": options.prior, "prior.model": options.model}
    request = Request(quality=options.quality, options=given, assignments=tuple(options.set), device=options.device)
    device = choose_device(options.device)
    checkpoint = open_checkpoint(request, device, Output())
    pipeline = open_pipeline(request.resolve(checkpoint.profile), checkpoint, device, Output())
    asset = pipeline.prepare(options.prompt, 0)
    steps = pipeline.run([asset])
    for _ in range(10):
        next(steps)
    plain = _seconds(device, lambda: [next(steps) for _ in range(options.steps)]) / options.steps

    spent: dict[str, float] = defaultdict(float)

    def timed(owner: Any, name: str, stage: str) -> None:
        inner = getattr(owner, name)

        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            found: list[Any] = []
            spent[stage] += _seconds(device, lambda: found.append(inner(*arguments, **keywords)))
            return found[0]

        setattr(owner, name, wrapper)

    timed(pipeline, "_draw_views", "cameras, render")
    timed(pipeline.prior, "encode_image", "encode")
    timed(pipeline.prior, "predict_noise", "U-Net")
    timed(pipeline_module, "sctd", "SCTD with U-Net")
    timed(torch.Tensor, "backward", "backward")
    timed(pipeline, "_update", "optimiser, density")
    total = _seconds(device, lambda: [next(steps) for _ in range(options.steps)]) / options.steps
    print(f"{options.steps} steps, {len(asset.gaussians):,} Gaussians, peak {peak_memory_gib(device):.2f} GiB")
    print("| stage | ms a step |\n| --- | --- |")
    for stage, seconds in spent.items():
        print(f"| {stage} | {1e3 * seconds / options.steps:.1f} |")
    print(f"| whole step, timed | {1e3 * total:.1f} |\n| whole step, undisturbed | {1e3 * plain:.1f} |")


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Wall time of `work`, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
