"""How much memory a run has taken, and what to say when there is no more."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from segdream_cli.errors import OutOfMemory

GIB = 2**30


def peak_memory_gib(device: torch.device) -> float:
    """The most memory taken so far: of the CUDA device by torch, of the process elsewhere (0 where it is unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB  # bytes on macOS, KiB elsewhere


def free_gib(device: torch.device) -> float:
    """Memory of a CUDA device that this process has or can get."""
    free, _ = torch.cuda.mem_get_info(device)
    return (free + torch.cuda.memory_reserved(device)) / GIB


@contextmanager
def out_of_memory(device: torch.device, doing: str, hint: str) -> Iterator[None]:
    """Turns a failed allocation in the block, of torch or of Python, into `OutOfMemory`.

    Args:
        device: whose memory is meant.
        doing: what did not fit, as the object of "does not hold".
        hint: the next cheaper thing to type.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        # torch has a class of its own for CUDA only; its allocator for the CPU raises RuntimeError
        if isinstance(problem, RuntimeError) and not (
            isinstance(problem, torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(problem)
        ):
            raise
        peak = peak_memory_gib(device)
        raise OutOfMemory(
            f"the memory of {device} does not hold {doing}; the peak was {peak:.1f} GiB", hint=hint
        ) from problem
