"""Point-E: from a text vector to a coloured point cloud in the inner frame."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from segdream_cli.accel.cuda_graphs import Announce, FallbackChain, GraphedCalls
from segdream_cli.errors import WeightsUnavailable
from segdream_cli.pointe.checkpoint import PointECheckpoint, read_state
from segdream_cli.pointe.sampler import Denoiser, sample
from segdream_cli.pointe.transformer import (
    CHANNEL_BIASES,
    CHANNEL_SCALES,
    CHANNELS,
    PointTransformer,
    PointTransformerConfig,
    infer_config,
)
from segdream_cli.util.files import parse_json

CONFIG_FILE = "config.json"


@dataclass(frozen=True, slots=True)
class PointCloud:
    """Coloured points in the inner frame, float32 on the CPU; those of the base stage come first."""

    points: Float[Tensor, "n 3"]
    """Right-handed, y up, the object faces +Z, about -0.5..0.5."""
    colors: Float[Tensor, "n 3"]
    """0..1."""


class PointE:
    """A base stage that samples points for a text vector, and optionally a stage that adds points to them.

    Args:
        base: conditioned on a text vector.
        upsample: conditioned on the points of `base`.

    Attributes:
        chains: the implementations of each stage after `speed_up`; empty before.
    """

    def __init__(self, base: PointTransformer, upsample: PointTransformer | None = None) -> None:
        self.stages = (base,) if upsample is None else (base, upsample)
        self.chains: tuple[FallbackChain, ...] = ()

    @classmethod
    def load(cls, checkpoint: PointECheckpoint, device: torch.device, dtype: torch.dtype) -> "PointE":
        """Loads a verified checkpoint.

        A `config.json` beside the base stage holds its configuration; without one the official one applies.

        Args:
            checkpoint: the stages' safetensors.
            device: where the networks run.
            dtype: dtype of their matrix products; see `PointTransformer.compute_in`.

        Raises:
            WeightsUnavailable: a file can't be read, or holds another network.
        """
        states = [read_state(path) for path in (checkpoint.base, checkpoint.upsample) if path is not None]
        configs = [infer_config(state) for state in states[1:]]
        described = checkpoint.base.with_name(CONFIG_FILE)
        configs.insert(0, _read_config(described) if described.is_file() else infer_config(states[0]))
        for config, condition in zip(configs, ("text", "points"), strict=False):
            if config.condition != condition:
                raise WeightsUnavailable(
                    f"{checkpoint.base} and {checkpoint.upsample} are not the base and the upsampling stage of Point-E",
                    hint="--init sphere",
                )
        networks = (
            PointTransformer.from_state(config, state).compute_in(dtype).to(device)
            for config, state in zip(configs, states, strict=True)
        )
        return cls(*networks)

    def speed_up(self, announce: Announce, *, graphs: bool, compiling: bool) -> "PointE":
        """Makes later evaluations on CUDA faster.

        A cloud takes many evaluations of the same shapes, with more than a hundred small kernels each. A graph launches
        all kernels at once; the compiler fuses them into fewer.

        Args:
            announce: receives lines about compilations and fallbacks.
            graphs: capture each network as a CUDA graph at its first evaluation, and replay it.
            compiling: compile the networks, which saves time where many clouds are made.
        """
        self.chains = tuple(
            FallbackChain.build(
                f"Point-E's {name} stage",
                network,
                GraphedCalls,
                announce,
                graphs=graphs,
                compiling=compiling,
                allow_fallback=not compiling,
            )
            for name, network in zip(("base", "upsampling"), self.stages, strict=False)
        )
        return self

    @property
    def _calls(self) -> Sequence[Callable[..., Tensor]]:
        return self.chains or self.stages

    @property
    def text_width(self) -> int:
        """Length of the text vector."""
        return self.stages[0].config.text_width

    @property
    def count(self) -> int:
        """Points of a cloud."""
        return sum(network.config.points for network in self.stages)

    @property
    def evaluations(self) -> tuple[int, ...]:
        """Network calls of `sample` for each stage."""
        return tuple(network.config.sampling.evaluations for network in self.stages)

    @torch.no_grad()
    def evaluate(self, stage: int) -> None:
        """Calls the network of a stage once, for a caller that times it; `sample` makes `evaluations[stage]` calls."""
        network = self.stages[stage]
        config, weight = network.config, network.input_proj.weight
        shape = (config.text_width,) if config.condition == "text" else (config.low_points, CHANNELS)
        denoise = Denoiser(network, weight.new_zeros(1, *shape), evaluate=self._calls[stage])
        denoise(weight.new_zeros(config.points, CHANNELS), config.sampling.sigma_max)

    @torch.no_grad()
    def sample(
        self,
        text_vector: Float[Tensor, " d"],
        generator: torch.Generator,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> PointCloud:
        """Samples a cloud.

        Args:
            text_vector: `text_width` numbers of unit length; see `TextVector`.
            generator: draws all noise on its own device, so that a CPU generator gives the same noise on every device.
            progress: receives the network evaluations done and in total.
        """
        done, total = 0, sum(self.evaluations)

        def count_call() -> None:
            nonlocal done
            done += 1
            if progress:
                progress(done, total)

        weight = self.stages[0].input_proj.weight
        condition = text_vector.to(weight)
        cloud = weight.new_empty(0, CHANNELS)
        for network, call in zip(self.stages, self._calls, strict=True):
            config = network.config
            noise = torch.randn(
                config.sampling.draws, config.points, CHANNELS, generator=generator, device=generator.device
            )
            new = sample(Denoiser(network, condition[None], count_call, call), noise.to(weight), config.sampling)
            cloud = condition = torch.cat([cloud, to_world(new)])
        xyz, rgb = cloud.float().cpu().split(3, dim=-1)
        return PointCloud(to_inner_frame(xyz), (rgb / 255).clamp(0, 1))


def to_world(points: Float[Tensor, "n 6"]) -> Float[Tensor, "n 6"]:
    """Converts the networks' units to Point-E's world units: xyz in about -0.5..0.5, colours in about 0..255."""
    return (points - points.new_tensor(CHANNEL_BIASES)) / points.new_tensor(CHANNEL_SCALES)


def to_inner_frame(xyz: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Rotates a quarter turn about X: Point-E's clouds are z up and usually face -y; the inner frame is y up, faces +Z.

    Point-E was trained on clouds of Blender imports, which are right-handed and face -y. The corgi in the release's
    examples faces -y, and other users of Point-E rotate their clouds accordingly. The releases of Gaussian methods
    negate y instead, which turns the front to their first camera but mirrors the object.
    """
    x, y, z = xyz.unbind(-1)
    return torch.stack([x, z, -y], dim=-1)


def _read_config(path: Path) -> PointTransformerConfig:
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise WeightsUnavailable(f"{path} can't be read: {problem}", hint="--init sphere") from problem
    return PointTransformerConfig.from_json(data)
