"""The interface of a distillation method: latents in, the gradient of its loss out.

The pipeline calls a method once per step for all assets of a batch. Random numbers are drawn on the host before the
rasteriser, where the host would wait for the device anyway; `gradient` then only queues work on it.

Shapes: a assets with v views each, b = a v rows of latents, asset by asset.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from segdream_cli.distill.guidance import Conditions
from segdream_cli.distill.schedule import Latents, NoiseSchedule
from segdream_cli.priors.protocol import Prior
from segdream_cli.util.devices import send

Generators = Mapping[str, torch.Generator]
"""Random generators of an asset by purpose; a method draws from "times" and "noise"."""
Shape = tuple[int, int, int, int]
"""Views, channels, height and width of an asset's latents."""
State = Mapping[str, Tensor]
"""Tensors that an asset keeps for the method from step to step. Checkpoints store them under these names, so "step" and
names with a dot are taken."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """Gradient of a method's loss with respect to the renders.

    Args:
        latents: by the latents z_0.
        rgb: by the colours of the renders themselves, mirrored where z_0 is, also where z_0 encodes a disparity map;
            None if the loss does not depend on them directly.
    """

    latents: Latents
    rgb: Float[Tensor, "b 3 H W"] | None = None


@runtime_checkable
class Method(Protocol):
    """A way to distil a prior. It is built from the settings of a run, and raises UsageProblem if they do not fit.

    Attributes:
        notes: remarks on the settings for the user, each with the setting that changes it.
        rows_per_view: rows of the U-Net that a step evaluates per view, on average; estimates use it.
        decodes_per_view: images that a step decodes per view; estimates use it.
    """

    @property
    def notes(self) -> Sequence[str]:
        """Remarks on the settings."""

    @property
    def rows_per_view(self) -> float:
        """Rows of the U-Net per view and step."""

    @property
    def decodes_per_view(self) -> float:
        """Decoded images per view and step."""

    def init_state(self, shape: Shape, generators: Generators) -> State:
        """What an asset keeps for the method, before its first step; on the CPU."""

    def draw(self, step: int, shape: Shape, state: State, generators: Generators) -> Any:
        """Random numbers of an asset's step (1, 2, ...); on the CPU but for what comes from `state`."""

    def describe(self, draw: Any) -> Mapping[str, Any]:
        """Named timesteps of a draw, as JSON values, for events and error messages."""

    def gradient(
        self, prior: Prior, schedule: NoiseSchedule, latents: Latents, conditions: Conditions, draws: Sequence[Any]
    ) -> Gradient:
        """The gradient of the method's loss.

        Args:
            prior: predicts noise and decodes latents.
            schedule: its noise schedule.
            latents: encoded renders z_0, [b, c, h, w], detached.
            conditions: the text of every row.
            draws: one per asset, all of the same step.
        """


def draw_noise(shape: Shape, offset: float, generator: torch.Generator) -> Float[Tensor, "v c h w"]:
    """Gaussian noise for each view, plus a constant per channel that the views of an asset share.

    LucidDreamer and the release of SCTD add the constant, whose standard deviation is `offset`.
    """
    noise = torch.randn(shape, generator=generator)
    return noise + offset * torch.randn(1, shape[1], 1, 1, generator=generator)


def merge(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Tensors [v, ...] of each asset as one [b, ...] on the device, sent without waiting for it."""
    return send(torch.cat(list(parts)), device)
