"""Builds a tiny Stable Diffusion checkpoint with random weights, laid out as the Hub's are.

`save_pretrained` alone would write another layout: text encoder keys without the `text_model.` prefix, the tokenizer
as one `tokenizer.json`, and the autoencoder's attention under its new names.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

SPECIALS = ("<|startoftext|>", "<|endoftext|>")
MERGES = ("r e", "re d</w>", "c a", "ca r</w>", "b u")
CLIP_SIDE = 32
"""Side in pixels of the images of `build_clip`."""
CLIP_NORMALIZATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of CLIP's image channels."""
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def build(
    folder: Path,
    *,
    prediction_type: str = "epsilon",
    latent_channels: int = 4,
    variant: str | None = None,
    **scheduler: Any,
) -> Path:
    """Writes the checkpoint: 64 px images, 8x downsampling, 77 tokens, deterministic weights. Returns `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=latent_channels,
            out_channels=latent_channels,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=4,
            sample_size=64,
            scaling_factor=0.18215,
        )
        vocabulary = _vocabulary()
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=77,
                hidden_act="gelu",
                bos_token_id=len(vocabulary) - 2,
                eos_token_id=len(vocabulary) - 1,
                pad_token_id=0,
            )
        )
        for parameter in text.parameters():  # the library's start is so small that every text would look alike
            torch.nn.init.normal_(parameter, std=0.2)
    parts = {"unet": (unet, {}), "vae": (vae, OLD_ATTENTION), "text_encoder": (text, {})}
    for part, (network, renamed) in parts.items():
        network.half().save_pretrained(folder / part) if variant else network.save_pretrained(folder / part)
        _rewrite(next((folder / part).glob("*.safetensors")), renamed, part == "text_encoder", variant)
    DDIMScheduler(
        **{
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "prediction_type": prediction_type,
        }
        | scheduler
    ).save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer")
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.8.0",
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    return folder


def build_clip(folder: Path) -> Path:
    """Writes a small CLIP with random weights as the Hub has OpenAI's, with the old keys of its preprocessing."""
    words = write_tokenizer(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config=sizes | {"vocab_size": words, "bos_token_id": words - 2, "eos_token_id": words - 1},
        vision_config=sizes | {"image_size": CLIP_SIDE, "patch_size": 8},
        projection_dim=24,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CLIPModel(config)
        for parameter in network.parameters():
            if parameter.ndim > 1:  # the library's start is so small that all texts and images look alike
                torch.nn.init.normal_(parameter, std=0.25)
    network.save_pretrained(folder)
    mean, deviation = CLIP_NORMALIZATION
    write_json(
        folder / "preprocessor_config.json",
        {
            "crop_size": CLIP_SIDE,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": mean,
            "image_std": deviation,
            "resample": 3,
            "size": CLIP_SIDE,
        },
    )
    return folder


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Replaces top-level entries of a JSON file."""
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def edit_weights(path: Path, *, drop: str | None = None, **replaced: torch.Tensor) -> None:
    """Drops or replaces tensors of a safetensors file."""
    tensors = load_file(path) | replaced
    if drop is not None:
        del tensors[drop]
    save_file(tensors, path, metadata={"format": "pt"})


def _rewrite(path: Path, renamed: dict[str, str], prefixed: bool, variant: str | None) -> None:
    """Gives a weight file the Hub's key names and, for a variant, its file name."""
    tensors = {}
    for key, tensor in load_file(path).items():
        for new, old in renamed.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        tensors[f"text_model.{key.removeprefix('text_model.')}" if prefixed else key] = tensor.contiguous()
    path.unlink()
    name = path.name.replace(".safetensors", f".{variant}.safetensors" if variant else ".safetensors")
    save_file(tensors, path.with_name(name), metadata={"format": "pt"})


def _vocabulary() -> dict[str, int]:
    """CLIP's byte alphabet, bare and at a word's end, the merges, and the two special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(code) for code in printable] + [chr(256 + place) for place in range(256 - len(printable))]
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *(merge.replace(" ", "") for merge in MERGES)]
    return {token: place for place, token in enumerate([*tokens, *SPECIALS])}


def write_tokenizer(folder: Path) -> int:
    """Writes the small tokenizer, and returns its number of tokens."""
    folder.mkdir(exist_ok=True)
    vocabulary = _vocabulary()
    write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *MERGES)) + "\n", encoding="utf-8")
    specials = {"bos_token": SPECIALS[0], "eos_token": SPECIALS[1], "unk_token": SPECIALS[1], "pad_token": "!"}
    write_json(folder / "special_tokens_map.json", specials)
    write_json(
        folder / "tokenizer_config.json",
        specials | {"model_max_length": 77, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"},
    )
    return len(vocabulary)
