"""Second stage: text encoder and U-Net on latents. `python -m training.train_denoiser AUTOENCODER OUT`."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from training.bank import Bank, render_bank
from training.models import make_tokenizer, scheduler, text_encoder, unet, vocabulary
from training.stage import Clock, adamw, fast_cuda, fit, fused, millions, schedule
from training.train_autoencoder import sheet
from training.world.catalog import (
    ATTRIBUTES,
    COARSE_VIEWS,
    COLORS,
    NATURAL,
    OBJECTS,
    OVERHEAD,
    OVERHEAD_DEG,
    VIEWS,
    Combination,
    combinations,
)

PHRASES = ("", *VIEWS, *(view for view in COARSE_VIEWS if view not in VIEWS), OVERHEAD)
SAMPLES = 64
SNR_CAP = 5.0
"""Min-SNR weighting of Hang et al. 2023."""
NO_TEXT, NO_VIEW, NO_COLOR, COARSE = 0.12, 0.12, 0.5, 0.25
"""Probabilities of a caption: empty; without a view; without a natural colour; with one of three views, not eight."""


class Captions:
    """Token ids of every caption, on the device of the training.

    Args:
        tokenizer: sets the length of the captions.
        device: keeps the ids.
    """

    def __init__(self, tokenizer: CLIPTokenizer, device: torch.device) -> None:
        colors = [*COLORS, ""]
        texts = [
            Combination(name, color, attribute).caption(view=phrase, named_color=color != "", color_first=color_first)
            for color_first in (False, True)
            for name in OBJECTS
            for color in colors
            for attribute in ATTRIBUTES
            for phrase in PHRASES
        ]
        ids = tokenizer([*texts, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
        self._empty = ids[-1].to(device)
        self._ids = ids[:-1].reshape(2, len(OBJECTS), len(colors), len(ATTRIBUTES), len(PHRASES), -1).to(device)
        natural = [[color in NATURAL.get(name, COLORS) for color in COLORS] for name in OBJECTS]
        self._natural = torch.tensor(natural, device=device)
        self._fine = torch.tensor([PHRASES.index(view) for view in VIEWS], device=device)
        self._coarse = torch.tensor([PHRASES.index(view) for view in COARSE_VIEWS], device=device)

    def draw(self, bank: Bank, picks: Int64[Tensor, " b"], generator: torch.Generator) -> Int64[Tensor, "b l"]:
        """A random caption per chosen image of the bank, with or without colour, view, or any text."""
        chance = torch.rand(5, len(picks), device=picks.device, generator=generator)
        objects, colors = bank.objects[picks], bank.colors[picks]
        azimuth, elevation = bank.azimuth_deg[picks], bank.elevation_deg[picks]
        fine = self._fine[(azimuth / 45).round().long() % len(VIEWS)]
        away = ((azimuth + 180).remainder(360) - 180).abs()
        coarse = self._coarse[(away >= 45).long() + (away >= 135)]
        phrase = torch.where(chance[0] < COARSE, coarse, fine)
        # masked_fill, not where: a number in place of a tensor would be copied to the device, which no graph can hold
        phrase = phrase.masked_fill(elevation > OVERHEAD_DEG, PHRASES.index(OVERHEAD))
        phrase = phrase.masked_fill(chance[1] < NO_VIEW, PHRASES.index(""))
        unnamed = self._natural[objects, colors] & (chance[2] < NO_COLOR * self._rarity(objects))
        order = (chance[4] < 0.5).long()
        ids = self._ids[order, objects, colors.masked_fill(unnamed, len(COLORS)), bank.attributes[picks], phrase]
        return torch.where((chance[3] < NO_TEXT)[:, None], self._empty, ids)

    def _rarity(self, objects: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Weight 1 for objects of few natural colours, less for those of any colour, so that colours are learnt too."""
        return (3 / self._natural.sum(1)[objects]).clamp(max=1)


def latents_of(
    autoencoder: AutoencoderKL, bank: Bank, backgrounds_each: int, generator: torch.Generator
) -> tuple[Float[Tensor, "m c h w"], Int64[Tensor, " m"]]:
    """Scaled latents of the bank over several random backgrounds, in half precision, and each one's image index."""
    picks = torch.arange(len(bank), device=bank.rgba.device).repeat(backgrounds_each)
    parts = []
    with torch.no_grad(), torch.autocast(bank.rgba.device.type, dtype=torch.bfloat16):
        for part in picks.split(1024):
            images = bank.over_backgrounds(part, generator) * 2 - 1
            mean = autoencoder.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.mean
            parts.append((mean.float() * autoencoder.config.scaling_factor).half())
    return torch.cat(parts), picks


class Model(nn.Module):
    """U-Net and text encoder, trained, averaged and saved together."""

    def __init__(self, denoiser: UNet2DConditionModel, text: CLIPTextModel) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.text = text


@torch.no_grad()
def samples(
    model: Model,
    autoencoder: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    prompts: list[str],
    guidance_scale: float,
    generator: torch.Generator,
    steps: int = 50,
) -> Float[Tensor, "b 3 s s"]:
    """Samples images of the prompts with DDIM, 0..1."""
    device = generator.device
    noise_schedule: DDIMScheduler = scheduler()
    noise_schedule.set_timesteps(steps)
    ids = tokenizer([*prompts, *[""] * len(prompts)], padding="max_length", truncation=True, return_tensors="pt")
    hidden = model.text(ids.input_ids.to(device))[0]
    config = model.denoiser.config
    shape = (len(prompts), config.in_channels, config.sample_size, config.sample_size)
    latents = torch.randn(shape, generator=generator, device=device)
    for t in noise_schedule.timesteps:
        cond, uncond = model.denoiser(latents.repeat(2, 1, 1, 1), t, hidden).sample.chunk(2)
        latents = noise_schedule.step(uncond + guidance_scale * (cond - uncond), t, latents).prev_sample
    return (autoencoder.decode(latents / autoencoder.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


@dataclass(slots=True)
class Data:
    """The U-Net's training data: latents of the bank's images, the image of each, and their captions."""

    latents: Float[Tensor, "m c h w"]
    shown: Int64[Tensor, " m"]
    bank: Bank
    captions: Captions

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Float[Tensor, "b c h w"], Int64[Tensor, "b l"]]:
        """Random latents, each with a random caption."""
        picks = torch.randint(len(self.latents), (batch,), device=self.latents.device, generator=generator)
        return self.latents[picks].float(), self.captions.draw(self.bank, self.shown[picks], generator)


def objective(model: Model, data: Data, batch: int, generator: torch.Generator) -> Callable[[], tuple[Tensor, Tensor]]:
    """The loss, which is the squared error of the predicted noise under min-SNR weights, and the unweighted error."""
    place = data.latents.device
    alphas_cumprod = scheduler().alphas_cumprod.to(place)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    snr_weights = snr.clamp(max=SNR_CAP) / snr
    predict = fused(lambda noisy, t, ids: model.denoiser(noisy, t, model.text(ids)[0]).sample, place)

    def draw() -> tuple[Tensor, Tensor]:
        clean, ids = data.draw(batch, generator)
        t = torch.randint(len(alphas_cumprod), (batch,), device=place, generator=generator)
        noise = torch.randn(clean.shape, device=place, generator=generator)
        alpha = alphas_cumprod[t, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with torch.autocast(place.type, dtype=torch.bfloat16):
            predicted = predict(noisy, t, ids)
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        return (error * snr_weights[t]).mean(), error.mean()

    return draw


def load(folder: Path, model: Model) -> None:
    """Loads the weights of an earlier run."""
    denoiser = UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    model.denoiser.load_state_dict(denoiser.state_dict())
    model.text.load_state_dict(CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict())


def save(folder: Path, model: Model) -> None:
    """Writes the model in half precision, in files of at most 15 MB."""
    model.denoiser.half().save_pretrained(folder / "unet", max_shard_size="14MB")
    model.text.half().save_pretrained(folder / "text_encoder")


def main(
    autoencoder_folder: Annotated[Path, typer.Argument(help="Folder that the first stage wrote.")],
    output: Annotated[Path, typer.Argument(help="Folder for the weights and a sheet of samples.")],
    start: Annotated[Path | None, typer.Option(help="Continue from the weights of an earlier run.")] = None,
    steps: int = 40_000,
    batch: int = 512,
    renders: Annotated[int, typer.Option(help="Images in the bank.")] = 200_000,
    backgrounds_each: Annotated[int, typer.Option(help="Backgrounds behind each image.")] = 4,
    minutes: Annotated[float, typer.Option(help="Time within which to be done.")] = 9.0,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1.2e-3,
    seed: int = 2,
    device: str = "cuda",
) -> None:
    """Trains the text encoder and the U-Net on the combinations that are not held out."""
    clock, place = Clock(), torch.device(device)
    fast_cuda()
    torch.manual_seed(seed)
    generator = torch.Generator(place).manual_seed(seed)
    autoencoder = AutoencoderKL.from_pretrained(autoencoder_folder, low_cpu_mem_usage=False).float().eval().to(place)
    tokenizer = make_tokenizer(output / "tokenizer", vocabulary())
    model = Model(unet(autoencoder.config.latent_channels), text_encoder(tokenizer))
    if start is not None:
        load(start, model)
    model = model.float().to(place).to(memory_format=torch.channels_last)
    clock.log(f"U-Net {millions(model.denoiser):.2f} M, text {millions(model.text):.2f} M, {len(tokenizer)} tokens")
    bank = render_bank(renders, seed, place, combinations=[one for one in combinations() if not one.held_out])
    clock.log(f"{len(bank)} renders")
    latents, shown = latents_of(autoencoder, bank, backgrounds_each, generator)
    bank.rgba = bank.rgba[:0].clone()
    clock.log(f"{len(latents)} latents, standard deviation {latents[:20_000].float().std().item():.3f}")
    optimizer = adamw(model.parameters(), rate, weight_decay=1e-2, device=place)
    counted = schedule(optimizer, steps, clock, minutes * 60 - 25, warmup=min(300, steps), floor=0.01)
    data = Data(latents, shown, bank, Captions(tokenizer, place))
    average = copy.deepcopy(model).requires_grad_(False)
    learn = objective(model, data, batch, generator)
    clock.log(fit(model, learn, optimizer, counted, generator, clock, shows="squared error", average=average))
    average = average.to(memory_format=torch.contiguous_format)
    held_out = [one for one in combinations() if one.held_out]
    prompts = [one.caption(view=VIEWS[i % len(VIEWS)]) for i, one in enumerate(held_out[:: len(held_out) // SAMPLES])]
    sheet(samples(average, autoencoder, tokenizer, prompts[:SAMPLES], 5.0, generator)).save(output / "samples.png")
    (output / "samples.txt").write_text("\n".join(prompts[:SAMPLES]) + "\n")
    save(output, average)
    clock.log("saved")


if __name__ == "__main__":
    typer.run(main)
