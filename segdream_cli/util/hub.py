"""Models on the Hugging Face Hub: their files in the local cache, downloads, hashes, and error messages."""

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from segdream_cli.errors import WeightsAbsent, WeightsUnavailable
from segdream_cli.util import compat
from segdream_cli.util.download import Progress, cache_folder, check_space, describe_download, file_sha256
from segdream_cli.util.files import parse_json, relocation
from segdream_cli.util.hashes import has_sha256, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A model on the Hub, or in its local cache.

    Every method raises `WeightsUnavailable` if the Hub can't be reached or refuses.
    """

    id: str
    """The owner and the name, such as "openai/clip-vit-large-patch14"."""
    marker: str
    """A file that is in every cached snapshot of the model."""
    fallback_hint: str
    """Hint for an error of the Hub."""
    revision: str | None = None
    """Branch, tag or commit; None is the main branch."""
    pinned: Mapping[str, str] = field(default_factory=dict)
    """Published SHA-256 of files."""

    def local_folder(self) -> Path | None:
        """The snapshot folder in the local cache, complete or not; None if there is none."""
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return self.snapshot([self.marker], local_files_only=True)
        except WeightsUnavailable as problem:
            if isinstance(problem.__cause__, LocalEntryNotFoundError):
                return None
            raise

    def snapshot(self, patterns: Collection[str], **options: Any) -> Path:
        """Downloads the files that match a pattern; returns the snapshot folder. Options are the client's."""
        from huggingface_hub import snapshot_download

        with self._translate_errors():
            found = snapshot_download(self.id, revision=self.revision, allow_patterns=list(patterns), **options)
        return Path(found)

    def fetch_small(self, patterns: Collection[str]) -> Path:
        """Downloads files of a few kilobytes without a progress bar; returns the snapshot folder."""
        self._check_reachable()
        with _hide_bars():
            return self.snapshot(patterns)

    def list_files(self, patterns: Collection[str]) -> dict[str, tuple[int, bool]]:
        """For each file that matches a pattern: its bytes, and whether the cache lacks it."""
        from huggingface_hub import snapshot_download

        self._check_reachable()
        with self._translate_errors(), _hide_bars():
            found = snapshot_download(self.id, revision=self.revision, allow_patterns=list(patterns), dry_run=True)
        return {file.filename: (file.file_size or 0, file.will_download) for file in found}

    def _check_reachable(self) -> None:
        """Asks for the revision once; for the files of a commit, the client would ask six times in half a minute."""
        from huggingface_hub import HfApi

        with self._translate_errors():
            HfApi().model_info(self.id, revision=self.revision)

    def select(self, listed: dict[str, tuple[int, bool]], names: Collection[str]) -> "HubDownload":
        """The download of those files of a listing that `names` contains."""
        missing = sum(listed[name][0] for name in names if listed[name][1])
        return HubDownload(model=self, names=tuple(sorted(names)), missing=missing)

    def locate(
        self,
        is_complete: Callable[[Path], bool],
        plan: Callable[[], "HubDownload"],
        *,
        offline: bool,
        announce: Callable[[str], None],
    ) -> Path:
        """The folder of a complete snapshot: the cached one, else a downloaded one.

        Args:
            is_complete: tells whether a cached snapshot lacks nothing.
            plan: chooses the files to download.
            offline: never use the network; HF_HUB_OFFLINE has the same effect.
            announce: receives a line with the size before the download starts.
        """
        cached = self.local_folder()
        if cached is not None and is_complete(cached):
            return cached
        if is_offline(offline):
            state = "not" if cached is None else "only partly"
            raise WeightsAbsent(
                f"{self.id} is {state} in the local cache, and offline mode is on",
                hint=comment(self.fallback_hint, "or run once without --offline and HF_HUB_OFFLINE"),
            )
        return plan().fetch(announce)

    def locate_files(
        self, names: Collection[str], optional: Collection[str] = (), *, offline: bool, announce: Callable[[str], None]
    ) -> Path:
        """The folder of a snapshot with the files `names`; downloaded if necessary.

        Args:
            names: the files.
            optional: files to download too if the Hub has them.
            offline: never use the network, as for `locate`.
            announce: receives a line with the size before the download starts, and one at the first use.
        """
        found = self.locate(
            lambda folder: _is_complete(folder, names, optional),
            lambda: self._plan(names, optional),
            offline=offline,
            announce=announce,
        )
        self.hash_files(found, [name for name in (*names, *optional) if (found / name).is_file()], announce)
        return found

    def plan_files(self, names: Collection[str], optional: Collection[str] = ()) -> "HubDownload | None":
        """The files that `locate_files` would download; None if the local cache has all `names`."""
        cached = self.local_folder()
        return None if cached is not None and _is_complete(cached, names, optional) else self._plan(names, optional)

    def _plan(self, names: Collection[str], optional: Collection[str]) -> "HubDownload":
        listed = self.list_files([*names, *optional])
        if absent := [name for name in names if name not in listed]:
            raise WeightsUnavailable(f"{self.id} has no {', '.join(absent)} on the Hub", hint=self.fallback_hint)
        return self.select(listed, listed)

    def hash_files(self, folder: Path, names: Collection[str], announce: Callable[[str], None]) -> dict[str, str]:
        """SHA-256 of files of a snapshot, compared with the published ones and those of their first use here.

        Args:
            folder: the snapshot.
            names: files in it.
            announce: receives a line when files are used for the first time.

        Raises:
            WeightsUnavailable: a file is damaged, or is not the one that was used first.
        """
        record = cache_folder() / "first-use" / f"{self.id.replace('/', '--')}@{self.revision or 'main'}.json"
        known: dict[str, str] = {}
        with suppress(OSError, ValueError, TypeError):
            known = dict(parse_json(record.read_text(encoding="utf-8")))
        hashes = {name: hash_blob(folder / name) for name in names}
        for name, found in hashes.items():
            if (expected := self.pinned.get(name, found)) != found:
                raise WeightsUnavailable(
                    f"{name} of {self.id} has SHA-256 {found} instead of the published {expected}",
                    hint=removal(folder / name) + (" && unset HF_ENDPOINT" if "HF_ENDPOINT" in os.environ else ""),
                )
            if (expected := known.get(name, found)) != found:
                raise WeightsUnavailable(
                    f"{name} of {self.id} has changed since its first use here: SHA-256 {found} instead of {expected}",
                    hint=f"rm {quote(str(record))}  # to trust the new files",
                )
        if new := sorted(hashes.keys() - known.keys()):
            write_json(record, known | hashes)
            announce(f"{self.id}: SHA-256 of {len(new)} files recorded in {record}; later uses must match")
        return hashes

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Turns every error of the Hub's client into `WeightsUnavailable`."""
        try:
            yield
        except WeightsUnavailable:
            raise
        except Exception as problem:  # also those of its HTTP library, which differs between versions
            message, hint = self._describe(problem)
            raise WeightsUnavailable(message, hint=hint) from problem

    def _describe(self, problem: Exception) -> tuple[str, str | None]:
        """The message and the hint, if there is one, for an exception of the Hub's client."""
        from huggingface_hub import errors

        if isinstance(problem, (errors.DryRunError, errors.LocalEntryNotFoundError)):
            problem = problem.__cause__ if isinstance(problem.__cause__, Exception) else problem
        name, fallback = self.id, self.fallback_hint
        match problem:
            case errors.HFValidationError():
                return f"{name!r} is neither a folder nor a Hub id", fallback
            case errors.GatedRepoError():
                page = f"https://huggingface.co/{name}"
                return (
                    f"{name} is gated: its owner asks for an agreement",
                    f"hf auth login  # after you have agreed at {page}",
                )
            case errors.RepositoryNotFoundError():
                return f"the Hub has no {name}, or it is private", comment(fallback, "for a private one: hf auth login")
            case errors.RevisionNotFoundError():
                return f"{name} has no revision {self.revision!r}", "--set prior.revision=main"
            case errors.HfHubHTTPError() if problem.response.status_code in (401, 403):
                return f"the Hub refused the access token for {name}", "hf auth login  # or: unset HF_TOKEN"
            case errors.HfHubHTTPError():
                return (
                    f"the Hub answered {problem.response.status_code} for {name}",
                    comment(fallback, "or try again later"),
                )
            case UnicodeDecodeError():  # the client's only texts are the names of commits
                ref = models_folder() / f"models--{name.replace('/', '--')}" / "refs" / (self.revision or "main")
                return f"{ref} is damaged", removal(ref)
            case OSError() if problem.errno is not None:
                from huggingface_hub import constants

                hint = relocation("HF_HOME", Path(constants.HF_HUB_CACHE), problem)
                return f"{name} can't be stored: {problem.strerror}", hint
        return f"{name} can't be downloaded, the Hub can't be reached: {first_line(problem)}", fallback


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDownload:
    """Files of a Hub model to download to the local cache."""

    model: HubModel
    names: tuple[str, ...]
    missing: int
    """Bytes that the cache lacks."""

    def fetch(self, announce: Callable[[str], None], progress: Progress | None = None) -> Path:
        """Downloads the missing files; returns the snapshot folder.

        Args:
            announce: receives a line with the size before the download starts.
            progress: receives the bytes done and in total; without it the Hub's own bars appear.

        Raises:
            WeightsUnavailable: the download failed, or the disk is too full.
        """
        cache = models_folder()
        check_space(cache, self.missing, variable="HF_HOME")
        announce(f"downloading {self.model.id}, {describe_download(self.missing)}, to {cache}")
        bars = None if progress is None else _silent_bar(progress, self.missing)
        return self.model.snapshot(self.names, tqdm_class=bars)


def models_folder() -> Path:
    """The folder of the Hub's cache, which other programs use too."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _is_complete(folder: Path, names: Collection[str], optional: Collection[str]) -> bool:
    """Whether a snapshot has the files `names`, and whether all links to others lead to a file."""
    return not absent_files(folder, names) and not any(
        (folder / name).is_symlink() and not (folder / name).exists() for name in optional
    )


def absent_files(folder: Path, names: Collection[str]) -> list[str]:
    """Those of the files `names` that a folder lacks."""
    return [name for name in names if not (folder / name).is_file()]


def comment(hint: str, text: str) -> str:
    """A hint with a comment for the reader, which a shell ignores."""
    return f"{hint}; {text}" if " # " in hint else f"{hint}  # {text}"


def removal(path: Path) -> str:
    """The command that removes a file, or the target of a link in the Hub's cache."""
    return f"rm {quote(str(path.resolve()))}"


def hash_blob(path: Path) -> str:
    """SHA-256 of a file; one in the Hub's cache is compared with its name, a large one only once.

    The cache names large files by their SHA-256, and the others by Git's SHA-1.

    Raises:
        WeightsUnavailable: the file can't be read, or has another hash than its name.
    """
    blob = path.resolve()
    name = blob.name if blob.parent.name == "blobs" else ""
    try:
        if re.fullmatch(r"[0-9a-f]{64}", name):
            found, whole = name, has_sha256(blob, name)
        else:
            found, whole = file_sha256(blob), not re.fullmatch(r"[0-9a-f]{40}", name) or _git_sha1(blob) == name
    except OSError as problem:
        raise WeightsUnavailable(f"{path} can't be read: {problem.strerror}", hint=removal(path)) from problem
    if not whole:
        raise WeightsUnavailable(
            f"{path} is damaged: its content does not have the hash in its name",
            hint=f"{removal(path)}  # the next run downloads it again",
        )
    return found


def _git_sha1(path: Path) -> str:
    """Git's hash of a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def is_offline(asked: bool) -> bool:
    """Whether an option or HF_HUB_OFFLINE forbids the network."""
    from huggingface_hub import is_offline_mode

    return asked or is_offline_mode()


def first_line(problem: Exception) -> str:
    """The first line of an exception's message, or the name of its class."""
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)


@contextmanager
def _hide_bars() -> Iterator[None]:
    """Hides the Hub's progress bars: only the one long download shows them."""
    utils = compat.hub_utils()
    hidden = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            utils.enable_progress_bars()


def _silent_bar(progress: Progress, total: int) -> type[Any]:
    """A progress-bar class for the Hub's client that shows nothing and reports bytes.

    The client shows one bar of bytes or two (received, and written), depending on its version; the further one counts.
    """
    bar: Any = compat.hub_utils().tqdm
    furthest = 0

    class SilentBar(bar):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"disable": True})
            self.counts_bytes = options.get("unit") == "B"

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            self.n += n or 0
            if self.counts_bytes and self.n > furthest:
                furthest = int(self.n)
                progress(min(furthest, total), total)

    return SilentBar
