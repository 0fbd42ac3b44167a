"""One asset as one HTML file: a viewer that needs neither network nor installation around the asset's Gaussians.

The viewer's source is `data/viewer/`, inserted unminified. The Gaussians are SPZ version 3 in base64, which a browser
inflates by itself. The page's Content-Security-Policy names the hashes of its own script and style and allows no
connection, so nothing that a prompt or another tool's file puts into the page can run or send data. A page that is
served while its asset is being made may ask its own server for newer Gaussians, and no other server.
"""

import base64
import hashlib
import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from segdream_cli.formats import spz
from segdream_cli.splats import BANDS, Splats
from segdream_cli.splats.bounds import bounds
from segdream_cli.util.files import atomic_write
from segdream_cli.util.text import format_size, printable

SCRIPTS = ("payload.js", "sorter.js", "renderer.js", "viewer.js")
POLICY = (
    "default-src 'none'; script-src '{script}'; style-src '{style}'; worker-src blob:; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
LIVE_POLICY = f"{POLICY}; connect-src 'self'"
ROW_POLICY = (
    "default-src 'none'; script-src '{script}'; style-src '{style}'; frame-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
MOST_IN_A_ROW = 4
"""Pages side by side; more are in several rows."""
LABELS = {
    "prompt": "Prompt",
    "seed": "Seed",
    "prior": "Prior",
    "method": "Method",
    "quality": "Quality",
    "steps": "Steps",
    "generator": "Made with",
}
"""Provenance key -> its label in the page's information panel."""
TEXT_LIMIT = 2000
"""Maximum number of characters of a value to show: a file from another tool may hold anything."""


def write(path: Path, splats: Splats, *, title: str | None = None) -> None:
    """Writes a page that shows `splats`, with values rounded as in `formats.spz.write`.

    Args:
        path: the file, replaced as a whole.
        splats: the asset; its provenance fills the page's information panel.
        title: the page's heading; None is the prompt or, without one, the name of the file.

    Raises:
        SegdreamError: there are no Gaussians, some are not finite, or the disk is full.
        UsageProblem: the centres reach too far for SPZ, or the folder can't be written.
    """
    content = document(splats, title or title_of(splats, path.stem), path=path)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def document(splats: Splats, title: str, *, newer: str = "", progress: str = "", path: Path | None = None) -> bytes:
    """The page as UTF-8; raises the errors of `write`.

    Args:
        splats: the asset.
        title: its heading.
        newer: path on the page's server from which the page fetches an `edition`; empty if it fetches none.
        progress: a line below the heading, while the asset is being made.
        path: the page's file, for the hints of errors.
    """
    payload = b"".join(spz.pack(splats, path))
    center, extent = bounds(splats)
    template, style, script = _viewer()
    page = Template(template).substitute(
        policy=policy(live=bool(newer)),
        title=html.escape(title),
        center=" ".join(f"{value:.6g}" for value in center),
        extent=f"{extent:.6g}",
        newer=html.escape(newer),
        progress=html.escape(progress),
        count=f"{len(splats):,}",
        facts="\n".join(_rows(facts(splats, len(payload)))),
        style=style,
        payload=base64.b64encode(payload).decode("ascii"),
        script=script,
    )
    return page.encode("utf-8", "replace")  # a prompt may hold half a surrogate pair


def policy(*, live: bool = False) -> str:
    """The Content-Security-Policy of a page, or of one that asks its server for newer editions."""
    _, style, script = _viewer()
    return (LIVE_POLICY if live else POLICY).format(script=_digest(script), style=_digest(style))


def edition(splats: Splats, title: str, progress: str = "") -> Mapping[str, Any]:
    """The JSON values that make an open page show a newer asset; raises the errors of `write`."""
    payload = b"".join(spz.pack(splats))
    rows = facts(splats, len(payload))
    encoded = base64.b64encode(payload).decode("ascii")
    return {"title": title, "facts": dict(rows), "progress": progress, "payload": encoded}


def row(titles: Sequence[str], addresses: Sequence[str]) -> bytes:
    """A page that shows other pages of its server side by side, and passes the view of one to the others."""
    template = (files("segdream_cli") / "data" / "viewer" / "row.html").read_text(encoding="utf-8")
    frames = (
        f'<iframe src="{html.escape(address)}" title="{html.escape(title)}"></iframe>'
        for address, title in zip(addresses, titles, strict=True)
    )
    content = Template(template).substitute(
        policy=row_policy(len(titles)),
        title=html.escape(", ".join(titles)),
        columns=_columns(len(titles)),
        frames="\n".join(frames),
    )
    return content.encode("utf-8", "replace")


def row_policy(count: int) -> str:
    """The Content-Security-Policy of the page that shows `count` others."""
    template = (files("segdream_cli") / "data" / "viewer" / "row.html").read_text(encoding="utf-8")
    style, script = (re.findall(f"<{tag}>(.*)</{tag}>", template, re.DOTALL)[0] for tag in ("style", "script"))
    style = style.replace("$columns", str(_columns(count)))
    return ROW_POLICY.format(script=_digest(script), style=_digest(style))


def _columns(count: int) -> int:
    """Number of pages beside each other."""
    return math.ceil(math.sqrt(count)) if count > MOST_IN_A_ROW else count


def title_of(splats: Splats, name: str) -> str:
    """The heading of an asset's page: its prompt or, without one, `name`."""
    return _text(splats.provenance.get("prompt") or name)


def facts(splats: Splats, size: int) -> Mapping[str, str]:
    """The information panel: label -> text, not escaped; `size` is the size of the payload in bytes."""
    known = {label: splats.provenance.get(key) for key, label in LABELS.items()}
    rows = {label: _text(value) for label, value in known.items() if value not in (None, "")}
    degree = BANDS.index(splats.shN.shape[1])
    rows["Gaussians"] = f"{len(splats):,}" + (f", spherical harmonics of degree {degree}" if degree else "")
    rows["Size"] = format_size(size)
    return rows


def _rows(rows: Mapping[str, str]) -> Iterator[str]:
    for label, text in rows.items():
        yield f'      <dt>{label}</dt><dd dir="auto">{html.escape(text)}</dd>'


def _text(value: Any) -> str:
    text = printable(" ".join(str(value).split()))
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"


@cache
def _viewer() -> tuple[str, str, str]:
    """Template, style sheet and script of the viewer."""
    folder = files("segdream_cli") / "data" / "viewer"
    template, style, *scripts = (
        (folder / name).read_text(encoding="utf-8") for name in ("viewer.html", "viewer.css", *SCRIPTS)
    )
    return template, style, '"use strict";\n' + "\n".join(scripts)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
