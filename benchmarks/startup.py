"""Times commands that do no work: help, the version, and errors of input.

    python -m benchmarks.startup [--runs 9] [--record]

The figures are processor seconds beyond those of `python -c pass`, the median of the runs. Such commands use one
thread and wait for nothing, so a quiet machine takes as long by the clock, and a busy one changes little.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.record import record

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "version": ("--version",),
    "help": ("--help",),
    "generate_existing": ("generate", "a red ball", "--device", "cpu", "-o", "there.ply"),
    "generate_prompt": ("generate", "a rod bull", "--device", "cpu", "-o", "x.ply"),
    "render_missing": ("render", "none.ply"),
    "export_existing": ("export", "there.ply", "-o", "there.ply"),
    "evaluate_missing": ("evaluate", "none.ply"),
    "resume_missing": ("generate", "--resume", "none.run"),
}


def processor_seconds(arguments: Sequence[str], folder: str) -> float:
    """User and system time of a Python process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment, **quiet)  # type: ignore[call-overload]
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    return float(usage.ru_utime + usage.ru_stime)


def main() -> None:
    """Prints the median of each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        (Path(folder) / "there.ply").write_text("x")
        lines = {"": ("-c", "pass")} | {name: ("-m", "segdream_cli", *line) for name, line in COMMANDS.items()}
        times: dict[str, list[float]] = {name: [] for name in lines}
        for _ in range(options.runs):
            for name, line in lines.items():
                times[name].append(processor_seconds(line, folder))
    python = statistics.median(times.pop(""))
    for name, each in times.items():
        seconds = statistics.median(each) - python
        print(f"{name:18} {seconds:.2f} s")
        if options.record:
            record(f"startup_{name}_s", seconds, "s", "cpu")


if __name__ == "__main__":
    main()
