"""Measures one asset after another on a worker of several."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, Self

from segdream_cli.evaluate.assets import Entry
from segdream_cli.evaluate.evaluation import Evaluation, Measurement
from segdream_cli.evaluate.metrics import METRICS, Setup
from segdream_cli.evaluate.views import ViewProtocol
from segdream_cli.formats.common import Reading, ignore
from segdream_cli.util.devices import choose_device


class AssetJob(Protocol):
    """The asset to measure, as a worker finds it."""

    @property
    def asset(self) -> Path:
        """The path that the user gave."""

    def here(self, path: Path) -> Path:
        """Where a path is on this machine."""


@dataclass(slots=True)
class Measuring:
    """A `Work` that measures the asset of a job; the metrics are loaded for the first one.

    Args:
        names: the metrics.
        setup: for the metrics, whatever its device.
        protocol: the views.
        n_pictures: number of pictures per asset.
        entries: path of an asset -> the asset.
    """

    names: Sequence[str]
    setup: Setup
    protocol: ViewProtocol
    n_pictures: int
    entries: Mapping[Path, Entry]
    _evaluation: Evaluation | None = field(default=None, repr=False)

    @classmethod
    def of(cls, evaluation: Evaluation, setup: Setup, entries: Mapping[Path, Entry]) -> Self:
        """The work for an evaluation; notes on its files and weights have been told, and stay here."""
        quiet = replace(setup, announce=ignore)
        plain = {path: replace(entry, reading=_without_note(entry.reading)) for path, entry in entries.items()}
        return cls(tuple(evaluation.metrics), quiet, evaluation.protocol, evaluation.n_pictures, plain)

    def __call__(self, job: AssetJob, device: str, note: Callable[[str], None]) -> Measurement:
        """See `Work`; raises as `MetricEntry.load` and `Evaluation.measurement`."""
        if self._evaluation is None:
            setup = replace(self.setup, device=choose_device(device))
            metrics = {name: METRICS[name].load(setup) for name in self.names}
            self._evaluation = Evaluation(metrics, self.protocol, setup.device, self.n_pictures)
        return self._evaluation.measurement(replace(self.entries[job.asset], path=job.here(job.asset)))


def _without_note(reading: Reading) -> Reading:
    """The reading without the receivers of its notes, which may not leave this process."""
    return Reading(strict=reading.strict, as_splats=reading.as_splats, frame=reading.frame)


def run_events(asset: Path) -> list[Path]:
    """The events of the run beside an asset, which the metric `cost` reads; empty if there are none."""
    path = asset.with_suffix(".run") / "events.jsonl"
    return [path] if path.is_file() else []
