"""A list on two GPUs of one host: one process, `--devices`, `--ray local`, killed workers, and two full-size assets.

    python -m benchmarks.two_gpus --out two_gpus.json                    # about eight minutes on two H200s
    python -m benchmarks.two_gpus --only full-size --out full.json       # one piece, or several
    python -m benchmarks.two_gpus --record two_gpus.json                 # keeps the figures of such a file
    python -m benchmarks.two_gpus --smoke                                # tiny assets on a CPU

A piece that the time limit leaves no room for is skipped, and said so. A worker begins with its first batch: `first`
and `second` are the seconds from the start of the command until a worker has written the first event of a run, on CUDA
after ten steps. `killed` waits until half of the first batch is done, kills a worker with SIGKILL, and checks that the
list has each asset once.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.record import provenance, record

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = ROOT / "training" / "heldout.txt"
PIECES = {"one": 100, "devices": 75, "ray": 85, "kill": 200, "full-size": 360}
"""Piece -> seconds that it takes on two H200s, generously."""
LIMIT_S = 480
SEEDS = count(random.randrange(10**6))
"""A seed per list: Point-E's clouds stay in the cache."""
WARM_UP = 20
"""Steps of a full-size asset before those that are timed: some shapes are compiled after the first."""
BATCH = 24
"""Assets that a worker of `mini` makes at once on CUDA."""
BACKENDS = {
    "one": ("--device", "cuda:0"),
    "devices": ("--devices", "0,1"),
    "ray": ("--ray", "local"),
}
SMOKE_BACKENDS = {
    "one": ("--device", "cpu"),
    "devices": ("--devices", "cpu,cpu"),
    "ray": ("--ray", "local", "--gpus-per-worker", "0"),
}
SMALL = ("--init", "sphere", "--steps", "20", "--no-refine", "--set", "init.count=40", "--set", "densify.cap=60")
FIGURES = {"assets": "1", "wall_s": "s", "first_s": "s", "second_s": "s", "each_s": "s", "cores": "1"}
FULL_SIZE = {
    "alone_ms": "ms", "at_once_ms": "ms", "times_as_fast": "1", "alone_first_step_s": "s", "shared_first_step_s": "s",
    "alone_cores": "1", "at_once_cores": "1",
}  # fmt: skip
"""Figures that are kept, of a list and of the full-size assets -> their units."""

Found = dict[str, Any]


class ListRun:
    """A list of prompts that a command makes.

    Args:
        backend: "one", "devices" or "ray".
        prompts: their number.
        smoke: tiny assets on a CPU.
    """

    def __init__(self, backend: str, prompts: int, *, smoke: bool) -> None:
        self.backend, self.count, self.smoke = backend, prompts, smoke
        self.share = 1 if smoke else min(BATCH, math.ceil(prompts / (1 if backend == "one" else 2)))
        self.folder = Path(tempfile.mkdtemp(prefix="two-gpus-"))
        lines = [line for line in HELD_OUT.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
        (self.folder / "list.txt").write_text("\n".join(lines[:prompts]), encoding="utf-8")
        arguments = [*(SMOKE_BACKENDS if smoke else BACKENDS)[backend], *(SMALL if smoke else ())]
        self.command = [
            sys.executable, "-m", "segdream_cli", "generate", "--prompts", "list.txt", "--out-dir", "assets",
            "--prior", "mini", "--seed", str(next(SEEDS)), "--json", *arguments,
        ]  # fmt: skip
        self.seen: list[float] = []
        """Seconds from the start until each run had an event, in that order."""

    def start(self) -> None:
        """Starts the command."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_memory_monitor_refresh_ms": "0"}
        environment |= {"OMP_NUM_THREADS": "1"} if self.smoke else {}
        self._errors = (self.folder / "stderr.txt").open("w+", encoding="utf-8")
        self._lines = (self.folder / "stdout.txt").open("w+", encoding="utf-8")
        self.begun, self.busy_at_start = time.monotonic(), busy_seconds()
        self.process = subprocess.Popen(
            self.command, cwd=self.folder, stdout=self._lines, stderr=self._errors, env=environment
        )

    def watch(self, until_step: int | None = None) -> None:
        """Notes when runs begin, until the command ends, or until a run has reported a step."""
        known: set[Path] = set()
        while self.process.poll() is None:
            for path in (self.folder / "assets").glob("*.run/events.jsonl"):
                if path not in known:
                    known.add(path)
                    self.seen.append(time.monotonic() - self.begun)
            # both workers are in their first batches
            workers = 1 if self.backend == "one" else 2
            if until_step is not None and len(known) > (workers - 1) * self.share and last_step(known) >= until_step:
                return
            time.sleep(0.02)

    def result(self) -> Found:
        """The figures of the command that has ended, after a check of its assets.

        Raises:
            SystemExit: it failed, or an asset is missing.
        """
        wall = time.monotonic() - self.begun
        self._lines.seek(0)
        lines = [json.loads(line) for line in self._lines]
        outputs = [line["output"] for line in lines if line["event"] in ("done", "skipped")]
        files = [path for path in (self.folder / "assets").iterdir() if path.is_file()]
        if self.process.returncode or not len(outputs) == len(set(outputs)) == len(files) == self.count:
            self._errors.seek(0)
            raise SystemExit(f"{self.backend}: {len(files)} of {self.count} assets\n{self._errors.read()[-3000:]}")
        first = self.seen[0]
        found = {
            "wall_s": wall,
            "first_s": first,
            "second_s": self.seen[self.share] if self.backend != "one" else None,
            "each_s": (wall - first) / self.count,
            "cores": (busy_seconds() - self.busy_at_start) / wall,
        }
        summary = next((line for line in lines if line["event"] == "list"), {})
        return found | {key: summary[key] for key in ("lost", "retried", "moved") if key in summary}

    def workers(self) -> list[int]:
        """Processes of the workers."""
        return [pid for pid in descendants(self.process.pid) if is_worker(pid)]

    def close(self) -> None:
        """Removes the files."""
        self._lines.close()
        self._errors.close()
        shutil.rmtree(self.folder)


def last_step(logs: set[Path]) -> int:
    """The latest step of any run."""
    lines = [path.read_text(encoding="utf-8").splitlines() for path in logs]
    return max((json.loads(each[-1])["step"] for each in lines if each and each[-1].endswith("}")), default=0)


def busy_seconds() -> float:
    """Seconds of processor time that this machine has spent, over all cores."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """The processes below a process."""
    with_parents = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            with_parents.append((int(path.parent.name), int(path.read_text().rpartition(")")[2].split()[1])))
        except (OSError, IndexError):
            continue
    found, below = [], {pid}
    while below:
        below = {child for child, parent in with_parents if parent in below}
        found += sorted(below)
    return found


def is_worker(pid: int) -> bool:
    """Whether a process holds a prior: one of `--devices`, or an actor of Ray."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"spawn_main" in words or words.startswith(b"ray::Actor")


@contextmanager
def opened(backend: str, prompts: int, *, smoke: bool) -> Iterator[ListRun]:
    """A list that has been started; it is ended and removed after the block."""
    work = ListRun(backend, prompts, smoke=smoke)
    work.start()
    try:
        yield work
    finally:
        if work.process.poll() is None:
            work.process.terminate()
            work.process.wait()
        work.close()


def measure_list(backend: str, options: argparse.Namespace) -> Found:
    """A list that nothing disturbs."""
    with opened(backend, options.count, smoke=options.smoke) as work:
        work.watch()
        return work.result()


def measure_kill(backend: str, options: argparse.Namespace) -> Found:
    """A list of which a worker is killed in the middle; the single process is started again."""
    with opened(backend, options.killed_count, smoke=options.smoke) as work:
        work.watch(until_step=10 if options.smoke else options.kill_step)
        victims = [work.process.pid] if backend == "one" else work.workers()
        if work.process.poll() is not None or not victims:
            raise SystemExit(f"{backend}: the list ended, or has no worker, before one was killed")
        os.kill(victims[0], signal.SIGKILL)
        killed = time.monotonic() - work.begun
        if backend == "one":
            work.process.wait()
            begun, busy = work.begun, work.busy_at_start
            work.start()
            work.begun, work.busy_at_start = begun, busy
        work.watch()
        found = work.result() | {"killed_s": killed}
        if backend != "one" and found["lost"] != 1:
            raise SystemExit(f"{backend}: {found['lost']} workers were lost")
        return found


def measure_full_size(options: argparse.Namespace) -> Found:
    """Two assets of full-size networks at once, against one after the other; and compiled code that is handed over."""
    with tempfile.TemporaryDirectory() as name:
        code = Path(name) / "code.bin"
        (alone,) = run_children(["0"], Path(name), options, "--code-out", str(code))
        arguments = ("--code-in", str(code)) if code.exists() else ()
        both = run_children(["0", "1"], Path(name), options, *arguments)
        one_after_the_other, at_once = 2 * alone["loop_s"], max(each["loop_s"] for each in both)
        return {
            "steps": options.steps,
            "alone_ms": 1e3 * alone["loop_s"] / options.steps,
            "at_once_ms": 1e3 * at_once / options.steps,
            "times_as_fast": one_after_the_other / at_once,
            "alone_first_step_s": alone["first_step_s"],
            "shared_first_step_s": max(each["first_step_s"] for each in both),
            "alone_cores": alone["processor_s"] / alone["loop_s"],
            "at_once_cores": sum(each["processor_s"] / each["loop_s"] for each in both),
            "code_bytes": code.stat().st_size if code.exists() else 0,
            "peak_gib": alone["peak_gib"],
        }


def run_children(gpus: Sequence[str], folder: Path, options: argparse.Namespace, *arguments: str) -> list[Found]:
    """One process per GPU, each with compile caches of its own; their loops begin together."""
    command = [sys.executable, "-m", "benchmarks.two_gpus", "--child", "--steps", str(options.steps), *arguments]
    processes = []
    for gpu in gpus:
        caches = tempfile.mkdtemp(dir=folder)
        environment = os.environ | {
            "CUDA_VISIBLE_DEVICES": gpu,
            "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor",
            "TRITON_CACHE_DIR": f"{caches}/triton",
        }
        processes.append(
            subprocess.Popen(
                [*command, *(["--smoke"] if options.smoke else [])],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        while (line := process.stdout.readline()) and line.strip() != "ready":  # type: ignore[union-attr]
            pass
    found = []
    for process in processes:
        process.stdin.write("go\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    for process in processes:
        out, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"a full-size process ended with exit code {process.returncode}")
        found.append(json.loads(out.splitlines()[-1]))
    return found


def be_child(options: argparse.Namespace) -> None:
    """A process of `run_children`: one asset with random weights."""
    begun = time.monotonic()
    import torch

    from benchmarks.step.random_prior import random_pipeline
    from segdream_cli.accel.compiled_code import export_code, load_code
    from segdream_cli.util.memory import peak_memory_gib

    device = torch.device("cpu" if options.smoke else "cuda")
    if options.code_in:
        load_code(options.code_in.read_bytes())
    pipeline = random_pipeline({}, device, small=options.smoke)
    steps = pipeline.run([pipeline.prepare("a yellow school bus", 0)])
    next(steps)
    settle(device)
    first = time.monotonic() - begun
    for _ in range(1 if options.smoke else WARM_UP):
        next(steps)
    settle(device)
    if options.code_out and (code := export_code()) is not None:
        options.code_out.write_bytes(code)
    print("ready", flush=True)
    sys.stdin.readline()
    begun, processor = time.monotonic(), time.process_time()
    for _ in range(options.steps):
        next(steps)
    settle(device)
    found = {
        "first_step_s": first,
        "loop_s": time.monotonic() - begun,
        "processor_s": time.process_time() - processor,
        "peak_gib": peak_memory_gib(device),
    }
    print(json.dumps(found))


def settle(device: Any) -> None:
    """Waits until the device has done its work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def warm_up(options: argparse.Namespace) -> None:
    """Fills the caches of bytecode and kernels, with two steps of one asset."""
    with opened("one", 1, smoke=options.smoke) as work:
        work.watch()
        work.result()


def show(found: Found) -> None:
    """Prints the tables."""
    lists = {name: row for name, row in found.items() if "wall_s" in row}
    if lists:
        print("\n| list | assets | wall s | first step s | second worker s | s per asset after it | cores | lost |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, row in lists.items():
        second = "" if row["second_s"] is None else f"{row['second_s']:.1f}"
        cells = f"{row['wall_s']:.1f} | {row['first_s']:.1f} | {second} | {row['each_s']:.3f} | {row['cores']:.1f}"
        print(f"| {name} | {row['assets']} | {cells} | {row.get('lost', '')} |")
    if full := found.get("full-size"):
        print("\n| full size | |\n| --- | --- |")
        for key, value in full.items():
            print(f"| {key} | {value:.4g} |")


def keep(path: Path) -> None:
    """Records the figures of a file that a run with --out has written."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, row in content["found"].items():
        for key, unit in (FULL_SIZE if name == "full-size" else FIGURES).items():
            if row[key] is not None:
                record(f"two_gpus_{name.replace(' ', '_').replace('-', '_')}_{key}", row[key], unit, content["source"])


def main() -> None:
    """Measures the pieces, and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PIECES, default=list(PIECES), help="the pieces to measure")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--count", type=int, default=144, help="prompts of a list")
    parser.add_argument("--killed-count", type=int, default=48, help="prompts of a list of which a worker is killed")
    parser.add_argument("--kill-step", type=int, default=60, help="step of the first batch at which it is killed")
    parser.add_argument("--steps", type=int, default=300, help="steps of a full-size asset")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="begin no piece that would end later")
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep the figures of a file in results.json")
    parser.add_argument("--smoke", action="store_true", help="tiny assets on a CPU, without keeping figures")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--code-in", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--code-out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.record:
        keep(options.record)
    elif options.child:
        be_child(options)
    else:
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Measures the pieces, and keeps what is known after each."""
    begun, found, source = time.monotonic(), {}, provenance("cpu" if options.smoke else "cuda:0")
    if options.smoke:
        options.count, options.killed_count, options.steps = 3, 3, 2
    backends = [backend for backend in BACKENDS if backend != "ray" or find_spec("ray")]
    if "ray" not in backends:
        print("not measured: --ray, since Ray is not installed", flush=True)

    def add(name: str, row: Found, assets: int = 0) -> None:
        found[name] = {"assets": assets, **row} if assets else row
        print(name, json.dumps(found[name]), flush=True)
        if options.out:
            options.out.write_text(json.dumps({"source": source, "found": found}, indent=1), encoding="utf-8")

    if set(options.only) & {*BACKENDS, "kill"}:
        warm_up(options)
    for piece in options.only:
        if time.monotonic() - begun + PIECES[piece] > options.limit_s and not options.smoke:
            print(f"not measured: {piece}, which would end after {options.limit_s:.0f} s", flush=True)
        elif piece == "full-size":
            add(piece, measure_full_size(options))
        elif piece == "kill":
            for backend in backends:
                add(f"{backend} killed", measure_kill(backend, options), options.killed_count)
        elif piece in backends:
            add(piece, measure_list(piece, options), options.count)
    show(found)


if __name__ == "__main__":
    main()
