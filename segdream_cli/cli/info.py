"""`segdream info`: what is in a file."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.output import Output
from segdream_cli.cli.reading import AsSplatsOption, FrameOption, StrictOption, parse_frame
from segdream_cli.cli.schema import Inspected
from segdream_cli.errors import OptionProblem, SegdreamError
from segdream_cli.util.text import format_size, printable

if TYPE_CHECKING:
    from segdream_cli.formats.common import Reading
    from segdream_cli.splats import Splats

BARS = " ▁▂▃▄▅▆▇█"
SHADES = " .:-=+*#%@"
"""Characters of a picture without colours, from white to black."""
PICTURE = 48
"""Side of a picture in pixels; two of them, one above the other, make a character."""
LONGEST = 200
"""Characters of a value in the table."""


def info(
    assets: Annotated[list[Path], typer.Argument(metavar="FILE", help="Assets to describe.")],
    picture: Annotated[
        bool, typer.Option("--picture", help="Show a small picture of each asset in the terminal.")
    ] = False,
    frame: FrameOption = None,
    strict: StrictOption = False,
    as_splats: AsSplatsOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Describe assets.

    segdream info bus.ply scan.spz

    Memory is that of the values as 32-bit numbers. Bars are histograms of
    opacities and of each Gaussian's largest standard deviation.
    """
    from segdream_cli.formats.common import Reading

    if picture and json:
        raise OptionProblem("--picture has no effect with --json, which prints data", without=["--picture"])
    sink = Output(json=json, quiet=quiet)
    how = Reading(strict=strict, as_splats=as_splats, frame=parse_frame(frame), note=sink.note)
    code = 0
    for asset in assets:
        try:
            _show(asset, sink, how, picture=picture)
        except SegdreamError as problem:
            if len(assets) == 1:
                raise
            sink.error(problem, asset)
            code = code or problem.exit_code
    if code:
        raise typer.Exit(code)


def _show(asset: Path, sink: Output, how: "Reading", *, picture: bool) -> None:
    """Prints one asset."""
    from segdream_cli import formats
    from segdream_cli.formats.inspection import inspect

    dropped: list[int] = []
    splats = formats.read(asset, replace(how, unusable=dropped.append))
    facts = inspect(asset)
    if how.as_splats and facts.kind != "points":
        sink.note(f"--as-splats has no effect: {asset} is no plain point cloud")
    line = describe(asset, facts, splats, sum(dropped))
    shown = [_table(line)]
    if picture:
        shown.append(_picture(splats))
    sink.tables(line, shown)


def describe(asset: Path, facts: Any, splats: "Splats", dropped: int) -> Inspected:
    """The line of an asset: the facts of its file, and what its Gaussians tell."""
    import numpy as np

    from segdream_cli.splats import BANDS
    from segdream_cli.splats.bounds import bounds

    center, radius = bounds(splats)
    size = sum(file.stat().st_size for file in asset.iterdir()) if asset.is_dir() else asset.stat().st_size
    opacities = 1 / (1 + np.exp(-splats.opacity_logits.astype(np.float64)))
    scales = splats.log_scales.max(axis=1) / math.log(10)
    opacity_counts, opacity_edges = np.histogram(opacities, bins=10, range=(0, 1))
    low, high = math.floor(scales.min()), math.floor(scales.max()) + 1
    scale_counts, scale_edges = np.histogram(scales, bins=np.linspace(low, high, 2 * (high - low) + 1))
    provenance = {
        key: value if value is None or isinstance(value, (str, int, float)) else str(dict(value).get("file"))
        for key, value in splats.provenance.items()
        if value is None or isinstance(value, (str, int, float, dict))
    }
    return Inspected(
        asset=asset,
        format=facts.kind,
        version=facts.version,
        frame=facts.frame,
        antialiased=facts.antialiased,
        bytes=size,
        bytes_per_gaussian=size / len(splats),
        gaussians=len(splats),
        left_out=dropped,
        sh=BANDS.index(splats.shN.shape[1]),
        low=splats.means.min(axis=0).tolist(),
        high=splats.means.max(axis=0).tolist(),
        center=center.tolist(),
        radius=radius,
        opacities=opacity_counts.tolist(),
        opacity_edges=opacity_edges.tolist(),
        scales=scale_counts.tolist(),
        scale_edges=(10.0**scale_edges).tolist(),
        memory=sum(array.nbytes for array in splats.arrays().values()),
        provenance=provenance,
    )


def _table(line: Inspected) -> Any:
    """A row per fact."""
    from rich import box
    from rich.table import Table

    rows = {
        "format": line.format + (f" {line.version}" if line.version else ""),
        "size": f"{format_size(line.bytes)}, {line.bytes_per_gaussian:.1f} bytes per Gaussian",
        "Gaussians": f"{line.gaussians:,}" + (f", {line.left_out:,} not finite and left out" if line.left_out else ""),
        "spherical harmonics": f"degree {line.sh}",
        "frame": line.frame,
        "antialiased": {None: "not declared", True: "yes", False: "no"}[line.antialiased],
        "from": _point(line.low),
        "to": _point(line.high),
        "sphere": f"centre {_point(line.center)}, radius {line.radius:.4g}",
        "opacities": f"0 {bars(line.opacities)} 1",
        "scales": f"{line.scale_edges[0]:.0e} {bars(line.scales)} {line.scale_edges[-1]:.0e}",
        "memory": format_size(line.memory),
        **{key.replace("_", " "): str(value) for key, value in line.provenance.items()},
    }
    table = Table(box=box.SIMPLE, show_header=False, title=printable(str(line.asset)), title_justify="left")
    for name, value in rows.items():
        text = printable(value)
        table.add_row(name, text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")
    return table


def _point(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def bars(counts: Sequence[int]) -> str:
    """A bar per number; the highest is full, and those of any Gaussian show."""
    most = max(counts, default=0) or 1
    return "".join(BARS[math.ceil(count / most * (len(BARS) - 1))] for count in counts)


def _picture(splats: "Splats") -> Any:
    """The front, in half blocks of two pixels; in characters where the console has no colours."""
    from rich.console import Console
    from rich.text import Text

    from segdream_cli import render_image

    image = render_image(splats, azimuth=30, size=PICTURE, supersample=2)
    rows = zip(image[::2], image[1::2], strict=True)
    if Console().color_system is None:
        shades = ((1 - (a.mean(axis=1) + b.mean(axis=1)) / 510) * (len(SHADES) - 1) for a, b in rows)
        return Text("\n".join("".join(SHADES[round(float(shade))] for shade in row) for row in shades))
    text = Text()
    for above, below in rows:
        for a, b in zip(above.tolist(), below.tolist(), strict=True):
            text.append("▀", f"rgb({a[0]},{a[1]},{a[2]}) on rgb({b[0]},{b[1]},{b[2]})")
        text.append("\n")
    return text
