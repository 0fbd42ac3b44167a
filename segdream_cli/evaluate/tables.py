"""The tables of an evaluation and a comparison, as texts for a terminal, a page or a CSV file."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segdream_cli.evaluate.comparison import Difference
from segdream_cli.evaluate.evaluation import Evaluation
from segdream_cli.evaluate.metrics import Figure
from segdream_cli.evaluate.statistics import Estimate
from segdream_cli.util.files import atomic_write

MISSING = "-"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of a table; the first `texts` columns are text and the others are numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int


def number(value: float, digits: int) -> str:
    """A value; a dash where there is none."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else MISSING


def interval(estimate: Estimate, digits: int) -> str:
    """The ends of an interval; a dash where there is none."""
    if not math.isfinite(estimate.low):
        return MISSING
    return f"{number(estimate.low, digits)} to {number(estimate.high, digits)}"


def heading(name: str, figure: Figure) -> str:
    """The title of "metric.figure", with the direction of better values."""
    arrow = {"higher": " (higher is better)", "lower": " (lower is better)", "neither": ""}[figure.better]
    return f"{name.partition('.')[0]}: {figure.title}{arrow}"


def asset_table(evaluation: Evaluation, *, every: bool) -> Table:
    """A row per asset, with the figures that at least one asset has: all of them, or the main ones."""
    shown = {
        name: figure
        for name, figure in evaluation.figures.items()
        if (every or figure.main) and any(math.isfinite(row.scalar(name)) for row in evaluation.rows)
    }
    rows = [
        [
            row.entry.name,
            row.entry.prompt or MISSING,
            *(number(row.scalar(name), figure.digits) for name, figure in shown.items()),
        ]
        for row in evaluation.rows
    ]
    return Table(["asset", "prompt", *(figure.title for figure in shown.values())], rows, texts=2)


def mean_table(evaluation: Evaluation, estimates: Mapping[str, Estimate], over_all: Mapping[str, float]) -> Table:
    """A row per figure: its mean over the assets, the interval, and the number of assets that have it."""
    rows = []
    for name, figure in evaluation.figures.items():
        one = estimates[name]
        if one.n:
            texts = number(one.mean, figure.digits), interval(one, figure.digits), str(one.n)
            rows.append([heading(name, figure), *texts])
    for name, figure in evaluation.set_figures.items():
        if name in over_all:
            value = number(over_all[name], figure.digits)
            rows.append([heading(name, figure), value, MISSING, str(len(evaluation.rows))])
    return Table(["figure", "mean", "95 % interval", "assets"], rows, texts=1)


def difference_table(figures: Mapping[str, Figure], differences: Mapping[str, Difference]) -> Table:
    """A row per figure: the means of A and B, their difference, its interval and its corrected p-value."""
    rows = []
    for name, one in differences.items():
        digits = figures[name].digits
        estimate = one.estimate
        values = [number(value, digits) for value in (one.mean_a, one.mean_b, estimate.mean)]
        rows.append(
            [
                heading(name, figures[name]),
                *values,
                interval(estimate, digits),
                number(one.p_value, 4),
                number(one.adjusted, 4),
                str(estimate.n) if estimate.n else MISSING,
            ]
        )
    values = ["A", "B", "B - A", "95 % interval", "p-value", "p-value, corrected (Holm)", "prompts"]
    return Table(["figure", *values], rows, texts=1)


def write_csv(path: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Writes a CSV file with a row per asset, and a column per figure whose name is that of the JSON output.

    Args:
        path: the file, replaced as a whole.
        evaluations: side -> evaluation; a column `side` names it if there are several.

    Raises:
        SegdreamError: the disk is full.
        UsageProblem: the folder can't be written.
    """
    stream = io.StringIO()
    writer = csv.writer(stream)
    figures = next(iter(evaluations.values())).figures
    sides = ["side"] if len(evaluations) > 1 else []
    writer.writerow([*sides, "name", "file", "prompt", *figures])
    for side, evaluation in evaluations.items():
        for row in evaluation.rows:
            values = [row.scalar(name) for name in figures]
            cells = [repr(value) if math.isfinite(value) else "" for value in values]
            about = [row.entry.name, str(row.entry.path), row.entry.prompt or ""]
            writer.writerow([*([side] if sides else []), *about, *cells])
    with atomic_write(path) as temporary:
        temporary.write_bytes(stream.getvalue().encode("utf-8", "surrogateescape"))
