"""What a step of the full-size model takes: random weights in the layout of Stable Diffusion 2.1-base.

    python -m benchmarks.step --record               # everything, in at most ten minutes of one GPU
    python -m benchmarks.step --whole --record       # one asset of 5,000 steps; again, to go on where it stopped
    python -m benchmarks.step --only throughput      # 1, 2, 4 and 8 assets in lock step
    python -m benchmarks.step --only methods         # every method, over what its rows cost in the loop of SCTD
    python -m benchmarks.step --method ism           # one of them, and SCTD
    python -m benchmarks.step --only cfg --steps 200 --set prior.tuned_convolutions=true
    python -m benchmarks.step --smoke                # a small model on the CPU: does all of it run?

Each part runs in a process of its own, so that a peak of memory is its own, and the first compiles what the later ones
find in the cache. A part's table comes when it is done or has failed, with what it had found by then; all of them come
again at the end, with what was skipped for want of time.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.step.loop import Found, measure_loop, measure_methods, measure_throughput, measure_whole
from benchmarks.step.pieces import measure_pieces
from benchmarks.step.random_prior import EAGER, FAILED
from benchmarks.step.tables import record_all, show
from segdream_cli.accel.estimate import product_rate
from segdream_cli.config.distill import METHOD_NAMES
from segdream_cli.config.values import parse_assignments

PARTS: dict[str, dict[str, Any]] = {
    "cfg": {},
    "perpneg": {"distill.perp_neg": True},
    "lowvram": {"prior.low_vram": True, "densify.cap": 100_000},
    "eager": EAGER,
    "pieces": {},
    "throughput": {},
    "graphs": {"prior.compile": "off"},
    "card": {},
    "methods": {},
    "whole": {},
}
LIMITS_GIB = {"lowvram": 4.5, "card": 7.5}
"""Memory that a part may take of the device; `card` is `cfg` with what a card of 8 GB has."""
DEFAULT = ["cfg", "perpneg", "lowvram", "eager", "pieces"]
LEAST_SECONDS = 40
BUILD = "from segdream_cli.render.raster.cuda import load_kernels; load_kernels()"


def measure(name: str, options: argparse.Namespace) -> Found:
    """What a part finds, on this process's device."""
    device = torch.device("cpu" if options.smoke or not torch.cuda.is_available() else "cuda")
    keep = partial(leave, options)
    if name == "pieces":
        return measure_pieces(device, keep, small=options.smoke)
    if name in LIMITS_GIB and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(LIMITS_GIB[name] * 2**30 / total, torch.cuda.current_device())
    settings = PARTS[name] | parse_assignments(options.set)
    if options.perp_neg:
        settings |= PARTS["perpneg"]
    if name == "throughput":
        return measure_throughput(settings, options, device, keep)
    if name == "methods":
        return measure_methods(settings, options, device, keep)
    if name == "whole":
        return measure_whole(settings, options, device, keep)
    found = measure_loop(name, settings, options, device, keep)
    if name == "cfg":
        size = 256 if options.smoke else 8192
        found["product_tflops"] = product_rate(device, torch.bfloat16, size, 20) / 1e12
    return found


def leave(options: argparse.Namespace, found: Found) -> None:
    """Puts what is known where the parent looks for it, with how many implementations failed."""
    found = found | {"given_up": sum(map(len, FAILED))}
    if options.result:
        options.result.write_text(json.dumps(found))


def run_parts(names: list[str], options: argparse.Namespace) -> dict[str, Found | None]:
    """Every part that there is time for, as far as it came; None is one that found nothing or was skipped."""
    found: dict[str, Found | None] = {}
    end = time.monotonic() + options.time_limit
    for name in names:
        left = end - time.monotonic()
        print(f"\n### {name}, {left:.0f} s left", flush=True)
        if options.smoke:
            options.deadline = time.time() + left
            found[name] = measure(name, options)
        else:
            found[name] = in_a_process(name, left, options) if left >= LEAST_SECONDS else None
        print(f"{name} took {left - (end - time.monotonic()):.0f} s", flush=True)
        show({name: found[name]})
        if options.out:
            options.out.write_text(json.dumps(found, indent=1))
    return found


def in_a_process(name: str, seconds: float, options: argparse.Namespace) -> Found | None:
    """What a part finds in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [
            sys.executable,
            "-m",
            "benchmarks.step",
            "--part",
            name,
            "--result",
            str(result),
            "--steps",
            str(options.steps),
        ]
        command += ["--run", str(options.run), "--stop-at", str(options.stop_at), *["--perp-neg"] * options.perp_neg]
        command += ["--deadline", str(time.time() + seconds)]
        for assignment in options.set:
            command += ["--set", assignment]
        for method in options.method:
            command += ["--method", method]
        try:
            code = subprocess.run(command, timeout=seconds, check=False).returncode
            if code:
                print(f"{name} failed with code {code}", flush=True)
        except subprocess.TimeoutExpired:
            print(f"{name} was stopped after {seconds:.0f} s", flush=True)
        found: Found | None = json.loads(result.read_text()) if result.exists() else None
        return found


@contextmanager
def building(command: list[str]) -> Iterator[None]:
    """Runs a command beside the block; what of it is left at the end, compilers included, is ended with it."""
    builder = subprocess.Popen(command, start_new_session=True)
    try:
        yield
    finally:
        if builder.poll() is None:
            os.killpg(builder.pid, signal.SIGTERM)
        builder.wait()


def run_part(options: argparse.Namespace) -> None:
    """Runs one part in this process, and says briefly where it failed."""
    try:
        leave(options, measure(options.part, options))
    except Exception as problem:  # any failure must not lose the figures of the other parts
        lines = traceback.format_list(traceback.extract_tb(problem.__traceback__)[-6:])
        print("".join(lines) + f"{type(problem).__name__}: {str(problem)[:1500]}", flush=True)
        sys.exit(1)


def main() -> None:
    """Runs the parts and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", action="append", choices=PARTS, help="repeatable")
    parser.add_argument("--method", action="append", default=[], choices=METHOD_NAMES, help="repeatable: of `methods`")
    parser.add_argument("--whole", action="store_true", help="a whole run in place of the parts")
    parser.add_argument("--perp-neg", action="store_true", help="of the whole run, or of any part")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every part")
    parser.add_argument("--run", type=Path, default=Path("sd21_whole.run"))
    parser.add_argument("--stop-at", type=int, default=0, help="end a whole run after this step, to be continued")
    parser.add_argument("--time-limit", type=float, default=570, help="seconds")
    parser.add_argument("--out", type=Path, help="JSON file for everything that is found")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--record", action="store_true", help="keep the figures in results.json")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run_part(options)
        return
    names = ["whole"] if options.whole else options.only or (["methods"] if options.method else DEFAULT)
    if options.smoke:
        torch.set_num_threads(1)  # so small a model only waits for more
        found = run_parts(names, options)
    elif not torch.cuda.is_available():
        sys.exit("this needs a CUDA device; --smoke runs a small model on the CPU")
    else:  # beside the first compilation; whoever renders meanwhile waits for it
        with building([sys.executable, "-c", BUILD]):
            found = run_parts(names, options)
    print("\n### all")
    show(found)
    if options.record and not options.smoke:
        record_all(found, "cuda", perp_neg=options.perp_neg)


if __name__ == "__main__":
    main()
