"""A long list of tiny assets on a Ray cluster of this machine, whose workers, machines and driver are killed at random.

    nice -n 19 python -m benchmarks.soak                         # 500 assets, a kill every 20 s
    python -m benchmarks.soak --assets 20 --kill-every 10        # a short one

The cluster has machines of one CPU each, and a prior in closed form (`tests/fakes.py`). Each kill hits a worker, a
machine, which another one replaces, or the driver, which is started again. At the end each asset must exist, have been
written once, have been reported at most once as made, and the first ones must have the bits that one process makes.
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
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "cli")]
import cluster_workers  # noqa: E402

VICTIMS = {"worker": 6, "machine": 3, "driver": 1}
"""What a kill hits -> how often, relatively."""
COMPARED = 20
"""Assets that one process makes too."""
SMALL = (
    "--prior", "mini", "--init", "sphere", "--no-refine", "--steps", "12", "--set", "init.count=40",
    "--set", "densify.cap=60", "--set", "camera.batch=2", "--set", "output.checkpoint_every=2",
)  # fmt: skip


class Soak:
    """The cluster, the list and its driver.

    Args:
        options: of the command line.
        folder: for all files.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder, self.faults = options, folder, folder / "faults"
        self.faults.mkdir()
        lines = (ROOT / "training" / "heldout.txt").read_text(encoding="utf-8").splitlines()
        self.prompts = [line for line in lines if line and line[0] != "#"][: options.assets]
        (folder / "list.txt").write_text("\n".join(self.prompts), encoding="utf-8")
        self.environment = os.environ | cluster_workers.settings(self.faults) | {"OMP_NUM_THREADS": "1"}
        os.environ.update(self.environment)  # the machines inherit it
        self.random = random.Random(options.seed)
        self.kills: Counter[str] = Counter()
        self.memory: list[float] = []
        """MiB of the driver, once per second, without its first half minute."""
        self.drivers, self.stopped = 0, False
        self.cluster = cluster_workers.start_head()
        self.machines: list[Any] = []
        for _ in range(options.machines):
            self.add_machine()

    def add_machine(self) -> None:
        """A machine joins."""
        self.machines.append(cluster_workers.add_machine(self.cluster))

    def start_driver(self) -> None:
        """Starts the command."""
        self.drivers += 1
        command = [
            "generate", "--prompts", "list.txt", "--out-dir", "assets", *SMALL, "--json",
            "--ray", self.cluster.address, "--gpus-per-worker", "0",
        ]  # fmt: skip
        with (
            (self.folder / f"out-{self.drivers}.txt").open("w") as out,
            (self.folder / f"err-{self.drivers}.txt").open("w") as err,
        ):
            self.driver = subprocess.Popen(
                [sys.executable, "-c", cluster_workers.DRIVER, *command],
                cwd=self.folder, env=self.environment, stdout=out, stderr=err,
            )  # fmt: skip
        self.driver_begun = time.monotonic()

    def kill(self) -> None:
        """Kills something."""
        (victim,) = self.random.choices(list(VICTIMS), weights=list(VICTIMS.values()))
        if victim == "driver":
            self.driver.kill()
            self.driver.wait()
            self.start_driver()
        elif victim == "machine":
            machine = self.machines.pop(self.random.randrange(len(self.machines)))
            self.cluster.remove_node(machine, allow_graceful=False)
            self.add_machine()
        else:
            alive = self.workers()
            if not alive:
                return
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(alive), signal.SIGKILL)
        self.kills[victim] += 1

    def workers(self) -> list[int]:
        """Processes that were started as workers and still are; their numbers may have been given to others."""
        found = []
        for path in self.faults.glob("worker-*"):
            pid = int(path.name.partition("-")[2])
            with suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::TestActor"):
                    found.append(pid)
        return sorted(found)

    def run(self) -> float:
        """Makes the list, or as much of it as the time allows; returns the seconds that it took.

        Raises:
            SystemExit: the driver failed.
        """
        begun = time.monotonic()
        next_kill = begun + self.options.kill_every
        self.start_driver()
        while self.driver.poll() is None:
            time.sleep(1.0)
            now = time.monotonic()
            if now - begun > self.options.limit_s and not self.stopped:
                self.stopped = True
                self.driver.terminate()  # it saves its assets
                next_kill = math.inf
            if now - self.driver_begun > 30:
                with suppress(OSError):
                    pages = int(Path(f"/proc/{self.driver.pid}/statm").read_text().split()[1])
                    self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
            if now > next_kill:
                self.kill()
                next_kill = now + self.options.kill_every
                print(f"{now - begun:.0f} s: {len(self.made())} assets, kills: {dict(self.kills)}", flush=True)
        if self.driver.returncode and not self.stopped:
            raise SystemExit((self.folder / f"err-{self.drivers}.txt").read_text()[-3000:])
        return time.monotonic() - begun

    def made(self) -> list[Path]:
        """The assets that exist."""
        return sorted((self.folder / "assets").glob("[!.]*.ply"))

    def check(self) -> dict[str, int]:
        """Checks all assets; returns the counts of the drivers' summaries.

        Raises:
            SystemExit: one is missing, was made twice, or has other bits.
        """
        lines = [
            json.loads(line)
            for path in self.folder.glob("out-*.txt")
            for line in path.read_text().splitlines()
            if line.endswith("}")
        ]
        done = Counter(line["output"] for line in lines if line["event"] == "done")
        written = Counter((self.faults / "written").read_text().splitlines())
        partial = [path.name for path in (self.folder / "assets").glob(".*")]
        wrong = {
            "missing": 0 if self.stopped else len(self.prompts) - len(self.made()),
            "reported twice": sum(count > 1 for count in done.values()),
            "written twice": sum(count > 1 for count in written.values()),
            "partial files": len(partial),
            "other bits": self.differing(),
        }
        if any(wrong.values()):
            raise SystemExit(f"wrong: {wrong}")
        ends = [line for line in lines if line["event"] == "list"]
        return {key: sum(end[key] for end in ends) for key in ("made", "skipped", "failed", "lost", "retried", "moved")}

    def differing(self) -> int:
        """Number of the first assets whose bits differ from those that one process makes."""
        names = self.prompts[:COMPARED]
        (self.folder / "some.txt").write_text("\n".join(names), encoding="utf-8")
        command = ["generate", "--prompts", "some.txt", "--out-dir", "alone", *SMALL, "--device", "cpu", "--quiet"]
        subprocess.run(
            [sys.executable, "-c", cluster_workers.ALONE, *command], cwd=self.folder, env=self.environment, check=True
        )
        alone = list((self.folder / "alone").glob("*.ply"))
        made = [self.folder / "assets" / path.name for path in alone]
        pairs = [(one, other) for one, other in zip(alone, made, strict=True) if other.exists() or not self.stopped]
        return sum(one.read_bytes() != other.read_bytes() for one, other in pairs)


def main() -> None:
    """Makes the list, and prints what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=int, default=500)
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--kill-every", type=float, default=20.0, help="seconds")
    parser.add_argument("--limit-s", type=float, default=7200.0)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    soak = Soak(options, folder)
    try:
        seconds = soak.run()
        counts = soak.check()
    finally:
        soak.cluster.shutdown()
    third = max(1, len(soak.memory) // 3)
    early, late = max(soak.memory[:third], default=0.0), max(soak.memory[-third:], default=0.0)
    print(f"\n{len(soak.made())} of {options.assets} assets in {seconds:.0f} s, nothing wrong")
    print(f"kills: {dict(soak.kills)}; summaries of {soak.drivers} drivers: {counts}")
    print(f"driver: at most {early:.0f} MiB in the first third of the time, {late:.0f} MiB in the last")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
