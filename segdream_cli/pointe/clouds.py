"""Point-E's clouds: made once for a prompt and a seed, then kept in the cache."""

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from segdream_cli.download import cache_folder
from segdream_cli.errors import SegdreamError
from segdream_cli.files import replacing
from segdream_cli.pointe.model import PointCloud, PointE

WORTH_SAYING_S = 10.0


@dataclass
class Clouds:
    """Clouds of one Point-E.

    Args:
        digest: of its weights and of those that its text vectors come from.
        device: where it runs.
        load: its networks, and what turns a text into a text vector; called when the first cloud has to be made.
        announce: receives a line about how long a cloud will take, and one when it comes from the cache.
    """

    digest: str
    device: torch.device
    load: Callable[[], tuple[PointE, Callable[[str], Float[Tensor, " d"]]]]
    announce: Callable[[str], None]

    def __call__(self, prompt: str, seed: int) -> PointCloud:
        """The cloud of a prompt: always the same for one seed, one set of weights and one kind of device.

        Raises:
            WeightsUnavailable: the networks can't be loaded.
        """
        key = hashlib.sha256(f"{self.digest} {self.device.type} {seed} {prompt}".encode()).hexdigest()
        path = cache_folder() / "clouds" / f"{key[:32]}.safetensors"
        with suppress(OSError, SafetensorError, KeyError):  # one that is damaged is made anew
            kept = load_file(path)
            self.announce(f"the cloud of {prompt!r} with seed {seed} is in the cache: {path}")
            return PointCloud(kept["points"], kept["colors"])
        cloud = self._make(prompt, seed)
        with suppress(OSError, SegdreamError):  # a cache that can't be written costs time, not the run
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(save({"points": cloud.points, "colors": cloud.colors}))
        return cloud

    @cached_property
    def _loaded(self) -> tuple[PointE, Callable[[str], Float[Tensor, " d"]]]:
        return self.load()

    def _make(self, prompt: str, seed: int) -> PointCloud:
        point_e, text_vector = self._loaded
        vector = text_vector(prompt)
        if self.device.type == "cpu" and (seconds := _estimate_s(point_e)) > WORTH_SAYING_S:
            calls = sum(point_e.evaluations)
            self.announce(f"Point-E takes about {_in_words(seconds)} on this processor, {calls} calls of its networks")
        return point_e.sample(vector, torch.Generator().manual_seed(seed))


def _estimate_s(point_e: PointE) -> float:
    """Seconds that a cloud will take, from one call of each network."""
    total = 0.0
    for stage, calls in enumerate(point_e.evaluations):
        begin = time.perf_counter()
        point_e.evaluate(stage)
        total += calls * (time.perf_counter() - begin)
    return total


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
