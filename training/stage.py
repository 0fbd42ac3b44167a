"""What the training stages share: their clock, their learning rate, their log."""

import math
import time
from collections.abc import Iterator

import torch
from torch import nn


class Clock:
    """Seconds since the start, and lines that begin with them."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def log(self, text: str) -> None:
        """Prints a line with the time."""
        print(f"[{self():6.1f} s] {text}", flush=True)


def schedule(
    optimizer: torch.optim.Optimizer, steps: int, clock: Clock, limit_s: float, *, warmup: int, floor: float = 0.02
) -> Iterator[int]:
    """Counts the steps, setting the learning rate of each: a linear warm-up, then a cosine down to `floor`.

    The cosine follows whichever is further, the steps or the clock, so that a slow machine finishes a shorter training
    in time instead of being cut off. The log then says how many steps it took.

    Args:
        optimizer: its groups' present rates are the peak.
        steps: number of steps.
        clock: the stage's clock.
        limit_s: when to be done on that clock, in seconds.
        warmup: steps of the warm-up.
        floor: last rate, as a share of the peak.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    started = clock()
    for step in range(steps):
        done = max(step / steps, (clock() - started) / max(limit_s - started, 1e-3))
        if done >= 1:
            clock.log(f"the clock, not the steps, was the limit: {step} of {steps}")
            return
        factor = min(1, (step + 1) / warmup) * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        yield step


def fast_cuda() -> None:
    """TF32 products and tuned convolutions, where there is CUDA."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def millions(network: nn.Module) -> float:
    """Its parameters in millions."""
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6
