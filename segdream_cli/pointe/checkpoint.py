"""Finds, downloads and verifies Point-E's official checkpoints, and converts them once, so later loads never unpickle.

For each stage the cache holds `NAME.safetensors` and `NAME.json`, a record of the published file and of the SHA-256 of
both. Later loads compare the hashes with the record.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from segdream_cli.errors import WeightsAbsent, WeightsUnavailable
from segdream_cli.pointe.transformer import infer_config
from segdream_cli.util.download import (
    Progress,
    cache_folder,
    cache_write_errors,
    check_space,
    describe_download,
    download,
    file_sha256,
)
from segdream_cli.util.files import atomic_write, exclusive, parse_json, sweep
from segdream_cli.util.hashes import has_sha256
from segdream_cli.util.hub import is_offline
from segdream_cli.util.weights import read_errors, read_pickled

ADDRESS = "https://openaipublic.azureedge.net/main/point-e"
"""OpenAI's address of the files."""
ADDRESS_VARIABLE = "SEGDREAM_POINT_E_URL"
"""Environment variable with another address for the same files."""

_FALLBACK_HINT = "--init sphere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A file of the official release."""

    name: str
    condition: Literal["text", "points"]
    """The condition of the stage."""
    size: int
    """Bytes."""
    sha256: str | None
    """Published SHA-256; without one, segdream trusts the first download, and later ones must match it."""

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return Path(self.name).stem


# OpenAI states no hashes. These come from the Git LFS pointers of two public copies of the release, which agree: the
# Hugging Face Space MirageML/point-e (three days after the release) and the GitHub repository
# sshajithatvm/Point-E-Enhanced, which also gives the sizes.
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
    """SHA-256 over the stages' weights; independent of the files' folder."""
    origin: str
    """The folder or the address of the original files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """The record of a converted file in the cache."""

    origin: str
    sha256: str
    """SHA-256 of the published file."""
    converted_sha256: str
    """SHA-256 of the safetensors file."""


def resolve_point_e(
    folder: Path | None, *, offline: bool, announce: Callable[[str], None], progress: Progress | None = None
) -> PointECheckpoint:
    """Finds the two official checkpoints, or downloads them to the cache, and verifies them.

    Args:
        folder: has base_40m_textvec and upsample_40m, each as .pt or .safetensors; None means the cache.
        offline: never use the network; HF_HUB_OFFLINE has the same effect.
        announce: receives a line with the size before a download starts, and the SHA-256 of new files.
        progress: receives the bytes done and in total, over both files.

    Raises:
        WeightsUnavailable: a file is missing, can't be downloaded, is damaged, has another SHA-256 than the published
            or recorded one, or holds another network; or the cache can't be written.
    """
    if folder is not None:
        hashes = dict(_resolve_local(folder, file, announce) for file in PUBLISHED)
        return open_point_e(*hashes, origin=str(folder), hashes=hashes)
    store = _store()
    if absent_files():
        _complete_cache(store, is_offline(offline), announce, progress)
    hashes = dict(_verify_cached(store, file) for file in PUBLISHED)
    return open_point_e(*hashes, origin=_read_record(store, PUBLISHED[0]).origin, hashes=hashes)


def absent_files() -> tuple[Published, ...]:
    """Published files that the cache lacks."""
    store = _store()
    return tuple(
        file for file in PUBLISHED if not (_record_path(store, file).is_file() and _weights_path(store, file).is_file())
    )


def open_point_e(
    base: Path, upsample: Path | None = None, *, origin: str, hashes: Mapping[Path, str] = MappingProxyType({})
) -> PointECheckpoint:
    """The checkpoint of safetensors files, and of the `config.json` beside the base stage if it has one.

    Args:
        base: file of the base stage.
        upsample: file of the upsampling stage.
        origin: the folder or the address of the original files.
        hashes: known SHA-256 of files, which need not be computed again.

    Raises:
        WeightsUnavailable: a file can't be read.
    """
    described = base.with_name("config.json")
    parts = {"base": base, "upsample": upsample, "config": described if described.is_file() else None}
    total = hashlib.sha256()
    for part, path in parts.items():
        if path is not None:
            with read_errors(path, _FALLBACK_HINT):
                total.update(f"{part} {hashes.get(path) or file_sha256(path)}\n".encode())
    return PointECheckpoint(base=base, upsample=upsample, digest=total.hexdigest(), origin=origin)


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads the weights in a safetensors file.

    Raises:
        WeightsUnavailable: the file can't be read, or is incomplete.
    """
    from safetensors.torch import load_file

    with read_errors(path, _FALLBACK_HINT):
        state: dict[str, Tensor] = load_file(path)
    return state


def _store() -> Path:
    return cache_folder() / "point-e"


def _record_path(store: Path, file: Published) -> Path:
    return store / f"{file.stem}.json"


def _weights_path(store: Path, file: Published) -> Path:
    return store / f"{file.stem}.safetensors"


def _complete_cache(store: Path, offline: bool, announce: Callable[[str], None], progress: Progress | None) -> None:
    """Downloads the files that the cache lacks; one process does it while others wait."""
    if offline:
        raise WeightsAbsent(
            f"Point-E is not in the cache {store}, and offline mode is on",
            hint="segdream fetch point-e  # once, while online",
        )
    with cache_write_errors(store), exclusive(store / ".lock"):
        missing = absent_files()
        if not missing:
            return
        total = sum(file.size for file in missing)
        check_space(
            store, total + max(file.size for file in missing)
        )  # a file and its conversion exist together for a while
        address = os.environ.get(ADDRESS_VARIABLE) or ADDRESS
        announce(f"downloading Point-E, {describe_download(total)}, from {address} to {store}")
        before = 0
        for file in missing:
            _fetch_stage(store, file, address, announce, progress and _add_offset(progress, before, total))
            before += file.size


def _add_offset(progress: Progress, before: int, total: int) -> Progress:
    """Reports the progress of one file as progress of all files."""
    return lambda done, _: progress(before + done, total)


def _fetch_stage(
    store: Path, file: Published, address: str, announce: Callable[[str], None], progress: Progress | None
) -> None:
    """Downloads a published file, converts it, and records its hash."""
    url = f"{address.rstrip('/')}/{file.name}"
    pickled = store / file.name
    record = _record_path(store, file)
    recorded = _read_record(store, file).sha256 if record.is_file() else None
    expected = file.sha256 or recorded
    found = file_sha256(pickled) if pickled.is_file() else None  # complete if a process ended before the conversion
    if found is None or found != expected:
        found = download(
            url,
            pickled,
            hint=f"rm {shlex.quote(str(record))}  # to trust the new file"
            if recorded and not file.sha256
            else _FALLBACK_HINT,
            size=file.size,
            sha256=expected,
            progress=progress,
        )
    try:
        _convert(pickled, store, file, address, found)
    finally:
        pickled.unlink(missing_ok=True)
    known = "as published" if file.sha256 else "as recorded" if recorded else "recorded now; later downloads must match"
    announce(f"{file.name} has SHA-256 {found}, {known}")


def _resolve_local(folder: Path, file: Published, announce: Callable[[str], None]) -> tuple[Path, str]:
    """Finds the safetensors of a stage in a user's folder, or converts its .pt there to the cache.

    Returns:
        Path and SHA-256.
    """
    ready, pickled = (folder / f"{file.stem}.{suffix}" for suffix in ("safetensors", "pt"))
    if ready.is_file():
        _check_stage(read_state(ready), ready, file)
        with read_errors(ready, _FALLBACK_HINT):
            return ready, file_sha256(ready)
    if not pickled.is_file():
        raise WeightsUnavailable(
            f"{folder} has neither {pickled.name} nor {ready.name}",
            hint=_FALLBACK_HINT,
        )
    with read_errors(pickled, _FALLBACK_HINT):
        found = file_sha256(pickled)
    store = _store() / found[:16]
    if not _record_path(store, file).is_file() or not _weights_path(store, file).is_file():
        with cache_write_errors(_store()), exclusive(_store() / ".lock"):
            check_space(store, pickled.stat().st_size)
            _convert(pickled, store, file, str(folder), found)
        known = "as published" if found == file.sha256 else "which is not that of the published file"
        announce(f"{pickled} has SHA-256 {found}, {known}")
    return _verify_cached(store, file)


def _verify_cached(store: Path, file: Published) -> tuple[Path, str]:
    """Compares the cached safetensors of a stage with their record; returns their path and SHA-256."""
    record, path = _read_record(store, file), _weights_path(store, file)
    with read_errors(path, _FALLBACK_HINT):
        whole = has_sha256(path, record.converted_sha256)
    if not whole:
        raise WeightsUnavailable(
            f"{path} is damaged: its SHA-256 is not the recorded {record.converted_sha256}",
            hint=f"rm {shlex.quote(str(path))}  # the next run creates it again",
        )
    return path, record.converted_sha256


def _read_record(store: Path, file: Published) -> _Record:
    """Reads the record of a cached file."""
    path = _record_path(store, file)
    try:
        record = _Record(**parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as problem:
        raise WeightsUnavailable(
            f"{path} is not a record of a download: {problem}", hint=f"rm {shlex.quote(str(path))}"
        ) from problem
    return record


def _convert(pickled: Path, store: Path, file: Published, origin: str, sha256: str) -> None:
    """Converts the weights of a .pt to safetensors in the cache, then writes the record."""
    from safetensors.torch import save

    state = read_pickled(pickled, _FALLBACK_HINT)
    _check_stage(state, pickled, file)
    content = save({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()})
    record = _Record(origin=origin, sha256=sha256, converted_sha256=hashlib.sha256(content).hexdigest())
    with cache_write_errors(store):
        store.mkdir(exist_ok=True)
        sweep(store)
        with atomic_write(_weights_path(store, file)) as temporary:
            temporary.write_bytes(content)
        with atomic_write(_record_path(store, file)) as temporary:
            temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def _check_stage(state: Mapping[str, Tensor], path: Path, file: Published) -> None:
    """Refuses a network that is not the stage in the file's name."""
    try:
        config = infer_config(state)
    except WeightsUnavailable as problem:
        raise WeightsUnavailable(f"{path} can't be used: {problem.message}", hint=problem.hint) from problem
    if config.condition != file.condition:
        raise WeightsUnavailable(
            f"{path} holds the stage that is conditioned on {config.condition}, and not on {file.condition}",
            hint=_FALLBACK_HINT,
        )
