"""Second stage: text encoder and U-Net on latents. `python -m training.train_denoiser AUTOENCODER OUT`.

One U-Net learns images of two sizes: of 128 px at every noise level, and of 256 px above all at the low levels from
which assets are refined.
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from training.bank import SIZE, Bank, render_bank
from training.models import make_tokenizer, scheduler, text_encoder, unet, vocabulary
from training.stage import Clock, adamw, fast_cuda, fit, fused, join, millions, schedule
from training.train_autoencoder import sheet
from training.world.catalog import (
    ATTRIBUTES,
    COARSE_VIEWS,
    COLORS,
    OBJECTS,
    OVERHEAD,
    OVERHEAD_DEG,
    VIEWS,
    Combination,
    combinations,
    natural_colors,
)

PHRASES = ("", *VIEWS, *(view for view in COARSE_VIEWS if view not in VIEWS), OVERHEAD)
SAMPLES, SAMPLE_STEPS = 64, 50
"""Images of the sheet, and DDIM steps of each."""
SNR_CAP = 5.0
"""Min-SNR weighting of Hang et al. 2023."""
LARGE_T, LARGE_SHARE = 600, 0.85
"""Share of the 256 px images whose timestep lies below a limit: refinement starts from there."""
REPAINT_T = 400
"""Timestep from which the sheet's 256 px images are repainted."""
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
        # Both orders give one text for most attributes, so half of the texts are the same.
        index = {text: i for i, text in enumerate(dict.fromkeys(["", *texts]))}
        ids = tokenizer([*index], padding="max_length", truncation=True, return_tensors="pt").input_ids
        self._empty = ids[0].to(device)
        ids = ids[[index[text] for text in texts]]
        self._ids = ids.reshape(2, len(OBJECTS), len(colors), len(ATTRIBUTES), len(PHRASES), -1).to(device)
        natural = [[natural_colors(name, attribute) for attribute in ATTRIBUTES] for name in OBJECTS]
        self._natural = torch.tensor([[[c in own for c in COLORS] for own in row] for row in natural], device=device)
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
        natural = self._natural[objects, bank.attributes[picks]]
        # Weight 1 for few natural colours, less where any is natural, so that the words for colours are learnt too.
        rarity = (3 / natural.sum(1)).clamp(max=1)
        unnamed = natural.gather(1, colors[:, None])[:, 0] & (chance[2] < NO_COLOR * rarity)
        order = (chance[4] < 0.5).long()
        ids = self._ids[order, objects, colors.masked_fill(unnamed, len(COLORS)), bank.attributes[picks], phrase]
        return torch.where((chance[3] < NO_TEXT)[:, None], self._empty, ids)


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
    *,
    start: Float[Tensor, "b 3 s s"] | None = None,
) -> Float[Tensor, "b 3 s s"]:
    """Samples images of the prompts with DDIM, 0..1: from noise, or from images that are noised to `REPAINT_T`."""
    device, scale = generator.device, autoencoder.config.scaling_factor
    noise_schedule: DDIMScheduler = scheduler()
    noise_schedule.set_timesteps(SAMPLE_STEPS)
    ids = tokenizer([*prompts, *[""] * len(prompts)], padding="max_length", truncation=True, return_tensors="pt")
    hidden = model.text(ids.input_ids.to(device))[0]
    times = noise_schedule.timesteps
    if start is None:
        side = model.denoiser.config.sample_size
        clean = torch.zeros(len(prompts), autoencoder.config.latent_channels, side, side, device=device)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        latents = noise
    else:
        clean = autoencoder.encode(start * 2 - 1).latent_dist.mean * scale
        noise = torch.randn(clean.shape, generator=generator, device=device)
        times = times[times <= REPAINT_T]
        latents = noise_schedule.add_noise(clean, noise, times[:1])
    for t in times:
        cond, uncond = model.denoiser(latents.repeat(2, 1, 1, 1), t, hidden).sample.chunk(2)
        latents = noise_schedule.step(uncond + guidance_scale * (cond - uncond), t, latents).prev_sample
    return (autoencoder.decode(latents / scale).sample / 2 + 0.5).clamp(0, 1)


@dataclass(slots=True)
class Data:
    """Training data of one size: latents of the bank's images, the image of each, captions, and rows per step."""

    latents: Float[Tensor, "m c h w"]
    shown: Int64[Tensor, " m"]
    bank: Bank
    captions: Captions
    batch: int
    low_share: float
    """Share of the rows whose timestep is drawn below `LARGE_T`."""

    def draw(self, generator: torch.Generator) -> tuple[Float[Tensor, "b c h w"], Int64[Tensor, "b l"]]:
        """Random latents, each with a random caption."""
        picks = torch.randint(len(self.latents), (self.batch,), device=self.latents.device, generator=generator)
        return self.latents[picks].float(), self.captions.draw(self.bank, self.shown[picks], generator)

    def draw_timesteps(self, generator: torch.Generator) -> Int64[Tensor, " b"]:
        """Random timesteps, 0..999."""
        limit = scheduler().config.num_train_timesteps
        anywhere, low = (
            torch.randint(end, (self.batch,), device=generator.device, generator=generator) for end in (limit, LARGE_T)
        )
        chosen = torch.rand(self.batch, device=generator.device, generator=generator) < self.low_share
        return torch.where(chosen, low, anywhere)


def render_data(
    autoencoder: AutoencoderKL,
    captions: Captions,
    generator: torch.Generator,
    *,
    renders: int,
    size: int,
    seed: int,
    backgrounds_each: int,
    batch: int,
) -> Data:
    """Renders the combinations that are not held out, and encodes them."""
    seen = [one for one in combinations() if not one.held_out]
    bank = render_bank(renders, seed, generator.device, combinations=seen, size=size)
    latents, shown = latents_of(autoencoder, bank, backgrounds_each, generator)
    bank.rgba = bank.rgba[:0].clone()
    return Data(latents, shown, bank, captions, batch, LARGE_SHARE if size > SIZE else 0.0)


def objective(model: Model, data: Sequence[Data], generator: torch.Generator) -> Callable[[], tuple[Tensor, Tensor]]:
    """The loss, which is the squared error of the predicted noise under min-SNR weights, and the unweighted error.

    Both are means over the rows of all sizes.
    """
    place = generator.device
    alphas_cumprod = scheduler().alphas_cumprod.to(place)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    snr_weights = snr.clamp(max=SNR_CAP) / snr
    predict = fused(lambda noisy, t, ids: model.denoiser(noisy, t, model.text(ids)[0]).sample, place)

    def errors(part: Data) -> tuple[Tensor, Tensor]:
        clean, ids = part.draw(generator)
        t = part.draw_timesteps(generator)
        noise = torch.randn(clean.shape, device=place, generator=generator)
        alpha = alphas_cumprod[t, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with torch.autocast(place.type, dtype=torch.bfloat16):
            predicted = predict(noisy, t, ids)
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        return error * snr_weights[t], error

    def draw() -> tuple[Tensor, Tensor]:
        weighted, plain = zip(*map(errors, data), strict=True)
        return torch.cat(weighted).mean(), torch.cat(plain).mean()

    return draw


def load(folder: Path, model: Model) -> None:
    """Loads the weights of an earlier run."""
    denoiser = UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    model.denoiser.load_state_dict(denoiser.state_dict())
    model.text.load_state_dict(CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict())


def save(folder: Path, model: Model) -> None:
    """Writes the model in half precision, in files of at most 15 MB."""
    model.denoiser.half().save_pretrained(folder / "unet", max_shard_size="14MB")
    save_text(folder, model)


def save_text(folder: Path, model: Model) -> None:
    """Writes the text encoder in half precision."""
    copy.deepcopy(model.text).half().save_pretrained(folder / "text_encoder")


@torch.no_grad()
def draw_sheet(
    output: Path, model: Model, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, generator: torch.Generator
) -> None:
    """Writes samples of held-out prompts at 128 px, the same repainted at 256 px, and the prompts."""
    held_out = [one for one in combinations() if one.held_out]
    prompts = [one.caption(view=VIEWS[i % len(VIEWS)]) for i, one in enumerate(held_out[:: len(held_out) // SAMPLES])]
    prompts = prompts[:SAMPLES]
    drawn = samples(model, autoencoder, tokenizer, prompts, 3.0, generator)
    sheet(drawn).save(output / "samples.png")
    enlarged = nn.functional.interpolate(drawn, scale_factor=2, mode="bilinear")
    parts = zip(enlarged.split(16), [prompts[i : i + 16] for i in range(0, len(prompts), 16)], strict=True)
    repainted = [samples(model, autoencoder, tokenizer, some, 3.0, generator, start=part) for part, some in parts]
    sheet(torch.cat(repainted), columns=8).save(output / "repainted.png")
    (output / "samples.txt").write_text("\n".join(prompts) + "\n")


def main(
    autoencoder_folder: Annotated[Path, typer.Argument(help="Folder that the first stage wrote.")],
    output: Annotated[Path, typer.Argument(help="Folder for the weights and a sheet of samples.")],
    start: Annotated[Path | None, typer.Option(help="Continue from the weights of an earlier run.")] = None,
    steps: int = 60_000,
    batch: Annotated[int, typer.Option(help="Rows of 128 px images per step and process.")] = 384,
    large_batch: Annotated[int, typer.Option(help="Rows of 256 px images.")] = 128,
    renders: Annotated[int, typer.Option(help="128 px images in the bank of each process.")] = 100_000,
    large_renders: Annotated[int, typer.Option(help="256 px images.")] = 40_000,
    backgrounds_each: Annotated[int, typer.Option(help="Backgrounds behind each image.")] = 4,
    minutes: Annotated[float, typer.Option(help="Time within which to be done.")] = 9.0,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1.2e-3,
    text_until: Annotated[
        float, typer.Option(help="Share of the training after which the text encoder is fixed, for the Point-E.")
    ] = 0.45,
    seed: int = 2,
    device: str = "cuda",
) -> None:
    """Trains the text encoder and the U-Net on the combinations that are not held out."""
    clock = Clock()
    place, rank = join(device)
    fast_cuda()
    torch.manual_seed(seed)
    autoencoder = AutoencoderKL.from_pretrained(autoencoder_folder, low_cpu_mem_usage=False).float().eval().to(place)
    tokens = output / "tokenizer" if rank == 0 else Path(tempfile.mkdtemp())
    tokenizer = make_tokenizer(tokens, vocabulary())
    model = Model(unet(autoencoder.config.latent_channels), text_encoder(tokenizer))
    if start is not None:
        load(start, model)
    model = model.float().to(place).to(memory_format=torch.channels_last)
    clock.log(f"U-Net {millions(model.denoiser):.2f} M, text {millions(model.text):.2f} M, {len(tokenizer)} tokens")
    own_seed = seed + 100 * rank
    generator = torch.Generator(place).manual_seed(own_seed)
    captions = Captions(tokenizer, place)
    data = []
    for size, count, rows in ((SIZE, renders, batch), (2 * SIZE, large_renders, large_batch)):
        data.append(
            render_data(
                autoencoder,
                captions,
                generator,
                renders=count,
                size=size,
                seed=own_seed + size,
                backgrounds_each=backgrounds_each,
                batch=rows,
            )
        )
        latents = data[-1].latents
        deviation = latents[:20_000].float().std().item()
        clock.log(f"{len(latents)} latents of {size} px images, standard deviation {deviation:.3f}")
    groups: list[dict[str, object]] = [
        {"params": list(model.denoiser.parameters()), "lr": rate},
        {"params": list(model.text.parameters()), "lr": rate, "until": text_until},
    ]
    optimizer = adamw(groups, weight_decay=1e-2, device=place)
    counted = schedule(optimizer, steps, clock, minutes * 60 - 40, warmup=min(500, steps), floor=0.01)
    average = copy.deepcopy(model).requires_grad_(False)
    fixed = False

    def fix_text(_: int) -> None:
        """Once the text encoder stays, the averaged one is set to it and written."""
        nonlocal fixed
        if fixed or not optimizer.param_groups[1]["finished"]:
            return
        average.text.load_state_dict(model.text.state_dict())
        fixed = True
        if rank == 0:
            save_text(output, average)
            clock.log("the text encoder is done")

    learn = objective(model, data, generator)
    shown = "squared error"
    clock.log(fit(model, learn, optimizer, counted, generator, clock, shows=shown, average=average, during=fix_text))
    if rank:
        return
    average = average.to(memory_format=torch.contiguous_format)
    save(output, average)
    clock.log("saved")
    draw_sheet(output, average.float(), autoencoder, tokenizer, generator)


if __name__ == "__main__":
    typer.run(main)
