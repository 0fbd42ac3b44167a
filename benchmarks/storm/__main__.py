"""Kills, failing file-system calls and flipped bits over segdream's commands.

    TMPDIR=/dev/shm python -m benchmarks.storm --json storm.json --minutes 10    # again and again, adds up
    python -m benchmarks.storm --json storm.json --minutes 0 --record
    python -m benchmarks.storm --smoke

Each trial runs a command in a forked process and kills it, lets one of its file-system calls fail, or damages a file
first. Then it does what a user would do: repeat the command, follow the hint, and at last add --force. The networks are
a prior in closed form (`tests/fakes.py`) or a tiny one, the assets have 40 Gaussians and two steps, and servers on the
loopback interface stand for the Hub. A trial fails if

    lost    a file of before is neither as it was nor what the command was to write, or a checkpoint is gone
    stuck   no command leads to the result, a temporary file stays behind, or a process does not end
    wrong   the command ends with 0 and the result has other bits than without the fault
    crash   there is a traceback, or a signal that nobody sent

Python's calls are wrapped, so those of ffmpeg and safetensors are hit by random kills only.

The file of --json keeps the outcome of every trial. A repeated command runs those that failed again, which tells
whether a fix holds, and then those that are missing.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", SEGDREAM_NO_PROGRESS="1", COLUMNS="300")

from benchmarks.faults import KILL, adopt_orphans
from benchmarks.record import STORMS, metric_name, record
from benchmarks.storm.scenarios import SCENARIOS, stand_ins
from benchmarks.storm.trials import BAD, ERRORS, FLIP, RANDOM, Storm
from segdream_cli.util.files import atomic_write

KINDS: Mapping[str, tuple[str, ...]] = {"kills": (KILL,), "random": (RANDOM,), "errors": ERRORS, "flips": (FLIP,)}
"""Columns of the recorded table -> kinds of trials."""
CHUNK = 40
"""Trials of a scenario before the next one has its turn, so that a run that is cut short has tried all."""


class State:
    """The outcomes of all trials: scenario -> trial -> problems; and every failure that was ever found.

    Args:
        path: JSON file to read and to write; None keeps them in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        kept: dict[str, Any] = {}
        if path is not None and path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
        self.trials: dict[str, dict[str, list[str]]] = kept.get("trials", {})
        self.found: dict[str, list[str]] = kept.get("found", {})

    def add(self, scenario: str, trial: str, problems: list[str]) -> None:
        """Adds the outcome of a trial; that of an earlier one stays among the failures found."""
        self.trials.setdefault(scenario, {})[trial] = problems
        if problems:
            self.found.setdefault(f"{scenario}: {trial}", problems)
            sys.stderr.write(f"{scenario}: {trial}: {problems}\n")

    def save(self) -> None:
        """Writes the file."""
        if self._path is not None:
            with atomic_write(self._path) as temporary:
                temporary.write_text(json.dumps({"trials": self.trials, "found": self.found}, indent=1))

    def due(self, scenario: str, planned: list[str]) -> list[str]:
        """The planned trials that failed when they were last run, then those that were not run."""
        known = self.trials.get(scenario, {})
        return [name for name in planned if known.get(name)] + [name for name in planned if name not in known]

    def counts(self, scenario: str) -> dict[str, int]:
        """Number of trials of each column, of those that once failed, and of those that failed when last run."""
        known = self.trials.get(scenario, {})
        kinds = Counter(trial.rpartition(" ")[0] for trial in known)
        row = {column: sum(kinds[kind] for kind in each) for column, each in KINDS.items()}
        found = sum(name.partition(": ")[0] == scenario for name in self.found)
        return row | {"found": found, "failed": sum(map(bool, known.values()))}


def table(state: State) -> str:
    """The outcomes as a Markdown table."""
    columns = (*KINDS, "found", "failed", *BAD)
    lines = ["| scenario | " + " | ".join(columns) + " |", "|" + " --- |" * (1 + len(columns))]
    total: Counter[str] = Counter()
    for scenario in state.trials:
        row: Counter[str] = Counter(state.counts(scenario))
        for problems in state.trials[scenario].values():
            row.update({problem.partition(":")[0] for problem in problems})
        total.update(row)
        lines.append(f"| {scenario} | " + " | ".join(str(row[name]) for name in columns) + " |")
    lines.append("| all | " + " | ".join(str(total[name]) for name in columns) + " |")
    return "\n".join(lines)


def run_trials(state: State, options: argparse.Namespace) -> None:
    """Runs the trials that are due, some of each scenario in turn, until the time is over."""
    end = time.monotonic() + 60 * options.minutes
    size = (2, 2, 2) if options.smoke else (options.kills, options.flips, options.most)
    waiting, storms = list(options.only), {}
    with stand_ins(), ExitStack() as stack:
        while waiting:
            for name in list(waiting):
                if name not in storms:
                    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="storm-"))
                    storms[name] = Storm(name, SCENARIOS[name], Path(folder))
                due = state.due(name, storms[name].plan(*size))
                for trial in due[:CHUNK]:
                    if time.monotonic() > end:
                        return
                    state.add(name, trial, storms[name].run(trial))
                state.save()
                if len(due) <= CHUNK:
                    waiting.remove(name)


def main() -> None:
    """Runs trials, prints the table, and ends with 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=1000, help="calls that each action hits per scenario")
    parser.add_argument("--kills", type=int, default=40, help="random kills per scenario")
    parser.add_argument("--flips", type=int, default=150, help="flipped bits per scenario")
    parser.add_argument("--only", nargs="*", choices=STORMS, default=STORMS, help="scenarios")
    parser.add_argument("--json", type=Path, help="file of the outcomes, to read and to write")
    parser.add_argument("--minutes", type=float, default=1e9, help="time after which no trial begins")
    parser.add_argument("--record", action="store_true", help="keep the figures in results.json")
    parser.add_argument("--smoke", action="store_true", help="two trials of a kind per scenario")
    options = parser.parse_args()
    state = State(options.json)
    if options.minutes > 0:
        adopt_orphans()
        try:
            run_trials(state, options)
        finally:
            state.save()
    sys.stdout.write(table(state) + "\n")
    if options.record:
        rows = {scenario: Counter(state.counts(scenario)) for scenario in state.trials}
        for scenario, row in {**rows, "all": sum(rows.values(), Counter())}.items():
            for name in (*KINDS, "found", "failed"):
                record(f"storm_{metric_name(scenario)}_{name}", row[name], "1", "cpu")
    sys.exit(any(any(trials.values()) for trials in state.trials.values()))


if __name__ == "__main__":
    main()
