"""What a step of the optimisation loop tells, some of it before the device has done it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Arriving:
    """Numbers on their way from the device, on which nothing else waits.

    Args:
        values: one a row.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._there: torch.cuda.Event | None = None
        if values.is_cuda:
            self._there = torch.cuda.Event()
            self._there.record()

    def tolist(self) -> list[float]:
        """The numbers, once they are there."""
        if self._there is not None:
            self._there.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers


@dataclass(frozen=True, slots=True)
class Taken:
    """A step that has been queued. Where its gradient turns out not to be finite, it has moved nothing.

    Tuples, and the numbers that arrive, hold one entry an asset.

    Args:
        step: its number, from 1.
        times: (t, s, e) of the distillation.
        norms: norm of the parameters' gradient before clipping.
        draws: where the random generators of each asset stood before it.
    """

    step: int
    times: tuple[tuple[int, int, int], ...]
    norms: Arriving
    draws: Sequence[Mapping[str, Tensor]]

    def broken(self) -> int | None:
        """The place of the first asset whose gradient is not finite. On CUDA this waits for the step."""
        return next((place for place, norm in enumerate(self.norms.tolist()) if not math.isfinite(norm)), None)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimisation step did; tuples hold one entry an asset.

    Args:
        taken: the step.
        n_gaussians: number of Gaussians after it.
        seconds: wall time of what the host did for it; a GPU may be some way behind.
        memory_gib: peak memory so far, of the device or of the process on a CPU.
    """

    taken: Taken
    n_gaussians: tuple[int, ...]
    seconds: float
    memory_gib: float

    @property
    def step(self) -> int:
        """Its number, from 1."""
        return self.taken.step

    @property
    def times(self) -> tuple[tuple[int, int, int], ...]:
        """(t, s, e) of the distillation."""
        return self.taken.times

    @property
    def grad_norm(self) -> tuple[float, ...]:
        """Norm of the parameters' gradient before clipping. On CUDA this waits for the step."""
        return tuple(self.taken.norms.tolist())

    def event(self, place: int) -> dict[str, Any]:
        """The part of one asset as plain values."""
        one = slice(place, place + 1)
        return {
            "step": self.step,
            "times": self.times[one],
            "grad_norm": self.grad_norm[one],
            "n_gaussians": self.n_gaussians[one],
            "seconds": self.seconds,
            "memory_gib": self.memory_gib,
        }
