"""Kills, failing file-system calls and flipped bits over segdream's commands.

    python -m benchmarks.storm --json storm.json
    python -m benchmarks.storm --smoke

Each trial runs a command in a forked process and kills it, lets one of its file-system calls fail, or damages a file
first. Then it does what a user would do: repeat the command, follow the hint, and at last add --force. The networks are
a prior in closed form (`tests/fakes.py`), the assets have 40 Gaussians and two steps. A trial fails if

    lost    a file of before is neither as it was nor what the command was to write, or a checkpoint is gone
    stuck   no command leads to the asset, or a temporary file stays behind
    wrong   the command ends with 0 and the asset has other bits than without the fault
    crash   there is a traceback, or a signal that nobody sent

Python's calls are wrapped, so those of ffmpeg and safetensors are hit by random kills only.
"""

import argparse
import io
import json
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", SEGDREAM_NO_PROGRESS="1", COLUMNS="300")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from commands import BUS, TINY  # noqa: E402
from fakes import AnalyticPrior  # noqa: E402

import segdream_cli.render.job  # noqa: E402, F401 - the children get these imports for nothing
from benchmarks.faults import KILL, Ended, Fault, contents, run_forked  # noqa: E402
from segdream_cli import cli  # noqa: E402
from segdream_cli.priors import checkpoint as weights  # noqa: E402
from segdream_cli.priors.checkpoint import Checkpoint  # noqa: E402
from segdream_cli.priors.stable_diffusion import DiffusionPrior  # noqa: E402
from segdream_cli.runs.run_dir import RunDir  # noqa: E402
from segdream_cli.util.files import TEMPORARY  # noqa: E402

SETTINGS = (*TINY, "--steps", "2", "--set", "output.checkpoint_every=1", "--set", "prior.engine=torch")
ERRORS = ("EIO", "ENOSPC", "EMFILE")
BAD = ("lost", "stuck", "wrong", "crash")
STOPPED = Fault(KILL, 2, r"^replace .*\.checkpoint")
"""Kills a run before its second checkpoint gets its name."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A command and what stands before it.

    Args:
        command: its arguments.
        outputs: the files that it writes.
        before: commands that are run first, each with a fault.
        texts: name -> content of files that are written first.
        run: the run folder that must keep a checkpoint until the first output is whole; None if there is none.
    """

    command: Sequence[str]
    outputs: Sequence[str]
    before: Sequence[tuple[Sequence[str], Fault | None]] = ()
    texts: tuple[tuple[str, str], ...] = ()
    run: str | None = None


def _generate(*arguments: str) -> tuple[str, ...]:
    return ("generate", *arguments, *SETTINGS)


_LIST = (("list.txt", "a red ball\na blue ball\n"),)
_LISTED = _generate("--prompts", "list.txt", "--out-dir", "out")
_ASSETS = ("out/a_red_ball.ply", "out/a_blue_ball.ply")
_BALL = (("init", BUS, *TINY[:-3], "-o", "ball.ply"), None)
SCENARIOS = {
    "new run": Scenario(_generate(BUS, "-o", "bus.ply", "--preview-every", "1"), ["bus.ply"]),
    "force": Scenario(
        _generate(BUS, "-o", "bus.ply", "--force"),
        ["bus.ply"],
        [(_generate(BUS, "-o", "bus.ply", "--seed", "1"), None)],
    ),
    "force over a stopped run": Scenario(
        _generate(BUS, "-o", "bus.ply", "--force"),
        ["bus.ply"],
        [(_generate(BUS, "-o", "bus.ply", "--seed", "1"), STOPPED)],
    ),
    "resume": Scenario(
        ("generate", "--resume", "bus.run"),
        ["bus.ply"],
        [(_generate(BUS, "-o", "bus.ply"), STOPPED)],
        run="bus.run",
    ),
    "list": Scenario(_LISTED, _ASSETS, texts=_LIST),
    "batch": Scenario((*_LISTED, "--batch", "2"), _ASSETS, texts=_LIST),
    "export": Scenario(("export", "ball.ply", "-o", "ball.spz", "-o", "ball.html"), ["ball.spz", "ball.html"], [_BALL]),
    "render view": Scenario(
        ("render", "ball.ply", "--view", "45,20", "--size", "32", "-o", "v.png"), ["v.png"], [_BALL]
    ),
    "render frames": Scenario(
        ("render", "ball.ply", "--frames", "--n-frames", "3", "--size", "32", "-o", "turn"),
        [f"turn/frame-{i:04d}.png" for i in range(3)],
        [_BALL],
    ),
    "render gif": Scenario(
        ("render", "ball.ply", "--n-frames", "2", "--size", "16", "-o", "t.gif"), ["t.gif"], [_BALL]
    ),
    "init": Scenario(("init", BUS, *TINY[:-3], "--preview", "-o", "i.ply"), ["i.ply", "i.png"]),
}
FLIPPED = ("bus.run/checkpoint.safetensors", "bus.run/run.json")


def prepare_process() -> None:
    """Puts the prior in closed form in the place of the networks, and finds its files once for all children."""
    DiffusionPrior.load = lambda checkpoint, *_, **__: AnalyticPrior(profile=checkpoint.profile)  # type: ignore
    found: dict[str, Checkpoint] = {}
    real = weights.resolve

    def resolve(config: object, **options: object) -> Checkpoint:
        return found.setdefault("mini", found.get("mini") or real(config, **options))  # type: ignore[arg-type]

    weights.resolve = resolve  # type: ignore[assignment]
    cwd = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):  # compiles the rasteriser
        os.chdir(folder)
        cli.run(_generate(BUS, "-o", "bus.ply"))
        os.chdir(cwd)


@dataclass
class Storm:
    """The trials of one scenario.

    Args:
        name: its name.
        scenario: what is done.
        root: a folder for the trials.
    """

    name: str
    scenario: Scenario
    root: Path
    failures: list[dict[str, object]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Runs the scenario without a fault, to know its result and its calls."""
        self._template = self.root / "template"
        self._template.mkdir(parents=True)
        for name, text in self.scenario.texts:
            (self._template / name).write_text(text, encoding="utf-8")
        for arguments, fault in self.scenario.before:
            run_forked(cli.run, arguments, self._template, fault)
        self._before = contents(self._template)
        folder = self._copy()
        begin = time.monotonic()
        done = run_forked(cli.run, self.scenario.command, folder, Fault())
        self.seconds, self.calls = time.monotonic() - begin, len(done.calls)
        if done.code != 0:
            raise RuntimeError(f"{self.name}: {done.err}")
        self._expected = {name: (folder / name).read_bytes() for name in self.scenario.outputs}

    def _copy(self) -> Path:
        folder = self.root / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._template, folder, symlinks=True)
        return folder

    def fail_call(self, action: str, call: int) -> None:
        """A trial in which one call fails or kills the process."""
        folder = self._copy()
        done = run_forked(cli.run, self.scenario.command, folder, Fault(action, call))
        self._judge(folder, done, action, f"{action} at call {call}")

    def kill_at(self, seconds: float) -> None:
        """A trial that kills the process after some time."""
        folder = self._copy()
        done = run_forked(cli.run, self.scenario.command, folder, kill_after_s=seconds)
        self._judge(folder, done, "random kill", f"kill after {seconds:.4f} s")

    def flip(self, name: str, bit: int) -> None:
        """A trial in which a bit of a file is wrong."""
        folder = self._copy()
        data = bytearray((folder / name).read_bytes())
        bit %= 8 * len(data)
        data[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(data)
        done = run_forked(cli.run, self.scenario.command, folder)
        problems = self._wrong(folder, done)
        self._count(f"bit of {Path(name).name}", f"bit {bit} of {name}", problems, done)

    def _judge(self, folder: Path, done: Ended, kind: str, title: str) -> None:
        problems = self._wrong(folder, done) + self._lost(folder)
        last = self._recover(folder)
        if last is not None and ("Traceback" in last.err or last.code < 0):
            problems.append(f"crash: the command after it ended with {last.code}: {_tail(last.err)}")
        if missing := [name for name in self._expected if not self._is_whole(folder, name)]:
            problems.append(f"stuck: {missing} not made: {_tail(last.err) if last else ''}")
        left = [str(path) for path in folder.rglob("*") if TEMPORARY.fullmatch(path.name)]
        if left:
            problems.append(f"stuck: left {left}")
        self._count(kind, title, problems, done)

    def _wrong(self, folder: Path, done: Ended) -> list[str]:
        """Crashes, and success with another result."""
        problems = []
        if "Traceback" in done.err or done.code == 99 or (done.code < 0 and done.code != -9):
            problems.append(f"crash: ended with {done.code}: {_tail(done.err)}")
        if done.code == 0 and not all(self._is_whole(folder, name) for name in self._expected):
            problems.append("wrong: exit 0 with another result")
        return problems

    def _lost(self, folder: Path) -> list[str]:
        """Files that are neither as before nor as they should become."""
        problems = []
        for name, content in self._before.items():
            path = folder / name
            if any(part.endswith(".run") for part in path.parts) or TEMPORARY.fullmatch(path.name):
                continue
            if not path.is_file() or path.read_bytes() not in (content, self._expected.get(name)):
                problems.append(f"lost: {name}")
        for name in self._expected:
            if (folder / name).exists() and name not in self._before and not self._is_whole(folder, name):
                problems.append(f"lost: {name} is half written")
        run = self.scenario.run
        if run and not self._is_whole(folder, self.scenario.outputs[0]) and RunDir(folder / run).step() < 1:
            problems.append(f"lost: the checkpoint of {run}")
        return problems

    def _is_whole(self, folder: Path, name: str) -> bool:
        path = folder / name
        return path.is_file() and path.read_bytes() == self._expected[name]

    def _recover(self, folder: Path) -> Ended | None:
        """Repeats the command, follows hints that are commands of segdream, and forces at last; the last command."""
        command, done = list(self.scenario.command), None
        for attempt in ([], [], ["--force"]):
            if all(self._is_whole(folder, name) for name in self._expected) and not any(
                TEMPORARY.fullmatch(path.name) for path in folder.rglob("*")
            ):
                break
            done = run_forked(cli.run, [*command, *attempt], folder)
            hints = [line.partition("hint:")[2].strip() for line in done.err.splitlines() if "hint:" in line]
            if done.code and hints and hints[-1].startswith("segdream "):
                done = run_forked(cli.run, shlex.split(hints[-1], comments=True)[1:], folder)
        return done

    def _count(self, kind: str, title: str, problems: Sequence[str], done: Ended) -> None:
        self.counts[f"{kind}: trials"] += 1
        for word in {problem.partition(":")[0] for problem in problems}:
            self.counts[f"{kind}: {word}"] += 1
        for problem in problems:
            self.failures.append({"scenario": self.name, "trial": title, "problem": problem, "code": done.code})


def _tail(text: str) -> str:
    """The last frames of a traceback, or the last lines of a message, on one line."""
    return " / ".join(line.strip() for line in text.strip().splitlines()[-6:])[-600:]


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 1 to `count`, evenly spread."""
    if count <= most:
        return list(range(1, count + 1))
    return sorted({round(1 + i * (count - 1) / max(most - 1, 1)) for i in range(most)})


def run_trials(storm: Storm, most: int, kills: int, flips: int, rng: random.Random) -> None:
    """Runs the trials of a scenario.

    Args:
        storm: the scenario.
        most: how many calls are hit by each action.
        kills: how many processes are killed at random moments.
        flips: how many bits of each file are flipped.
        rng: chooses moments and bits.
    """
    for action in (KILL, *ERRORS):
        for call in spread(storm.calls, most):
            storm.fail_call(action, call)
    for _ in range(kills):
        storm.kill_at(rng.uniform(0, storm.seconds))
    if storm.scenario.run:
        for name in FLIPPED:
            for _ in range(flips):
                storm.flip(name, rng.randrange(2**40))


def table(storms: Sequence[Storm]) -> str:
    """The outcomes as a Markdown table: a row per scenario and kind of fault."""
    lines = ["| scenario | fault | trials | " + " | ".join(BAD) + " |", "|" + " --- |" * (3 + len(BAD))]
    total: Counter[str] = Counter()
    for storm in storms:
        for kind in dict.fromkeys(key.partition(":")[0] for key in storm.counts):
            row = {word: storm.counts[f"{kind}: {word}"] for word in ("trials", *BAD)}
            total.update(row)
            lines.append(f"| {storm.name} | {kind} | " + " | ".join(str(number) for number in row.values()) + " |")
    lines.append("| all | | " + " | ".join(str(total[word]) for word in ("trials", *BAD)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the storm, prints its table, and ends with 1 if a trial failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=1000, help="calls that each action hits per scenario")
    parser.add_argument("--kills", type=int, default=40, help="random kills per scenario")
    parser.add_argument("--flips", type=int, default=250, help="flipped bits per file")
    parser.add_argument("--only", nargs="*", default=list(SCENARIOS), help="names of scenarios")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the outcomes")
    parser.add_argument("--smoke", action="store_true", help="two trials of a kind per scenario")
    options = parser.parse_args()
    prepare_process()
    storms, rng = [], random.Random(options.seed)
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix="storm-") as folder:
            storm = Storm(name, SCENARIOS[name], Path(folder))
            storms.append(storm)
            counts = (2, 2, 2) if options.smoke else (options.most, options.kills, options.flips)
            run_trials(storm, *counts, rng)
        sys.stderr.write(f"{name}: {storm.calls} calls, {len(storm.failures)} failures\n")
    failures = [failure for storm in storms for failure in storm.failures]
    sys.stdout.write(table(storms) + "\n")
    for failure in failures:
        sys.stderr.write(f"{failure}\n")
    if options.json:
        rows = {storm.name: {"calls": storm.calls, **storm.counts} for storm in storms}
        options.json.write_text(json.dumps({"rows": rows, "failures": failures}, indent=1), encoding="utf-8")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
