"""Faster equivalents of layers of frozen networks, for GPUs.

A replacement keeps the parameters of the layer and their names.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenConvolution(nn.Module):
    """A convolution of stride 1 whose weights take no gradient.

    The gradient of its input is computed as a convolution too, with the weights rotated by 180 degrees and their
    channels exchanged: cuDNN's forward kernels are several times as fast as its backward kernels.

    When compiled, the bias is added separately, so that the compiler fuses it into the operations that read the result.

    Args:
        layer: the convolution to replace; stride 1, dilation 1, one group, padded with zeros.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.padding: Any = layer.padding

    def forward(self, x: Tensor) -> Tensor:
        """Convolves x."""
        inside, outside = (None, self.bias) if torch.compiler.is_compiling() else (self.bias, None)
        output: Tensor = _FrozenConvolution.apply(x, self.weight, inside, self.padding)  # type: ignore[no-untyped-call]
        return output if outside is None else output + outside[:, None, None]


class _FrozenConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        rest = tuple(size - 1 - padding for size, padding in zip(weight.shape[2:], ctx.padding, strict=True))
        return F.conv2d(gradients[0], weight.flip(2, 3).transpose(0, 1), padding=rest), None, None, None


class ChannelNorm(nn.Module):
    """Group normalisation from the mean and the variance of each channel.

    With channels innermost in memory, sums per channel read whole rows, but sums per group jump from pixel to pixel.
    Only compiled code takes this path: the compiler fuses its dozen passes into two.

    Args:
        layer: the normalisation to replace.
    """

    def __init__(self, layer: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.groups, self.eps = layer.num_groups, layer.eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x, [b, c, ...]; statistics have at least single precision."""
        if not torch.compiler.is_compiling():
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        return self.by_channel(x)

    def by_channel(self, x: Tensor) -> Tensor:
        """Normalises x by the statistics of each channel."""
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(values, dim=tuple(range(2, x.dim())), correction=0)  # [b, c]
        variance, mean = (part.unflatten(1, (self.groups, -1)) for part in (variance, mean))  # [b, g, c / g]
        center = mean.mean(2, keepdim=True)
        spread = variance.mean(2, keepdim=True) + (mean - center).square().mean(2, keepdim=True)
        shape = (len(x), x.shape[1], *[1] * (x.dim() - 2))
        factor = (spread + self.eps).rsqrt().expand_as(mean).reshape(shape)
        shift = center.expand_as(mean).reshape(shape)
        weight, bias = (part.to(values.dtype).reshape(shape[1:]) for part in (self.weight, self.bias))
        output: Tensor = (values - shift) * (factor * weight) + bias
        return output.to(x.dtype)


def replace_convolutions(network: nn.Module) -> None:
    """Replaces each convolution that meets the conditions of `FrozenConvolution`."""

    def fits(layer: nn.Module) -> bool:
        return (
            type(layer) is nn.Conv2d
            and layer.stride == layer.dilation == (1, 1)
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
            and all(padding < size for padding, size in zip(layer.padding, layer.kernel_size, strict=True))
        )

    _replace(network, fits, FrozenConvolution)


def replace_norms(network: nn.Module) -> None:
    """Replaces each group normalisation with weights by a `ChannelNorm`."""
    _replace(network, lambda layer: type(layer) is nn.GroupNorm and layer.affine, ChannelNorm)


def drop_separate_projections(network: nn.Module) -> None:
    """Drops the projection weights that diffusers' `fuse_qkv_projections` has copied into fused ones.

    LoRA adapters must be merged before: they find no separate projections afterwards.
    """
    for layer in network.modules():
        if getattr(layer, "fused_projections", False):
            for name in ("to_k", "to_v") if layer.is_cross_attention else ("to_q", "to_k", "to_v"):
                setattr(layer, name, None)
    network.requires_grad_(False)


def _replace(network: nn.Module, fits: Callable[[nn.Module], bool], build: Callable[[Any], nn.Module]) -> None:
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if fits(layer):
                setattr(parent, name, build(layer))
