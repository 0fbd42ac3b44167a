"""SHA-256 of weight files: compared with what they should have, and kept in the cache so that each is computed once."""

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path

from segdream_cli.errors import SegdreamError, WeightsUnavailable
from segdream_cli.util.download import cache_folder, file_sha256
from segdream_cli.util.files import atomic_write, cache_write, known_problem, parse_json

KEPT = re.compile(r"[0-9a-f]{32}\.json")
"""Names of the files of matches."""


def has_sha256(path: Path, expected: str) -> bool:
    """Whether a file has a hash; a match is kept in the cache and holds until size or modification time changes.

    Raises:
        OSError: the file can't be read.
    """
    status = path.stat()
    name = str(path.absolute())
    state = {"path": name, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": expected}
    kept = _store() / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError):
        if parse_json(kept.read_text(encoding="utf-8")) == state:
            return True
    if file_sha256(path) != expected:
        return False
    write_json(kept, state)
    return True


def forget_hashes() -> None:
    """Empties the cache of matches, so that the next `has_sha256` reads each file again."""
    for path in _store().glob("*.json"):
        if KEPT.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def write_json(path: Path, content: object) -> None:
    """Writes a record to the cache; without a writable cache it is made again."""
    with suppress(OSError, SegdreamError), cache_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_sums(folder: Path) -> None:
    """Writes the hashes of a folder's files beside it, as `sha256sum` lists them, for `check_sums`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = (f"{file_sha256(path)}  {path.relative_to(folder.parent).as_posix()}\n" for path in files)
    with atomic_write(folder.with_name(f"{folder.name}.sha256")) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def read_sums(path: Path) -> dict[str, str]:
    """The hash of each file name in a list that `sha256sum` can check.

    Raises:
        OSError, ValueError: it can't be read, or is no such list.
    """
    pairs = (line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return {name: digest for digest, name in pairs}


def check_sums(folder: Path, only: str | None = None) -> dict[str, str]:
    """Compares a folder's files with the list of SHA-256 beside it, if there is one: `mini.sha256` for `mini`.

    Args:
        folder: holds the files.
        only: compare this file alone.

    Returns:
        The hash of each file of the list; its path is relative to the folder.

    Raises:
        WeightsUnavailable: a file is missing or has another hash.
        SegdreamError: the disk fails, or too many files are open.
    """
    sums = folder.with_name(f"{folder.name}.sha256")
    if not sums.is_file():
        return {}
    try:
        hashes = {name.partition("/")[2]: digest for name, digest in read_sums(sums).items()}
        compared = {name: digest for name, digest in hashes.items() if only in (None, name)}
        damaged = [name for name, digest in compared.items() if file_sha256(folder / name) != digest]
    except (OSError, ValueError) as problem:
        if isinstance(problem, OSError) and (known := known_problem(problem, folder, "read")):
            raise known from problem
        hashes, damaged = {}, [str(problem)]
    if damaged or not hashes:
        raise WeightsUnavailable(
            f"{folder} differs from {sums}: {', '.join(damaged) or 'the list is empty'}",
            hint="pip install --force-reinstall --no-deps segdream",
        )
    return hashes


def _store() -> Path:
    return cache_folder() / "hashes"
