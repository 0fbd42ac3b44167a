"""Times and sizes of assets that this machine has made: the forecast for the next ones with the same settings.

They are kept in the cache, one file for each combination of device, weights and settings.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from segdream_cli.config import Config
from segdream_cli.util.download import cache_folder
from segdream_cli.util.hashes import write_json


@dataclass(frozen=True, slots=True)
class Timing:
    """The latest asset of a combination.

    Args:
        seconds: wall time of all its steps; of assets made together, the time of all divided by their number.
        gaussians: their number.
        bytes: suffix of a format -> size of the file.
    """

    seconds: float
    gaussians: int
    bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Timings:
    """The timings of one combination.

    Args:
        config: the settings; those about the files of a run do not count.
        digest: hash of the prior's weights.
        device: computes the assets.
    """

    config: Config
    digest: str
    device: torch.device

    def recall(self, together: int) -> Timing | None:
        """The timing of assets of which `together` were made at once; None if there is none."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            stored = json.loads(self._file(together).read_text(encoding="utf-8"))
            sizes = {str(suffix): int(size) for suffix, size in stored["bytes"].items()}
            return Timing(float(stored["seconds"]), int(stored["gaussians"]), sizes)
        return None

    def record(self, together: int, timing: Timing) -> None:
        """Replaces the timing; sizes of other formats stay."""
        before = self.recall(together)
        sizes = {**(before.bytes if before else {}), **timing.bytes}
        content = {"seconds": round(timing.seconds, 3), "gaussians": timing.gaussians, "bytes": sizes}
        write_json(self._file(together), content)

    def _file(self, together: int) -> Path:
        cuda = self.device.type == "cuda"
        device = torch.cuda.get_device_name(self.device) if cuda else f"{torch.get_num_threads()} threads"
        settings = {key: value for key, value in self.config.flat().items() if not key.startswith("output.")}
        parts = [platform.node(), platform.machine(), device, self.digest, settings, together]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return cache_folder() / "timings" / f"{key[:32]}.json"
