"""The lines that `--json` prints: one dataclass per kind of line, and their encoding. docs/json.md describes them.

Every line is an object with `schema`, `event` and the fields of its class; a value that does not apply is null.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

SCHEMA = 2
"""Version of the lines: fields and events are added without a new one; what changes or disappears makes a new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line; `event` names its kind."""

    event: ClassVar[str]

    def encode(self) -> str:
        """The line as JSON."""
        content = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return json.dumps({"schema": SCHEMA, "event": self.event, **content})


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Line):
    """A file or a folder has been written."""

    event = "done"
    output: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Made(Done):
    """An asset of `generate` or `refine`."""

    prompt: str
    prompt_read: str | None
    seed: int
    prior: str
    gaussians: int
    steps: int
    total_steps: int
    seconds: float
    memory_gib: float
    run: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Done):
    """The Gaussians of `init`."""

    prompt: str
    prompt_read: str | None
    seed: int
    gaussians: int
    init: str
    preview: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered(Done):
    """A video, an image, or a folder of frames."""

    assets: Sequence[Path]
    kind: str
    channel: str
    size: Sequence[int]
    frames: int
    fps: float | None = None
    near: float | None = None
    far: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported(Done):
    """A file of `export`."""

    asset: Path
    assets: Sequence[Path]
    format: str
    files: Sequence[Path]
    bytes: int
    gaussians_read: int
    gaussians: int
    edits: Sequence[Mapping[str, str | int]]
    triangles: int | None = None
    watertight: bool | None = None
    parts: int | None = None
    parts_left_out: int | None = None
    grid: int | None = None
    target: str | None = None
    command: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReported(Done):
    """A page of `report`."""

    source: Path
    steps: int
    previews: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leveled(Done):
    """A folder of `lod`."""

    asset: Path
    files: int
    bytes: int
    gaussians: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched(Done):
    """Weights of `fetch`, in their folder."""

    name: str
    title: str
    downloaded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn(Done):
    """A folder of reference images of `evaluate`."""

    images: int
    prompts: int
    prior: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported(Done):
    """A table or a page of `evaluate`."""

    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned(Line):
    """An asset of a dry run."""

    event = "planned"
    output: Path
    action: str
    prompt: str
    seed: int
    steps: int
    seconds: float | None
    gaussians: int | None
    bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped(Line):
    """An asset that exists already."""

    event = "skipped"
    output: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ListState(Line):
    """The state of a list that several workers make, every 30 s."""

    event = "progress"
    made: int
    skipped: int
    failed: int
    count: int
    workers: int
    starting: int
    seconds_left: float | None
    running: Sequence[Mapping[str, str | int | float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListMade(Line):
    """The end of a list that several workers made."""

    event = "list"
    made: int
    skipped: int
    failed: int
    count: int
    lost: int
    retried: int
    moved: int
    given_up: Sequence[Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen(Line):
    """The best seed of `--best-of`."""

    event = "chosen"
    output: Path
    by: str
    step: int
    seed: int
    seeds: Sequence[Mapping[str, float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Line):
    """A run that was saved before its last step."""

    event = "stopped"
    run: Path
    step: int
    total_steps: int
    resume: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Line):
    """An error; of a list, that of one item."""

    event = "error"
    message: str
    hint: str | None
    exit_code: int
    output: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready(Line):
    """A page that can be opened."""

    event = "ready"
    url: str
    asset: Path | None = None
    assets: Sequence[Path] = ()
    gaussians: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected(Line):
    """An asset of `info`."""

    event = "info"
    asset: Path
    format: str
    version: str | None
    frame: str
    antialiased: bool | None
    bytes: int
    bytes_per_gaussian: float
    gaussians: int
    left_out: int
    sh: int
    low: Sequence[float]
    high: Sequence[float]
    center: Sequence[float]
    radius: float
    opacities: Sequence[int]
    opacity_edges: Sequence[float]
    scales: Sequence[int]
    scale_edges: Sequence[float]
    memory: int
    provenance: Mapping[str, str | float | bool | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Words(Line):
    """The phrases that a prior knows; `any_text` is true, and the others empty, if it has no vocabulary."""

    event = "words"
    prior: str
    any_text: bool
    objects: Sequence[str] = ()
    colors: Sequence[str] = ()
    attributes: Sequence[str] = ()
    fillers: Sequence[str] = ()
    excluded: Sequence[Mapping[str, str]] = ()
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ignored: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatRow(Line):
    """A format of `export`."""

    event = "format"
    name: str
    suffixes: Sequence[str]
    description: str
    readable: bool


@dataclass(frozen=True, slots=True)
class Finding(Line):
    """A finding of `doctor`.

    Args:
        name: the thing examined.
        state: "ok", "absent" (an optional part is missing), "damaged" (so are its weights), "low" (disk space), or
            "problem" (no asset can be made).
        detail: the result of the check.
        hint: a command that cures the problem.
    """

    event = "finding"
    name: str
    state: str
    detail: str
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow(Line):
    """A metric of `evaluate`."""

    event = "metric"
    name: str
    description: str
    default: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Line):
    """An asset of `evaluate`."""

    event = "measured"
    asset: Path
    name: str
    prompt: str | None
    side: str | None
    values: Mapping[str, float | Sequence[float] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary(Line):
    """The means of one set of assets."""

    event = "summary"
    assets: int
    means: Mapping[str, Mapping[str, float | None]]
    over_all: Mapping[str, float | None]
    views: int
    elevations_deg: Sequence[float]
    size: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared(Line):
    """The differences of two sets of assets."""

    event = "compared"
    prompts: int
    differences: Mapping[str, Mapping[str, float | None]]
    views: int
    elevations_deg: Sequence[float]
    size: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted(Line):
    """The votes of people."""

    event = "counted"
    votes: int
    preference: Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow(Line):
    """A run folder of `runs`."""

    event = "run"
    path: Path
    state: str
    step: int | None
    total_steps: int | None
    bytes: int
    modified: str
    prompt: str | None
    seed: int | None
    output: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePart(Line):
    """A part of the cache."""

    event = "cached"
    name: str
    path: Path
    title: str
    kind: str
    files: int
    bytes: int
    state: str
    hint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed(Line):
    """A folder or a part of the cache that was removed."""

    event = "removed"
    path: Path
    bytes: int


def _plain(value: Any) -> Any:
    """A value as JSON has it: paths as strings, null in place of numbers that are not finite."""
    match value:
        case Path():
            return str(value)
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
    return value
