"""The report of an evaluation or a comparison: one HTML file with its pictures, without scripts.

Its Content-Security-Policy allows its own style and embedded pictures only, so nothing that a prompt or another tool's
file puts into the page can run or load.
"""

import base64
import hashlib
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from segdream_cli import __version__
from segdream_cli.evaluate.comparison import Pair
from segdream_cli.evaluate.evaluation import Evaluation, Row
from segdream_cli.evaluate.metrics import METRICS
from segdream_cli.evaluate.tables import Table
from segdream_cli.util.files import atomic_write

N_PICTURES = 4
"""Pictures of an asset in a report."""
BAR_WIDTH, BAR_HEIGHT = 12, 40
POLICY = "default-src 'none'; style-src '{style}'; img-src data:; base-uri 'none'; form-action 'none'"


def write_report(path: Path, evaluation: Evaluation, tables: Mapping[str, Table]) -> None:
    """Writes a report of one set of assets.

    Args:
        path: the file, replaced as a whole.
        evaluation: the assets, measured with at least `N_PICTURES` pictures.
        tables: heading -> table, above the pictures.

    Raises:
        SegdreamError: the disk is full.
        UsageProblem: the folder can't be written.
    """
    parts = [*_tables(tables), "<h2>Pictures</h2>"]
    for row in evaluation.rows:
        parts += [f"<h3>{text(row.entry.prompt or row.entry.name)}</h3>", figure(row, row.entry.name)]
    _write(path, "Evaluation of assets", evaluation, parts)


def write_comparison(
    path: Path, sides: Mapping[str, Evaluation], pairs: Sequence[Pair], tables: Mapping[str, Table]
) -> None:
    """Writes a report of two sets of assets, whose pictures are side by side.

    Args:
        path: the file, replaced as a whole.
        sides: title of A and of B -> evaluation.
        pairs: their entries, paired.
        tables: heading -> table, above the pictures.

    Raises:
        SegdreamError: the disk is full.
        UsageProblem: the folder can't be written.
    """
    parts = [*_tables(tables), "<h2>Pictures</h2>"]
    rows = [{row.entry: row for row in evaluation.rows} for evaluation in sides.values()]
    for pair in pairs:
        parts.append(f"<h3>{text(pair.key)}</h3>")
        for side, entries, own in zip(sides, (pair.a, pair.b), rows, strict=True):
            parts += [figure(own[entry], f"{side}: {entry.name}") for entry in entries]
    _write(path, "Comparison of assets", next(iter(sides.values())), parts)


def text(value: str) -> str:
    """A text of a file, escaped for HTML, whose direction of writing stays its own."""
    return f'<bdi dir="auto">{html.escape(value)}</bdi>'


def figure(row: Row, caption: str) -> str:
    """An asset's pictures, the bars of its distributions, and a caption."""
    pictures = row.pictures[:: max(1, len(row.pictures) // N_PICTURES)]
    images = "".join(f'<img src="{data_url(picture)}" alt="">' for picture in pictures)
    bars = "".join(_bars(_distribution(name), value) for name, value in row.values.items() if isinstance(value, tuple))
    return f"<figure>{images}{bars}<figcaption>{text(caption)}</figcaption></figure>"


def data_url(picture: np.ndarray) -> str:
    """A picture [s, s, 3] of bytes as a WebP image in a data URL."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, format="WebP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def digest(content: str) -> str:
    """The hash of an inline style or script, as a policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


@cache
def data_file(name: str) -> str:
    """A file of `data/evaluate/`."""
    return (files("segdream_cli") / "data" / "evaluate" / name).read_text(encoding="utf-8")


def document(title: str, policy: str, parts: Sequence[str]) -> bytes:
    """A page with the common style, as UTF-8."""
    style = data_file("page.css")
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy.format(style=digest(style))}">'
        f'<meta name="generator" content="segdream {__version__}"><title>{html.escape(title)}</title>'
        f"<style>{style}</style>"
    )
    body = "\n".join(parts)
    page = f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'
    return page.encode("utf-8", "replace")  # a prompt may hold half a surrogate pair


def _write(path: Path, title: str, evaluation: Evaluation, parts: Sequence[str]) -> None:
    views = evaluation.protocol
    elevations = ", ".join(f"{elevation:g}" for elevation in views.elevations_deg)
    about = "Intervals are of 95 % over prompts."
    if any(metric.reads_views for metric in evaluation.metrics.values()):
        about = f"{views.n} azimuths at elevations of {elevations} degrees, {views.size} px. {about}"
    content = document(title, POLICY, [f"<h1>{title}</h1>", f"<p>{about}</p>", *parts])
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _tables(tables: Mapping[str, Table]) -> Iterator[str]:
    for title, table in tables.items():
        kinds = [' class="text"' if i < table.texts else "" for i in range(len(table.head))]
        head = "".join(f"<th{kind}>{html.escape(cell)}</th>" for kind, cell in zip(kinds, table.head, strict=True))
        rows = (
            "".join(
                f"<td{kind}>{text(cell) if kind else html.escape(cell)}</td>"
                for kind, cell in zip(kinds, row, strict=True)
            )
            for row in table.rows
        )
        body = "\n".join(f"<tr>{row}</tr>" for row in rows)
        yield f'<h2>{html.escape(title)}</h2>\n<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def _distribution(name: str) -> str:
    """The title of the distribution "metric.value"."""
    metric, _, value = name.partition(".")
    return METRICS[metric].distributions.get(value, value) if metric in METRICS else value


def _bars(title: str, shares: Sequence[float]) -> str:
    """A distribution as bars, relative to the highest."""
    highest = max(shares) or 1.0
    heights = [BAR_HEIGHT * share / highest for share in shares]
    rects = "".join(
        f'<rect x="{BAR_WIDTH * i}" y="{BAR_HEIGHT - height:.1f}" width="{BAR_WIDTH - 2}" height="{height:.1f}"/>'
        for i, height in enumerate(heights)
    )
    width = BAR_WIDTH * len(shares)
    title = html.escape(title)
    bars = f'<svg width="{width}" height="{BAR_HEIGHT}" role="img"><title>{title}</title>{rects}</svg>'
    return f"{bars}<p>{title}</p>"
