"""Compiled code as bytes, which another process on a machine of the same kind loads instead of compiling again.

The bytes hold pickled objects, as torch writes them: load only those that workers of this user made.
"""

import hashlib
import platform

import torch

from segdream_cli import __version__


def machine_kind(device: torch.device) -> str:
    """Name of the machines that can use each other's compiled code, from all that changes it."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    parts = (device.type, gpu, platform.machine(), platform.python_version(), torch.__version__, __version__)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def export_code() -> bytes | None:
    """All code that this process has compiled or loaded; None without any, or before torch 2.7."""
    save = getattr(torch.compiler, "save_cache_artifacts", None)
    found = None if save is None else save()
    return None if found is None else bytes(found[0])


def load_code(content: bytes) -> bool:
    """Puts exported code into torch's caches on this machine; returns whether it fits."""
    load = getattr(torch.compiler, "load_cache_artifacts", None)
    return load is not None and load(content) is not None
