"""Calls of a network as a GPU likes them: of few sizes, compiled, and replayed as CUDA graphs."""

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segdream_cli.errors import EnvironmentProblem
from segdream_cli.util.download import cache_folder

COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"
LOW_VRAM_ROWS = 2
"""Rows of a U-Net call where memory is short."""
RECOMPUTING: dict[str, Any] = {
    "realize_reads_threshold": 16,
    "realize_opcount_threshold": 200,
    "unroll_reductions_threshold": 1,
}
"""For torch's compiler: what a value may take and still be computed again for each reader rather than stored.

With its defaults, 4 reads and 30 operations, the encoder's way back stores two tensors in single precision for each
norm, which takes longer than computing them again. The statistics of a group of channels are the exception: unrolled,
as the compiler does for fewer than eight, they'd be computed for every element.
"""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Announce = Callable[[str], None]


def arithmetic(name: str, device: torch.device) -> torch.dtype:
    """The type of a `prior.dtype` setting: auto is fp16 on CUDA, fp32 elsewhere."""
    return DTYPES[name if name != "auto" else "fp16" if device.type == "cuda" else "fp32"]


def compiled(function: Callable[..., Any], *, recomputing: bool = False) -> Callable[..., Any]:
    """The function through torch's compiler, anew for each set of shapes; what it builds stays in the cache on disk.

    Args:
        function: what is compiled.
        recomputing: compute values again rather than store them, as far as this torch can be told to.
    """
    place = os.environ.get(COMPILER_CACHE)
    # importing diffusers puts torch's default there, a folder that is gone after the next start of the machine
    if place is None or Path(place).parent == Path(tempfile.gettempdir()):
        os.environ[COMPILER_CACHE] = str(cache_folder() / "inductor")
    import torch._functorch.config as settings
    from torch._inductor import config as compiler

    if hasattr(settings, "autograd_cache_allow_custom_autograd_functions"):
        settings.autograd_cache_allow_custom_autograd_functions = True  # ours depend on nothing but their arguments
    options = {key: value for key, value in RECOMPUTING.items() if hasattr(compiler, key)} if recomputing else None
    result: Callable[..., Any] = torch.compile(function, dynamic=False, options=options)
    return result


def piece_sizes(rows: int, unit: int, most: int | None) -> list[int]:
    """The sizes of the calls that `rows` are cut into: pieces of `most`, and one with the rest, a multiple of `unit`.

    Args:
        rows: at least 1.
        unit: what the last size is rounded up to a multiple of.
        most: largest size, a multiple of `unit`; None is one call.
    """
    whole, rest = divmod(rows, most) if most else (0, rows)
    return [most or 0] * whole + ([-(-rest // unit) * unit] if rest else [])


class RowCalls:
    """A function of rows of tensors, called on pieces of few sizes.

    A size is compiled or captured once, and there are as many as there are different numbers of rows: with Perp-Neg a
    new one nearly every step. Rounding them up costs a few rows whose result is thrown away.

    Args:
        function: each row of its result depends on the same row of its arguments only.
        unit, most: see `piece_sizes`.
    """

    def __init__(self, function: Callable[..., Tensor], unit: int, most: int | None) -> None:
        self._function, self._unit, self._most = function, unit, most

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result, as if it had been called once."""
        rows = len(inputs[0])
        sizes = piece_sizes(rows, self._unit, self._most)
        if sizes == [rows]:
            return self._function(*inputs)
        extra = sum(sizes) - rows
        padded = [torch.cat([part, part[-1:].expand(extra, *part.shape[1:])]) if extra else part for part in inputs]
        pieces = zip(*(part.split(sizes) for part in padded), strict=True)
        return torch.cat([self._function(*piece) for piece in pieces])[:rows]


class FirstWorking:
    """The first of several ways to compute the same that this machine can go.

    Args:
        ways: names and functions, the fastest first.
        announce: receives a line when one has to be given up.
    """

    def __init__(self, ways: Sequence[tuple[str, Callable[..., Any]]], announce: Announce) -> None:
        self._ways, self._announce = list(ways), announce

    def __call__(self, *inputs: Tensor) -> Any:
        """The function's result.

        Raises:
            EnvironmentProblem: the last way can't be gone either.
        """
        while True:
            try:
                return self._ways[0][1](*inputs)
            except EnvironmentProblem as problem:
                if len(self._ways) == 1:
                    raise
                self._ways.pop(0)
                self._announce(f"{problem.message}; computing it {self._ways[0][0]} instead, which takes longer")


def fastest(
    name: str,
    plain: Callable[..., Any],
    graphed: Callable[..., Callable[..., Any]],
    announce: Announce,
    *,
    graphs: bool,
    compiling: bool,
    only: bool,
    recomputing: bool = False,
) -> FirstWorking:
    """A function of a network on CUDA in the fastest way that is wanted, and the slower ones behind it.

    Args:
        name: of the network, as a line names it.
        plain: the function, kernel by kernel.
        graphed: `GraphedCalls` or `GraphedGradients`.
        announce: receives lines about compiling, and about a way that can't be gone.
        graphs: replay it.
        compiling: put it through torch's compiler.
        only: allow no other than the first way.
        recomputing: see `compiled`.
    """
    ways = [("kernel by kernel", plain)]
    if graphs:
        ways.insert(0, ("without the compiler", graphed(plain, FirstCalls(name, announce, compiling=False))))
    if compiling:
        call = graphed if graphs else PlainCalls
        function = compiled(plain, recomputing=recomputing)
        ways.insert(0, ("compiled", call(function, FirstCalls(name, announce, compiling=True))))
    return FirstWorking(ways[:1] if only else ways, announce)


class PlainCalls:
    """Calls of a compiled function that is not captured: what a set of shapes takes once is surrounded all the same.

    Args:
        function: compiles itself at the first call with a set of shapes.
        first: opens a block about what is done once for a set of shapes; see `FirstCalls`.
    """

    def __init__(self, function: Callable[..., Any], first: "FirstCalls") -> None:
        self._function = function
        self._first = first
        self._called: set[tuple[Any, ...]] = set()

    def __call__(self, *inputs: Tensor) -> Any:
        """The function's result."""
        key = torch.is_grad_enabled(), _shapes(inputs)  # with a gradient it is compiled once more
        if key in self._called:
            return self._function(*inputs)
        with self._first(len(inputs[0])):
            result = self._function(*inputs)
        self._called.add(key)
        return result


def _shapes(inputs: Sequence[Tensor]) -> tuple[Any, ...]:
    """What a compilation or a capture is good for."""
    return tuple((tensor.shape, tensor.dtype) for tensor in inputs)


class GraphedCalls:
    """Calls of a function without a gradient, replayed as CUDA graphs, one for each set of input shapes.

    A replay costs one launch where the eager call costs one a kernel, which is most of the time of a small batch.

    Args:
        function: what is captured.
        first: opens a block about what is done once for a set of shapes; see `FirstCalls`.
    """

    def __init__(self, function: Callable[..., Tensor], first: "FirstCalls") -> None:
        self._function = function
        self._first = first
        self._captured: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}
        self._pool: Any = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result; the first call with a set of shapes captures it."""
        key = _shapes(inputs)
        if key not in self._captured:
            with self._first(len(inputs[0])):
                self._captured[key] = self._capture(inputs)
        graph, places, output = self._captured[key]
        for place, tensor in zip(places, inputs, strict=True):
            place.copy_(tensor)
        graph.replay()
        return output.clone()  # the next replay, of any shape, may write over it

    def _capture(self, inputs: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        # of one layout, whatever the first call came with, so that the compiler's cache knows them
        places = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in inputs]
        warm_up = _side_stream(torch.cuda.current_device())
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):  # libraries choose kernels and allocate workspaces, which no graph may do
            for _ in range(3):
                self._function(*places)
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = self._function(*places)
        self._pool = self._pool or graph.pool()
        return graph, places, output


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """The stream to warm up on, one a device: libraries keep a workspace of 32 MiB for each stream they have seen."""
    return torch.cuda.Stream(device)


class GraphedGradients:
    """A function of one tensor, replayed forward and back as a pair of CUDA graphs, one pair a shape.

    Args:
        function: each row of its results depends on the same row of its argument only.
        first: opens a block about what is done once for a set of shapes; see `FirstCalls`.
        most: rows of a call; more are cut into pieces of so many with a pair of graphs each, since a pair holds what
            its way back needs. None is one call.
    """

    def __init__(
        self, function: Callable[[Tensor], tuple[Tensor, ...]], first: "FirstCalls", most: int | None = None
    ) -> None:
        self._function = function
        self._first = first
        self._most = most
        self._captured: dict[tuple[torch.Size, int], Callable[..., Any]] = {}

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """The function's result, differentiable; the first call with a shape captures both passes."""
        pieces = x.split(self._most or len(x))
        if len(pieces) == 1:
            return self._replayed(x, 0)
        parts = [self._replayed(piece, place) for place, piece in enumerate(pieces)]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _replayed(self, x: Tensor, place: int) -> tuple[Tensor, ...]:
        """The result of the piece in a place."""
        key = x.shape, place
        if key not in self._captured:
            # the capture's stream differs from that of the Gaussians' gradients, which costs one wait a step
            warnings.filterwarnings("ignore", "The AccumulateGrad node's stream", UserWarning)
            with self._first(len(x)), torch.enable_grad():  # whatever this call is for, the way back is captured too
                self._captured[key] = torch.cuda.make_graphed_callables(
                    self._function, (x.detach().clone().requires_grad_(),)
                )
        own = x.view_as(x)
        if own.requires_grad:
            own.register_hook(torch.clone)
        return tuple(part.clone() for part in self._captured[key](own))  # the next replay may write over all of these


class FirstCalls:
    """What surrounds the work that is done once for a set of shapes: words for who waits, and for why it fails.

    Args:
        network: what is compiled or captured.
        compiling: whether it is compiled.
        announce: receives a line before and after a compilation.
    """

    def __init__(self, network: str, announce: Announce, *, compiling: bool) -> None:
        self._network, self._announce, self._compiling = network, announce, compiling
        self._compiled: set[int] = set()

    @contextmanager
    def __call__(self, rows: int) -> Iterator[None]:
        """The block that compiles or captures for `rows` rows.

        Raises:
            EnvironmentProblem: it can't be done here.
        """
        begin = time.perf_counter()
        telling = self._compiling and rows not in self._compiled
        if telling:
            self._announce(f"compiling {self._network} for {rows} rows; the first time on a machine takes minutes")
        try:
            yield
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as problem:  # the compiler's errors are among them
            verb = "compiled" if self._compiling else "captured as a CUDA graph"
            cause = _cause(problem)
            # a capture without the compiler has a slower way behind it always: nobody has to do anything
            raise EnvironmentProblem(
                f"{self._network} can't be {verb}: {(str(cause).strip() or type(cause).__name__).splitlines()[0]}",
                hint="--set prior.compile=off" if self._compiling else None,
            ) from problem
        self._compiled.add(rows)
        if telling:
            self._announce(f"compiled {self._network} in {time.perf_counter() - begin:.0f} s")


def _cause(problem: BaseException) -> BaseException:
    """The error that came first: one inside a capture makes the end of the capture fail as well."""
    while isinstance(problem.__context__, RuntimeError):
        problem = problem.__context__
    return problem
