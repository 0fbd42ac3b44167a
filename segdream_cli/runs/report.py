"""The report of a run or an asset: one HTML page with pictures, curves, settings and machine, without scripts.

Like the report of an evaluation, its Content-Security-Policy allows its own style and embedded pictures only.
"""

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from segdream_cli import __version__, formats
from segdream_cli.config import Config
from segdream_cli.errors import UsageProblem
from segdream_cli.evaluate.cost_metric import run_seconds
from segdream_cli.evaluate.report import POLICY, data_url, document, text
from segdream_cli.formats.common import DEFAULT, Reading
from segdream_cli.render.images import to_uint8
from segdream_cli.render.job import SIDES, RenderJob
from segdream_cli.runs.charts import Chart, draw
from segdream_cli.runs.ownership import EVENTS, TRIED
from segdream_cli.runs.run_dir import RunDir, RunRecord
from segdream_cli.splats import Splats
from segdream_cli.util.download import format_time
from segdream_cli.util.files import atomic_write, is_folder, parse_json

RUN_SUFFIX = ".run"
MOST_PREVIEWS = 24
"""Previews on the page; of more, some between the first and the last are left out."""
PREVIEW_WIDTH, SIDE, ELEVATION_DEG = 1024, 256, 15.0
"""Width in pixels of a preview on the page, side of a view of the asset, and its elevation."""
MOST_PIXELS = 1 << 26
"""Larger previews are not of segdream, and are left out."""

Rows = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """A line of a run's events.

    Args:
        step: its number, from 1.
        stage: "distil", or "refine 1/2" in the first of two rounds.
        seconds: wall time.
        grad_norm: norm of the parameters' gradient.
        gaussians: their number.
        timesteps: the largest timestep of each view.
        loss: of a step of refinement.
        memory_gib: peak memory so far.
    """

    step: int
    stage: str
    seconds: float
    grad_norm: float
    gaussians: float
    timesteps: tuple[float, ...]
    loss: float | None
    memory_gib: float


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that is known of an asset.

    Args:
        run: its run folder, if there is one.
        record: that of the folder.
        steps: its events.
        asset: the file, if it is finished.
        splats: the content of the file.
    """

    run: RunDir | None
    record: RunRecord | None
    steps: Sequence[Step]
    asset: Path | None
    splats: Splats | None

    @property
    def title(self) -> str:
        """The prompt, or the name of the file."""
        prompt = self.record.prompt if self.record else self.splats and self.splats.provenance.get("prompt")
        return str(prompt or (self.asset.name if self.asset else ""))


def read_story(source: Path, reading: Reading = DEFAULT) -> Story:
    """The story of a run folder or an asset, which have each other beside them; `reading` says how to read an asset.

    Raises:
        UsageProblem: it is neither, or the record is damaged.
        SegdreamError: the asset can't be read.
    """
    is_run = is_folder(source) or source.suffix == RUN_SUFFIX
    run = RunDir(source) if is_run else RunDir.beside(source)
    try:
        record = run.record() if is_run or run.exists() else None
    except UsageProblem as problem:
        if is_run and not run.exists():
            problem.hint, problem.words = None, _other_source(source)
        raise
    if record is None or (not is_run and record.output != source.name):
        return Story(None, None, (), source, formats.read(source, reading))
    asset = run.path.parent / record.output if is_run else source
    finished = not is_run or (asset.is_file() and not run.can_resume())
    found = (asset, formats.read(asset, reading)) if finished else (None, None)
    return Story(run, record, read_steps(run.path / EVENTS), *found)


def _other_source(source: Path) -> dict[str, str]:
    """The path, and the run folder or asset beside it whose name is most like its own; empty if there is none."""
    names: list[str] = []
    with suppress(OSError):
        beside = sorted(each for each in source.parent.iterdir() if each != source)
        names = [
            each.name for each in beside if RunDir(each).exists() or (formats.readable_suffix(each) and each.is_file())
        ]
    stem = source.name.partition(".")[0]
    same = [f"{stem}{suffix}" for suffix in formats.READABLE_SUFFIXES if f"{stem}{suffix}" in names]
    close = same or difflib.get_close_matches(source.name, names, n=1, cutoff=0)
    return {str(source): str(source.parent / close[0])} if close else {}


def read_steps(events: Path) -> list[Step]:
    """The lines of an `events.jsonl` by step; a line that is damaged or repeated by a later one is left out."""
    found: dict[int, Step] = {}
    with suppress(OSError):
        for line in events.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError, IndexError, OverflowError):
                step = _parse_step(parse_json(line))
                found[step.step] = step
    return [found[step] for step in sorted(found)]


def _parse_step(line: Mapping[str, Any]) -> Step:
    times: Any = next(iter(line["times"][0]), ())
    return Step(
        step=int(line["step"]),
        stage=str(line.get("stage", "")),
        seconds=float(line["seconds"]),
        grad_norm=float(line["grad_norm"][0]),
        gaussians=float(line["n_gaussians"][0]),
        timesteps=tuple(float(t) for t in (times if isinstance(times, list) else [times])),
        loss=float(line["loss"][0]) if "loss" in line else None,
        memory_gib=float(line["memory_gib"]),
    )


def write_report(path: Path, story: Story) -> Mapping[str, int]:
    """Writes the page, and returns how many steps and previews it shows.

    Args:
        path: the file, replaced as a whole.
        story: of `read_story`.

    Raises:
        SegdreamError: the disk is full.
        UsageProblem: the folder can't be written.
    """
    previews = list(_previews(story))
    parts = [
        f"<h1>{text(story.title)}</h1>",
        *_rows("", _summary(story)),
        *_asset_views(story),
        *_curves(story),
        *_timeline(previews),
        *_trials(story),
        *_rows("Stages", _stages(story)),
        *_rows("Machine", _machine(story)),
        *_settings(story),
        *_rows("Written in the asset", dict(story.splats.provenance) if story.splats else {}),
        f"<p>segdream {__version__}</p>",
    ]
    content = document(story.title, POLICY, parts)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return {"steps": len(story.steps), "previews": len(previews)}


def _summary(story: Story) -> Rows:
    """The facts at the top of the page."""
    rows: dict[str, Any] = {}
    if story.record and story.run:
        record = story.record
        rows = {
            "Prior": record.prior["name"],
            "Method": record.config.get("distill.method"),
            "Quality": record.quality,
            "Seed": record.seed,
            "Negative prompt": record.negative_prompt,
            "Read as": record.prompt_read,
            "Refined from": record.source and record.source.get("path"),
            "Began": record.began and record.began.replace("T", " ").replace("+00:00", " UTC"),
            "State": _state(story),
            "Time": _time(story.run),
            "To repeat": story.run.repeat_command(record),
        }
    if story.asset and story.splats is not None:
        rows |= {"Asset": story.asset.name, "Gaussians": f"{len(story.splats):,}"}
    if story.record is None:
        rows["Run folder"] = "missing: no curves, previews and settings are known"
    return rows


def _state(story: Story) -> str:
    """Whether the run is finished, and how far it is."""
    assert story.run is not None
    done = story.steps[-1].step if story.steps else 0
    steps = story.run.config().last_step
    if story.run.can_resume():
        return f"stopped after step {story.run.step():,} of {steps:,}; {story.run.resume_command()}"
    if story.asset is None:
        return f"no asset: it ended after step {done:,} of {steps:,}, or the asset was moved"
    return f"finished, {done:,} steps"


def _time(run: RunDir) -> str | None:
    seconds = run_seconds(run.path / EVENTS)
    return format_time(seconds) if math.isfinite(seconds) else None


def _stages(story: Story) -> Rows:
    """Steps, time and Gaussians of each stage."""
    rows = {}
    for stage, first in _first_steps(story.steps).items():
        steps = [each for each in story.steps if each.stage == stage]
        middle = sorted(each.seconds for each in steps)[len(steps) // 2]
        rows[stage] = (
            f"steps {first:,} to {steps[-1].step:,}, {middle:.3g} s per step (median), "
            f"{steps[-1].gaussians:,.0f} Gaussians, {steps[-1].memory_gib:.1f} GiB at most"
        )
    return rows


def _machine(story: Story) -> Rows:
    """The machine and the versions of its packages."""
    if story.record is None:
        return {}
    return {"device": story.record.device, **(story.record.machine or {}), **story.record.versions}


def _first_steps(steps: Sequence[Step]) -> dict[str, int]:
    """Stage -> its first step."""
    first: dict[str, int] = {}
    for each in steps:
        first.setdefault(each.stage, each.step)
    return first


def _curves(story: Story) -> Iterator[str]:
    """The charts of a run's events."""
    steps = story.steps
    if not steps:
        return
    charts = (
        Chart("Gradient norm", [(each.step, each.grad_norm) for each in steps], log=True),
        Chart("Loss of the refinement", [(each.step, each.loss) for each in steps if each.loss is not None]),
        Chart("Gaussians", [(each.step, each.gaussians) for each in steps]),
        Chart("Timestep t", [(each.step, t) for each in steps for t in each.timesteps], dots=True),
        Chart("Seconds per step", [(each.step, each.seconds) for each in steps], log=True),
    )
    yield "<h2>Curves</h2>"
    yield from (draw(chart, steps[-1].step, _first_steps(steps)) for chart in charts)


def _asset_views(story: Story) -> Iterator[str]:
    """The finished asset from eight sides."""
    if story.splats is None or not len(story.splats):
        return
    job = RenderJob.of([story.splats], "cpu", SIDE, "rgb", (1.0, 1.0, 1.0))
    yield "<h2>Asset</h2>"
    for side, image in zip(SIDES, job.images(job.turntable(len(SIDES), ELEVATION_DEG), precise=True), strict=True):
        picture = data_url(to_uint8(image))
        yield f'<figure><img src="{picture}" alt=""><figcaption>{side}</figcaption></figure>'


def _previews(story: Story) -> Iterator[tuple[str, np.ndarray]]:
    """Caption and image of previews, from the first to the last."""
    if story.run is None:
        return
    files = sorted(story.run.path.glob("preview-*.png"), key=lambda path: (len(path.name), path.name))
    gap = max(1, len(files) - 1) / (MOST_PREVIEWS - 1)
    chosen = files if len(files) <= MOST_PREVIEWS else [files[round(i * gap)] for i in range(MOST_PREVIEWS)]
    for path in chosen:
        if (image := _picture(path)) is not None:
            yield f"step {path.stem.removeprefix('preview-').lstrip('0')}", image


def _picture(path: Path) -> np.ndarray | None:
    """An image of a run folder, scaled down for the page; None if it can't be read."""
    unreadable = OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError
    with suppress(*unreadable), Image.open(path) as image:
        if image.width * image.height <= MOST_PIXELS:
            shown = image.convert("RGB")
            shown.thumbnail((PREVIEW_WIDTH, PREVIEW_WIDTH))
            return np.asarray(shown)
    return None


def _timeline(previews: Sequence[tuple[str, np.ndarray]]) -> Iterator[str]:
    """The previews in the order of their steps."""
    if previews:
        yield "<h2>Previews</h2>"
    for caption, image in previews:
        yield _strip(caption, image)


def _strip(caption: str, image: np.ndarray) -> str:
    """An image of several views, with a caption above it."""
    return (
        f'<figure class="strip"><figcaption>{text(caption)}</figcaption><img src="{data_url(image)}" alt=""></figure>'
    )


def _trials(story: Story) -> Iterator[str]:
    """The seeds that `--best-of` compared, with their scores."""
    if story.run is None or not (story.run.path / TRIED).is_file():
        return
    with suppress(OSError, ValueError, KeyError, TypeError):
        tried = parse_json((story.run.path / TRIED).read_text(encoding="utf-8"))
        captions = {
            int(
                row["seed"]
            ): f"seed {int(row['seed'])}: {row['score'] if row['score'] is None else float(row['score'])}"
            for row in tried["seeds"]
        }
        yield f"<h2>Seeds compared by {text(str(tried['by']))} after step {int(tried['step'])}</h2>"
        for seed, caption in captions.items():
            if (image := _picture(story.run.path / f"tried-{seed}.png")) is not None:
                yield _strip(f"{caption}{', chosen' if seed == tried['chosen'] else ''}", image)


def _settings(story: Story) -> Iterator[str]:
    """Every setting by section; those that differ from the default are marked, beside the default."""
    if story.record is None:
        return
    defaults = Config().flat()
    sections: dict[str, list[str]] = {}
    for name, value in story.record.config.items():
        default, shown = defaults.get(name), _value(value)
        differs = name in defaults and _value(default) != shown
        cell = f"<strong>{text(shown)}</strong>" if differs else text(shown)
        beside = text(_value(default)) if differs else ""
        row = f'<tr><td class="text">{text(name)}</td><td>{cell}</td><td>{beside}</td></tr>'
        sections.setdefault(name.partition(".")[0], []).append(row)
    yield "<h2>Settings</h2>"
    for section, rows in sections.items():
        head = '<tr><th class="text">setting</th><th>value</th><th>default, if another</th></tr>'
        table = f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'
        yield f"<details><summary>{text(section)}</summary>{table}</details>"


def _value(value: Any) -> str:
    """A value as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _rows(title: str, rows: Rows) -> Iterator[str]:
    """A list of names and values under a heading; nothing without values."""
    shown = {name: value for name, value in rows.items() if value not in (None, "")}
    if not shown:
        return
    if title:
        yield f"<h2>{title}</h2>"
    pairs = (f"<dt>{text(name)}</dt><dd>{text(_value(value))}</dd>" for name, value in shown.items())
    yield f"<dl>{''.join(pairs)}</dl>"
