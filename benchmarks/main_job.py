"""The README's main job as a user runs it: wall time, time of the loop, peak memory.

    python -m benchmarks.main_job --runs 3

The first, uncounted run fills the caches (bytecode, compiled rasteriser), which is what "warm" means here. It has
another seed, and each counted run has its own, so no run finds its Point-E cloud in the cache.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import record

PROMPT = "a yellow school bus"
FIRST_SEED = random.randrange(10**6)
"""A new seed per run: clouds stay in the cache."""


def run_once(folder: Path, arguments: list[str]) -> tuple[float, float, float]:
    """Wall seconds, seconds of the loop, and peak memory in GiB (of the process, or of the device) of one run."""
    command = [sys.executable, "-m", "segdream_cli", "generate", PROMPT, "-o", str(folder / "bus.ply"), "--force"]
    begin = time.perf_counter()
    done = subprocess.run([*command, "--json", *arguments], capture_output=True, text=True, check=True)
    wall = time.perf_counter() - begin
    result = json.loads(done.stdout.splitlines()[-1])
    return wall, result["seconds"], result["memory_gib"]


def main() -> None:
    """Runs the command and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--record", action="store_true", help="keep the figures in results.json")
    options, rest = parser.parse_known_args()  # unknown options go to segdream generate
    arguments = ["--device", options.device, "--prior", "mini", *rest]
    with tempfile.TemporaryDirectory() as name:
        run_once(Path(name), [*arguments, "--steps", "2", "--seed", str(FIRST_SEED)])
        seeds = range(FIRST_SEED + 1, FIRST_SEED + 1 + options.runs)
        measured = [run_once(Path(name), [*arguments, "--seed", str(seed)]) for seed in seeds]
    print("| run | wall s | loop s | peak GiB |\n| --- | --- | --- | --- |")
    for number, (wall, loop, peak) in enumerate(measured, 1):
        print(f"| {number} | {wall:.1f} | {loop:.1f} | {peak:.2f} |")
    wall, loop, peak = (statistics.median(column) for column in zip(*measured, strict=True))
    print(f"| median | {wall:.1f} | {loop:.1f} | {peak:.2f} |")
    if options.record:
        prefix = "mini_cpu" if options.device == "cpu" else "mini_gpu_process"  # mini_gpu_seconds is batch.py's
        record(f"{prefix}_seconds", wall, "s", options.device)
        record(f"{prefix}_loop_seconds", loop, "s", options.device)
        record(f"{prefix}_peak_gib", peak, "GiB", options.device)


if __name__ == "__main__":
    main()
