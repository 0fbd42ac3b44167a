"""Per-step report; some values are still being copied from the device."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

DISTIL = "distil"
"""The stage of a step that distils."""


class HostCopy:
    """Numbers being copied from the device to the host, without anyone waiting.

    Args:
        values: one per row.
    """

    def __init__(self, values: Float[Tensor, " a"]) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._copied: torch.cuda.Event | None = None
        if values.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def tolist(self) -> list[float]:
        """The numbers; waits for the copy."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimisation step of a batch. Tuples and copied numbers hold one entry per asset.

    Args:
        step: its number, from 1.
        timesteps: named timesteps of the distillation, as `Method.describe` gives them.
        norms: norm of the parameters' gradient before clipping.
        n_gaussians: number of Gaussians after the step.
        seconds: wall time on the host; a GPU may still be working on the step.
        memory_gib: peak memory so far, of the device or, on a CPU, of the process.
        stage: "distil", or "refine 1/2" in the first of two rounds of refinement.
        change: mean absolute difference, 0 to 1, of each asset's views from those `optim.stop_every` steps before;
            None in steps that do not measure it.
        stopped: the change was so small that this is the last step of the distillation.
        fit_losses: the loss of a step of refinement, a mean over the assets; None for a step that distils, whose
            method has a gradient and no loss.
    """

    step: int
    timesteps: tuple[Mapping[str, Any], ...]
    norms: HostCopy
    n_gaussians: tuple[int, ...]
    seconds: float
    memory_gib: float
    stage: str = DISTIL
    change: tuple[float, ...] | None = None
    stopped: bool = False
    fit_losses: HostCopy | None = None

    @property
    def grad_norm(self) -> tuple[float, ...]:
        """Norm of the parameters' gradient before clipping. On CUDA this waits for the step."""
        return tuple(self.norms.tolist())

    @property
    def fit_loss(self) -> float | None:
        """The loss of a step of refinement, a mean over the assets. On CUDA this waits for the step."""
        return None if self.fit_losses is None else self.fit_losses.tolist()[0]

    def first_nonfinite(self) -> int | None:
        """Index of the first asset with a non-finite gradient. On CUDA this waits for the step."""
        return first_nonfinite(self.norms)

    def event(self, index: int) -> dict[str, Any]:
        """The part of one asset as JSON values."""
        measured: dict[str, Any] = (
            {} if self.change is None else {"change": [self.change[index]], "stopped": self.stopped}
        )
        if (loss := self.fit_loss) is not None:
            measured["loss"] = [loss]
        return measured | {
            "step": self.step,
            "times": [list(self.timesteps[index].values())],
            "grad_norm": [self.grad_norm[index]],
            "n_gaussians": [self.n_gaussians[index]],
            "seconds": self.seconds,
            "memory_gib": self.memory_gib,
            "stage": self.stage,
        }


def first_nonfinite(norms: HostCopy) -> int | None:
    """Index of the first number that is infinite or not a number; waits for the copy."""
    return next((index for index, norm in enumerate(norms.tolist()) if not math.isfinite(norm)), None)
