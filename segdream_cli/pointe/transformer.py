"""Point-E's diffusion transformer over points (Nichol et al. 2022), under the names of its official checkpoints.

Every point is a token, and so are the time and what the network is conditioned on. No token knows its place: the
network's answer follows any reordering of the points.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from segdream_cli.config.values import convert
from segdream_cli.errors import UsageProblem, WeightsUnavailable
from segdream_cli.pointe.schedule import Sampling, Schedule

CHANNELS = 6
"""Values of a point: x, y, z, red, green, blue."""

CHANNEL_SCALES = (2.0, 2.0, 2.0, *3 * (0.007843137255,))
"""From world units (xyz in -0.5..0.5, colours in 0..255) to the networks' -1..1, with `CHANNEL_BIASES` added."""
CHANNEL_BIASES = (0.0, 0.0, 0.0, -1.0, -1.0, -1.0)

_OFFICIAL = "--point-e-dir with base_40m_textvec.pt and upsample_40m.pt, or --init sphere"
_DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class PointTransformerConfig:
    """One stage of Point-E: its network, its training schedule and how it is sampled."""

    points: int
    """Points that the stage makes."""
    width: int = 512
    layers: int = 12
    heads: int = 8
    condition: Literal["text", "points"] = "text"
    """A text vector, or the points of the stage before with an (always empty) grid of image features."""
    text_width: int = 768
    """Length of the text vector."""
    low_points: int = 0
    """Points of the stage before."""
    grid_tokens: int = 256
    grid_width: int = 1024
    schedule: Schedule = "cosine"
    sampling: Sampling = _DEFAULT_SAMPLING

    @classmethod
    def from_json(cls, data: Any) -> "PointTransformerConfig":
        """Reads the content of a stage's `config.json`; a field left out has its default.

        Raises:
            WeightsUnavailable: it is no mapping, or a field does not exist, is missing or has the wrong type.
        """
        try:
            config = cls(**_checked(cls, data))
        except (UsageProblem, TypeError) as problem:
            raise WeightsUnavailable(
                f"not the configuration of a Point-E stage: {problem}", hint=_OFFICIAL
            ) from problem
        if config.width % (2 * config.heads):
            raise WeightsUnavailable(
                f"not the configuration of a Point-E stage: width {config.width} with {config.heads} heads",
                hint=_OFFICIAL,
            )
        return config

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return dataclasses.asdict(self)


BASE = PointTransformerConfig(points=1024)
"""The official base40M-textvec."""

UPSAMPLE = PointTransformerConfig(
    points=3072,
    condition="points",
    low_points=1024,
    schedule="linear",
    # the release writes its absent guidance as 0.0
    sampling=Sampling(sigma_max=160.0, churn=0.0, guidance_scale=1.0),
)
"""The official upsample."""


class PointTransformer(nn.Module):
    """Predicts the noise in noisy points.

    New weights are drawn as the official code draws them; the first prediction is zero.
    """

    def __init__(self, config: PointTransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.time_embed = _FeedForward(width)
        self.ln_pre = nn.LayerNorm(width)
        self.backbone = _Backbone(width, config.layers, config.heads)
        self.ln_post = nn.LayerNorm(width)
        self.input_proj = nn.Linear(CHANNELS, width)
        self.output_proj = nn.Linear(width, 2 * CHANNELS)
        nn.init.zeros_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)
        self.clip_embed: nn.Module
        self.channel_scales: Tensor
        self.channel_biases: Tensor
        if config.condition == "text":
            self.clip_embed = nn.Linear(config.text_width, width)
        else:
            self.clip_embed = nn.Sequential(nn.LayerNorm(config.grid_width), nn.Linear(config.grid_width, width))
            self.cond_point_proj = nn.Linear(CHANNELS, width)
            self.register_buffer("channel_scales", torch.tensor(CHANNEL_SCALES))
            self.register_buffer("channel_biases", torch.tensor(CHANNEL_BIASES))

    @classmethod
    def from_state(cls, config: PointTransformerConfig, state: Mapping[str, Tensor]) -> "PointTransformer":
        """A frozen float32 network with exactly these weights.

        Raises:
            WeightsUnavailable: a weight is missing, of another shape, or not known.
        """
        with torch.device("meta"):
            network = cls(config)
        problem = _mismatch(state, network.state_dict())
        if problem:
            raise WeightsUnavailable(f"not the weights of this Point-E stage: {problem}", hint=_OFFICIAL)
        network.load_state_dict({key: tensor.float() for key, tensor in state.items()}, assign=True)
        return network.eval().requires_grad_(False)

    def compute_in(self, dtype: torch.dtype) -> "PointTransformer":
        """Does the matrix products of the blocks in `dtype`; norms, sums, points and predictions keep their precision.

        Coordinates of neighbouring points differ by less than bfloat16 resolves.
        """
        for module in self.backbone.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)
        return self

    def embed(self, given: Float[Tensor, "b ..."]) -> Float[Tensor, "b c w"]:
        """The tokens of what the network is conditioned on; they stay the same for all timesteps.

        Args:
            given: unit text vectors [b, text_width], or points in world units [b, low_points, 6].
                Zeros stand for nothing given, as in guidance.
        """
        if self.config.condition == "text":
            # the factor gives the features unit variance
            token: Tensor = self.clip_embed(math.sqrt(self.config.text_width) * given)
            return token[:, None]
        grid = self.clip_embed(given.new_zeros(len(given), self.config.grid_tokens, self.config.grid_width))
        low = self.cond_point_proj(given * self.channel_scales + self.channel_biases)
        return torch.cat([grid, low], dim=1)

    def forward(
        self, points: Float[Tensor, "b n 6"], timesteps: Int[Tensor, " b"], condition: Float[Tensor, "b c w"]
    ) -> Float[Tensor, "b n 12"]:
        """The noise in `points`, in the first six channels; the other six, a variance, are not used in sampling.

        Shapes depend on nothing but the inputs' shapes, and nothing waits for the device, so that a call can be
        captured in a CUDA graph.

        Args:
            points: noisy points of unit variance, sqrt(a) x0 + sqrt(1 - a) noise, x0 in -1..1.
            timesteps: 0..1023.
            condition: what `embed` returned.
        """
        time = self.time_embed(time_embedding(timesteps, self.config.width, points.dtype))
        x = torch.cat([condition, time[:, None], self.input_proj(points)], dim=1)  # b c+1+n w
        x = self.backbone(self.ln_pre(x))
        output: Tensor = self.output_proj(self.ln_post(x[:, -points.shape[1] :]))
        return output


class _Backbone(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = _Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = _FeedForward(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.attn.c_qkv.weight.dtype
        x = x + self.attn(self.ln_1(x).to(dtype))
        x = x + self.mlp(self.ln_2(x).to(dtype))
        return x


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_qkv = _linear(width, 3 * width, width)
        self.c_proj = _linear(width, width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.c_qkv(x).unflatten(-1, (self.heads, 3, -1))  # b l heads 3 d
        q, k, v = parts.permute(3, 0, 2, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)  # b heads l d
        output: Tensor = self.c_proj(mixed.transpose(1, 2).flatten(2))
        return output


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = _linear(width, 4 * width, width)
        self.c_proj = _linear(4 * width, width, width)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.c_proj(F.gelu(self.c_fc(x)))
        return output


def _linear(inputs: int, outputs: int, width: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.25 / math.sqrt(width))
    nn.init.zeros_(layer.bias)
    return layer


def time_embedding(timesteps: Int[Tensor, " b"], width: int, dtype: torch.dtype) -> Float[Tensor, "b w"]:
    """Cosines, then sines, of the timesteps at frequencies falling from 1 towards 1 / 10,000 (Vaswani et al. 2017)."""
    half = width // 2
    places = torch.arange(half, device=timesteps.device, dtype=dtype)
    angles = timesteps[:, None] * torch.exp(-math.log(10_000) / half * places)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def infer_config(state: Mapping[str, Tensor]) -> PointTransformerConfig:
    """Which of the two official stages a state dict belongs to, by its names and shapes.

    base40M-imagevec has the very names and shapes of base40M-textvec, and is taken for it.

    Raises:
        WeightsUnavailable: it is another variant, or none.
    """
    if "cond_point_proj.weight" in state:
        known, title = UPSAMPLE, "upsample"
    else:
        known, title = BASE, "base40M-textvec"
        _refuse_variants(state)
    with torch.device("meta"):
        expected = PointTransformer(known).state_dict()
    problem = _mismatch(state, expected)
    if problem:
        raise WeightsUnavailable(f"the checkpoint is not Point-E's {title}: {problem}", hint=_OFFICIAL)
    return known


def _refuse_variants(state: Mapping[str, Tensor]) -> None:
    """Refuses Point-E's other networks by what they are.

    Raises:
        WeightsUnavailable: naming it.
    """
    reason = None
    if any(key.startswith("encoder.") for key in state):
        reason = "it turns points into a signed-distance field, it does not make points"
    elif "input_proj.weight" not in state:
        reason = "it is no Point-E network"
    elif "clip_embed.1.weight" in state:
        width = state["clip_embed.1.weight"].shape[0]
        reason = f"it is conditioned on a picture (a grid of image features, width {width}), not on a text"
    elif "clip_embed.weight" not in state:
        reason = "it is not conditioned on anything, a text is needed"
    if reason:
        raise WeightsUnavailable(f"the checkpoint is of another variant: {reason}", hint=_OFFICIAL)


def _mismatch(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """The first difference in names or shapes in words, or None."""
    missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing:
        return f"it lacks {min(missing)}" + (f" and {len(missing) - 1} more weights" if len(missing) > 1 else "")
    if unknown:
        return f"it also holds {min(unknown)}"
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            return f"{key} is {list(state[key].shape)}, not {list(tensor.shape)}"
    return None


def _checked(kind: Any, data: Any) -> dict[str, Any]:
    """The fields of the dataclass `kind` in `data`, each of its type.

    Raises:
        TypeError: `data` is no mapping, or a field does not exist.
        UsageProblem: a value has the wrong type.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{data!r} is not a set of fields")
    hints = typing.get_type_hints(kind)
    unknown = data.keys() - hints.keys()
    if unknown:
        raise TypeError(f"there is no field {min(unknown)!r}")
    return {
        key: Sampling(**_checked(Sampling, value)) if hints[key] is Sampling else convert(key, value, hints[key])
        for key, value in data.items()
    }
