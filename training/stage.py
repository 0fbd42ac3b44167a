"""What the training stages share: clock, optimiser, learning rate, CUDA graphs, and several GPUs.

Several GPUs train one network with `torchrun --nproc-per-node N -m training.STAGE ...`: each process draws its own
images, and `fit` averages the gradients.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

P, T = ParamSpec("P"), TypeVar("T")
AVERAGE = 0.9995
"""Decay of the weights' exponential average."""
AGREE_EVERY = 50
"""Steps between two readings of the clock, for which the processes wait for each other."""


def join(device: str) -> tuple[torch.device, int]:
    """The device of this process and its rank; under torchrun it joins the others, one GPU each."""
    if "LOCAL_RANK" not in os.environ:
        return torch.device(device), 0
    place = torch.device(device, int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    cuda = place.type == "cuda"
    dist.init_process_group("nccl" if cuda else "gloo", device_id=place if cuda else None)
    return place, dist.get_rank()


def agree(value: float, device: torch.device) -> float:
    """The first process's value, for all."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor(value, device=device, dtype=torch.float64 if device.type == "cpu" else torch.float32)
    dist.broadcast(shared, 0)
    return shared.item()


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
    time. The log then reports the number of steps. A parameter group with a share `until` is trained for that share
    of the time only: its cosine ends there, its rate is zero afterwards, and it
    is marked as `finished`.

    Args:
        optimizer: the current rates of its groups are the peak.
        steps: number of steps.
        clock: the stage's clock.
        limit_s: end of the training on that clock, in seconds.
        warmup: steps of the warm-up.
        floor: last rate, as a share of the peak.
    """
    groups = optimizer.param_groups
    peaks, place = [float(group["lr"]) for group in groups], groups[0]["params"][0].device
    started = clock()
    every = AGREE_EVERY if dist.is_initialized() else 1
    elapsed = 0.0
    for step in range(steps):
        if step % every == 0:
            elapsed = agree((clock() - started) / max(limit_s - started, 1e-3), place)
        done = max(step / steps, elapsed)
        if done >= 1:
            clock.log(f"the time ran out after {step} of {steps} steps")
            return
        for group, peak in zip(groups, peaks, strict=True):
            share = done / group.get("until", 1.0)
            group["finished"] = share >= 1
            factor = min(1, (step + 1) / warmup) * (floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2)
            rate = peak * factor if share < 1 else 0.0
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        yield step


def adamw(groups: Sequence[dict[str, object]], *, weight_decay: float, device: torch.device) -> torch.optim.AdamW:
    """AdamW whose step a CUDA graph can capture: the rates of its groups are tensors that the replayed step reads.

    Args:
        groups: `params` and the peak rate `lr` of each, and possibly `until` for `schedule`.
        weight_decay: of every group.
        device: where the parameters are.
    """
    betas = (0.9, 0.99)
    if device.type == "cpu":
        return torch.optim.AdamW(groups, betas=betas, weight_decay=weight_decay)
    rated = [{**group, "lr": torch.tensor(group["lr"], device=device)} for group in groups]
    return torch.optim.AdamW(
        rated, torch.tensor(0.0, device=device), betas=betas, weight_decay=weight_decay, fused=True, capturable=True
    )


def one_gradient(weights: Sequence[nn.Parameter]) -> Float[Tensor, " n"]:
    """One tensor of which the gradients of all weights become parts, so that it can be averaged and clipped at once."""
    flat = torch.zeros(sum(weight.numel() for weight in weights), device=weights[0].device)
    start = 0
    for weight in weights:
        weight.grad = flat.as_strided(weight.size(), weight.stride(), start)
        start += weight.numel()
    return flat


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
    during: Callable[[int], None] | None = None,
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
        during: is called after each step with its index.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    gradient = one_gradient(weights)
    recent = torch.zeros((), device=generator.device)

    def descend() -> None:
        loss, shown = objective()
        gradient.zero_()
        loss.backward()
        recent.lerp_(shown.detach(), 0.01)

    def update() -> None:
        gradient.mul_((1 / gradient.norm()).clamp_max(1))
        optimizer.step()

    computed, updated = Replayed(descend, generator), Replayed(update, generator)
    averages, taken = list(average.parameters()) if average else [], 0
    for count in counted:
        computed()
        if dist.is_initialized():
            dist.all_reduce(gradient)
            gradient.div_(dist.get_world_size())
        updated()
        taken = count + 1
        if averages:
            with torch.no_grad():
                torch._foreach_lerp_(averages, list(network.parameters()), 1 - min(AVERAGE, (1 + count) / (10 + count)))
        if count % 1000 == 0:
            clock.log(f"step {count}: {shows} {recent.item():.4f}")
        if during is not None:
            during(count)
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
