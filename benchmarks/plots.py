"""Draws the plots of the distillation methods from results.json: `python -m benchmarks.plots docs`.

Needs matplotlib, in the extra `bench`.
"""

from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import typer
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.record import ABLATIONS, CURVE_STEPS, load, metric_name
from segdream_cli.config.distill import METHOD_NAMES

COLORS = dict(zip(METHOD_NAMES, mpl.color_sequences["petroff10"], strict=False))
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "segdream",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def main(folder: Annotated[Path, typer.Argument(help="Folder to write to.")]) -> None:
    """Writes methods.svg (quality by steps and by U-Net rows) and ablations.svg (paired differences)."""
    entries = {metric: float(entry["value"]) for metric, entry in load().items()}
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
        plot_curves(axes[0], entries, "accuracy", "accuracy of the judge, %", 100)
        plot_curves(axes[1], entries, "frechet", "Fréchet distance", 1)
        plot_curves(axes[2], entries, "frechet", "Fréchet distance", 1, by_rows=True)
        axes[2].legend(loc="upper right", frameon=False, fontsize=8)
        save(figure, folder / "methods.svg")
        figure, axis = plt.subplots(figsize=(7, 7), layout="constrained")
        plot_differences(axis, entries)
        save(figure, folder / "ablations.svg")


def plot_curves(
    axis: Axes, entries: dict[str, float], metric: str, label: str, factor: float, *, by_rows: bool = False
) -> None:
    """A line per method over the steps of a run, or over the rows that its U-Net computes in them."""
    for method, color in COLORS.items():
        rows_per_step = entries.get(f"methods_tuned_{method}_rows", 0) / 100 if by_rows else 1
        points = [
            (rows_per_step * steps, factor * entries[name])
            for steps in CURVE_STEPS
            if (name := f"methods_curve_{method}_{steps}_{metric}") in entries
        ]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, color=color, label=method)
    axis.set(xscale="log", xlabel="U-Net rows of a run" if by_rows else "steps", ylabel=label)
    if not by_rows:
        axis.set_xticks(CURVE_STEPS, [str(steps) for steps in CURVE_STEPS])
    axis.minorticks_off()


def plot_differences(axis: Axes, entries: dict[str, float]) -> None:
    """A point with its 95 % interval per change of the release's settings."""
    titles = [title for title in ABLATIONS if f"ablations_{metric_name(title)}_over" in entries]
    for place, title in enumerate(reversed(titles)):
        stem = f"ablations_{metric_name(title)}_over"
        value, low, high = (100 * entries[stem + end] for end in ("", "_low", "_high"))
        clear = low > 0 or high < 0
        axis.plot((low, high), (place, place), color="C0" if clear else "0.6")
        axis.plot(value, place, "o", color="C0" if clear else "0.6", markersize=4)
    axis.axvline(0, color="0.3", linewidth=0.8)
    axis.set_yticks(range(len(titles)), reversed(titles))
    axis.set_xlabel("accuracy over that of the release's settings, points, with 95 % intervals")


def save(figure: plt.Figure, path: Path) -> None:
    """Writes an SVG whose bytes depend on the figures alone, on white."""
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
