"""The Hugging Face Hub: what a model's files are, their download, and the Hub's errors as sentences."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.util import compat
from segdream_cli.util.download import Progress, check_space, download_in_words


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFiles:
    """Files of a Hub model that are wanted in the local cache."""

    model: str
    revision: str | None
    names: tuple[str, ...]
    size: int
    """Bytes of all of them."""
    missing: int
    """Bytes that are not in the cache yet."""
    elsewhere: str
    """Hint for when the Hub can't give them."""

    def fetch(self, announce: Callable[[str], None], progress: Progress | None = None) -> Path:
        """Downloads what is missing; returns the snapshot's folder.

        Args:
            announce: receives a line with the size before the download starts.
            progress: receives the bytes done and in all; without it the Hub's own bars are shown.

        Raises:
            WeightsUnavailable: the download failed, or the disk has no room.
        """
        from huggingface_hub import constants, snapshot_download

        store = Path(constants.HF_HUB_CACHE)
        check_space(store, self.missing, variable="HF_HOME")
        announce(f"downloading {self.model}, {download_in_words(self.missing)}, to {store}")
        bars = None if progress is None else _reporting(progress, self.missing)
        names = list(self.names)
        with translated(self.model, self.revision, self.elsewhere):
            return Path(snapshot_download(self.model, revision=self.revision, allow_patterns=names, tqdm_class=bars))


def is_offline(asked: bool) -> bool:
    """Whether the network must not be used: asked for, or by HF_HUB_OFFLINE."""
    from huggingface_hub import is_offline_mode

    return asked or is_offline_mode()


def not_cached(model: str, *, partly: bool, elsewhere: str) -> WeightsUnavailable:
    """The error for a model that is not whole in the cache while the network must not be used."""
    return WeightsUnavailable(
        f"{model} is {'only in part' if partly else 'not'} in the local cache, and going online is not allowed",
        hint=f"leave out --offline and HF_HUB_OFFLINE once, or {elsewhere}",
    )


def cached_folder(model: str, revision: str | None, marker: str, elsewhere: str) -> Path | None:
    """The snapshot folder of a model in the Hub's cache, whole or not, if the file `marker` is in it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with translated(model, revision, elsewhere):
        try:
            folder = snapshot_download(model, revision=revision, allow_patterns=[marker], local_files_only=True)
        except LocalEntryNotFoundError:
            return None
    return Path(folder)


def listing(model: str, revision: str | None, patterns: Collection[str], elsewhere: str) -> dict[str, tuple[int, bool]]:
    """Name to size in bytes and whether it is still to be downloaded, of a model's files that match `patterns`."""
    from huggingface_hub import snapshot_download

    with translated(model, revision, elsewhere), _no_bars():
        found = snapshot_download(model, revision=revision, allow_patterns=list(patterns), dry_run=True)
    return {file.filename: (file.file_size or 0, file.will_download) for file in found}


def small_files(model: str, revision: str | None, patterns: Collection[str], elsewhere: str) -> Path:
    """Downloads files of a few kilobytes without a word; returns the snapshot's folder."""
    from huggingface_hub import snapshot_download

    with translated(model, revision, elsewhere), _no_bars():
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(patterns)))


def wanted_files(
    model: str, revision: str | None, listed: dict[str, tuple[int, bool]], names: Collection[str], elsewhere: str
) -> HubFiles:
    """Those `names` of a listing, to be fetched."""
    return HubFiles(
        model=model,
        revision=revision,
        names=tuple(sorted(names)),
        size=sum(listed[name][0] for name in names),
        missing=sum(listed[name][0] for name in names if listed[name][1]),
        elsewhere=elsewhere,
    )


@contextmanager
def _no_bars() -> Iterator[None]:
    """Hides the Hub's progress bars: they are for the one long download only."""
    utils = compat.hub_utils()
    hidden = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            utils.enable_progress_bars()


def _reporting(progress: Progress, total: int) -> type[Any]:
    """A progress bar for the Hub's client that shows nothing and reports bytes.

    The client draws one bar of bytes or two (received, and written), depending on its version: the furthest counts.
    """
    bar: Any = compat.hub_utils().tqdm
    furthest = 0

    class Reporting(bar):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"disable": True})
            self.bytes = options.get("unit") == "B"

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            self.n += n or 0
            if self.bytes and self.n > furthest:
                furthest = int(self.n)
                progress(min(furthest, total), total)

    return Reporting


@contextmanager
def translated(model: str, revision: str | None, elsewhere: str) -> Iterator[None]:
    """Turns whatever the Hub's client raises into `WeightsUnavailable`."""
    try:
        yield
    except WeightsUnavailable:
        raise
    except Exception as problem:  # its HTTP library, whose errors pass through, changes between versions
        message, hint = _hub_problem(problem, model, revision, elsewhere)
        raise WeightsUnavailable(message, hint=hint) from problem


def _hub_problem(problem: Exception, model: str, revision: str | None, elsewhere: str) -> tuple[str, str]:
    """The sentence and the hint for an exception of the Hub's client."""
    from huggingface_hub import errors

    if isinstance(problem, (errors.DryRunError, errors.LocalEntryNotFoundError)):
        problem = problem.__cause__ if isinstance(problem.__cause__, Exception) else problem
    match problem:
        case errors.HFValidationError():
            return f"{model!r} is neither a folder nor a Hub id", elsewhere
        case errors.GatedRepoError():
            page = f"https://huggingface.co/{model}"
            return f"{model} is gated: its owner asks for an agreement", f"agree at {page}, then: hf auth login"
        case errors.RepositoryNotFoundError():
            return f"the Hub has no {model}, or it is private", f"{elsewhere}; for a private one: hf auth login"
        case errors.RevisionNotFoundError():
            return f"{model} has no revision {revision!r}", "--set prior.revision=main"
        case errors.HfHubHTTPError() if problem.response.status_code in (401, 403):
            return f"the Hub refused the access token for {model}", "hf auth login, or: unset HF_TOKEN"
        case errors.HfHubHTTPError():
            return f"the Hub answered {problem.response.status_code} for {model}", f"try again later, or {elsewhere}"
        case OSError() if problem.errno is not None:
            return f"{model} can't be stored: {problem.strerror}", "HF_HOME=/a/larger/disk segdream ..."
    return f"{model} can't be downloaded, the Hub is out of reach: {reason(problem)}", elsewhere


def reason(problem: Exception) -> str:
    """The first line of what an exception says."""
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)
