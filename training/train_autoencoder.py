"""First stage: the autoencoder. `python -m training.train_autoencoder OUT`."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from training.bank import SIZE, Bank, render_bank
from training.models import AUTOENCODER_CHANNELS, LATENT_CHANNELS, autoencoder
from training.stage import Clock, adamw, fast_cuda, fit, fused, millions, schedule
from training.world.catalog import combinations

KL_WEIGHT = 2e-4
GRADIENT_WEIGHT = 0.5
COLOR_WEIGHT = 2.0
HUE_WEIGHT = 0.3
CHROMA = 0.25
"""Chroma above which a pixel counts as coloured."""


def degrade(images: Float[Tensor, "b 3 s s"], generator: torch.Generator) -> Float[Tensor, "b 3 s s"]:
    """Blurs an eighth of the images and cross-fades an eighth with others, so unfinished assets encode well too."""
    part = len(images) // 8
    if not part:
        return images
    blurred, faded, rest = images[:part], images[part : 2 * part], images[2 * part :]
    strengths = zip((2, 4, 8), blurred.tensor_split(3), strict=True)
    blurs = [
        F.interpolate(F.avg_pool2d(some, n), scale_factor=n, mode="bilinear") for n, some in strengths if len(some)
    ]
    share = torch.rand(part, 1, 1, 1, generator=generator, device=generator.device)
    faded = faded * share + rest[:part] * (1 - share)
    return torch.cat([*blurs, faded, rest])


def loss(
    network: AutoencoderKL,
    images: Float[Tensor, "b 3 s s"],
    *,
    noisy: bool = True,
    gradient_weight: float = GRADIENT_WEIGHT,
) -> Tensor:
    """Absolute errors of images, gradients, colours over 8 px and hues, and a little of the latents' divergence.

    Colours and hues have their own terms: a wrong hue costs a pixel little, so they would be learnt last.
    """
    with torch.autocast(images.device.type, dtype=torch.bfloat16):
        posterior = network.encode(images).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        latents = mean + (logvar / 2).exp() * torch.randn_like(mean) if noisy else mean
        decoded = network.decode(latents).sample
    error = decoded.float() - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
    colors = F.avg_pool2d(error, 8).abs().mean()
    turned = hue_sine(decoded.float() / 2 + 0.5, images / 2 + 0.5).abs().mean()
    total: Tensor = error.abs().mean() + gradient_weight * edges + COLOR_WEIGHT * colors
    return total + HUE_WEIGHT * turned + KL_WEIGHT * divergence


def hue_sine(copies: Float[Tensor, "b 3 s s"], images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b s s"]:
    """Sine of the angle between the hues of two images in 0..1, 0 where the second is hardly coloured.

    A copy's chroma below the limit counts as the limit, so that grey pixels have no steep gradient.
    """
    (u, v), (x, y) = (_chroma_plane(each) for each in (copies, images))
    own, other = (u.square() + v.square()).clamp_min(4 * CHROMA**2), (x.square() + y.square()).clamp_min(1e-6)
    sine: Tensor = (u * y - v * x) / (own * other).sqrt()
    return sine * (images.amax(1) - images.amin(1) > CHROMA)


def _chroma_plane(images: Float[Tensor, "b 3 s s"]) -> tuple[Float[Tensor, "b s s"], Float[Tensor, "b s s"]]:
    """Coordinates whose angle is the hue and whose length is about twice the chroma."""
    r, g, b = images.unbind(1)
    return 2 * r - g - b, 3**0.5 * (g - b)


def hues(images: Float[Tensor, "b 3 s s"]) -> tuple[Float[Tensor, "b s s"], Float[Tensor, "b s s"]]:
    """Hue in degrees, as an angle in the chroma plane, and chroma of every pixel."""
    across, up = _chroma_plane(images)
    hue = torch.atan2(up, across).rad2deg()
    return hue, images.amax(1) - images.amin(1)


@torch.no_grad()
def deviation(network: AutoencoderKL, bank: Bank, generator: torch.Generator) -> float:
    """Standard deviation of the latents of a sample of the images."""
    picks = torch.randperm(len(bank), device=bank.rgba.device)[:4096]
    samples = bank.over_backgrounds(picks, generator) * 2 - 1
    return torch.cat([network.encode(part).latent_dist.mean for part in samples.split(256)]).std().item()


@torch.no_grad()
def quality(network: AutoencoderKL, bank: Bank, generator: torch.Generator) -> tuple[float, float, Tensor]:
    """Mean PSNR in dB, mean hue error in degrees on clearly coloured pixels, and images beside their copies."""
    ratios, errors, kept = [], [], []
    for picks in torch.arange(len(bank), device=bank.rgba.device).split(256):
        images = bank.over_backgrounds(picks, generator)
        copies = (network.decode(network.encode(images * 2 - 1).latent_dist.mean).sample / 2 + 0.5).clamp(0, 1)
        ratios.append(-10 * (copies - images).square().mean((1, 2, 3)).log10())
        hue, chroma = hues(images)
        away = (hues(copies)[0] - hue + 180).remainder(360) - 180
        errors.append(away.abs()[(chroma > CHROMA) & (bank.rgba[picks][..., 3] == 255)])
        kept.append(torch.stack([images, copies], 1)[:8].flatten(0, 1))
    return torch.cat(ratios).mean().item(), torch.cat(errors).mean().item(), torch.cat(kept)


def sheet(images: Float[Tensor, "b 3 s s"], columns: int = 16) -> Image.Image:
    """Arranges images in rows."""
    images = images[: len(images) // columns * columns] if len(images) > columns else images
    columns = min(columns, len(images))
    tiles = (images.clamp(0, 1) * 255).byte().cpu().unflatten(0, (-1, columns))
    return Image.fromarray(np.ascontiguousarray(tiles.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).numpy()))


def main(
    output: Annotated[Path, typer.Argument(help="Folder for the weights and a sheet of copies.")],
    start: Annotated[Path | None, typer.Option(help="Continue from the weights of an earlier run.")] = None,
    decoder_only: Annotated[bool, typer.Option(help="Keep the latents unchanged, for a trained U-Net.")] = False,
    steps: int = 30_000,
    batch: int = 64,
    renders: Annotated[int, typer.Option(help="Images in the bank.")] = 120_000,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = SIZE,
    large_renders: Annotated[int, typer.Option(help="Images of twice the side, half a batch of them per step.")] = 0,
    gradient_weight: Annotated[float, typer.Option(help="Weight of the error of gradients.")] = GRADIENT_WEIGHT,
    minutes: Annotated[float, typer.Option(help="Time within which to be done.")] = 9.0,
    channels: Annotated[str, typer.Option(help="Channels of each level.")] = ",".join(map(str, AUTOENCODER_CHANNELS)),
    latent_channels: int = LATENT_CHANNELS,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    seed: int = 1,
    device: str = "cuda",
) -> None:
    """Trains the autoencoder on renders of the combinations that are not held out."""
    clock, place = Clock(), torch.device(device)
    fast_cuda()
    torch.manual_seed(seed)
    generator = torch.Generator(place).manual_seed(seed)
    seen = [one for one in combinations() if not one.held_out]
    banks = [render_bank(renders, seed, place, combinations=seen, size=size)]
    if large_renders:
        banks.append(render_bank(large_renders, seed + 1, place, combinations=seen, size=2 * size))
    clock.log(f"{' + '.join(str(len(bank)) for bank in banks)} renders")
    network = autoencoder(tuple(int(channel) for channel in channels.split(",")), latent_channels)
    if start is not None:
        network = AutoencoderKL.from_pretrained(start, low_cpu_mem_usage=False).float().train()
    network.encoder.requires_grad_(not decoder_only)
    network.quant_conv.requires_grad_(not decoder_only)
    network = network.to(place, memory_format=torch.channels_last)
    clock.log(f"{millions(network):.2f} M parameters")
    optimizer = adamw([{"params": list(network.parameters()), "lr": rate}], weight_decay=1e-4, device=place)
    counted = schedule(optimizer, steps, clock, minutes * 60 - 25, warmup=min(200, steps))
    measured = fused(loss, place)

    def objective() -> tuple[Tensor, Tensor]:
        values = []
        for count, bank in zip((batch, batch // 2), banks, strict=False):
            picks = torch.randint(len(bank), (count,), generator=generator, device=place)
            images = bank.over_backgrounds(picks, generator)
            if not decoder_only:  # a decoder alone decodes repainted views, which are sharp
                images = degrade(images, generator)
            images = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
            values.append(measured(network, images, noisy=not decoder_only, gradient_weight=gradient_weight))
        value = torch.stack(values).mean()
        return value, value

    fit(network, objective, optimizer, counted, generator, clock, shows="loss")
    network.eval()
    if not decoder_only:
        network.register_to_config(scaling_factor=1 / deviation(network, banks[0], generator))
    network.to(memory_format=torch.contiguous_format).half().save_pretrained(output)
    unseen = [one for one in combinations() if one.held_out]
    for side in (size, 2 * size)[: len(banks)]:
        held = render_bank(min(4096, renders), seed + 10_000, place, combinations=unseen, size=side)
        ratio, hue, copies = quality(network.float(), held, generator)
        clock.log(f"held-out renders of {side} px: PSNR {ratio:.2f} dB, hue error {hue:.2f} degrees")
        sheet(copies).save(output / f"copies-{side}.png")


if __name__ == "__main__":
    typer.run(main)
