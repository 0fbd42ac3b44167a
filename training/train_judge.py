"""Third network: the judge. `python -m training.train_judge --minutes 8 --out DIR`.

It scores assets, so it learns from other seeds, other light and a wider lens than the prior, and from renders degraded
as unfinished assets are: moved, hazy, holed, mottled, blurred, with floaters.

Shapes: m or b images, s pixels square.
"""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from jaxtyping import Float, Int64
from safetensors.torch import save_file
from torch import Tensor, nn

from segdream_cli.evaluate.judge import CLASSES_FILE, HEADS, WEIGHTS_FILE, Judge
from segdream_cli.util.files import atomic_write
from segdream_cli.util.hashes import write_sums
from training.bank import Bank, render_bank
from training.world.camera import Lens, Light, backgrounds
from training.world.catalog import ATTRIBUTES, COLORS, OBJECTS, OVERHEAD_DEG, VIEWS, combinations

CLASSES = {"objects": list(OBJECTS), "colors": list(COLORS), "attributes": list(ATTRIBUTES), "azimuths": list(VIEWS)}
LIGHT = Light(ambient=(0.6, 0.9), sky=(0.05, 0.15), sun=(0.1, 0.35))
LENS = Lens(elevation_deg=(-20.0, 70.0), fov_rad=(0.5, 0.95), fill=(0.7, 1.0))
NEAR_DEG = 15.0
"""Degrees from the middle of its bin within which an azimuth counts: at an edge both answers are right."""


def save(judge: Judge, folder: Path, about: dict[str, object]) -> None:
    """Writes the weights in half precision, the classes and the facts `about` the judge, and a list of hashes anew."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous().cpu() for name, value in judge.state_dict().items()}
    with atomic_write(folder / WEIGHTS_FILE) as temporary:
        save_file(weights, temporary)
    with atomic_write(folder / CLASSES_FILE) as temporary:
        temporary.write_text(json.dumps({**judge.classes, **about}, indent=1) + "\n", encoding="utf-8")
    if folder.with_name(f"{folder.name}.sha256").exists():
        write_sums(folder)


def degrade(
    rgba: Float[Tensor, "b 4 s s"], behind: Float[Tensor, "b 3 s s"], generator: torch.Generator
) -> Float[Tensor, "b 3 s s"]:
    """Composites premultiplied renders over backgrounds, degraded like unfinished assets to a random degree."""
    b, _, s, _ = rgba.shape
    strength = (1.25 * _draw(generator, b, 1, 1, 1) - 0.25).clamp_min(0)
    rgba = _add_blobs(_jitter(rgba, generator), strength, generator)
    rgba = rgba * (1 - 0.35 * strength * _draw(generator, b, 1, 1, 1))
    images = rgba[:, :3] + (1 - rgba[:, 3:]) * behind
    mottle = F.interpolate(_normal(generator, b, 3, 12, 12), size=(s, s), mode="bilinear")
    images = images + 0.1 * strength * _draw(generator, b, 1, 1, 1) * mottle * rgba[:, 3:]
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (1 + strength * (0.5 * _draw(generator, b, 1, 1, 1) - 0.2))
    middle = images.mean((1, 2, 3), keepdim=True)
    images = middle + (images - middle) * (1 + strength * (0.4 * _draw(generator, b, 1, 1, 1) - 0.2))
    images = images + 0.04 * strength * _normal(generator, b, 3, 1, 1)
    images = torch.lerp(images, _blur(images, generator), strength)
    images = images + 0.05 * strength * _draw(generator, b, 1, 1, 1) * _normal(generator, b, 3, s, s)
    return images.clamp(0, 1)


def _jitter(rgba: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts, scales and rolls the renders a little."""
    b = len(rgba)
    roll, scale = 0.08 * _normal(generator, b), torch.exp(0.1 * _normal(generator, b))
    shift = 0.05 * _normal(generator, b, 2)
    sine, cosine = roll.sin() * scale, roll.cos() * scale
    rows = [torch.stack([cosine, -sine, shift[:, 0]], -1), torch.stack([sine, cosine, shift[:, 1]], -1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(rgba.shape), align_corners=False)
    return F.grid_sample(rgba, grid, align_corners=False)


def _add_blobs(rgba: Tensor, strength: Tensor, generator: torch.Generator, blobs: int = 5) -> Tensor:
    """Cuts soft holes into the renders; adds soft floaters behind, between the object's colour and a random one."""
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


def _blur(images: Tensor, generator: torch.Generator) -> Tensor:
    """Resamples each eighth of the images through a lower resolution of its own."""
    s = images.shape[-1]
    parts = []
    for part, share in zip(images.chunk(8), torch.linspace(0.25, 0.8, 8).tolist(), strict=False):
        small = F.interpolate(part, size=max(4, round(share * s)), mode="bilinear", antialias=True)
        parts.append(F.interpolate(small, size=(s, s), mode="bilinear"))
    return torch.cat(parts)


def _draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, device=generator.device, generator=generator)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, device=generator.device, generator=generator)


def draw_images(bank: Bank, picks: Tensor, generator: torch.Generator, *, degraded: bool) -> Float[Tensor, "b 3 s s"]:
    """Chosen images of the bank over random backgrounds, degraded like unfinished assets or as rendered."""
    rgba = bank.rgba[picks].permute(0, 3, 1, 2).float() / 255
    behind = backgrounds(len(picks), rgba.shape[-1], generator)
    return degrade(rgba, behind, generator) if degraded else rgba[:, :3] + (1 - rgba[:, 3:]) * behind


def class_labels(bank: Bank) -> dict[str, Int64[Tensor, " m"]]:
    """The right class of each head; -100, which losses ignore, for the azimuth seen from above."""
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
    """Trains until the time or the steps end; yields the step, the share done and the loss at intervals."""
    device = bank.rgba.device
    generator = torch.Generator(device).manual_seed(seed)
    optimizer = torch.optim.AdamW(judge.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.02)
    labels, begin, step, share = class_labels(bank), time.perf_counter(), 0, 0.0
    while share < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 300) * (0.005 + 0.995 * (1 + math.cos(math.pi * share)) / 2)
        picks = torch.randint(len(bank), (batch,), device=device, generator=generator)
        images = draw_images(bank, picks, generator, degraded=True).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            logits = judge(images)
        losses = [F.cross_entropy(logits[name].float(), labels[name][picks]) for name in HEADS]
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
def examine(judge: Judge, bank: Bank, seed: int, *, degraded: bool) -> dict[str, Tensor]:
    """For each head, which images of the bank the judge reads right [m]; and its class for the object, "read"."""
    generator = torch.Generator(bank.rgba.device).manual_seed(seed)
    read: dict[str, list[Tensor]] = {name: [] for name in HEADS}
    for picks in torch.arange(len(bank), device=bank.rgba.device).split(1024):
        logits = judge(draw_images(bank, picks, generator, degraded=degraded))
        for name in HEADS:
            read[name].append(logits[name].argmax(-1))
    labels, classes = class_labels(bank), {name: torch.cat(parts) for name, parts in read.items()}
    return {name: classes[name] == labels[name] for name in HEADS} | {"read": classes["objects"]}


def readable(bank: Bank) -> Tensor:
    """Which images are seen from below the overhead elevation, near the middle of a bin of the azimuth [m]."""
    away = (bank.azimuth_deg + 22.5).remainder(45) - 22.5
    return (bank.elevation_deg < OVERHEAD_DEG) & (away.abs() < NEAR_DEG)


def summary(right: dict[str, Tensor], bank: Bank) -> dict[str, float]:
    """Share of right answers of each head."""
    counted = readable(bank)
    shares = {name: right[name].float().mean().item() for name in ("objects", "colors", "attributes")}
    return shares | {"azimuths": right["azimuths"][counted].float().mean().item()}


def accuracy_by_object(right: Tensor, bank: Bank, counted: Tensor | None = None) -> dict[str, float]:
    """Share of right answers per object, among the counted images; objects without images are left out."""
    chosen = torch.ones_like(right) if counted is None else counted
    of = {name: right[chosen & (bank.objects == i)] for i, name in enumerate(CLASSES["objects"])}
    return {name: round(values.float().mean().item(), 4) for name, values in of.items() if len(values)}


def report(judge: Judge, bank: Bank, seed: int) -> dict[str, object]:
    """Prints the judge's accuracy on held-out renders; returns the figures to keep."""
    clean, degraded = (examine(judge, bank, seed, degraded=flag) for flag in (False, True))
    accuracy, accuracy_degraded = summary(clean, bank), summary(degraded, bank)
    print(f"{len(bank)} held-out renders | " + " | ".join(HEADS) + "\n| --- | --- | --- | --- | --- |")
    for title, shares in (("clean", accuracy), ("degraded", accuracy_degraded)):
        print(f"| {title} | " + " | ".join(f"{shares[name]:.4f}" for name in HEADS) + " |")
    azimuth = accuracy_by_object(clean["azimuths"], bank, readable(bank))
    named = accuracy_by_object(clean["objects"], bank)
    print("\n| object | azimuth right | object right | mostly taken for |\n| --- | --- | --- | --- |")
    for name, share in sorted(azimuth.items(), key=lambda item: -item[1]):
        wrong = clean["read"][(bank.objects == CLASSES["objects"].index(name)) & ~clean["objects"]]
        other = CLASSES["objects"][int(wrong.mode().values)] if len(wrong) else ""
        print(f"| {name} | {share:.3f} | {named[name]:.3f} | {other} |")
    return {"accuracy": accuracy, "accuracy_spoilt": accuracy_degraded, "azimuth_accuracy": azimuth}


def main(
    out: Annotated[Path, typer.Option(help="Folder for the weights and the facts about them.")],
    minutes: Annotated[float, typer.Option(help="Wall time of drawing the bank and training.")] = 8.0,
    steps: Annotated[int | None, typer.Option(help="Train this many steps, whatever the time.")] = None,
    device: str = "cuda",
    seed: Annotated[int, typer.Option(help="The prior's banks have others.")] = 1000,
    pictures: Annotated[int, typer.Option(help="Renders to learn from.")] = 400_000,
    batch: int = 512,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    smoke: Annotated[bool, typer.Option(help="A few steps on a few tiny images.")] = False,
) -> None:
    """Trains the judge and examines it on held-out renders."""
    begin, place = time.perf_counter(), torch.device(device)
    held_out, size = 40_000, 128
    if smoke:
        pictures, held_out, size, batch, steps = 256, 128, 32, 16, steps or 8
    torch.manual_seed(seed)
    known = list(combinations())
    if smoke:
        known = [one for one in known if one.object in CLASSES["objects"][:2]]
    drawn = [
        render_bank(count, seed + i, place, combinations=known, light=LIGHT, lens=LENS, size=size)
        for i, count in enumerate((pictures, held_out))
    ]
    print(f"{len(drawn[0])} + {len(drawn[1])} renders, {time.perf_counter() - begin:.0f} s", flush=True)
    judge = Judge(CLASSES).to(place)
    torch.backends.cudnn.benchmark = True
    left = max(1.0, 60 * minutes - (time.perf_counter() - begin))
    step = 0
    for step, share, loss in fit(judge, drawn[0], seed, batch=batch, seconds=left, steps=steps, rate=rate):
        if step % 1000 == 0 or share == 1:
            print(f"step {step}, {100 * share:.0f} %, loss {loss:.4f}", flush=True)
    judge.half().float()  # it is examined with the weights that the file keeps
    figures = report(judge.eval(), drawn[1], seed)
    save(judge, out, {"seed": seed, "steps": step, "batch": batch, "pictures": len(drawn[0]), "size": size, **figures})
    print(f"{sum(value.numel() for value in judge.parameters()):,} parameters, {out}")


if __name__ == "__main__":
    typer.run(main)
