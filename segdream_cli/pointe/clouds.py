"""Point-E's clouds: made once for a prompt and a seed, then kept in the cache."""

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from segdream_cli.errors import SegdreamError, WeightsUnavailable
from segdream_cli.pointe.model import PointCloud, PointE
from segdream_cli.util.download import cache_folder
from segdream_cli.util.files import atomic_write

WORTH_SAYING_S = 10.0
LINE_EVERY_S = 30.0


@dataclass
class Clouds:
    """Clouds of one Point-E.

    Args:
        digest: of its weights and of those that its text vectors come from.
        device: where it runs.
        dtype: of the arithmetic of its blocks.
        load: its networks, and what turns a text into a text vector; called when the first cloud has to be made.
        announce: receives lines about how long a cloud will take, and one when the first comes from the cache.
    """

    digest: str
    device: torch.device
    dtype: torch.dtype
    load: Callable[[], tuple[PointE, Callable[[str], Float[Tensor, " d"]]]]
    announce: Callable[[str], None]
    _told_of_cache: bool = field(default=False, init=False)

    def __call__(self, prompt: str, seed: int) -> PointCloud:
        """The cloud of a prompt: always the same for a seed, a set of weights, a kind of device and an arithmetic.

        Raises:
            WeightsUnavailable: the networks can't be loaded, or give what are no points.
        """
        how = f"{self.device.type} {self.dtype}"
        key = hashlib.sha256(f"{self.digest} {how} {seed} {prompt}".encode()).hexdigest()
        path = cache_folder() / "clouds" / f"{key[:32]}.safetensors"
        with suppress(OSError, SafetensorError, KeyError):  # one that is damaged is made anew
            kept = load_file(path)
            cloud = PointCloud(kept["points"], kept["colors"])
            if not self._told_of_cache:
                self._told_of_cache = True
                self.announce(f"a cloud that Point-E has made before comes from the cache: {path.parent}")
            return cloud
        cloud = self._make(prompt, seed)
        with suppress(OSError, SegdreamError):  # a cache that can't be written costs time, not the run
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                temporary.write_bytes(save({"points": cloud.points, "colors": cloud.colors}))
        return cloud

    def release(self) -> None:
        """Frees the memory of the networks; the next cloud that has to be made loads them again."""
        self.__dict__.pop("_loaded", None)

    @cached_property
    def _loaded(self) -> tuple[PointE, Callable[[str], Float[Tensor, " d"]]]:
        return self.load()

    def _make(self, prompt: str, seed: int) -> PointCloud:
        point_e, text_vector = self._loaded
        vector = text_vector(prompt)
        progress = self._forecast(point_e) if self.device.type == "cpu" else None
        cloud = point_e.sample(vector, torch.Generator().manual_seed(seed), progress=progress)
        if not (cloud.points.isfinite().all() and cloud.colors.isfinite().all()):
            half = self.dtype == torch.float16  # of the three only this one has a smaller range
            raise WeightsUnavailable(
                f"Point-E's cloud of {prompt!r} is not finite: its weights are damaged"
                + (" or too large for fp16" if half else ""),
                hint=("--set prior.dtype=fp32, or " if half else "")
                + "--init sphere, or other weights: --point-e-dir /path/to/folder",
            )
        return cloud

    def _forecast(self, point_e: PointE) -> Callable[[int, int], None] | None:
        """Says how long a cloud will take, if that is long; returns what then says now and then how much is left."""
        seconds = _seconds_by_call(point_e)
        total = sum(seconds)
        if total <= WORTH_SAYING_S:
            return None
        self.announce(f"Point-E takes about {_in_words(total)} on this processor, {len(seconds)} calls of its networks")
        begin = last = time.monotonic()

        def tell(done: int, calls: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= LINE_EVERY_S and done < calls:
                last = now
                left = (now - begin) / sum(seconds[:done]) * sum(seconds[done:])
                self.announce(f"Point-E: {done} of {calls} calls, about {_in_words(left)} left")

        return tell


def _seconds_by_call(point_e: PointE) -> list[float]:
    """Seconds that each call of a network for a cloud will take, from one call of each network."""
    seconds: list[float] = []
    for stage, calls in enumerate(point_e.evaluations):
        begin = time.perf_counter()
        point_e.evaluate(stage)
        seconds += calls * [time.perf_counter() - begin]
    return seconds


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
