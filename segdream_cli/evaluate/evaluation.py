"""Measures assets one after the other, and estimates the means over all of them.

Shapes: v views, f numbers per view, s pixels square.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from segdream_cli.evaluate.assets import Entry
from segdream_cli.evaluate.metrics import Array, Asset, Figure, Metric, Values
from segdream_cli.evaluate.statistics import Estimate, estimate
from segdream_cli.evaluate.views import ViewProtocol
from segdream_cli.util.memory import out_of_memory

PICTURE_SIZE = 256
"""Side in pixels of the pictures of a report, whatever the size of the views: those of all assets are in memory."""


@dataclass(frozen=True, slots=True)
class Row:
    """One asset's values.

    Args:
        entry: the asset.
        values: "metric.figure" -> value.
        pictures: views of its sides at `PICTURE_SIZE`, for reports.
    """

    entry: Entry
    values: Values
    pictures: Sequence[UInt8[Array, "s s 3"]] = ()

    def scalar(self, name: str) -> float:
        """A value; NaN where the asset has none."""
        value = self.values.get(name, float("nan"))
        return float("nan") if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class Measurement:
    """The numbers of one asset, which can be pickled.

    Args:
        values: as in `Row`.
        pictures: as in `Row`.
        kept: metric -> numbers of the asset's views, for metrics that summarise them.
    """

    values: Values
    pictures: Sequence[UInt8[Array, "s s 3"]]
    kept: Mapping[str, Float[Array, "v f"]]


@dataclass(slots=True)
class Evaluation:
    """Measures assets.

    Args:
        metrics: name -> metric, ready to measure.
        protocol: the views.
        device: the device that renders and measures.
        n_pictures: number of pictures per asset.
    """

    metrics: Mapping[str, Metric]
    protocol: ViewProtocol
    device: torch.device
    n_pictures: int = 0
    rows: list[Row] = field(default_factory=list)
    """The assets measured so far."""
    _kept: dict[str, list[Float[Array, "v f"]]] = field(default_factory=dict)
    """Metric -> numbers of each asset's views, for metrics that summarise them."""

    @property
    def figures(self) -> dict[str, Figure]:
        """The values of an asset, by "metric.figure"."""
        return {f"{name}.{key}": each for name, one in self.metrics.items() for key, each in one.figures.items()}

    @property
    def set_figures(self) -> dict[str, Figure]:
        """The values over all assets, by "metric.figure"."""
        return {f"{name}.{key}": each for name, one in self.metrics.items() for key, each in one.set_figures.items()}

    def add(self, entry: Entry, measured: Measurement) -> Row:
        """Adds the row of an asset that has been measured, perhaps by another process."""
        for name, numbers in measured.kept.items():
            self._kept.setdefault(name, []).append(numbers)
        row = Row(entry, measured.values, measured.pictures)
        self.rows.append(row)
        return row

    def measure(self, entry: Entry) -> Row:
        """Reads, renders and measures an asset, whose row joins `rows`; raises as `measurement`."""
        return self.add(entry, self.measurement(entry))

    def measurement(self, entry: Entry) -> Measurement:
        """The numbers of an asset, which is read and rendered.

        Raises:
            UsageProblem: its file can't be read any more.
            OutOfMemory: the device does not have enough memory.
        """
        asset = entry.read(self.device)
        values: dict[str, float | tuple[float, ...]] = {}
        with out_of_memory(self.device, f"the metrics of {entry.path}", "--device cpu"):
            observed = self._observe(asset)
            for name, metric in self.metrics.items():
                values |= {f"{name}.{key}": value for key, value in metric.measure(asset, observed[name]).items()}
        kept = {name: observed[name] for name, metric in self.metrics.items() if metric.set_figures}
        return Measurement(values, self._pictures(asset), kept)

    def _observe(self, asset: Asset) -> dict[str, Float[Array, "v f"]]:
        """The numbers that each metric keeps of the asset's views; no view is rendered if no metric reads any."""
        parts: dict[str, list[Array]] = {name: [] for name, metric in self.metrics.items() if metric.reads_views}
        for views in self.protocol.render(asset.gaussians) if parts else ():
            for name, kept in parts.items():
                kept.append(self.metrics[name].observe(asset, views))
        nothing = np.zeros((0, 0))
        return {name: np.concatenate(parts[name]) if name in parts else nothing for name in self.metrics}

    def _pictures(self, asset: Asset) -> list[UInt8[Array, "s s 3"]]:
        if not self.n_pictures:
            return []
        batches = self.protocol.sides(self.n_pictures).render(asset.gaussians)
        return [_shrink(image.permute(1, 2, 0).numpy()) for batch in batches for image in batch.images]

    def estimates(self, seed: int) -> dict[str, Estimate]:
        """The mean of each value over the assets, with its interval over prompts."""
        prompts = [row.entry.key for row in self.rows]
        return {
            name: estimate(np.array([row.scalar(name) for row in self.rows]), prompts, seed) for name in self.figures
        }

    def summarize(self) -> dict[str, float]:
        """The values over all assets of the metrics that need all views at once."""
        return {
            f"{name}.{key}": value
            for name, kept in self._kept.items()
            for key, value in self.metrics[name].summarize(kept).items()
        }


def _shrink(image: UInt8[Array, "s s 3"]) -> UInt8[Array, "256 256 3"]:
    size = PICTURE_SIZE, PICTURE_SIZE
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
