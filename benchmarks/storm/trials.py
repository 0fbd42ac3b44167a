"""The trials of a scenario: a fault, then the commands of a user who wants the result, then the judgement."""

import os
import random
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.faults import KILL, Ended, Fault, contents, run_forked
from benchmarks.storm.scenarios import CACHE, HUB, Scenario
from segdream_cli.errors import SegdreamError
from segdream_cli.priors.checkpoint import PRIORS
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.util.files import TEMPORARY

ERRORS = ("EIO", "ENOSPC", "EMFILE")
RANDOM, FLIP = "random kill", "flip"
BAD = ("lost", "stuck", "wrong", "crash")
DATA = Path(PRIORS["mini"]).parent
LARGE = 100_000
"""Bytes from which a file of a template is linked into its trials, unless it is a checkpoint or an asset."""
COMPILE_S = 3600.0
"""Seconds for a command before the trials, which may have kernels to compile."""
SHELL = ("rm", "mv", "mkdir", "sync", "chmod")
"""Commands of hints that are followed, beside those of segdream."""


class Storm:
    """The trials of one scenario.

    Args:
        name: its name.
        scenario: what is done.
        root: a folder for the trials.

    Attributes:
        calls: number of file-system calls of the undisturbed command.
    """

    def __init__(self, name: str, scenario: Scenario, root: Path) -> None:
        self.name, self.scenario, self._root = name, scenario, root
        self._template = root / "template"
        self._make_template()
        self._before = contents(self._template)
        folder = self._copy()
        begin = time.monotonic()
        done = self._run(scenario.command, folder, Fault())
        self._seconds, self.calls = time.monotonic() - begin, len(done.calls)
        if done.code != 0:
            raise RuntimeError(f"{name}: {done.err}")
        self._expected = {name: (folder / name).read_bytes() for name in _files(folder, scenario.outputs)}
        self._flips = _files(self._template, scenario.flips)

    def _make_template(self) -> None:
        self._template.mkdir(parents=True)
        for name, text in self.scenario.texts:
            (self._template / name).write_text(text, encoding="utf-8")
        for name in self.scenario.copies:
            copy = shutil.copytree if (DATA / name).is_dir() else shutil.copy
            copy(DATA / name, self._template / name)
        for arguments, fault in self.scenario.before:
            done = run_forked(self.scenario.execute, arguments, self._template, fault, limit_s=COMPILE_S)
            if fault is None and done.code != 0:
                raise RuntimeError(f"{self.name}: {done.err}")

    def plan(self, kills: int, flips: int, most: int) -> list[str]:
        """The names of the trials, in an order that mixes the kinds.

        Args:
            kills: how many processes are killed at random moments.
            flips: how many bits are flipped.
            most: how many calls are hit by each action.
        """
        names = [f"{FLIP} {i}" for i in range(flips)] if self._flips else []
        if self.scenario.fails:
            names += [f"{RANDOM} {i}" for i in range(kills)]
            names += [f"{action} {call}" for action in (KILL, *ERRORS) for call in _spread(self.calls, most)]
        random.Random(self.name).shuffle(names)
        return names

    def run(self, trial: str) -> list[str]:
        """Runs a trial, and returns what went wrong."""
        kind, _, number = trial.rpartition(" ")
        draws = random.Random(f"{self.name} {trial}")
        folder = self._copy()
        if kind == FLIP:
            return self._flip(folder, draws)
        if kind == RANDOM:
            done = run_forked(
                self.scenario.execute, self.scenario.command, folder, kill_after_s=draws.uniform(0, self._seconds)
            )
        else:
            done = self._run(self.scenario.command, folder, Fault(kind, int(number)))
        return self._wrong(folder, done) + self._lost(folder) + self._stuck(folder)

    def _flip(self, folder: Path, draws: random.Random) -> list[str]:
        """A trial in which a bit of a file is wrong."""
        name = draws.choice(self._flips)
        original = (folder / name).read_bytes()
        damaged = bytearray(original)
        place = draws.randrange(8 * len(damaged))
        damaged[place // 8] ^= 1 << place % 8
        (folder / name).unlink()  # it may be a link to the template's
        (folder / name).write_bytes(damaged)
        done = self._run(self.scenario.command, folder)
        problems = self._wrong(folder, done)
        if self.scenario.refuses and done.code == 0:
            problems.append("wrong: the damage was not noticed")
        if "pip install --force-reinstall" in done.err:
            (folder / name).write_bytes(original)
        return [f"{problem} (bit {place} of {name})" for problem in problems + self._stuck(folder)]

    def _copy(self) -> Path:
        folder = self._root / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._template, folder, symlinks=True, copy_function=_link_large)
        return folder

    def _run(self, arguments: Sequence[str], folder: Path, fault: Fault | None = None) -> Ended:
        return run_forked(self.scenario.execute, arguments, folder, fault)

    def _wrong(self, folder: Path, done: Ended) -> list[str]:
        """Crashes, hangs, and success with another result."""
        problems = []
        if done.hung:
            problems.append("stuck: the process or a child of it did not end")
        if "Traceback" in done.err or done.code == 99 or (done.code < 0 and done.code != -9):
            problems.append(f"crash: ended with {done.code}: {_tail(done.err)}")
        if done.code == 0 and not self._is_made(folder):
            problems.append("wrong: exit 0 with another result")
        return problems

    def _lost(self, folder: Path) -> list[str]:
        """Files that are neither as before nor as they should become."""
        problems = []
        for name, content in self._before.items():
            path = folder / name
            if Path(name).parts[0] in (CACHE, HUB) or ".run" in name or TEMPORARY.fullmatch(path.name):
                continue
            if not path.is_file() or path.read_bytes() not in (content, self._expected.get(name)):
                problems.append(f"lost: {name}")
        for name in self._expected:
            if (folder / name).exists() and name not in self._before and not self._is_whole(folder, name):
                problems.append(f"lost: {name} is half written")
        run = self.scenario.run
        if run and not self._is_whole(folder, self.scenario.outputs[0]) and _step(folder / run) < 1:
            problems.append(f"lost: the checkpoint of {run}")
        return problems

    def _stuck(self, folder: Path) -> list[str]:
        """Whether no command leads to the result, and what stays behind when it is there."""
        problems = []
        last = self._recover(folder)
        if last is not None and ("Traceback" in last.err or last.code < 0):
            problems.append(f"crash: the command after it ended with {last.code}: {_tail(last.err)}")
        if missing := [name for name in self._expected if not self._is_whole(folder, name)]:
            problems.append(f"stuck: {missing} not made: {_tail(last.err) if last else ''}")
        if left := self._left(folder):
            problems.append(f"stuck: left {left}")
        return problems

    def _is_whole(self, folder: Path, name: str) -> bool:
        path = folder / name
        return path.is_file() and path.read_bytes() == self._expected[name]

    def _is_made(self, folder: Path) -> bool:
        return all(self._is_whole(folder, name) for name in self._expected)

    def _left(self, folder: Path) -> list[str]:
        """Temporary files outside of runs that a hint moved away, and what the scenario does not keep."""
        temporary = [path for path in folder.rglob("*") if TEMPORARY.fullmatch(path.name)]
        temporary = [path for path in temporary if not path.parent.name.endswith("-2.run")]
        passing = [path for pattern in self.scenario.passing for path in folder.glob(pattern)]
        return [str(path.relative_to(folder)) for path in temporary + passing]

    def _recover(self, folder: Path) -> Ended | None:
        """Repeats the command, follows hints, and forces or starts again at last; the last command.

        It also runs once more if something was left although the result is there, as it would be for the next asset.
        """
        command, done = list(self.scenario.command), None
        attempts = [command, command]
        if command[0] != "fetch" and "--resume" not in command:
            attempts.append([*command, *([] if "--force" in command else ["--force"])])
        if self.scenario.again is not None:
            attempts.append(list(self.scenario.again))
        for attempt in attempts:
            if self._is_made(folder) and not self._left(folder):
                break
            done = self._run(attempt, folder)
            hint = next((line for line in reversed(done.err.splitlines()) if "hint:" in line), "").partition("hint:")[2]
            for words in _commands(hint) if done.code else []:
                if words[0] == "segdream":
                    done = self._run(words[1:], folder)
                elif words[0] in SHELL:
                    subprocess.run(words, cwd=folder, check=False, capture_output=True)
        return done


def _commands(hint: str) -> list[list[str]]:
    """The words of each command of a hint, which may be several with && between them."""
    parts: list[list[str]] = [[]]
    for word in shlex.split(hint, comments=True):
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


def _files(folder: Path, patterns: Iterable[str]) -> list[str]:
    """The files that patterns name, relative to the folder."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(str(path.relative_to(folder)) for path in found)


def _link_large(source: str, target: str) -> None:
    """Copies a file; links a large one that segdream only replaces."""
    if Path(source).stat().st_size >= LARGE and Path(source).suffix in (".safetensors", ".nbc", ""):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def _step(run: Path) -> int:
    """The step of a run's checkpoint; 0 if it can't be read."""
    try:
        return RunDir(run).step()
    except SegdreamError:
        return 0


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 1 to `count`, evenly spread."""
    if count <= most:
        return list(range(1, count + 1))
    return sorted({round(1 + i * (count - 1) / max(most - 1, 1)) for i in range(most)})


def _tail(text: str) -> str:
    """The last frames of a traceback, or the last lines of a message, on one line."""
    return " / ".join(line.strip() for line in text.strip().splitlines()[-6:])[-600:]
