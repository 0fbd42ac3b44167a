"""numba's cache of compiled kernels, checked: numba itself would execute damaged machine code."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba

from segdream_cli.errors import SegdreamError
from segdream_cli.util import compat
from segdream_cli.util.files import cache_write


def compile_kernel(function: Callable[..., Any], signature: str, options: dict[str, Any]) -> Callable[..., Any]:
    """Compiles a function for one signature, or loads it from numba's cache.

    A list of hashes lies beside the cached files. If they differ from it, they are removed and compiled again. Without
    a folder that can be written, nothing is cached.
    """
    try:
        folder, stem = compat.numba_cache(function)
    except RuntimeError as problem:
        if "cannot cache" not in str(problem):
            raise
        return _compile(function, signature, options, cache=False)
    sums = folder / f"{stem}.sha256"
    if _read(sums) != _hash_files(folder, stem):
        for path in _files(folder, stem):
            with suppress(OSError):
                path.unlink()
    kernel = _compile(function, signature, options, cache=True)
    hashes = _hash_files(folder, stem)
    if _read(sums) != hashes:
        with suppress(OSError, SegdreamError), cache_write(sums) as temporary:
            temporary.write_text(hashes, encoding="utf-8")
    return kernel


def _compile(
    function: Callable[..., Any], signature: str, options: dict[str, Any], *, cache: bool
) -> Callable[..., Any]:
    kernel: Callable[..., Any] = numba.njit(signature, cache=cache, **options)(function)
    return kernel


def _files(folder: Path, stem: str) -> list[Path]:
    """The cached files of a function: an index, and one file per version of its code."""
    return sorted(path for path in folder.glob(f"{stem}.*") if path.suffix in (".nbi", ".nbc"))


def _hash_files(folder: Path, stem: str) -> str:
    """Lines as `sha256sum` prints them; a file that can't be read has no hash."""
    lines = []
    for path in _files(folder, stem):
        with suppress(OSError):
            lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    return "".join(lines)


def _read(sums: Path) -> str:
    """The list of hashes; empty if there is none."""
    try:
        return sums.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
