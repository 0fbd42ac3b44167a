"""Keeps measured figures in `results.json`: one object a metric and device, with what they depend on."""

import json
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from segdream_cli.runs.run_dir import package_versions

RESULTS = Path(__file__).with_name("results.json")


def device_name(device: str) -> str:
    """What a figure was measured on."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def record(metric: str, value: float, unit: str, device: str) -> None:
    """Replaces the entry of `metric` on this kind of device."""
    entries = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    name = device_name(device)
    entries = [entry for entry in entries if (entry["metric"], entry["device"]) != (metric, name)]
    command = ["git", "rev-parse", "--short", "HEAD"]
    known = shutil.which("git") is not None
    done = subprocess.run(command, capture_output=True, text=True, cwd=RESULTS.parent, check=False) if known else None
    commit = done.stdout.strip() if done else ""
    entries.append(
        {
            "metric": metric,
            "value": round(value, 4),
            "unit": unit,
            "device": name,
            "versions": package_versions(),
            "commit": commit,
        }
    )
    RESULTS.write_text(
        json.dumps(sorted(entries, key=lambda entry: entry["metric"]), indent=1) + "\n", encoding="utf-8"
    )
