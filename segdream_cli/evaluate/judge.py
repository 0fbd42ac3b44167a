"""The judge: a small classifier that names the object, color, attribute and azimuth of an image.

It reads assets of the embedded prior. `training/train_judge.py` trains it; its classes are stored beside its weights.

Shapes: m images, s pixels square.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.util.files import parse_json
from segdream_cli.util.hashes import check_sums

HEADS = ("objects", "colors", "attributes", "azimuths")
SECTORS = ("front", "side", "back")
CHANNELS = (32, 64, 128, 256, 320)
WEIGHTS_FILE, CLASSES_FILE = "judge.safetensors", "judge.json"
EMBEDDED = Path(__file__).resolve().parents[1] / "data" / "judge"
"""Folder of the judge in the package."""


class Label(NamedTuple):
    """The expected content of an image: a class of each head, in the judge's words; "" means no attribute."""

    object: str
    color: str
    attribute: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judge's verdict on m images: probabilities of each head's classes, in the order of `Judge.classes`."""

    objects: Float[Tensor, "m o"]
    colors: Float[Tensor, "m c"]
    attributes: Float[Tensor, "m a"]
    azimuths: Float[Tensor, "m 8"]

    @property
    def object(self) -> Int64[Tensor, " m"]:
        """Index of the most probable object."""
        return self.objects.argmax(-1)

    @property
    def color(self) -> Int64[Tensor, " m"]:
        """Index of the most probable color."""
        return self.colors.argmax(-1)

    @property
    def attribute(self) -> Int64[Tensor, " m"]:
        """Index of the most probable attribute."""
        return self.attributes.argmax(-1)

    @property
    def azimuth(self) -> Int64[Tensor, " m"]:
        """Index of the most probable azimuth: k is the bin of 45 degrees about 45 k."""
        return self.azimuths.argmax(-1)

    @property
    def sector(self) -> Int64[Tensor, " m"]:
        """Index into `SECTORS` of the most probable sector; a diagonal azimuth counts half for each neighbor."""
        straight, diagonal = self.azimuths[:, ::2], self.azimuths[:, 1::2]
        sides = straight + (diagonal + diagonal.roll(1, -1)) / 2  # [m, 4]: front, left, back, right
        return torch.stack([sides[:, 0], sides[:, 1] + sides[:, 3], sides[:, 2]], -1).argmax(-1)


class Judge(nn.Module):
    """A residual network with one linear head each for object, color, attribute and azimuth.

    Args:
        classes: names of the classes of each of `HEADS`; the azimuths are eight bins of 45 degrees about 0, 45, ...

    Attributes:
        classes: the same.
        azimuth_accuracy: by object, the share of held-out renders whose azimuth is read right; empty before training.
    """

    def __init__(self, classes: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.classes = {head: list(classes[head]) for head in HEADS}
        self.azimuth_accuracy: dict[str, float] = {}
        layers: list[nn.Module] = [nn.Conv2d(3, CHANNELS[0], 5, stride=2, padding=2)]
        for i, channels in enumerate(CHANNELS):
            if i:
                layers.append(nn.Conv2d(CHANNELS[i - 1], channels, 3, stride=2, padding=1))
            layers.append(_Residual(channels))
        self.body = nn.Sequential(*layers, nn.GroupNorm(16, CHANNELS[-1]), nn.SiLU())
        self.heads = nn.ModuleDict(
            {head: nn.Linear(2 * CHANNELS[-1], len(names)) for head, names in self.classes.items()}
        )
        for parameter in self.parameters():
            if parameter.ndim == 4:  # convolutions are faster with the channels innermost
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Float[Tensor, "m 3 s s"]) -> dict[str, Float[Tensor, "m _"]]:
        """Logits of each head for images in 0..1."""
        pooled = self._pool(images)
        return {name: head(pooled) for name, head in self.heads.items()}

    def _pool(self, images: Tensor) -> Tensor:
        maps = self.body(2 * images - 1)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], -1)

    @torch.no_grad()
    def features(self, images: Float[Tensor, "m 3 s s"], batch: int = 512) -> Float[Tensor, "m 640"]:
        """The vectors that the heads read in images in 0..1, `batch` images at a time, on the judge's device."""
        device = next(self.parameters()).device
        return torch.cat([self._pool(part.to(device)).float() for part in images.split(batch)])

    @torch.no_grad()
    def verdict(self, images: Float[Tensor, "m 3 s s"], batch: int = 512) -> Verdict:
        """Judges images in 0..1, `batch` at a time; the verdict is on the judge's device."""
        device = next(self.parameters()).device
        parts = [self(part.to(device)) for part in images.split(batch)]
        return Verdict(**{head: torch.cat([part[head].float() for part in parts]).softmax(-1) for head in HEADS})

    @classmethod
    def load(cls, folder: Path, device: torch.device | str) -> "Judge":
        """Loads a trained judge from a folder, for inference.

        Raises:
            WeightsUnavailable: its files can't be read or do not fit each other, or differ from listed hashes.
        """
        check_sums(folder)
        try:
            about = parse_json((folder / CLASSES_FILE).read_text(encoding="utf-8"))
            judge = cls(about)
            judge.azimuth_accuracy = about["azimuth_accuracy"]
            weights = load_file(folder / WEIGHTS_FILE)
            judge.load_state_dict({name: value.float() for name, value in weights.items()})
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as problem:
            raise WeightsUnavailable(
                f"the judge in {folder} can't be read: {problem}", hint=f"python -m training.train_judge --out {folder}"
            ) from problem
        return judge.eval().requires_grad_(False).to(device)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(16, channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first(F.silu(self.norms[0](x)))
        inner = self.second(F.silu(self.norms[1](inner)))
        added: Tensor = x + inner
        return added
