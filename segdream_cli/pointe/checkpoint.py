"""Point-E's official checkpoints: found, downloaded, verified, and converted once so that later loads never unpickle.

The cache holds, for each stage, `NAME.safetensors` and `NAME.json`, a record of the published file that it came from
and of both SHA-256. What a record says is compared from then on.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.pointe.transformer import infer_config
from segdream_cli.util import hub
from segdream_cli.util.download import (
    Progress,
    cache_folder,
    cache_write_errors,
    check_space,
    download,
    download_in_words,
    file_sha256,
)
from segdream_cli.util.files import exclusive, replacing

ADDRESS = "https://openaipublic.azureedge.net/main/point-e"
"""Where OpenAI publishes the files."""
ADDRESS_VARIABLE = "SEGDREAM_POINT_E_URL"
"""Environment variable with another address for the same files."""

_ELSEWHERE = "--point-e-dir /path/to/folder, or --init sphere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A file of the official release."""

    name: str
    condition: Literal["text", "points"]
    """What the stage is conditioned on."""
    size: int
    """Bytes."""
    sha256: str | None
    """Publicly documented hash; without one the first download is trusted, and later ones must be the same."""

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return Path(self.name).stem


# OpenAI states no hashes. These are those of the Git LFS pointers to the two files in two public copies of the release
# that agree: the Hugging Face Space MirageML/point-e (made three days after the release)
# and the GitHub repository sshajithatvm/Point-E-Enhanced, which also gives the sizes.
PUBLISHED = (
    Published(
        name="base_40m_textvec.pt",
        condition="text",
        size=161_385_413,
        sha256="c01c13df8f2f6ebdc4daf360625350a3715e7cd3ed4ac93e577f9f1958bfccc4",
    ),
    Published(
        name="upsample_40m.pt",
        condition="points",
        size=161_934_137,
        sha256="07881c369ee0bef1a45b8ff1f464626a099a6023eef4197e4a445f5dce37ed20",
    ),
)
"""The base stage and the upsampling stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointECheckpoint:
    """Verified safetensors of Point-E's stages."""

    base: Path
    upsample: Path | None
    digest: str
    """SHA-256 over the stages' weights; the same wherever the files lie."""
    origin: str
    """The folder or the address that the files came from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What is known of a cached file."""

    origin: str
    sha256: str
    """Of the published file."""
    converted_sha256: str
    """Of the safetensors file."""


def resolve_point_e(
    folder: Path | None, *, offline: bool, announce: Callable[[str], None], progress: Progress | None = None
) -> PointECheckpoint:
    """Finds the two official checkpoints, downloading them if they are not in the cache, and verifies them.

    Args:
        folder: holds base_40m_textvec and upsample_40m, each as .pt or .safetensors; none is the cache.
        offline: never use the network; HF_HUB_OFFLINE has the same effect.
        announce: receives a line with the size before a download starts, and the SHA-256 of what is new.
        progress: receives the bytes done of the whole download, and in all.

    Raises:
        WeightsUnavailable: a file is missing, out of reach, damaged, has another SHA-256 than the published or the
            recorded one, or is another network; or the cache can't be written.
    """
    if folder is not None:
        hashes = dict(_local(folder, file, announce) for file in PUBLISHED)
        return open_point_e(*hashes, origin=str(folder), hashes=hashes)
    store = _store()
    if missing_files():
        _download_missing(store, hub.is_offline(offline), announce, progress)
    hashes = dict(_kept(store, file) for file in PUBLISHED)
    return open_point_e(*hashes, origin=_read_record(store, PUBLISHED[0]).origin, hashes=hashes)


def missing_files() -> tuple[Published, ...]:
    """The published files that the cache lacks."""
    store = _store()
    return tuple(
        file
        for file in PUBLISHED
        if not (_record_path(store, file).is_file() and _converted_path(store, file).is_file())
    )


def open_point_e(
    base: Path, upsample: Path | None = None, *, origin: str, hashes: Mapping[Path, str] = MappingProxyType({})
) -> PointECheckpoint:
    """The checkpoint made of safetensors files, and of the `config.json` beside the base stage if there is one.

    Args:
        base: the base stage's file.
        upsample: the upsampling stage's.
        origin: the folder or the address that they came from.
        hashes: SHA-256 of files as far as they have just been computed.

    Raises:
        WeightsUnavailable: a file can't be read.
    """
    described = base.with_name("config.json")
    parts = {"base": base, "upsample": upsample, "config": described if described.is_file() else None}
    total = hashlib.sha256()
    for part, path in parts.items():
        if path is not None:
            with _reading(path):
                total.update(f"{part} {hashes.get(path) or file_sha256(path)}\n".encode())
    return PointECheckpoint(base=base, upsample=upsample, digest=total.hexdigest(), origin=origin)


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights in a safetensors file.

    Raises:
        WeightsUnavailable: it can't be read, or is not whole.
    """
    from safetensors.torch import load_file

    with _reading(path):
        state: dict[str, Tensor] = load_file(path)
    return state


def _store() -> Path:
    return cache_folder() / "point-e"


def _record_path(store: Path, file: Published) -> Path:
    return store / f"{file.stem}.json"


def _converted_path(store: Path, file: Published) -> Path:
    return store / f"{file.stem}.safetensors"


def _download_missing(store: Path, offline: bool, announce: Callable[[str], None], progress: Progress | None) -> None:
    """Completes the cache; of several processes one does it, the others wait."""
    if offline:
        raise WeightsUnavailable(
            f"Point-E is not in the cache {store}, and going online is not allowed",
            hint=f"segdream fetch point-e, once, while online; or {_ELSEWHERE}",
        )
    with cache_write_errors(store), exclusive(store / ".lock"):
        missing = missing_files()
        if not missing:
            return
        total = sum(file.size for file in missing)
        check_space(store, total + max(file.size for file in missing))  # a file and its conversion are there at once
        address = os.environ.get(ADDRESS_VARIABLE) or ADDRESS
        announce(f"downloading Point-E, {download_in_words(total)}, from {address} to {store}")
        before = 0
        for file in missing:
            _fetch(store, file, address, announce, progress and _shifted(progress, before, total))
            before += file.size


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    """Reports one file of several."""
    return lambda done, _: progress(before + done, total)


def _fetch(
    store: Path, file: Published, address: str, announce: Callable[[str], None], progress: Progress | None
) -> None:
    """Downloads a published file, converts it, and notes its hash."""
    url = f"{address.rstrip('/')}/{file.name}"
    pickled = store / file.name
    record = _record_path(store, file)
    recorded = _read_record(store, file).sha256 if record.is_file() else None
    expected = file.sha256 or recorded
    found = file_sha256(pickled) if pickled.is_file() else None  # whole, if a run ended before it was converted
    if found is None or found != expected:
        found = download(
            url,
            pickled,
            hint=f"{_ELSEWHERE}; to trust another file anew: rm {shlex.quote(str(record))}"
            if recorded and not file.sha256
            else _ELSEWHERE,
            size=file.size,
            sha256=expected,
            progress=progress,
        )
    try:
        _convert(pickled, store, file, address, found)
    finally:
        pickled.unlink(missing_ok=True)
    known = "as published" if file.sha256 else "as recorded" if recorded else "recorded now, later ones must be equal"
    announce(f"{file.name} has SHA-256 {found}, {known}")


def _local(folder: Path, file: Published, announce: Callable[[str], None]) -> tuple[Path, str]:
    """The safetensors of a stage in a user's folder, or the conversion of its .pt there, which the cache keeps.

    Returns:
        Path and SHA-256.
    """
    ready, pickled = (folder / f"{file.stem}.{suffix}" for suffix in ("safetensors", "pt"))
    if ready.is_file():
        _check_stage(read_state(ready), ready, file)
        with _reading(ready):
            return ready, file_sha256(ready)
    if not pickled.is_file():
        raise WeightsUnavailable(
            f"{folder} has neither {pickled.name} nor {ready.name}",
            hint=f"ls {shlex.quote(str(folder))}, or --init sphere",
        )
    with _reading(pickled):
        found = file_sha256(pickled)
    store = _store() / found[:16]
    if not _record_path(store, file).is_file() or not _converted_path(store, file).is_file():
        with cache_write_errors(_store()), exclusive(_store() / ".lock"):
            check_space(store, pickled.stat().st_size)
            _convert(pickled, store, file, str(folder), found)
        known = "as published" if found == file.sha256 else "which is not that of the published file"
        announce(f"{pickled} has SHA-256 {found}, {known}")
    return _kept(store, file)


def _kept(store: Path, file: Published) -> tuple[Path, str]:
    """The cached safetensors of a stage, compared with its record, and their SHA-256."""
    record, path = _read_record(store, file), _converted_path(store, file)
    with _reading(path):
        found = file_sha256(path)
    if found != record.converted_sha256:
        raise WeightsUnavailable(
            f"{path} has SHA-256 {found}, and not the recorded {record.converted_sha256}",
            hint=f"rm {shlex.quote(str(path))}  # it is then made anew",
        )
    return path, found


def _read_record(store: Path, file: Published) -> _Record:
    """What is known of a cached file."""
    path = _record_path(store, file)
    try:
        record = _Record(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as problem:
        raise WeightsUnavailable(
            f"{path} is not a record of a download: {problem}", hint=f"rm {shlex.quote(str(path))}"
        ) from problem
    return record


def _convert(pickled: Path, store: Path, file: Published, origin: str, sha256: str) -> None:
    """Writes the weights of a .pt as safetensors into the cache, and then the record."""
    from safetensors.torch import save

    state = _unpickle(pickled)
    _check_stage(state, pickled, file)
    content = save({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()})
    record = _Record(origin=origin, sha256=sha256, converted_sha256=hashlib.sha256(content).hexdigest())
    with cache_write_errors(store):
        store.mkdir(exist_ok=True)
        with replacing(_converted_path(store, file)) as temporary:
            temporary.write_bytes(content)
        with replacing(_record_path(store, file)) as temporary:
            temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def _unpickle(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a .pt, read without running anything that is in it."""
    with _reading(path):
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(data, Mapping) or not data:
        raise WeightsUnavailable(f"{path} holds no weights but a {type(data).__name__}", hint=_ELSEWHERE)
    for name, value in data.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsUnavailable(
                f"{path} is no plain set of weights: {name!r} is a {type(value).__name__}", hint=_ELSEWHERE
            )
    return data


def _check_stage(state: Mapping[str, Tensor], path: Path, file: Published) -> None:
    """Refuses another network than the stage that the file's name promises."""
    try:
        config = infer_config(state)
    except WeightsUnavailable as problem:
        raise WeightsUnavailable(f"{path} can't be used: {problem.message}", hint=problem.hint) from problem
    if config.condition != file.condition:
        raise WeightsUnavailable(
            f"{path} holds the stage that is conditioned on {config.condition}, and not on {file.condition}",
            hint="--point-e-dir with base_40m_textvec.pt and upsample_40m.pt under their own names",
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what a library raises while it reads a file into `WeightsUnavailable`."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as problem:  # torch raises five kinds, safetensors its own
        raise WeightsUnavailable(f"{path} can't be read: {_said(problem)}", hint=_ELSEWHERE) from problem


def _said(problem: Exception) -> str:
    """What is wrong with a file, in a line; torch's own words for a refused pickle advise to switch the check off."""
    if "weights_only" in str(problem):
        return "it holds more than weights, which is not unpickled"
    return hub.reason(problem).partition(". ")[0]
