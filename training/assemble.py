"""Last step: the stages' weights as one checkpoint, `python -m training.assemble AUTOENCODER DENOISER CHECKPOINT`."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from segdream_cli.priors.profile import PROFILE_FILE
from segdream_cli.util.hashes import write_sums
from training.models import load_tokenizer, scheduler
from training.world.catalog import ATTRIBUTES, COLORS, OBJECTS, contradictions

LIMIT_MB = 58.0
PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")


def restore_hub_names(file: Path) -> None:
    """Gives a text encoder's weights the prefix that they have on the Hub, which transformers 5 leaves out."""
    tensors = load_file(file)
    prefix = "" if any(name.startswith("text_model.") for name in tensors) else "text_model."
    save_file({prefix + name: value for name, value in tensors.items()}, file, metadata={"format": "pt"})


def vocabulary() -> dict[str, list[str] | list[list[str]]]:
    """The world's phrases, and the pairs of them that contradict each other, for `segdream.json`."""
    return {
        "objects": list(OBJECTS),
        "colors": list(COLORS),
        "fillers": ["a", "an"],
        "attributes": [attribute for attribute in ATTRIBUTES if attribute],
        "excluded": [list(pair) for pair in contradictions()],
    }


def main(
    autoencoder: Annotated[Path, typer.Argument(help="Folder that the first stage wrote.")],
    denoiser: Annotated[Path, typer.Argument(help="Folder that the second stage wrote.")],
    checkpoint: Annotated[Path, typer.Argument(help="Folder to replace; its settings and Point-E stay.")],
) -> None:
    """Writes a checkpoint in Stable Diffusion's layout, in half precision, with the world's vocabulary."""
    tokens = denoiser / "tokenizer"
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(autoencoder, low_cpu_mem_usage=False).half(),
        text_encoder=CLIPTextModel.from_pretrained(denoiser / "text_encoder", dtype=torch.float16),
        tokenizer=load_tokenizer(tokens),
        unet=UNet2DConditionModel.from_pretrained(denoiser / "unet", low_cpu_mem_usage=False).half(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in PARTS:  # only now: the autoencoder may be the checkpoint's own
        shutil.rmtree(checkpoint / part, ignore_errors=True)
    for network in (pipeline.vae, pipeline.unet):
        network.register_to_config(_name_or_path="")  # else the folder of the stage
    pipeline.save_pretrained(checkpoint)
    for name in ("vocab.json", "merges.txt"):  # transformers 5 writes tokenizer.json only
        shutil.copy(tokens / name, checkpoint / "tokenizer" / name)
    restore_hub_names(checkpoint / "text_encoder" / "model.safetensors")
    profile = json.loads((checkpoint / PROFILE_FILE).read_text(encoding="utf-8"))
    profile["vocabulary"] = profile.get("vocabulary", {}) | vocabulary()  # the tables of synonyms stay
    (checkpoint / PROFILE_FILE).write_text(json.dumps(profile, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    weights = [file for part in PARTS for file in (checkpoint / part).glob("*.safetensors")]
    for file in weights:
        file.chmod(0o644)
    write_sums(checkpoint)
    size = sum(file.stat().st_size for file in weights) / 1e6
    print(f"{size:.1f} MB of weights in {checkpoint}, of {LIMIT_MB:.0f} at most")


if __name__ == "__main__":
    typer.run(main)
