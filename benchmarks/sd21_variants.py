"""Encoder and U-Net of the full-size model under one switch more or less each, to see which of them pays.

    python benchmarks/sd21_variants.py --time-limit 480
    python benchmarks/sd21_variants.py --only all --only "tuned-convolutions"
    python benchmarks/sd21_variants.py --smoke            # a small model on the CPU

Compiling takes minutes and the processor alone, so that all variants are compiled side by side, each in a process of
its own; then they are timed one after the other. Differences are those to the first variant's results.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sd21_pieces import Inputs, milliseconds, relative
from sd21_random import FIXED, networks, random_prior
from stages import wall_seconds

from segdream_cli.config import Config
from segdream_cli.util.memory import peak_memory_gib

VARIANTS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "all": ({}, {}),
    "tuned-convolutions": ({}, {"prior.tuned_convolutions": True}),
    "stored-values": ({}, {"prior.recomputed_values": False}),
    "no-channel-norms": ({}, {"prior.channel_norms": False}),
    "separate-projections": ({}, {"prior.fused_projections": False}),
    "flash-attention": ({"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}, {}),
    "autotuned-pointwise": ({"TORCHINDUCTOR_MAX_AUTOTUNE_POINTWISE": "1"}, {}),
    "cooperative-reductions": ({"TORCHINDUCTOR_COOPERATIVE_REDUCTIONS": "1"}, {}),
    "dependent-launches": ({"TORCHINDUCTOR_ENABLE_PDL": "1"}, {}),
}
"""Name to environment and settings."""
THREADS = "3"
"""Compiler processes of each."""
TIMING_SECONDS = 60
"""What is left of the time for measuring, once all are compiled."""


def child(name: str, folder: Path, *, small: bool) -> None:
    """Compiles one variant, says so, waits for its turn, and leaves its times and results."""
    parent = os.getppid()
    device = torch.device("cpu" if small else "cuda")
    config = Config().set(FIXED | ({} if small else {"prior.compile": "on"}) | VARIANTS[name][1])
    dtype = torch.float32 if small else torch.float16
    prior = random_prior(config, device, networks(device, dtype, small=small))
    views = config.camera.batch
    inputs = Inputs(prior, views)
    outputs: dict[str, torch.Tensor] = {}

    def first() -> None:
        outputs["latents"], outputs["gradient"] = inputs.encode(prior)
        outputs.update({f"noise {rows}": inputs.predict(prior, rows) for rows in (views, 2 * views)})

    compiled = wall_seconds(device, first)
    save_file({key: value.contiguous() for key, value in outputs.items()}, folder / f"{name}.safetensors")
    (folder / f"{name}.ready").touch()
    while not (folder / f"{name}.go").exists():
        if os.getppid() != parent:
            sys.exit(f"{name}: nobody waits for it any more")
        time.sleep(0.05)
    found = {f"U-Net, {rows} rows": milliseconds(lambda rows=rows: inputs.predict(prior, rows), device)
             for rows in (views, 2 * views)}  # fmt: skip
    found |= {"encoder": milliseconds(lambda: inputs.encode(prior), device), "compiled_s": compiled}
    found["peak_gib"] = peak_memory_gib(device)
    temporary = folder / f"{name}.tmp"
    temporary.write_text(json.dumps(found))
    temporary.replace(folder / f"{name}.json")


def run(names: list[str], folder: Path, limit: float, *, small: bool) -> dict[str, dict[str, float]]:
    """Times by variant; one that was not compiled in time, or failed, is left out."""
    begin = time.monotonic()
    running = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--child", name, "--folder", str(folder), *["--smoke"] * small],
            env=os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": THREADS} | VARIANTS[name][0],
        )
        for name in names
    }

    try:
        return _timed(running, folder, begin + limit - TIMING_SECONDS)
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def _timed(running: dict[str, subprocess.Popen[bytes]], folder: Path, end: float) -> dict[str, dict[str, float]]:
    """The same of children that compile until `end`, and are then let go one after the other."""
    begin = time.monotonic()

    def waiting() -> bool:
        return any(
            process.poll() is None and not (folder / f"{name}.ready").exists() for name, process in running.items()
        )

    while waiting() and time.monotonic() < end:
        time.sleep(0.2)
    print(f"compiled for {time.monotonic() - begin:.0f} s", flush=True)
    for name, process in running.items():
        if not (folder / f"{name}.ready").exists():
            print(f"{name} was not compiled", flush=True)
            process.kill()
    found = {}
    for name, process in running.items():
        (folder / f"{name}.go").touch()
        process.wait()
        if (folder / f"{name}.json").exists():
            found[name] = json.loads((folder / f"{name}.json").read_text())
    return found


def show(found: dict[str, dict[str, float]], folder: Path) -> None:
    """The table."""
    if not found:
        sys.exit("nothing was measured")
    keys = list(next(iter(found.values())))
    reference = load_file(folder / f"{next(iter(found))}.safetensors")
    print("\n| variant | " + " | ".join(keys) + " | " + " | ".join(f"{key}, error" for key in reference) + " |")
    print("| --- |" + " --- |" * (len(keys) + len(reference)))
    for name, row in found.items():
        outputs = load_file(folder / f"{name}.safetensors")
        errors = [f"{relative(outputs[key], value):.1e}" for key, value in reference.items()]
        print(f"| {name} | " + " | ".join([*(f"{row[key]:.2f}" for key in keys), *errors]) + " |", flush=True)


def main() -> None:
    """Compiles all, times each, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=VARIANTS, help="repeatable")
    parser.add_argument("--time-limit", type=float, default=480, help="seconds")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder, small=options.smoke)
        return
    if not options.smoke and not torch.cuda.is_available():
        sys.exit("this needs a CUDA device; --smoke runs a small model on the CPU")
    with tempfile.TemporaryDirectory() as name:
        show(run(options.only or list(VARIANTS), Path(name), options.time_limit, small=options.smoke), Path(name))


if __name__ == "__main__":
    main()
