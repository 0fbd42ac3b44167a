"""Tensor files notice every flipped bit, and still read files without a hash."""

import random
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from segdream_cli.util.tensor_files import dump_tensors, load_tensors

TENSORS = {
    "step": torch.tensor(7),
    "values": torch.linspace(-1, 1, 60).reshape(5, 12),
    "half": torch.arange(9, dtype=torch.float16),
    "rough": torch.arange(4).to(torch.bfloat16),
    "mask": torch.tensor([True, False]),
    "empty": torch.zeros(4, 0, 3),
    "bytes": torch.arange(30, dtype=torch.uint8),
}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def test_load_tensors_returns_what_dump_tensors_wrote(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(dump_tensors(TENSORS, {"record": "0123"}))
    tensors, metadata = load_tensors(path)
    assert same(tensors, TENSORS)
    assert metadata == {"record": "0123"}
    assert same(load_file(path), TENSORS)  # other readers need not know the hash


def test_load_tensors_notices_each_flipped_bit(tmp_path: Path) -> None:
    path, draws = tmp_path / "a.safetensors", random.Random(0)
    whole = dump_tensors(TENSORS, {"record": "0123"})
    refused = 0
    for place in draws.sample(range(8 * len(whole)), 600):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            tensors, metadata = load_tensors(path)
        except (ValueError, SafetensorError, OSError):
            refused += 1
        else:
            assert same(tensors, TENSORS), place
            assert metadata == {"record": "0123"}, place
    assert refused > 550  # the rest are spaces of JSON


def test_load_tensors_notices_swapped_names(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(dump_tensors({"a": torch.ones(3), "b": torch.zeros(3)}))
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"x"').replace(b'"b"', b'"a"').replace(b'"x"', b'"b"'))
    with pytest.raises(ValueError, match="SHA-256"):
        load_tensors(path)


def test_load_tensors_reads_files_without_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    save_file(TENSORS, path)
    tensors, metadata = load_tensors(path)
    assert same(tensors, TENSORS)
    assert metadata == {}
