"""Reads weights of other projects without executing code in them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.util.hub import first_line


def read_pickled(path: Path, hint: str) -> dict[str, Tensor]:
    """Reads the state dict in a file of `torch.save`.

    Args:
        path: the file.
        hint: hint of the errors.

    Raises:
        WeightsUnavailable: the file can't be read, or holds more than named tensors.
    """
    with read_errors(path, hint):
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(data, Mapping) or not data:
        raise WeightsUnavailable(f"{path} holds no weights, only a {type(data).__name__}", hint=hint)
    for name, value in data.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsUnavailable(f"{path} holds more than tensors: {name!r} is a {type(value).__name__}", hint=hint)
    return dict(data)


@contextmanager
def read_errors(path: Path, hint: str) -> Iterator[None]:
    """Turns every error of a library in the block, which reads a file, into `WeightsUnavailable`."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as problem:  # torch raises five classes, safetensors its own
        raise WeightsUnavailable(f"{path} can't be read: {_describe(problem)}", hint=hint) from problem


def _describe(problem: Exception) -> str:
    """Describes a read error in one line; torch's own message for a refused pickle suggests to disable the check."""
    if "weights_only" in str(problem):
        return "it holds more than weights, which segdream does not unpickle"
    return first_line(problem).partition(". ")[0]
