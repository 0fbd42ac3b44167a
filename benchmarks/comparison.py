"""Judged assets of many variants of the distillation: the parts that `methods` and `ablations` share.

A variant is the embedded prior's `standard` preset without refinement, with another method or other settings. All
variants of a table have the same prompts, seeds, starts, cameras and regularisers. On a GPU, worker processes share the
device: a step of 24 assets leaves it idle while the host prepares the next. What a run finds is kept in a JSON file,
and the next run with that file does what is left.

The size of a method's gradient matters only beside the regularisers, since Adam divides it out. So `grad_scale` is set
by a short run: the root mean square of the gradient of the latents becomes that of the preset's own SCTD, times
`Variant.gradient`.

Shapes: n assets, p prompts, v = 8 views, f features.
"""

import base64
import io
import json
import math
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from benchmarks import batch as batches
from benchmarks.record import VARIANT_COLUMNS as COLUMNS
from benchmarks.record import provenance, record
from benchmarks.step.loop import counted_rows
from segdream_cli import load
from segdream_cli.config import MINI, Config
from segdream_cli.config.values import parse_assignments
from segdream_cli.errors import Diverged
from segdream_cli.evaluate.judge import Judge
from segdream_cli.evaluate.measures import Array, frechet, score
from segdream_cli.evaluate.statistics import Estimate, estimate
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.optimize.state import AssetState
from segdream_cli.render.images import contact_sheet, to_uint8
from segdream_cli.util.devices import choose_device
from segdream_cli.util.files import atomic_write
from training.assets import JUDGE, SIZE, VIEWS, Views, judge_features, label, render_views, world_views
from training.world.catalog import Combination

JUDGED = ("object", "color", "attribute", "view", "azimuth")
"""What the judge reads; views and azimuths only of objects whose azimuth it can read."""
CALIBRATION_STEPS, CALIBRATION_ASSETS = 30, 4
REFERENCE_INSTANCES, WORLD_INSTANCES = 4, 3
"""World renders of a prompt that assets are compared with, and others that are judged as if they were assets."""
WORKERS = 4
"""Processes that share a GPU."""
GROUPS = 10
"""Groups of prompts of which the jackknife leaves one out."""
CLIPPED = 0.5 / 255
"""A channel this close to 0 or 1 is stored as the byte 0 or 255."""
SHOWN_PROMPTS, SHOWN_VIEWS = 8, (1, 5)
"""Prompts of a contact sheet, and the indices of their views: 45 and 225 degrees."""
SHIPPED = "shipped"
"""Key of the root mean square gradient of the preset's own SCTD."""
SMOKE = {"init.shape": "sphere", "init.count": 400, "densify.cap": 600}
"""Settings of runs that only show that a script works."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Assets to make.

    Args:
        name: key in the file.
        shown: what the assets show.
        seeds: of each prompt.
        steps: steps of the distillation; all schedules are rescaled to them.
        method: distillation method with its published settings; None is the preset's own SCTD.
        assignments: changes, name=value without `distill.METHOD.`.
        gradient: root mean square of the gradient of the latents, that of the preset's own SCTD being 1.
        grad_scale: the value of `factor_name` for it, once `calibrate` has found it.
    """

    name: str
    shown: tuple[Combination, ...]
    seeds: tuple[int, ...]
    steps: int
    method: str | None = None
    assignments: tuple[str, ...] = ()
    gradient: float = 1.0
    grad_scale: float | None = None

    def configure(self, base: Config) -> Config:
        """The settings of the variant.

        Args:
            base: the preset.

        Raises:
            UsageProblem: a change is refused.
        """
        if self.method is None:
            return base.with_steps(self.steps)
        section = f"distill.{self.method}."
        fresh = Config().with_steps(base.optim.steps).flat()
        published = {key: value for key, value in fresh.items() if key.startswith(section)}
        config = base.set({"distill.method": self.method, **published}).with_steps(self.steps)
        changes = parse_assignments([section + each for each in self.assignments])
        if self.grad_scale is not None:
            changes[section + factor_name(self.method)] = self.grad_scale
        return config.set(changes)

    @property
    def scale_key(self) -> str:
        """Variants with the same key have the same `grad_scale`."""
        if self.method is None:
            return SHIPPED
        return " ".join((str(self.method), *self.assignments, f"gradient={self.gradient:g}"))

    def pairs(self) -> list[tuple[Combination, int]]:
        """Combination and seed of every asset, the first seed of all prompts first."""
        return [(one, seed) for seed in self.seeds for one in self.shown]


def factor_name(method: str) -> str:
    """The setting of a method that multiplies its gradient."""
    return "grad_scale" if hasattr(getattr(Config().distill, method), "grad_scale") else "guidance_scale"


@dataclass(frozen=True, slots=True)
class Made:
    """Part of a variant's assets, measured."""

    assets: list[dict[str, Any]]
    """A row per asset that did not diverge: prompt, seed, and its figures as means over views."""
    features: Float[Array, "n v f"]
    rows: float
    """U-Net rows per asset."""


class Workshop:
    """The prior and the judge in one process.

    Args:
        device: where they compute.
        smoke: make the smallest assets, read by any judge.
        deadline: the time, as `time.time` has it, at which `make` gives up.
        judge: folder of the judge.
    """

    def __init__(self, device: str, smoke: bool, deadline: float, judge: Path = JUDGE) -> None:
        self.device, self.deadline = torch.device(device), deadline
        settings = {"refine.enabled": False, **(SMOKE if smoke else {})}
        self.session = load(quality="standard", prior=MINI, settings=settings, device=device)
        self.judge = Judge.load(judge, self.device)

    def pipeline(self, variant: Variant) -> Pipeline:
        """The pipeline of a variant; all share the networks."""
        config = variant.configure(self.session.config)
        return Pipeline(config, self.session.pipeline.prior, self.device, self.session.clouds)

    def gradient_rms(self, variant: Variant) -> float | None:
        """Root mean square over a short run of the gradient of the latents; None if there is no time."""
        if time.time() > self.deadline:
            return None
        pipeline = self.pipeline(variant)
        inner, squares = pipeline.method.gradient, list[Tensor]()

        def note(*arguments: Any) -> Any:
            gradient = inner(*arguments)
            squares.append(gradient.latents.float().square().mean())
            return gradient

        with mock.patch.object(pipeline.method, "gradient", note):
            if self._optimize(pipeline, variant.pairs()) is None:
                return None
        return float(torch.stack(squares).mean().sqrt())

    def milliseconds(self, variant: Variant, count: int) -> float:
        """Milliseconds of a step of `count` assets in lock step."""
        return batches.measure(self.pipeline(variant), count)[1]

    def make(self, variant: Variant, part: slice) -> Made | None:
        """Makes and measures the assets of a part of `variant.pairs()`; None if there is no time."""
        if time.time() > self.deadline:
            return None
        pairs = variant.pairs()[part]
        pipeline = self.pipeline(variant)
        with counted_rows(pipeline) as rows:
            made = self._optimize(pipeline, pairs)
        if made is None:
            return None
        kept = [pairs[i] for i in made]
        if not kept:
            return Made([], np.zeros((0, VIEWS, 0), np.float32), sum(rows) / len(pairs))
        assets, features = self.measure(render_views([asset.gaussians for asset in made.values()], 0), kept)
        return Made(assets, features, sum(rows) / len(pairs))

    def measure(
        self, views: Views, pairs: Sequence[tuple[Combination, int]]
    ) -> tuple[list[dict[str, Any]], Float[Array, "n v f"]]:
        """The figures of each asset, with an image for the contact sheet, and the judge's features."""
        scores = score(views.images, [label(one) for one, _ in pairs], self.judge, views.alphas, sharp=False)
        clipped = clipped_share(views)
        rows: list[dict[str, Any]] = []
        for i, (one, seed) in enumerate(pairs):
            readable = bool(scores.readable[i])
            rows.append(
                {
                    "prompt": one.caption(),
                    "seed": seed,
                    **{name: float(getattr(scores, name)[i].mean()) for name in ("object", "color", "attribute")},
                    "view": float(scores.sector[i].mean()) if readable else None,
                    "azimuth": float(scores.azimuth[i].mean()) if readable else None,
                    "clipped": float(clipped[i]) if np.isfinite(clipped[i]) else None,
                    "floaters": float(scores.floaters[i].mean()),
                    "image": thumbnail(views.images[i]),
                }
            )
        features = judge_features(views, self.judge).reshape(len(pairs), VIEWS, -1)
        return rows, features

    def _optimize(self, pipeline: Pipeline, pairs: Sequence[tuple[Combination, int]]) -> dict[int, AssetState] | None:
        """The assets by index, without those that diverge; None at the deadline."""
        assets = {i: pipeline.prepare(one.caption(), seed) for i, (one, seed) in enumerate(pairs)}
        while assets:
            try:
                for _ in pipeline.run(list(assets.values())):
                    if time.time() > self.deadline:
                        return None
            except Diverged as problem:
                del assets[list(assets)[problem.index]]
            else:
                break
        return assets


def clipped_share(views: Views) -> Float[Array, " n"]:
    """Share of the covered pixels with a channel at 0 or 255; NaN where nothing is covered."""
    clipped = (views.images.amax(2) >= 1 - CLIPPED) | (views.images.amin(2) <= CLIPPED)
    covered = views.alphas >= 0.5
    shares: Array = ((clipped & covered).sum((1, 2, 3)) / covered.sum((1, 2, 3))).cpu().numpy()
    return shares


def thumbnail(images: Float[Tensor, "v 3 s s"]) -> str:
    """Two views of an asset beside each other, as WebP in base64."""
    tiles = to_uint8(images[list(SHOWN_VIEWS)].permute(0, 2, 3, 1).cpu().numpy())
    stream = io.BytesIO()
    Image.fromarray(np.concatenate(list(tiles), axis=1)).save(stream, "WebP", quality=80)
    return base64.b64encode(stream.getvalue()).decode()


def read_thumbnail(stored: str | None) -> Array:
    """The pixels of a thumbnail [s, 2 s, 3]; white without one."""
    if stored is None:
        return np.full((SIZE, len(SHOWN_VIEWS) * SIZE, 3), 255, np.uint8)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(stored))))


workshop: Workshop
"""That of this process, once it is open."""


def open_workshop(*arguments: Any) -> Workshop:
    """Opens the workshop of this process."""
    global workshop
    torch.set_num_threads(1)
    workshop = Workshop(*arguments)
    return workshop


def work(method: str, *arguments: Any) -> Any:
    """Calls a method of this process's workshop."""
    return getattr(workshop, method)(*arguments)


class Inline(Executor):
    """An executor that does each task at once, in this process."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> "Future[Any]":
        """The future of a task that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **keywords))
        except Exception as problem:
            future.set_exception(problem)
        return future


def executor(workers: int, initializer: Callable[..., object] | None = None, *arguments: Any) -> Executor:
    """Worker processes, or with 0 this process."""
    if not workers:
        return Inline()
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer, arguments)


def draw_world(one: Combination, seed: int, instances: int) -> tuple[Array, Array]:
    """Bytes of renders of the world: images [i v, 3, s, s] and alpha [i v, s, s]."""
    torch.set_num_threads(1)
    views = world_views([one], seed, instances=instances)
    return to_uint8(views.images[0].numpy()), to_uint8(views.alphas[0].numpy())


class World:
    """Renders of the world of each prompt, which a pool draws while assets are made.

    Args:
        pool: draws them.
        shown: of the prompts.
        smoke: draw as few as possible.
    """

    def __init__(self, pool: Executor, shown: Sequence[Combination], *, smoke: bool) -> None:
        self._reference, judged = (1, 1) if smoke else (REFERENCE_INSTANCES, WORLD_INSTANCES)
        self._drawn = {
            one.caption(): pool.submit(draw_world, one, i, self._reference + judged) for i, one in enumerate(shown)
        }
        self._features: dict[str, Float[Array, "i v f"]] = {}

    def reference(self, prompt: str, judge: Judge) -> Float[Array, "i v f"]:
        """The judge's features of the instances of a prompt that assets are compared with."""
        if prompt not in self._features:
            features = judge_features(self._views(prompt, slice(self._reference)), judge)
            self._features[prompt] = features.reshape(self._reference, VIEWS, -1)
        return self._features[prompt]

    def judged(self, prompt: str) -> Views:
        """The other instances, in the place of assets."""
        return self._views(prompt, slice(self._reference, None))

    def _views(self, prompt: str, part: slice) -> Views:
        """Some of the instances of a prompt."""
        images, alphas = (torch.from_numpy(each / np.float32(255)) for each in self._drawn[prompt].result())
        return Views(images.unflatten(0, (-1, VIEWS))[part], alphas.unflatten(0, (-1, VIEWS))[part])


class Comparison:
    """What is known about variants, and who finds out the rest.

    Args:
        path: JSON file of the results; None keeps them in memory.
        shop: the workshop of this process.
        making: makes the assets.
        drawing: draws the world.
        batch: assets in lock step.
        setup: what all results of the file have in common.
        smoke: make the smallest assets.

    Raises:
        ValueError: the file is of another setup.
    """

    def __init__(
        self,
        path: Path | None,
        shop: Workshop,
        making: Executor,
        drawing: Executor,
        batch: int,
        setup: Mapping[str, Any],
        *,
        smoke: bool,
    ) -> None:
        self.path, self.shop, self.batch, self.smoke = path, shop, batch, smoke
        self._making, self._drawing = making, drawing
        self.left_out: dict[str, str] = {}
        self.found: dict[str, Any] = {"scales": {}, "times": {}, "failed": {}, "entries": {}}
        if path is not None and path.exists():
            self.found = json.loads(path.read_text(encoding="utf-8"))
        self.found.setdefault("provenance", provenance(str(shop.device)))
        if self.found.setdefault("setup", {**setup, "smoke": smoke}) != {**setup, "smoke": smoke}:
            raise ValueError(f"{path} has results of another setup: {self.found['setup']}")

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """Figures by name of the variant."""
        entries: dict[str, dict[str, Any]] = self.found["entries"]
        return entries

    @property
    def failed(self) -> dict[str, str]:
        """Reasons by name of the variants that are not possible."""
        failed: dict[str, str] = self.found["failed"]
        return failed

    def has_time(self) -> bool:
        """Whether the deadline is still to come."""
        return time.time() < self.shop.deadline

    def world(self, shown: Sequence[Combination], names: Iterable[str]) -> World:
        """The renders of combinations, which other processes begin to draw if one of these variants needs them."""
        needed = self.has_time() and any(name not in self.entries and name not in self.failed for name in names)
        return World(self._drawing, shown if needed else (), smoke=self.smoke)

    def make(self, variants: Sequence[Variant], world: World | None = None) -> None:
        """Makes and measures the variants that the file lacks, in order; with `world` also their Frechet distance."""
        wanted = [each for each in variants if each.name not in self.entries and each.name not in self.failed]
        self.left_out |= {each.name: "no time" for each in wanted}
        waiting: deque[tuple[Variant, list[Future[Made | None]]]] = deque()
        for variant in self.calibrate(wanted):
            starts = range(0, len(variant.pairs()), self.batch)
            futures = [self._making.submit(work, "make", variant, slice(i, i + self.batch)) for i in starts]
            waiting.append((variant, futures))
            while waiting and all(future.done() for future in waiting[0][1]):
                self._collect(*waiting.popleft(), world)
        for variant, futures in waiting:
            self._collect(variant, futures, world)

    def _collect(self, variant: Variant, futures: "Sequence[Future[Made | None]]", world: World | None) -> None:
        """Keeps the figures of a variant once its parts have ended, unless one ran out of time."""
        try:
            made = [future.result() for future in futures]
        except Exception as problem:  # a variant that fails must not lose the others
            self._fail(variant, problem)
            return
        if None not in made:
            self._keep(variant, [part for part in made if part is not None], world)

    def calibrate(self, variants: Sequence[Variant]) -> list[Variant]:
        """The variants with their factors of the gradient, without those that are refused or that there is no time for.

        A factor that the file lacks comes from short runs.
        """
        scales: dict[str, float] = self.found["scales"]
        short = {
            each.scale_key: self._short(each)
            for each in variants
            if each.method is not None and each.scale_key not in scales
        }
        if short and SHIPPED not in scales:
            short = {SHIPPED: replace(next(iter(short.values())), method=None), **short}
        futures = {key: self._making.submit(work, "gradient_rms", each) for key, each in short.items()}
        for key, future in futures.items():
            try:
                rms = future.result()
            except Exception as problem:  # as in `make`
                for each in variants:
                    if each.scale_key == key:
                        self._fail(each, problem)
                continue
            if rms is None or (SHIPPED not in scales and key != SHIPPED):
                break
            if key == SHIPPED:
                scales[key] = rms
            elif (method := short[key].method) is not None:
                published = getattr(getattr(Config().distill, method), factor_name(method))
                scales[key] = short[key].gradient * published * scales[SHIPPED] / rms
        self.save()
        return [
            each if each.method is None else replace(each, grad_scale=scales[each.scale_key])
            for each in variants
            if each.method is None or each.scale_key in scales
        ]

    def _fail(self, variant: Variant, problem: object) -> None:
        """Keeps the reason why a variant is not possible."""
        self.left_out.pop(variant.name, None)
        self.failed[variant.name] = f"{type(problem).__name__}: {problem}"[:300]
        self.save()

    def _short(self, variant: Variant) -> Variant:
        """The variant for a short run."""
        steps, count = (2, 1) if self.smoke else (CALIBRATION_STEPS, CALIBRATION_ASSETS)
        return replace(variant, shown=variant.shown[:count], seeds=variant.seeds[:1], steps=steps)

    def _keep(self, variant: Variant, parts: Sequence[Made], world: World | None) -> None:
        """Keeps the figures of a variant."""
        assets = [asset for part in parts for asset in part.assets]
        if not assets:
            self._fail(variant, Diverged("all assets"))
            return
        features = np.concatenate([part.features for part in parts if part.assets])
        sizes = [min(self.batch, len(variant.pairs()) - i * self.batch) for i in range(len(parts))]
        entry: dict[str, Any] = {
            "settings": " ".join((*variant.assignments, f"gradient={variant.gradient:g}")),
            "method": variant.method,
            "steps": variant.steps,
            "grad_scale": variant.grad_scale,
            "wanted": len(variant.pairs()),
            "rows": float(np.average([part.rows for part in parts], weights=sizes)),
        }
        self._add(variant, entry, assets, features, world)

    def judge_world(self, variant: Variant, world: World) -> None:
        """Keeps the figures of renders of the world, in the place of the assets of a variant."""
        if variant.name in self.entries or not self.has_time():
            return
        assets, features = [], []
        for one in variant.shown:
            views = world.judged(one.caption())
            rows, own = self.shop.measure(views, [(one, seed) for seed in range(len(views.images))])
            assets += rows
            features.append(own)
        entry = {
            "settings": "",
            "method": None,
            "steps": 0,
            "grad_scale": None,
            "wanted": len(assets),
            "rows": math.nan,
        }
        self._add(variant, entry, assets, np.concatenate(features), world)

    def _add(
        self,
        variant: Variant,
        entry: dict[str, Any],
        assets: list[dict[str, Any]],
        features: Float[Array, "n v f"],
        world: World | None,
    ) -> None:
        """Completes an entry, and writes the file."""
        if world is not None:
            reference = {one.caption(): world.reference(one.caption(), self.shop.judge) for one in variant.shown}
            entry["frechet"], entry["frechet_se"] = distance(features, [asset["prompt"] for asset in assets], reference)
        first = [one.caption() for one in variant.shown[:SHOWN_PROMPTS]]
        for asset in assets:
            if asset["prompt"] not in first or asset["seed"] != variant.seeds[0]:
                del asset["image"]
        self.entries[variant.name] = entry | {"assets": assets}
        self.left_out.pop(variant.name, None)
        self.save()
        print(
            f"{time.strftime('%H:%M:%S')} {variant.name}: accuracy {100 * accuracy(self.entries[variant.name]):.2f} %"
        )

    def save(self) -> None:
        """Writes the file."""
        if self.path is not None:
            with atomic_write(self.path) as temporary:
                temporary.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    def show_left_out(self) -> None:
        """Prints what is missing, and why."""
        for name, reason in {**self.left_out, **self.failed}.items():
            print(f"left out: {name}: {reason}")
        for name, entry in self.entries.items():
            if lost := entry["wanted"] - len(entry["assets"]):
                print(f"diverged: {name}: {lost} of {entry['wanted']} assets")

    def write_sheet(self, path: Path, names: Mapping[str, str]) -> None:
        """Writes a contact sheet: a row per prompt, a column of two views per variant.

        Args:
            path: the file.
            names: variant by the title of its column.
        """
        images = {
            title: {asset["prompt"]: asset["image"] for asset in self.entries[name]["assets"] if "image" in asset}
            for title, name in names.items()
            if name in self.entries
        }
        prompts = list(dict.fromkeys(prompt for own in images.values() for prompt in own))
        tiles, labels = [], []
        for prompt in prompts:
            for i, (title, own) in enumerate(images.items()):
                tiles.append(read_thumbnail(own.get(prompt)))
                labels.append(", ".join([title] * (prompt == prompts[0]) + [prompt] * (i == 0)))
        if tiles:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                sheet = Image.fromarray(contact_sheet(tiles, len(images), labels))
                sheet.save(temporary, format="WebP", quality=80)


@contextmanager
def open_comparison(
    path: Path | None,
    device: str,
    batch: int,
    workers: int | None,
    budget_s: float,
    setup: Mapping[str, Any],
    *,
    smoke: bool,
) -> Iterator[Comparison]:
    """A comparison with its worker processes, which start with their first task.

    Args:
        path: JSON file of the results.
        device: where assets are made.
        batch: assets in lock step.
        workers: processes that share a GPU, by default `WORKERS`; 0 makes all assets in this process, as on a CPU.
        budget_s: seconds until the deadline.
        setup: what all results of the file have in common.
        smoke: make the smallest assets.

    Raises:
        ValueError: the file is of another setup.
    """
    deadline, place = time.time() + budget_s, str(choose_device(device))
    if workers is None:
        workers = WORKERS if place.startswith("cuda") else 0
    spare = max(1, (os.cpu_count() or 1) - workers - 1) if workers else 0
    drawing, making = executor(spare), executor(workers, open_workshop, place, smoke, deadline)
    try:
        shop = open_workshop(place, smoke, deadline)
        yield Comparison(path, shop, making, drawing, batch, setup, smoke=smoke)
    finally:
        drawing.shutdown(cancel_futures=True)
        making.shutdown(cancel_futures=True)


def distance(
    features: Float[Array, "n v f"], prompts: Sequence[str], reference: Mapping[str, Float[Array, "i v f"]]
) -> tuple[float, float]:
    """Frechet distance of assets to the reference, and its standard error.

    The error is the jackknife's over groups of prompts: prompts that a bootstrap draws twice would bias a covariance.

    Args:
        features: of the assets.
        prompts: of the assets.
        reference: features by prompt.
    """
    names = list(reference)
    groups = min(GROUPS, len(names))

    def without(group: int) -> float:
        kept = {name for i, name in enumerate(names) if i % groups != group}
        own = features[[prompt in kept for prompt in prompts]]
        other = np.concatenate([each for name, each in reference.items() if name in kept])
        return frechet(own.reshape(-1, own.shape[-1]), other.reshape(-1, other.shape[-1]))

    rest = [without(group) for group in range(groups)] if groups > 1 else [math.nan]
    return without(groups), float(np.sqrt((groups - 1) * np.var(rest)))


def accuracy(entry: Mapping[str, Any]) -> float:
    """Mean of what the judge reads right, over its five heads."""
    return float(np.nanmean([mean(entry, name) for name in JUDGED]))


def accuracy_over(entry: Mapping[str, Any], base: Mapping[str, Any]) -> Estimate:
    """Mean difference of the accuracy of assets to that of the base's assets of the same prompts and seeds.

    The interval is of a bootstrap over prompts. Assets that only one of the two has are left out.
    """
    here, there = (
        {
            (asset["prompt"], asset["seed"]): np.mean([asset[name] for name in JUDGED if asset[name] is not None])
            for asset in each["assets"]
        }
        for each in (entry, base)
    )
    pairs = [key for key in here if key in there]
    differences = np.array([here[key] - there[key] for key in pairs], np.float64)
    return estimate(differences, [prompt for prompt, _ in pairs], 0)


def record_over(metric: str, entry: Mapping[str, Any], base: Mapping[str, Any], source: Mapping[str, Any]) -> None:
    """Keeps the difference of `accuracy_over` and both ends of its interval in results.json."""
    found = accuracy_over(entry, base)
    for end, value in (("", found.mean), ("_low", found.low), ("_high", found.high)):
        if np.isfinite(value):
            record(f"{metric}_over{end}", value, "share", source)


def mean(entry: Mapping[str, Any], name: str) -> float:
    """Mean of a figure over the assets that have it; NaN if none has."""
    values = [asset[name] for asset in entry["assets"] if asset[name] is not None]
    return float(np.mean(values)) if values else math.nan


def figures(entry: Mapping[str, Any], seconds: float = math.nan) -> dict[str, tuple[float, float]]:
    """Value and half of the 95 % interval of each column, NaN if unknown.

    The intervals of means over assets are from a bootstrap over prompts.

    Args:
        entry: the variant.
        seconds: per asset.
    """
    found = {}
    prompts = [asset["prompt"] for asset in entry["assets"]]
    for name in COLUMNS:
        if name == "frechet":
            found[name] = entry.get("frechet", math.nan), 1.96 * entry.get("frechet_se", math.nan)
        elif name == "rows":
            found[name] = entry["rows"], math.nan
        elif name == "seconds":
            found[name] = seconds, math.nan
        else:
            shares = estimate(np.array([asset[name] for asset in entry["assets"]], np.float64), prompts, 0)
            found[name] = shares.mean, (shares.high - shares.low) / 2
    return found


def table(title: str, rows: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """A table of figures with their intervals."""
    lines = [f"| {title} | " + " | ".join(COLUMNS) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    for name, cells in rows.items():
        texts = []
        for column, (_, unit) in COLUMNS.items():
            value, half = cells[column]
            factor, digits = (100, 2) if unit == "share" else (1, 2)
            text = "" if np.isnan(value) else f"{factor * value:.{digits}f}"
            texts.append(text if np.isnan(half) else f"{text} ±{factor * half:.{digits}f}")
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def record_row(prefix: str, cells: Mapping[str, tuple[float, float]], source: Mapping[str, Any]) -> None:
    """Keeps a row in results.json, the halves of its intervals under the names that end in _ci."""
    for column, (metric, unit) in COLUMNS.items():
        for end, value in zip(("", "_ci"), cells[column], strict=True):
            if np.isfinite(value):
                record(f"{prefix}_{metric}{end}", value, unit, source)
