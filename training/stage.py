"""What the training stages share: their clock, their optimiser and learning rate, and steps replayed as CUDA graphs."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import ParamSpec, TypeVar

import torch
from torch import nn

P, T = ParamSpec("P"), TypeVar("T")
AVERAGE = 0.9995
"""Decay of the weights' exponential average."""


class Clock:
    """A stopwatch that also prints lines with the time."""

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
    """Counts the steps and sets the learning rate of each: a linear warm-up, then a cosine down to `floor`.

    The cosine follows the steps or the clock, whichever is further, so a slow machine completes a shorter training in
    time. The log then reports the number of steps.

    Args:
        optimizer: the current rates of its groups are the peak.
        steps: number of steps.
        clock: the stage's clock.
        limit_s: end of the training on that clock, in seconds.
        warmup: steps of the warm-up.
        floor: last rate, as a share of the peak.
    """
    peaks = [float(group["lr"]) for group in optimizer.param_groups]
    started = clock()
    for step in range(steps):
        done = max(step / steps, (clock() - started) / max(limit_s - started, 1e-3))
        if done >= 1:
            clock.log(f"the time ran out after {step} of {steps} steps")
            return
        factor = min(1, (step + 1) / warmup) * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(peak * factor)
            else:
                group["lr"] = peak * factor
        yield step


def adamw(
    parameters: Iterable[nn.Parameter], rate: float, *, weight_decay: float, device: torch.device
) -> torch.optim.AdamW:
    """AdamW whose step a CUDA graph can capture: its rate is a tensor that the replayed step reads."""
    parameters, betas = list(parameters), (0.9, 0.99)
    if device.type == "cpu":
        return torch.optim.AdamW(parameters, rate, betas=betas, weight_decay=weight_decay)
    peak = torch.tensor(rate, device=device)
    return torch.optim.AdamW(parameters, peak, betas=betas, weight_decay=weight_decay, fused=True, capturable=True)


class Replayed:
    """A step that is called a few times, then replayed as a CUDA graph; on the CPU it is always called.

    These networks are small: launched kernel by kernel, a step takes several times as long as its kernels do.

    Args:
        step: reads and writes the same tensors every time, and never waits for the device.
        generator: the step's generator, besides the device's default one.
        calls: number of calls before the capture.
    """

    def __init__(self, step: Callable[[], None], generator: torch.Generator, calls: int = 3) -> None:
        self._step = step
        self._generator = generator
        self._left = calls
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream(generator.device) if generator.device.type == "cuda" else None

    def __call__(self) -> None:
        """Takes the step."""
        if self._graph is not None:
            self._graph.replay()
        elif self._stream is None:
            self._step()
        elif self._left:
            self._left -= 1
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._step()
            torch.cuda.current_stream().wait_stream(self._stream)
        else:
            self._graph = torch.cuda.CUDAGraph()
            self._graph.register_generator_state(self._generator)
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._step()
            self._graph.replay()


def fit(
    network: nn.Module,
    objective: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    optimizer: torch.optim.Optimizer,
    counted: Iterable[int],
    generator: torch.Generator,
    clock: Clock,
    *,
    shows: str,
    average: nn.Module | None = None,
) -> str:
    """Trains a network for the counted steps, and returns a summary line.

    Args:
        network: its gradient is clipped to norm 1.
        objective: draws a batch, and returns the scalar to minimise and the scalar to log; see `Replayed`.
        optimizer: the network's optimizer.
        counted: the iterator of `schedule`.
        generator: the generator of `objective`.
        clock: logs a mean over about the last hundred steps at intervals.
        shows: name of the logged scalar.
        average: receives the exponential average of the network's weights.
    """
    weights = list(network.parameters())
    recent = torch.zeros((), device=generator.device)

    def step() -> None:
        loss, shown = objective()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        recent.lerp_(shown.detach(), 0.01)

    replayed, averages, taken = Replayed(step, generator), list(average.parameters()) if average else [], 0
    for count in counted:
        replayed()
        taken = count + 1
        if averages:
            with torch.no_grad():
                torch._foreach_lerp_(averages, weights, 1 - min(AVERAGE, (1 + count) / (10 + count)))
        if count % 1000 == 0:
            clock.log(f"step {count}: {shows} {recent.item():.4f}")
    return f"{taken} steps, mean {shows} of the last hundred or so {recent.item():.5f}"


def fast_cuda() -> None:
    """Enables TF32 products and tuned convolutions on CUDA."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def fused(function: Callable[P, T], device: torch.device) -> Callable[P, T]:
    """The function, compiled on CUDA: the compiler fuses the normalisations, which take half of the time."""
    return torch.compile(function, dynamic=False) if device.type == "cuda" else function


def millions(network: nn.Module) -> float:
    """Number of parameters in millions."""
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6
