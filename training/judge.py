"""The judge: a small classifier that says what a picture shows. `python -m training.judge --minutes 8 --out DIR`.

It scores assets, so it learns from other seeds, other light and a wider lens than the prior, and from renders spoilt
in the ways of unfinished assets: moved, hazy, holed, mottled, blurred, with floaters.

Shapes: m or b pictures, s pixels square.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from jaxtyping import Float, Int64
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.util.files import replacing
from training.bank import Bank, render_bank
from training.world.camera import Lens, Light, backgrounds
from training.world.catalog import ATTRIBUTES, COLORS, OBJECTS, OVERHEAD_DEG, VIEWS, combinations

NAMES = {"objects": list(OBJECTS), "colors": list(COLORS), "attributes": list(ATTRIBUTES), "azimuths": list(VIEWS)}
"""Classes of each head; the azimuths' are the eight bins of 45 degrees about 0, 45, ..."""
SECTORS = ("front", "side", "back")
CHANNELS = (32, 64, 128, 256, 320)
WEIGHTS_FILE, ABOUT_FILE = "judge.safetensors", "judge.json"
LIGHT = Light(ambient=(0.6, 0.9), sky=(0.05, 0.15), sun=(0.1, 0.35))
LENS = Lens(elevation_deg=(-20.0, 70.0), fov_rad=(0.5, 0.95), fill=(0.7, 1.0))
NEAR_DEG = 15.0
"""An azimuth is read right or wrong only this near to the middle of its bin: at an edge both answers are right."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge makes of m pictures: probabilities of each head's classes, in the order of `NAMES`."""

    objects: Float[Tensor, "m o"]
    colors: Float[Tensor, "m 12"]
    attributes: Float[Tensor, "m 6"]
    azimuths: Float[Tensor, "m 8"]

    @property
    def object(self) -> Int64[Tensor, " m"]:
        """The likeliest object."""
        return self.objects.argmax(-1)

    @property
    def color(self) -> Int64[Tensor, " m"]:
        """The likeliest colour."""
        return self.colors.argmax(-1)

    @property
    def attribute(self) -> Int64[Tensor, " m"]:
        """The likeliest attribute."""
        return self.attributes.argmax(-1)

    @property
    def azimuth(self) -> Int64[Tensor, " m"]:
        """The likeliest bin of the azimuth."""
        return self.azimuths.argmax(-1)

    @property
    def sector(self) -> Int64[Tensor, " m"]:
        """The likeliest of `SECTORS`; a diagonal bin counts half for either neighbour."""
        straight, diagonal = self.azimuths[:, ::2], self.azimuths[:, 1::2]
        sides = straight + (diagonal + diagonal.roll(1, -1)) / 2  # [m, 4]: front, left, back, right
        return torch.stack([sides[:, 0], sides[:, 1] + sides[:, 3], sides[:, 2]], -1).argmax(-1)


class Judge(nn.Module):
    """A residual network with a linear head each for object, colour, attribute and azimuth.

    Attributes:
        azimuth_accuracy: by object, how often the azimuth of a held-out render is read right; empty before training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.azimuth_accuracy: dict[str, float] = {}
        layers: list[nn.Module] = [nn.Conv2d(3, CHANNELS[0], 5, stride=2, padding=2)]
        for i, channels in enumerate(CHANNELS):
            if i:
                layers.append(nn.Conv2d(CHANNELS[i - 1], channels, 3, stride=2, padding=1))
            layers.append(_Residual(channels))
        self.body = nn.Sequential(*layers, nn.GroupNorm(16, CHANNELS[-1]), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(2 * CHANNELS[-1], len(names)) for name, names in NAMES.items()})
        for parameter in self.parameters():
            if parameter.ndim == 4:  # convolutions are faster with the channels innermost
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def forward(self, pictures: Float[Tensor, "m 3 s s"]) -> dict[str, Float[Tensor, "m _"]]:
        """Logits of each head for pictures in 0..1."""
        features = self.body(2 * pictures - 1)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], -1)
        return {name: head(pooled) for name, head in self.heads.items()}

    @torch.no_grad()
    def verdict(self, pictures: Float[Tensor, "m 3 s s"], batch: int = 512) -> Verdict:
        """What pictures in 0..1 show; they are moved to the judge's device and the verdict stays there."""
        device = next(self.parameters()).device
        parts = [self(part.to(device)) for part in pictures.split(batch)]
        return Verdict(**{name: torch.cat([part[name].float() for part in parts]).softmax(-1) for name in NAMES})

    @classmethod
    def load(cls, path: Path, device: torch.device | str) -> "Judge":
        """The judge that training left in the folder `path`.

        Raises:
            WeightsUnavailable: its files can't be read, or it was trained for another catalogue.
        """
        again = f"python -m training.judge --out {path}"
        try:
            about = json.loads((path / ABOUT_FILE).read_text(encoding="utf-8"))
            weights = load_file(path / WEIGHTS_FILE)
        except (OSError, ValueError, SafetensorError) as problem:
            raise WeightsUnavailable(f"the judge in {path} can't be read: {problem}", hint=again) from problem
        if other := [name for name, names in NAMES.items() if about.get(name) != names]:
            raise WeightsUnavailable(f"the judge in {path} knows other {' and '.join(other)}", hint=again)
        judge = cls()
        judge.load_state_dict({name: value.float() for name, value in weights.items()})
        judge.azimuth_accuracy = about["azimuth_accuracy"]
        return judge.eval().requires_grad_(False).to(device)

    def save(self, folder: Path, about: dict[str, object]) -> None:
        """Writes the weights in half precision, and beside them the classes and what is known `about` the judge."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.half().contiguous().cpu() for name, value in self.state_dict().items()}
        with replacing(folder / WEIGHTS_FILE) as temporary:
            save_file(weights, temporary)
        with replacing(folder / ABOUT_FILE) as temporary:
            temporary.write_text(json.dumps({**NAMES, **about}, indent=1) + "\n", encoding="utf-8")


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


def degraded(
    rgba: Float[Tensor, "b 4 s s"], behind: Float[Tensor, "b 3 s s"], generator: torch.Generator
) -> Float[Tensor, "b 3 s s"]:
    """Premultiplied renders as a half-good asset would look over the backgrounds, from not at all to badly spoilt."""
    b, _, s, _ = rgba.shape
    strength = (1.25 * _draw(generator, b, 1, 1, 1) - 0.25).clamp_min(0)
    rgba = _with_blobs(_moved(rgba, generator), strength, generator)
    rgba = rgba * (1 - 0.35 * strength * _draw(generator, b, 1, 1, 1))
    pictures = rgba[:, :3] + (1 - rgba[:, 3:]) * behind
    mottle = F.interpolate(_normal(generator, b, 3, 12, 12), size=(s, s), mode="bilinear")
    pictures = pictures + 0.1 * strength * _draw(generator, b, 1, 1, 1) * mottle * rgba[:, 3:]
    grey = pictures.mean(1, keepdim=True)
    pictures = grey + (pictures - grey) * (1 + strength * (0.5 * _draw(generator, b, 1, 1, 1) - 0.2))
    middle = pictures.mean((1, 2, 3), keepdim=True)
    pictures = middle + (pictures - middle) * (1 + strength * (0.4 * _draw(generator, b, 1, 1, 1) - 0.2))
    pictures = pictures + 0.04 * strength * _normal(generator, b, 3, 1, 1)
    pictures = torch.lerp(pictures, _blurred(pictures, generator), strength)
    pictures = pictures + 0.05 * strength * _draw(generator, b, 1, 1, 1) * _normal(generator, b, 3, s, s)
    return pictures.clamp(0, 1)


def _moved(rgba: Tensor, generator: torch.Generator) -> Tensor:
    """The renders a little shifted, scaled and rolled."""
    b = len(rgba)
    roll, scale = 0.08 * _normal(generator, b), torch.exp(0.1 * _normal(generator, b))
    shift = 0.05 * _normal(generator, b, 2)
    sine, cosine = roll.sin() * scale, roll.cos() * scale
    rows = [torch.stack([cosine, -sine, shift[:, 0]], -1), torch.stack([sine, cosine, shift[:, 1]], -1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(rgba.shape), align_corners=False)
    return F.grid_sample(rgba, grid, align_corners=False)


def _with_blobs(rgba: Tensor, strength: Tensor, generator: torch.Generator, blobs: int = 5) -> Tensor:
    """The renders with soft holes, and behind them soft floaters in anything from the object's colour to any colour."""
    b, _, s, _ = rgba.shape
    place = torch.linspace(-1, 1, s, device=rgba.device)
    for hole in (True, False):
        center = 0.8 * (2 * _draw(generator, b, blobs, 2) - 1)
        width = 0.04 + 0.12 * _draw(generator, b, blobs, 2)
        x, y = (torch.exp(-(((place - center[..., i, None]) / width[..., i, None]) ** 2)) for i in range(2))
        depth = strength[:, :, 0, 0, None, None] * _draw(generator, b, blobs, 1, 1)
        cover = 1 - (1 - depth * x[:, :, None, :] * y[:, :, :, None]).prod(1)[:, None]  # [b, 1, s, s]
        if hole:
            rgba = rgba * (1 - cover)
            continue
        mean = rgba[:, :3].sum((2, 3)) / rgba[:, 3:].sum((2, 3)).clamp_min(1)
        color = torch.lerp(mean, _draw(generator, b, 3), _draw(generator, b, 1))[..., None, None]
        rgba = rgba + (1 - rgba[:, 3:]) * cover * torch.cat([color, torch.ones_like(color[:, :1])], 1)
    return rgba


def _blurred(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Each eighth of the pictures through a lower resolution of its own."""
    s = pictures.shape[-1]
    parts = []
    for part, share in zip(pictures.chunk(8), torch.linspace(0.25, 0.8, 8).tolist(), strict=False):
        small = F.interpolate(part, size=max(4, round(share * s)), mode="bilinear", antialias=True)
        parts.append(F.interpolate(small, size=(s, s), mode="bilinear"))
    return torch.cat(parts)


def _draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, device=generator.device, generator=generator)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, device=generator.device, generator=generator)


def pictures_of(bank: Bank, picks: Tensor, generator: torch.Generator, *, spoilt: bool) -> Float[Tensor, "b 3 s s"]:
    """Some of the bank's pictures over random backgrounds, spoilt as half-good assets are or as they were drawn."""
    rgba = bank.rgba[picks].permute(0, 3, 1, 2).float() / 255
    behind = backgrounds(len(picks), rgba.shape[-1], generator)
    return degraded(rgba, behind, generator) if spoilt else rgba[:, :3] + (1 - rgba[:, 3:]) * behind


def labels_of(bank: Bank) -> dict[str, Int64[Tensor, " m"]]:
    """The right class of each head; -100, which losses pass over, for the azimuth seen from above."""
    azimuths = (bank.azimuth_deg / 45).round().long() % 8
    return {
        "objects": bank.objects,
        "colors": bank.colors,
        "attributes": bank.attributes,
        "azimuths": azimuths.where(bank.elevation_deg < OVERHEAD_DEG, -100),
    }


def fit(
    judge: Judge, bank: Bank, seed: int, *, batch: int, seconds: float, steps: int | None, rate: float
) -> Iterator[tuple[int, float, float]]:
    """Trains until the time or the steps are over, yielding step, share of the way and loss now and then."""
    device = bank.rgba.device
    generator = torch.Generator(device).manual_seed(seed)
    optimizer = torch.optim.AdamW(judge.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.02)
    labels, begin, step, share = labels_of(bank), time.perf_counter(), 0, 0.0
    while share < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 300) * (0.005 + 0.995 * (1 + math.cos(math.pi * share)) / 2)
        picks = torch.randint(len(bank), (batch,), device=device, generator=generator)
        pictures = pictures_of(bank, picks, generator, spoilt=True).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            logits = judge(pictures)
        losses = [F.cross_entropy(logits[name].float(), labels[name][picks]) for name in NAMES]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 2.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            yield step, share, loss.item()  # waits for the device, so that the clock below is right
        share = step / steps if steps else (time.perf_counter() - begin) / seconds
    yield step, 1.0, loss.item()


@torch.no_grad()
def examine(judge: Judge, bank: Bank, seed: int, *, spoilt: bool) -> dict[str, Tensor]:
    """For each head, which pictures of the bank are read right [m]; and the class read for the object, "read"."""
    generator = torch.Generator(bank.rgba.device).manual_seed(seed)
    read: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    for picks in torch.arange(len(bank), device=bank.rgba.device).split(1024):
        logits = judge(pictures_of(bank, picks, generator, spoilt=spoilt))
        for name in NAMES:
            read[name].append(logits[name].argmax(-1))
    labels, classes = labels_of(bank), {name: torch.cat(parts) for name, parts in read.items()}
    return {name: classes[name] == labels[name] for name in NAMES} | {"read": classes["objects"]}


def readable_views(bank: Bank) -> Tensor:
    """Which pictures are seen from below the overhead elevation, near the middle of a bin of the azimuth [m]."""
    away = (bank.azimuth_deg + 22.5).remainder(45) - 22.5
    return (bank.elevation_deg < OVERHEAD_DEG) & (away.abs() < NEAR_DEG)


def summary(right: dict[str, Tensor], bank: Bank) -> dict[str, float]:
    """Share of right answers of each head."""
    counted = readable_views(bank)
    shares = {name: right[name].float().mean().item() for name in ("objects", "colors", "attributes")}
    return shares | {"azimuths": right["azimuths"][counted].float().mean().item()}


def by_object(right: Tensor, bank: Bank, counted: Tensor | None = None) -> dict[str, float]:
    """Share of right answers for each object, among the counted pictures; an object without any is left out."""
    chosen = torch.ones_like(right) if counted is None else counted
    of = {name: right[chosen & (bank.objects == i)] for i, name in enumerate(NAMES["objects"])}
    return {name: round(values.float().mean().item(), 4) for name, values in of.items() if len(values)}


def report(judge: Judge, bank: Bank, seed: int) -> dict[str, object]:
    """Prints how the judge does on held-out renders; returns the figures to keep."""
    clean, spoilt = (examine(judge, bank, seed, spoilt=flag) for flag in (False, True))
    accuracy, accuracy_spoilt = summary(clean, bank), summary(spoilt, bank)
    print(f"{len(bank)} held-out renders | " + " | ".join(NAMES) + "\n| --- | --- | --- | --- | --- |")
    for title, shares in (("clean", accuracy), ("spoilt", accuracy_spoilt)):
        print(f"| {title} | " + " | ".join(f"{shares[name]:.4f}" for name in NAMES) + " |")
    azimuth = by_object(clean["azimuths"], bank, readable_views(bank))
    named = by_object(clean["objects"], bank)
    print("\n| object | azimuth right | object right | mostly taken for |\n| --- | --- | --- | --- |")
    for name, share in sorted(azimuth.items(), key=lambda item: -item[1]):
        wrong = clean["read"][(bank.objects == NAMES["objects"].index(name)) & ~clean["objects"]]
        other = NAMES["objects"][int(wrong.mode().values)] if len(wrong) else ""
        print(f"| {name} | {share:.3f} | {named[name]:.3f} | {other} |")
    return {"accuracy": accuracy, "accuracy_spoilt": accuracy_spoilt, "azimuth_accuracy": azimuth}


def main(
    out: Annotated[Path, typer.Option(help="Folder for the weights and what is known about them.")],
    minutes: Annotated[float, typer.Option(help="Wall time of drawing the bank and training.")] = 8.0,
    steps: Annotated[int | None, typer.Option(help="Train this many steps, whatever the time.")] = None,
    device: str = "cuda",
    seed: Annotated[int, typer.Option(help="The prior's banks have others.")] = 1000,
    pictures: Annotated[int, typer.Option(help="Renders to learn from.")] = 400_000,
    batch: int = 512,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    smoke: Annotated[bool, typer.Option(help="A few steps on a few tiny pictures.")] = False,
) -> None:
    """Trains the judge and examines it on held-out renders."""
    begin, place = time.perf_counter(), torch.device(device)
    held_out, size = 40_000, 128
    if smoke:
        pictures, held_out, size, batch, steps = 256, 128, 32, 16, steps or 8
    torch.manual_seed(seed)
    known = list(combinations())
    if smoke:
        known = [one for one in known if one.object in NAMES["objects"][:2]]
    drawn = [
        render_bank(count, seed + i, place, combinations=known, light=LIGHT, lens=LENS, size=size)
        for i, count in enumerate((pictures, held_out))
    ]
    print(f"{len(drawn[0])} + {len(drawn[1])} renders, {time.perf_counter() - begin:.0f} s", flush=True)
    judge = Judge().to(place)
    torch.backends.cudnn.benchmark = True
    left = max(1.0, 60 * minutes - (time.perf_counter() - begin))
    step = 0
    for step, share, loss in fit(judge, drawn[0], seed, batch=batch, seconds=left, steps=steps, rate=rate):
        if step % 1000 == 0 or share == 1:
            print(f"step {step}, {100 * share:.0f} %, loss {loss:.4f}", flush=True)
    judge.half().float()  # it is examined with the weights that the file keeps
    figures = report(judge.eval(), drawn[1], seed)
    judge.save(out, {"seed": seed, "steps": step, "batch": batch, "pictures": len(drawn[0]), "size": size, **figures})
    print(f"{sum(value.numel() for value in judge.parameters()):,} parameters, {out}")


if __name__ == "__main__":
    typer.run(main)
