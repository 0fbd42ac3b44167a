"""Padding, compilation and CUDA-graph replay of network calls."""

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from segdream_cli.errors import EnvironmentProblem
from segdream_cli.util import compat
from segdream_cli.util.download import cache_folder

COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"
LOW_VRAM_ROWS = 2
"""Rows of a U-Net call in low-VRAM mode."""
RECOMPUTE_OPTIONS: dict[str, Any] = {
    "realize_reads_threshold": 16,
    "realize_opcount_threshold": 200,
    "unroll_reductions_threshold": 1,
}
"""Compiler options: how many reads and operations a value may have before it is stored rather than computed again.

With the defaults, 4 reads and 30 operations, the encoder's backward pass stores two float32 tensors per norm, which
takes longer than to compute them again. The statistics of a group of channels must not be computed again: the compiler
unrolls reductions of fewer than eight elements, and would compute the statistics for every element.
"""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Announce = Callable[[str], None]


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the weights: auto is fp16 on CUDA, fp32 elsewhere; see `computes_bf16` for a CPU."""
    return DTYPES[name if name != "auto" else "fp16" if device.type == "cuda" else "fp32"]


def compile_function(function: Callable[..., Any], *, recompute: bool = False) -> Callable[..., Any]:
    """Wraps a function with torch's compiler, which compiles once per set of shapes and keeps the code on disk.

    Args:
        function: the function to compile.
        recompute: compute values again rather than store them, with the `RECOMPUTE_OPTIONS` of the installed torch.
    """
    folder = os.environ.get(COMPILER_CACHE)
    # importing diffusers sets torch's default, a folder that does not survive a reboot
    if folder is None or Path(folder).parent == Path(tempfile.gettempdir()):
        os.environ[COMPILER_CACHE] = str(cache_folder() / "inductor")
    compat.cache_custom_autograd_functions()  # these functions depend only on their arguments
    options = compat.filter_compiler_options(RECOMPUTE_OPTIONS) if recompute else None
    compiled: Callable[..., Any] = torch.compile(function, dynamic=False, options=options)
    return compiled


def batch_sizes(rows: int, multiple: int, largest: int | None) -> list[int]:
    """The sizes of the calls for `rows` rows: batches of `largest` rows, then a last one, rounded up.

    Args:
        rows: at least 1.
        multiple: the last size is rounded up to a multiple of it.
        largest: largest size, a multiple of `multiple`; None puts all rows into one call.
    """
    full, rest = divmod(rows, largest) if largest else (0, rows)
    return [largest or 0] * full + ([-(-rest // multiple) * multiple] if rest else [])


class PaddedBatches:
    """Calls a function of rows in batches of few sizes, padded where the rows do not fill the last one.

    Each size is compiled or captured separately, and Perp-Neg has a new number of rows in nearly every step. Padding
    keeps the number of sizes small at the cost of a few rows whose result is dropped.

    Args:
        function: each row of its result depends only on the same row of its arguments.
        multiple, largest: see `batch_sizes`.
    """

    def __init__(self, function: Callable[..., Tensor], multiple: int, largest: int | None) -> None:
        self._function, self._multiple, self._largest = function, multiple, largest

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result for all rows."""
        rows = len(inputs[0])
        sizes = batch_sizes(rows, self._multiple, self._largest)
        if sizes == [rows]:
            return self._function(*inputs)
        extra = sum(sizes) - rows
        padded = [torch.cat([part, part[-1:].expand(extra, *part.shape[1:])]) if extra else part for part in inputs]
        batches = zip(*(part.split(sizes) for part in padded), strict=True)
        return torch.cat([self._function(*batch) for batch in batches])[:rows]


class FallbackChain:
    """Calls the first of several implementations that works, and never retries one that failed.

    Args:
        implementations: name and function of each, the fastest first.
        announce: receives a line for each fallback.

    Attributes:
        failed: names of the implementations that failed here; empty while the fastest is in use.
    """

    def __init__(self, implementations: Sequence[tuple[str, Callable[..., Any]]], announce: Announce) -> None:
        self.failed: list[str] = []
        self._implementations, self._announce = list(implementations), announce

    @classmethod
    def build(
        cls,
        network: str,
        eager: Callable[..., Any],
        graphed: Callable[..., Callable[..., Any]],
        announce: Announce,
        *,
        graphs: bool,
        compiling: bool,
        allow_fallback: bool,
        recompute: bool = False,
    ) -> Self:
        """The requested implementation of a network's function on CUDA, followed by slower ones.

        Args:
            network: its name in announcements and errors.
            eager: the function, launched kernel by kernel.
            graphed: `GraphedCalls` or `GraphedGradients`.
            announce: receives lines about compilations and fallbacks.
            graphs: replay the function as CUDA graphs.
            compiling: compile the function.
            allow_fallback: append the slower implementations; without them an error is final.
            recompute: see `compile_function`.
        """
        chain = [("eager execution", eager)]
        if graphs:
            notices = CompileNotices(network, announce, compiling=False)
            chain.insert(0, ("CUDA graphs without compilation", graphed(eager, notices)))
        if compiling:
            notices = CompileNotices(network, announce, compiling=True)
            call = graphed if graphs else CompiledCalls
            chain.insert(0, ("compiled code", call(compile_function(eager, recompute=recompute), notices)))
        return cls(chain if allow_fallback else chain[:1], announce)

    def __call__(self, *inputs: Tensor) -> Any:
        """The function's result.

        Raises:
            EnvironmentProblem: the last implementation fails too.
        """
        while True:
            name, function = self._implementations[0]
            try:
                return function(*inputs)
            except EnvironmentProblem as problem:
                if len(self._implementations) == 1:
                    raise
                self.failed.append(name)
                self._implementations.pop(0)
                self._announce(f"{problem.message}; falling back to {self._implementations[0][0]}, which is slower")


class CompiledCalls:
    """Calls of a compiled function that is not captured in a graph.

    Args:
        function: compiles itself at the first call with a set of shapes.
        notices: announces that call and translates its errors.
    """

    def __init__(self, function: Callable[..., Any], notices: "CompileNotices") -> None:
        self._function = function
        self._notices = notices
        self._compiled: set[tuple[Any, ...]] = set()

    def __call__(self, *inputs: Tensor) -> Any:
        """The function's result."""
        key = torch.is_grad_enabled(), _shapes(inputs)  # a call with gradients is compiled separately
        if key in self._compiled:
            return self._function(*inputs)
        with self._notices.first_call(len(inputs[0])):
            result = self._function(*inputs)
        self._compiled.add(key)
        return result


def _shapes(inputs: Sequence[Tensor]) -> tuple[Any, ...]:
    """Shape and dtype of each input, for which a compilation or a capture is valid."""
    return tuple((tensor.shape, tensor.dtype) for tensor in inputs)


class GraphedCalls:
    """Calls of a function without gradients, replayed as CUDA graphs, one graph per set of input shapes.

    A replay costs one launch; an eager call costs one launch per kernel, which takes most of the time of a small batch.

    Args:
        function: the function to capture.
        notices: translates errors of a capture, and announces it if it compiles.
    """

    def __init__(self, function: Callable[..., Tensor], notices: "CompileNotices") -> None:
        self._function = function
        self._notices = notices
        self._captured: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}
        self._pool: Any = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result; the first call with a set of shapes captures it."""
        key = _shapes(inputs)
        if key not in self._captured:
            with self._notices.first_call(len(inputs[0])):
                self._captured[key] = self._capture(inputs)
        graph, buffers, output = self._captured[key]
        for buffer, tensor in zip(buffers, inputs, strict=True):
            buffer.copy_(tensor)
        graph.replay()
        return output.clone()  # the next replay of any graph may overwrite it

    def _capture(self, inputs: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        # contiguous whatever the layout of the first call, so that later calls hit the compiler's cache
        buffers = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in inputs]
        warm_up = _side_stream(torch.cuda.current_device())
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):  # libraries choose kernels and allocate workspaces, which no graph may do
            for _ in range(3):
                self._function(*buffers)
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = self._function(*buffers)
        self._pool = self._pool or graph.pool()
        return graph, buffers, output


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """The warm-up stream of a device, always the same: libraries keep a workspace of 32 MiB for each stream."""
    return torch.cuda.Stream(device)


class GraphedGradients:
    """A function of one tensor whose forward and backward passes are replayed as CUDA graphs, one pair per shape.

    Args:
        function: each row of its results depends only on the same row of its argument.
        notices: translates errors of a capture, and announces it if it compiles.
        largest: most rows of one call; more rows are split into several calls, each with its own pair of graphs,
            because a pair holds the tensors that its backward pass needs. None never splits.
    """

    def __init__(
        self, function: Callable[[Tensor], tuple[Tensor, ...]], notices: "CompileNotices", largest: int | None = None
    ) -> None:
        self._function = function
        self._notices = notices
        self._largest = largest
        self._captured: dict[tuple[torch.Size, int], Callable[..., Any]] = {}

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """The function's result, differentiable; the first call with a shape captures both passes."""
        chunks = x.split(self._largest or len(x))
        if len(chunks) == 1:
            return self._replay(x, 0)
        parts = [self._replay(chunk, index) for index, chunk in enumerate(chunks)]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _replay(self, x: Tensor, index: int) -> tuple[Tensor, ...]:
        """The function's result for the chunk at `index`."""
        key = x.shape, index
        if key not in self._captured:
            # the capture's stream differs from that of the Gaussians' gradients, which costs one wait per step
            warnings.filterwarnings("ignore", "The AccumulateGrad node's stream", UserWarning)
            # captures the backward pass even if this call needs no gradient
            with self._notices.first_call(len(x)), torch.enable_grad():
                self._captured[key] = torch.cuda.make_graphed_callables(
                    self._function, (x.detach().clone().requires_grad_(),)
                )
        own = x.view_as(x)
        if own.requires_grad:
            own.register_hook(torch.clone)
        return tuple(part.clone() for part in self._captured[key](own))  # the next replay may overwrite all of them


class CompileNotices:
    """Announces the one-time compilation of a network, and translates errors of a compilation or a capture.

    Args:
        network: its name.
        announce: receives a line before and after a compilation.
        compiling: whether the first call compiles; if not, it only captures a CUDA graph.
    """

    def __init__(self, network: str, announce: Announce, *, compiling: bool) -> None:
        self._network, self._announce, self._compiling = network, announce, compiling
        self._compiled: set[int] = set()

    @contextmanager
    def first_call(self, rows: int) -> Iterator[None]:
        """Surrounds the first call with a set of shapes; only the first one with `rows` rows is announced.

        Raises:
            EnvironmentProblem: the call can't be compiled or captured here.
        """
        begin = time.perf_counter()
        is_new = self._compiling and rows not in self._compiled
        if is_new:
            self._announce(f"compiling {self._network} for {rows} rows; the first time on a machine takes minutes")
        try:
            yield
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as problem:  # the compiler's errors are subclasses
            verb = "compiled" if self._compiling else "captured as a CUDA graph"
            cause = _first_error(problem)
            # a capture without the compiler always has a fallback, so it needs no hint
            raise EnvironmentProblem(
                f"{self._network} can't be {verb}: {(str(cause).strip() or type(cause).__name__).splitlines()[0]}",
                hint="--set prior.compile=off" if self._compiling else None,
            ) from problem
        self._compiled.add(rows)
        if is_new:
            self._announce(f"compiled {self._network} in {time.perf_counter() - begin:.0f} s")


def _first_error(problem: BaseException) -> BaseException:
    """The first error: an error inside a capture makes the end of the capture fail too."""
    while isinstance(problem.__context__, RuntimeError):
        problem = problem.__context__
    return problem
