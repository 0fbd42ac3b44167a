"""Point-E's diffusion transformer over points (Nichol et al. 2022), with the names of its official checkpoints.

Points, time and condition are tokens. There are no positional encodings: if the points are permuted, so is the output.
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
"""Values per point: x, y, z, red, green, blue."""

CHANNEL_SCALES = (2.0, 2.0, 2.0, *3 * (0.007843137255,))
"""Scales from world units (xyz in -0.5..0.5, colours in 0..255) to the networks' -1..1; `CHANNEL_BIASES` is added."""
CHANNEL_BIASES = (0.0, 0.0, 0.0, -1.0, -1.0, -1.0)

_FALLBACK_HINT = "--init sphere"
_DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class PointTransformerConfig:
    """One stage of Point-E: network, training schedule and sampling."""

    points: int
    """Points that the stage samples."""
    width: int = 512
    layers: int = 12
    heads: int = 8
    condition: Literal["text", "points"] = "text"
    """A text vector, or the points of the previous stage with a grid of image features, which is always empty."""
    text_width: int = 768
    """Length of the text vector."""
    low_points: int = 0
    """Points of the previous stage."""
    grid_tokens: int = 256
    grid_width: int = 1024
    schedule: Schedule = "cosine"
    sampling: Sampling = _DEFAULT_SAMPLING

    @classmethod
    def from_json(cls, data: Any) -> "PointTransformerConfig":
        """Reads the content of a stage's `config.json`; absent fields have their defaults.

        Raises:
            WeightsUnavailable: the content is not a mapping, or a field is unknown, is missing or has the wrong type.
        """
        try:
            config = cls(**_check_fields(cls, data))
        except (UsageProblem, TypeError) as problem:
            raise WeightsUnavailable(
                f"not the configuration of a Point-E stage: {problem}", hint=_FALLBACK_HINT
            ) from problem
        if config.width % (2 * config.heads):
            raise WeightsUnavailable(
                f"not the configuration of a Point-E stage: width {config.width} with {config.heads} heads",
                hint=_FALLBACK_HINT,
            )
        return config

    def to_json(self) -> dict[str, Any]:
        """The content of a `config.json`."""
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

    New weights are initialised as in the official code, so the first prediction is zero.
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
            WeightsUnavailable: a weight is missing, has another shape, or is unknown.
        """
        with torch.device("meta"):
            network = cls(config)
        problem = _mismatch(state, network.state_dict())
        if problem:
            raise WeightsUnavailable(f"not the weights of this Point-E stage: {problem}", hint=_FALLBACK_HINT)
        network.load_state_dict({key: tensor.float() for key, tensor in state.items()}, assign=True)
        return network.eval().requires_grad_(False)

    def compute_in(self, dtype: torch.dtype) -> "PointTransformer":
        """Sets the dtype of the blocks' matrix products; norms, sums, points and predictions keep their precision.

        bfloat16 could not resolve the differences between coordinates of neighbouring points.
        """
        for module in self.backbone.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)
        return self

    def embed(self, condition: Float[Tensor, "b ..."]) -> Float[Tensor, "b c w"]:
        """The tokens of a condition, which are the same for all timesteps.

        Args:
            condition: unit text vectors [b, text_width], or points in world units [b, low_points, 6]. Zeros are the
                empty condition of guidance.
        """
        if self.config.condition == "text":
            # the factor gives the features unit variance
            token: Tensor = self.clip_embed(math.sqrt(self.config.text_width) * condition)
            return token[:, None]
        grid = self.clip_embed(condition.new_zeros(len(condition), self.config.grid_tokens, self.config.grid_width))
        low = self.cond_point_proj(condition * self.channel_scales + self.channel_biases)
        return torch.cat([grid, low], dim=1)

    def forward(
        self, points: Float[Tensor, "b n 6"], timesteps: Int[Tensor, " b"], condition: Float[Tensor, "b c w"]
    ) -> Float[Tensor, "b n 12"]:
        """Predicts the noise in `points` (the first six channels) and a variance, which sampling does not use.

        Shapes depend only on the inputs' shapes, and nothing waits for the device, so a call can be captured in a CUDA
        graph.

        Args:
            points: noisy points of unit variance, sqrt(a) x0 + sqrt(1 - a) noise, x0 in -1..1.
            timesteps: 0..1023.
            condition: the result of `embed`.
        """
        time = self.time_embed(embed_time(timesteps, self.config.width, points.dtype))
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


def embed_time(timesteps: Int[Tensor, " b"], width: int, dtype: torch.dtype) -> Float[Tensor, "b w"]:
    """Cosines, then sines, of the timesteps at frequencies from 1 down to almost 1 / 10,000 (Vaswani et al. 2017)."""
    half = width // 2
    indices = torch.arange(half, device=timesteps.device, dtype=dtype)
    angles = timesteps[:, None] * torch.exp(-math.log(10_000) / half * indices)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def infer_config(state: Mapping[str, Tensor]) -> PointTransformerConfig:
    """The configuration of the official stage that a state dict belongs to, by its names and shapes.

    base40M-imagevec has the same names and shapes as base40M-textvec, and passes as that.

    Raises:
        WeightsUnavailable: the state dict is of another variant, or not of Point-E.
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
        raise WeightsUnavailable(f"the checkpoint is not Point-E's {title}: {problem}", hint=_FALLBACK_HINT)
    return known


def _refuse_variants(state: Mapping[str, Tensor]) -> None:
    """Refuses Point-E's other networks; the error names them.

    Raises:
        WeightsUnavailable: the weights are of another variant.
    """
    reason = None
    if any(key.startswith("encoder.") for key in state):
        reason = "it turns points into a signed-distance field, it does not make points"
    elif "input_proj.weight" not in state:
        reason = "it is not a Point-E network"
    elif "clip_embed.1.weight" in state:
        width = state["clip_embed.1.weight"].shape[0]
        reason = f"it is conditioned on an image (a grid of image features, width {width}), not on a text"
    elif "clip_embed.weight" not in state:
        reason = "it is not conditioned on a text"
    if reason:
        raise WeightsUnavailable(f"the checkpoint is of another variant: {reason}", hint=_FALLBACK_HINT)


def _mismatch(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """A description of the first difference in names or shapes; None without one."""
    missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing:
        return f"it lacks {min(missing)}" + (f" and {len(missing) - 1} more weights" if len(missing) > 1 else "")
    if unknown:
        return f"it also holds {min(unknown)}"
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            return f"{key} is {list(state[key].shape)}, not {list(tensor.shape)}"
    return None


def _check_fields(kind: Any, data: Any) -> dict[str, Any]:
    """The fields of the dataclass `kind` in `data`, after a check of their types.

    Raises:
        TypeError: `data` is not a mapping, or a field is unknown.
        UsageProblem: a value has the wrong type.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{data!r} is not a set of fields")
    hints = typing.get_type_hints(kind)
    unknown = data.keys() - hints.keys()
    if unknown:
        raise TypeError(f"there is no field {min(unknown)!r}")
    return {
        key: Sampling(**_check_fields(Sampling, value)) if hints[key] is Sampling else convert(key, value, hints[key])
        for key, value in data.items()
    }
