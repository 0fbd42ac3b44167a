"""The metric `cost`: seconds and U-Net rows of an asset, from its provenance or the run folder beside it."""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float

from segdream_cli.evaluate.metrics import Array, Asset, AssetMetric, Figure, Metric, Setup
from segdream_cli.util.files import parse_json

NAN = float("nan")


class CostMetric(AssetMetric):
    """`seconds` and `unet_rows` of the provenance; the seconds also from a run folder."""

    figures: Mapping[str, Figure] = {
        "seconds": Figure("time, s", "lower", 1),
        "unet_rows": Figure("images through the network (U-Net rows)", "lower", 0),
        "steps": Figure("steps", digits=0),
    }

    def measure(self, asset: Asset, observed: Float[Array, "v f"]) -> dict[str, float]:
        """The values of one asset; NaN where nothing records them."""
        found = {name: _number(asset.splats.provenance.get(name)) for name in self.figures}
        if math.isnan(found["seconds"]):
            found["seconds"] = run_seconds(asset.path.with_suffix(".run") / "events.jsonl")
        return found


def run_seconds(events: Path) -> float:
    """Wall time of a run's steps in seconds, NaN without its events; of the whole batch if several ran at once.

    A line stands for the steps since the line before, as not every step is reported on CUDA, but for no more than most
    lines do, since a distillation may end early. A resumed run repeats steps after its checkpoint, and the later line
    counts.
    """
    try:
        lines = [parse_json(line) for line in events.read_text(encoding="utf-8").splitlines()]
        seconds = {int(line["step"]): float(line["seconds"]) for line in lines}
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return NAN
    steps = sorted(seconds)
    if not steps:
        return NAN
    gaps = [step - before for before, step in zip([0, *steps], steps, strict=False)]
    usual = statistics.mode(gaps)
    return sum(min(gap, usual) * seconds[step] for gap, step in zip(gaps, steps, strict=True))


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return NAN
    try:
        return float(value)
    except OverflowError:  # JSON has integers of any length
        return NAN


def load(setup: Setup) -> Metric:
    """The metric, which needs nothing."""
    return CostMetric()
