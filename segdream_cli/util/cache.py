"""The parts of segdream's cache: their size, the check of their files, and their removal.

Each part is a folder in the cache, and the names of its files are known. Nothing else there is read or removed.
"""

import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from safetensors import SafetensorError

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.util.download import cache_folder, file_sha256
from segdream_cli.util.files import exclusive, parse_json, sweep
from segdream_cli.util.hub import hash_blob, models_folder
from segdream_cli.util.tensor_files import load_tensors

COMPUTED, COMPILED, DOWNLOADED, RECORD, SHARED = "computed", "compiled", "downloaded", "record", "shared"
KEY = "[0-9a-f]{32}"


def _check_json(path: Path) -> None:
    parse_json(path.read_text(encoding="utf-8"))


def _check_tensors(path: Path) -> None:
    load_tensors(path)


def _check_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if (member := archive.testzip()) is not None:
            raise ValueError(f"{member} has another checksum")


def _check_named(path: Path) -> None:
    """Compares a file with the beginning of its SHA-256 at the end of its name, as PyTorch publishes weights."""
    if path.suffix == ".pth" and not file_sha256(path).startswith(path.stem.rpartition("-")[2]):
        raise ValueError("its content does not have the hash in its name")


def _check_converted(path: Path) -> None:
    """Compares converted weights with the record beside them."""
    if path.suffix == ".safetensors":
        record = parse_json(path.with_suffix(".json").read_text(encoding="utf-8"))
        if file_sha256(path) != record["converted_sha256"]:
            raise ValueError("its content does not have the recorded SHA-256")


def _check_blob(path: Path) -> None:
    hash_blob(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the cache.

    Args:
        title: its content.
        kind: COMPUTED (made again when it is needed), COMPILED (as well, in minutes), DOWNLOADED, RECORD (hashes of
            the first use, which later downloads must match) or SHARED (with other programs, which is never removed).
        files: the names of its files, relative to its folder; None are all.
        check: raises an error if a file is damaged; None if nothing is known about the files.
    """

    title: str
    kind: str
    files: re.Pattern[str] | None
    check: Callable[[Path], object] | None


_POINT_E = r"(?:[0-9a-f]{16}/)?(?:base_40m_textvec|upsample_40m)\.(?:json|safetensors|pt(?:\.part(?:\.json)?)?)"
PARTS: Mapping[str, Part] = MappingProxyType(
    {
        "point-e": Part(
            title="weights of Point-E", kind=DOWNLOADED, files=re.compile(_POINT_E), check=_check_converted
        ),
        "inception": Part(
            title="weights of the metric fid",
            kind=DOWNLOADED,
            files=re.compile(r"weights-inception-[0-9-]+-[0-9a-f]{8}\.pth(?:\.part(?:\.json)?)?"),
            check=_check_named,
        ),
        "first-use": Part(
            title="hashes of models of the Hub, from their first use",
            kind=RECORD,
            files=re.compile(r"[^/]+@[^/]+\.json"),
            check=_check_json,
        ),
        "clouds": Part(
            title="Point-E's clouds", kind=COMPUTED, files=re.compile(rf"{KEY}\.safetensors"), check=_check_tensors
        ),
        "openvino": Part(
            title="networks for OpenVINO", kind=COMPUTED, files=re.compile(rf"{KEY}\.zip"), check=_check_zip
        ),
        "hashes": Part(
            title="hashes of weights that were read",
            kind=COMPUTED,
            files=re.compile(rf"{KEY}\.json"),
            check=_check_json,
        ),
        "timings": Part(
            title="times of earlier assets", kind=COMPUTED, files=re.compile(rf"{KEY}\.json"), check=_check_json
        ),
        "inductor": Part(title="networks that torch compiled", kind=COMPILED, files=None, check=None),
        "compiled": Part(
            title="networks that workers of --ray compiled",
            kind=COMPILED,
            files=re.compile(r"[^/]+\.bin"),
            check=None,
        ),
    }
)
"""Name of a folder in the cache -> what it has."""


@dataclass(frozen=True, slots=True)
class Store:
    """A part in its folder.

    Args:
        name: the part's; of a model of the Hub, its id.
        part: what it has.
        folder: where it is; it need not exist.
    """

    name: str
    part: Part
    folder: Path

    def files(self) -> list[Path]:
        """Its files; links do not count."""
        found = (path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())
        return sorted(path for path in found if self._owns(path))

    def find_damage(self) -> Iterator[tuple[Path, str]]:
        """The damaged files, and the reason for each."""
        for path in self.files() if self.part.check else ():
            try:
                assert self.part.check is not None
                self.part.check(path)
            except WeightsUnavailable as problem:
                yield path, problem.message
            except (OSError, ValueError, KeyError, TypeError, SafetensorError, zipfile.BadZipFile) as problem:
                yield path, str(problem)

    def remove(self) -> int:
        """Removes its files and empty folders; returns the bytes removed.

        Raises:
            OSError: a file can't be removed.
        """
        if self.part.kind == SHARED:
            return 0
        before = sum(path.stat().st_size for path in self.files())
        if self.part.files is None:
            shutil.rmtree(self.folder)
            return before
        if self.part.kind == DOWNLOADED:
            with exclusive(self.folder / ".lock", f"waiting for another process that downloads {self.part.title}"):
                self._remove_files()
        else:
            self._remove_files()
        return before - sum(path.stat().st_size for path in self.files())

    def _remove_files(self) -> None:
        folders = {path.parent for path in self.files()}
        for path in self.files():
            path.unlink()
        for folder in sorted({*folders, self.folder}, reverse=True):
            sweep(folder)
            with suppress(OSError):  # it holds files of others, or the lock
                folder.rmdir()

    def _owns(self, path: Path) -> bool:
        name = path.relative_to(self.folder).as_posix()
        return self.part.files is None or self.part.files.fullmatch(name) is not None


def stores() -> list[Store]:
    """The parts of the cache, and the models of the Hub that segdream has used."""
    return [Store(name, part, cache_folder() / name) for name, part in PARTS.items()] + _hub_stores()


def _hub_stores() -> list[Store]:
    """The models in the Hub's cache that segdream has a record of."""
    records = Store("first-use", PARTS["first-use"], cache_folder() / "first-use").files()
    names = {path.stem.rpartition("@")[0] for path in records}
    part = Part(title="model of the Hub", kind=SHARED, files=re.compile("blobs/.+"), check=_check_blob)
    found = [(name, models_folder() / f"models--{name}") for name in sorted(names)]
    return [Store(name.replace("--", "/", 1), part, folder) for name, folder in found if folder.is_dir()]
