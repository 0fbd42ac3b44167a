"""Private interfaces of other libraries: if a new version changes one, only this file has to change.

`tests/unit/test_compat.py` tests each of them and names the tested versions. Every import is inside
its function, so that importing this module costs nothing.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def filter_compiler_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `torch.compile` that the installed compiler has."""
    from torch._inductor import config

    return {name: value for name, value in options.items() if hasattr(config, name)}


def cache_custom_autograd_functions() -> None:
    """Lets torch cache compiled code that contains subclasses of `torch.autograd.Function`; old versions do not."""
    import torch._functorch.config as config

    if hasattr(config, "autograd_cache_allow_custom_autograd_functions"):
        config.autograd_cache_allow_custom_autograd_functions = True


def has_triton() -> bool:
    """Whether torch's compiler can generate code for the GPU here."""
    from torch.utils import _triton

    return _triton.has_triton()


def numba_cache(function: Callable[..., Any]) -> tuple[Path, str]:
    """The folder in which numba caches a function, and the stem of its files.

    Raises:
        RuntimeError: no folder can be written; the message begins with "cannot cache".
    """
    from numba.core.caching import FunctionCache

    cache = FunctionCache(function)
    return Path(cache.cache_path), cache._impl.filename_base


def gsplat_kernels() -> Any | None:
    """The compiled CUDA kernels of gsplat, built if necessary; None without a CUDA compiler."""
    from gsplat.cuda._backend import _C

    return _C


def adam(*arguments: Any, **options: Any) -> None:
    """Takes a step of Adam on lists of tensors, without an optimizer object: `torch.optim.adam.adam`."""
    from torch.optim.adam import adam

    adam(*arguments, **options)


def hub_utils() -> Any:
    """Progress bars of huggingface_hub: `tqdm`, and the functions that disable, enable and query the bars."""
    import huggingface_hub.utils

    return huggingface_hub.utils


def silence_ray() -> None:
    """Keeps what Ray's machines report off this program's stdout, where Ray prints it."""
    import ray._private.worker as worker

    worker._worker_logs_enabled = False  # ray.init has no option for messages that a raylet sends


def usage_error(bad_parameter: type[Exception]) -> Any:
    """The exception class that Typer raises for a command line that it can't parse: the base of its `BadParameter`."""
    return bad_parameter.__base__
