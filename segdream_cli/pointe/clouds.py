"""Point-E's clouds: sampled once per prompt and seed, then kept in the cache."""

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from segdream_cli.errors import SegdreamError, WeightsUnavailable
from segdream_cli.pointe.model import PointCloud, PointE
from segdream_cli.util.download import cache_folder, format_time
from segdream_cli.util.files import cache_write
from segdream_cli.util.tensor_files import dump_tensors, load_tensors

LONG_S = 10.0
"""Seconds; a cloud that takes longer is announced."""
LINE_EVERY_S = 30.0


@dataclass
class Clouds:
    """Clouds of one Point-E.

    Args:
        digest: hash of its weights and of its text encoder's weights.
        device: where it runs.
        dtype: dtype of its blocks.
        load: returns the networks, and a function from a text to a text vector; called for the first sampled cloud.
        announce: receives lines about the time of a cloud, and a line about the first cloud from the cache.
    """

    digest: str
    device: torch.device
    dtype: torch.dtype
    load: Callable[[], tuple[PointE, Callable[[str], Float[Tensor, " d"]]]]
    announce: Callable[[str], None]
    _announced_cache: bool = field(default=False, init=False)

    def __call__(self, prompt: str, seed: int) -> PointCloud:
        """The cloud of a prompt; the same for the same seed, weights, device type and dtype.

        Raises:
            WeightsUnavailable: the networks can't be loaded, or give non-finite points.
        """
        how = f"{self.device.type} {self.dtype}"
        key = hashlib.sha256(f"{self.digest} {how} {seed} {prompt}".encode()).hexdigest()
        path = cache_folder() / "clouds" / f"{key[:32]}.safetensors"
        with suppress(OSError, SafetensorError, ValueError, KeyError):  # a damaged file is replaced
            stored, _ = load_tensors(path)
            cloud = PointCloud(stored["points"], stored["colors"])
            if not self._announced_cache:
                self._announced_cache = True
                self.announce(f"Point-E's cloud comes from the cache: {path.parent}")
            return cloud
        cloud = self._sample(prompt, seed)
        # without a writable cache a run takes longer, but works
        with suppress(OSError, SegdreamError), cache_write(path) as temporary:
            temporary.write_bytes(dump_tensors({"points": cloud.points, "colors": cloud.colors}))
        return cloud

    def release(self) -> None:
        """Frees the memory of the networks; the next sampled cloud loads them again."""
        self.__dict__.pop("_networks", None)

    @cached_property
    def _networks(self) -> tuple[PointE, Callable[[str], Float[Tensor, " d"]]]:
        return self.load()

    def _sample(self, prompt: str, seed: int) -> PointCloud:
        point_e, text_vector = self._networks
        vector = text_vector(prompt)
        progress = self._forecast(point_e) if self.device.type == "cpu" else None
        cloud = point_e.sample(vector, torch.Generator().manual_seed(seed), progress=progress)
        if not (cloud.points.isfinite().all() and cloud.colors.isfinite().all()):
            half = self.dtype == torch.float16  # the only one of the three dtypes with a smaller range
            raise WeightsUnavailable(
                f"Point-E's cloud of {prompt!r} is not finite: its weights are damaged"
                + (" or too large for fp16" if half else ""),
                hint="--set prior.dtype=fp32" if half else "--init sphere",
            )
        return cloud

    def _forecast(self, point_e: PointE) -> Callable[[int, int], None] | None:
        """Announces the time of a cloud if it is long; returns a function that then announces the time left."""
        seconds = _time_calls(point_e)
        total = sum(seconds)
        if total <= LONG_S:
            return None
        self.announce(
            f"Point-E takes about {format_time(total)} on this processor, {len(seconds)} calls of its networks"
        )
        begin = last = time.monotonic()

        def announce_rest(done: int, calls: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= LINE_EVERY_S and done < calls:
                last = now
                left = (now - begin) / sum(seconds[:done]) * sum(seconds[done:])
                self.announce(f"Point-E: {done} of {calls} calls, about {format_time(left)} left")

        return announce_rest


def _time_calls(point_e: PointE) -> list[float]:
    """Predicts the seconds of each network call for a cloud, from one call of each network."""
    seconds: list[float] = []
    for stage, calls in enumerate(point_e.evaluations):
        begin = time.perf_counter()
        point_e.evaluate(stage)
        seconds += calls * [time.perf_counter() - begin]
    return seconds
