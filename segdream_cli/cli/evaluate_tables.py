"""The tables and JSON values of `segdream evaluate`."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from segdream_cli.evaluate.evaluation import Evaluation, Row
    from segdream_cli.evaluate.metrics import Figure
    from segdream_cli.evaluate.statistics import Estimate

MISSING = "-"


def number(value: float, digits: int) -> str:
    """A value for a table; a dash where there is none."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else MISSING


def interval(estimate: "Estimate", digits: int) -> str:
    """The ends of an interval for a table; a dash where there is none."""
    if not math.isfinite(estimate.low):
        return MISSING
    return f"{number(estimate.low, digits)} to {number(estimate.high, digits)}"


def plain(text: str) -> "Text":
    """A text of a file as a cell: no markup, and no character that a terminal obeys."""
    from rich.text import Text

    return Text("".join(" " if unicodedata.category(letter).startswith("C") else letter for letter in text))


def asset_table(evaluation: "Evaluation") -> "Table":
    """A row per asset, with the main figures that at least one asset has."""
    main = {
        name: figure
        for name, figure in evaluation.figures.items()
        if figure.main and any(math.isfinite(row.scalar(name)) for row in evaluation.rows)
    }
    table = _table(["asset", "prompt"], [figure.title for figure in main.values()])
    for row in evaluation.rows:
        cells = [number(row.scalar(name), figure.digits) for name, figure in main.items()]
        table.add_row(plain(row.entry.name), plain(row.entry.prompt or MISSING), *cells)
    return table


def mean_table(evaluation: "Evaluation", estimates: "Mapping[str, Estimate]", over_all: Mapping[str, float]) -> "Table":
    """A row per figure: its mean over the assets, the interval, and the number of assets that have it."""
    table = _table(["figure"], ["mean", "95 % interval", "assets"])
    for name, figure in evaluation.figures.items():
        one = estimates[name]
        if one.n:
            table.add_row(
                heading(name, figure), number(one.mean, figure.digits), interval(one, figure.digits), str(one.n)
            )
    for name, figure in evaluation.set_figures.items():
        table.add_row(heading(name, figure), number(over_all[name], figure.digits), MISSING, str(len(evaluation.rows)))
    return table


def heading(name: str, figure: "Figure") -> str:
    """The name of a figure in a table, with the direction of better values."""
    arrow = {"higher": " (higher is better)", "lower": " (lower is better)", "neither": ""}[figure.better]
    return f"{name.partition('.')[0]}: {figure.title}{arrow}"


def row_fields(row: "Row") -> dict[str, Any]:
    """The fields of an asset's JSON object."""
    return {"name": row.entry.name, "prompt": row.entry.prompt, "values": finite(row.values)}


def estimate_fields(estimates: "Mapping[str, Estimate]") -> dict[str, Any]:
    """JSON values of estimates."""
    return {
        name: finite({"mean": one.mean, "low": one.low, "high": one.high, "assets": one.n})
        for name, one in estimates.items()
    }


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON has them: null in place of NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }


def _table(left: Sequence[str], right: Sequence[str]) -> "Table":
    """An empty table whose first columns are text and whose others are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for title in left:
        table.add_column(title, overflow="fold")
    for title in right:
        table.add_column(title, justify="right")
    return table
