"""The device that computes: values of `--device`."""

import os
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from segdream_cli.errors import EnvironmentProblem, UsageProblem

if TYPE_CHECKING:
    import torch

AUTO = "auto"
"""CUDA if a device is visible, else the CPU."""
DRIVERS = ("nvidia", "nvhost", "nvmap", "dxg", "kfd")
"""Beginnings of the names in /dev of devices that torch may use through CUDA: NVIDIA, Jetson, WSL, AMD."""


def may_have_cuda() -> bool:
    """Whether torch may find a CUDA device here, without the seconds that its import takes; True if in doubt."""
    if sys.platform.startswith("linux"):
        return any(path.name.startswith(DRIVERS) for path in Path("/dev").glob("[dkn]*"))
    return sys.platform != "darwin"


def check_device(name: str) -> None:
    """Refuses a value of `--device` that no machine has.

    Raises:
        UsageProblem: it is not auto, cpu, cuda or cuda:N.
    """
    kind, _, index = name.partition(":")
    if name != AUTO and (kind not in ("cpu", "cuda") or (index and not index.isdecimal())):
        raise UsageProblem(f"there is no device {name!r}", hint="--device cpu")


def choose_device(name: str) -> "torch.device":
    """The device of a `--device` value, which becomes torch's current device; raises the errors of `visible_device`."""
    import torch

    device = visible_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # streams, graphs and libraries use the current device, not the tensors'
    return device


def visible_device(name: str, instead: str = "--device cpu") -> "torch.device":
    """The device of a name, without using it.

    Args:
        name: auto, cpu, cuda or cuda:N.
        instead: options to suggest without CUDA.

    Raises:
        UsageProblem: the name is not one of these.
        EnvironmentProblem: CUDA was requested and is not available.
    """
    import torch

    check_device(name)
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        built = "no CUDA device is visible" if torch.version.cuda else "this build of torch has no CUDA"
        raise EnvironmentProblem(f"CUDA was requested, but {built}", hint=instead)
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        first = instead.replace(" cpu", " 0" if instead.startswith("--devices") else " cuda:0")
        raise EnvironmentProblem(f"there is no {name}, only {torch.cuda.device_count()} CUDA devices", hint=first)
    return torch.device(kind, int(index)) if index else torch.device(kind)


def describe_machine(device: "torch.device") -> dict[str, str]:
    """The system, the processor and its threads, the memory, and the name of a CUDA device; not the host's name."""
    import torch

    threads = torch.get_num_threads()
    facts = {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processor": f"{_processor()}, {threads} {'thread' if threads == 1 else 'threads'}",
    }
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        facts["gpu"] = f"{torch.cuda.get_device_name(device)}, {total:.1f} GiB"
    return facts


def _processor() -> str:
    """The processor's model, which `platform` does not know on Linux."""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            return found[1]
    return platform.processor() or platform.machine()


def send(values: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """The values on the device, sent without waiting for it.

    Random numbers are drawn on the CPU, so that a seed means the same everywhere. A copy to CUDA lets the host
    continue only from pinned memory.
    """
    pinned = values.pin_memory() if device.type == "cuda" and not values.is_cuda else values
    return pinned.to(device, non_blocking=True)
