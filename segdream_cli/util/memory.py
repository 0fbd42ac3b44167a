"""Peak and free memory, and the error for an allocation that fails."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from segdream_cli.errors import OutOfMemory
from segdream_cli.util.failures import GIB, lacks_memory


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far in GiB: of the CUDA device by torch, else of the process (0 on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB  # bytes on macOS, KiB elsewhere


def free_gib(device: torch.device) -> float:
    """Memory of a CUDA device, in GiB, that this process has reserved or can still get."""
    free, _ = torch.cuda.mem_get_info(device)
    return (free + torch.cuda.memory_reserved(device)) / GIB


@contextmanager
def without_collection() -> Iterator[None]:
    """Pauses garbage collection within the block: imports make many objects that stay, and each pass scans them all."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def out_of_memory(device: torch.device, doing: str, hint: str) -> Iterator[None]:
    """Turns a failed allocation in the block, of torch or of Python, into `OutOfMemory`.

    Args:
        device: its peak memory is part of the message.
        doing: the object that did not fit, as in "cpu does not have enough memory for ...".
        hint: an option that needs less memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        if not lacks_memory(problem):
            raise
        peak = peak_memory_gib(device)
        raise OutOfMemory(
            f"{device} does not have enough memory for {doing}; the peak was {peak:.1f} GiB", hint=hint
        ) from problem
