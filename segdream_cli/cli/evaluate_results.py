"""The results of `segdream evaluate`: tables on the terminal, JSON, CSV, reports and the page for votes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdream_cli.cli.output import Output
from segdream_cli.cli.schema import Compared, Counted, Measured, Reported, Summary
from segdream_cli.util.text import printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from segdream_cli.evaluate.blind import Votes
    from segdream_cli.evaluate.comparison import Difference, Pair
    from segdream_cli.evaluate.evaluation import Evaluation
    from segdream_cli.evaluate.statistics import Estimate
    from segdream_cli.evaluate.tables import Table


@dataclass(frozen=True, slots=True)
class Files:
    """The files to write; None for those that were not asked for."""

    csv: Path | None = None
    html: Path | None = None
    blind: Path | None = None

    @property
    def given(self) -> dict[str, Path]:
        """Option -> path."""
        named = {"--csv": self.csv, "--html": self.html, "--blind": self.blind}
        return {option: path for option, path in named.items() if path is not None}


def show_evaluation(evaluation: "Evaluation", seed: int, files: Files, sink: Output) -> None:
    """Prints the results of one set of assets, and writes the files."""
    from segdream_cli.evaluate import report, tables

    estimates, over_all = evaluation.estimates(seed), evaluation.summarize()
    means = tables.mean_table(evaluation, estimates, over_all)
    if files.csv:
        tables.write_csv(files.csv, {"": evaluation})
    if files.html:
        each = tables.asset_table(evaluation, every=True)
        report.write_report(files.html, evaluation, {"Means": means, "Assets": each})
    _print_rows(evaluation, sink)
    _note_missing([evaluation], sink)
    summary = Summary(
        assets=len(evaluation.rows),
        means={name: _estimate(one) for name, one in estimates.items()},
        over_all=over_all,
        **_about(evaluation, seed),
    )
    sink.tables(summary, [_rich(tables.asset_table(evaluation, every=False)), _rich(means)])
    _print_files(files, sink)


def show_comparison(
    sides: "Mapping[str, Evaluation]", pairs: "Sequence[Pair]", seed: int, files: Files, sink: Output
) -> None:
    """Prints the differences of two sets of assets, and writes the files.

    Args:
        sides: title of A and of B -> evaluation.
        pairs: their entries, paired.
        seed: of the intervals, the tests, and the trials of the page for votes.
        files: the files to write.
        sink: the output.
    """
    from segdream_cli.evaluate import blind, comparison, report, tables

    a, b = sides.values()
    differences = comparison.compare(a, b, pairs, seed)
    table = tables.difference_table(comparison.all_figures(a), differences)
    if files.csv:
        tables.write_csv(files.csv, sides)
    if files.html:
        report.write_comparison(files.html, sides, pairs, {"Differences": table})
    if files.blind:
        blind.write_blind_page(files.blind, a, b, blind.shuffle(pairs, seed), seed)
    for side, evaluation in zip("AB", sides.values(), strict=True):
        _print_rows(evaluation, sink, side=side)
    _note_missing([a, b], sink)
    compared = Compared(
        prompts=len(pairs),
        differences={name: _difference(one) for name, one in differences.items()},
        **_about(a, seed),
    )
    sink.tables(compared, [_rich(table)])
    _print_files(files, sink)


def show_votes(votes: "Votes", sink: Output) -> None:
    """Prints the preference of people for B."""
    from segdream_cli.evaluate.tables import Table, interval, number

    one = votes.estimate
    cells = [number(one.mean, 3), interval(one, 3), number(votes.p_value, 4), str(one.n), str(votes.votes)]
    table = Table(["share of votes for B", "95 % interval", "p", "prompts", "votes"], [cells], texts=0)
    counted = Counted(votes=votes.votes, preference={**_estimate(one), "p_value": votes.p_value})
    sink.tables(counted, [_rich(table)])


def _rich(table: "Table") -> "RichTable":
    """A table for the terminal."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD)
    for i, title in enumerate(table.head):
        shown.add_column(Text(printable(title)), overflow="fold", justify="left" if i < table.texts else "right")
    for row in table.rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))  # a `Text` has no markup
    return shown


def _print_rows(evaluation: "Evaluation", sink: Output, side: str | None = None) -> None:
    """Prints an object per asset, with JSON only."""
    if sink.json:
        for row in evaluation.rows:
            entry = row.entry
            line = Measured(asset=entry.path, name=entry.name, prompt=entry.prompt, side=side, values=row.values)
            sink.result(line)


def _note_missing(evaluations: "Sequence[Evaluation]", sink: Output) -> None:
    """Names the metrics without any value, which the tables leave out."""
    from segdream_cli.evaluate.metrics import METRICS

    rows = [row for evaluation in evaluations for row in evaluation.rows]
    for name, metric in evaluations[0].metrics.items():
        keys = [f"{name}.{key}" for key in metric.figures]
        if keys and not any(math.isfinite(row.scalar(key)) for row in rows for key in keys):
            sink.note(f"{name} has no values: {METRICS[name].limits}")


def _print_files(files: Files, sink: Output) -> None:
    for option, path in files.given.items():
        sink.done(Reported(output=path, kind=option.removeprefix("--")))


def _estimate(one: "Estimate") -> dict[str, float]:
    return {"mean": one.mean, "low": one.low, "high": one.high, "assets": one.n}


def _difference(one: "Difference") -> dict[str, float]:
    own = one.estimate
    return {
        "mean_a": one.mean_a,
        "mean_b": one.mean_b,
        "difference": own.mean,
        "low": own.low,
        "high": own.high,
        "p_value": one.p_value,
        "p_holm": one.adjusted,
        "prompts": own.n,
    }


def _about(evaluation: "Evaluation", seed: int) -> dict[str, Any]:
    views = evaluation.protocol
    return {"views": views.n, "elevations_deg": list(views.elevations_deg), "size": views.size, "seed": seed}
