"""How much memory a run has taken."""

import sys

import torch

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
