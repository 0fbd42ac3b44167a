"""Network calls without gradient in OpenVINO, which computes the U-Net faster than torch on a CPU.

A network is converted once per machine. The converted network (IR) takes any number of rows and any size; it is
compiled for the sizes that occur, because kernels for fixed sizes are a fifth faster than those for any size.
"""

import hashlib
import importlib.util
import os
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segdream_cli.config import PriorConfig
from segdream_cli.errors import EnvironmentProblem, SegdreamError, UsageProblem
from segdream_cli.util.download import cache_folder
from segdream_cli.util.files import cache_write

INSTALL = "pip install openvino"
TORCH_HINT = "--set prior.engine=torch"
TELEMETRY = "openvino_telemetry"
FOLDER = "_name_or_path"
"""The folder of a network in its configuration, which says nothing about the network."""
PACKAGES = ("openvino", "torch", "diffusers")
"""The packages that the converted network depends on."""


def choose_engine(config: PriorConfig, device: torch.device, *, full_size: bool) -> tuple[str, str]:
    """The engine of network calls without gradient, "torch" or "openvino", and the reason.

    Args:
        config: the settings.
        device: where the networks run.
        full_size: whether the networks take gigabytes; OpenVINO holds a second copy of the weights.

    Raises:
        UsageProblem: OpenVINO is requested and can't be used.
    """
    requested = config.engine
    obstacle = _obstacle(config, device)
    if requested == "openvino" and obstacle is not None:
        reason, hint = obstacle
        raise UsageProblem(f"prior.engine=openvino can't be used: {reason}", hint=hint)
    if requested != "auto":
        return requested, "prior.engine"
    if obstacle is not None:
        return "torch", obstacle[0]
    if config.dtype == "bf16":
        return "torch", "prior.dtype is bf16"
    if full_size:
        return "torch", "a second copy of full-size networks takes gigabytes of memory"
    return "openvino", f"OpenVINO {version('openvino')} is installed"


@cache
def has_bf16() -> bool:
    """Whether OpenVINO can be imported and this processor multiplies in bfloat16 (AVX-512 BF16, AMX)."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False  # OpenVINO also names processors that only convert
    with suppress(ImportError, RuntimeError):  # its own core: `_core` could not be used after a fork
        return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return False


def computes_bf16(config: PriorConfig, device: torch.device) -> bool:
    """Whether the networks of a small prior compute in bfloat16 on a CPU, those of torch as well as OpenVINO's."""
    uses_openvino = choose_engine(config, device, full_size=False)[0] == "openvino"
    return uses_openvino and config.dtype != "fp32" and has_bf16()


def _obstacle(config: PriorConfig, device: torch.device) -> tuple[str, str] | None:
    """The reason why OpenVINO can't be used, and a hint; None if it can."""
    if device.type != "cpu":
        return f"the networks run on {device.type.upper()}", TORCH_HINT
    if config.dtype == "fp16":
        return "prior.dtype is fp16", "--dtype fp32"
    if importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed", INSTALL
    return None


class OpenVinoCalls:
    """Calls of a network's function in OpenVINO; the same bits for the same inputs and number of torch's threads.

    The rows of a call are split into calls of 2^k rows, so that few sizes are compiled and no row is padding. Sizes
    are compiled at their first call.

    Args:
        title: name of the network in errors.
        network: holds the weights, float32.
        function: a function of tensors that calls the network and returns one tensor or several; each row of its
            results depends only on the same row of its arguments.
        examples: arguments to trace the function with, two rows.
        largest: most pixels of the first argument in a call, rows times height times width: more rows do not fit into
            the processor's cache and take longer per row.
        multiple: for a height or width that is not a multiple of it, torch calls `function`.
        bf16: compute in bfloat16 where the processor has instructions for it.
    """

    def __init__(
        self,
        title: str,
        network: torch.nn.Module,
        function: Callable[..., Any],
        examples: Sequence[Tensor],
        *,
        largest: int,
        multiple: int = 1,
        bf16: bool = False,
    ) -> None:
        self._title, self._network, self._function, self._examples = title, network, function, examples
        self._largest, self._multiple = largest, multiple
        self._precision = "bf16" if bf16 else "f32"
        self._model: Any = None
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        """The function's result.

        Raises:
            EnvironmentProblem: OpenVINO can't be imported, convert or compile here, or this process is a fork of one
                that has used it.
        """
        height, width = inputs[0].shape[-2:]
        if height % self._multiple or width % self._multiple:
            return self._function(*inputs)
        sizes = row_counts(len(inputs[0]), self._largest // (height * width))
        parts = [self._infer(batch) for batch in zip(*(tensor.split(sizes) for tensor in inputs), strict=True)]
        results = [torch.cat(part) if len(part) > 1 else part[0] for part in zip(*parts, strict=True)]
        return tuple(results) if len(results) > 1 else results[0]

    def _infer(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The function's results for inputs of one size."""
        key = torch.get_num_threads(), *(tensor.shape for tensor in inputs)
        with self._translate_errors():
            if _core()[1] != os.getpid():
                raise RuntimeError(
                    "it was used before this process was forked"
                )  # it would wait for its threads forever
            if key not in self._compiled:
                # each compiled network has its own copy of the weights
                size = inputs[0].shape[-2:]
                self._compiled = {other: each for other, each in self._compiled.items() if other[1][-2:] == size}
                self._compiled[key] = self._compile([tensor.shape for tensor in inputs])
            arrays = [tensor.detach().contiguous().numpy() for tensor in inputs]
            results = self._compiled[key].infer(arrays, share_inputs=True)
        return [torch.from_numpy(results[index]) for index in range(len(results))]

    def _compile(self, shapes: Sequence[torch.Size]) -> Any:
        if self._model is None:
            path = self._path()
            self._model = _read(path) or self._convert(path)
        model = self._model.clone()
        model.reshape({index: list(shape) for index, shape in enumerate(shapes)})
        settings = {
            "INFERENCE_PRECISION_HINT": self._precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # pinned threads of several processes would share a core
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        return _core()[0].compile_model(model, "CPU", settings).create_infer_request()

    def _convert(self, path: Path) -> Any:
        """The converted network, also stored in the cache if the cache is writable."""
        openvino = import_openvino()
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of each size that becomes a constant; none that matters does
            module = _Function(self._network, self._function)
            # not `openvino.convert_model`, which reports to its vendor
            decoder = TorchScriptPythonDecoder(
                module, example_input=tuple(self._examples), trace_kwargs={"check_trace": False}
            )
            frontend = FrontEndManager().load_by_framework("pytorch")
            model = frontend.convert(frontend.load(decoder))
        with suppress(OSError, SegdreamError), tempfile.TemporaryDirectory() as folder:
            openvino.save_model(model, Path(folder) / "model.xml", compress_to_fp16=False)
            with cache_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
                for name in ("model.xml", "model.bin"):
                    archive.write(Path(folder) / name, name)
        return model

    def _path(self) -> Path:
        """The file in the cache, named by a hash of the versions, the function, the configuration and the weights."""
        total = hashlib.sha256()
        config = {key: value for key, value in getattr(self._network, "config", {}).items() if key != FOLDER}
        total.update(f"{self._title} {[(name, version(name)) for name in PACKAGES]} {config}".encode())
        for name, tensor in self._network.state_dict().items():
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
        return cache_folder() / "openvino" / f"{total.hexdigest()[:32]}.zip"

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except (ImportError, RuntimeError, PackageNotFoundError) as problem:
            line = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
            raise EnvironmentProblem(f"OpenVINO can't compute {self._title}: {line}", hint=TORCH_HINT) from problem


def _read(path: Path) -> Any | None:
    """The converted network in a file; None if there is none, or it is damaged."""
    openvino = import_openvino()
    damage = OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile  # the archive has checksums
    with suppress(*damage), zipfile.ZipFile(path) as archive:
        weights = openvino.Tensor(np.frombuffer(archive.read("model.bin"), np.uint8))
        return _core()[0].read_model(archive.read("model.xml"), weights)
    return None


class _Function(torch.nn.Module):
    """A function with its network as a submodule, so that the trace shares the weights instead of copying them."""

    def __init__(self, network: torch.nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def row_counts(rows: int, largest: int) -> list[int]:
    """Splits a number of rows into powers of two of at most `largest`, in descending order."""
    top = 1 << max(largest, 1).bit_length() - 1
    full, rest = divmod(rows, top)
    return [top] * full + [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]


def import_openvino() -> Any:
    """The module `openvino`, imported without its telemetry.

    Its import alone writes an identifier of the user into the home folder and sends an event to Google Analytics,
    unless the package that does this is missing.

    Raises:
        ImportError: it is missing or can't be loaded.
    """
    absent = object()
    before = sys.modules.get(TELEMETRY, absent)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        import openvino
    except Exception as problem:  # a damaged library raises what its first failing line raises
        raise ImportError(f"{problem}") from problem
    finally:
        if before is absent:
            del sys.modules[TELEMETRY]
        else:
            sys.modules[TELEMETRY] = before  # type: ignore[assignment]
    return openvino


@cache
def _core() -> tuple[Any, int]:
    """OpenVINO's core, and the id of the process that started its threads."""
    return import_openvino().Core(), os.getpid()
