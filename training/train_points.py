"""A little Point-E for the embedded prior: `python -m training.train_points CHECKPOINT OUT`.

It learns surface points of the world, conditioned on the prior's own text encoder.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from jaxtyping import Float, Int64
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from segdream_cli.pointe.schedule import TIMESTEPS, Sampling, alphas_cumprod
from segdream_cli.pointe.transformer import CHANNELS, PointTransformer, PointTransformerConfig
from training.bank import random_instances
from training.models import TEXT_WIDTH, load_tokenizer
from training.stage import Clock, adamw, fast_cuda, fit, fused, millions, schedule
from training.world.catalog import combinations
from training.world.render import sample_surface

CONFIG = PointTransformerConfig(
    points=512,
    width=192,
    layers=6,
    heads=6,
    text_width=TEXT_WIDTH,
    sampling=Sampling(steps=16, churn=1.0, guidance_scale=2.0),
)
NO_TEXT = 0.1
STORED = 2 * CONFIG.points
"""Number of points per instance, of which a step draws half."""


@dataclass(frozen=True, slots=True)
class Clouds:
    """Surface points in the networks' units, and the text vector of each cloud."""

    points: Float[Tensor, "m p 6"]
    texts: Float[Tensor, "c d"]
    shown: Int64[Tensor, " m"]


def text_vectors(checkpoint: Path, texts: list[str], device: torch.device) -> Float[Tensor, "c d"]:
    """The prior's text vectors, of unit length: the mean of its encoder's states (`TextVector`)."""
    tokenizer = load_tokenizer(checkpoint / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32).eval().to(device)
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
    with torch.no_grad():
        pooled = torch.cat([encoder(part).last_hidden_state.mean(1) for part in ids.split(1024)])
    return nn.functional.normalize(pooled, dim=-1)


def to_network(points: Float[Tensor, "i n 3"], colors: Float[Tensor, "i n 3"]) -> Float[Tensor, "i n 6"]:
    """Points of the world in the units and in the frame of Point-E's networks: z up, facing -y, all within -1..1."""
    x, y, z = points.unbind(-1)
    return torch.cat([torch.stack([x, -z, y], -1), 2 * colors - 1], -1)


def make_clouds(count: int, seed: int, checkpoint: Path, device: torch.device) -> Clouds:
    """Samples clouds of at least `count` random instances that are not held out."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator(device).manual_seed(seed)
    seen = [one for one in combinations() if not one.held_out]
    place = {one: i for i, one in enumerate(seen)}
    points, shown, made = [], [], 0
    for picked, primitives, looks in random_instances(seen, rng, count):
        cloud = to_network(*sample_surface(primitives, looks, STORED, generator))
        points.append(cloud.half())
        shown += [place[one] for one in picked]
        made += len(picked)
        if made >= count:
            break
    texts = text_vectors(checkpoint, [one.caption() for one in seen], device)
    return Clouds(torch.cat(points), texts, torch.tensor(shown, device=device))


def objective(
    network: PointTransformer, clouds: Clouds, batch: int, generator: torch.Generator
) -> Callable[[], tuple[Tensor, Tensor]]:
    """The squared error of the noise that the network predicts in random points of random clouds."""
    place = generator.device
    alphas = alphas_cumprod(network.config.schedule).float().to(place)
    predict = fused(lambda noisy, t, texts: network(noisy, t, network.embed(texts))[..., :CHANNELS], place)

    def draw() -> tuple[Tensor, Tensor]:
        picks = torch.randint(len(clouds.points), (batch,), device=place, generator=generator)
        order = torch.rand(STORED, device=place, generator=generator).argsort()[: network.config.points]
        clean = clouds.points[picks][:, order].float()
        named = torch.rand(batch, 1, device=place, generator=generator) >= NO_TEXT
        texts = clouds.texts[clouds.shown[picks]] * named
        t = torch.randint(TIMESTEPS, (batch,), device=place, generator=generator)
        noise = torch.randn(clean.shape, device=place, generator=generator)
        alpha = alphas[t, None, None]
        with torch.autocast(place.type, dtype=torch.bfloat16):
            noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
            predicted = predict(noisy, t, texts)
        error = (predicted.float() - noise).square().mean()
        return error, error

    return draw


def main(
    checkpoint: Annotated[Path, typer.Argument(help="The prior's checkpoint or the second stage's folder.")],
    output: Annotated[Path, typer.Argument(help="Folder for the weights.")],
    steps: int = 20_000,
    batch: int = 256,
    instances: Annotated[int, typer.Option(help="Objects in the bank.")] = 60_000,
    minutes: Annotated[float, typer.Option(help="Time within which to be done.")] = 6.0,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    seed: int = 4,
    device: str = "cuda",
) -> None:
    """Trains the prior's own Point-E on the combinations that are not held out."""
    clock, place = Clock(), torch.device(device)
    fast_cuda()
    torch.manual_seed(seed)
    generator = torch.Generator(place).manual_seed(seed)
    clouds = make_clouds(instances, seed, checkpoint, place)
    network = PointTransformer(CONFIG).to(place)
    clock.log(f"{len(clouds.points)} clouds, {millions(network):.2f} M parameters")
    optimizer = adamw([{"params": list(network.parameters()), "lr": rate}], weight_decay=1e-2, device=place)
    counted = schedule(optimizer, steps, clock, minutes * 60 - 10, warmup=min(500, steps), floor=0.01)
    average = copy.deepcopy(network).requires_grad_(False)
    learn = objective(network, clouds, batch, generator)
    clock.log(fit(network, learn, optimizer, counted, generator, clock, shows="squared error", average=average))
    output.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous().cpu() for name, value in average.state_dict().items()}
    save_file(weights, output / "model.safetensors")
    (output / "config.json").write_text(json.dumps(CONFIG.to_json(), indent=1) + "\n", encoding="utf-8")
    clock.log("saved")


if __name__ == "__main__":
    typer.run(main)
