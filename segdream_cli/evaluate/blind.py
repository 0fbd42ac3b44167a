"""A page on which people compare two sets of assets without knowing which is which, and the count of their votes.

The page holds no names of files or folders. A seed decides the order of the trials and their sides, so the votes that
it saves can only be attributed by someone who has both folders.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segdream_cli.errors import UsageProblem
from segdream_cli.evaluate.assets import Entry
from segdream_cli.evaluate.comparison import Pair
from segdream_cli.evaluate.evaluation import Evaluation
from segdream_cli.evaluate.report import data_file, data_url, digest, document
from segdream_cli.evaluate.statistics import Estimate, estimate, sign_flip_p_value
from segdream_cli.util.download import file_sha256
from segdream_cli.util.files import atomic_write, known_problem, parse_json

VERSION = 1
N_PICTURES = 12
"""Pictures of an asset on the page, around it."""
CHOICES = {"left": 0.0, "same": 0.5, "right": 1.0}
"""Choice -> preference for the right side."""
HINT = "--blind vote.html"
POLICY = (
    "default-src 'none'; style-src '{{style}}'; script-src '{script}'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True, slots=True)
class Trial:
    """One asset beside another of the same prompt."""

    key: str
    a: Entry
    b: Entry
    a_is_left: bool


@dataclass(frozen=True, slots=True)
class Votes:
    """The preference for B over A by people."""

    estimate: Estimate
    """Share of votes for B, over the prompts that have votes; "the same" counts half for each."""
    p_value: float
    """Of the sign-flip test that it is one half."""
    votes: int


def shuffle(pairs: Sequence[Pair], seed: int) -> list[Trial]:
    """The trials in random order: each asset of A beside that of B of the same rank, A equally often on each side."""
    rng = random.Random(seed)
    together = [(pair.key, a, b) for pair in pairs for a, b in zip(pair.a, pair.b, strict=False)]
    rng.shuffle(together)
    sides = [i % 2 == 0 for i in range(len(together))]
    rng.shuffle(sides)
    return [Trial(key, a, b, left) for (key, a, b), left in zip(together, sides, strict=True)]


def write_blind_page(path: Path, a: Evaluation, b: Evaluation, trials: Sequence[Trial], seed: int) -> None:
    """Writes the page.

    Args:
        path: the file, replaced as a whole.
        a: the first evaluation, measured with pictures.
        b: the second one.
        trials: of `shuffle`.
        seed: theirs.

    Raises:
        SegdreamError: the disk is full.
        UsageProblem: the folder can't be written.
    """
    first, second = ({row.entry: row.pictures for row in evaluation.rows} for evaluation in (a, b))
    shown = []
    for trial in trials:
        pictures = [[data_url(picture) for picture in side] for side in (first[trial.a], second[trial.b])]
        left, right = pictures if trial.a_is_left else reversed(pictures)
        shown.append({"prompt": trial.key, "left": left, "right": right})
    data = {"version": VERSION, "seed": seed, "trials_sha256": trials_digest(trials), "trials": shown}
    payload = json.dumps(data).replace("<", "\\u003c")  # no prompt can end the script element
    script = data_file("blind.js")
    parts = [
        data_file("blind.html"),
        f'<script type="application/json" id="data">{payload}</script>',
        f"<script>{script}</script>",
    ]
    content = document("Which is better?", POLICY.format(script=digest(script)), parts)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def trials_digest(trials: Sequence[Trial]) -> str:
    """SHA-256 over the files of the trials, in hexadecimal, so that votes count for the assets that were shown."""
    files = [[trial.key, file_sha256(trial.a.path), file_sha256(trial.b.path)] for trial in trials]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def count_votes(paths: Sequence[Path], pairs: Sequence[Pair], seed: int) -> Votes:
    """The preference for B in files of votes that the page saved.

    Args:
        paths: one file per person.
        pairs: the assets, as the page had them.
        seed: of the interval and the test.

    Raises:
        UsageProblem: a file can't be read, holds no votes, or is about other assets.
    """
    preferences: dict[str, list[float]] = {pair.key: [] for pair in pairs}
    n = len(shuffle(pairs, 0))
    for path in paths:
        saved = _read(path, n)
        trials = shuffle(pairs, saved["seed"])
        if saved["trials_sha256"] != trials_digest(trials):
            raise UsageProblem(f"{path} holds votes on other assets than these, or A and B are swapped")
        for index, choice in saved["votes"].items():
            trial, right = trials[index], CHOICES[choice]
            preferences[trial.key].append(right if trial.a_is_left else 1 - right)
    keys = [key for key, values in preferences.items() if values]
    means = np.array([np.mean(preferences[key]) for key in keys])
    total = sum(len(values) for values in preferences.values())
    return Votes(estimate(means, keys, seed), sign_flip_p_value(means - 0.5, seed), total)


def _read(path: Path, n: int) -> Mapping[str, Any]:
    """The content of a file of votes on at most `n` trials, which are the keys of `votes`."""
    try:
        saved = parse_json(path.read_text(encoding="utf-8"))
        votes = {int(index): choice for index, choice in saved["votes"].items()}
        sound = all(0 <= index < n and choice in CHOICES for index, choice in votes.items())
        if votes and sound and saved["version"] == VERSION and type(saved["seed"]) is int:
            return {"seed": saved["seed"], "trials_sha256": saved["trials_sha256"], "votes": votes}
    except OSError as problem:
        if known := known_problem(problem, path, "read"):
            raise known from problem
        raise UsageProblem(f"{path} can't be read: {problem.strerror}", hint=HINT, without=["--votes"]) from problem
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UsageProblem(f"{path} holds no votes on these assets", hint=HINT, without=["--votes"])
