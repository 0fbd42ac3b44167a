"""The interface of a metric, and the table of metrics.

A new metric is a file here with `load(setup)` and a row of `METRICS`.

Shapes: v views, s pixels square, f numbers per view.
"""

from __future__ import annotations  # so that the table can be read without torch, which takes seconds to import

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from segdream_cli.errors import UsageProblem
from segdream_cli.formats.common import ignore

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, UInt8
    from torch import Tensor

    from segdream_cli.splats import Splats
    from segdream_cli.splats.gaussians import Gaussians

Array = np.ndarray  # NDArray[Any] is a type alias from NumPy 2.5 on, which jaxtyping does not take
Values = Mapping[str, "float | tuple[float, ...]"]
"""Figure -> value; NaN where it is not defined. A tuple is a distribution, which only JSON and HTML show."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that a metric computes per asset, or over all assets."""

    title: str
    """Column title, with the unit if there is one."""
    better: Literal["higher", "lower", "neither"] = "neither"
    digits: int = 3
    """Digits after the point in tables."""
    main: bool = False
    """Whether the terminal shows it for each asset; other outputs always do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """An asset under evaluation."""

    name: str
    """Its name in tables, unique among the assets."""
    path: Path
    prompt: str | None
    """None if it has none."""
    splats: Splats
    """The asset as its file has it."""
    gaussians: Gaussians
    """The asset as the views show it: in the unit sphere, facing +Z, on the device that computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Some views of an asset, in the order of the protocol."""

    images: UInt8[Tensor, "v 3 s s"]
    """RGB over white, rounded to bytes as in an image file, on the CPU."""
    azimuth_deg: Float[Tensor, " v"]
    elevation_deg: Float[Tensor, " v"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The things that a metric may need before the first asset."""

    device: torch.device
    prompts: Sequence[str] = ()
    """The distinct prompts of the assets, in order."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Metric -> folder or Hub id in place of its default weights."""
    reference: Path | None = None
    """Folder of reference images, for the metrics that compare with one."""
    offline: bool = False
    """Never use the network."""
    announce: Callable[[str], None] = ignore
    """Receives a line before a download starts, and notes."""


class Metric(Protocol):
    """A metric of one or several assets. Its `load` has checked packages and weights."""

    figures: Mapping[str, Figure]
    """The numbers that `measure` returns, in the order of columns."""
    set_figures: Mapping[str, Figure]
    """The numbers that `summarize` returns; empty for most metrics."""
    reads_views: bool
    """Whether `observe` needs the views of the protocol; without such a metric they are not rendered."""

    def observe(self, asset: Asset, views: Views) -> Float[Array, "v f"]:
        """The numbers that the metric keeps of each view, such as an embedding; called for a few views at a time."""
        ...

    def measure(self, asset: Asset, observed: Float[Array, "v f"]) -> Values:
        """The values of one asset, from the numbers kept of all of its views ([0, 0] if it reads none)."""
        ...

    def summarize(self, observed: Sequence[Float[Array, "v f"]]) -> Mapping[str, float]:
        """The values over all assets that need all views at once, from the numbers kept of each asset's views."""
        ...


class AssetMetric:
    """Base of metrics that read an asset and none of the protocol's views."""

    set_figures: Mapping[str, Figure] = MappingProxyType({})
    reads_views = False

    def observe(self, asset: Asset, views: Views) -> Float[Array, "v f"]:
        """Nothing."""
        return np.zeros((len(views.images), 0))

    def summarize(self, observed: Sequence[Float[Array, "v f"]]) -> Mapping[str, float]:
        """Nothing."""
        return {}


@dataclass(frozen=True, slots=True)
class MetricEntry:
    """A row of `METRICS`; its module is imported on first use, so that listing the table costs nothing."""

    description: str
    module: str
    """File of this folder."""
    loader: str = "load"
    """Its function from `Setup` to `Metric`."""
    embedded: bool = False
    """Whether it needs nothing beyond the package; these metrics are the default."""
    downloads: bool = False
    """Whether its weights are downloaded at first use, unless a folder has them."""
    needs_prompt: bool = False
    """Whether an asset without a prompt has no values."""
    needs_reference: bool = False
    """Whether it compares with reference images."""
    limits: str = ""
    """Why no asset may have a value."""
    distributions: Mapping[str, str] = field(default_factory=dict)
    """Title of each of its values that is a distribution."""

    def load(self, setup: Setup) -> Metric:
        """The metric, ready to measure.

        Raises:
            EnvironmentProblem: a package is missing.
            WeightsUnavailable: weights can't be found, downloaded or read.
            UsageProblem: the setup lacks something that the metric needs.
        """
        metric: Metric = getattr(import_module(f"segdream_cli.evaluate.{self.module}"), self.loader)(setup)
        return metric


METRICS: Mapping[str, MetricEntry] = MappingProxyType(
    {
        "judge": MetricEntry(
            "whether the embedded judge sees the right object, colour, attribute and side, once",
            "judge_metric",
            embedded=True,
            needs_prompt=True,
            limits="no prompt is in the vocabulary of mini, see segdream generate --list-words",
        ),
        "health": MetricEntry(
            "floating parts, holes, blurred edges, needle-shaped Gaussians, sizes, opacities",
            "health",
            embedded=True,
            distributions={"opacities": "Gaussians by opacity, from 0 to 1"},
        ),
        "clip": MetricEntry(
            "CLIP ViT-L/14 score, worst view and R-precision; downloads 1.7 GB once",
            "clip_metric",
            downloads=True,
            needs_prompt=True,
        ),
        "cost": MetricEntry(
            "time and images through the network, where the asset records them",
            "cost_metric",
            embedded=True,
            limits="no asset or run folder beside one records any",
        ),
        "image-reward": MetricEntry(
            "ImageReward-1.0: how much people would like the views for the prompt",
            "image_reward",
            downloads=True,
            needs_prompt=True,
        ),
        "frechet": MetricEntry(
            "distances from --reference images in the judge's features",
            "distances",
            "load_frechet",
            needs_reference=True,
        ),
        "fid": MetricEntry(
            "FID and KID against --reference images", "distances", "load_fid", downloads=True, needs_reference=True
        ),
    }
)
"""Metric -> description and module."""
DEFAULT = tuple(name for name, entry in METRICS.items() if entry.embedded)
"""The metrics that need no option, network or extra."""


def choose_metrics(text: str | None) -> list[str]:
    """The metrics of a comma-separated list in the order of `METRICS`, or the default ones.

    Raises:
        UsageProblem: a name is unknown, or there is none.
    """
    if text is None:
        return list(DEFAULT)
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in METRICS:
            nearest = [*difflib.get_close_matches(name, METRICS, n=1), *DEFAULT][0]
            known = dict.fromkeys(nearest if each == name else each for each in names if each in {name, *METRICS})
            raise UsageProblem(
                f"there is no metric {name!r}; use some of {', '.join(METRICS)}", hint=f"--metrics {','.join(known)}"
            )
    if not names:
        raise UsageProblem("--metrics names no metric", hint=f"--metrics {','.join(DEFAULT)}")
    return [name for name in METRICS if name in names]
