"""Tensors in safetensors files that carry their own SHA-256, so that a flipped bit is noticed."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, uint8

SHA256 = "sha256"
"""The metadata entry with the hash of all tensors and of all other entries."""


def dump_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The content of a safetensors file with tensors, metadata and their SHA-256; the tensors are on the CPU."""
    entries = dict(metadata or {})
    content: bytes = save(dict(tensors), {**entries, SHA256: _sha256(tensors, entries)})
    return content


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file, compared with its SHA-256; a file without metadata is not checked.

    Raises:
        ValueError: the content has another hash.
        SafetensorError, OSError: the file can't be read.
    """
    with safe_open(path, "pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    expected = metadata.pop(SHA256, None)
    if (metadata or expected is not None) and _sha256(tensors, metadata) != expected:
        raise ValueError("its content does not have the recorded SHA-256")
    return tensors, metadata


def _sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over entries, and over the tensors' names, dtypes, shapes and bytes; the order has no effect."""
    total = hashlib.sha256()
    for key, entry in sorted(metadata.items()):
        total.update(f"{key!r} {entry!r}\n".encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().contiguous().flatten().view(uint8).numpy().data)
    return total.hexdigest()
