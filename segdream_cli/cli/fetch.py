"""`segdream fetch`: downloads weights for offline work."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.next_step import AFTER_FETCH
from segdream_cli.cli.output import Output
from segdream_cli.cli.schema import Fetched
from segdream_cli.config import AUTO, SD21
from segdream_cli.errors import UsageProblem

if TYPE_CHECKING:
    from segdream_cli.util.download import Progress
    from segdream_cli.util.hub import HubDownload

POINT_E, CLIP, IMAGE_REWARD, FID = "point-e", "clip", "image-reward", "fid"
Fetchable = StrEnum("Fetchable", {name: name for name in (SD21, POINT_E, CLIP, IMAGE_REWARD, FID)})  # type: ignore[misc]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """Weights that can be fetched.

    Args:
        name: its name on the command line.
        title: its description in messages.
        missing: bytes to download; None if nothing is missing, and 0 if only the cache's own entries are.
        fetch: downloads what is missing, reporting progress.
        check: verifies the files without the network, and returns their folder.
    """

    name: str
    title: str
    missing: int | None
    fetch: "Callable[[Progress], object]"
    check: Callable[[], Path]


def fetch(
    weights: Annotated[list[Fetchable], typer.Argument(help="Weights to download.", show_default=False)],
    offline: Annotated[bool, typer.Option("--offline", hidden=True)] = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Download weights for offline work.

    segdream fetch sd21 point-e
    """
    from segdream_cli.cli.download_bar import DownloadBar
    from segdream_cli.util.download import describe_download

    sink = Output(json=json, quiet=quiet)
    _refuse_offline(offline)
    items = [item for name in dict.fromkeys(weights) for item in _ITEMS[str(name)](sink)]
    for item in items:
        state = "complete in the cache" if item.missing is None else describe_download(item.missing)
        sink.note(f"{item.name}: {item.title}: {state}")
    for item in items:
        if item.missing is not None:
            with DownloadBar(item.name, sink) as bar:
                item.fetch(bar.update)
        folder = item.check()
        sink.done(Fetched(output=folder, name=item.name, title=item.title, downloaded=item.missing or 0))
    sink.suggest(AFTER_FETCH.get(items[-1].name, ()))


def _refuse_offline(offline: bool) -> None:
    """Refuses to fetch in offline mode."""
    from segdream_cli.util.hub import is_offline

    if offline:
        raise UsageProblem("fetch goes online, and --offline forbids it", without=["--offline"])
    if is_offline(False):
        raise UsageProblem("fetch goes online, and HF_HUB_OFFLINE forbids it", hint="unset HF_HUB_OFFLINE")


def _stable_diffusion(sink: Output) -> Iterator[_Item]:
    """The networks of Stable Diffusion, in the precision that this machine would use."""
    from segdream_cli.config import SD21_MODEL, PriorConfig
    from segdream_cli.priors.checkpoint import plan_download, resolve
    from segdream_cli.util.devices import choose_device

    prior = PriorConfig(name=SD21)
    cuda = choose_device(AUTO).type == "cuda"
    yield _of_hub(
        SD21,
        SD21_MODEL,
        plan_download(prior, cuda=cuda),
        lambda: resolve(prior, cuda=cuda, offline=True, announce=sink.note).folder,
    )


def _point_e(sink: Output) -> Iterator[_Item]:
    """Point-E's two stages, and the text encoder that they need."""
    from segdream_cli.pointe import checkpoint, clip

    missing = checkpoint.absent_files()
    yield _Item(
        name=POINT_E,
        title=" and ".join(file.name for file in missing or checkpoint.PUBLISHED),
        missing=sum(file.size for file in missing) or None,
        fetch=lambda progress: checkpoint.resolve_point_e(None, offline=False, announce=sink.note, progress=progress),
        check=lambda: checkpoint.resolve_point_e(None, offline=True, announce=_silent).base.parent,
    )
    yield _of_hub(
        POINT_E,
        f"its text encoder {clip.CLIP.id}",
        clip.plan_clip_download(),
        lambda: clip.resolve_clip(None, offline=True, announce=sink.note),
    )


def _clip(sink: Output) -> Iterator[_Item]:
    """The network of the metric `clip`."""
    from segdream_cli.evaluate import clip_metric

    yield _of_hub(
        CLIP,
        f"{clip_metric.MODEL.id} for segdream evaluate",
        clip_metric.plan_download(),
        lambda: clip_metric.resolve(None, offline=True, announce=_silent),
    )


def _image_reward(sink: Output) -> Iterator[_Item]:
    """The checkpoint and the vocabulary of the metric `image-reward`."""
    from segdream_cli.evaluate.image_reward import VOCABULARY, WEIGHTS

    for model in (WEIGHTS, VOCABULARY):
        check = partial(model.locate_files, [model.marker], offline=True, announce=sink.note)
        yield _of_hub(IMAGE_REWARD, f"{model.marker} of {model.id}", model.plan_files([model.marker]), check)


def _fid(sink: Output) -> Iterator[_Item]:
    """The weights of the metric `fid`."""
    from segdream_cli.evaluate import inception

    yield _Item(
        name=FID,
        title=inception.NAME,
        missing=None if inception.cached_file().is_file() else inception.BYTES,
        fetch=lambda progress: inception.resolve(offline=False, announce=sink.note, progress=progress),
        check=lambda: inception.resolve(offline=True, announce=_silent).parent,
    )


def _of_hub(name: str, title: str, plan: "HubDownload | None", check: Callable[[], Path]) -> _Item:
    """An item of the Hub; `plan` is None if the cache has all its files."""

    def download(progress: "Progress") -> None:
        if plan is not None:
            plan.fetch(_silent, progress)

    return _Item(name=name, title=title, missing=plan.missing if plan else None, fetch=download, check=check)


def _silent(_: str) -> None:
    """Ignores a message: the command has already announced the download."""


_ITEMS: dict[str, Callable[[Output], Iterator[_Item]]] = {
    SD21: _stable_diffusion,
    POINT_E: _point_e,
    CLIP: _clip,
    IMAGE_REWARD: _image_reward,
    FID: _fid,
}
