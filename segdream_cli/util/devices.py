"""Which device computes: the values of `--device`."""

import torch

from segdream_cli.errors import EnvironmentProblem, UsageProblem

AUTO = "auto"
"""CUDA if there is a device, else the CPU."""


def choose_device(name: str) -> torch.device:
    """The device of a `--device` value, made the current one; raises as `visible_device`."""
    device = visible_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # streams, graphs and libraries take the current device, not the tensors'
    return device


def visible_device(name: str, instead: str = "--device cpu") -> torch.device:
    """The device of a name, without taking anything of it.

    Args:
        name: auto, cpu, cuda or cuda:N.
        instead: what to type where there is no CUDA.

    Raises:
        UsageProblem: not the name of a device that segdream computes on.
        EnvironmentProblem: CUDA was asked for and is not there.
    """
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise UsageProblem(f"there is no device {name!r}", hint="--device cpu, --device cuda or --device cuda:1")
    if kind == "cuda" and not torch.cuda.is_available():
        built = "no CUDA device is visible" if torch.version.cuda else "this build of torch has no CUDA"
        raise EnvironmentProblem(f"CUDA was asked for, but {built}", hint=f"{instead}, or see: segdream doctor")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise EnvironmentProblem(
            f"there is no {name}, only {torch.cuda.device_count()} CUDA devices", hint="nvidia-smi -L"
        )
    return torch.device(kind, int(index)) if index else torch.device(kind)
